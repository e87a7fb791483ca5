"""The pictures under sliders: key, sliders and picture say the same."""

import io
from base64 import b64decode

import pytest
import torch
import traitlets
from PIL import Image

from tfkit.widgets import Flipbook


def shade(value):
    return torch.full((3, 8, 8), float(value))


@pytest.fixture
def book():
    pages = {
        (t, name): shade((i + j) / 3) for i, t in enumerate((1, 2)) for j, name in enumerate("ab")
    }
    return Flipbook(pages, ("t", "layer"), size=16)


def grey(data):
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))[0]


def test_sliders_turn_the_pages(book):
    assert book.key == (1, "a") and grey(book._image.value) == 0
    book._sliders[0].value = 2
    assert book.key == (2, "a") and grey(book._image.value) == 85
    book._sliders[1].value = "b"
    assert book.key == (2, "b") and grey(book._image.value) == 170
    assert book._image.get_state()["tooltip"] == "t 2, layer b"  # what the page gets


def test_setting_the_key_moves_the_sliders(book):
    book.key = (2, "b")
    assert [slider.value for slider in book._sliders] == [2, "b"]


def test_its_static_twin_is_the_page_it_shows(book):
    book.key = (2, "a")
    bundle = book._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert grey(b64decode(data["image/png"])) == 85
    assert "application/vnd.jupyter.widget-view+json" in data


def test_films_move_and_single_keys_need_no_tuple():
    film = torch.stack([shade(0), shade(1)])
    book = Flipbook({10: film, 20: film.flip(0)}, ("step",), size=16)
    assert book._image.format == "gif" and Image.open(io.BytesIO(book._image.value)).n_frames == 2
    book.key = (20,)
    assert grey(book._image.value) == 255


def test_what_does_not_fit_is_refused(book):
    with pytest.raises(ValueError, match="3 pictures for 4 combinations"):
        Flipbook({(0, 0): shade(0), (0, 1): shade(0), (1, 0): shade(0)}, ("a", "b"))
    with pytest.raises(ValueError, match="expected one value of"):
        Flipbook({0: shade(0)}, ("a", "b"))
    with pytest.raises(traitlets.TraitError, match=r"key=\(3, 'a'\)"):
        book.key = (3, "a")
    assert book.key == (1, "a")
