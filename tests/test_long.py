"""Long videos: read, edited and written in chunks, and the same as in one piece."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from pipelines import moving_latents

import tfkit
from tfkit import metrics
from tfkit.keyframes import seams

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    path = tmp_path_factory.mktemp("movie") / "cat.mp4"
    return tfkit.write_video(path, tfkit.menagerie.film("a cat", frames=11))


# Reading


@pytest.mark.parametrize("batch", [1, 4, 11, 50])
@pytest.mark.parametrize(
    "wanted", [{}, {"size": 40}, {"size": (32, 48), "start": 3}, {"frames": 5, "start": 2}]
)
def test_a_file_gives_the_frames_of_the_clip(movie, wanted, batch):
    clip, video = tfkit.read_video(movie, **wanted), tfkit.open_video(movie, **wanted)
    assert (len(video), video.shape, video.fps) == (len(clip), tuple(clip.frames.shape), clip.fps)
    parts = list(video.chunks(batch))
    assert max(map(len, parts)) <= batch
    assert torch.equal(torch.cat(parts), clip.frames)
    assert torch.equal(video.read().frames, clip.frames)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"start": 11}, ValueError, "start=11 lies beyond the end: .* has 11 frames"),
        ({"frames": 0}, ValueError, "frames=0: expected a whole number of at least 1"),
        ({"size": 0}, ValueError, "size=0; expected a positive integer"),
        ({"path": "nowhere.mp4"}, FileNotFoundError, "'nowhere.mp4' does not exist"),
    ],
)
def test_opening_refuses_what_reading_refuses(movie, settings, error, message):
    with pytest.raises(error, match=message):
        tfkit.open_video(**{"path": movie} | settings)


def test_a_file_that_was_replaced_is_not_taken_for_the_same(movie, tmp_path):
    path = tmp_path / "cat.mp4"
    path.write_bytes(movie.read_bytes())
    video = tfkit.open_video(path)
    clip = video.read()
    for other in (clip.frames[:4], torch.cat([clip.frames, clip.frames])[..., :64]):
        tfkit.write_video(path, other)
        for read in (video.read, lambda: list(video.chunks())):
            with pytest.raises(ValueError, match="has changed since it was opened; open it again"):
                read()
    made = dataclasses.replace(video, _stamp=())  # by hand, and not opened
    tfkit.write_video(path, clip.frames[:4])
    with pytest.raises(ValueError, match="has 4 frames from frame 0 on, and had 11"):
        made.read()


def test_what_is_no_image_may_come_and_go_beside_them(movie, tmp_path):
    folder = tfkit.write_video(tmp_path / "frames", tfkit.read_video(movie))
    video = tfkit.open_video(folder)
    (folder / "inverted").mkdir()
    (folder / ".DS_Store").touch()
    assert len(video.read()) == 11


def test_a_video_whose_size_changes_on_the_way_is_refused(tmp_path):
    """As streams that were cut together have it: H.264 carries its size in the stream."""
    parts = [tmp_path / f"{side}.h264" for side in (32, 64)]
    for path, side in zip(parts, (32, 64), strict=True):
        with av.open(str(path), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = side
            for _ in range(3):
                grey = np.full((side, side, 3), 99, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
            container.mux(stream.encode())
    path = tmp_path / "cut.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    message = r"cut.h264' change from 32 x 32 to 64 x 64 pixels; expected one size"
    for size in (None, 32):
        with pytest.raises(ValueError, match=message):
            tfkit.read_video(path, size=size)
        with pytest.raises(ValueError, match=message):
            list(tfkit.open_video(path, size=size).chunks())


@pytest.mark.parametrize("batch", [0, -1])
def test_chunks_hold_a_frame_at_least(movie, batch):
    with pytest.raises(ValueError, match="batch="):
        next(tfkit.open_video(movie).chunks(batch))


def test_inverting_a_file_is_inverting_its_frames(model, movie, tmp_path):
    video = tfkit.open_video(movie, size=32)
    alone = tfkit.invert(model, video, "a cat", steps=2, batch=4, folder=tmp_path, **QUIET)
    passes = []
    handle = model.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    clip = video.read()
    again = tfkit.invert(model, clip, "a cat", steps=2, batch=16, folder=tmp_path, **QUIET)
    handle.remove()
    assert not passes  # the same video, so the folder is its own
    whole = tfkit.invert(model, clip, "a cat", steps=2, **QUIET)
    assert alone.size == whole.size == (32, 32)
    for t in whole.timesteps:
        torch.testing.assert_close(alone.at(t), whole.at(t), rtol=0, atol=1e-4)
        assert torch.equal(alone.at(t), again.at(t))


# Writing


@pytest.mark.parametrize("name", ["cat.mp4", "cat.gif", "cat"])
def test_chunks_are_written_like_the_whole(movie, tmp_path, name):
    clip = tfkit.read_video(movie)
    whole = tfkit.write_video(tmp_path / "whole" / name, clip.frames, fps=5)
    parts = tfkit.write_video(tmp_path / "parts" / name, iter(clip.frames.split(3)), fps=5)
    for one, other in zip(files(whole), files(parts), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def files(path):
    return sorted(path.iterdir()) if path.is_dir() else [path]


def test_a_bad_chunk_leaves_no_file(tmp_path):
    good, bad = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), torch.nan)
    with pytest.raises(ValueError, match="hold NaN"):
        tfkit.write_video(tmp_path / "cat.mp4", iter([good, bad]))
    for name in ("cat.mp4", "cat.gif", "cat"):
        with pytest.raises(ValueError, match=r"shape \(1, 3, 16, 32\); expected 16 x 16 pixels"):
            tfkit.write_video(tmp_path / name, iter([good, torch.zeros(1, 3, 16, 32)]))
    with pytest.raises(ValueError, match="hold no chunk"):
        tfkit.write_video(tmp_path / "cat.mp4", iter([]))
    assert not list(tmp_path.iterdir())


# Editing


@pytest.fixture
def session(model):
    source = tfkit.invert(model, moving_latents(5, 8, 8), "a cat", steps=4, **QUIET)
    way = tfkit.TokenFlow(interval=2)
    return tfkit.EditSession(model, source, "a dog", propagation=way, batch=2)


def test_running_is_stepping_without_what_lies_behind(session):
    stepped = session.branch().step(4)
    run = session.branch().run(**QUIET)
    assert torch.equal(run.latents, stepped.latents) and torch.equal(run.noise, stepped.noise)
    assert torch.equal(run.predicted(), stepped.predicted())
    assert sum(x is not None for x in (*run._past.states, *run._past.noises)) <= 3
    assert run.back(1).position == 3
    with pytest.raises(ValueError, match="the step to position 3 is forgotten"):
        run.predicted()
    with pytest.raises(ValueError, match="position 0 is forgotten: expected 3 or more"):
        run.goto(0)
    assert run.position == 3 and stepped.goto(0).position == 0


def test_forgetting_frees_this_session_and_not_its_branch(session):
    session.step(3)
    twin = session.branch()
    session.forget()
    assert twin.back(3).position == 0
    with pytest.raises(ValueError, match="position 1 is forgotten"):
        session.back(2)
    ahead = session.step(1).latents
    assert torch.equal(twin.step(4).latents, ahead)


def test_forgetting_at_the_beginning_forgets_nothing(session):
    assert session.forget().forget().step(1).back(1).position == 0


def test_the_stream_is_the_frames(session):
    session.run(**QUIET)
    parts = list(session.stream())
    assert [len(part) for part in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(parts), session.frames(), rtol=0, atol=1e-6)


PEAK = """
import sys
import torch
from tfkit.__main__ import main
from tfkit.memory import peak_memory

torch.set_num_threads(1)
assert main(sys.argv[1:]) == 0
print(peak_memory())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="which does not tell a process its peak")
def test_frames_are_never_all_in_memory(pipeline_folder, tmp_path):
    """From file to file, peak memory grows by latents, which are small, and not by frames."""
    side, few, many = 192, 16, 112  # two keyframes each, for those are held
    still = tfkit.menagerie.film("a cat", frames=1).frames
    still = torch.nn.functional.interpolate(still, (side, side))
    peaks = []
    for count in (few, many):
        folder = tmp_path / str(count)
        movie = tfkit.write_video(folder / "cat.mp4", (still for _ in range(count)), fps=8)
        done = subprocess.run(
            [
                sys.executable, "-c", PEAK, "edit", str(movie), "a dog", "--model", pipeline_folder,
                "--size", str(side), "--steps", "1", "--interval", str(count // 2), "--quiet",
                "--device", "cpu", "--trajectory", str(folder / "source"), "--output",
                str(folder / "dog.mp4"), "--checkpoints", str(folder / "edit"),
            ],
            cwd=Path(__file__).parents[1], capture_output=True, text=True,
            # what is freed goes back at once: held memory is measured, and no fragmentation
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
        assert len(tfkit.open_video(folder / "dog.mp4")) == count
    frames = (many - few) * 3 * side**2 * 4
    assert peaks[1] - peaks[0] < frames / 2, [peak / 2**20 for peak in peaks]


def test_no_seam_is_seen_where_blocks_of_keyframes_meet():
    """Colours change along the motion there as they do where all keyframes see each other."""
    model = tfkit.load()
    clip = tfkit.menagerie.film("a striped orange fox on grass", frames=28, seed=1)
    small = tfkit.video.resize(clip, 64)
    source = tfkit.invert(model, small, clip.caption, steps=10, **QUIET)
    flow, visible = metrics.resize_flow(clip.flow, clip.visible, (64, 64))
    errors = {}
    for window in (8, None):
        way = tfkit.TokenFlow(interval=2, keyframes="fixed", window=window)
        edit = tfkit.edit(model, source, "a fox at night", propagation=way, **QUIET)
        errors[window] = metrics.warp_error(edit.frames, flow, visible, per_pair=True)
    rows = way.draw(28, 1, 0)
    at = seams(rows[0], 28, 8)
    assert 4 <= at.sum() <= 10 and not errors[8].equal(errors[None])
    there, elsewhere = (errors[8] / errors[None])[at], (errors[8] / errors[None])[~at]
    assert there.mean() < 1.15 and there.mean() < 1.15 * elsewhere.mean()
