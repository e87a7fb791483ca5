"""Evaluations: the table, resuming after a kill, failures, and joblib's backends, Dask's too."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from pipelines import make_pipeline
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTModel

import tfkit
from tfkit import measured_source, metrics, portable
from tfkit.clip import load_clip
from tfkit.dino import load_dino
from tfkit.entries import named_clips
from tfkit.evaluation import COLUMNS, difference, summary
from tfkit.identity import describe, key_of
from tfkit.menagerie import benchmark, film
from tfkit.portable import Meter, Portable
from tfkit.readers import TokenReader
from tfkit.records import open_folder, read_record, write_record
from tfkit.scores import METRICS, Score, over_clips
from tfkit.scoring import score
from tfkit.video import Clip

FAST = {"steps": 2, "progress": False}
CHEAP = ["warp_error", "text_alignment", "success"]
KEEN = [*CHEAP, "structure_distance", "motion_fidelity"]
TASKS = benchmark(frames=2)[:3]
CLIP = film("a cat", frames=2)


def same(model, source, prompt):
    """A method that takes no time: the clip as the VAE has it."""
    return model.decode(source.clean, size=source.size)


def darker(model, source, prompt):
    return same(model, source, prompt) / 2


def brightness(frames, source, prompt):
    return frames.mean()


def patches(frames):
    """A reader of structure that needs no model: patches of 16 x 16 pixels."""
    return torch.nn.functional.unfold(frames - 0.5, 16, stride=16).transpose(1, 2)


def centers(frames):
    """Tracks: where the centre of each colour is."""
    weights = frames / frames.sum((-1, -2), keepdim=True)
    y, x = torch.meshgrid(*map(torch.arange, frames.shape[-2:]), indexing="ij")
    return torch.stack([(weights * x).sum((-1, -2)), (weights * y).sum((-1, -2))], -1)


READERS = {"structure": patches, "tracks": centers}


@dataclass
class Counting:
    """A method that writes a line for each edit it makes, as slow as one likes."""

    log: Path
    seconds: float = 0.0
    tags: frozenset = frozenset({"in", "any", "order"})

    def __call__(self, model, source, prompt):
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{prompt}\n")
        return same(model, source, prompt)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def model(folder):
    return tfkit.load(folder, device="cpu")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, image_size=32, patch_size=32)  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def evaluate(model):
    return partial(tfkit.evaluate, model=model, **FAST)


@pytest.fixture(scope="module")
def table(evaluate):
    methods = {
        "TokenFlow": {"propagation": tfkit.TokenFlow(interval=2), "guidance": 3, "seed": 1},
        "joint": tfkit.ExtendedAttention(),
        "SDEdit": tfkit.SDEdit(0.5),
        "darker": darker,
    }
    return evaluate(methods, TASKS[:2])


# --- The table ---


def test_there_is_a_row_for_each_method_clip_prompt_and_metric(table):
    assert list(table.columns) == COLUMNS
    assert len(table) == 4 * 2 * 3 * len(METRICS)
    assert not table.duplicated(["method", "clip", "prompt", "metric"]).any()
    assert list(table.metric.unique()) == list(METRICS)
    assert list(table.method.unique()) == ["TokenFlow", "joint", "SDEdit", "darker"]
    asked = table[["clip", "prompt", "change"]].drop_duplicates().values.tolist()
    assert asked == [[t.caption, c.prompt, c.kind] for t in TASKS[:2] for c in t.changes]
    assert table.value.notna().all() and (table.seconds > 0).all() and (table.error == "").all()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (
            "TokenFlow",
            {"propagation": tfkit.TokenFlow(interval=2), "guidance": 3, "seed": 1},
        ),
        ("SDEdit", {"method": tfkit.SDEdit(0.5)}),
    ],
)
def test_every_number_is_that_of_scoring_by_hand(table, model, method, settings):
    clip, prompt = TASKS[1].film(), TASKS[1].prompts[2]
    source = tfkit.invert(model, clip, clip.caption, **FAST)
    made = tfkit.edit(model, source, prompt, progress=False, **settings)
    layers = sorted(n for n, _ in model.unet.named_modules() if n.startswith("up_blocks"))
    layers = [name for name in layers if name.endswith("attn1")]
    reader = TokenReader(model, layers[len(layers) // 2], 261)
    expected = score(made, clip, prompt, clip=load_clip(), tokens=reader)
    rows = table[
        (table.method == method) & (table["clip"] == clip.caption) & (table.prompt == prompt)
    ]
    assert list(rows.metric) == list(expected)
    for row in rows.itertuples():
        assert row.value == pytest.approx(float(expected[row.metric]), rel=1e-4, abs=1e-7)
        assert row.measured_with == expected[row.metric].measured_with


def test_metrics_can_be_chosen_and_brought_along(evaluate):
    def named(frames, source, prompt):
        return Score("named", len(prompt), {"in": "letters"})

    found = evaluate({"same": same, "darker": darker}, TASKS[:1], [named, brightness, "warp_error"])
    assert list(found.metric.unique()) == ["warp_error", "named", "brightness"]
    assert (found[found.metric == "named"].measured_with == "in: letters").all()
    assert (found[found.metric == "brightness"].measured_with == "function: brightness").all()
    letters = found[(found.metric == "named") & (found.method == "same")].value
    assert letters.tolist() == [len(prompt) for prompt in TASKS[0].prompts]
    light = found[found.metric == "brightness"].set_index(["method", "prompt"]).value
    for prompt in TASKS[0].prompts:
        assert light["darker", prompt] == pytest.approx(light["same", prompt] / 2)


def test_a_clip_of_ones_own_has_what_can_be_measured(evaluate):
    own = Clip(film("a cat", frames=2, seed=5).frames[..., 32:96, 32:96])
    other = film("a dog on sand", frames=2, seed=1)
    found = evaluate(
        {"same": same},
        [(own, "a dog"), (own, ["a fish", "a bird"]), (other, "a fox on sand"), *TASKS[:1]],
        ["warp_error", "directional", "background_psnr"],
    )
    names = list(found["clip"].unique())
    assert names == ["clip 1", "clip 2", "a dog on sand", TASKS[0].caption]
    rows = found[found["clip"] == "clip 2"]
    assert list(rows.prompt) == ["a fish", "a bird"] and set(rows.metric) == {"warp_error"}
    assert set(rows.measured_with) == {"flow: DIS, occlusion: forward-backward check"}
    assert set(rows.change) == {""}
    known = found[found["clip"] == "a dog on sand"]
    assert list(known.metric) == ["warp_error", "directional", "background_psnr"]
    assert known.measured_with.iloc[0] == "flow: exact"
    assert [name for name, *_ in named_clips({0: (own, "a dog"), 1: (own, "a cat")})] == ["0", "1"]
    several = {"fox (night)": (own, "a dog"), "fox": (own, "a dog"), "fox (2)": (own, "a dog")}
    assert [name for name, *_ in named_clips(several)] == [*several]
    named = evaluate({"same": same}, {"mine": (own, "a dog")}, "warp_error")
    assert named["clip"].tolist() == ["mine"] and named.value.iloc[0] == found.value.iloc[0]


def test_a_clip_is_inverted_once_and_only_where_needed(evaluate, monkeypatch, tmp_path):
    from tfkit import jobs

    inverted = []
    real = jobs.invert
    monkeypatch.setattr(
        jobs, "invert", lambda *args, **kw: inverted.append(args[2]) or real(*args, **kw)
    )
    methods = {"same": same, "darker": darker}
    evaluate(methods, TASKS[:2], brightness, folder=tmp_path, inversion={"fixed_point": 1})
    assert inverted == [task.caption for task in TASKS[:2]]
    evaluate(methods, TASKS, brightness, folder=tmp_path, inversion={"fixed_point": 1})
    assert inverted == [task.caption for task in TASKS]
    evaluate(methods, TASKS, brightness, folder=tmp_path, inversion={"fixed_point": 1, "batch": 2})
    assert inverted == [task.caption for task in TASKS]


def test_structure_and_tracks_are_read_as_asked(evaluate, model, dino):
    run = partial(evaluate, {"same": same}, TASKS[:1], ["structure_distance", "motion_fidelity"])
    found = run(structure=dino, tracks=centers).set_index(["metric", "prompt"])
    clip, prompt = TASKS[0].film(), TASKS[0].prompts[1]
    made = same(model, tfkit.invert(model, clip, clip.caption, **FAST), prompt)
    readers = {"structure": load_dino(dino), "tracks": centers}
    expected = score(made, clip, prompt, clip=load_clip(), **readers)
    for metric in ("structure_distance", "motion_fidelity"):
        row = found.loc[metric, prompt]
        assert row.value == pytest.approx(float(expected[metric]), rel=1e-6)
        assert row.measured_with == expected[metric].measured_with
    assert found.loc["structure_distance", prompt].measured_with.startswith(f"tokens: {dino} ")


def test_a_folder_is_found_from_anywhere(evaluate, dino, monkeypatch):
    monkeypatch.chdir(Path(dino).parent)
    found = evaluate({"same": same}, TASKS[:1], "structure_distance", structure=Path(dino).name)
    assert set(found.error) == {""}
    assert all(how.startswith(f"tokens: {dino} ") for how in found.measured_with)


def test_a_clip_is_read_once_for_all_its_edits(evaluate, monkeypatch):
    read, clip = [], Clip(CLIP.frames)

    def count(name, make):
        def counting(frames):
            read.append((name, torch.equal(frames, clip.frames)))
            return make(frames)

        return counting

    monkeypatch.setattr(measured_source, "estimate_flow", count("flow", metrics.estimate_flow))
    readers = {n: count(n, f) for n, f in (("structure", patches), ("tracks", centers))}
    found = evaluate({"same": same, "darker": darker}, [(clip, ["a fish", "a dog"])], **readers)
    assert set(found.metric) > {"warp_error", "structure_distance", "motion_fidelity"}
    assert read.count(("flow", True)) == 1 and ("flow", False) not in read
    for name in readers:
        assert (read.count((name, True)), read.count((name, False))) == (1, 4)


def test_a_clip_can_be_prepared_for_its_edits(evaluate, tmp_path):
    """Which is faster, and the same; another noise is another inversion."""
    way = {"propagation": tfkit.TokenFlow(interval=2)}
    options = {"metrics": brightness, "folder": tmp_path}
    ready = {"predictor": "extrapolated", "prepare": tfkit.Preparation(**way)}
    made = evaluate({"flow": way}, TASKS[:1], inversion=ready, **options)
    again = evaluate({"flow": way}, TASKS[:1], inversion={"predictor": "extrapolated"}, **options)
    pd.testing.assert_frame_equal(made, again)  # with the seconds of then: found, not made
    other = evaluate({"flow": way}, TASKS[:1], **options)
    assert (other.value - made.value).abs().min() > 0


# --- Resuming ---


def test_what_is_there_is_not_computed_again(evaluate, tmp_path):
    log, results = tmp_path / "log", tmp_path / "results"
    first = evaluate({"mine": Counting(log)}, TASKS[:2], CHEAP, folder=results)
    assert len(lines(log)) == 6 == len(list(results.iterdir()))
    again = evaluate({"mine": Counting(log)}, TASKS[:2], CHEAP, folder=results)
    pd.testing.assert_frame_equal(again, first)  # with the seconds of then
    fewer = evaluate({"called else": Counting(log)}, TASKS[1:2], CHEAP[:1], folder=results)
    assert len(fewer) == 3 and len(lines(log)) == 6
    evaluate({"mine": Counting(log)}, TASKS, CHEAP, folder=results)
    assert len(lines(log)) == 9


def test_more_metrics_take_the_edits_again_and_fewer_do_not(evaluate, tmp_path):
    log, results = tmp_path / "log", tmp_path / "results"
    run = partial(evaluate, {"mine": Counting(log)}, TASKS[:1], folder=results)
    run([brightness])
    run(CHEAP)
    assert len(lines(log)) == 6 and len(list(results.iterdir())) == 3
    both = run([*CHEAP, brightness, "background_ssim"])  # as cheap as the others were
    assert len(lines(log)) == 6 and len(both) == 3 * 5
    assert len(run(None)) == 3 * len(METRICS)
    assert len(lines(log)) == 9
    run([*CHEAP, brightness])
    assert len(lines(log)) == 9


OTHER = {
    "a method's setting": {"methods": {"A": {"guidance": 4}}},
    "another method": {"methods": {"A": {"guidance": 3, "method": tfkit.SDEdit(0.5)}}},
    "the steps": {"steps": 3},
    "the inversion": {"inversion": {"fixed_point": 1}},
    "the flow": {"flow": "dis"},
    "the tokens": {"metrics": "structure_distance", "tokens": patches},
    "the structure": {"metrics": "structure_distance", "tokens": patches, "structure": centers},
    "the tracks": {"metrics": "motion_fidelity", "tracks": centers},
    "the clip": {"clips": [(replace(CLIP, frames=CLIP.frames * 0.9), "a fish")]},
}

SAME = (  # the edit of the first run, in other words
    {"methods": {"renamed": {"guidance": 3, "batch": 1}}},
    {"methods": {"B": {"guidance": np.float32(3), "method": tfkit.PlugAndPlay(convolution=0.8)}}},
    {"methods": {"C": {"guidance": 3.0, "propagation": tfkit.TokenFlow(8), "seed": np.int64(0)}}},
    {"inversion": {"fixed_point": np.int64(0), "predictor": "next"}},
)


def test_other_settings_are_never_mixed_up(evaluate, monkeypatch, tmp_path):
    run = {"methods": {"A": {"guidance": 3}}, "clips": [(CLIP, "a fish")], "metrics": "warp_error"}
    run["folder"] = tmp_path
    first = evaluate(**run)
    weights = tfkit.load(make_pipeline(tmp_path.parent / "other", seed=1), device="cpu")
    for i, (what, change) in enumerate({**OTHER, "the weights": {"model": weights}}.items()):
        found = evaluate(**run | change)
        assert len(list(tmp_path.iterdir())) == 2 + i, what
        assert found.value.item() != first.value.item(), what
    count = len(list(tmp_path.iterdir()))
    for same_again in SAME:
        assert evaluate(**run | same_again).value.equals(first.value), same_again
    assert len(list(tmp_path.iterdir())) == count
    monkeypatch.setattr(tfkit, "__version__", "0.0.0")
    evaluate(**run)
    assert len(list(tmp_path.iterdir())) == count + 1


SHADE = 0.25
WHICH = None


def shade(model, source, prompt):
    return torch.full((2, 3, 32, 32), SHADE)


def which():
    return WHICH


@pytest.mark.parametrize("kind", ["function", "class"])
def test_what_code_reads_of_its_module_counts(evaluate, monkeypatch, tmp_path, kind):
    class Shade(tfkit.PerFrame):
        def predict(self, run, attention, frames, keyframes, batch):
            return torch.full_like(super().predict(run, attention, frames, keyframes, batch), SHADE)

    for number in (0.25, 0.75):
        monkeypatch.setitem(globals(), "SHADE", number)
        run = {"mine": shade if kind == "function" else Shade()}, TASKS[:1], brightness
        assert evaluate(*run, folder=tmp_path).value.equals(evaluate(*run).value)


def test_a_loader_that_reads_another_model_is_another(evaluate, monkeypatch, model):
    other = deepcopy(model)
    with torch.no_grad():
        for weights in other.unet.parameters():
            weights.mul_(1.1)
    found = []
    for one in (model, other):
        monkeypatch.setitem(globals(), "WHICH", one)
        table = evaluate({"A": tfkit.PerFrame()}, TASKS[:1], brightness, model=which)
        assert table.value.equals(
            evaluate({"A": tfkit.PerFrame()}, TASKS[:1], brightness, model=one).value
        )
        found.append(table.value.mean())
    assert found[0] != found[1]


def test_a_damaged_record_is_made_again(evaluate, tmp_path):
    first = evaluate({"A": same}, TASKS[:1], brightness, folder=tmp_path)
    for file, text in zip(sorted(tmp_path.iterdir()), ("", "{}", "3"), strict=True):
        file.write_text(text)
    again = evaluate({"A": same}, TASKS[:1], brightness, folder=tmp_path)
    assert again.value.equals(first.value)
    assert all("scores" in json.loads(file.read_text()) for file in tmp_path.iterdir())


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_evaluate import *
tfkit.evaluate({{"mine": Counting(Path({log!r}), 0.2)}}, TASKS, KEEN, model={model!r},
               folder={results!r}, **READERS, **FAST)
"""


def test_a_killed_evaluation_loses_no_more_than_the_edit_running(evaluate, folder, tmp_path):
    log, results = tmp_path / "log", tmp_path / "results"
    script = SCRIPT.format(
        path=[str(Path(__file__).parent)], log=str(log), model=str(folder), results=str(results)
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}  # what is the same is so in any process
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    while len(lines(log)) < 4 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    made, kept = len(lines(log)), len(list(results.glob("[!.]*.json")))
    assert 4 <= made < 9 and made - 1 <= kept <= made
    assert all("scores" in json.loads(file.read_text()) for file in results.glob("[!.]*.json"))
    run = partial(evaluate, clips=TASKS, metrics=KEEN, model=str(folder), **READERS)
    found = run({"mine": Counting(log, 0.2)}, folder=results)
    assert len(lines(log)) == made + 9 - kept
    assert len(found) == 9 * len(KEEN)
    compare(found, run({"mine": Counting(tmp_path / "other")}))
    run({"mine": Counting(log, 0.2)}, folder=results, structure=centers)
    assert len(lines(log)) == made + 18 - kept


def test_an_interrupt_stops_at_once_and_keeps_what_is_done(evaluate, tmp_path):
    log, stop = tmp_path / "log", [True]

    class Impatient(Counting):
        def __call__(self, model, source, prompt):
            if stop and len(lines(log)) == 4:
                raise KeyboardInterrupt
            return super().__call__(model, source, prompt)

    run = partial(evaluate, clips=TASKS, metrics=CHEAP, folder=tmp_path / "results")
    with pytest.raises(KeyboardInterrupt):
        run({"mine": Impatient(log)})
    assert len(list((tmp_path / "results").iterdir())) == 4
    stop.clear()
    run({"mine": Impatient(log)})
    assert len(lines(log)) == 9


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
    old, new = tmp_path / ".new-00000001-a.json", tmp_path / ".new-00000002-b.json"
    for file in (old, new):
        file.write_text("{")
    os.utime(old, (1, 1))
    open_folder(tmp_path)
    assert not old.exists() and new.exists()  # the second may be another evaluation's


def test_a_number_that_was_altered_is_none(tmp_path):
    write_record(tmp_path, "a", {"scores": {"warp_error": 0.0123}, "seconds": 1.0})
    assert read_record(tmp_path, "a") == {"scores": {"warp_error": 0.0123}, "seconds": 1.0}
    file = tmp_path / "a.json"
    file.write_text(file.read_text().replace("0.0123", "0.0023"))
    assert read_record(tmp_path, "a") is None
    file.write_text('{"seconds": 1.0}')  # of a version that wrote no sum
    assert read_record(tmp_path, "a", ["seconds"]) == {"seconds": 1.0}


# --- Failures ---


def failing(model, source, prompt):
    if prompt == TASKS[0].prompts[1]:
        raise tfkit.NonFiniteError("a NaN in the middle")
    return same(model, source, prompt)


def test_an_edit_that_fails_is_told_and_stops_no_other(evaluate, tmp_path):
    run = partial(evaluate, clips=TASKS[:2], metrics=CHEAP, folder=tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 12 edits failed(.|\n)*NonFiniteError: a NaN in"):
        found = run({"good": same, "bad": failing})
    failed = found[found.error != ""]
    assert set(failed.prompt) == {TASKS[0].prompts[1]} and set(failed.method) == {"bad"}
    assert list(failed.metric) == CHEAP and failed.value.isna().all()
    assert found[found.error == ""].value.notna().all() and len(found) == 12 * 3
    assert len(list(tmp_path.iterdir())) == 11
    with pytest.warns(UserWarning, match="1 of 'bad'"):
        rows = summary(found).rows
    assert float(rows["good"]["warp_error"]) != 0
    mended = run({"good": same, "bad": same})
    assert (mended.error == "").all() and mended.value.notna().all()


def test_a_metric_that_fails_costs_no_other(evaluate, tmp_path):
    def mine(frames, clip, prompt):
        if prompt == TASKS[0].prompts[1]:
            raise KeyError("no such colour")
        return 1.0

    run = partial(evaluate, {"good": same}, TASKS[:1], folder=tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 3 edits were not(.|\n)*'mine': \"KeyError"):
        found = run(metrics=["text_alignment", mine])
    failed = found[found.error != ""]
    assert list(zip(failed.metric, failed.prompt, strict=True)) == [("mine", TASKS[0].prompts[1])]
    assert len(found) == 6 and failed.value.isna().all() and found.value.notna().sum() == 5
    again = run(metrics=["text_alignment"])
    kept = found[found.metric == "text_alignment"].reset_index(drop=True)
    assert again.equals(kept)  # seconds too: nothing was edited again


def test_a_full_disk_stops_it_and_names_the_folder(evaluate, tmp_path, full_disk):
    run = partial(evaluate, {"good": same}, TASKS[:1], ["text_alignment"], folder=tmp_path)
    full_disk(2)
    with pytest.raises(OSError, match=r"cannot keep what was measured(.|\n)*No space left"):
        run()
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert run().value.notna().all()


def test_a_mistake_in_everything_is_raised_with_its_traceback(evaluate):
    def short(model, source, prompt):
        return same(model, source, prompt)[:1]

    def broken(frames, source, prompt):
        return frames.no_such_thing

    with pytest.raises(
        RuntimeError, match=r"not one of 3 edits succeeded(.|\n)*1 frames came back"
    ):
        evaluate({"short": short}, TASKS[:1], CHEAP)
    with pytest.raises(RuntimeError, match=r"no_such_thing(.|\n)*Traceback(.|\n)*in broken"):
        evaluate({"same": same}, TASKS[:1], broken)
    with pytest.raises(RuntimeError, match="expected a whole number from 1"):
        evaluate({"same": same}, TASKS[:1], CHEAP, steps=5000)
    with pytest.raises(tfkit.NonFiniteError, match="in the middle"):
        evaluate({"bad": failing}, TASKS[:1], CHEAP, errors="raise")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "methods={}: expected a mapping"),
        ({"methods": [same]}, "expected a mapping"),
        ({"methods": {"A": {"guidence": 3}}}, "unknown setting 'guidence'; expected some of batch"),
        ({"methods": {"A": tfkit.TokenFlow}}, "expected settings of tfkit.edit in a mapping"),
        ({"methods": {"A": 3}}, "method 'A' is 3"),
        ({"metrics": ["warp"]}, r"\['warp'\]; expected functions, or names among warp_error"),
        ({"metrics": []}, "expected functions, or names"),
        ({"metrics": 3}, "metrics=3: expected functions, or names"),
        ({"metrics": [[]]}, r"metrics=\[\[\]\]: expected functions, or names"),
        ({"methods": {1: same, "1": darker}}, r"\['1'\] by \[1, '1'\]; expected names that differ"),
        ({"clips": None}, "clips=None: expected tasks"),
        ({"clips": [(CLIP, 3)]}, "has 2 frames and the prompts 3; expected"),
        ({"inversion": [1]}, r"inversion=\[1\]: expected settings"),
        ({"folder": 3}, "folder=3: expected a path"),
        ({"folder": ""}, "folder='': expected a path"),
        ({"metrics": [lambda *a: 0, lambda *a: 1]}, "names that differ"),
        ({"clips": []}, "clips is empty"),
        ({"clips": [CLIP]}, "number 1 is a Clip; expected a task"),
        ({"clips": [(CLIP, [])]}, "has 2 frames and the prompts"),
        ({"clips": [(CLIP[:1], "a dog")]}, "has 1 frames"),
        ({"flow": "exactly"}, "flow='exactly': expected one of None, 'exact'"),
        (
            {"tokens": "up_blocks.1"},
            r"tokens='up_blocks.1': expected \(layer, timestep\) or a ",
        ),
        ({"tokens": (261, "up_blocks.1")}, r"tokens=\(261, 'up_blocks.1'\): expected \(layer, tim"),
        ({"tokens": ("up", 1), "metrics": None}, "layer 'up' fits no self-attention of this model"),
        ({"tokens": ("up_blocks.*", 1), "metrics": None}, r"'up_blocks.\*': expected one layer"),
        ({"structure": 3}, "structure=3: expected a DINO's name or folder, or a function"),
        ({"structure": ""}, "structure='': expected a DINO's name"),
        ({"tracks": CLIP.flow}, r"tracks=tensor(.|\n)*: expected a function \(frames\) -> tracks"),
        ({"tracks": Clip}, "tracks=<class 'tfkit.video.Clip'>: expected a function"),
        ({"errors": "ignore"}, "errors='ignore': expected one of 'warn', 'raise'"),
        ({"steps": 0}, "steps=0"),
        ({"inversion": {"prompt": "a"}}, "unknown setting 'prompt'; expected some of batch, con"),
        ({"model": 3}, "model=3: expected a model"),
        ({"folder": __file__}, "is a file; expected a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(evaluate, unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**{"methods": {"A": same}, "clips": TASKS[:1], "metrics": CHEAP} | change)


# --- What determines a result ---


def test_settings_are_told_apart_by_what_they_do():
    def make(factor, offset=0):
        return lambda x: x * factor + offset

    assert key_of(make(2)) == key_of(make(2)) != key_of(make(3))
    assert key_of(make(2)) != key_of(make(2, 1))
    assert key_of(partial(same, 1)) == key_of(partial(same, 1)) != key_of(partial(darker, 1))
    assert key_of(tfkit.TokenFlow()) == key_of(tfkit.TokenFlow(interval=8))
    assert key_of(tfkit.TokenFlow()) != key_of(tfkit.TokenFlow(interval=4))
    assert key_of(torch.ones(2)) != key_of(torch.ones(2, 1)) != key_of(torch.zeros(2, 1))
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    assert key_of(nets[0]) != key_of(nets[1])
    nets[1].load_state_dict(nets[0].state_dict())
    assert key_of(nets[0]) == key_of(nets[1])
    assert key_of(torch.nn.AvgPool2d(2)) == key_of(torch.nn.AvgPool2d(2))
    assert key_of(torch.nn.AvgPool2d(2)) != key_of(torch.nn.AvgPool2d(4))
    nets[1].strength = 2
    assert key_of(nets[0]) != key_of(nets[1])


def test_code_is_told_by_what_it_calls_of_ones_own():
    """In its file, in another one, in what these call; not by what libraries do."""
    text = """
from statistics import mean
import other

def inner(x):
    return {inner} if x else helper(x)  # each calls the other

def helper(x, gain={gain}):
    return gain * inner(x)

class Part:
    def __call__(self, x):
        return helper(x)

class Mine(Part):
    pass

def function(x):
    return helper(x)

def by_module(x):
    return other.scaled(x)

def by_part(x):
    return Part()(x)

def by_library(x):
    return mean([x])
"""

    def written(inner="x", gain=1, factor=1):
        other, names = ModuleType("other"), {"__name__": "mine"}
        exec(f"def scaled(x):\n    return {factor} * x", vars(other))
        sys.modules["other"] = other
        try:
            exec(text.format(inner=inner, gain=gain), names)
        finally:
            del sys.modules["other"]
        kinds = ("Mine", "function", "by_module", "by_part", "by_library")
        return {kind: key_of(names[kind]) for kind in kinds}

    plain = written()
    assert written() == plain
    for change in ({"inner": "x + 1"}, {"gain": 2}):
        found = written(**change)
        assert {kind for kind in plain if found[kind] != plain[kind]} == {
            "Mine", "function", "by_part"
        }  # fmt: skip
    found = written(factor=2)
    assert {kind for kind in plain if found[kind] != plain[kind]} == {"by_module"}


def test_a_class_is_told_by_all_that_it_says():
    def written(layers=(1, 2), default=1, closed=1, cached=1, private=1):
        class Mine:
            LAYERS: ClassVar = list(layers)
            _GAIN, _SEEN = private, {}

            def __call__(self, frames, gain=default):
                return frames * gain * closed

            if cached == 1:
                once = cached_property(lambda self: 1)
            else:
                once = cached_property(lambda self: 2)

        return Mine()

    others = {"layers": (1, 3)}, {"default": 2}, {"closed": 2}, {"cached": 2}, {"private": 2}
    asked = written()
    before = key_of(asked)
    assert asked.once == asked._SEEN.setdefault("it", 1)  # what was made on the way is no setting
    assert key_of(asked) == before == key_of(written())
    assert len({before, *(key_of(written(**other)) for other in others)}) == 6


def test_a_dataclass_with_slots_is_told_by_what_it_holds():
    @dataclass(slots=True)
    class Held:
        values: torch.Tensor

    long = torch.zeros(5000)
    other = long.clone()
    other[2500] = 1  # which its text does not show
    assert repr(long) == repr(other)
    assert key_of(Held(long)) == key_of(Held(long.clone())) != key_of(Held(other))

    def experiment(strength):
        class Mine(tfkit.Plain):
            def begin(self, model, source, t):
                return source.clean * strength if strength == 1 else source.clean

        return Mine

    def other():
        class Mine(tfkit.Plain):
            def begin(self, model, source, t):
                return source.clean * 2

        return Mine

    assert key_of(experiment(1)()) == key_of(experiment(1)()) != key_of(other()())
    with pytest.raises(ValueError, match="nothing tells whether it is the same next time"):
        describe({"lock": threading.Lock()})


# --- Means ---


def test_the_summary_is_of_clips_each_the_mean_of_its_prompts(table):
    found = summary(table, resamples=99)
    assert list(found.rows) == ["TokenFlow", "joint", "SDEdit", "darker"]
    rows = []
    for task in TASKS[:2]:
        part = table[(table.method == "joint") & (table["clip"] == task.caption)]
        warp = part[part.metric == "warp_error"].value.mean()
        rows.append({"warp_error": Score("warp_error", warp, {"flow": "exact"})})
    expected = over_clips(rows, resamples=99)["warp_error"]
    assert found.rows["joint"]["warp_error"] == expected
    assert expected.clips == 2
    assert "token consistency with tokens" in repr(found)
    by_change = summary(table, ["method", "change"], resamples=99)
    assert {"joint, coat", "joint, ground", "joint, species"} <= set(by_change.rows)
    with pytest.raises(ValueError, match="missing: kind"):
        summary(table, "kind")
    other = table.assign(measured_with="flow: DIS", clip="other")
    with pytest.raises(ValueError, match="expected one way"):
        summary(pd.concat([table, other]))


def test_differences_are_taken_clip_by_clip():
    """Two methods whose intervals overlap, and that differ by as much on every clip."""
    values = {"a": [1.0, 5.0, 9.0, 13.0], "b": [0.9, 4.8, 8.9, 12.8]}
    rows = [
        {"method": name, "clip": str(i), "prompt": str(push), "metric": "psnr",
         "value": x + push, "error": "", "measured_with": ""}
        for name, each in values.items() for i, x in enumerate(each) for push in (-1, 1)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    found = difference(table, "psnr", "a", "b", resamples=999)
    assert found.mean == pytest.approx(0.15) and 0.09 < found.low < found.high < 0.21
    assert difference(table, "psnr", "b", "a", resamples=999).mean == pytest.approx(-0.15)
    broken = table.assign(error=["" if i % 5 else "failed" for i in range(len(table))])
    assert difference(broken, "psnr", "a", "b", resamples=99).low is not None
    for metric, method in (("psnr", "c"), ("ssim", "b")):
        with pytest.raises(ValueError, match=f"no '{metric}' of .*'{method}'"):
            difference(table, metric, "a", method)
    ways = table.assign(measured_with=["exact"] * 8 + ["DIS"] * 8)
    with pytest.raises(ValueError, match="'exact' and with 'DIS'; expected one way"):
        difference(ways, "psnr", "a", "b")
    alike = table.assign(value=table.prompt.astype(float))
    alike.loc[0, "error"] = "failed"  # a's low prompt of one clip: b's has no partner
    assert difference(alike, "psnr", "a", "b", resamples=99).mean == 0


# --- Wherever joblib runs it ---


def compare(found, expected):
    """Equal but for the time it took."""
    left, right = (t.drop(columns="seconds") for t in (found, expected))
    pd.testing.assert_frame_equal(left, right, rtol=1e-5)


@pytest.fixture(scope="module")
def serial(evaluate):
    return evaluate({"same": same, "darker": darker}, TASKS, CHEAP)


def test_threads_take_turns_with_one_model(serial, evaluate, capsys):
    with joblib.parallel_config(backend="threading", n_jobs=3):
        found = evaluate({"same": same, "darker": darker}, TASKS, CHEAP, progress=True)
    compare(found, serial)
    assert "18/18" in capsys.readouterr().err


def test_other_weights_in_a_folder_are_read_again(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"1")
    first = portable.once("test", read_anew, str(tmp_path))
    assert portable.once("test", read_anew, str(tmp_path)) is first
    file.write_bytes(b"22")
    assert portable.once("test", read_anew, str(tmp_path)) is not first


def read_anew(folder):
    return object()


def test_metrics_that_no_clip_can_have_are_told(evaluate):
    bare = Clip(film("a plain red cat on snow", frames=2).frames)
    asked = ["warp_error", "background_psnr", "success"]
    with pytest.warns(UserWarning, match="no edit has success, background_psnr: "):
        table = evaluate({"alone": tfkit.PerFrame()}, [(bare, "a dog")], asked)
    assert set(table.metric) == {"warp_error"}


def test_a_model_travels_by_its_name_and_is_checked_on_arrival(folder, model):
    there = copy(Portable(model))  # what pickling makes of it
    assert there.given == str(folder) and there.model() is not model
    assert there.model() is copy(Portable(model)).model()  # read once
    assert there.model().fingerprint() == model.fingerprint()
    assert copy(Portable(partial(tfkit.load, folder))).model().name == str(folder)
    other = tfkit.load(folder, device="cpu")
    other.unet.conv_in.weight.data += 1
    for changed, found in ((other, "something else"), (replace(model, name="nowhere"), "nowhere")):
        said = rf"is not the same \(.*{found}.*\); give a function that loads it"
        with pytest.raises(ValueError, match=said):
            copy(Portable(changed)).model()
    assert copy(Meter(tqdm(total=1, disable=True))).bar is None


def test_a_model_is_read_for_the_device_that_it_was_on(model):
    there = copy(Portable(model))
    assert there.model().device == model.device
    fingerprint, dtype, _ = there.expected
    there.expected = fingerprint, dtype, "cuda:99"
    with pytest.raises(ValueError, match=r"not the same \(device='cuda:99' cannot be used here"):
        there.model()


@pytest.mark.slow
def test_processes_give_the_same_table(evaluate, dino):
    run = partial(evaluate, {"same": same, "darker": darker}, TASKS, KEEN, tracks=centers)
    for structure in (dino, patches):
        with joblib.parallel_config(backend="loky", n_jobs=2):
            found = run(structure=structure)
        compare(found, run(structure=structure))


def test_a_dask_cluster_that_loses_a_worker_gives_the_same_table(model, dino, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs tfkit[cluster]")
    log, results, lost = tmp_path / "log", tmp_path / "results", []
    own = film("a dog on sand", frames=2, seed=1)
    clips = [*TASKS, *benchmark(frames=2)[3:5], (own, ["a fox on sand", "a cat on sand"])]
    readers = {"structure": dino, "tracks": centers}
    run = partial(tfkit.evaluate, clips=clips, metrics=KEEN, model=model, **readers, **FAST)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        assert len(set(pids.values()) - {os.getpid()}) == 2

        def kill():
            while len(lines(log)) < 3:
                time.sleep(0.02)
            lost.append((next(iter(pids.values())), len(lines(log))))
            os.kill(lost[0][0], signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with joblib.parallel_config(backend="dask"):
            found = run({"mine": Counting(log, 0.15)}, folder=results)
        assert lost and lost[0][1] < 17  # it was on the way
        assert not Path(f"/proc/{lost[0][0]}").exists()
    made = len(lines(log))
    assert 17 <= made <= 18  # at most the edit that was running was made twice
    compare(found, run({"mine": Counting(tmp_path / "serial")}))
    pd.testing.assert_frame_equal(found, run({"mine": Counting(log, 0.15)}, folder=results))
    assert len(lines(log)) == made


def test_names_in_an_array_are_told_apart():
    of = [key_of(np.array(names)) for names in (["cat", "dog"], ["cat", "fox"], ["cat", "dog"])]
    assert of[0] == of[2] != of[1]
    assert key_of(np.array([1, "a"], object)) != key_of(np.array([2, "a"], object))


def test_a_metric_of_nan_is_one_that_failed(evaluate, tmp_path):
    def mine(frames, clip, prompt):
        return float("nan") if prompt == TASKS[0].prompts[1] else 1.0

    with pytest.warns(UserWarning, match=r"1 of 3 edits were not(.|\n)*returned NaN"):
        found = evaluate({"good": same}, TASKS[:1], mine, folder=tmp_path)
    assert found.error.str.contains("NaN").tolist() == [False, True, False]
    with pytest.warns(UserWarning, match="left out of the means"):
        assert summary(found).rows["good"]["mine"].value == 1


def test_a_metric_that_writes_into_the_frames_harms_no_other(evaluate):
    def wipe(frames, clip, prompt):
        return frames.zero_().mean()

    table = evaluate({"good": same}, TASKS[:1], [wipe, brightness])
    assert (table.value[table.metric == "brightness"] > 0.1).all()


def test_a_worker_that_dies_says_what_is_kept(folder, tmp_path):
    def die(model, source, prompt):
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        joblib.parallel_config("loky", n_jobs=2),
        pytest.raises(RuntimeError, match=r"a worker died.*is kept in .*another call goes on"),
    ):
        run = {"model": str(folder), "folder": tmp_path} | FAST
        tfkit.evaluate({"bad": die}, TASKS[:2], brightness, **run)
