"""Image-editing methods: what holds an edited frame to its source, frame by frame.

A method says at which step sampling starts, whether it reads the source branch, and what it
changes in the UNet during a pass. None of them knows how frames are made consistent.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from tfkit import hooks
from tfkit.diffusion import LatentDiffusion, check_whole
from tfkit.trajectory import Trajectory


@runtime_checkable
class Method(Protocol):
    """What the denoising loop asks of a method."""

    reads_source: bool

    def first_step(self, steps: int) -> int:
        """The first step to take: 0 starts from the noisiest latents."""
        ...

    def begin(self, model: LatentDiffusion, source: Trajectory, t: int | None) -> Tensor:
        """The latents (f, 4, h, w) to start from at timestep ``t``; None: the clean end."""
        ...

    def during(
        self, model: LatentDiffusion, step: int, steps: int, frames: int
    ) -> AbstractContextManager:
        """A context around one pass over ``frames`` frames in every branch."""
        ...


def inverted(source: Trajectory, t: int | None) -> Tensor:
    """The source's own latents at a timestep, or its clean ones."""
    return source.clean.clone() if t is None else source.at(t)


@dataclass(frozen=True)
class Plain:
    """Only the inverted noise and the prompt; nothing else holds the edit to its source."""

    reads_source = False

    def first_step(self, steps: int) -> int:
        return 0

    def begin(self, model, source, t) -> Tensor:
        return inverted(source, t)

    def during(self, model, step, steps, frames) -> AbstractContextManager:
        return nullcontext()


@dataclass(frozen=True)
class SDEdit:
    """Starts part of the way: ``start`` 1 is pure noise, 0 changes nothing (Meng et al. 2022).

    Of the source's trajectory the last ``round(start * steps)`` steps are sampled anew. noise:
    "inverted" starts from the trajectory's own latents, "fresh" puts noise on the clean ones, one
    draw of ``seed`` for all frames.
    """

    start: float | int = 0.6
    noise: Literal["inverted", "fresh"] = "inverted"
    seed: int = 0

    reads_source = False

    def __post_init__(self):
        _fraction("start", self.start)
        check_whole("seed", self.seed, least=0)
        if self.noise not in ("inverted", "fresh"):
            raise ValueError(f"noise={self.noise!r}: expected 'inverted' or 'fresh'")

    def first_step(self, steps: int) -> int:
        return steps - round(self.start * steps)

    def begin(self, model, source, t) -> Tensor:
        if self.noise == "inverted" or t is None:
            return inverted(source, t)
        clean, generator = source.clean, torch.Generator().manual_seed(self.seed)
        noise = torch.randn(clean[:1].shape, generator=generator).to(clean)
        alpha = model.alpha(t).to(clean)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def during(self, model, step, steps, frames) -> AbstractContextManager:
        return nullcontext()


@dataclass(frozen=True)
class PlugAndPlay:
    """Injects the source's features into the edited branches (Tumanyan et al. 2023).

    attention: share of the steps in which queries and keys of the decoder's self-attention are the
    source's; convolution: share in which one residual block's output is. Both in [0, 1].
    """

    attention: float | int = 0.5
    convolution: float | int = 0.8

    reads_source = True

    def __post_init__(self):
        _fraction("attention", self.attention)
        _fraction("convolution", self.convolution)

    def first_step(self, steps: int) -> int:
        return 0

    def begin(self, model, source, t) -> Tensor:
        return inverted(source, t)

    def during(self, model, step, steps, frames) -> AbstractContextManager:
        names = []
        if step < int(steps * self.convolution):
            names.append("up_blocks.1.resnets.1.conv2")
        if step < int(steps * self.attention):
            names += _queries_and_keys(model.unet)
        return hooks.rewrite(model.unet, names, partial(from_source, frames=frames))


def from_source(output: Tensor, frames: int) -> Tensor:
    """Features (branches * f, ...) in which every branch has those of the first, the source."""
    branches = len(output) // frames  # 1 where a layer computes the source branch alone
    return output[:frames].repeat(branches, *[1] * (output.ndim - 1))


def _queries_and_keys(unet) -> list[str]:
    """Projections of the self-attention in decoder layers 4 to 11, as the paper counts them."""
    inside = re.compile(r"up_blocks\.(1\.attentions\.[12]|[23]\.attentions\.\d+)\.")
    layers = [name for name in hooks.self_attention(unet) if inside.match(name)]
    if not layers:
        raise ValueError(
            "Plug-and-Play needs self-attention in the decoder (up_blocks 1 to 3), and this UNet "
            "has none there; use tfkit.Plain()"
        )
    return [f"{name}.{part}" for name in layers for part in ("to_q", "to_k")]


def _fraction(name: str, value: float | int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a share of the steps, from 0 to 1")
