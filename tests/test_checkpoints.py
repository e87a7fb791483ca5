"""Edits in a folder: killed, cut, full, shared by two; nothing computed is lost."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from clips import bare, moving
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import moving_latents
from test_controlnet import make_controlnet
from test_interrupts import stopped_after

import tfkit
from tfkit import hooks
from tfkit.atomic import replacing
from tfkit.checkpoints import StepFiles
from tfkit.files import claimed
from tfkit.inversion import invert

FRAMES, STEPS = 3, 4
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def latents():
    return moving_latents(FRAMES, 8, 8)


@pytest.fixture(scope="module")
def source(model, latents):
    return invert(model, latents, "a cat", steps=STEPS, **QUIET)


def edited(model, source, folder, prompt="a dog", **settings):
    settings = {"propagation": tfkit.TokenFlow(interval=2)} | settings
    return tfkit.edit(model, source, prompt, folder=folder, **settings, **QUIET)


@pytest.fixture(scope="module")
def expected(model, source):
    return edited(model, source, None)


@pytest.fixture(scope="module")
def taken(model, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edit")
    edited(model, source, folder)
    return folder


KILLED = """
import os, random, signal, sys
sys.path[:0] = [sys.argv[1]]
import torch
import tfkit
from pipelines import moving_latents

torch.set_num_threads(1)
pipeline, place, kills = *sys.argv[2:4], int(sys.argv[4])
model = tfkit.load(pipeline, device="cpu", dtype=torch.float32)
latents, quiet = moving_latents(3, 8, 8), {"progress": False}
way, how = tfkit.TokenFlow(interval=2), {}
if sys.argv[5] == "True":
    how = {"predictor": "extrapolated", "prepare": tfkit.Preparation(propagation=way)}

def work(place):
    options = {"folder": place + "/source"} | how | quiet
    source = tfkit.invert(model, latents, "a cat", steps=4, **options)
    tfkit.edit(model, source, "a dog", propagation=way, folder=place + "/edit", **quiet)

def killing(draw):
    # A moment in a pass, or before or after a file is flushed or takes its name.
    left = {"pass": -1, "file": -1} | {draw.choice(["pass", "file"]): draw.randrange(8)}
    def passed(kind):
        left[kind] -= 1
        if left[kind] == -1:
            os.kill(os.getpid(), signal.SIGKILL)
    def around(call):
        def counted(*arguments):
            passed("file")
            result = call(*arguments)
            passed("file")
            return result
        return counted
    for name in ("fsync", "replace"):
        setattr(os, name, around(getattr(os, name)))
    for module in (model.unet.mid_block, model.unet.conv_out):
        module.register_forward_hook(lambda *_: passed("pass"))

killed = ended = 0
for seed in range(10 * kills):
    child = os.fork()
    if not child:
        if killed < kills:
            killing(random.Random(seed))
        work(f"{place}/{ended}")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    else:  # it got to its end between two moments: once more in another place
        assert os.WEXITSTATUS(status) == 0
        ended += 1
        if killed == kills:
            break
print(killed, ended)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("prepared", [False, True])
def test_killed_at_twenty_moments_it_ends_as_if_never_killed(
    model, pipeline_folder, latents, tmp_path, prepared
):
    """SIGKILL in passes and around every write, in the inversion, the edit and what is kept for it:
    at its first use, or prepared while inverting."""
    here = Path(__file__).parent
    ready = tfkit.Preparation(propagation=tfkit.TokenFlow(interval=2))
    how = {"predictor": "extrapolated", "prepare": ready} if prepared else {}
    source = invert(model, latents, "a cat", steps=STEPS, **how, **QUIET)
    expected = edited(model, source, None)
    command = [sys.executable, "-c", KILLED, here, pipeline_folder, tmp_path, "20", str(prepared)]
    done = subprocess.run(
        list(map(str, command)), cwd=here.parent, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    killed, ended = map(int, done.stdout.split())
    assert killed == 20 and ended
    for place in (tmp_path / str(i) for i in range(ended)):
        opened = tfkit.open_trajectory(place / "source")
        for t in source.timesteps:
            torch.testing.assert_close(opened.at(t), source.at(t), rtol=0, atol=1e-5)
        again = edited(model, opened, place / "edit")
        torch.testing.assert_close(again.latents, expected.latents, rtol=0, atol=1e-4)
    assert not list(tmp_path.rglob(".new-*"))


def test_a_step_taken_is_never_taken_again(model, source, expected, tmp_path):
    taken = []

    def stop(*_):
        taken.append(len(list(tmp_path.glob("step*"))))
        if len(taken) == 8:  # three passes a step: in the third
            raise KeyboardInterrupt

    handle = model.unet.register_forward_pre_hook(stop)
    source.cache.clear()
    with pytest.raises(KeyboardInterrupt):
        edited(model, source, tmp_path)
    assert sorted(set(taken)) == [0, 1, 2]
    again = edited(model, source, tmp_path)
    handle.remove()
    assert set(taken[8:]) == {2, 3}
    assert torch.equal(again.latents, expected.latents)
    assert torch.equal(again.keyframes, expected.keyframes)
    with torch.no_grad():
        assert torch.equal(edited(model, source, tmp_path).frames, expected.frames)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompt": "a cow"}, "prompt: 'a dog' there, 'a cow' asked for"),
        ({"guidance": 3}, "guidance: 7.5 there, 3.0 asked for"),
        ({"negative_prompt": "rain"}, "negative prompt"),
        ({"method": tfkit.Plain()}, "method"),
        ({"propagation": tfkit.PerFrame()}, "propagation"),
        ({"seed": 3}, "keyframes"),
    ],
)
def test_another_edit_is_refused(model, source, taken, change, what):
    with pytest.raises(ValueError, match=f"holds the edit of another {what}"):
        edited(model, source, taken, **change)


class Mine(tfkit.Plain):
    """A method whose words do not say what it holds."""

    def __init__(self, strength):
        object.__setattr__(self, "strength", strength)

    def during(self, now):
        return hooks.rewrite(now.model.unet, {"mid_block": lambda out: self.strength * out})


def test_methods_that_read_alike_are_told_apart(model, source, tmp_path):
    assert repr(Mine(1)) == repr(Mine(2))
    first = edited(model, source, tmp_path, method=Mine(1)).latents
    with pytest.raises(ValueError, match="another method of the same words: '"):
        edited(model, source, tmp_path, method=Mine(2))
    assert torch.equal(edited(model, source, tmp_path, method=Mine(1)).latents, first)


def by_address(function):
    """The same function at another address, as in another process."""
    return FunctionType(function.__code__, function.__globals__, function.__name__)


def test_a_method_of_functions_goes_on_in_another_process(model, source, tmp_path):
    def shown(frames):
        return frames

    net = make_controlnet(model.unet)
    for again in (shown, by_address(shown)):
        method = tfkit.ControlNet(condition=again, model=net)
        edited(model, source, tmp_path / "edit", method=method)
    with pytest.raises(ValueError, match="another method"):
        method = tfkit.ControlNet(condition=lambda frames: frames / 2, model=net)
        edited(model, source, tmp_path / "edit", method=method)


def test_the_same_edit_in_other_words_goes_on(model, source, tmp_path):
    made = edited(model, source, tmp_path, method=tfkit.SDEdit(1), guidance=3)
    way = bare(tfkit.TokenFlow)(interval=np.int64(2))
    again = {"method": tfkit.SDEdit(1.0), "guidance": np.float32(3), "propagation": way}
    again = bare(edited)(model, source, tmp_path, **again)
    assert torch.equal(again.latents, made.latents)


def test_another_video_is_refused(model, source, latents, tmp_path):
    edited(model, source, tmp_path)
    other = invert(model, latents.flip(0), "a cat", steps=STEPS, **QUIET)
    with pytest.raises(ValueError, match="holds the edit of another video"):
        edited(model, other, tmp_path)


def test_another_inversion_of_the_same_video_is_refused(model, source, latents, tmp_path):
    fresh = {"method": tfkit.SDEdit(0.8, noise="fresh")}  # which begins without the inversion
    edited(model, source, tmp_path, **fresh)
    other = invert(model, latents, "a cat", steps=STEPS, fixed_point=1, **QUIET)
    assert torch.equal(other.clean, source.clean) and not torch.equal(other.noise, source.noise)
    with pytest.raises(ValueError, match=r"of another video, or .* inverted anew .*folder=.*there"):
        edited(model, other, tmp_path, **fresh)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_step_is_named_and_the_cure_works(model, source, expected, tmp_path, how):
    edited(model, source, tmp_path)
    file = tmp_path / "step0003.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 255
    file.write_bytes(data[:100] if how == "cut" else data)
    with pytest.raises(ValueError, match=r"step0003.safetensors is damaged .*delete it and edit"):
        edited(model, source, tmp_path)
    file.unlink()
    assert torch.equal(edited(model, source, tmp_path).latents, expected.latents)


def test_a_full_disk_loses_one_step(model, source, expected, tmp_path, full_disk):
    full_disk(3)  # the manifest, a step, and then
    with pytest.raises(OSError, match="No space left"):
        edited(model, source, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edit.json", "step0001.safetensors"]
    assert torch.equal(edited(model, source, tmp_path).latents, expected.latents)


def test_a_session_goes_on_in_its_folder_when_there_is_room_again(
    model, source, expected, tmp_path, full_disk
):
    session = tfkit.EditSession(model, source, "a dog", propagation=tfkit.TokenFlow(2)).step()
    begun = session.latents
    full_disk(3)
    with pytest.raises(OSError, match="No space left"):
        session.run(folder=tmp_path, progress=False)
    assert session.position == 1 and torch.equal(session.latents, begun)
    session.run(folder=tmp_path, progress=False)
    assert torch.equal(session.latents, expected.latents)


def test_steps_of_other_settings_are_not_kept_as_the_edits(model, source, expected, tmp_path):
    """Gone back behind a change, the step before it is known, but was taken with other settings."""
    session = tfkit.EditSession(model, source, "a fox", propagation=tfkit.TokenFlow(2)).step()
    session.change(prompt="a dog").back().run(folder=tmp_path, progress=False)
    assert torch.equal(session.latents, expected.latents)
    assert torch.equal(edited(model, source, tmp_path).latents, expected.latents)


def test_two_at_once_are_told_apart(model, source, latents, tmp_path):
    for kind, work in {
        "edit": lambda place: edited(model, source, place),
        "trajectory": lambda place: invert(
            model, latents, "a cat", steps=STEPS, folder=place, **QUIET
        ),
    }.items():
        place = tmp_path / kind
        work(place)
        says = json.loads((place / f"{kind}.json").read_text())
        del says["crc32"]  # the manifest's own
        with (
            claimed(place, kind, says),
            pytest.raises(ValueError, match=f"{kind} is in use: another process"),
        ):
            work(place)
        work(place)


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def precise(pipeline_folder):
    """In float64, where no batch changes which neighbour is the nearest."""
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


NUMBERS = {
    "frames": st.integers(1, 6), "interval": st.integers(1, 7), "first": st.integers(1, 7),
    "then": st.integers(1, 7), "after": st.integers(0, STEPS - 1),
    "window": st.sampled_from([3, None]),
}  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(**NUMBERS)
def test_resuming_is_not_stopping(precise, frames, interval, first, then, after, window):
    """Whatever the numbers, wherever it stopped, and with another batch from there on."""
    source = invert(precise, moving_latents(frames, 8, 8).double(), "a cat", steps=STEPS, **QUIET)
    how = {"propagation": tfkit.TokenFlow(interval=interval, window=window), "seed": frames}
    whole = edited(precise, source, None, **how)
    put, left = StepFiles.put, [after]

    def stops(self, *args):
        if not left[0]:
            raise Stopped
        left[0] -= 1
        put(self, *args)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepFiles, "put", stops)
        with pytest.raises(Stopped):
            edited(precise, source, folder, batch=first, **how)
        patch.setattr(StepFiles, "put", put)
        assert len(list(Path(folder).glob("step*"))) == after
        made = edited(precise, source, folder, batch=then, **how)
    torch.testing.assert_close(made.latents, whole.latents, rtol=0, atol=1e-8)


@settings(max_examples=12, deadline=None)
@given(
    frames=st.integers(1, 5), steps=st.integers(1, 4), first=st.integers(1, 6),
    then=st.integers(1, 6), predictor=st.sampled_from(["next", "extrapolated"]),
    fixed_point=st.integers(0, 1), prepared=st.booleans(), stopped=st.floats(0, 1),
)  # fmt: skip
def test_an_inversion_resumed_from_its_file_is_one_of_frames_never_stopped(
    precise, frames, steps, first, then, predictor, fixed_point, prepared, stopped
):
    """Killed anywhere, in chunks of any size, before and after: the same levels, read or given."""
    clip = moving(frames, 32, 32)
    clip = (clip * 255).round() / 255  # as a file has them
    how = {"steps": steps, "predictor": predictor, "fixed_point": fixed_point, **QUIET}
    if prepared:
        how["prepare"] = tfkit.Preparation(propagation=tfkit.TokenFlow(2))
    with stopped_after(-1) as calls:
        whole = invert(precise, clip, "a cat", batch=frames, **how)
    with tempfile.TemporaryDirectory() as place:
        movie = tfkit.write_video(Path(place) / "pictures", clip)
        resumed = {"folder": Path(place) / "kept", **how}
        with suppress(KeyboardInterrupt), stopped_after(1 + int(stopped * calls[0])):
            invert(precise, tfkit.open_video(movie), "a cat", batch=first, **resumed)
        made = invert(precise, tfkit.open_video(movie), "a cat", batch=then, **resumed)
        for t in whole.latents:
            torch.testing.assert_close(made.latents[t], whole.latents[t], rtol=0, atol=1e-7)
        if not prepared:
            return
        edits = [
            edited(precise, one, None, propagation=tfkit.TokenFlow(2), seed=0)
            for one in (made, whole)
        ]
        torch.testing.assert_close(edits[0].latents, edits[1].latents, rtol=0, atol=1e-6)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_manifest_is_refused(model, source, tmp_path, content):
    (tmp_path / "edit.json").write_text(content)
    with pytest.raises(ValueError, match=r"edit.json is damaged, .*; delete the folder"):
        edited(model, source, tmp_path)


def test_other_peoples_folders_and_files_are_left_alone(model, source, tmp_path):
    (tmp_path / "thesis.txt").write_text("!")
    with pytest.raises(ValueError, match="is not empty and holds no edit"):
        edited(model, source, tmp_path)
    with pytest.raises(ValueError, match="is a file; expected a folder for the edit"):
        edited(model, source, tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_others_write_into_a_folder_meanwhile_is_theirs(tmp_path):
    with replacing(tmp_path / "out.mp4") as movie, replacing(tmp_path / "pictures") as pictures:
        movie.write_text("half")
        pictures.mkdir()
        (tmp_path / ".new-01234567-t0001.safetensors").write_text("a killed run's")
        with claimed(tmp_path, "trajectory", {"of": 1}):
            assert {path.name for path in tmp_path.iterdir()} == {
                movie.name, pictures.name, "trajectory.json"
            }  # fmt: skip
