"""Clips: slicing them, reading and writing them, and what is refused in which words."""

import base64
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import bare, decibels, moving

from tfkit import video_file, writing
from tfkit.video import Clip, resize, show, to_uint8, video_bytes
from tfkit.video_file import read_video
from tfkit.writing import write_video


def with_truth(f=6, h=8, w=10):
    number = torch.arange(f).view(f, 1, 1).expand(f, h, w)
    return Clip(
        moving(f, h, w),
        fps=12.0,
        caption="a <red> cat",
        flow=number[:-1, None].expand(f - 1, 2, h, w).float(),
        visible=number[:-1] % 2 == 0,
        parts=number,
        mask=number > 2,
        depth=number,
    )


# --- the clip -----------------------------------------------------------------------------------


def test_a_slice_takes_its_truth_along():
    clip = with_truth()
    part = clip[2:5]
    assert len(part) == 3 and part.fps == 12 and part.caption == clip.caption
    assert torch.equal(part.frames, clip.frames[2:5])
    assert part.flow[:, 0, 0, 0].tolist() == [2, 3]
    assert part.visible[:, 0, 0].tolist() == [True, False]
    assert part.parts[:, 0, 0].tolist() == part.depth[:, 0, 0].tolist() == [2, 3, 4]
    assert part.mask[:, 0, 0].tolist() == [False, True, True]
    assert torch.equal(clip[:].flow, clip.flow) and len(clip[-1:].flow) == 0
    assert torch.equal(clip[3], clip.frames[3]) and len(list(clip)) == 6


def test_a_step_drops_the_flow_and_slows_the_clip():
    part = with_truth()[::2]
    assert part.flow is None and part.visible is None and part.fps == 6
    assert part.parts[:, 0, 0].tolist() == [0, 2, 4]


@pytest.mark.parametrize("index", [slice(4, 4), slice(9, 12), slice(None, None, -1)])
def test_an_empty_or_backward_slice_is_refused(index):
    with pytest.raises(ValueError, match="of 6 frames: expected at least one frame and a step"):
        with_truth()[index]


def test_repr_names_what_is_known_and_not_the_numbers():
    expected = (
        "Clip(6 frames of 8x10 at 12 fps, 'a <red> cat', knows flow, visible, parts, mask, depth)"
    )
    assert repr(with_truth()) == expected
    assert repr(Clip(moving())) == "Clip(6 frames of 32x48 at 8 fps)"


def test_a_notebook_gets_a_described_player_that_waits():
    page = with_truth()._repr_html_()
    assert 'aria-label="Video of 6 frames: a &lt;red&gt; cat"' in page
    assert "<figcaption>a &lt;red&gt; cat</figcaption>" in page
    assert "controls" in page and "autoplay" not in page
    assert 'width="320" height="256"' in page  # 10 x 8 enlarged by a whole number
    data = re.search(r"base64,([^\"]+)", page)[1]
    assert base64.b64decode(data) == video_bytes(with_truth())


def test_show_shrinks_what_is_large_and_takes_tensors():
    pytest.importorskip("IPython")
    page = show(torch.rand(1, 3, 400, 800), fps=4, caption="noise").data
    assert 'width="768" height="384"' in page and "noise" in page


# --- round trips --------------------------------------------------------------------------------


def test_the_clips_own_rate_is_written_and_crf_sets_the_size(tmp_path):
    torch.manual_seed(0)
    clip = Clip(torch.rand(4, 3, 32, 32), fps=29.97)
    fine = write_video(tmp_path / "fine.mp4", clip)
    coarse = write_video(tmp_path / "coarse.mp4", clip, fps=3, crf=45)
    assert read_video(fine).fps == pytest.approx(29.97) and read_video(coarse).fps == 3
    assert coarse.stat().st_size < fine.stat().st_size / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_is_written_and_resized(tmp_path, dtype):
    frames = moving(2, dtype=dtype)
    back = read_video(write_video(tmp_path / "a", frames.requires_grad_()))
    assert back.frames.dtype == torch.float32 and decibels(back.frames, frames) > 45
    assert resize(frames, 16).dtype == dtype


def test_a_rate_may_be_a_number_of_numpys(tmp_path, unchecked):
    path = write_video(tmp_path / "a.mp4", torch.rand(2, 3, 32, 32), np.float32(12.5))
    assert read_video(path).fps == 12.5


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", moving())
    before = path.read_bytes()

    def breaks(frames):
        yield next(to_uint8(frames))
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "to_uint8", breaks)
    for name in ("a.mp4", "a.gif", "a"):
        with pytest.raises(KeyboardInterrupt):
            write_video(tmp_path / name, moving())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_of_frames_is_replaced_whole(tmp_path):
    write_video(tmp_path / "a", moving(6))
    assert len(read_video(write_video(tmp_path / "a", moving(2)))) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# --- reading ------------------------------------------------------------------------------------


def test_start_and_frames_choose_and_too_many_gives_what_there_is(tmp_path):
    for path in (tmp_path / "a.mp4", tmp_path / "a"):
        everything = read_video(write_video(path, moving())).frames
        assert torch.equal(read_video(path, start=2, frames=3).frames, everything[2:5])
        assert torch.equal(read_video(path, start=4, frames=99).frames, everything[4:])


def test_decoding_stops_when_there_is_enough(tmp_path, monkeypatch):
    taken = []
    unit = video_file._unit
    monkeypatch.setattr(video_file, "_unit", lambda pixels: taken.append(1) or unit(pixels))
    path = write_video(tmp_path / "a.mp4", moving())
    assert len(read_video(path, start=1, frames=2)) == len(taken) == 2


def test_reading_stops_before_memory_is_full(tmp_path, monkeypatch):
    """The next frames would have fitted, but what lets others live is not taken."""
    path, frame = write_video(tmp_path / "long.mp4", torch.rand(40, 3, 16, 32)), 3 * 16 * 32 * 4
    left = iter([2 * 16 * frame, 2 * frame + 16 * frame - 1])
    monkeypatch.setattr(video_file, "LOOK", 16 * frame)
    monkeypatch.setattr(video_file, "available_memory", lambda device: next(left))
    with pytest.raises(MemoryError, match=r"32 frames of 32 x 16 of .* take .*open_video"):
        read_video(path)
    assert len(read_video(path, frames=15)) == 15  # too few to look


def test_size_is_the_shorter_side_or_both(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(2, 32, 48))
    assert read_video(path, size=16).frames.shape == (2, 3, 16, 24)
    assert read_video(path, size=(20, 10)).frames.shape == (2, 3, 20, 10)
    portrait = write_video(tmp_path / "b.mp4", moving(2, 48, 32))
    assert read_video(portrait, size=64).frames.shape == (2, 3, 96, 64)


def test_shrinking_is_antialiased_and_stays_in_range():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    small = resize(stripes, 8)
    assert (small - 0.5).abs().max() < 0.05
    assert resize(stripes, (96, 96)).aminmax() == (0, 1)
    assert resize(Clip(stripes), 64) is stripes


def test_a_real_video(wolf):
    clip = read_video(wolf, frames=3, start=37, size=64)
    assert repr(clip) == "Clip(3 frames of 64x64 at 20 fps)"
    assert 0.1 < clip.frames.mean() < 0.9


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"frames": 0}, r"frames=0: expected a whole number of at least 1"),
        ({"frames": 2.5}, r"frames=2.5: expected a whole number"),
        ({"start": -1}, r"start=-1: expected a whole number of at least 0"),
        ({"start": 6}, r"start=6 lies beyond the end: .* has 6 frames"),
        ({"size": 0}, r"size=0; expected a positive integer \(the shorter side\) or \(h, w\)"),
        ({"size": (8, 8, 8)}, r"size=\(8, 8, 8\); expected"),
        ({"size": (8, -1)}, r"size=\(8, -1\); expected"),
        ({"size": "big"}, r"size='big'; expected"),
    ],
)
def test_reading_refuses(tmp_path, arguments, message):
    path = write_video(tmp_path / "a", moving())
    with pytest.raises(ValueError, match=message):
        bare(read_video)(path, **arguments)


FRAMES = moving(2)


@pytest.mark.parametrize(
    "frames, message",
    [
        (FRAMES[0], r"frames has shape \(3, 32, 48\); expected \(f, 3, h, w\) with at least one"),
        (FRAMES[:, :1], r"frames has shape \(2, 1, 32, 48\); expected"),
        (FRAMES[:0], r"frames has shape \(0, 3, 32, 48\); expected"),
        (FRAMES.numpy(), r"frames is of type ndarray; expected a Clip or a torch tensor"),
        (FRAMES[0], r"frame \(one frame: x\[None\]\)"),
        (FRAMES.permute(0, 2, 3, 1), r"channels last: x\.permute\(0, 3, 1, 2\)\)"),
        (FRAMES.transpose(0, 1), r"channels first: x\.transpose\(0, 1\)"),
        (torch.ones(2, 4, 8, 8), r"with alpha: x\[:, :3\]"),
        (torch.ones(8, 8, 4).expand(2, 8, 8, 4), r"x\.permute\(0, 3, 1, 2\)\[:, :3\]"),
        (FRAMES.permute(0, 2, 3, 1).numpy(), r"torch\.from_numpy\(x\)\.permute\(0, 3, 1, 2\), of"),
        (SimpleNamespace(frames=FRAMES), r"tensor \(f, 3, h, w\), as its \.frames are"),
        ((FRAMES * 255).byte(), r"frames is torch.uint8; expected floats in \[0, 1\] \(uint8: x /"),
        (FRAMES * 2 - 1, r"frames range from -1 to [\d.]+; expected \[0, 1\] \(from \[-1, 1\]: x"),
        (FRAMES.index_fill(0, torch.tensor(1), torch.nan), r"NaN or infinity, first in frame 1"),
        (FRAMES * torch.inf, r"NaN or infinity, first in frame 0"),
    ],
)
def test_writing_refuses_frames_and_leaves_no_file(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        bare(write_video)(tmp_path / "a.mp4", frames)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        (
            "a.avi",
            {},
            r"a.avi' ends in '.avi'; expected .mp4, .mov, .mkv, .m4v, .gif, or no suffix",
        ),
        ("a.mp4", {"fps": 0}, r"fps=0; expected frames a second, from 0.001"),
        ("a.gif", {"fps": 0.0004}, r"fps=0.0004; expected frames a second, from 0.001"),
        ("a.mp4", {"fps": float("nan")}, r"fps=nan; expected"),
        ("a.mp4", {"fps": "fast"}, r"fps='fast'; expected"),
        ("a.mp4", {"crf": 52}, r"crf=52; expected an integer from 0 \(lossless\) to 51"),
        ("", {}, r"is a folder with other things in it; expected a new path"),
        ("..", {}, r"does not end in a name; expected that of a video or of a new folder"),
        (240 * "a" + ".mp4", {}, r"a.mp4' does not end in a name; .* of 241 bytes at most"),
    ],
)
def test_writing_refuses_where_and_how(tmp_path, name, arguments, message):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match=message):
        bare(write_video)(tmp_path / name, FRAMES, **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_rounding_noise_outside_the_range_is_no_error(tmp_path):
    write_video(tmp_path / "a.mp4", FRAMES * 1.001 - 0.0005)


@pytest.mark.parametrize("name", ["flow", "visible", "parts", "mask", "depth"])
def test_truth_of_another_length_is_refused(name):
    clip = with_truth()
    object.__setattr__(clip, name, getattr(with_truth(f=5), name))
    with pytest.raises(ValueError, match=rf"{name} has shape .*; 6 frames of 8x10 need"):
        clip.__post_init__()


def test_an_opened_video_is_found_wherever_the_process_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("v.mp4", torch.rand(2, 3, 16, 16))
    video = video_file.open_video("v.mp4")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sum(len(chunk) for chunk in video.chunks(1)) == 2
