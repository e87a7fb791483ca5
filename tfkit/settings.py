"""What is asked of the numbers and names that are settings, anywhere."""

import math
import os
from collections.abc import Collection
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value counts something: an integer of Python's or numpy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, Python's or numpy's, and no bool."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    with suppress(OverflowError):
        return number and math.isfinite(float(value))  # type: ignore[arg-type]
    return False


def check_whole(name: str, value: object, least: int = 1) -> int:
    """The same as Python's own; raises ValueError unless it is whole and at least ``least``."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
    return int(value)


def settle(settings: object, **values: object) -> None:
    """Sets fields of a frozen dataclass to what they came to: numpy's 2 to 2, a share of 1 to 1.0.

    What is asked for in other words is the same then, when it is compared, printed or kept.
    """
    for name, value in values.items():
        object.__setattr__(settings, name, value)


def check_seed(seed: object) -> int:
    """A seed that torch takes, as Python's own; raises ValueError for others."""
    if check_whole("seed", seed, least=0) >= 2**63:
        raise ValueError(f"seed={seed!r}: expected less than 2**63")
    return int(seed)  # type: ignore[call-overload]


def check_share(name: str, value: object) -> float:
    """A share of the steps; raises ValueError unless ``value`` is a number from 0 to 1."""
    if not is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share of the steps, from 0 to 1")
    return float(value)


def check_guidance(value: object) -> float:
    """The scale of classifier-free guidance; raises ValueError unless it is a number from 0 on."""
    if not is_finite(value) or value < 0:
        raise ValueError(
            f"guidance={value!r}: expected a finite number from 0 on; 7.5 is usual, 1 is none. To "
            "lead away from words, give them as negative_prompt"
        )
    return float(value)


def check_choice(name: str, value: object, known: Collection[object]) -> None:
    """Raises ValueError unless ``value`` is among the ``known`` ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")


def check_path(name: str, value: object) -> Path:
    """A path of the file system, "~" expanded; raises ValueError for what is none, and for ""."""
    if not isinstance(value, str | os.PathLike) or value == "":
        raise ValueError(f"{name}={value!r}: expected a path")
    return Path(value).expanduser()


def check_text(name: str, value: object) -> str:
    """Raises ValueError unless ``value`` is a text, and not an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}={value!r}: expected a text")
    return value
