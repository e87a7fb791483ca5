"""The benchmark: ratios of timings of the same run; no time is asserted."""

import time

import pytest
import torch

import tfkit
from tfkit import bench


def test_seconds_are_a_median():
    waits = iter([0.05] + [0.002] * 10_000)
    assert bench.seconds(lambda: time.sleep(next(waits)), least=0.1) < 0.02


def test_a_row_reads_as_a_table():
    row = bench.Row("edit", 3.0, 1.5, "a pass")
    assert str(row).split() == ["edit", "3.000", "s", "1.50", "x", "a", "pass"]
    assert str(bench.Row("a pass", 2.0)).endswith("2.000 s")


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
