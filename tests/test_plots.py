"""Figures: their size, their words, and that the pixels in them are those of the clips."""

import io

import numpy as np
import pytest
import torch
from clips import bare, decibels, moving
from PIL import Image, ImageFont

from tfkit import plots
from tfkit.lettering import FONT, lines_of
from tfkit.menagerie import film
from tfkit.plots import PALE, contact_sheet, save, side_by_side, with_slices, xt_slice, xt_slices
from tfkit.video import Clip, resize
from tfkit.video_file import read_video
from tfkit.writing import write_video

CLIPS = {"source": Clip(moving(12)), "an edit of it": moving(12).flip(1)}


def drawn(figure):
    """The figure as it appears, (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


def words(figure):
    return [text.get_text() for text in figure.texts]


def test_a_contact_sheet_has_a_row_a_clip_and_numbers_on_top():
    figure = contact_sheet(CLIPS, columns=4)
    assert words(figure) == ["frame 0", "4", "7", "11", "source", "an edit of it"]
    assert len(figure.axes) == 8
    image = drawn(figure)
    assert image.shape[1] <= 900 and image.shape[0] < image.shape[1]
    assert image.std() > 20 and (image[:2] == 255).all()  # a picture on a white margin
    assert words(contact_sheet(CLIPS, columns=3, every=5))[:3] == ["frame 0", "5", "10"]
    assert words(contact_sheet({"a": moving(2)}))[:2] == ["frame 0", "1"]
    assert words(contact_sheet({"a": moving(3)}, columns=2, titles=[1, 5, 9]))[:2] == ["1", "9"]
    with pytest.raises(ValueError, match="2 titles for 3 frames"):
        contact_sheet({"a": moving(3)}, titles=["x", "y"])


def test_a_contact_sheet_shows_the_frames_themselves():
    figure = contact_sheet(CLIPS, columns=3)
    middle = figure.axes[1]
    box = middle.get_position()
    image = drawn(figure)
    h, w = image.shape[:2]
    cell = image[round(h * (1 - box.y1)) : round(h * (1 - box.y0)) + 1]
    cell = cell[1:-1, round(w * box.x0) + 1 : round(w * box.x1) - 1]
    cell = torch.from_numpy(cell.copy()).permute(2, 0, 1)[None] / 255
    assert decibels(resize(cell, (32, 48)), moving(12)[6:7]) > 25


def test_pyplot_is_left_alone_and_long_labels_are_wrapped():
    from matplotlib import pyplot

    figure = contact_sheet({"edited frame by frame, with ControlNet": moving(1)})
    assert pyplot.get_fignums() == []
    assert words(figure)[-1] == "edited frame by\nframe, with\nControlNet"
    assert (drawn(figure)[:, :4] == 255).all()  # nothing is cut off


def test_large_and_portrait_frames_are_shrunk_without_aliasing():
    stripes = (torch.arange(600) % 2).float().expand(1, 3, 900, 600)
    image = drawn(contact_sheet({"a": stripes}))
    inner = image[40:-20, image.shape[1] // 2 : -20]
    assert abs(inner.mean() - 127.5) < 10 and inner.std() < 40


@pytest.mark.parametrize("row", [0, 13, 31])
def test_an_xt_slice_is_direct_indexing(row):
    frames = moving(5)
    assert torch.equal(xt_slice(Clip(frames), row), torch.stack(list(frames[:, :, row]), dim=1))


def test_motion_is_slanted_and_flicker_horizontal():
    frames = moving(16, w=48)
    assert torch.allclose(
        xt_slice(frames, 9)[0, 1:, 1:], xt_slice(frames, 9)[0, :-1, :-1], atol=1e-6
    )


def test_xt_slices_mark_their_row():
    figure = xt_slices(CLIPS, row=20)
    assert words(figure) == ["source", "an edit of it"]
    pictures, slices = figure.axes[::2], figure.axes[1::2]
    assert [a.lines[0].get_ydata()[0] for a in pictures] == [20, 20]
    shown = slices[0].images[0].get_array() / 255
    assert np.allclose(shown, xt_slice(CLIPS["source"], 20).permute(1, 2, 0), atol=0.003)
    assert slices[0].get_xlabel() == "x →" and slices[0].get_ylabel() == "← frame"
    assert drawn(figure).std() > 20
    half = {"a": moving(3), "b": resize(moving(3), 16)}
    assert [a.lines[0].get_ydata()[0] for a in xt_slices(half).axes[::2]] == [16, 8]


def test_side_by_side_is_even_white_between_and_exact_within(tmp_path):
    video = side_by_side(CLIPS, zoom=1)
    f, c, h, w = video.shape
    assert (f, c, h % 2, w % 2) == (12, 3, 0, 0)
    gap, band = 4, 26  # two lines
    assert (h, w) == (band + 32 + gap, 2 * 48 + 3 * gap)
    for clip, x in zip(CLIPS.values(), (gap, 2 * gap + 48), strict=True):
        frames = clip.frames if isinstance(clip, Clip) else clip
        assert torch.equal(video[..., band : band + 32, x : x + 48], frames)
        assert video[0, :, :band, x : x + 48].min() < 0.5  # the label
    assert (video[..., :gap] == 1).all() and (video[..., band + 32 :, :] == 1).all()
    assert read_video(write_video(tmp_path / "a.mp4", video)).frames.shape == video.shape


def test_small_clips_are_enlarged_and_others_fitted():
    clips = {"a": moving(1, 32, 48), "b": moving(1, 65, 31, dtype=torch.float64)}
    video = side_by_side(clips)
    assert video.shape[2] > 256 and video.dtype == torch.float32
    assert video.shape[3] == pytest.approx(48 * 8 + 31 * 256 / 65 + 24, abs=3)


def test_labels_wider_than_their_picture_are_wrapped():
    font = ImageFont.truetype(FONT, 10)
    assert lines_of("short", 100, font=font) == ["short"]
    lines = lines_of("a very long label indeed", 60, font=font)
    assert len(lines) == 3 and " ".join(lines) == "a very long label indeed"
    broken = lines_of("unbelievably", 30, font=font)
    assert "".join(broken) == "unbelievably" and len(broken) > 1
    assert all(font.getlength(line) <= 30 for line in broken)
    one, two = (
        side_by_side({label: moving(1)}, zoom=1) for label in ("source", "edited frame by frame")
    )
    added = two.shape[2] - one.shape[2]
    assert added > 0 and torch.equal(two[..., 16 + added :, :], one[..., 16:, :])
    assert two[..., : 16 + added, :].min() < 0.5 and (two[..., -2:, :] == 1).all()


def test_titles_and_names_of_slices_are_wrapped():
    sheet = contact_sheet({"a": moving(8)}, titles=["the frame that comes first", *"bcdefgh"])
    assert words(sheet)[0].count("\n") >= 1 and words(sheet)[1] == "b"
    plain = contact_sheet({"a": moving(8)}, titles=list("abcdefgh"))
    assert sheet.get_figheight() > plain.get_figheight()
    names = [f"{name}, edited frame by frame with ControlNet" for name in "abcd"]
    figure = xt_slices({name: moving(2) for name in names})
    assert [x.replace("\n", " ") for x in words(figure)] == names and "\n" in words(figure)[0]


def test_pictures_of_squares_keep_sharp_edges():
    colors = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    squares = colors.repeat_interleave(16, 2).repeat_interleave(16, 3)
    figure = contact_sheet({"a": squares})
    axes = figure.axes[0]
    assert axes.images[0].get_array().shape == (32, 32, 3)
    assert axes.get_xlim() == (-0.5, 127.5) and axes.get_ylim() == (127.5, -0.5)
    assert len(np.unique(drawn(figure).reshape(-1, 3)[:, 0])) > 10
    mixed = contact_sheet({"a": squares.roll(1, 2)}).axes[0].images[0]
    assert mixed.get_array().shape == (128, 128, 3)


def test_the_mark_is_at_its_row_in_large_frames_too():
    axes = xt_slices({"a": torch.rand(2, 3, 1200, 600)}, row=900).axes[0]
    low, high = axes.get_ylim()
    assert axes.lines[0].get_ydata()[0] / (low - high) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "suffix, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures_are_saved_whole(tmp_path, suffix, start):
    path = save(contact_sheet(CLIPS), tmp_path / "figures" / f"a.{suffix}", dpi=50)
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_a_palette_makes_a_figure_small_and_keeps_its_look(tmp_path):
    g = torch.Generator().manual_seed(0)
    blocks = torch.rand(4, 3, 6, 6, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.rand(4, 3, 48, 48, generator=g)
    sheet = contact_sheet({"a": (blocks + 0.02 * noise).clamp(0, 1)})
    full = save(sheet, tmp_path / "full.png", dpi=80)
    small = save(sheet, tmp_path / "small.png", dpi=80, colors=256)
    assert small.stat().st_size < full.stat().st_size / 2
    pictures = [np.asarray(Image.open(p).convert("RGB"), dtype=float) for p in (full, small)]
    assert pictures[0].shape == pictures[1].shape
    assert abs(pictures[0] - pictures[1]).mean() < 6


@pytest.mark.parametrize(("name", "colors"), [("a.svg", 256), ("a.png", 1), ("a.png", 257)])
def test_a_palette_is_of_pngs_and_of_2_to_256_colors(tmp_path, name, colors):
    with pytest.raises(ValueError, match=f"colors={colors}"):
        save(contact_sheet(CLIPS), tmp_path / name, colors=colors)
    assert not list(tmp_path.iterdir())


def test_a_figure_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "mine.png").mkdir()
    (tmp_path / "mine.png" / "a.txt").write_text("keep me")
    with pytest.raises(OSError):
        save(contact_sheet(CLIPS), tmp_path / "mine.png")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine.png", "a.txt"]


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("contact_sheet", ([moving(2)],), r"clips is a list; expected {label: frames, ...}"),
        ("contact_sheet", ({},), r"clips is a dict; expected {label: frames, ...}"),
        ("contact_sheet", ({"a": moving(2), "b": moving(3)},), r"frames differ: {'a': 2, 'b': 3}"),
        ("contact_sheet", ({"a": moving(2)[0]},), r"'a' has shape \(3, 32, 48\); expected"),
        ("contact_sheet", ({"a": 255 * moving(2)},), r"'a' range from 0 to 255; expected \[0, 1\]"),
        ("xt_slice", (moving(2), 32), r"row=32; expected 0 to 31"),
        ("xt_slices", ({"a": moving(2)},), r"row=-1; expected 0 to 31"),
        ("side_by_side", ({"a": moving(2)},), r"zoom=0; expected a whole number of at least 1"),
        ("save", (None, "a.bmp"), r"'a.bmp' ends in '.bmp'; expected .png, .svg"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, arguments, message):
    options = {"xt_slices": {"row": -1}, "side_by_side": {"zoom": 0}}.get(name, {})
    with pytest.raises(ValueError, match=message):
        bare(getattr(plots, name))(*arguments, **options)


@pytest.mark.parametrize("options", [{"columns": 0}, {"every": 0}])
def test_a_sheet_needs_columns(options):
    with pytest.raises(ValueError, match=r"columns=.*, every=.*; expected 1 or more"):
        contact_sheet(CLIPS, **options)


def test_a_yt_slice_is_one_column_over_time():
    clip = moving(5)
    piece = plots.yt_slice(clip, 7)
    assert piece.shape == (3, 32, 5) and torch.equal(piece[:, :, 3], clip[3, :, :, 7])
    with pytest.raises(ValueError, match="column=48; expected 0 to 47"):
        plots.yt_slice(clip, 48)


def test_slices_come_to_be_under_the_row_they_are_of():
    from matplotlib.colors import to_rgb

    from tfkit.overlays import MARK

    clip = film("a cat", frames=4)
    (label, page), *_ = with_slices(
        {"cat": clip, "half": clip.frames[..., ::2, ::2]}, row=40
    ).items()
    h, tall = 128, 24
    assert label == "cat" and page.shape == (4, 3, h + 4 + 4 * tall, 128)
    mark, pale = torch.tensor(to_rgb(MARK)), torch.tensor(to_rgb(PALE))
    for i in range(4):
        picture, strip = page[i, :, :h], page[i, :, -4 * tall :]
        assert torch.equal(picture[:, 40], mark[:, None].expand(3, 128))
        rest = torch.arange(h) != 40
        assert torch.equal(picture[:, rest], clip.frames[i][:, rest])
        for j in range(4):
            row = clip.frames[j, :, 40] if j <= i else pale[:, None].expand(3, 128)
            assert torch.equal(
                strip[:, j * tall : (j + 1) * tall], row[:, None].expand(3, tall, 128)
            )
    with pytest.raises(ValueError, match="row=128; expected 0 to 127"):
        with_slices({"cat": clip}, row=128)
