"""A blind forced choice in a notebook: which of two edits of a source is the better one.

The protocol is that of the paper's user study (TokenFlow): the source, two edits of it, no
names, one choice. Nothing that reaches the page says which method is on which side. Every answer is
on the disk (`choices`) before the next question is shown.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from torch import Tensor
from tqdm.auto import tqdm

from tfkit import choices
from tfkit.choices import SIDES, Answer, Question, Trial
from tfkit.codec import DEFAULT_FPS
from tfkit.plots import Sheet
from tfkit.preferences import Preferences, summarize
from tfkit.settings import check_path, check_seed, check_text, is_finite
from tfkit.video import Clip, rate_of, to_uint8
from tfkit.widgets import films, page
from tfkit.widgets.twin import Twin

ASKED = "Which video is more consistent over time, and keeps the motion of the source better?"


class PreferenceStudy(Twin, anywidget.AnyWidget):
    """Asks one rater, pair by pair, left or right; by mouse, by keys, or by `answer`.

    pairs: (source, {"TokenFlow": edit, "per frame": other}, prompt) each, or a mapping with the
    keys "source", "edits" and "prompt"; the prompt may be missing, a third edit makes three
    pairs of it. Videos are Clips, Edits or frames (f, 3, h, w). file: where answers are appended;
    None names one after the study's contents, in this folder. A study made anew on its file goes on
    where this rater stopped; several raters may share a file. seed: of order and sides, which
    differ from rater to rater. repeats: how many pairs come again at the end, sides swapped, to see
    whether a rater agrees with himself. budget: megabytes that one pair may take on the page.
    progress: a bar while the videos are packed.

    Traits, for the page to show: ``trial``, ``total``, ``prompt``, ``problem``. Raises ValueError
    for pairs that do not fit, and for a file that is another study's.
    """

    _esm = page.source("page.js", "film.js", "study.js")
    _css = page.source("study.css")
    trial = traitlets.Int(0, read_only=True).tag(sync=True)
    total = traitlets.Int(0, read_only=True).tag(sync=True)
    question = traitlets.Unicode(read_only=True).tag(sync=True)
    prompt = traitlets.Unicode(read_only=True).tag(sync=True)
    problem = traitlets.Unicode(read_only=True).tag(sync=True)
    _data = traitlets.Dict(read_only=True).tag(sync=True)

    def __init__(
        self,
        pairs: Iterable,
        *,
        file: str | Path | None = None,
        rater: str = "rater 1",
        question: str = ASKED,
        seed: int = 0,
        repeats: int = 0,
        budget: float | int = 4,
        fps: float | int | None = None,
        progress: bool = True,
    ):
        seed = check_seed(seed)
        self.rater, self._fps = check_text("rater", rater), fps
        check_text("question", question)
        self._questions, self._pairs = _read(pairs)
        if fps is not None:
            rate_of(None, fps)
        trials = choices.plan(self._questions, seed=seed, rater=rater, repeats=repeats)
        whole = hashlib.sha256(repr((question, self._questions)).encode()).hexdigest()
        file = f"preferences-{whole[:8]}.jsonl" if file is None else file
        self.file = check_path("file", file).absolute()  # wherever the kernel goes from here
        bar = tqdm(self._pairs, desc="pairs", leave=False, disable=not progress)
        # all of it first, so that nobody waits between two questions; a pair's videos all alike
        packed = [films.pack(pair.videos, budget * 1e6) for pair in bar]
        self._answers = choices.begin(self.file, question, self._questions)
        mine = {answer.key for answer in self._answers}
        self._left = [t for t in trials if (rater, t.question, t.repeat) not in mine]
        self._packed = packed
        super().__init__()
        self.set_trait("question", question)
        self.set_trait("total", len(trials))
        self._show()
        self.on_msg(self._heard)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All raters' answers so far, as far as this study has read and written them."""
        return tuple(self._answers)

    def answer(self, choice: str, seconds: float | int | None = None) -> None:
        """Record "left" or "right" for the pair that is shown, and go on to the next.

        seconds: from the first picture to the choice, where that is known. It is on the disk when
        this returns. Raises ValueError for another word, for seconds that are none and where all
        questions are answered, OSError where the file cannot be written: then nothing has changed.
        """
        if choice not in SIDES:
            raise ValueError(f"choice={choice!r}: expected 'left' or 'right'")
        if seconds is not None and (not is_finite(seconds) or seconds < 0):
            raise ValueError(f"seconds={seconds!r}: expected a number, 0 or more, or None")
        if not self._left:
            raise ValueError(f"all {self.total} questions are answered; see .result()")
        trial, now = self._left[0], datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        given = Answer(
            now, self.rater, trial.question, trial.left, trial.right, choice, seconds, trial.repeat
        )
        choices.append(self.file, given)
        self._answers.append(given)
        self._left.pop(0)
        self._show()

    def result(self, *, level: float = 0.95, interval: str = "wilson") -> Preferences:
        """Who is preferred, of all answers in the file: see `tfkit.preferences.summarize`.

        Raises FileNotFoundError where the file is gone.
        """
        read = choices.read(self.file, self.question, self._questions)  # others may have answered
        return summarize(read, self._questions, self.question, level=level, interval=interval)

    def figure(self) -> Sheet:
        """The pair that is shown, without names: the first frames of source, left and right."""
        if not self._left:
            figure = Sheet((6, 0.6), dpi=100)
            figure.text(0.5, 0.4, f"All {self.total} questions are answered.", ha="center")
            return figure
        trial = self._left[0]
        videos = [self._pairs[trial.question].videos[i] for i in self._order(trial)]
        h, w = videos[0].shape[-2:]
        figure = Sheet((9, 3 * h / w + 0.6), dpi=100, layout="constrained")
        figure.suptitle(self.question, fontsize=10)
        for k, (name, frames) in enumerate(zip(("source", *SIDES), videos, strict=True)):
            axes = figure.add_subplot(1, 3, k + 1)
            axes.imshow(frames[0].clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set_title(name, fontsize=9)
            axes.set_axis_off()
        return figure

    def _order(self, trial: Trial) -> tuple[int, int, int]:
        """Where source, left and right are among a pair's videos."""
        methods = self._questions[trial.question].methods
        return 0, 1 + methods.index(trial.left), 1 + methods.index(trial.right)

    def _show(self) -> None:
        """The first open trial to the page, in one message, sides only."""
        with self.hold_sync():
            self.set_trait("problem", "")
            self.set_trait("trial", self.total - len(self._left))
            if not self._left:
                self.set_trait("prompt", "")
                self.set_trait("_data", {})
                return
            trial = self._left[0]
            packed, fps = self._packed[trial.question], self._fps
            shown = [packed.files[i] for i in self._order(trial)]
            fps = fps or self._pairs[trial.question].fps
            self.set_trait("prompt", self._questions[trial.question].prompt)
            self.set_trait("_data", {"films": shown, "size": packed.size, "fps": fps})

    def _heard(self, _: object, content: dict[str, Any], buffers: object) -> None:
        """A word from the page: is anyone there, or an answer; one sent twice counts once."""
        if content.get("ping"):
            self.send({"pong": True})
            return
        if content.get("trial") != self.trial or not self._left:
            return
        self.set_trait("problem", "")  # so that the same one again is told again
        try:
            self.answer(content.get("choice", ""), content.get("seconds"))
        except (OSError, ValueError) as error:
            # the system's own words, for the file's name might name a method
            words = getattr(error, "strerror", None) or type(error).__name__
            self.set_trait("problem", f"{words} (attempt {content.get('sent')})")

    def __repr__(self) -> str:
        return f"PreferenceStudy({self.rater!r}: {self.trial} of {self.total} questions answered)"


@dataclass(frozen=True)
class _Pair:
    """What a question shows: the videos of the source and its two methods."""

    videos: tuple[Tensor, Tensor, Tensor]
    fps: float | int


def _read(pairs: Iterable) -> tuple[list[Question], list[_Pair]]:
    """The questions, and the videos of each."""
    questions, shown = [], []
    for i, pair in enumerate(pairs):
        source, edits, prompt = _parts(pair, i)
        fps = source.fps if isinstance(source, Clip) else DEFAULT_FPS
        named = {f"edit {k!r} of pair {i}": v for k, v in edits.items()}
        first, *others = films.alike({f"source of pair {i}": source} | named).items()
        clips = dict(zip(edits, others, strict=True))
        for two in combinations(edits, 2):
            videos = (first, *(clips[name] for name in two))
            key = "-".join(_digest(*video) for video in videos)
            questions.append(Question(prompt, two, key))
            shown.append(_Pair(tuple(frames for _, frames in videos), fps))
    if not questions:
        raise ValueError("no pairs; expected at least one (source, {name: edit, name: edit})")
    return questions, shown


def _digest(name: str, frames: Tensor) -> str:
    """Of what the eyes get, whatever dtype it comes in."""
    digest = hashlib.sha256()
    for pixels in to_uint8(frames, name):
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]


def _parts(pair: object, i: int) -> tuple[object, Mapping, str]:
    """Source, edits by name and prompt of one pair; ValueError for anything else."""
    if isinstance(pair, Mapping):
        strange = set(pair) - {"source", "edits", "prompt"}
        parts = [] if strange else [pair.get("source"), pair.get("edits"), pair.get("prompt", "")]
    else:
        parts = list(pair) if isinstance(pair, (tuple, list)) else []
        parts += [""] if len(parts) == 2 else []
    good = len(parts) == 3 and isinstance(parts[1], Mapping) and len(parts[1]) > 1
    if not good or not all(isinstance(name, str) and name for name in (*parts[1], parts[2] or "-")):
        inside = f" of {list(pair)}" if isinstance(pair, Mapping) else ""
        raise ValueError(
            f"pair {i} is a {type(pair).__name__}{inside}; expected "
            "(source, {'one': edit, 'other': edit}, 'prompt') or a mapping with the "
            "keys source, edits and prompt"
        )
    return tuple(parts)
