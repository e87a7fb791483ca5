"""The paper's tables: its published figures, and the same measured on the benchmark.

    python -m tfkit tables --folder runs/tables

edits every clip of :func:`tfkit.menagerie.benchmark` by every one of ``CONTENDERS``, which
takes hours on a laptop and goes on where it was stopped, and writes the result beside this module,
with all it was made with. Notebook 11 reads that file and makes a small part of it again. Another
file beside it has eight of them in the paper's 50 steps (``--steps 50 --prompts 1 --only ...``).
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tfkit import metrics
from tfkit.atomic import replacing
from tfkit.clip import load_clip
from tfkit.control import ControlNet
from tfkit.diffusion import LatentDiffusion
from tfkit.editing import edit
from tfkit.evaluation import COLUMNS, evaluate, need_pandas
from tfkit.inversion import invert
from tfkit.loading import WEIGHTS, load
from tfkit.menagerie.tasks import Task, benchmark
from tfkit.methods import Plain, PlugAndPlay, SDEdit
from tfkit.propagation import ExtendedAttention, FirstFrame, PerFrame, TokenFlow
from tfkit.protocols import Propagation
from tfkit.records import key_of
from tfkit.scores import Score
from tfkit.settings import check_whole
from tfkit.trajectory import Trajectory
from tfkit.truth import TrueFlow
from tfkit.video import Clip, resize, size_of

if TYPE_CHECKING:
    import pandas

STORED = Path(__file__).parent / "tables.csv"
AT_50 = STORED.with_name("tables_50.csv")  # in as many steps as the paper takes
GUIDANCE, INTERVAL = 4, 4  # classifier-free guidance; frames for each keyframe
MEASURED = ("warp_error", "frame_consistency", "text_alignment", "success", "background_psnr")


_METHODS = {"PnP": PlugAndPlay(), "SDEdit": SDEdit(0.7), "ControlNet": ControlNet()}
_WAYS = {
    "per frame": PerFrame(),
    "first frame": FirstFrame(),
    "joint attention": ExtendedAttention(interval=INTERVAL),
    "fixed keyframes": TokenFlow(INTERVAL, keyframes="fixed"),
    "TokenFlow": TokenFlow(INTERVAL),
}
CONTENDERS: dict[str, dict[str, Any]] = {
    f"{name}, {way}": {"method": method, "propagation": propagation, "guidance": GUIDANCE}
    for name, method in _METHODS.items()
    for way, propagation in _WAYS.items()
    if name == "PnP" or way != "first frame"
}


def _decoded(model: LatentDiffusion, source: Trajectory, prompt: str) -> Tensor:
    return model.decode(source.clean, size=source.size)


REBUILT = {  # nothing is edited: what is lost on the way (the paper's Table 2)
    "LDM reconstruction": _decoded,
    "DDIM inversion": {"method": Plain(), "propagation": PerFrame(), "guidance": 1},
    "TokenFlow": {"method": Plain(), "propagation": TokenFlow(INTERVAL), "guidance": 1},
}

BOUNDS = ("nothing edited", "edit filmed")  # what the numbers of edits lie between, see bounds()


def psnr(frames: Tensor, source: Clip, prompt: str) -> Score:
    """Of edited frames against the source's, in dB."""
    return Score("psnr", metrics.psnr(frames, source.frames), {"against": "the source's frames"})


def tasks(clips: int = 24, frames: int = 8, prompts: int = 3) -> list[Task]:
    """The first ``clips`` of the benchmark with ``prompts`` of their three, another one each time.

    So that of few prompts, too, every kind of change has its share.
    """
    check_whole("clips", clips)
    check_whole("prompts", prompts)
    if clips > 24 or prompts > 3:
        raise ValueError(f"clips={clips}, prompts={prompts}: expected at most 24 and 3")
    return [
        replace(task, changes=tuple(task.changes[(i + j) % 3] for j in range(prompts)))
        for i, task in enumerate(benchmark(frames=frames)[:clips])
    ]


def measure(
    clips: int = 24,
    *,
    frames: int = 8,
    prompts: int = 3,
    steps: int = 16,
    contenders: Mapping[str, Any] = CONTENDERS,
    rebuilt: Mapping[str, Any] = REBUILT,
    **settings: Any,
) -> "pandas.DataFrame":
    """Edits, reconstructions and bounds, measured; settings: more of :func:`tfkit.evaluate`.

    Reconstructions are rows of the empty change and the metric "psnr"; :func:`bounds` are of the
    menagerie's model and CLIP.
    """
    pandas = need_pandas("tfkit.tables")
    chosen = tasks(clips, frames, prompts)
    edits = evaluate(contenders, chosen, MEASURED, steps=steps, **settings)
    parts = [edits, bounds(chosen)]
    if rebuilt:
        films = {task.caption: (task.film(), task.caption) for task in chosen}
        parts.insert(1, evaluate(rebuilt, films, psnr, steps=steps, **settings))
    return pandas.concat(parts, ignore_index=True)


@torch.no_grad()
def bounds(chosen: Sequence[Task]) -> "pandas.DataFrame":
    """What the numbers of edits lie between: nothing edited, and the change filmed as asked for.

    Both go through the autoencoder, as edits do: what they lack is no editing method's fault. The
    warp error is along each one's own flow. Rows as :func:`tfkit.evaluate` has them, of no seconds.
    """
    pandas, model, judge, rows = need_pandas("tfkit.tables"), load(device="cpu"), load_clip(), []

    def decoded(clip: Clip) -> tuple[Tensor, Score]:
        frames = model.decode(model.encode(clip), size=size_of(clip.frames))
        error = metrics.warp_error(frames, clip.truth("flow"), clip.truth("visible"))
        return frames, Score("warp_error", error, {"flow": "exact"})

    for task in chosen:
        nothing = decoded(task.film())
        for change in task.changes:
            both = zip(BOUNDS, (nothing, decoded(task.target(change))), strict=True)
            for method, (frames, steady) in both:
                read = {
                    "text_alignment": judge.text_alignment(frames, change.prompt),
                    "success": judge.success(frames, change.prompt, task.caption),
                }
                of = (method, task.caption, change.prompt, change.kind)
                found = [steady, *(Score(k, v, {"CLIP": judge.name}) for k, v in read.items())]
                rows += [(*of, s.name, s.value, s.measured_with, 0.0, "") for s in found]
    return pandas.DataFrame(rows, columns=COLUMNS)


@torch.no_grad()
def along_true_motion(
    clips: int = 4, *, frames: int = 8, steps: int = 10, sides: Sequence[int] = (128, 32)
) -> "pandas.DataFrame":
    """What better fields could win: warp error x 10^3 of edits whose tokens follow the true motion.

    Of the first ``clips`` of the benchmark, each edited by Plug-and-Play to its first prompt: a row
    for each size in pixels that the edits are measured at, and a column for each way, nothing
    edited (through the autoencoder) before them. At a token's size, a fourth of 128, what happens
    within one does not count. Takes minutes.
    """
    pandas, model, found = need_pandas("tfkit.tables"), load(), []
    for task in tasks(clips, frames, 1):
        clip = task.film()
        source = invert(model, clip, clip.caption, steps=steps, progress=False)
        ways: dict[str, Propagation] = {
            "per frame": PerFrame(),
            "TokenFlow": TokenFlow(INTERVAL),
            "true motion": TrueFlow(INTERVAL, clip=clip),
        }
        videos = {BOUNDS[0]: model.decode(source.clean, size=source.size)} | {
            name: edit(
                model, source, task.changes[0].prompt, guidance=GUIDANCE, propagation=way,
                progress=False,
            ).frames
            for name, way in ways.items()
        }  # fmt: skip
        for side in sides:
            size = side, side
            known = metrics.resize_flow(clip.truth("flow"), clip.truth("visible"), size)
            errors = {n: metrics.warp_error(resize(x, size), *known) for n, x in videos.items()}
            found.append({"pixels": side} | {name: 1e3 * x for name, x in errors.items()})
    return pandas.DataFrame(found).groupby("pixels", sort=False).mean()


def beyond_the_floor(
    table: "pandas.DataFrame",
    parts: int = 4,
    base: str = "PnP, per frame",
    method: str = "PnP, TokenFlow",
) -> "pandas.DataFrame":
    """How a method's share of another's warp error depends on how much there is to remove.

    A row for each of ``parts`` equal groups of prompts, from the steadiest by ``base`` on, and one
    for all: mean warp errors x 10^3, the share of one in the other, and the share of what is beyond
    the floor, which is what nothing edited has. Raises ValueError for a table without that.
    """
    pandas = need_pandas("tfkit.tables")
    of = table[table.metric == "warp_error"]
    errors = 1e3 * of.pivot_table("value", ["clip", "prompt"], "method")
    missing = {BOUNDS[0], base, method} - set(errors.columns)
    if missing or not 1 <= parts <= len(errors):
        raise ValueError(
            f"parts={parts!r} of {len(errors)} prompts, and no warp error of "
            f"{', '.join(map(repr, sorted(missing))) or 'nothing'}: expected a table of "
            "tfkit.tables.measure and at most as many parts as it has prompts"
        )
    errors = errors[[BOUNDS[0], base, method]].sort_values(base)
    group = pandas.Series([i * parts // len(errors) for i in range(len(errors))], errors.index)
    rows = errors.groupby(group).mean()
    rows.index = [f"{i + 1} of {parts}" for i in rows.index]
    rows.loc["all"] = errors.mean()
    floor, before, after = (rows[name] for name in rows.columns)
    return rows.assign(share=after / before, beyond=(after - floor) / (before - floor))


def by_steps(
    some: Mapping[int, "pandas.DataFrame"],
    base: str = "PnP, per frame",
    method: str = "PnP, TokenFlow",
) -> "pandas.DataFrame":
    """What more steps do to a method's share of another's warp error, and to success.

    some: tables of :func:`measure` by their number of steps. A row for each, of the prompts that
    all have: mean warp errors x 10^3, the share of one in the other, and the success of both in %.
    Raises ValueError where no prompt is in all with both methods.
    """
    pandas, found = need_pandas("tfkit.tables"), {}
    wanted = [(metric, name) for metric in ("warp_error", "success") for name in (base, method)]
    for steps, table in some.items():
        rows = table.pivot_table("value", ["clip", "prompt"], ["metric", "method"])
        found[steps] = rows.reindex(columns=wanted).dropna()
    prompts = [set(rows.index) for rows in found.values()]
    common = sorted(set.intersection(*prompts)) if prompts else []
    if not common:
        raise ValueError(
            f"no prompt has warp error and success of {base!r} and {method!r} in all of "
            f"{len(found)} tables: expected tables of tfkit.tables.measure with both"
        )
    means = pandas.DataFrame({steps: rows.loc[common].mean() for steps, rows in found.items()}).T
    errors, success = 1e3 * means["warp_error"], 100 * means["success"]
    return pandas.DataFrame(
        {
            **{name: errors[name] for name in (base, method)},
            "share": errors[method] / errors[base],
            **{f"success, {name}": success[name] for name in (base, method)},
        }
    )


def write_table(path: str | Path, table: "pandas.DataFrame", **made_with: Any) -> Path:
    """Writes a table as CSV, under one comment line of JSON that says what it was made with."""
    about = {
        **of_weights(), "guidance": GUIDANCE, "interval": INTERVAL,
        "methods": {name: repr(method) for name, method in _METHODS.items()},
        "date": date.today().isoformat(),
        **{name: version(name) for name in ("tfkit", "torch", "diffusers")},
        "machine": machine(), **made_with,
    }  # fmt: skip
    with replacing(Path(path)) as new:
        new.write_text(f"# {json.dumps(about)}\n" + table.to_csv(index=False, float_format="%.6g"))
    return Path(path)


def machine(device: str = "cpu") -> str:
    """What edits on a device are made with."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def of_weights() -> dict[str, str]:
    """Digests of all that a table is measured with: the model, its ControlNet and its CLIP."""
    parts = {"ControlNet": WEIGHTS / "controlnet", "CLIP": WEIGHTS / "clip"}
    found = {
        name: key_of([load_file(file) for file in sorted(folder.glob("*.safetensors"))])
        for name, folder in parts.items()
    }
    return {"weights": load(device="cpu").fingerprint()} | found


def read_table(path: str | Path = STORED) -> tuple["pandas.DataFrame", dict]:
    """A table that was written, and what it was made with.

    Raises FileNotFoundError where there is none and ValueError for a file that is not one.
    """
    pandas = need_pandas("tfkit.tables")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {str(path)!r}; python -m tfkit tables makes one")
    first = path.read_text().partition("\n")[0]
    try:
        about = json.loads(first.removeprefix("# "))
        table = pandas.read_csv(path, skiprows=1, keep_default_na=False, na_values={"value": [""]})
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a table of tfkit.tables: {error}") from None
    if list(table.columns) != COLUMNS:
        raise ValueError(
            f"{str(path)!r} has the columns {', '.join(table.columns)}; expected "
            f"{', '.join(COLUMNS)}"
        )
    return table, about
