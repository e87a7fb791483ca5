"""DDIM both ways: from a video to its noise, and back.

DDIM's step (sampling.py) runs along the schedule in either direction. Sampling takes the noise at
the point it comes from, which inverting is yet to find: see ascent.py.
Memory: the latents of every level (in a folder: of two), and one batch of activations.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tfkit.ascent import Ascent, Predict, Predictor, SourceReader
from tfkit.checks import check_frames, check_latents
from tfkit.conditions import latent_depth
from tfkit.control import Controlled, ControlNet
from tfkit.diffusion import LatentDiffusion, check_depth, check_model
from tfkit.lineage import lineage_of
from tfkit.memory import fitting
from tfkit.methods import Moment
from tfkit.sampling import sample
from tfkit.settings import check_choice, check_whole
from tfkit.source_cache import SourceCache
from tfkit.trajectory import CLEAN, Folder, Origin, Trajectory, claim, digest, write_conditions
from tfkit.video import Clip, size_of, way_to_frames
from tfkit.video_file import VideoFile


@runtime_checkable
class Prepares(Protocol):
    """What :func:`invert` prepares a video by: :class:`tfkit.Preparation`."""

    def check(self, frames: int, steps: int) -> None:
        """Raises ValueError unless it fits a clip of so many frames inverted in so many steps."""
        ...

    def reader(self, model: LatentDiffusion, source: Trajectory) -> SourceReader:
        """The reader of a source of which only the clean level may be there yet."""
        ...


def invert(
    model: LatentDiffusion,
    frames_or_latents: Tensor | Clip | VideoFile,
    prompt: str = "",
    *,
    steps: int = 50,
    fixed_point: int = 0,
    predictor: Predictor = "next",
    prepare: Prepares | None = None,
    depth: Tensor | None = None,
    control: ControlNet | None = None,
    folder: str | Path | None = None,
    batch: int = 16,
    progress: bool = True,
) -> Trajectory:
    """Inverts a video with DDIM and keeps every level on the way.

    frames_or_latents: (f, 3, h, w) in [0, 1], (f, 4, h, w) latents, a Clip, or a file opened with
    :func:`tfkit.open_video`, which is read as it goes. prompt: a description of the video.
    fixed_point: how often each step is refined, one more pass each time; 2 or 3 are worth it.
    predictor: a step's noise at first: "next", the model's at the level it comes from and the
    timestep it goes to, as the authors and diffusers have it; or "extrapolated", along the line
    through the model's noise at the last two levels and their own timesteps, which costs the same
    passes and brings more of the video back. prepare: what is read of the video for edits to come
    (:class:`tfkit.Preparation`), so that no edit that fits it pays for the source; the passes of
    "extrapolated" read it by the way.
    depth: (f, h, w), larger is nearer, for a model that reads depth. control: invert under a
    ControlNet, as the authors do; reconstruct under it too. folder: where the levels are kept; a
    run that was killed goes on there. batch: frames in a pass; it changes speed and memory, not the
    result.
    Raises ValueError for bad shapes and values, for steps the schedule cannot take and for a folder
    that belongs to something else; NonFiniteError where the model overflows, MemoryError where
    memory runs out even with batch=1.
    """
    check_model(model)
    given, size = _checked(frames_or_latents)
    check_whole("fixed_point", fixed_point, least=0)
    check_choice("predictor", predictor, get_args(Predictor))
    if isinstance(prepare, type) or not isinstance(prepare, Prepares | None):
        raise ValueError(f"prepare={prepare!r}: expected a tfkit.Preparation(...), or None")
    batch = check_whole("batch", batch)
    timesteps, text = model.timesteps(steps), model.embed(prompt)
    if prepare is not None:
        prepare.check(len(given), steps)
    conditions, controlled = _conditions(model, given, depth, control, batch)
    lineage = lineage_of(model)
    with ExitStack() as held:
        levels: dict[int, Tensor] | Folder = {}
        if folder is not None:
            under = [f"{name} {digest(value.split(batch))}" for name, value in conditions.items()]
            if control is not None and controlled is not None:
                under.append(f"{controlled.fingerprint()} {control.scale} {control.until}")
            origin = Origin(
                digest(_chunks(given, batch)), tuple(given.shape), model.fingerprint(),
                str(model.dtype), prompt, timesteps, int(fixed_point), ", ".join(under), predictor,
            )  # fmt: skip
            levels = held.enter_context(claim(folder, origin, lineage, model.device))
            if conditions:
                write_conditions(folder, conditions)
        cache = levels.cache if isinstance(levels, Folder) else SourceCache()
        source = Trajectory(timesteps, prompt, size, levels, conditions, cache, lineage)
        if CLEAN not in levels:
            levels[CLEAN] = (
                torch.cat([model.encode(x, batch=batch) for x in _chunks(given, batch, progress)])
                if size or isinstance(given, VideoFile)
                else given.to(model.device, model.precision)
            )
        reader = None if prepare is None else prepare.reader(model, source)
        predict = _predictor(model, source, text, control, controlled)
        marks = control.marks_source(controlled) if control and controlled else ""
        ascent = Ascent(model, predict, fixed_point, predictor, reader, marks)
        batch = ascent.climb(levels, timesteps, batch, progress)
        if reader is not None:
            reader.read_source(batch, progress=progress)
    return source


def _chunks(given: Tensor | VideoFile, batch: int, progress: bool = False) -> Iterable[Tensor]:
    """Frames or latents, in order."""
    if not isinstance(given, VideoFile):
        return given.split(batch)
    total = -(-len(given) // batch)
    return iter(tqdm(given.chunks(batch), "encode", total, disable=not progress))


def _conditions(
    model: LatentDiffusion,
    given: Tensor | VideoFile,
    depth: Tensor | None,
    control: ControlNet | None,
    batch: int,
) -> tuple[dict[str, Tensor], Controlled | None]:
    """What frames or latents are inverted under, and the ControlNet with its condition or None."""
    h, w = given.shape[-2:] if given.shape[1] == 4 else model.grid(*given.shape[-2:])
    conditions, controlled = {}, None
    depth = latent_depth(model, depth, len(given), (h, w))
    if depth is not None:
        conditions["depth"] = depth
    if control is not None:
        if not isinstance(control, ControlNet):
            raise ValueError(f"control={control!r}: expected a tfkit.ControlNet(...), or None")
        conditions["control"] = control.see(model, given, batch)
        controlled = control.bind(model, conditions["control"])
    return conditions, controlled


def _predictor(
    model: LatentDiffusion,
    source: Trajectory,
    text: Tensor,
    control: ControlNet | None,
    controlled: Controlled | None,
) -> Predict:
    """The noise of latents, under the source's own conditions."""
    steps = len(source.timesteps)

    def predict(t: int, x: Tensor, frames: Tensor) -> Tensor:
        scope: AbstractContextManager = nullcontext()
        if control is not None:
            step = source.timesteps.index(t)
            scope = control.during(Moment(model, step, steps, frames, 1, controlled, ("source",)))
        with scope:
            return model.predict_noise(x, t, text, depth=source.depth_of(frames))

    return predict


def _checked(
    frames_or_latents: Tensor | Clip | VideoFile,
) -> tuple[Tensor | VideoFile, tuple[int, int] | None]:
    """A tensor of its own of frames or latents, and the frames' (height, width) or None."""
    if isinstance(frames_or_latents, VideoFile):
        return frames_or_latents, frames_or_latents.size
    given = frames_or_latents.frames if isinstance(frames_or_latents, Clip) else frames_or_latents
    if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[1] not in (3, 4):
        shape = tuple(given.shape) if isinstance(given, Tensor) else f"a {type(given).__name__}"
        raise ValueError(
            f"frames_or_latents: {shape}; expected frames (f, 3, h, w) or latents (f, 4, h, w), or "
            f"a video that tfkit.open_video opened{way_to_frames(given)}"
        )
    if given.shape[1] == 3:
        return check_frames(given).detach(), size_of(given)
    check_latents(given)
    low, high = (x.item() for x in given.aminmax())
    if 0 <= low < high <= 1:  # which noise and a VAE's latents are on both sides of
        raise ValueError(
            f"frames_or_latents: {tuple(given.shape)} from {low:.3g} to {high:.3g}, which look "
            "like frames, not like latents (f, 4, h, w); expected frames (f, 3, h, w)"
            f"{way_to_frames(given)}"
        )
    return given.detach().clone(), None  # it becomes a level of the trajectory


@torch.no_grad()
def reconstruct(
    model: LatentDiffusion,
    source: Trajectory,
    *,
    control: ControlNet | None = None,
    batch: int = 16,
    progress: bool = True,
) -> Float[Tensor, "f 3 h w"]:
    """Samples a trajectory's noise back with its own prompt: how much of the video survives.

    control: what it was inverted under. Returns frames in [0, 1] at the video's own size. Raises
    ValueError for a trajectory of another model and for one that was inverted under a
    ControlNet where none is given, NonFiniteError where the model overflows.
    """
    check_fits(model, source)
    batch = check_whole("batch", batch)
    if control is None and "control" in source.conditions:
        raise ValueError(
            "source was inverted under a ControlNet, and reconstruction without it would not lead "
            "back; expected control=tfkit.ControlNet(...), the same one"
        )
    controlled = None if control is None else control.prepare(model, source)
    predict = _predictor(model, source, model.embed(source.prompt), control, controlled)

    def noise_of(step: int, t: int, x: Tensor) -> Tensor:
        nonlocal batch

        def passes(batch: int) -> Tensor:
            every = torch.arange(len(x), device=x.device).split(batch)
            return torch.cat([predict(t, x[frames], frames) for frames in every])

        noise, batch = fitting(passes, batch)
        return noise

    x = source.noise.to(model.device, model.precision)
    x = sample(model, x, source.timesteps, noise_of, label="reconstruct", progress=progress)
    return model.decode(x, size=source.size, batch=batch)


def check_fits(model: LatentDiffusion, source: Trajectory) -> None:
    """Raises ValueError unless ``source`` is a trajectory of the model's own schedule and kin.

    Fine-tunes, adapters and other precisions are kin: see :mod:`tfkit.lineage`. A trajectory that
    does not know its model is taken for one of this one.
    """
    check_model(model)
    if not isinstance(source, Trajectory):
        raise ValueError(
            f"source is a {type(source).__name__}; expected a Trajectory, as tfkit.invert returns"
        )
    check_depth(model, source.conditions.get("depth"))
    expected = model.timesteps(len(source.timesteps))
    if expected != source.timesteps:
        raise ValueError(
            f"the trajectory's timesteps start with {source.timesteps[:3]}, this model's with "
            f"{expected[:3]}: it was inverted with another model; invert with this one"
        )
    check_kin(model, source)
    if source.size is not None and model.grid(*source.size) != source.shape[2:]:
        (h, w), (rows, columns) = source.size, model.grid(*source.size)
        raise ValueError(
            f"source has latents of {' x '.join(map(str, source.shape[2:]))} and says that its "
            f"frames are of {h} x {w}, which makes {rows} x {columns}: expected the one or the "
            "other; a Trajectory of latents alone has size=None"
        )


def check_kin(model: LatentDiffusion, source: Trajectory) -> None:
    """Raises ValueError for a trajectory of a model that is no kin: see :mod:`tfkit.lineage`."""
    why = None if source.model is None else lineage_of(model).difference(source.model)
    if why is not None:
        raise ValueError(
            f"source was inverted with another model than {model.name!r}: {why}. Invert with this "
            "one; or, if that is meant, take dataclasses.replace(source, model=None)"
        )
