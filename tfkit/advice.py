"""Before an edit starts, and after it ended: what it costs, whether it fits, what to mind.

Nothing is computed here that the edit would not compute much more often.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkit import prompts
from tfkit.cost import Cost, cost_of
from tfkit.diffusion import LatentDiffusion, check_model
from tfkit.inversion import reconstruct
from tfkit.loading import MENAGERIE
from tfkit.memory import available_memory
from tfkit.menagerie.vocabulary import known_words, unknown_words
from tfkit.methods import Method, PlugAndPlay
from tfkit.metrics import psnr
from tfkit.passes import Plan
from tfkit.propagation import TokenFlow
from tfkit.protocols import Propagation
from tfkit.session import EditSession
from tfkit.settings import check_whole
from tfkit.source_cache import BUDGET
from tfkit.trajectory import CLEAN, Trajectory
from tfkit.video import Clip, as_frames, size_of
from tfkit.video_file import VideoFile

MIB = 2**20
Room = dict[str, Any]  # what of memory() an edit's surroundings decide

# dB. The paper's inversions leave about 26.6 of what its autoencoder leaves: 25.3 through one of
# 31.1. The menagerie reaches 27 in 3 steps, 31 in 10 and 42 in 50.
GOOD = 25.0
# dB. On the menagerie, edits of an orange fox to a blue one that make it blue are at 12 to 19;
# those that hardly change it at 28 (SDEdit(0.5), a little yellow) and 32 (Plug-and-Play(1, 1)
# without guidance).
SAME = 26.0
# Edits of the same fox that keep it are at 0.24 (to night, guidance 15) to 0.97; where it is all
# but gone (guidance 30) at 0.18, where it is another one, from fresh noise, at 0.14 and 0.15, where
# it is a fish at 0.07. A real wolf made a red blob is at 0.10 to 0.21 (by earlier weights).
LOST = 0.22


@dataclass(frozen=True)
class Preflight:
    """What is known before an edit.

    seconds: of inversion (0 where it is done) and of the edit. memory: bytes at the peak, beyond
    what is held now. available: bytes. psnr: of the reconstruction in dB, None before inversion.
    notes: what to mind, a sentence each. source: bytes that keeping all that is read of the source
    takes, so that further edits need not read it; in memory, or in the trajectory's folder.
    further: seconds of such an edit.
    """

    what: str
    seconds: tuple[float, float]
    memory: int
    available: int
    psnr: float | None
    notes: tuple[str, ...]
    source: int
    further: float

    @property
    def fits(self) -> bool:
        """Whether it needs no more memory than there is."""
        return self.memory <= self.available

    def __str__(self) -> str:
        lines = [
            self.what,
            f"time: about {_duration(sum(self.seconds))} on this machine (inversion "
            f"{_duration(self.seconds[0])}, edit {_duration(self.seconds[1])})",
            f"memory: about {self.memory / MIB:,.0f} MiB of {self.available / MIB:,.0f} available: "
            + ("fits" if self.fits else "does not fit"),
        ]
        if self.source:
            lines.append(
                f"kept of the source: {self.source / MIB:,.0f} MiB; with it a further edit takes "
                + _duration(self.further)
            )
        if self.psnr is not None:
            lines.append(f"reconstruction: {self.psnr:.1f} dB")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def preflight(
    model: LatentDiffusion,
    video: Tensor | Clip | VideoFile | Trajectory,
    prompt: str,
    *,
    steps: int = 50,
    source_prompt: str = "",
    negative_prompt: str = "",
    guidance: float | int = 7.5,
    method: Method = PlugAndPlay(),
    propagation: Propagation = TokenFlow(),
    batch: int = 8,
    folder: bool = False,
    fixed_point: int = 0,
    prepare: bool = False,
    budget: int = BUDGET,
    progress: bool = False,
) -> Preflight:
    """What an edit will take, and what to mind, found in a few passes.

    video: frames (f, 3, h, w), a Clip, a file opened with :func:`tfkit.open_video`, or a
    trajectory, whose reconstruction is looked at too; then steps, source_prompt, folder and budget
    are its own. folder: whether the trajectory will be kept in one. fixed_point: of the inversion.
    prepare: whether the source is read while inverting by the extrapolated predictor, so that the
    first edit is a further one. budget: bytes that may be kept of the source. The rest is as in
    :func:`tfkit.edit`.
    Raises ValueError for settings out of range.
    """
    check_model(model)
    plan = Plan(prompt, negative_prompt, guidance, method, propagation)
    batch = check_whole("batch", batch)
    check_whole("fixed_point", fixed_point, least=0)
    check_whole("budget", budget, least=0)
    inverted = isinstance(video, Trajectory)
    if isinstance(video, Trajectory):
        steps, source_prompt = len(video.timesteps), video.prompt
        folder, budget = video.cache.folder is not None, video.cache.budget
        h, w = video.size or (side * model.factor for side in size_of(video.clean))
        shape: tuple[int, ...] = len(video), 3, h, w
    else:
        shape = video.shape if isinstance(video, VideoFile) else tuple(as_frames(video).shape)
    model.timesteps(steps)
    cost = cost_of(model, shape, plan, steps, progress=progress)
    room: Room = {
        "folder": folder or inverted,
        "pictures": not isinstance(video, VideoFile),
        "budget": 0 if folder or model.device.type != "cpu" else budget,  # it is kept on the CPU
    }
    free = available_memory(model.device)
    memory = cost.memory(batch, free, **room)
    notes, quality = prompt_notes(model, prompt, source_prompt, negative_prompt), None
    if isinstance(video, Trajectory) and "control" not in video.conditions:
        quality = reconstruction_psnr(model, video, batch=batch)
        notes += quality_notes(quality, steps)
    if memory > free:
        notes.append(_advice(cost, free, batch, room))
    if cost.source > budget > 0:
        notes.append(
            f"of the {cost.source / MIB:,.0f} MiB that are read of the source {budget / MIB:,.0f} "
            f"are kept, and further edits read the rest again. All of it: source.cache.budget = "
            f"{cost.source}, or --budget {-(-cost.source // MIB)} on the command line"
        )
    f, _, h, w = shape
    what = f"{f} frames of {w} x {h}, {steps} steps, {method!r}, {propagation!r}"
    edit = cost.edit(prepared=prepare and 0 < cost.source <= budget)
    seconds = 0.0 if inverted else cost.inversion(fixed_point), edit
    further = cost.edit(prepared=True)
    return Preflight(
        what, seconds, memory, free, quality, tuple(notes), budget and cost.source, further
    )


def reconstruction_psnr(
    model: LatentDiffusion, source: Trajectory, *, frames: int = 4, batch: int = 4
) -> float:
    """How well a few frames, spread over the clip, come back from their noise: PSNR in dB.

    Against the same latents decoded, so that it is of the inversion alone. Costs as many passes as
    the trajectory has steps.
    """
    some = torch.linspace(0, len(source) - 1, min(frames, len(source))).round().long()
    first = source.timesteps[0]
    levels = {t: source.latents[t][some.to(source.latents[t].device)] for t in (CLEAN, first)}
    kept = {name: values[some.to(values.device)] for name, values in source.conditions.items()}
    part = replace(source, latents=levels, conditions=kept)
    with torch.no_grad():
        whole = model.decode(part.clean, size=part.size, batch=batch)
    return psnr(reconstruct(model, part, batch=batch, progress=False), whole)


def prompt_notes(
    model: LatentDiffusion, prompt: str, source_prompt: str = "", negative_prompt: str = ""
) -> list[str]:
    """What of the prompts is not read or not known, and where the first asks for nothing."""
    notes, strange = [], dict[str, None]()
    for which, text in (("", prompt), ("source's ", source_prompt), ("negative ", negative_prompt)):
        _, unread = prompts.token_ids(model.tokenizer, text)
        if unread:
            limit = model.tokenizer.model_max_length - 2
            notes.append(
                f"the {which}prompt is longer than the {limit} tokens that are read; unread: "
                f"{unread!r}"
            )
        strange |= dict.fromkeys(unknown_words(text) if model.name == MENAGERIE else ())
    if strange:
        notes.append(f"the menagerie does not know {', '.join(strange)}; it knows {known_words()}")
    if not prompt.strip():
        notes.append("the prompt is empty: it says nothing of what the edited video is to show")
    elif prompt.strip() == source_prompt.strip():
        notes.append("the prompt is the source's own: the edit can only reconstruct the video")
    return notes


def quality_notes(quality: float, steps: int) -> list[str]:
    """Advice where a reconstruction is not good enough to edit."""
    if quality >= GOOD:
        return []
    return [
        f"the reconstruction reaches {quality:.1f} dB, {GOOD:.0f} are good: what is lost there an "
        'edit loses too. Invert with predictor="extrapolated", with fixed_point=2, in more than '
        f"{steps} steps, or with a prompt that describes the video"
    ]


def examine(source: Clip | Tensor, edited: Clip | Tensor) -> list[str]:
    """What an edit seems to have missed: nothing changed, or the structure lost; [] if neither.

    source: the video's frames, or better what the autoencoder makes of them; edited: as many, of
    one size, (f, 3, h, w). By PSNR, and by how far the edges of both coincide
    (:func:`edge_agreement`): from ``SAME`` dB on it is almost the source, and below ``LOST`` its
    structure is lost, both found on the menagerie. Raises ValueError for other shapes.
    """
    source, edited = as_frames(source, "source"), as_frames(edited, "edited")
    level, edges = psnr(edited, source), edge_agreement(edited, source)
    if level >= SAME:
        return [
            f"the edit is almost the source ({level:.1f} dB): let go of it, with less injection, "
            "tfkit.PlugAndPlay(attention=0.3, convolution=0.5), more guidance, or a larger "
            "tfkit.SDEdit(start=...)"
        ]
    if edges < LOST:
        return [
            f"the edit has lost the source's structure (its edges agree by {edges:.2f}): hold on "
            "to it, with more injection, tfkit.PlugAndPlay(attention=0.8, convolution=1.0), less "
            "guidance, or a smaller tfkit.SDEdit(start=...)"
        ]
    return []


def examine_session(session: EditSession, frames: int = 4) -> list[str]:
    """The same of a session as it stands, on a few frames spread over the clip."""
    some = torch.linspace(0, len(session.source) - 1, min(frames, len(session.source)))
    clean, edited = (
        session.model.decode(x[some.round().long().to(x.device)], size=session.source.size)
        for x in (session.source.clean, session.latents)
    )
    return examine(clean, edited)


def edge_agreement(a: Clip | Tensor, b: Clip | Tensor) -> float:
    """How far edges are where they were, whatever the colours: a correlation, 1 at the most.

    Of the two videos' gradient magnitudes, smoothed over 3 x 3 pixels; the mean over frames.
    """
    a, b = as_frames(a), as_frames(b)
    a, b = (_edges(x.to(a.device).double()).flatten(1) for x in (a, b))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1).mean().item()


def _edges(frames: Tensor) -> Tensor:
    grey = frames.mean(1, keepdim=True)
    h, w = grey.shape[-2:]
    grey = F.pad(grey, (0, int(w == 1), 0, int(h == 1)), mode="replicate")  # two make a step
    right, down = grey.diff(dim=-1)[..., :-1, :], grey.diff(dim=-2)[..., :-1]
    return F.avg_pool2d((right.square() + down.square()).sqrt(), 3, 1, 1)


def _advice(cost: Cost, free: int, batch: int, room: Room) -> str:
    """The first thing that makes it fit, the least painful one first."""
    if cost.memory(batch, free, **room | {"budget": 0}) <= free:
        return "it fits with budget=0: nothing is kept of the source for further edits"
    while batch > 1:
        batch //= 2
        if cost.memory(batch, free, **room) <= free:
            return f"it fits with batch={batch}"
    room = {"folder": True, "pictures": False, "budget": 0}
    if cost.memory(1, free, **room) <= free:
        return (
            "it fits with batch=1 where frames and trajectory are not held: tfkit.open_video, "
            "tfkit.invert(..., folder=...), EditSession.run and .stream; the command line does so "
            "with --trajectory"
        )
    for narrow in cost.narrower():
        if narrow.memory(1, free, **room) <= free:
            return f"it fits with all that, and a propagation of window={narrow.seen} (--window)"
    fewer = cost.frames
    while fewer > 1:
        fewer //= 2
        keyframes = cost.keyframes and -(-cost.keyframes * fewer // cost.frames)
        small = replace(cost, frames=fewer, keyframes=keyframes)
        if small.memory(1, free, **room) <= free:
            return f"it fits with all that, and {fewer} frames"
    return "it does not fit; take smaller frames, or a GPU with float16"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
