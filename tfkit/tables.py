"""The paper's Tables 1 to 3, measured on the benchmark.

    python -m tfkit tables --folder runs/tables

edits every clip of :func:`tfkit.menagerie.benchmark` by every one of ``CONTENDERS``, which
takes hours on a laptop and goes on where it was stopped, and writes the result into a file that
:mod:`tfkit.readings` reads. Notebook 11 makes a small part of it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tfkit import metrics
from tfkit.clip import load_clip
from tfkit.control import ControlNet
from tfkit.diffusion import LatentDiffusion
from tfkit.editing import edit
from tfkit.evaluation import COLUMNS, evaluate, need_pandas
from tfkit.inversion import invert
from tfkit.loading import load
from tfkit.menagerie.tasks import Task, benchmark
from tfkit.methods import Plain, PlugAndPlay, SDEdit
from tfkit.propagation import ExtendedAttention, FirstFrame, PerFrame, TokenFlow
from tfkit.protocols import Propagation
from tfkit.scores import Score
from tfkit.settings import check_whole
from tfkit.trajectory import Trajectory
from tfkit.truth import TrueFlow
from tfkit.video import Clip, resize, size_of

if TYPE_CHECKING:
    import pandas

GUIDANCE, INTERVAL = 4, 4  # classifier-free guidance; frames for each keyframe
MEASURED = ("warp_error", "frame_consistency", "text_alignment", "success", "background_psnr")


METHODS = {"PnP": PlugAndPlay(), "SDEdit": SDEdit(0.7), "ControlNet": ControlNet()}
_WAYS = {
    "per frame": PerFrame(),
    "first frame": FirstFrame(),
    "joint attention": ExtendedAttention(interval=INTERVAL),
    "fixed keyframes": TokenFlow(INTERVAL, keyframes="fixed"),
    "TokenFlow": TokenFlow(INTERVAL),
}
CONTENDERS: dict[str, dict[str, Any]] = {
    f"{name}, {way}": {"method": method, "propagation": propagation, "guidance": GUIDANCE}
    for name, method in METHODS.items()
    for way, propagation in _WAYS.items()
    if name == "PnP" or way != "first frame"
}
_WIDE = {**CONTENDERS["PnP, TokenFlow"], "propagation": TokenFlow(8)}
_INPUTS = {**_WIDE, "propagation": TokenFlow(8, field="input")}
FURTHER = {  # edited when named: with the paper's own interval, of 8 frames a single keyframe a
    # step, with its guidance as well, and with the authors' fields
    "PnP, TokenFlow, interval 8": _WIDE,
    "PnP, TokenFlow, interval 8, inputs": _INPUTS,
    "PnP, per frame, guidance 7.5": {**CONTENDERS["PnP, per frame"], "guidance": 7.5},
    "PnP, TokenFlow, interval 8, guidance 7.5": {**_WIDE, "guidance": 7.5},
    "PnP, TokenFlow, interval 8, inputs, guidance 7.5": {**_INPUTS, "guidance": 7.5},
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
    steps: int = 10,
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
