"""Trajectories in a folder: mapped, whole or not there, resumed after a kill, nobody else's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipelines import make_pipeline, moving_latents
from safetensors.torch import save_file

import tfkit
from tfkit import trajectory
from tfkit.trajectory import CLEAN, Folder

STEPS = 6


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def latents():
    return moving_latents(2, 8, 8)


@pytest.fixture(scope="module")
def uninterrupted(model, latents):
    return invert(model, latents)


def invert(model, video, prompt="a cat", steps=STEPS, **options):
    return tfkit.invert(model, video, prompt, steps=steps, progress=False, **options)


def same(a, b):
    assert a.timesteps == b.timesteps and a.prompt == b.prompt and a.size == b.size
    assert all(torch.equal(a.latents[t], b.latents[t]) for t in (CLEAN, *a.timesteps))


def count_passes(model):
    """A list that grows with every pass of the UNet, and the handle that ends it."""
    passes = []
    return passes, model.unet.register_forward_pre_hook(lambda module, args: passes.append(1))


# --- reading and writing ------------------------------------------------------------------------


def test_a_folder_holds_what_memory_would(model, latents, uninterrupted, tmp_path):
    source = invert(model, latents, folder=tmp_path / "deep" / "a")
    same(source, uninterrupted)
    names = {"trajectory.json", "clean.safetensors"}
    names |= {f"t{t:04d}.safetensors" for t in source.timesteps}
    assert {p.name for p in (tmp_path / "deep" / "a").iterdir()} == names
    assert len(source.latents) == STEPS + 1 and set(source.latents) == {-1, *source.timesteps}
    assert repr(source) == repr(uninterrupted)


def test_an_opened_trajectory_serves_as_the_inverted_one(model, tmp_path):
    frames = torch.rand(2, 3, 50, 70)
    source = invert(model, frames, steps=2, folder=tmp_path)
    opened = tfkit.open_trajectory(str(tmp_path))
    same(opened, source)
    assert opened.size == (50, 70) and len(opened) == 2
    expected = tfkit.reconstruct(model, source, progress=False)
    assert torch.equal(tfkit.reconstruct(model, opened, progress=False), expected)


def test_it_is_found_wherever_the_process_goes(
    model, latents, uninterrupted, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source = invert(model, latents, folder="mine")
    opened = tfkit.open_trajectory("mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    same(source, uninterrupted)
    same(opened, uninterrupted)
    tfkit.edit(model, source, "a dog", progress=False)
    assert source.cache.sizes() and not list((tmp_path / "elsewhere").iterdir())


def test_a_level_that_is_lost_is_named_with_the_cure(model, latents, uninterrupted, tmp_path):
    source = invert(model, latents, folder=tmp_path)
    lost = source.timesteps[2]
    (tmp_path / f"t{lost:04d}.safetensors").unlink()
    with pytest.raises(
        ValueError, match=f"timestep {lost} is missing in .*call tfkit.invert again"
    ):
        tfkit.edit(model, source, "a dog", progress=False)
    (tmp_path / "clean.safetensors").unlink()
    with pytest.raises(ValueError, match="the clean level is missing in"):
        _ = source.clean
    same(invert(model, latents, folder=tmp_path), uninterrupted)


def test_levels_are_mapped_and_changes_never_reach_the_file(tmp_path):
    folder, values = Folder(tmp_path), torch.rand(2, 4, 64, 64)
    folder[7] = values
    level = folder[7]
    maps = Path("/proc/self/maps").read_text().splitlines()
    (mapped,) = [line for line in maps if line.endswith(str(tmp_path / "t0007.safetensors"))]
    start, end = (int(address, 16) for address in mapped.split()[0].split("-"))
    assert start <= level.data_ptr() < end
    assert torch.equal(level, values)
    level.zero_()
    assert torch.equal(folder[7], values)
    with pytest.raises(KeyError):
        folder[8]


def test_the_digest_is_of_values_in_any_layout_and_dtype():
    x = torch.rand(2, 4, 3, 1)
    channels_last = x.to(memory_format=torch.channels_last)
    assert trajectory.digest(x) == trajectory.digest(channels_last) != trajectory.digest(x + 1)
    one = torch.rand(1, 4, 1, 1).to(memory_format=torch.channels_last)[:, :1]
    assert trajectory.digest(one) == trajectory.digest(one.clone())
    assert trajectory.digest(x.bfloat16()) != trajectory.digest(x.half())


def test_a_finished_folder_is_read_and_not_computed(model, latents, uninterrupted, tmp_path):
    invert(model, latents, folder=tmp_path)
    passes, handle = count_passes(model)
    same(invert(model, latents, folder=tmp_path), uninterrupted)
    handle.remove()
    assert not passes


def test_nothing_half_written_shows(model, latents, uninterrupted, tmp_path, full_disk):
    """The disk fills up in the fourth file: what came before is whole, and the next run goes on."""
    full_disk(4)
    with pytest.raises(OSError, match="No space left"):
        invert(model, latents, folder=tmp_path)
    names = ["clean.safetensors", "t0001.safetensors", "trajectory.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    same(invert(model, latents, folder=tmp_path), uninterrupted)


@pytest.mark.parametrize("name", ["clean", "t0333"])
def test_a_level_with_one_bit_flipped_is_never_used(model, latents, uninterrupted, tmp_path, name):
    invert(model, latents, folder=tmp_path)
    file = tmp_path / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.safetensors is damaged"):
        opened = tfkit.open_trajectory(tmp_path)
        opened.at(333), opened.clean
    file.unlink()  # as the message says
    same(invert(model, latents, folder=tmp_path), uninterrupted)


def test_a_timestep_it_does_not_pass_is_refused_with_the_nearest(uninterrupted):
    assert uninterrupted.timesteps == (831, 665, 499, 333, 167, 1)
    message = r"timestep 500 is not on this trajectory of 6 steps; the nearest one is 499"
    with pytest.raises(ValueError, match=message):
        uninterrupted.at(500)


# --- after a kill -------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch, tfkit
from pipelines import moving_latents
pipeline, folder, how = sys.argv[2:]
model = tfkit.load(pipeline, device="cpu", dtype=torch.float32)
if how == "while writing":
    fsync, calls = os.fsync, []
    def kill(file):
        calls.append(file)
        if len(calls) == 9:  # four files and their folder, and then
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)
    os.fsync = kill
else:
    model.unet.register_forward_pre_hook(lambda module, args: time.sleep(0.2))
tfkit.invert(model, moving_latents(2, 8, 8), "a cat", steps=6, folder=folder, progress=False)
"""


@pytest.mark.parametrize("how", ["while writing", "in a pass"])
def test_a_killed_inversion_goes_on_where_it_was(
    model, pipeline_folder, latents, uninterrupted, tmp_path, how
):
    here, folder = os.path.dirname(__file__), tmp_path / "trajectory"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, here, str(pipeline_folder), str(folder), how],
        cwd=os.path.dirname(here), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if how == "in a pass":
        deadline = time.monotonic() + 120
        while len(Folder(folder)) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        process.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    done = set(Folder(folder)) - {CLEAN}
    assert 2 <= len(done) < STEPS
    if how == "while writing":
        assert [p.name for p in folder.iterdir() if p.match(".new-*-t0333.*")]
    with pytest.raises(ValueError, match=rf"is unfinished: {STEPS - len(done)} of 7 levels are"):
        tfkit.open_trajectory(folder)
    passes, handle = count_passes(model)
    same(invert(model, latents, folder=folder), uninterrupted)
    handle.remove()
    assert len(passes) == STEPS - len(done)  # no step twice
    same(tfkit.open_trajectory(folder), uninterrupted)
    assert not list(folder.glob(".new-*"))


# --- nobody else's ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taken(model, latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taken")
    invert(model, latents, steps=2, folder=folder)
    return folder


@pytest.mark.parametrize(
    "change, message",
    [
        ({"video": moving_latents(2, 8, 8, seed=1)}, "another video: '"),
        ({"video": moving_latents(2, 8, 16)}, "another (video|size): "),
        ({"prompt": "a dog"}, "another prompt: 'a cat' there, 'a dog' asked for. Give another fo"),
        ({"steps": 3}, r"another schedule: \[501, 1\] there, \[667, 334, 1\] asked for"),
        ({"fixed_point": 2}, "another fixed-point setting: 0 there, 2 asked for"),
    ],
)
def test_another_inversion_is_refused(model, latents, taken, change, message):
    options = {"video": latents, "steps": 2} | change
    with pytest.raises(ValueError, match=f"{taken} holds the trajectory of {message}"):
        invert(model, **options, folder=taken)


def test_another_model_is_refused(latents, taken, tmp_path, pipeline_folder):
    other = tfkit.load(make_pipeline(tmp_path, seed=1), device="cpu")
    with pytest.raises(ValueError, match=r"holds the trajectory of another model: '\w+' there, "):
        invert(other, latents, steps=2, folder=taken)
    precise = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"holds the trajectory of another (model|dtype): "):
        invert(precise, latents, steps=2, folder=taken)


def test_other_peoples_folders_and_files_are_left_alone(model, latents, tmp_path):
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    message = "is not empty and holds no trajectory; give an empty or a new folder"
    with pytest.raises(ValueError, match=message):
        invert(model, latents, folder=tmp_path)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file; expected a folder for the traj"):
        invert(model, latents, folder=mine)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert mine.read_text() == "years of work"


def test_what_is_no_trajectory_is_not_opened(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{path} holds no trajectory"):
            tfkit.open_trajectory(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"shape": [1], "timesteps": [1]}', "\0"])
def test_a_damaged_manifest_is_refused(model, latents, tmp_path, content):
    invert(model, latents, steps=1, folder=tmp_path)
    (tmp_path / "trajectory.json").write_text(content)
    message = r"trajectory.json is damaged, .*; delete the folder and begin again"
    with pytest.raises(ValueError, match=message):
        tfkit.open_trajectory(tmp_path)
    with pytest.raises(ValueError, match=message):
        invert(model, latents, steps=1, folder=tmp_path)


@pytest.mark.parametrize("kind", ["invert", "edit"])
def test_a_bit_that_flipped_in_a_manifest_is_told(model, latents, tmp_path, kind):
    """JSON would still read; the prompt, say, would be another."""
    source = invert(model, latents, steps=2, folder=tmp_path / "invert")
    tfkit.edit(model, source, "a dog", folder=tmp_path / "edit")
    (manifest,) = (tmp_path / kind).glob("*.json")
    whole = manifest.read_bytes()
    for place in range(0, len(whole), 7):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            if kind == "invert":
                tfkit.open_trajectory(tmp_path / kind)
            else:
                tfkit.edit(model, source, "a dog", folder=tmp_path / kind)
        except ValueError as error:
            assert f"{kind if kind == 'edit' else 'trajectory'}.json is damaged" in str(error)
        else:
            text = json.loads(manifest.read_text())
            assert text == json.loads(whole) or "crc32" not in text  # a blank, or the sum's name
    manifest.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "crc32"}))
    if kind == "invert":  # of a version that wrote no sum
        same(tfkit.open_trajectory(tmp_path / kind), source)


@pytest.mark.parametrize("t", ["clean", "t0001", "t0333", "t0831"])
def test_a_damaged_level_is_named_and_the_cure_works(model, latents, uninterrupted, tmp_path, t):
    source = invert(model, latents, folder=tmp_path)
    file = tmp_path / f"{t}.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    message = rf"{t}.safetensors is damaged \(.*\); delete it and call tfkit.invert again"
    with pytest.raises(ValueError, match=message):
        source.latents[CLEAN if t == "clean" else int(t[1:])]
    file.unlink()
    with pytest.raises(ValueError, match="is unfinished: 1 of 7 levels are missing"):
        tfkit.open_trajectory(tmp_path)
    same(invert(model, latents, folder=tmp_path), uninterrupted)


def test_the_manifest_is_for_people_too(taken):
    manifest = json.loads((taken / "trajectory.json").read_text())
    assert manifest["prompt"] == "a cat" and manifest["timesteps"] == [501, 1]
    assert manifest["shape"] == [2, 4, 8, 8] and manifest["dtype"] == "torch.float32"


def test_other_safetensors_in_the_folder_do_no_harm(model, latents, tmp_path, uninterrupted):
    invert(model, latents, folder=tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    same(tfkit.open_trajectory(tmp_path), uninterrupted)


def test_a_bit_that_flipped_in_a_name_is_told(model, latents, tmp_path):
    """A checksum of the values alone would not see it, and a condition would be another one."""
    source = invert(model, latents, steps=2, folder=tmp_path)
    t = source.timesteps[0]
    file = tmp_path / f"t{t:04d}.safetensors"
    opened = tfkit.open_trajectory(tmp_path)
    file.write_bytes(file.read_bytes().replace(b'"latents"', b'"latentr"', 1))
    with pytest.raises(ValueError, match=rf"{file.name} is damaged.*delete it and call"):
        opened.at(t)


def test_a_part_knows_its_shape(uninterrupted):
    some = uninterrupted.part(uninterrupted.timesteps[0], torch.tensor([1]))
    assert len(some) == 1 and "1 frames of 8 x 8 latents" in repr(some)
