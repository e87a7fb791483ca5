"""Methods by clips by metrics: edits in bulk, as a table that survives a kill.

Each clip is inverted once for all its prompts and methods, and only where one of its edits is
missing. A clip is one job of joblib's, so `joblib.parallel_config` says where the jobs run: here,
in processes, on a Dask cluster; :mod:`tfkit.jobs` is what happens there.
Memory: in each process one model, the last one used, one clip with its trajectory, and one edit.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from tfkit.diffusion import LatentDiffusion
from tfkit.entries import (
    check_readers,
    inversion_settings,
    method_settings,
    metric_names,
    named,
    named_clips,
)
from tfkit.intervals import Interval, bootstrap
from tfkit.jobs import Job, run
from tfkit.loading import MENAGERIE
from tfkit.measured_source import FLOWS
from tfkit.menagerie.tasks import Task
from tfkit.portable import Meter, Portable, findable
from tfkit.records import open_folder
from tfkit.scores import Score, ScoreTable, one_way, over_clips, settings_of
from tfkit.settings import check_choice, check_whole

if TYPE_CHECKING:
    import pandas

COLUMNS = [
    "method", "clip", "prompt", "change", "metric", "value", "measured_with", "seconds", "error",
]  # fmt: skip


def evaluate(
    methods: Mapping[str, Any],
    clips: Iterable | Task,
    metrics: Iterable[str | Callable] | Callable | None = None,
    *,
    model: LatentDiffusion | str | Path | Callable[[], LatentDiffusion] = MENAGERIE,
    steps: int = 50,
    folder: str | Path | None = None,
    judge: str | Path = MENAGERIE,
    flow: Literal["exact", "dis", "raft"] | None = None,
    tokens: tuple[str, int] | Callable | None = None,
    structure: str | Path | Callable | None = None,
    tracks: Callable | None = None,
    inversion: Mapping[str, Any] | None = None,
    errors: Literal["warn", "raise"] = "warn",
    n_jobs: int | None = None,
    progress: bool = True,
) -> "pandas.DataFrame":
    """Edits every clip to each of its prompts by every method, and measures the edits.

    >>> table = tfkit.evaluate(
    ...     {
    ...         "per frame": tfkit.PerFrame(),
    ...         "TokenFlow": dict(propagation=tfkit.TokenFlow(interval=4), guidance=5.0),
    ...         "mine": lambda model, source, prompt: ...,  # frames (f, 3, h, w) in [0, 1]
    ...     },
    ...     [*tfkit.menagerie.benchmark(frames=16)[:8], (tfkit.read_video("wolf.mp4"), "a fox")],
    ...     ["warp_error", "text_alignment", "success"],
    ...     steps=20, folder="runs/first", n_jobs=2,
    ... )
    >>> tfkit.evaluation.summary(table[table.change != ""])  # means with intervals

    methods: by name, what is given to :func:`tfkit.edit` (a mapping; a propagation or method alone
    will do) or a function (model, source, prompt) of your own, source a Trajectory. clips: tasks of
    :func:`tfkit.menagerie.benchmark` and (Clip, prompt or prompts), or {name: any of these}.
    metrics: names of tfkit.scores.METRICS (None: all that can be taken) and functions (frames,
    source, prompt) of your own that return a number or a Score. model: a model, what
    :func:`tfkit.load` takes, or a function that loads one; read once in each process. judge: the
    CLIP, by name. flow, tokens, structure, tracks: as :func:`tfkit.scoring.score` has them; the
    tokens' reader also as (layer, timestep), by default of the decoder's middle layer at 261, the
    structure's as a name or folder for :func:`tfkit.dino.load_dino`, tracks a function (frames) ->
    (f, m, 2). What is named is read once in each process; what is not travels there whole.
    inversion: more settings of :func:`tfkit.invert`; its prompt is the clip's caption.

    folder: keeps each edit's numbers as they come. Called again, only what is missing there is
    computed: what was killed, what failed, and whatever is asked for with other settings, other
    pixels, other weights, other code of yours or another version of tfkit, which is never mixed
    with what was there. (What your code reads as globals counts, numbers, text, tensors and models,
    and your own functions and classes that it calls; what libraries do does not.) A metric that is
    asked for later measures an edit made anew, so that a method of your own should give the same
    each time; nor may it, or a metric, write into the clip or the source, which others are given
    too. A kill costs the edit that was
    running, and its clip's inversion. Workers on other machines must see the folder too.

    n_jobs: how many clips at once, by default what `joblib.parallel_config` says, or one. Threads
    take turns with a model; processes have one each.

    Returns a row for each method, clip, prompt and metric: value, measured_with, the edit's
    seconds (of a clip's edits that carry tokens, the first reads the source for those that follow),
    and as `change` the attribute that the prompt changes (empty: of your own clips). An edit that
    fails has no values (NaN) but an error, is told in a warning at the end, and stops no other; of
    an edit on which a function of your own fails, or returns NaN, only that metric has none.
    errors="raise" stops at once, and so does a folder that cannot be written (OSError). Raises
    ValueError for settings that cannot be meant, and RuntimeError where not one edit succeeds, or a
    worker dies. Warns of metrics that were named and that no edit has.
    """
    pandas = need_pandas("tfkit.evaluate")
    methods = {
        name: method_settings(name, how) for name, how in named("methods", methods, "name").items()
    }
    names, own = metric_names(metrics)
    check_choice("flow", flow, (None, *FLOWS))
    check_choice("errors", errors, ("warn", "raise"))
    check_whole("steps", steps)
    check_readers(tokens, structure, tracks)
    inversion = inversion_settings(inversion)
    clips = named_clips(clips)
    total = sum(len(changes) for _, _, changes in clips) * len(methods)
    place = None if folder is None else open_folder(folder)
    results: list[list[dict]] = [[] for _ in clips]
    with tqdm(total=total, desc="evaluate", unit="edit", disable=not progress) as bar:
        portable, meter = Portable(model), Meter(bar)
        jobs = (
            delayed(run)(
                Job(
                    i, clip, changes, methods, names, own, portable, findable(str(judge)), flow,
                    tokens, findable(structure), tracks, steps, inversion, place,
                    errors == "raise", meter,
                )  # one argument, and no large one: what Dask scatters dies with its worker
            )
            for i, (_, clip, changes) in enumerate(clips)
        )  # fmt: skip
        pool = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
        try:
            for i, found in pool(jobs):
                results[i] = found
                bar.update(max(0, sum(map(len, results)) - bar.n))  # other processes' edits
        except BrokenExecutor as error:
            kept = "nothing was kept, for want of a folder" if place is None else (
                f"what was finished is kept in {str(folder)!r}, and another call goes on from it"
            )  # fmt: skip
            raise RuntimeError(
                "a worker died: it was killed, or memory ran out, which fewer jobs (n_jobs) need "
                f"less of; {kept}"
            ) from error
    edits = [
        {"method": method, "clip": name, "prompt": change.prompt, "change": change.kind} | result
        for (name, _, changes), found in zip(clips, results, strict=True)
        for (change, method), result in zip(itertools.product(changes, methods), found, strict=True)
    ]
    _tell(edits)
    succeeded = [one for one in edits if not one["error"]]
    lacking = [name for name in names if not any(name in one["scores"] for one in succeeded)]
    if metrics is not None and succeeded and lacking:
        warnings.warn(
            f"no edit has {', '.join(lacking)}: the background's need a mask that leaves some of "
            "it, directional and success a caption that the CLIP can tell from the prompt",
            stacklevel=2,
        )
    return pandas.DataFrame(_rows(edits, [*names, *own]), columns=COLUMNS)


def summary(
    table: "pandas.DataFrame", by: str | Sequence[str] = "method", **settings: Any
) -> ScoreTable:
    """Means of a table of :func:`evaluate` with bootstrap intervals, a row for each method.

    by: columns to tell apart, such as ["method", "change"]. A clip's prompts are averaged first:
    clips are independent of each other, edits of one clip are not. settings: of
    :func:`tfkit.scores.over_clips`. Warns where rows rest on different edits, because some failed.
    Raises ValueError for columns that are not there, for a table without values, and where a metric
    was measured in different ways, as along exact and estimated flow: choose the rows to compare.
    """
    by = [by] if isinstance(by, str) else list(by)
    missing = {*COLUMNS, *by} - set(table.columns)
    if missing or not by:
        raise ValueError(
            f"by={by!r}: expected columns of a table of tfkit.evaluate; "
            f"missing: {', '.join(sorted(missing)) or 'any'}"
        )
    failed = table[table.error != ""]
    if len(failed):
        counts = failed.drop_duplicates(["method", "clip", "prompt"])["method"].value_counts()
        shown = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        warnings.warn(
            f"edits that failed are left out of the means: {shown}; rows may rest on different "
            "clips",
            stacklevel=2,
        )
    rows = {}
    for names, part in table[table.error == ""].groupby(by, sort=False):
        of_clips = [
            {metric: _mean(metric, found) for metric, found in clip.groupby("metric", sort=False)}
            for _, clip in part.groupby("clip", sort=False)
        ]
        rows[", ".join(map(str, names))] = over_clips(of_clips, **settings)
    if not rows:
        raise ValueError("the table has no values; expected a row of one edit that succeeded")
    return ScoreTable(rows)


def difference(
    table: "pandas.DataFrame", metric: str, first: str, second: str, **settings: Any
) -> Interval:
    """How much higher a metric is with one method than with another, over the clips of both.

    The mean over clips of the difference on each, over the prompts that both edited, and its
    bootstrap interval. Clips differ more among each other than methods do, so this tells methods
    apart whose own intervals overlap.
    settings: of :func:`tfkit.intervals.bootstrap`. Raises ValueError for a metric or a method that
    is not there, for fewer than two clips of both, and where they were measured in different ways.
    """
    rows = table[(table.error == "") & (table.metric == metric)]
    missing = {first, second} - set(rows.method)
    if missing:
        raise ValueError(
            f"no {metric!r} of {', '.join(map(repr, sorted(missing)))}; expected a metric and two "
            f"methods of the table: {', '.join(map(repr, rows.method.unique())) or 'none has it'}"
        )
    rows = rows[rows.method.isin([first, second])]
    one_way(metric, rows["measured_with"])
    edits = rows.pivot_table("value", ["clip", "prompt"], "method").dropna()
    clips = edits.groupby("clip").mean()
    return bootstrap(clips[first] - clips[second], **settings)


def need_pandas(what: str) -> ModuleType:
    """pandas, which only the extra "evaluation" brings; ImportError says how to get it."""
    try:
        import pandas
    except ImportError:
        raise ImportError(f"{what} needs pandas: pip install 'tfkit[evaluation]'") from None
    return pandas


def _tell(edits: list[dict]) -> None:
    """Warns of the edits that failed. Raises RuntimeError where all did."""
    if all((one["error"] or one["failed"]) and not one["scores"] for one in edits):
        one = edits[0]
        error = one["error"] or next(iter(one["failed"].values()))
        raise RuntimeError(
            f"not one of {len(edits)} edits succeeded. {_named(one)}: {error}\n{one['trace']}"
        )
    for what, lines in (
        (
            "edits failed; they have no values, the column 'error' says why, and another call with "
            "the same folder tries them again",
            [f"{_named(one)}: {one['error']}" for one in edits if one["error"]],
        ),
        (
            "edits were not measured by a function of yours, which failed; what else was measured "
            "is there, and the column 'error' says why",
            [f"{_named(one)}: {one['failed']}" for one in edits if one["failed"]],
        ),
    ):
        if lines:
            more = [f"and {len(lines) - 8} more"] if len(lines) > 8 else []
            shown = "\n  ".join(lines[:8] + more)
            warnings.warn(f"{len(lines)} of {len(edits)} {what}:\n  {shown}", stacklevel=3)


def _named(one: dict) -> str:
    return f"{one['method']!r}, {one['clip']!r} to {one['prompt']!r}"


def _rows(edits: list[dict], asked: list[str]) -> list[dict]:
    nothing = {"value": math.nan, "measured_with": "", "seconds": math.nan}
    taken = [
        name for name in asked
        if any(name in one["scores"] or name in one["failed"] for one in edits)
    ]  # fmt: skip
    rows = []
    for one in edits:
        for name in taken:
            if one["error"] or name in one["failed"] or name in one["scores"]:
                error = {"error": one["failed"].get(name, one["error"])}
                rows.append(one | {"metric": name} | one["scores"].get(name, nothing) | error)
    return rows


def _mean(metric: str, rows: "pandas.DataFrame") -> Score:
    """One clip's score, of all its prompts."""
    how = one_way(metric, rows["measured_with"])
    return Score(metric, float(rows["value"].mean()), settings_of(how))
