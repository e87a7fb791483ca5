"""The benchmark: ratios of timings of the same run; no time is asserted."""

import sys
import time
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel

import tfkit
from tfkit import bench, full_size, growth, metrics, timing


def test_seconds_are_a_median():
    waits = iter([0.05] + [0.002] * 10_000)
    assert timing.seconds(lambda: time.sleep(next(waits)), least=0.1) < 0.02


def test_a_row_reads_as_a_table():
    row = timing.Row("edit", 3.0, 1.5, "a pass")
    assert str(row).split() == ["edit", "3.000", "s", "1.50", "x", "a", "pass"]
    assert str(timing.Row("a pass", 2.0)).endswith("2.000 s")


@pytest.mark.parametrize(
    "part", [bench.features, bench.editing, bench.further, partial(bench.whole, steps=2)]
)
def test_every_comparison_runs_and_is_relative_to_one_before(pipeline_folder, monkeypatch, part):
    model = tfkit.load(pipeline_folder, device="cpu")
    monkeypatch.setattr(bench, "seconds", lambda work: (work(), 2.0)[1])  # runs each once
    small = tfkit.menagerie.film("a cat", frames=8)
    monkeypatch.setattr(
        bench,
        "film",
        lambda caption, frames: tfkit.Clip(small.frames[:frames, :, ::4, ::4], caption=caption),
    )
    monkeypatch.setattr(bench, "nearest_neighbors", lambda query, keys: torch.zeros(()))
    rows = list(part(model))
    assert len({row.name for row in rows}) == len(rows) >= 4
    assert rows[0].ratio is None and all(row.ratio for row in rows if row.than)


@pytest.mark.parametrize("part", [growth.keyframes, growth.resolution])
def test_growth_is_relative_to_plain_passes(pipeline_folder, monkeypatch, part):
    model = tfkit.load(pipeline_folder, device="cpu")
    monkeypatch.setattr(growth, "seconds", lambda work: (work(), 2.0)[1])
    monkeypatch.setattr(growth, "resize", lambda clip, side: clip.frames[..., : side // 2, :side])
    small = tfkit.menagerie.film("a cat", frames=16).frames[..., ::4, ::4]
    monkeypatch.setattr(growth, "film", lambda _, frames: tfkit.Clip(small[:frames]))
    rows = list(part(model))
    times, peaks = rows[::2], rows[1::2]
    assert len({row.name for row in times}) == len(times) == len(peaks) >= 3
    assert all(row.ratio == 1 and row.unit == "s" for row in times)
    assert all(row.ratio > 1 and row.unit == "MiB" for row in peaks)
    assert [row.value for row in peaks] == sorted(row.value for row in peaks)


def test_more_passes_of_inversion_leave_more_of_the_video():
    plans = [(24, 0, "next"), (6, 3, "next"), (24, 0, "extrapolated")]
    coded, plain, refined, ahead = growth.passes(tfkit.load(), frames=1, plans=plans)
    assert all(row.name.startswith("24 passes") for row in (plain, refined, ahead))
    assert plain.value < refined.value < coded.value + 0.5
    assert plain.value < ahead.value < coded.value + 0.5


def test_the_shares_of_a_step_add_up(pipeline_folder, monkeypatch, capfd):
    small = tfkit.menagerie.film("a cat", frames=4).frames[..., ::4, ::4]
    monkeypatch.setattr(growth, "film", lambda _, frames: tfkit.Clip(small[:frames]))
    rows = list(growth.shares(tfkit.load(pipeline_folder, device="cpu"), frames=4))
    assert sum(row.ratio for row in rows) == pytest.approx(1)
    assert {row.name for row in rows} == {*growth.KINDS, "the rest"}
    assert all(row.value > 0 for row in rows)
    assert "profiler" not in capfd.readouterr().err  # the table alone is shown


def test_where_blocks_meet_is_told_from_elsewhere(pipeline_folder, monkeypatch):
    clip = tfkit.menagerie.film("a cat", frames=16)
    flow, visible = metrics.resize_flow(clip.flow, clip.visible, (32, 32))
    small = tfkit.Clip(clip.frames[..., ::4, ::4], flow=flow, visible=visible)
    monkeypatch.setattr(growth, "film", lambda *_, frames: small)
    model = tfkit.load(pipeline_folder, device="cpu")
    some, every = growth.meeting(model, frames=16, steps=1, window=3)
    assert "3 keyframes seen" in some.name and "all keyframes seen" in every.name
    assert some.ratio > 0 and some.value != every.value


@pytest.mark.skipif(sys.platform == "win32", reason="no peak memory there")
def test_lengths_are_measured_in_processes_of_their_own(pipeline_folder, monkeypatch):
    small = tfkit.menagerie.film("a cat", frames=50).frames[..., ::4, ::4]
    monkeypatch.setattr(growth, "film", lambda _, frames: tfkit.Clip(small[:frames]))
    model = tfkit.load(pipeline_folder, device="cpu")
    rows = list(growth.lengths(model, few=2, some=3, many=100))
    assert [row.name.split()[0] for row in rows] == ["2", "2", "3", "3", "100", "100"]
    assert [row.unit for row in rows] == ["s", "MiB"] * 3
    assert [row.ratio for row in rows[:4]] == [None, None, 1, 1]
    assert all(row.value > 0 for row in rows)
    for long, short in ((rows[4], rows[2]), (rows[5], rows[3])):
        assert long.ratio == pytest.approx(long.value / short.value)


@pytest.mark.parametrize("shape, weights", [("SD15", 859_520_964), ("SDXL", 2_567_463_684)])
def test_the_full_shapes_are_the_published_ones(shape, weights):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**getattr(full_size, shape).unet)
    assert sum(p.numel() for p in unet.parameters()) == weights


SMALL = {
    "SD15": {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 64},
    "SDXL": {
        "block_out_channels": (32, 32, 32), "cross_attention_dim": 128,
        "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 2, 2),
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64 + 6 * 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_edits_at_full_size_are_timed_from_video_to_video(name):
    whole = getattr(full_size, name)
    text = (64,) * len(whole.text)
    shape = full_size.Shape("small", dict(whole.unet) | SMALL[name], (32, 32, 32, 32), text)
    few = {"frames": 3, "side": 128, "steps": 2, "batch": 2}
    cpu = torch.device("cpu")
    rows = list(full_size.video_to_video(shape, cpu, torch.float32, **few))
    kinds = [row.name.partition(": ")[2] for row in rows]
    assert kinds == ["plain passes", "inversion", "first edit, decoded", "a further edit, decoded"]
    assert rows[0].ratio is None and all(row.ratio > 0 for row in rows[1:])
    assert all(row.name.startswith("small, 3 frames of 128, 2 steps") for row in rows)


def test_without_a_gpu_there_are_no_such_rows(pipeline_folder):
    assert not list(full_size.on_gpu(tfkit.load(pipeline_folder, device="cpu")))
