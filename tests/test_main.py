"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from clips import moving

import tfkit
from tfkit.__main__ import main
from tfkit.memory import fitting
from tfkit.session import EditSession


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    clip = tfkit.menagerie.film("a red dog on snow", frames=5, seed=1)
    return tfkit.write_video(path, clip.frames, fps=clip.fps)


def run(*args, cwd=None):
    command = [sys.executable, "-m", "tfkit", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_edit_writes_a_video_of_the_same_length_and_aspect(video, tmp_path):
    out = tmp_path / "out.mp4"
    done = run("edit", video, "a blue dog on sand", "--frames", 4, "--steps", 2, "--size", 64,
               "--interval", 2, "--output", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert tfkit.read_video(out).frames.shape == (4, 3, 64, 64)
    assert f"wrote {out}: 4 frames of 64 x 64" in done.stdout


@pytest.mark.parametrize("size", [(45, 80), (81, 60)])
def test_other_shapes_come_back_in_their_own_aspect(tmp_path, size):
    frames = torch.rand(3, 3, *size)
    tfkit.write_video(tmp_path / "in", frames)  # a folder of images keeps odd sides
    code = main(["edit", str(tmp_path / "in"), "a dog", "--steps", "1", "--size", "60", "--quiet",
                 "--output", str(tmp_path / "out")])  # fmt: skip
    assert code == 0
    h, w = tfkit.read_video(tmp_path / "out").frames.shape[-2:]
    assert min(h, w) == 60 and w / h == pytest.approx(size[1] / size[0], rel=0.02)


def test_out_of_memory_is_a_line_with_advice(video, monkeypatch, capsys):
    def full(args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TB")

    monkeypatch.setattr("tfkit.__main__.run_edit", full)
    assert main(["edit", str(video), "a dog"]) == 2
    error = capsys.readouterr().err
    assert error.startswith('tfkit: error: out of memory: "DefaultCPU') and error.count("\n") == 1
    assert "--check" in error
    monkeypatch.setattr("tfkit.__main__.run_edit", lambda args: fitting(full, 1))
    assert main(["edit", str(video), "a dog"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tfkit: error: out of memory even with batch=1: ")
    assert error.count("out of memory") == 1 and error.count("\n") == 1

    def broken(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("tfkit.__main__.run_edit", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["edit", str(video), "a dog"])


def test_a_local_stable_diffusion_folder_is_as_good_as_the_menagerie(
    video, pipeline_folder, tmp_path
):
    out = tmp_path / "out.gif"
    code = main(["edit", str(video), "a dog", "--model", str(pipeline_folder), "--frames", "2",
                 "--steps", "1", "--size", "64", "--quiet", "--output", str(out),
                 "--trajectory", str(tmp_path / "kept")])  # fmt: skip
    assert code == 0
    assert len(tfkit.read_video(out)) == 2
    assert len(tfkit.open_trajectory(tmp_path / "kept")) == 2


def test_an_inversion_can_be_refined(video, tmp_path, capsys):
    """As the note on a coarse one advises; a refinement below 0 is told before anything is done."""
    make = ["edit", str(video), "a dog", "--frames", "2", "--steps", "2", "--size", "32", "--quiet"]
    found = {}
    for n in ("0", "2"):
        out = ["--output", str(tmp_path / "o.mp4"), "--trajectory", str(tmp_path / n)]
        assert main([*make, "--fixed-point", n, *out]) == 0
        found[n] = tfkit.open_trajectory(tmp_path / n).noise
    assert not torch.equal(found["0"], found["2"])
    assert main([*make, "--fixed-point", "-1"]) == 2
    assert "fixed_point=-1" in capsys.readouterr().err


def test_a_video_can_be_prepared_for_its_edit_while_it_is_inverted(video, tmp_path, capsys):
    make = ["edit", str(video), "a dog", "--frames", "3", "--steps", "2", "--size", "32", "--quiet"]
    make += ["--interval", "2", "--seed", "3", "--prepare", "--output", str(tmp_path / "o.gif")]
    assert main([*make, "--trajectory", str(tmp_path / "kept")]) == 0
    source = tfkit.open_trajectory(tmp_path / "kept")
    (key,) = source.cache.sizes()
    assert all(source.cache.get(key, t) is not None for t in source.timesteps)
    capsys.readouterr()
    assert main([*make, "--propagation", "per-frame"]) == 2
    assert "nothing to prepare for it" in capsys.readouterr().err


def test_what_is_kept_for_edits_to_come_has_a_budget(video, tmp_path, capsys, monkeypatch):
    budgets = []
    monkeypatch.setattr(EditSession, "run", lambda self, **_: budgets.append(self.source.cache))
    make = ["edit", str(video), "a dog", "--frames", "2", "--steps", "1", "--size", "32", "--quiet"]
    make += ["--output", str(tmp_path / "o.gif")]
    kept = ["--trajectory", str(tmp_path / "kept")]
    for words in ([], ["--prepare"], kept, [*kept, "--budget", "3"]):
        assert main([*make, *words]) == 0
    assert [cache.budget >> 20 for cache in budgets] == [0, 1024, 1024, 3]
    assert main([*make, "--budget", "-1"]) == 2
    assert "--budget -1: expected MiB, 0 or more" in capsys.readouterr().err


def test_words_outside_the_menagerie_are_mentioned(video, tmp_path, capsys):
    main(["edit", str(video), "a dragon on snow", "--frames", "1", "--steps", "1", "--size", "32",
          "--quiet", "--output", str(tmp_path / "o.mp4")])  # fmt: skip
    said = capsys.readouterr().out
    assert "does not know dragon" in said and "elephant" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "missing.mp4"}, "missing.mp4"),
        ({"--model": "no/such/model/here"}, "no/such/model/here"),
        ({"--steps": "1000"}, "steps=1000"),
        ({"--steps": "0"}, "steps=0"),
        ({"--frames": "0"}, "frames=0"),
        ({"--interval": "0"}, "interval=0"),
        ({"--guidance": "nan"}, "guidance=nan"),
        ({"--output": "out.xyz"}, ".xyz"),
        ({"--output": "{video}/o.mp4"}, "is no folder that can be written to"),
        ({"--output": "{file}"}, "is a file, and no suffix means a folder of PNGs"),
        ({"--start": "99"}, "99"),
        ({"--batch": "0"}, "batch=0"),
        ({"--size": "0"}, "size=0"),
        ({"--seed": "-1"}, "seed=-1"),
        ({"--output": "{video}"}, "is the video as well; expected another path"),
        ({"--trajectory": "{new}", "--checkpoints": "{new}"}, "is --trajectory as well"),
        ({"--checkpoints": "{full}"}, "is not empty and holds no edit"),
        ({"--output": "{new}", "--trajectory": "{new}/t"}, "lies in --output"),
        ({"--trajectory": "{new}/t", "--checkpoints": "{new}"}, "lies in --checkpoints"),
        ({"--device": "meta"}, "device='meta' cannot be used here"),
        ({"prompt": "a dog \udcff"}, "is no Unicode"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(video, tmp_path, capsys, unchecked, change, message):
    settings = {
        "--steps": "1",
        "--frames": "1",
        "--size": "32",
        "--output": str(tmp_path / "o.mp4"),
    }
    places = {"video": video, "new": tmp_path / "new", "full": video.parent}
    places["file"] = video.with_suffix("")
    places["file"].touch()
    settings |= {k: v.format(**places) for k, v in change.items() if k.startswith("--")}
    before = video.read_bytes()
    words = [word for pair in settings.items() for word in pair]
    asked = change.get("video", str(video)), change.get("prompt", "a dog")
    code = main(["edit", *asked, "--quiet", *words])
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert said.count("\n") == 0 and said.startswith("tfkit: error:") and message in said
    assert not list(tmp_path.iterdir()) and video.read_bytes() == before


@pytest.mark.parametrize("option", ["--trajectory", "--checkpoints"])
def test_a_place_that_cannot_be_written_is_told_before_hours_of_work(
    video, tmp_path, capsys, monkeypatch, option
):
    """As on a disk mounted read-only, where not even the administrator may write."""
    place, access = tmp_path / "mounted", os.access
    place.mkdir()
    monkeypatch.setattr(os, "access", lambda of, mode: of != place and access(of, mode))
    monkeypatch.setattr(tfkit, "load", lambda *_, **__: pytest.fail("the work was begun"))
    words = ["--output", str(tmp_path / "o.mp4"), option, str(place / "new" / "fox")]
    assert main(["edit", str(video), "a dog", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tfkit: error:") and "can be written there" in said and "mounted" in said


def test_an_image_is_never_replaced_by_the_edit_of_it(tmp_path, capsys):
    path = tfkit.write_video(tmp_path / "frames", moving(2)) / "0000.png"
    before = path.read_bytes()
    assert main(["edit", str(path), "a dog", "--output", str(path.parent)]) == 2
    assert "lies in --output" in capsys.readouterr().err and path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ([], tfkit.TokenFlow(8)),
        (["--interval", "2", "--window", "3"], tfkit.TokenFlow(2, window=3)),
        (["--propagation", "joint"], tfkit.ExtendedAttention()),
        (
            ["--propagation", "joint", "--interval", "2", "--window", "3"],
            tfkit.ExtendedAttention(2, window=3),
        ),
    ],
)
def test_the_propagation_has_the_interval_and_window_given(video, tmp_path, options, meant):
    folder, out = tmp_path / "edit", tmp_path / "o.mp4"
    code = main(["edit", str(video), "a dog", "--frames", "3", "--size", "32", "--steps", "1",
                 "--quiet", "--checkpoints", str(folder), "--output", str(out),
                 *options])  # fmt: skip
    assert code == 0
    assert json.loads((folder / "edit.json").read_text())["propagation"] == repr(meant)


def test_mistyped_options_are_status_2_without_a_traceback():
    done = run("edit")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the following arguments are required" in done.stderr


def test_wolf(wolf, tmp_path):
    out = tmp_path / "out.mp4"
    assert main(["edit", str(wolf), "a red fox on snow", "--frames", "2", "--steps", "2",
                 "--quiet", "--output", str(out)]) == 0  # fmt: skip
    assert tfkit.read_video(out).frames.shape == (2, 3, 128, 128)
