"""The caption composer without a browser: its traits are the truth, its views follow them."""

import io
import threading

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

import tfkit
from tfkit.menagerie import film
from tfkit.video import resize, to_uint8
from tfkit.widgets import CaptionComposer


def opened(data):
    image = Image.open(io.BytesIO(bytes(data)))
    return image, getattr(image, "n_frames", 1)


def test_menus_compose_the_caption():
    composer = CaptionComposer(caption="an animal", frames=2)
    assert {n: m.value for n, m in composer._menus.items()} == {
        "number": "one", "coat": "(open)", "color": "(open)", "species": "(open)",
        "accessory": "(open)", "ground": "(open)",
    }  # fmt: skip
    composer._menus["species"].value = "fox"
    composer._menus["number"].value = "two"
    composer._menus["ground"].value = "night"
    composer._menus["color"].value = "red"
    assert composer.caption == "two red foxes at night" == composer._text.value
    composer._menus["color"].value = "(open)"
    assert composer.caption == "two foxes at night"


def test_menus_keep_the_other_animals():
    composer = CaptionComposer(caption="a red cat and two blue dogs on snow", frames=1)
    composer._menus["ground"].value = "sea"
    composer._menus["color"].value = "green"
    assert composer.caption == "a green cat and two blue dogs by the sea"
    composer._menus["number"].value = "two"  # four animals are more than a film has
    assert composer.caption == "a green cat and two blue dogs by the sea"
    assert composer._menus["number"].value == "one" and "4" in composer._message.value


def test_a_good_caption_typed_again_takes_the_refusal_back():
    composer = CaptionComposer(caption="a dog on snow", frames=1)
    composer._text.value = "a purple zebra"
    assert "zebra" in composer._message.value
    composer._text.value = "a dog on snow"
    assert composer._message.value == "" and composer.caption == "a dog on snow"


def test_pictures_tell_readers_what_they_show():
    composer = CaptionComposer(tfkit.load(), caption="a dog on snow", frames=1)
    composer._text.value = "a purple zebra"
    composer.generate()
    film, picture = (one.get_state()["tooltip"] for one in (composer._film, composer._picture))
    assert film == "Film of a dog on snow"
    assert picture == "The model's picture of a dog on snow"
    assert composer._text.value == "a dog on snow"  # not what it is no picture of


def test_a_caption_from_python_moves_the_menus_and_the_film():
    composer = CaptionComposer(frames=3)
    before = composer._film.value
    composer.caption = "three spotted blue birds wearing a hat by the sea"
    values = [m.value for m in composer._menus.values()]
    assert values == ["three", "spotted", "blue", "bird", "hat", "sea"]
    assert composer.caption == "three spotted blue birds wearing a hat by the sea"
    shown, frames = opened(composer._film.value)
    assert frames == 3 and shown.size == (256, 256) and composer._film.value != before
    still, _ = opened(composer._still)
    want = to_uint8(resize(film(composer.caption, frames=1, seed=0), 256))
    assert (np.array(still) == next(iter(want))).all()


def test_the_seed_is_one_with_its_field():
    composer = CaptionComposer(seed=3, frames=2)
    film_of_3 = composer._film.value
    composer._seeds.value = 4
    assert composer.seed == 4 and composer._film.value != film_of_3
    composer.seed = 3
    assert composer._seeds.value == 3 and composer._film.value == film_of_3


def test_what_it_does_not_understand_changes_nothing_and_is_explained():
    composer = CaptionComposer(frames=2)
    before = composer.caption, composer._film.value
    with pytest.raises(traitlets.TraitError, match="unicorn"):
        composer.caption = "a unicorn"
    composer._text.value = "a unicorn on snow"
    assert "unicorn" in composer._message.value and "elephant" in composer._message.value
    assert (composer.caption, composer._film.value) == before
    composer._text.value = "a cat"
    assert composer.caption == "a cat" and composer._message.value == ""


def test_the_model_paints_the_caption():
    composer = CaptionComposer(tfkit.load(device="cpu"), caption="a red cat on snow", frames=2)
    assert composer._picture.layout.display == "none"
    made = composer.generate()
    assert made.shape == (3, 128, 128) and composer._picture.layout.display == ""
    want = tfkit.generate(
        tfkit.load(device="cpu"), "a red cat on snow", guidance=4.0, progress=False
    )
    torch.testing.assert_close(made, want[0])
    composer.seed = 5  # another scene: the picture of the last one goes
    assert composer._picture.layout.display == "none"


def test_a_picture_of_what_is_asked_no_more_is_not_shown(monkeypatch):
    composer = CaptionComposer(tfkit.load(device="cpu"), caption="a red cat on snow", frames=2)

    def paint(*arguments, **settings):
        made = tfkit.generate(*arguments, steps=1, **settings)
        composer.caption = "a blue cat on snow"  # chosen from another thread meanwhile
        return made

    monkeypatch.setattr("tfkit.widgets.composer.generate", paint)
    composer._button.click()
    assert composer._picture.layout.display == "none" and not composer._button.disabled
    monkeypatch.setattr("tfkit.widgets.composer.generate", lambda *_, **__: 1 / 0)
    composer._button.click()
    assert composer._message.value == "ZeroDivisionError: division by zero"
    with pytest.raises(ZeroDivisionError):
        composer.generate()


def test_the_button_waits_for_the_running_cell(cells):
    """JupyterLab's subshells: the model is never in two hands."""
    composer = CaptionComposer(tfkit.load(device="cpu"), caption="a red cat on snow", frames=2)
    beside = threading.Thread(target=composer._button.click)
    beside.start()
    beside.join()
    assert composer._picture.layout.display == "none" and len(cells) == 1
    cells[0]()
    assert composer._picture.layout.display == ""


def test_without_a_model_it_says_so():
    composer = CaptionComposer(frames=2)
    assert composer._button.disabled
    with pytest.raises(ValueError, match="no model"):
        composer.generate()


def test_readers_without_a_kernel_see_a_picture():
    bundle = CaptionComposer(frames=2)._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
