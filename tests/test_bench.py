"""The benchmark: ratios of timings of the same run; no time is asserted."""

import sys
import time

import pytest
import torch

import tfkit
from tfkit import bench, growth, timing


def test_seconds_are_a_median():
    waits = iter([0.05] + [0.002] * 10_000)
    assert timing.seconds(lambda: time.sleep(next(waits)), least=0.1) < 0.02


def test_a_row_reads_as_a_table():
    row = timing.Row("edit", 3.0, 1.5, "a pass")
    assert str(row).split() == ["edit", "3.000", "s", "1.50", "x", "a", "pass"]
    assert str(timing.Row("a pass", 2.0)).endswith("2.000 s")


@pytest.mark.parametrize("part", [bench.features, bench.editing, bench.further])
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
    assert len({row.name for row in rows}) == len(rows) >= 3
    assert all(row.ratio == 1 for row in rows)


def test_more_passes_of_inversion_leave_more_of_the_video():
    coded, plain, refined = growth.passes(tfkit.load(), frames=1, plans=[(24, 0), (6, 3)])
    assert plain.name.startswith("24 passes") and refined.name.startswith("24 passes")
    assert plain.value < refined.value < coded.value + 0.5


def test_the_shares_of_a_step_add_up(pipeline_folder, monkeypatch):
    small = tfkit.menagerie.film("a cat", frames=4).frames[..., ::4, ::4]
    monkeypatch.setattr(growth, "film", lambda _, frames: tfkit.Clip(small[:frames]))
    rows = list(growth.shares(tfkit.load(pipeline_folder, device="cpu"), frames=4))
    assert sum(row.ratio for row in rows) == pytest.approx(1)
    assert {row.name for row in rows} == {*growth.KINDS, "the rest"}
    assert all(row.value > 0 for row in rows)


@pytest.mark.skipif(sys.platform == "win32", reason="no peak memory there")
def test_lengths_are_measured_in_processes_of_their_own(pipeline_folder, monkeypatch):
    small = tfkit.menagerie.film("a cat", frames=50).frames[..., ::4, ::4]
    monkeypatch.setattr(growth, "film", lambda _, frames: tfkit.Clip(small[:frames]))
    model = tfkit.load(pipeline_folder, device="cpu")
    rows = list(growth.lengths(model, counts=(2, 100)))
    assert [row.unit for row in rows] == ["s", "MiB"] * 2
    assert [row.ratio for row in rows] == [None, None, 1, 1]
    assert all(row.value > 0 for row in rows)
