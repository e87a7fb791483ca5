"""What is said before an edit and after it: right when it is said, and silent otherwise."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pipelines import moving_latents

import tfkit
from tfkit import advice, autoencoder, cost, hooks, memory
from tfkit.__main__ import main
from tfkit.advice import edge_agreement, examine, prompt_notes, quality_notes
from tfkit.live import Live
from tfkit.memory import available_memory
from tfkit.passes import Plan
from tfkit.truth import TrueFlow

QUIET = {"progress": False}
ROOMY = 2**50  # bytes that are free


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu")


@pytest.fixture(scope="module")
def menagerie():
    return tfkit.load()


@pytest.fixture(scope="module")
def fox():
    return tfkit.menagerie.film("a plain orange fox on grass", frames=3, seed=2)


# Prompts


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("a red fox on snow", None),
        ("a red axolotl on snow", "does not know axolotl"),
        ("a fox " * 60, "longer than the 75 tokens that are read; unread: "),
        ("", "the prompt is empty"),
        ("a fox on grass", "is the source's own"),
    ],
)
def test_prompts_are_read_beforehand(menagerie, prompt, note):
    notes = prompt_notes(menagerie, prompt, "a fox on grass")
    assert len(notes) == (note is not None)
    if note:
        limit = menagerie.tokenizer.model_max_length - 2
        assert note.replace("75", str(limit)) in notes[0]


def test_source_and_negative_prompts_are_read_too(menagerie):
    notes = prompt_notes(menagerie, "a red fox", "a fox" + " fox" * 99, "an axolotl, a gnu")
    assert notes[0].startswith("the source's prompt is longer than the")
    assert notes[1].startswith("the menagerie does not know axolotl, gnu; it knows")
    assert len(notes) == 2 and not prompt_notes(menagerie, "a red fox", "a fox", "a dog")
    report = tfkit.preflight(
        menagerie, torch.rand(1, 3, 32, 32), "a red fox", negative_prompt="a gnu", steps=2
    )
    assert "the menagerie does not know gnu" in " ".join(report.notes)


def test_other_models_are_not_asked_for_the_menageries_words(model):
    assert prompt_notes(model, "a red axolotl") == []


# The reconstruction


def test_a_coarse_inversion_is_told_from_a_fine_one(menagerie, fox):
    blocks = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    odd = F.interpolate(blocks, (128, 128))  # like nothing that it was trained on
    fine, coarse = (
        tfkit.invert(menagerie, frames, fox.caption, steps=4, fixed_point=more, **QUIET)
        for frames, more in [(fox, 2), (odd, 0)]
    )
    found = [advice.reconstruction_psnr(menagerie, source) for source in (fine, coarse)]
    assert found[0] > advice.GOOD > found[1]
    assert not quality_notes(found[0], 4)
    (note,) = quality_notes(found[1], 4)
    assert f"{found[1]:.1f} dB" in note and 'predictor="extrapolated"' in note
    report = tfkit.preflight(menagerie, coarse, "a red fox on snow")
    assert (
        note in report.notes and report.seconds[0] == 0 and report.psnr == pytest.approx(found[1])
    )
    whole = tfkit.metrics.psnr(
        tfkit.reconstruct(menagerie, fine, **QUIET), menagerie.decode(fine.clean, size=fine.size)
    )
    assert advice.reconstruction_psnr(menagerie, fine, frames=99) == pytest.approx(whole, abs=0.01)


# After the edit


def test_the_source_itself_has_changed_nothing(fox):
    (note,) = examine(fox, (fox.frames + 0.01).clamp(0, 1))
    assert "almost the source" in note and "less injection" in note


def test_colours_may_change_and_edges_must_stay(fox):
    swapped = fox.frames[:, [2, 0, 1]]  # another colour everywhere
    assert edge_agreement(swapped, fox) > 0.9 and examine(fox, swapped) == []
    other = tfkit.menagerie.film("a striped blue cat on snow", frames=3, seed=5)
    (note,) = examine(fox, other)
    assert "lost the source's structure" in note and "more injection" in note
    assert edge_agreement(fox, fox) == pytest.approx(1)


@pytest.mark.parametrize("side", [(1, 9), (9, 1), (1, 1)])
def test_a_side_of_one_pixel_has_edges_too(side):
    frames = torch.rand(2, 3, *side)
    assert examine(frames, frames)
    assert side == (1, 1) or edge_agreement(frames, frames) == pytest.approx(1)


@pytest.mark.slow
def test_real_edits_are_judged_as_they_look(menagerie, fox):
    source = tfkit.invert(menagerie, fox, fox.caption, steps=10, **QUIET)
    judged = {}
    for name, settings in {
        "held": {"method": tfkit.PlugAndPlay(1, 1), "guidance": 1},
        "good": {"method": tfkit.PlugAndPlay(0.8, 1), "guidance": 4},
        "burnt": {"guidance": 30},
    }.items():
        prompt = "a plain blue fox on grass" if name == "held" else "a fox at night"
        session = tfkit.EditSession(menagerie, source, prompt, **settings).run(**QUIET)
        judged[name] = " ".join(advice.examine_session(session))
    assert "almost the source" in judged["held"]
    assert judged["good"] == ""
    assert "lost the source's structure" in judged["burnt"]


# Cost


@pytest.mark.parametrize(
    "way",
    [
        tfkit.TokenFlow(3), tfkit.TokenFlow(3, variant="reference"), tfkit.TokenFlow(1, window=3),
        tfkit.PerFrame(), tfkit.ExtendedAttention(), tfkit.ExtendedAttention(3),
        tfkit.FirstFrame(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [tfkit.PlugAndPlay(), tfkit.Plain()])
@pytest.mark.parametrize("guidance", [1, 7.5])
def test_the_passes_of_a_step_are_counted_right(model, way, method, guidance):
    frames = 7
    source = tfkit.invert(model, moving_latents(frames, 8, 8), "a cat", steps=2, **QUIET)
    plan = Plan("a dog", "", guidance, method, way)
    shape = (frames, 3, 8 * model.factor, 8 * model.factor)
    told = cost.cost_of(model, shape, plan, 2)
    seen = []
    with hooks.rewrite(model.unet, {"conv_in": lambda out: seen.append(len(out)) or out}):
        tfkit.EditSession(
            model, source, "a dog", guidance=guidance, method=method, propagation=way
        ).step()
    assert told.passes() == sum(seen)


@pytest.mark.parametrize(
    ("way", "flows"),
    [(tfkit.TokenFlow(3), True), (tfkit.ExtendedAttention(3), False), (tfkit.PerFrame(), False)],
)
def test_only_what_carries_tokens_leaves_the_source_out_of_a_pass(model, way, flows):
    """Joint attention to keyframes has keyframes, and the source in every pass all the same."""
    plan = Plan("a dog", "", 7.5, tfkit.PlugAndPlay(), way)
    told = cost.cost_of(model, (7, 3, 8 * model.factor, 8 * model.factor), plan, 2)
    assert told.branches == 3 and (told.passes(prepared=True) < told.passes()) == flows


def test_first_frame_attention_is_joint_in_no_pass(model):
    """It goes in batches, and keeps nothing: memory does not grow with the clip."""
    room = {"folder": True, "pictures": False, "budget": 0}
    plan, side = Plan("a dog", "", 7.5, tfkit.Plain(), tfkit.FirstFrame()), 8 * model.factor
    few, many = (cost.cost_of(model, (f, 3, side, side), plan, 1) for f in (12, 48))
    latents = 3 * (48 - 12) * few.latent
    assert many.seen == few.seen == 0
    assert many.memory(4, ROOMY, **room) - latents == pytest.approx(
        few.memory(4, ROOMY, **room), rel=0.05
    )


def test_a_controlnets_share_is_counted(menagerie):
    shape = 4, 3, 64, 64
    alone, beside = (
        cost.cost_of(menagerie, shape, Plan("a fox", "", 4, method, tfkit.PerFrame()), 2)
        for method in (tfkit.Plain(), tfkit.ControlNet(torch.rand(4, 3, 64, 64)))
    )
    assert alone.beside == 0 and alone.branch.bytes == pytest.approx(alone.unet.bytes, rel=0.01)
    net = tfkit.loading.load_controlnet("menagerie", device="cpu", dtype=torch.float32)
    assert beside.beside == sum(x.nbytes for x in net.parameters())
    assert beside.branch.bytes > alone.branch.bytes
    room = {"folder": True, "pictures": False, "budget": 0}
    assert beside.memory(2, ROOMY, **room) > alone.memory(2, ROOMY, **room) + beside.beside


def test_the_autoencoder_is_told_to_take_what_it_would(menagerie, monkeypatch):
    """It keeps within what is free; nobody need make the batch smaller for it."""
    frames, way = torch.rand(8, 3, 128, 128), tfkit.PerFrame()
    plan = Plan("a fox", "", 1, tfkit.Plain(), way)
    told = cost.cost_of(menagerie, tuple(frames.shape), plan, 2)
    room = {"folder": False, "pictures": True, "budget": 0}
    most, one = told.memory(8, ROOMY, **room), told.decode.bytes
    free = most - 2 * one
    assert told.memory(8, free, **room) < free
    assert told.memory(1, 0, **room) == told.memory(1, ROOMY, **room)  # a frame at least
    monkeypatch.setattr(advice, "available_memory", lambda device: free)
    settings = {"steps": 2, "guidance": 1, "method": plan.method, "propagation": way, "budget": 0}
    report = tfkit.preflight(menagerie, frames, "a fox", **settings)
    assert report.fits and not report.notes
    held = most - 8 * one
    monkeypatch.setattr(autoencoder, "available_memory", lambda device: free - held)
    with Live() as live:
        menagerie.decode(torch.zeros(8, 4, *menagerie.grid(128, 128)))
    assert 0.6 < live.peak / (report.memory - held) < 1.1


class Looks(tfkit.Plain):
    """A method of one's own that looks at the video, and alters its branch in an unknown way."""

    def prepare(self, model, source):
        raise AssertionError("there is no video yet")

    def during(self, now):
        return hooks.rewrite(now.model.unet, {})


def test_of_an_unknown_method_nothing_is_promised(model):
    shape = 7, 3, 8 * model.factor, 8 * model.factor
    plan = Plan("a dog", "", 7.5, Looks(), tfkit.TokenFlow(3))
    assert cost.cost_of(model, shape, plan, 2).source == 0


@pytest.mark.parametrize("way", [tfkit.TokenFlow(3), tfkit.TokenFlow(3, variant="reference")])
@pytest.mark.parametrize(
    "method", [tfkit.PlugAndPlay(), tfkit.PlugAndPlay(0, 0.5), tfkit.SDEdit(0.5), tfkit.Plain()]
)
def test_what_is_kept_of_the_source_is_told_beforehand_and_what_it_saves(model, way, method):
    frames, steps = 7, 4
    source = tfkit.invert(model, moving_latents(frames, 8, 8), "a cat", steps=steps, **QUIET)
    shape = (frames, 3, 8 * model.factor, 8 * model.factor)
    told = cost.cost_of(model, shape, Plan("a dog", "", 7.5, method, way), steps)
    session = tfkit.EditSession(model, source, "a dog", method=method, propagation=way).prepare()
    (key,) = source.cache.sizes()
    kept = [source.cache.get(key, t) for t in session.timesteps]
    size = sum(
        values.nbytes for step in kept for name, values in step.part(0).items() if name != "frames"
    )
    assert size < sum(source.cache.sizes().values()) <= told.source < size + 6000 * steps
    saved = len(kept) * told.carried * told.branch.seconds
    assert told.edit() - told.edit(prepared=True) == pytest.approx(saved)
    seen = []
    with hooks.rewrite(model.unet, {"conv_in": lambda out: seen.append(len(out)) or out}):
        session.step()
    assert told.passes(prepared=True) == sum(seen) < told.passes()


def test_a_second_edit_and_a_refined_inversion_cost_what_they_should(model):
    frames = torch.rand(7, 3, 64, 64)
    settings = {"steps": 4, "propagation": tfkit.TokenFlow(3)}
    told = tfkit.preflight(model, frames, "a dog", **settings)
    assert told.further < told.seconds[1] and told.source > 0
    assert f"kept of the source: {told.source / 2**20:,.0f} MiB" in str(told)
    cut = tfkit.preflight(model, frames, "a dog", budget=told.source - 1, **settings)
    assert f"source.cache.budget = {told.source}" in cut.notes[-1]
    none = tfkit.preflight(model, frames, "a dog", budget=0, **settings)
    assert none.source == 0 and not none.notes and none.memory == told.memory - told.source
    kept = tfkit.preflight(model, frames, "a dog", folder=True, **settings)
    assert kept.source == told.source and kept.memory < none.memory
    plan = Plan("a dog", "", 7.5, tfkit.PlugAndPlay(), tfkit.TokenFlow(3))
    cost_of_it = cost.cost_of(model, tuple(frames.shape), plan, 4)
    spent = [cost_of_it.inversion(refined) for refined in (0, 2)]
    encoding = 7 * cost_of_it.encode.seconds
    assert spent[1] - encoding == pytest.approx(3 * (spent[0] - encoding))
    source = tfkit.invert(model, frames, "a cat", steps=2, **QUIET)
    source.cache.budget = 0
    assert tfkit.preflight(model, source, "a dog").source == 0  # the trajectory's own room


def test_live_tensors_are_counted_as_they_come_and_go():
    with Live() as live:
        a = torch.ones(1000)  # 4000 bytes
        b = a.view(10, 100)  # the same memory
        c = b + 1
        del a, b
        d = torch.ones(500)
        del c
        e = torch.ones(250)
    assert live.peak == 8000 and live.now == 3000
    del d, e


def test_what_was_there_before_is_not_counted():
    """A linear layer sees its weights through a view of them."""
    layer, x = torch.nn.Linear(1000, 1000), torch.ones(1, 1000)
    with torch.no_grad(), Live() as live:
        y = layer(x)
        y.add_(1)
    assert live.peak == live.now == y.nbytes


PEAK = """
import sys, threading, time
import tfkit, torch
torch.set_num_threads(1)
name, (frames, side, batch) = sys.argv[1], map(int, sys.argv[2:])
model = tfkit.load(name, device="cpu")
clip = tfkit.Clip(torch.rand(1, 3, side, side).expand(frames, -1, -1, -1).clone())
settings = {"batch": batch, "propagation": tfkit.TokenFlow(4)}
told = tfkit.preflight(model, clip, "a dog", steps=1, **settings).memory

def held():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

before, most, over = held(), 0, False

def watch():
    global most
    while not over:
        most = max(most, held())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
source = tfkit.invert(model, clip, steps=1, batch=batch, progress=False)
tfkit.edit(model, source, "a dog", progress=False, **settings)
over = True
watcher.join()
print(told, most - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("frames", "side", "batch"), [(8, 192, 8), (8, 128, 2), (12, 64, 4), (24, 96, 2)]
)
def test_the_memory_that_is_told_is_about_what_is_taken(frames, side, batch):
    command = [sys.executable, "-c", PEAK, "menagerie", *map(str, (frames, side, batch))]
    # what is freed goes back at once: held memory is measured, and no fragmentation
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    told, taken = map(int, done.stdout.split())
    assert 0.5 < told / taken < 2.5, (told / 2**20, taken / 2**20)


def test_what_does_not_fit_is_told_with_what_would(model, fox, monkeypatch):
    frames = torch.rand(12, 3, 64, 64)
    roomy = tfkit.preflight(model, frames, "a dog", steps=4)
    assert roomy.fits and not roomy.notes and "fits" in str(roomy)
    plan = Plan("a dog", "", 7.5, tfkit.PlugAndPlay(), tfkit.TokenFlow())
    told = cost.cost_of(model, tuple(frames.shape), plan, 4)
    held = {"folder": False, "pictures": True, "budget": 0}
    free = told.memory(2, ROOMY, **held)
    assert free < told.memory(8, ROOMY, **held)
    monkeypatch.setattr(advice, "available_memory", lambda device: free)
    tight = tfkit.preflight(model, frames, "a dog", steps=4)
    assert not tight.fits and "it fits with batch=" in tight.notes[-1] and "does not" in str(tight)
    monkeypatch.setattr(advice, "available_memory", lambda device: 1000)
    assert (
        "it does not fit; take smaller frames" in tfkit.preflight(model, frames, "a dog").notes[-1]
    )
    monkeypatch.setattr(advice, "available_memory", lambda device: 0)
    assert (
        "window"
        not in tfkit.preflight(model, frames, "a dog", propagation=tfkit.ExtendedAttention()).notes[
            -1
        ]
    )
    kept = held | {"budget": told.source}
    assert told.memory(8, ROOMY, **held) + told.source == told.memory(8, ROOMY, **kept)
    assert "with budget=0" in advice._advice(told, told.memory(8, ROOMY, **held), 8, kept)
    wide, joint, true = (
        replace(plan, propagation=way)
        for way in (tfkit.TokenFlow(window=None), tfkit.ExtendedAttention(), TrueFlow(clip=fox))
    )
    many = replace(told, plan=wide, frames=480, keyframes=60)
    long = replace(told, plan=joint, frames=8192, keyframes=None)
    bare = {"folder": True, "pictures": False, "budget": 0}
    narrower = list(many.narrower())
    assert [cost.seen for cost in narrower] == [30, 15, 7, 3]
    assert not [*long.narrower(), *replace(many, plan=true).narrower()]  # these have no window
    narrow = advice._advice(many, narrower[1].memory(1, ROOMY, **bare), 8, held)
    assert narrow == "it fits with all that, and a propagation of window=15 (--window)"
    free = 2 * told.memory(1, ROOMY, **bare)
    few = advice._advice(long, free, 8, held)
    assert re.fullmatch(r"it fits with all that, and \d+ frames", few)
    count = int(few.split()[-2])
    less, more = (replace(long, frames=n).memory(1, ROOMY, **bare) for n in (count, 2 * count))
    assert less <= free < more


def test_the_memory_available_is_less_than_there_is(tmp_path, monkeypatch):
    free = available_memory(torch.device("cpu"))
    assert 0 < free < 2**63
    for name, text in {
        "max": "2000000\n", "current": "1900000\n", "stat": "anon 5\nactive_file 300000\n"
        "inactive_file 500000\n",
    }.items():  # fmt: skip
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_memory(torch.device("cpu")) == 900_000  # a container's cached files give way
    (tmp_path / "memory.current").write_text("3900000")
    assert available_memory(torch.device("cpu")) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(torch.device("cpu")) > 2_000_000


# The command line


@pytest.fixture
def movie(tmp_path, fox):
    return str(tfkit.write_video(tmp_path / "fox.mp4", fox))


def test_a_check_says_what_it_takes_and_stops(movie, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["edit", movie, "a red axolotl", "--check", "--quiet"]) == 0
    said = capsys.readouterr().out
    for words in ("3 frames of 128 x 128, 50 steps", "time: about", "memory: about", "axolotl"):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["fox.mp4"]


def test_an_edit_says_what_to_mind_before_and_after(movie, tmp_path, capsys):
    out = str(tmp_path / "out.mp4")
    blocks = F.interpolate(torch.rand(1, 3, 32, 32), (128, 128)).expand(3, -1, -1, -1)
    tfkit.write_video(movie, blocks)
    words = ["--quiet", "--steps", "3", "--guidance", "1", "--output", out]
    assert main(["edit", movie, "a red fox on snow", *words]) == 0
    said = capsys.readouterr().out
    assert "the reconstruction reaches" in said and "wrote" in said


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("video", ["my.mp4", torch.zeros(3, 64, 64), torch.zeros(2, 4, 8, 8)])
def test_what_is_no_video_is_not_counted_as_one(menagerie, video):
    with pytest.raises(ValueError, match=r"frames (is|has)"):
        tfkit.preflight(menagerie, video, "a fox")
