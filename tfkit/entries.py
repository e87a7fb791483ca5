"""What an evaluation is asked for: methods, metrics and clips, each by a name of its own.

Everything is checked here, before anything is computed. Raises ValueError for what cannot be meant.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from tfkit.editing import edit
from tfkit.inversion import invert
from tfkit.menagerie.tasks import Change, Task
from tfkit.methods import Method
from tfkit.protocols import Propagation
from tfkit.scores import METRICS
from tfkit.settings import is_finite, is_whole
from tfkit.video import Clip


def _defaults(function: Callable, *names: str) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    return {name: known[name].default for name in names}


_EDIT = _defaults(
    edit, "negative_prompt", "guidance", "method", "propagation", "keyframes", "seed", "batch",
    "folder",
)  # fmt: skip
_INVERSION = _defaults(invert, "fixed_point", "predictor", "prepare", "control", "batch")


def _settings(what: str, given: Mapping, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, those not given by their defaults; the same where they mean the same."""
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(
            f"{what}: unknown setting {', '.join(map(repr, unknown))}; "
            f"expected some of {', '.join(sorted(defaults))}"
        )
    return {name: _like(given.get(name, usual), usual) for name, usual in defaults.items()}


def _like(value: Any, usual: object) -> Any:
    """A number as Python's own, and of the same kind as the usual one: guidance 5 is 5.0."""
    if isinstance(usual, float) and is_finite(value):
        return float(value)
    return int(value) if is_whole(value) else value


def inversion_settings(given: object) -> dict[str, Any]:
    """What :func:`tfkit.invert` is given."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"inversion={given!r}: expected settings of tfkit.invert in a mapping")
    return _settings("inversion", given or {}, _INVERSION)


def named(what: str, given: object, name: str) -> dict[str, Any]:
    """A mapping of one or more, its keys as text; ``name``: how errors call a key."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{what}={given!r}: expected a mapping {{{name}: ...}} of one or more")
    found = {str(key): value for key, value in given.items()}
    if len(found) < len(given):
        raise ValueError(f"{what}: {sorted(found)} by {list(given)}; expected names that differ")
    return found


def method_settings(name: str, how: object) -> dict[str, Any] | Callable:
    """What :func:`tfkit.edit` is given, or a function in its place."""
    if isinstance(how, Mapping):
        return _settings(f"method {name!r}", how, _EDIT)
    if isinstance(how, type) or not (isinstance(how, Method | Propagation) or callable(how)):
        raise ValueError(
            f"method {name!r} is {how!r}; expected settings of tfkit.edit in a mapping, "
            "tfkit.TokenFlow(...) or another propagation or method, or a function "
            "(model, source, prompt) -> frames"
        )
    if isinstance(how, Propagation):
        return _EDIT | {"propagation": how}
    return _EDIT | {"method": how} if isinstance(how, Method) else how


def metric_names(
    metrics: Iterable[str | Callable] | Callable | None,
) -> tuple[tuple[str, ...], dict[str, Callable]]:
    """The names of tfkit's own metrics, in their order, and the user's functions by name."""
    if metrics is None:
        return tuple(METRICS), {}
    several = [metrics] if isinstance(metrics, str) or callable(metrics) else metrics
    given, metrics = metrics, list(several) if isinstance(several, Iterable) else []
    known = all(isinstance(metric, str) or callable(metric) for metric in metrics)
    if not known or not metrics:
        raise ValueError(
            f"metrics={given!r}: expected functions, or names among {', '.join(METRICS)}"
        )
    own = {getattr(m, "__name__", type(m).__name__): m for m in metrics if callable(m)}
    names = [metric for metric in metrics if not callable(metric)]
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(
            f"metrics: {unknown!r}; expected functions, or names among {', '.join(METRICS)}"
        )
    if len(own) < len(metrics) - len(names) or set(own) & set(METRICS):
        raise ValueError(
            f"metrics: functions called {', '.join(own)}; expected names that differ from each "
            "other and from tfkit's own"
        )
    return tuple(name for name in METRICS if name in names), own


def check_readers(tokens: object, structure: object, tracks: object) -> None:
    """What reads tokens, structure and tracks: functions of frames, or what names one."""
    pair = tokens if isinstance(tokens, tuple | list) and len(tokens) == 2 else (None, None)
    layer = isinstance(pair[0], str) and is_whole(pair[1])
    folder = isinstance(structure, str | Path) and str(structure) != ""
    for what, given, named, expected in (
        ("tokens", tokens, layer, "(layer, timestep) or a function (frames) -> tokens (f, n, d)"),
        ("structure", structure, folder, "a DINO's name or folder, or a function as tokens has"),
        ("tracks", tracks, False, "a function (frames) -> tracks (f, m, 2)"),
    ):
        called = callable(given) and not isinstance(given, type)
        if given is not None and not called and not named:
            raise ValueError(f"{what}={given!r}: expected {expected}")


def named_clips(clips: Iterable | Task) -> list[tuple[str, Task | Clip, tuple[Change, ...]]]:
    """(name, clip, what is asked of it), each name once."""
    several = [clips] if isinstance(clips, Task) else clips
    if not isinstance(several, Iterable):
        raise ValueError(f"clips={clips!r}: expected tasks, pairs (Clip, prompts), or a mapping")
    pairs: Iterable[tuple[Any, Any]] = (
        several.items() if isinstance(several, Mapping) else ((None, one) for one in several)
    )
    out: dict[str, tuple] = {}
    for i, (name, one) in enumerate(pairs):
        clip, changes = (one, one.changes) if isinstance(one, Task) else _pair(i, one)
        name = unique = str(clip.caption or f"clip {i + 1}" if name is None else name)
        again = count(2)
        while unique in out:
            unique = f"{name} ({next(again)})"
        out[unique] = clip, changes
    if not out:
        raise ValueError("clips is empty; expected tfkit.menagerie.benchmark() or (Clip, prompts)")
    return [(name, *rest) for name, rest in out.items()]


def _pair(i: int, given: object) -> tuple[Clip, tuple[Change, ...]]:
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], Clip):
        what = type(given).__name__
        if isinstance(given, tuple | list):
            what += f" ({', '.join(type(x).__name__ for x in given)})"
        raise ValueError(
            f"clips: number {i + 1} is a {what}; expected a task of tfkit.menagerie.benchmark() or "
            "a pair (Clip, prompt or prompts): tfkit.read_video(path) and tfkit.Clip(frames) are "
            "such clips"
        )
    clip, prompts = given
    several = [prompts] if isinstance(prompts, str | Change) else prompts
    asked, prompts = prompts, list(several) if isinstance(several, Iterable) else []
    if not prompts or not all(isinstance(one, str | Change) for one in prompts) or len(clip) < 2:
        raise ValueError(
            f"clips: number {i + 1} has {len(clip)} frames and the prompts {asked!r}; expected "
            "two frames and one text, or more"
        )
    return clip, tuple(p if isinstance(p, Change) else Change(p, "", "", "") for p in prompts)
