"""The comparison of clips without a browser: its traits, its pictures, its bytes and its page."""

import io
import json
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
import traitlets
from clips import bare, moving
from PIL import Image

from tfkit.editing import Edit
from tfkit.video import Clip, to_uint8
from tfkit.widgets import VideoCompare, films


@pytest.fixture
def two():
    """A drifting pattern and its negative."""
    return {"source": moving(f=5), "edit": 1 - moving(f=5)}


@pytest.fixture
def compare(two):
    return VideoCompare(two)


def levels(file):
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def test_it_takes_clips_edits_and_tensors_with_their_names():
    frames = moving(f=3)
    edit = Edit(torch.zeros(3, 4, 4, 6), frames, None, "a red cat")
    shown = VideoCompare(Clip(frames, 12, "a cat"), edit, frames, Clip(frames, 5, "a cat"))
    assert shown._data["names"] == ["a cat", "a red cat", "clip 3", "a cat (4)"]
    assert (shown.fps, shown.left, shown.right) == (12, "a cat", "a red cat")
    assert VideoCompare(frames, frames).fps == 8
    assert VideoCompare(frames, frames, fps=3).fps == 3


def test_the_pictures_are_exact_where_they_fit(compare, two):
    for name, film in zip(two, compare._data["films"], strict=True):
        for pixels, file in zip(to_uint8(two[name]), film, strict=True):
            assert np.array_equal(levels(file), pixels)
    assert compare._data["error"] == 0 and "5 frames, shown at 32x48, lossless" in repr(compare)


def test_the_budget_decides_quality_and_then_size():
    noise = list(torch.rand(2, 6, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    exact = films.pack(noise, 1e6)
    lossy = films.pack(noise, exact.nbytes / 2)
    small = films.pack(noise, exact.nbytes / 12)
    assert exact.error == 0 < lossy.error
    assert (exact.size, lossy.size) == ((96, 96), (96, 96)) and small.size < (96, 96)
    assert lossy.nbytes <= exact.nbytes / 2 and small.nbytes <= exact.nbytes / 12
    off = np.stack([levels(f) for f in lossy.files[1]]).astype(float)
    off -= np.stack(list(to_uint8(noise[1])))
    assert np.sqrt(np.square(off).mean()) == pytest.approx(lossy.error, rel=0.2)
    assert "lossy, " in repr(VideoCompare(*noise, budget=exact.nbytes / 2e6))
    assert films.pack([torch.rand(1, 3, 100, 200)], 1e6, longest=50).size == (25, 50)
    with pytest.raises(ValueError, match=r"2 clips of 6 frames of 96x96 .* into 0.001 MB, .*raise"):
        films.pack(noise, 1000)


def test_difference(compare):
    torch.testing.assert_close(compare.difference(), (2 * moving(f=5) - 1).abs())
    compare.right = "source"
    assert not compare.difference().any()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frame", 5, "frame=5: expected 0 to 4"),
        ("frame", -1, "frame"),
        ("left", "other", r"left='other'.*\['source', 'edit'\]"),
        ("right", "", "right=''"),
        ("view", "blink", "view"),
        ("wipe", 1.1, "wipe"),
        ("gain", 0.5, "gain"),
        ("fps", 0.0, "fps"),
    ],
)
def test_values_that_are_not_there_change_nothing(compare, name, value, message):
    before = getattr(compare, name)
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(compare, name, value)
    assert getattr(compare, name) == before


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ((), "0 clips; expected two or more"),
        ((moving(f=2),), "1 clips"),
        (({"a": moving(f=2), "b": moving(f=3)},), "'b' has 3 frames of 32x48, 'a' 2 frames"),
        (({"a": moving(f=2), "b": moving(f=2, w=32)},), r"'b' has 2 frames of 32x32.*resize"),
        (({"a": moving(f=2), "b": 3},), "'b' is of type int; expected a Clip"),
        (({"a": moving(f=2), "b": 3 * moving(f=2)},), r"range from .* expected \[0, 1\]"),
    ],
)
def test_clips_that_do_not_fit_are_refused(unchecked, clips, message):
    with pytest.raises(ValueError, match=message):
        bare(VideoCompare)(*clips)


def test_readers_without_a_kernel_see_this_frame(compare):
    def picture():
        bundle = compare._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
        return b64decode(data["image/png"])

    before = picture()
    assert Image.open(io.BytesIO(before)).size[0] > 600 and len(before) < 200_000
    compare.frame = 4
    assert picture() != before


def test_the_page_holds_all_it_needs(compare, tmp_path):
    compare.frame, compare.view, compare.playing = 3, "difference", True
    text = compare.save_html(tmp_path / "page.html").read_text()
    assert not re.search(r"https?:|//cdn|<link|src=", text)
    state = json.loads(re.search(r'id="state">(.*?)</script>', text, re.S)[1])
    assert (state["frame"], state["view"], state["playing"]) == (3, "difference", False)
    held = b64decode(state["_data"]["films"][1][2]["base64"])
    assert held == compare._data["films"][1][2]
    with pytest.raises(ValueError, match=r"ends in '\.gif'"):
        compare.save_html(tmp_path / "page.gif")


def test_clips_of_long_names_that_begin_alike_are_all_in_the_figure():
    names = [f"a plain orange fox on grass in the morning, {way}" for way in ("joint", "flow")]
    figure = VideoCompare(dict(zip(names, [moving(f=2)] * 2, strict=True))).figure()
    *titles, last = (axes.get_title().replace("\n", " ") for axes in figure.axes)
    assert titles == names and last == f"difference × 4 {names[0]} − {names[1]}"
    figure.draw_without_rendering()
    top = max(axes.title.get_window_extent().y1 for axes in figure.axes) / figure.dpi
    assert top <= figure.get_size_inches()[1]  # nothing is cut off


def test_clips_that_are_shown_smaller_say_so():
    compare = VideoCompare(torch.rand(1, 3, 32, 800), torch.rand(1, 3, 32, 800))
    assert "shown at 31x768 of 32x800, lossless" in repr(compare)
    assert compare._data["whole"] == (32, 800) and compare._data["size"] == (31, 768)


def test_a_name_is_no_formula_and_no_markup(tmp_path):
    names = ["$x_", "</script><b>STATE"]
    compare = VideoCompare(dict(zip(names, [moving(f=2)] * 2, strict=True)))
    assert compare.figure()._repr_png_()
    text = compare.save_html(tmp_path / "page.html").read_text()
    assert "</script><b>" not in text and text.count("</script>") == 2
