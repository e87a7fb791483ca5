"""A blind two-alternative forced choice: its plan, its answers on disk, and what they say.

No pixels here: `widgets.study` shows the videos, and another front end could. Answers are lines of
JSON, appended and flushed to the disk one by one, so that a crash loses none.
"""

import json
import os
import random
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tfkit.files import SUM, checksum_of
from tfkit.settings import is_finite, is_whole

FORMAT = "tfkit preferences 1"
SIDES = ("left", "right")


@dataclass(frozen=True)
class Question:
    """What two videos are compared: the prompt, the methods' names, a digest of the pixels."""

    prompt: str
    methods: tuple[str, str]
    videos: str


@dataclass(frozen=True)
class Trial:
    """One showing of a question: which method is on which side; a repeat checks the rater."""

    question: int
    left: str
    right: str
    repeat: bool = False


@dataclass(frozen=True)
class Answer:
    """One line of the file. time: ISO 8601, UTC; seconds: from the first picture to the choice."""

    time: str
    rater: str
    question: int
    left: str
    right: str
    choice: str
    seconds: float | int | None = None
    repeat: bool = False

    @property
    def preferred(self) -> str:
        """The name of the method that was chosen."""
        return self.left if self.choice == "left" else self.right

    @property
    def key(self) -> tuple[str, int, bool]:
        """A rater answers a question once, and its repeat once."""
        return self.rater, self.question, self.repeat


def plan(
    questions: Sequence[Question], *, seed: int = 0, rater: str = "", repeats: int = 0
) -> list[Trial]:
    """The trials of one rater: shuffled, and each method of a pair on the left half of the time.

    ``repeats`` of the questions come a second time at the end with their sides swapped. Other
    raters get another order, by their names. Raises ValueError for more repeats than questions.
    """
    if not is_whole(repeats) or not 0 <= repeats <= len(questions):
        raise ValueError(
            f"repeats={repeats!r}: expected 0 to {len(questions)}, as many as there are questions"
        )
    rng = random.Random(f"{seed}/{rater}")  # a text's seed is the same in every process
    order = rng.sample(range(len(questions)), len(questions))
    alike: dict[frozenset, list[int]] = {}  # the questions of each pair of methods
    for i in order:
        alike.setdefault(frozenset(questions[i].methods), []).append(i)
    turn, lefts = cycle((0, 1)), dict[int, str]()  # goes on: all together are balanced as well
    for some in alike.values():
        sides = list(islice(turn, len(some)))
        rng.shuffle(sides)
        methods = questions[some[0]].methods
        lefts |= {i: methods[side] for i, side in zip(some, sides, strict=True)}
    trials = []
    for i in order:
        first, second = questions[i].methods
        trials.append(Trial(i, first, second) if lefts[i] == first else Trial(i, second, first))
    again = rng.sample(trials[:-1] if repeats < len(trials) else trials, repeats)
    if again[:1] == trials[-1:]:  # not twice in a row
        again = again[1:] + again[:1]
    return trials + [Trial(t.question, t.right, t.left, True) for t in again]


# --- The file -----------------------------------------------------------------------------------


def begin(path: str | os.PathLike, asked: str, questions: Sequence[Question]) -> list[Answer]:
    """Begin a file of answers, or read the one that is there: its answers so far.

    What a crash tore off is left out, with a warning; nothing that is there is ever changed. Raises
    ValueError for a file that is no study's or another study's, naming what differs.
    """
    path = Path(path).expanduser()
    first = (json.dumps(_header(asked, questions), ensure_ascii=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # another rater may begin it as well, just now
        _write(path, first, os.O_CREAT | os.O_EXCL)
        _flush_folder(path.parent)
        return []
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; expected a file for the answers")
    held = path.read_bytes()
    if first.startswith(held):  # empty, or torn within its very first line
        _write(path, first[len(held) :])
        return []
    return _answers(path, held, asked, questions)


def read(path: str | os.PathLike, asked: str, questions: Sequence[Question]) -> list[Answer]:
    """The answers of a file that was begun. Raises FileNotFoundError where it is gone since."""
    path = Path(path).expanduser()
    try:
        held = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_gone(path)}. {_BACK}") from error
    return _answers(path, held, asked, questions)


def _answers(path: Path, held: bytes, asked: str, questions: Sequence[Question]) -> list[Answer]:
    """What a file holds, checked; warns, in the name of its caller's caller, of torn lines."""
    lines = [(n, _parsed(line)) for n, line in enumerate(held.split(b"\n"), 1) if line.strip()]
    _check_header(path, lines[0][1] if lines else None, _header(asked, questions))
    answers: dict[tuple, Answer] = {}
    for n, record in lines[1:]:
        if record == lines[0][1]:  # two raters began the file at once
            continue
        answer = _answer(record, questions)
        if answer is None:
            warnings.warn(
                f"{str(path)!r}, line {n} is no whole answer (torn or damaged?): left out",
                stacklevel=4,
            )
        else:
            answers.setdefault(answer.key, answer)
    return list(answers.values())


def append(path: str | os.PathLike, answer: Answer) -> None:
    """Append an answer; on the disk when this returns. OSError where it cannot be written."""
    path = Path(path).expanduser()
    says = asdict(answer)
    line = json.dumps(says | {SUM: checksum_of(says)}, ensure_ascii=False) + "\n"
    try:
        _write(path, line.encode(), own_line=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{_gone(path)}: this answer is not saved. {_BACK}") from error


def _write(path: Path, data: bytes, flags: int = 0, *, own_line: bool = False) -> None:
    """Append bytes, onto the disk; on a line of their own where the last one is torn."""
    flags |= os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0)
    with open(path, "ab+", opener=lambda name, _: os.open(name, flags, 0o644)) as file:
        if own_line and file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """So that the new file's name survives a power cut, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


_BACK = "Put the file back, or make the study anew"


def _gone(path: Path) -> str:
    return f"{str(path)!r} is gone since the study began"


def _header(asked: str, questions: Sequence[Question]) -> dict:
    """The first line of a study's file, as JSON gives it back."""
    says = {"study": FORMAT, "question": asked, "pairs": [asdict(q) for q in questions]}
    return json.loads(json.dumps(says))


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _check_header(path: Path, header: object, mine: dict) -> None:
    if not isinstance(header, dict) or header.get("study") != FORMAT:
        raise ValueError(
            f"{str(path)!r} does not begin as a file of answers ({FORMAT!r}); expected a new path "
            "or a file that PreferenceStudy has begun. It was left as it is"
        )
    theirs, pairs, asked = header.get("pairs"), mine["pairs"], header.get("question")
    differs = None
    if asked != mine["question"]:
        differs = f"it asks {asked!r}, this study {mine['question']!r}"
    elif not isinstance(theirs, list) or not all(isinstance(pair, dict) for pair in theirs):
        differs = "it has no pairs"
    elif len(theirs) != len(pairs):
        differs = f"it has {len(theirs)} pairs, this study {len(pairs)}"
    else:
        for i, (a, b) in enumerate(zip(theirs, pairs, strict=True)):
            for name in [name for name in b if a.get(name) != b[name]][:1]:
                what = "" if name == "videos" else f": {a.get(name)!r}, here {b[name]!r}"
                differs = differs or f"pair {i} has other {name}{what}"
    if differs:
        raise ValueError(
            f"{str(path)!r} holds the answers of another study: {differs}. Give another file="
        )


def _answer(record: Any, questions: Sequence[Question]) -> Answer | None:
    try:
        if record.pop(SUM, None) not in (None, checksum_of(record)):
            return None
        answer = Answer(**record)
        if answer.seconds is not None and not is_finite(answer.seconds):
            answer = replace(answer, seconds=None)
        fits = 0 <= answer.question < len(questions) and answer.choice in SIDES
        fits = fits and {answer.left, answer.right} == set(questions[answer.question].methods)
    except (TypeError, AttributeError):  # no answer, or nothing that has fields
        return None
    return answer if fits else None
