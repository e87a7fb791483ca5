"""What a trait may be set to: a value that is none is refused, and the trait stays as it was."""

import math
from collections.abc import Collection
from typing import Any

import traitlets

from tfkit.tracks import Size


def known(proposal: traitlets.Bunch, names: Collection[Any]) -> Any:
    """The value proposed for a trait; traitlets.TraitError unless it is one of these."""
    name, value = proposal["trait"].name, proposal["value"]
    if value not in names:
        raise traitlets.TraitError(f"{name}={value!r}: expected one of {names}")
    return value


def expect(good: bool, name: str, value: Any, wanted: str) -> list:
    """The value as a list; traitlets.TraitError, which says what was wanted, unless it is good."""
    if not good:
        raise traitlets.TraitError(f"{name} is {value!r}: expected {wanted}")
    return list(value)


def are_numbers(value: object, count: int) -> bool:
    """Whether a value is a list of so many finite numbers."""
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    )


def point(name: str, value: Any, frames: int, size: Size, *, instead: str = "") -> list:
    """A point [frame, x, y] in pixels; TraitError unless in one of so many frames of size (h, w).

    instead: what else might have been given, for the error to say.
    """
    h, w = size
    good = are_numbers(value, 3) and value[0] in range(frames)
    good = good and 0 <= value[1] < w and 0 <= value[2] < h
    wanted = f"[frame, x, y], a frame from 0 to {frames - 1} and a pixel of {w} x {h}"
    frame, *place = expect(good, name, value, instead + wanted)
    return [int(frame), *place]
