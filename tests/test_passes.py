"""Prepare once, edit many: what a further edit reads of its source instead of computing it."""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipelines import moving_latents

import tfkit
from tfkit import hooks
from tfkit.diffusion import NonFiniteError
from tfkit.inversion import invert
from tfkit.source_cache import PART, KeptStep, SourceCache, StepWriter

FRAMES, STEPS = 7, 4  # three keyframes at interval 3
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def latents():
    return moving_latents(FRAMES, 8, 8)


@pytest.fixture
def source(model, latents):
    return invert(model, latents, "a cat", steps=STEPS, **QUIET)


def edited(model, source, prompt="a dog", way=None, **settings):
    way = tfkit.TokenFlow(interval=3) if way is None else way
    return tfkit.edit(model, source, prompt, propagation=way, **settings, **QUIET).latents


def frames_through(model, work, module="conv_in"):
    """How many frames, of all branches, go through the UNet's module in ``work()``."""
    seen = []

    def count(out):
        seen.append(len(out))
        return out

    with hooks.rewrite(model.unet, {module: count}):
        work()
    return sum(seen)


@pytest.mark.parametrize("batch", [2, 8])
def test_a_further_edit_takes_two_passes_a_frame_and_one_a_keyframe(model, source, batch):
    keyframes = 3  # of seven frames at interval 3
    first, further = (
        frames_through(model, lambda p=p: edited(model, source, p, batch=batch))
        for p in ("a dog", "a red dog")
    )
    assert first == STEPS * 3 * FRAMES
    assert further == STEPS * (2 * FRAMES + keyframes)


def test_preparing_takes_one_pass_a_frame_and_the_first_edit_is_a_further_one(model, source):
    session = tfkit.EditSession(model, source, "a dog", propagation=tfkit.TokenFlow(interval=3))
    assert frames_through(model, session.prepare) == STEPS * FRAMES
    assert session.position == 0
    assert frames_through(model, session.prepare) == 0
    whole = frames_through(model, lambda: session.step(STEPS))
    assert whole == STEPS * (2 * FRAMES + 3)
    alone = invert(model, source.clean, "a cat", steps=STEPS, **QUIET)
    assert torch.equal(session.latents, edited(model, alone))


def test_the_sources_pass_ends_where_nothing_more_is_read(model, source):
    session = tfkit.EditSession(model, source, "a dog", propagation=tfkit.TokenFlow(interval=3))
    last = "up_blocks.3.attentions.2.transformer_blocks.0"
    layers = {f"{last}.attn1": FRAMES, f"{last}.attn2": 3, "conv_out": 3}  # the keyframes' pass
    for layer, each in layers.items():
        source.cache.clear()
        assert frames_through(model, session.prepare, layer) == STEPS * each, layer


def test_an_overflow_of_the_source_alone_is_laid_at_its_group(model, source):
    class Sick(tfkit.Plain):
        def during(self, now):
            sick = {"mid_block": lambda out: out * torch.nan} if now.branches == 1 else {}
            return hooks.rewrite(now.model.unet, sick)

    with pytest.raises(NonFiniteError, match=r"step 1 of 4: .* in the UNet's mid_block at"):
        edited(model, source, method=Sick())


@pytest.mark.parametrize("way", [tfkit.PerFrame(), tfkit.ExtendedAttention()], ids=repr)
def test_what_reads_no_source_alone_cannot_be_prepared(model, source, way):
    with pytest.raises(ValueError, match=r"nothing to prepare .*expected tfkit.TokenFlow\(\)"):
        tfkit.EditSession(model, source, "a dog", propagation=way).prepare()


WAYS = {
    "paper": tfkit.TokenFlow(interval=3),
    "reference": tfkit.TokenFlow(interval=3, variant="reference"),
    "paper on inputs": tfkit.TokenFlow(interval=3, field="input", blend="linear"),
    "reference on outputs": tfkit.TokenFlow(interval=3, variant="reference", field="output"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
def test_a_further_edit_is_the_first_bit_for_bit(model, latents, tmp_path, way, kept):
    folder = {"folder": tmp_path / "fox"} if kept == "in a folder" else {}
    source = invert(model, latents, "a cat", steps=STEPS, **folder, **QUIET)
    found, passes = [], []

    def make():
        found.append(edited(model, source, way=way))

    for _ in range(2):
        passes.append(frames_through(model, make))
        source = tfkit.open_trajectory(tmp_path / "fox") if folder else source
    assert passes[1] < passes[0]  # it did take the short way
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "change",
    [
        {"way": tfkit.TokenFlow(interval=3, field="input")},
        {"way": tfkit.TokenFlow(interval=3, variant="reference")},
        {"way": tfkit.TokenFlow(interval=3, variant="reference", blend="linear")},
        {"way": tfkit.TokenFlow(interval=2)},
        {"seed": 1},
        {"keyframes": [0, 3, 5]},
        {"method": tfkit.Plain()},
        {"method": tfkit.SDEdit(0.5)},
        {"method": tfkit.PlugAndPlay(0, 1)},
        {"guidance": 1},
        {"batch": 2},
        {"negative_prompt": "a house"},
    ],
    ids=str,
)
def test_no_edit_sees_what_another_kept_for_itself(model, latents, source, change):
    """Where the source's features differ they are computed anew; elsewhere they are the same."""
    edited(model, source)
    edited(model, source, way=tfkit.TokenFlow(interval=3, variant="reference"))
    after = edited(model, source, **change)
    alone = edited(model, invert(model, latents, "a cat", steps=STEPS, **QUIET), **change)
    torch.testing.assert_close(after, alone, rtol=0, atol=1e-9)


def test_the_same_video_under_another_prompt_is_read_anew(model, latents, source):
    edited(model, source)
    other = replace(source, prompt="a red horse")  # it shares the cache
    fresh = replace(other, cache=SourceCache())
    assert torch.equal(edited(model, other), edited(model, fresh))


def test_a_method_that_reads_more_of_the_source_adds_to_what_is_kept(model, source):
    edited(model, source, method=tfkit.Plain())
    more = frames_through(model, lambda: edited(model, source, method=tfkit.PlugAndPlay()))
    assert more == STEPS * 3 * FRAMES - FRAMES + 3  # the last step injects nothing
    assert frames_through(model, lambda: edited(model, source)) == STEPS * (2 * FRAMES + 3)


class Louder(tfkit.Plain):
    """Changes every branch, the source's too."""

    def during(self, now):
        return hooks.rewrite(now.model.unet, {"mid_block": lambda out: 2 * out})


def test_a_method_of_ones_own_that_may_touch_the_source_keeps_nothing(model, source):
    edited(model, source, method=tfkit.Plain())
    before = dict(source.cache.sizes())
    passes = frames_through(model, lambda: edited(model, source, method=Louder()))
    assert passes == STEPS * 3 * FRAMES and source.cache.sizes() == before


class Swapped(tfkit.TokenFlow):
    """Takes what the other neighbour should give."""

    def neighbors(self, frames, keyframes, total):
        near = super().neighbors(frames, keyframes, total)
        return replace(near, first=near.second, second=near.first)


def test_a_propagation_of_ones_own_reads_nothing_of_its_parents(model, latents, source):
    plain, way = edited(model, source), Swapped(interval=3)
    after = edited(model, source, way=way)
    alone = edited(model, invert(model, latents, "a cat", steps=STEPS, **QUIET), way=way)
    assert torch.equal(after, alone) and not torch.allclose(after, plain)


def test_other_weights_keep_their_own(model, source, pipeline_folder):
    edited(model, source)
    other = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.01)
    assert frames_through(other, lambda: edited(other, source)) == STEPS * 3 * FRAMES


def test_a_step_that_another_process_wrote_again_is_read_again(tmp_path):
    """Its parts are of another size then, which who has the old index must not read by it."""

    def write(batch):
        writer = StepWriter(SourceCache(tmp_path), "key", 1)
        for frames in torch.arange(2 * PART).split(batch):
            writer.add({"frames": frames, "x": frames.float()})
        assert writer.finish()

    write(8)
    kept = SourceCache(tmp_path).get("key", 1)
    assert kept.of(torch.arange(8))["x"].tolist() == list(range(8))
    write(5)
    for frames in (torch.arange(PART, PART + 8), torch.arange(2 * PART - 8, 2 * PART)):
        with pytest.raises(KeyError, match="written again"):
            kept.of(frames)
    again = SourceCache(tmp_path).get("key", 1)
    assert again.of(torch.arange(PART, PART + 8))["x"].tolist() == list(range(PART, PART + 8))


def test_two_processes_that_keep_the_same_step_keep_it(tmp_path, monkeypatch, recwarn):
    """The second one comes while the first one's file has not its name yet."""
    pytest.importorskip("fcntl")
    flush, others = os.fsync, []

    def write():
        writer = StepWriter(SourceCache(tmp_path), "key", 1)
        writer.add({"frames": torch.arange(3), "x": torch.arange(3.0)})
        return writer.finish()

    def meanwhile(file):
        flush(file)
        if not others:
            others.append(Thread(target=write))
            others[0].start()
            others[0].join(1)

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert write()
    others[0].join()
    kept = SourceCache(tmp_path).get("key", 1)
    assert kept is not None and kept.of(torch.arange(3))["x"].tolist() == [0, 1, 2]
    assert not recwarn.list and not list(tmp_path.rglob(".new-*"))


def test_a_clip_cut_from_a_trajectory_has_a_cache_of_its_own(model, source):
    edited(model, source)
    part = source.part(source.timesteps[0], torch.arange(3))
    assert part.cache is not source.cache and not part.cache.sizes()


# Room


def test_without_room_for_all_steps_it_says_so_beforehand_and_keeps_what_fits(model, source):
    expected = edited(model, source)
    whole = sum(source.cache.sizes().values())
    source.cache.clear()
    source.cache.budget = whole // 2 + 1
    with pytest.warns(UserWarning, match=r"To keep all of it: source.cache.budget = \d+") as said:
        assert torch.equal(edited(model, source), expected)
    enough = int(str(said[0].message).rsplit(" ", 1)[1])
    assert len(said) == 1 and whole <= enough <= whole * STEPS / (STEPS - 1)
    assert 0 < sum(source.cache.sizes().values()) <= source.cache.budget
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes = frames_through(model, lambda: edited(model, source))
    assert STEPS * (2 * FRAMES + 3) < passes < STEPS * 3 * FRAMES


def test_no_budget_keeps_nothing_and_says_nothing(model, source):
    source.cache.budget = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited(model, source)
    assert not source.cache.sizes()


@pytest.mark.parametrize("folder", [False, True])
def test_the_key_written_last_stays(tmp_path, folder):
    cache = SourceCache(tmp_path / "cache" if folder else None, budget=10_000)
    for name in ("a", "b", "c"):
        for t in (1, 2):
            writer = StepWriter(cache, name, t)
            writer.add({"frames": torch.arange(2), "x": torch.zeros(2, 450, dtype=torch.int16)})
            assert writer.finish()
    assert list(cache.sizes()) == ["b", "c"] and cache.get("a", 1) is None
    assert cache.get("c", 2).of(torch.tensor([1]))["x"].dtype == torch.int16
    writer = StepWriter(cache, "c", 3)
    writer.add({"frames": torch.arange(2), "x": torch.zeros(2, 5000)})
    assert not writer.finish() and cache.get("c", 3) is None and cache.get("c", 2) is not None
    assert list(cache.sizes())[-1] == "c"
    cache.clear()
    assert not cache.sizes() and cache.get("c", 2) is None


def test_sizes_are_told_while_another_process_writes(tmp_path):
    cache = SourceCache(tmp_path)
    assert cache.put("a", 1, 0, {"x": torch.zeros(8)})
    size = cache.sizes()["a"]
    (tmp_path / "a" / ".new-1").symlink_to(tmp_path / "gone")  # listed, and gone when looked at
    (tmp_path / "b").symlink_to(tmp_path / "forgotten")
    assert cache.sizes() == {"a": size}


@pytest.mark.parametrize("folder", [False, True])
@given(chunks=st.lists(st.integers(1, 40), min_size=1, max_size=12), data=st.data())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
def test_parts_give_any_frames_back(tmp_path, folder, chunks, data):
    """Whatever the chunks that were written and those that are asked for."""
    cache, random = SourceCache(tmp_path if folder else None), random_from(len(chunks))
    frames = torch.randperm(2 * sum(chunks), generator=random)[: sum(chunks)].sort().values
    values = torch.randn(len(frames), 3, generator=random)
    writer = StepWriter(cache, "a", 7)
    for some, rows in zip(frames.split(chunks), values.split(chunks), strict=True):
        writer.add({"frames": some, "x": rows})
    assert writer.finish()
    kept = cache.get("a", 7)
    assert kept.names == {"frames", "x"} and len(kept.sizes) <= -(-len(frames) // PART)
    size = data.draw(st.integers(1, len(frames)))
    for some, rows in zip(frames.split(size), values.split(size), strict=True):
        found = kept.of(some)
        assert torch.equal(found["frames"], some) and torch.equal(found["x"], rows)
    cache.drop("a", 7)
    assert cache.get("a", 7) is None and not list(tmp_path.rglob("*.safetensors"))


def random_from(seed):
    return torch.Generator().manual_seed(seed)


# Disks


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[-5] ^= 1
    else:
        data = b""
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_file_counts_as_absent_and_is_written_again(model, latents, tmp_path, how, which):
    source = invert(model, latents, "a cat", steps=STEPS, folder=tmp_path / "fox", **QUIET)
    expected = edited(model, source)
    files = sorted((tmp_path / "fox" / "cache").rglob("*.safetensors"))
    assert len(files) == 2 * STEPS  # of each step its features, and what they are
    damage(files[which], how)
    assert frames_through(model, lambda: edited(model, source)) == (
        STEPS * (2 * FRAMES + 3) + FRAMES - 3
    )
    assert torch.equal(edited(model, source), expected)
    assert frames_through(model, lambda: edited(model, source)) == STEPS * (2 * FRAMES + 3)


def test_what_another_process_forgets_on_the_way_is_computed(model, source, monkeypatch):
    """Between a step's parts, say."""
    expected, of, asked = edited(model, source), KeptStep.of, []

    def lost(self, frames):
        asked.append(frames)
        if len(asked) % 3 == 2:
            raise ValueError("t0001-0000.safetensors is lost")
        return of(self, frames)

    monkeypatch.setattr(KeptStep, "of", lost)
    torch.testing.assert_close(edited(model, source), expected, rtol=0, atol=1e-9)
    assert len(asked) > 3


def test_a_folder_that_is_read_only_by_now_costs_time_and_nothing_else(
    model, latents, tmp_path, monkeypatch
):
    source = invert(model, latents, "a cat", steps=STEPS, folder=tmp_path / "fox", **QUIET)
    expected = edited(model, source)
    for file in (tmp_path / "fox" / "cache").rglob("*.safetensors"):
        damage(file, "flipped")

    def refused(*_, **__):
        raise PermissionError(30, "Read-only file system")

    for name in ("unlink", "mkdir"):
        monkeypatch.setattr(Path, name, refused)
    monkeypatch.setattr("tfkit.source_cache.save_tensors", refused)
    assert torch.equal(edited(model, source), expected)


def test_a_full_disk_costs_time_and_nothing_else(model, latents, tmp_path, monkeypatch):
    source = invert(model, latents, "a cat", steps=STEPS, folder=tmp_path / "fox", **QUIET)
    expected = edited(model, invert(model, latents, "a cat", steps=STEPS, **QUIET))

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert torch.equal(edited(model, source), expected)
    assert not list((tmp_path / "fox" / "cache").rglob("*.*"))


def test_what_is_read_under_autocast_serves_no_other_edit(model, latents):
    model = model if model.dtype == torch.float32 else tfkit.load(model.name, device="cpu")
    source, other = (
        invert(model, latents.float(), "a cat", steps=STEPS, **QUIET) for _ in range(2)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        edited(model, source)
    assert not source.cache.sizes()
    assert torch.equal(edited(model, source), edited(model, other))


def test_other_levels_are_another_source(model, latents):
    """dataclasses.replace hands the cache on."""
    source = invert(model, latents, "a cat", steps=STEPS, **QUIET)
    edited(model, source)
    turned = replace(source, latents={t: x.flip(0) for t, x in source.latents.items()})
    alone = replace(turned, cache=SourceCache())
    assert torch.equal(edited(model, turned), edited(model, alone))
