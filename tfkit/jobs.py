"""One clip's share of an evaluation, wherever it runs: invert once, edit, measure, keep.

Memory: one model in each process (the last one used stays), the clip with its trajectory and what
measuring reads of it, one edit.
"""

import functools
import itertools
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tfkit import hooks
from tfkit.checks import check_frames
from tfkit.clip import CLIP, load_clip
from tfkit.diffusion import LatentDiffusion
from tfkit.dino import load_dino
from tfkit.editing import edit
from tfkit.identity import describe, key_of
from tfkit.inversion import invert
from tfkit.measured_source import Flow
from tfkit.menagerie.tasks import Change, Task
from tfkit.portable import TURN, Meter, Portable, once
from tfkit.readers import Reader, TokenReader, name_of
from tfkit.records import read_record, write_record
from tfkit.scores import Score
from tfkit.scoring import Scorer
from tfkit.trajectory import Trajectory
from tfkit.video import Clip

T = TypeVar("T")

BY_TOKENS = ("structure_distance", "token_consistency", "motion_fidelity")
TIMESTEP = 261  # where DIFT reads Stable Diffusion's features (Tang et al., NeurIPS 2023)
_NO_MATTER = ("batch", "prepare", "folder")  # speed, memory and what is kept, not the result
FIELDS = ("seconds", "level", "own", "scores")  # of a record, beside what it is of


@dataclass(frozen=True, eq=False)
class Job:
    """A clip and what is to be done with it; its fields as in :func:`tfkit.evaluate`."""

    number: int
    clip: Task | Clip
    changes: tuple[Change, ...]
    methods: Mapping[str, Mapping | Callable]
    metrics: tuple[str, ...]
    own: Mapping[str, Callable]
    model: Portable
    judge: str
    flow: Flow | None
    tokens: tuple[str, int] | Reader | None
    structure: str | Path | Reader | None
    tracks: Reader | None
    steps: int
    inversion: Mapping[str, Any]
    folder: Path | None
    stop: bool  # at the first error
    meter: Meter

    @property
    def level(self) -> int:
        """How much tfkit itself measures: 0 nothing, 1 what needs no tokens, 2 all."""
        return 2 if set(self.metrics) & set(BY_TOKENS) else 1 if self.metrics else 0


def run(job: Job) -> tuple[int, list[dict]]:
    """The job's number and a result for each prompt by each method, in this order.

    A result has scores {metric: value, measured_with}, the edit's seconds, and an error or "";
    failed: {metric: error} of functions that raised one.
    """
    model, judge, structure = job.model.model(), once("judge", load_clip, job.judge), job.structure
    if isinstance(structure, str | Path):
        dino = functools.partial(load_dino, device=str(model.device))
        structure = once("structure", dino, str(structure))
    with TURN:
        at_work = ClipAtWork(job, model, judge, structure)
        found = []
        for change, how in itertools.product(job.changes, job.methods.values()):
            found.append(at_work.result(change.prompt, how))
            job.meter.tick()
    return job.number, found


class NotKeptError(OSError):
    """What was measured cannot be written to the folder that is to keep it."""


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _kept(make: Callable[["ClipAtWork"], T]) -> Callable[["ClipAtWork"], T]:
    """A method that is called once at the most: what it returned, or raised, stays."""

    @functools.wraps(make)
    def kept(self: "ClipAtWork") -> T:
        if make not in self.made:
            try:
                self.made[make] = make(self), None
            except Exception as error:
                self.made[make] = None, error
        value, failure = self.made[make]
        if failure is not None:
            raise failure
        return value

    return kept


class ClipAtWork:
    """A job at work: its clip, trajectory and scorer, made when they are first needed."""

    def __init__(self, job: Job, model: LatentDiffusion, judge: CLIP, structure: Reader | None):
        self.job, self.model, self.judge, self.structure = job, model, judge, structure
        self.tokens = self._tokens() if job.level > 1 else None
        self.made: dict[Callable, tuple] = {}
        self.failed: dict[str, str] = {}  # of the edit at hand: functions that raised, their errors
        self.trace = ""  # of the last of these

    def result(self, prompt: str, how: Mapping | Callable) -> dict:
        """What :func:`run` returns of one prompt by one method; an error is part of it."""
        self.failed, self.trace = {}, ""
        try:
            record = self._record(prompt, how)
        except NotKeptError:
            raise
        except Exception as error:
            if self.job.stop:
                raise
            return {
                "error": _told(error), "scores": {}, "failed": {},
                "trace": traceback.format_exc(),
            }  # fmt: skip
        return {
            "error": "", "scores": record["scores"], "seconds": record["seconds"],
            "failed": self.failed, "trace": self.trace,
        }  # fmt: skip

    def _record(self, prompt: str, how: Mapping | Callable) -> dict:
        """From the folder, where it has all that is asked for; else made, and kept there."""
        job = self.job
        if job.folder is None:
            return self._make(prompt, how, {}, {"level": -1, "scores": {}})
        of = describe(self._origin() | {"prompt": prompt, "edit": _that_matter(how)})
        key = key_of(of)
        own = {name: key_of(metric) for name, metric in job.own.items()}
        old = read_record(job.folder, key, FIELDS) or {"level": -1, "own": {}, "scores": {}}
        if old["level"] >= job.level and old["own"].items() >= own.items():
            return old
        record = {"of": of} | self._make(prompt, how, old["own"] | own, old)
        try:
            write_record(job.folder, key, record)
        except OSError as error:
            raise NotKeptError(
                f"{str(job.folder)!r} cannot keep what was measured: {error}. Make room there, or "
                "give another folder; what is in it stays, and another call goes on from it"
            ) from error
        return record

    def _make(self, prompt: str, how: Mapping | Callable, own: dict[str, str], old: dict) -> dict:
        """Edits and measures; what was measured of the same edit before stays."""
        job, model, clip, source = self.job, self.model, self._clip(), self._trajectory()
        start = time.perf_counter()
        made: Any
        if isinstance(how, Mapping):
            made = edit(model, source, prompt, progress=False, **how)
        else:
            made = how(model, source, prompt)
        seconds = time.perf_counter() - start
        frames = check_frames(getattr(made, "frames", made)).to(clip.frames.device)
        if len(frames) != len(clip):
            raise ValueError(f"{len(frames)} frames came back; expected {len(clip)}, the clip's")
        scores = dict(old["scores"])
        if job.level > max(0, old["level"]):
            found = self._scorer()(frames, prompt)
            scores |= {name: _plain(value) for name, value in found.items()}
        for name, metric in job.own.items():
            called = getattr(metric, "__qualname__", type(metric).__qualname__)
            try:
                found = _plain(metric(frames.clone(), clip, prompt), f"function: {called}")
                if math.isnan(found["value"]):
                    raise ValueError(f"metric {name!r} returned NaN; expected a number")
                scores[name] = found
            except Exception as error:
                if job.stop:
                    raise
                self.failed[name], self.trace = _told(error), traceback.format_exc()
                scores.pop(name, None)
        own = {name: key for name, key in own.items() if name not in self.failed}
        level = max(job.level, old["level"])
        return {"seconds": seconds, "level": level, "own": own, "scores": scores}

    @_kept
    def _origin(self) -> dict:
        """All that determines the edits of this clip and their scores, but prompt and method."""
        from tfkit import __version__  # which stands below this module

        job, model = self.job, self.model
        return {
            "tfkit": __version__, "model": [model.name, model.fingerprint(), str(model.dtype)],
            "judge": [job.judge, self.judge], "flow": job.flow,
            "readers": [[name_of(x), x] for x in (job.tokens, self.structure, job.tracks)],
            "steps": job.steps, "inversion": _that_matter(job.inversion),
            "clip": [self._clip().caption, key_of(self._clip())],
        }  # fmt: skip

    @_kept
    def _clip(self) -> Clip:
        clip = self.job.clip
        return clip.film() if isinstance(clip, Task) else clip

    @_kept
    def _trajectory(self) -> Trajectory:
        job, clip = self.job, self._clip()
        return invert(
            self.model, clip, clip.caption, steps=job.steps, progress=False, **job.inversion
        )

    @_kept
    def _scorer(self) -> Scorer:
        job = self.job
        scorer = functools.partial(Scorer, self._clip(), clip=self.judge, flow=job.flow)
        if job.level < 2:
            return scorer()
        return scorer(tokens=self.tokens, structure=self.structure, tracks=job.tracks)

    def _tokens(self) -> Reader:
        """Reads frames' tokens as asked, by default in the middle of the decoder."""
        given = self.job.tokens
        if callable(given):
            return given
        if given is None:
            layers = [n for n in hooks.self_attention(self.model.unet) if n.startswith("up_blocks")]
            given = layers[len(layers) // 2], TIMESTEP
        return TokenReader(self.model, *given)


def _that_matter(settings: Mapping | Callable) -> Mapping | Callable:
    """Settings but for those that change speed and memory, and not the result."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: value for name, value in settings.items() if name not in _NO_MATTER}


def _plain(value: Score | float | int | Tensor, how: str = "") -> dict:
    how = value.measured_with if isinstance(value, Score) else how
    return {"value": float(value), "measured_with": how}
