"""Two sessions of one source: which settings differ, where they part, and how far apart they are.

Memory: two latents in float64 meanwhile; a comparison itself is numbers and settings.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tfkit.history import History
from tfkit.identity import key_of
from tfkit.passes import Plan
from tfkit.steps import Steps

SHOWN = 5  # distances, at the most


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :meth:`tfkit.EditSession.compare` finds; positions are those of the session asked.

    settings: {name: (mine, theirs)} where they differ, of the steps to come; "keyframes" (of every
    step), "model" and "dtype" as well. shared: how many steps are the very same, forgotten or not.
    apart: {position: RMS difference of the latents}, wherever both hold them. position: at which
    the frames are compared. psnr: (f,) of these in dB, inf where they are equal.
    """

    settings: dict[str, tuple[Any, Any]]
    shared: int
    apart: dict[int, float]
    position: int
    psnr: Float[Tensor, " f"]

    def __repr__(self) -> str:
        rows = {name: _said(name, *pair) for name, pair in self.settings.items()}
        since = [i for i in self.apart if i >= self.shared]
        some = torch.linspace(0, len(since) - 1, min(SHOWN, len(since))).round().int()
        shown = [f"{self.apart[i]:.2g} at {i}" for i in (since[j] for j in some)]
        rows["latents"] = f"RMS {', '.join(shown)}"
        (low, worst), (high, best) = self.psnr.min(0), self.psnr.max(0)
        rows["frames"] = f"PSNR {low:.1f} dB (frame {worst}) to {high:.1f} dB (frame {best})"
        if low.isinf():
            rows["frames"] = "equal"
        first = f"Comparison at position {self.position}, {self.shared} steps shared; mine | theirs"
        wide = max(map(len, rows))
        return "\n".join([first, *(f"  {name:<{wide}}  {said}" for name, said in rows.items())])


def differences(mine: Steps, theirs: Steps) -> dict[str, tuple[Any, Any]]:
    """The settings that differ: {name: (mine, theirs)}.

    Raises ValueError for one that has nothing to be told apart by: see
    :func:`tfkit.identity.describe`.
    """
    pairs = {
        x.name: (getattr(mine.plan, x.name), getattr(theirs.plan, x.name)) for x in fields(Plan)
    }
    pairs |= {"keyframes": (mine.rows, theirs.rows), "model": (mine.model, theirs.model)}
    pairs |= {"dtype": (mine.model.dtype, theirs.model.dtype)}
    return {name: pair for name, pair in pairs.items() if _differ(*pair)}


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, str | int | float):
        return bool(a != b)
    return a is not b and key_of(a) != key_of(b)


def distances(mine: History, theirs: History, ahead: int) -> dict[int, float]:
    """{position: RMS difference of the latents} where both hold them.

    ahead: how many more steps theirs has taken by the same timestep.
    """
    far = {}
    for i, a in enumerate(mine.states):
        b = theirs.states[i + ahead] if 0 <= i + ahead <= theirs.known else None
        if a is not None and b is not None:
            far[i] = (a.double() - b.to(a.device).double()).square().mean().sqrt().item()
    return far


def meeting(mine: History, theirs: History, ahead: int, position: int | None) -> int:
    """The position to compare at; None: the last at which both have been and not gone back.

    Raises ValueError where one of them has not been.
    """
    at = min(mine.position, theirs.position - ahead) if position is None else position
    least, most = max(0, -ahead), min(mine.known, theirs.known - ahead)
    if most < least:
        raise ValueError(
            f"{mine.known} and {theirs.known} steps are taken, begun {abs(ahead)} steps apart: "
            "expected sessions that have come to one timestep; step() the one that began earlier"
        )
    if not least <= at <= most:
        raise ValueError(
            f"position={at}: expected {least} to {most}, where both have been; step() takes them on"
        )
    return at


def _said(name: str, mine: Any, theirs: Any) -> str:
    """Two settings in a line; of keyframes the first that differ."""
    if name != "keyframes":
        return f"{mine!r} | {theirs!r}"
    rows = [[None if x is None else x.tolist() for x in side] for side in (mine, theirs)]
    other = [(a, b) for a, b in zip(*rows, strict=True) if a != b]
    return f"{other[0][0]} | {other[0][1]}, in {len(other)} of {len(mine)} steps"
