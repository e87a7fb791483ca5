"""DDIM both ways: from a video to its noise, and back.

Song et al. 2021, eq. 12 with sigma = 0, run along the schedule in either direction. Inverting
takes the noise predicted for the level it goes to, at the point it comes from; the fixed-point
refinement evaluates it at the point it leads to, which is what sampling will see.
Memory: the latents of every level (in a folder: of two), and one batch of activations.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tfkit.diffusion import LatentDiffusion, NonFiniteError, check_frames
from tfkit.trajectory import CLEAN, Folder, Origin, Trajectory, digest
from tfkit.video import Clip


def ddim_step(x: Tensor, noise: Tensor, a_from: Tensor, a_to: Tensor) -> Tensor:
    """Moves ``x`` between two noise levels, given the noise in it (DDIM, sigma = 0)."""
    clean = (x - (1 - a_from) ** 0.5 * noise) / a_from**0.5
    return a_to**0.5 * clean + (1 - a_to) ** 0.5 * noise


@contextmanager
def at_step(step: int, steps: int) -> Iterator[None]:
    """Says in which step a model overflowed."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"step {step + 1} of {steps}: {error}") from None


def invert(
    model: LatentDiffusion,
    frames_or_latents: Tensor | Clip,
    prompt: str = "",
    *,
    steps: int = 50,
    fixed_point: int = 0,
    folder: str | Path | None = None,
    batch: int = 16,
    progress: bool = True,
) -> Trajectory:
    """Inverts a video with DDIM and keeps every level on the way.

    frames_or_latents: (f, 3, h, w) in [0, 1], (f, 4, h, w) latents, or a Clip. prompt: a
    description of the video. fixed_point: how often each step is refined, one more pass each time;
    2 or 3 are worth it. folder: where the levels are kept; a run that was killed goes on there.
    Raises ValueError for bad shapes and values, for steps the schedule cannot take and for a folder
    that belongs to something else; NonFiniteError where the model overflows.
    """
    given = frames_or_latents.frames if isinstance(frames_or_latents, Clip) else frames_or_latents
    if (
        not isinstance(given, Tensor)
        or given.ndim != 4
        or given.shape[1] not in (3, 4)
        or not len(given)
    ):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"frames_or_latents {shape}: expected frames (f, 3, h, w) or latents (f, 4, h, w)"
        )
    for name, value, least in (("fixed_point", fixed_point, 0), ("batch", batch, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
    timesteps = model.timesteps(steps)
    text = model.embed(prompt)
    is_frames = given.shape[1] == 3
    if is_frames:
        check_frames(given)
    elif not torch.isfinite(given).all():
        raise ValueError("latents hold NaN or infinity: expected finite values")
    size = tuple(given.shape[-2:]) if is_frames else None

    def clean() -> Tensor:
        if is_frames:
            return model.encode(given, batch=batch)
        return given.detach().to(model.device, model.precision)

    if folder is None:
        levels: dict[int, Tensor] | Folder = {CLEAN: clean()}
        put = levels.__setitem__
    else:
        shape = (len(given), 4, *given.shape[-2:]) if not is_frames else tuple(given.shape)
        origin = Origin(digest(given), model.fingerprint(), prompt, timesteps, fixed_point, shape,
                        str(model.dtype))  # fmt: skip
        levels = Folder(folder, model.device)
        levels.open(origin, size)
        put = levels.put
        if CLEAN not in levels:
            put(CLEAN, clean())

    done = set(levels) - {CLEAN}
    ascending = timesteps[::-1]
    first = next((i for i, t in enumerate(ascending) if t not in done), steps)
    x = levels[ascending[first - 1] if first else CLEAN]
    bar = tqdm(ascending, desc="invert", initial=first, disable=not progress)
    bar.update(0)
    for i in range(first, steps):
        t, before = ascending[i], ascending[i - 1] if i else None
        with at_step(i, steps):
            chunks = [_up(model, chunk, before, t, text, fixed_point) for chunk in x.split(batch)]
        x = torch.cat(chunks)
        put(t, x)
        bar.update()
    bar.close()
    return Trajectory(timesteps, prompt, size, levels)


@torch.no_grad()
def _up(model, x: Tensor, before: int | None, t: int, text: Tensor, fixed_point: int) -> Tensor:
    """One step towards the noise, from level ``before`` (None: clean) to ``t``."""
    a_from, a_to = model.alpha(before), model.alpha(t)
    there = ddim_step(x, model.predict_noise(x, t, text), a_from, a_to)
    for _ in range(fixed_point):
        there = ddim_step(x, model.predict_noise(there, t, text), a_from, a_to)
    return there


@torch.no_grad()
def sample(
    model: LatentDiffusion,
    x: Float[Tensor, "f c h w"],
    timesteps: tuple[int, ...],
    noise_of: Callable[[int, int, Tensor], Tensor],
    *,
    label: str = "sample",
    progress: bool = True,
) -> Float[Tensor, "f c h w"]:
    """DDIM sampling along descending ``timesteps``; ``noise_of(step, t, x)`` predicts the noise."""
    for i, t in enumerate(tqdm(timesteps, desc=label, disable=not progress)):
        with at_step(i, len(timesteps)):
            noise = noise_of(i, t, x)
        after = timesteps[i + 1] if i + 1 < len(timesteps) else None
        x = ddim_step(x, noise, model.alpha(t), model.alpha(after))
    return x


def reconstruct(
    model: LatentDiffusion, source: Trajectory, *, batch: int = 16, progress: bool = True
) -> Float[Tensor, "f 3 h w"]:
    """Samples a trajectory's noise back with its own prompt: how much of the video survives."""
    text = model.embed(source.prompt)

    def noise_of(step: int, t: int, x: Tensor) -> Tensor:
        return torch.cat([model.predict_noise(chunk, t, text) for chunk in x.split(batch)])

    start = source.noise.to(model.device, model.precision)
    latents = sample(
        model, start, source.timesteps, noise_of, label="reconstruct", progress=progress
    )
    return model.decode(latents, size=source.size, batch=batch)
