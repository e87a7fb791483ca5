"""Steps of several sessions at once, counted in passes of the UNet as these are run.

Memory: nothing of its own; passes are counted beforehand without running any.
"""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from tfkit import hooks
from tfkit.attention import Branches
from tfkit.session import EditSession
from tfkit.widgets.stops import ahead


def step_each(sessions: Sequence[EditSession], report: Callable[[list[int]], object]) -> None:
    """One step of each; report: is told [passes done, passes expected]."""
    expected, done = sum(passes(s) for s in sessions if is_new(s)), count(1)

    def tick(out: Tensor) -> Tensor:
        report([next(done), expected])
        return out

    report([0, expected])
    for session in sessions:
        unet = session.model.unet
        last = list(hooks.self_attention(unet))[-1]  # no pass ends before it
        with hooks.rewrite(unet, {last: tick}):
            session.step()


def is_new(session: EditSession) -> bool:
    """Whether the next step is there and must be computed."""
    return session.position == session.known < len(session.timesteps)


def passes(session: EditSession) -> int:
    """UNet passes of the next step: its propagation orders them, and no UNet runs."""
    plan = session.plan
    run, branches = _Counted(session.passes().known is not None), len(plan.branches)
    attention = plan.propagation.attention(branches, plan.reads_source)
    row = ahead(session)[session.position]
    plan.propagation.predict(run, attention, len(session.source), row, session.batch)
    return run.count


class _Counted:
    """Passes that are only counted."""

    def __init__(self, known: bool):
        self.known, self.count = known, 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.count += 1
        return torch.zeros(len(frames), 1, 1, 1)

    def in_turn(self, frames: Tensor, attention: Branches) -> Tensor:
        self.count += attention.branches - 1
        return self(frames)

    def edited(self, frames: Tensor, features: object) -> Tensor:
        return self(frames)

    def read_source(self, frames: Tensor, attention: object) -> dict[str, Tensor]:
        self.count += not self.known
        return {}
