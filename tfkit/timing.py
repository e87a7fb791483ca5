"""Timings and their comparison: what took how long, and how often as long as what else."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

SECONDS = 1.0  # spent on each timing


@dataclass(frozen=True)
class Row:
    """One comparison: how much of what, seconds as a rule, and how often as much as what else."""

    name: str
    value: float
    ratio: float | None = None
    than: str = ""
    unit: str = "s"

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f} x {self.than}"
        return f"{self.name:<58} {self.value:8.3f} {self.unit:<4} {ratio}".rstrip()


def seconds(work: Callable[[], object], least: float = SECONDS) -> float:
    """The median time of a call, with torch's own number of threads."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=least).median
