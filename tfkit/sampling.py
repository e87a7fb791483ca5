"""DDIM sampling: one step between two noise levels, along a schedule, and pictures from prompts.

Song et al. 2021, eq. 12 with sigma = 0. Memory: one batch of activations, and what is sampled.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tfkit.diffusion import LatentDiffusion, check_model
from tfkit.memory import fitting
from tfkit.overflow import NonFiniteError
from tfkit.settings import check_guidance, check_seed, check_whole
from tfkit.video import target_size


def with_noise(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Clean latents at the noise level of which ``alpha`` is the share of signal (DDPM, eq. 4)."""
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise


def without_noise(x: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """The clean latents that latents ``x`` head for, given the noise in them."""
    return (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5


def ddim_step(x: Tensor, noise: Tensor, a_from: Tensor, a_to: Tensor) -> Tensor:
    """Moves ``x`` between two noise levels, given the noise in it (DDIM, sigma = 0)."""
    return with_noise(without_noise(x, noise, a_from), noise, a_to)


@contextmanager
def at_step(step: int, steps: int) -> Iterator[None]:
    """Adds the step to the message of a NonFiniteError that the block raises."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"step {step + 1} of {steps}: {error}") from None


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


@torch.no_grad()
def generate(
    model: LatentDiffusion,
    prompts: str | Sequence[str],
    *,
    steps: int = 25,
    guidance: float | int = 7.5,
    negative_prompt: str = "",
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    batch: int = 8,
    progress: bool = True,
) -> Float[Tensor, "n 3 h w"]:
    """One picture in [0, 1] for each prompt, by DDIM and classifier-free guidance.

    size: (height, width) in pixels, or the side of a square; by default the model's own. Each has
    noise of its own, drawn from ``seed`` on the CPU, so it is the same on every device and in every
    batch.
    Raises ValueError for bad values, NonFiniteError where the model overflows.
    """
    check_model(model)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("prompts is empty; expected one text or more")
    batch, guidance = check_whole("batch", batch), check_guidance(guidance)
    seed = check_seed(seed)
    own = model.sample_size
    size = (own, own) if size is None else target_size(size, own, own)
    shape = (len(prompts), 4, *model.grid(*size))
    dice = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=dice, dtype=torch.float32)  # whatever the default is
    text = torch.cat([model.embed(prompt) for prompt in prompts])
    empty = model.embed(negative_prompt)

    def noise_of(step: int, t: int, x: Tensor) -> Tensor:
        nonlocal batch

        def passes(batch: int) -> Tensor:
            out = []
            for part, states in zip(x.split(batch), text.split(batch), strict=True):
                both = torch.cat([empty.expand_as(states), states])
                without, with_text = model.predict_noise(torch.cat([part, part]), t, both).chunk(2)
                out.append(without + guidance * (with_text - without))
            return torch.cat(out)

        noise, batch = fitting(passes, batch)
        return noise

    x = noise.to(model.device, model.precision)
    x = sample(model, x, model.timesteps(steps), noise_of, label="generate", progress=progress)
    return model.decode(x, size=size, batch=batch)
