"""Image-editing methods: what holds an edited frame to its source, frame by frame.

A method says at which step sampling starts, which of the source's features it injects, and what
else it changes in the UNet during a pass. None of them knows how frames are made consistent.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import floor
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Int
from torch import Tensor

from tfkit import hooks
from tfkit.diffusion import LatentDiffusion
from tfkit.sampling import with_noise
from tfkit.settings import check_choice, check_seed, check_share, settle
from tfkit.trajectory import Trajectory

Branch = Literal["source", "negative", "prompt"]
Noise = Literal["inverted", "fresh"]  # what a method starts from


@dataclass(frozen=True, eq=False)
class Moment:
    """One pass through the UNet: at which step of the trajectory, over which frames.

    frames: indices in the video; the batch holds them once for each of ``branches``. prepared: what
    the method made of the video beforehand. which: the branches' names, all or some of "source",
    "negative" and "prompt" in this order; the prompt's is last, where it is there.
    """

    model: LatentDiffusion
    step: int
    steps: int
    frames: Int[Tensor, " n"]
    branches: int
    prepared: Any = None
    which: tuple[Branch, ...] = ()


@runtime_checkable
class Method(Protocol):
    """What the denoising loop asks of a method. Inherit from Plain and change what differs."""

    reads_source: bool  # whether it injects features of the source

    def first_step(self, steps: int) -> int:
        """The first step to take: 0 starts from the noisiest latents."""
        ...

    def begin(self, model: LatentDiffusion, source: Trajectory, t: int | None) -> Tensor:
        """The latents (f, 4, h, w) to start from at timestep ``t``; None: the clean end."""
        ...

    def prepare(self, model: LatentDiffusion, source: Trajectory) -> Any:
        """What is computed once for a video; every pass has it as ``now.prepared``.

        Raises ValueError where the method does not fit the model or the video.
        """
        ...

    def injects(self, now: Moment) -> list[str]:
        """The modules of the UNet whose output is the source's in every branch of a pass."""
        ...

    def during(self, now: Moment) -> AbstractContextManager:
        """A context around one pass, for whatever else it changes."""
        ...

    def marks_source(self, prepared: Any) -> str | None:
        """A text that tells apart what :meth:`during` does to the source branch; "" for nothing.

        None where it is not known: then nothing of the source is kept for further edits.
        """
        ...


def inverted(source: Trajectory, t: int | None) -> Tensor:
    """A copy of the source's own latents at a timestep, or of its clean ones."""
    return (source.clean if t is None else source.at(t)).clone()


def fresh(source: Trajectory, seed: int) -> Tensor:
    """One draw of noise for all frames (1, 4, h, w), the same on every device."""
    shape, generator = source.clean[:1].shape, torch.Generator().manual_seed(int(seed))
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)  # whatever the default is
    return noise.to(source.clean)


@dataclass(frozen=True)
class Plain:
    """Only the inverted noise and the prompt; nothing else holds the edit to its source."""

    reads_source = False

    def first_step(self, steps: int) -> int:
        return 0

    def begin(self, model: LatentDiffusion, source: Trajectory, t: int | None) -> Tensor:
        return inverted(source, t)

    def prepare(self, model: LatentDiffusion, source: Trajectory) -> Any:
        return None

    def injects(self, now: Moment) -> list[str]:
        return []

    def during(self, now: Moment) -> AbstractContextManager:
        return nullcontext()

    def marks_source(self, prepared: Any) -> str | None:
        return "" if type(self).during is Plain.during else None


@dataclass(frozen=True)
class SDEdit(Plain):
    """Starts part of the way: ``start`` 1 from the noisiest level, 0 nowhere (Meng et al. 2022).

    Of the source's trajectory the last ``start * steps`` steps, rounded (halves up), are sampled
    anew: all of them from 1, none from 0, which gives back the source's own latents. noise:
    "inverted" starts from the trajectory's latents, "fresh" puts noise on the clean ones, one draw
    of ``seed`` for all frames. (The noisiest level still has a trace of the source, sqrt(alpha) of
    it.) Raises ValueError for settings out of range.
    """

    start: float | int = 0.6
    noise: Noise = "inverted"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, get_args(Noise))
        settle(self, start=check_share("start", self.start), seed=check_seed(self.seed))

    def first_step(self, steps: int) -> int:
        return steps - floor(round(self.start * steps, 9) + 0.5)  # 0.29 x 50 is 14.5

    def begin(self, model: LatentDiffusion, source: Trajectory, t: int | None) -> Tensor:
        if self.noise == "inverted" or t is None:
            return inverted(source, t)
        noise = fresh(source, self.seed)
        return with_noise(source.clean, noise, model.alpha(t).to(source.clean))


@dataclass(frozen=True)
class PlugAndPlay(Plain):
    """Injects the source's features into the edited branches (Tumanyan et al. 2023).

    attention: share of the steps in which queries and keys of the decoder's self-attention are the
    source's; convolution: share in which the output of one residual block's second convolution is,
    before its skip connection is added. Both in [0, 1]. Raises ValueError for shares beyond that.

    The places are the paper's, named by structure: of the first decoder block with self-attention
    the second residual block and the attention from the second on, and all attention after it. In
    Stable Diffusion these are layer 4 and layers 4 to 11; in SDXL, whose decoder has attention in
    up_blocks 0 and 1, up_blocks.0.resnets.1 and every attention but up_blocks.0.attentions.0, at
    the same share of the image's resolution.
    """

    attention: float | int = 0.5
    convolution: float | int = 0.8

    reads_source = True

    def __post_init__(self) -> None:
        settle(
            self,
            attention=check_share("attention", self.attention),
            convolution=check_share("convolution", self.convolution),
        )

    def prepare(self, model: LatentDiffusion, source: Trajectory) -> tuple[str, list[str]]:
        """Names of the convolution and of the projections (to_q, to_k) that are injected into."""
        return injected(model.unet)

    def injects(self, now: Moment) -> list[str]:
        convolution, projections = now.prepared
        names = []
        if now.step < int(now.steps * self.convolution):
            names.append(convolution)
        if now.step < int(now.steps * self.attention):
            names += projections
        return names


def from_source(output: Tensor, frames: int) -> Tensor:
    """Features (branches * f, ...) with the first branch's, the source's, put in every branch."""
    branches = len(output) // frames
    if branches == 1:  # the source alone, or a layer that computes nothing else
        return output
    return output[:frames].repeat(branches, *[1] * (output.ndim - 1))


def injection(
    method: Method, now: Moment, features: Mapping[str, Tensor] | None = None
) -> AbstractContextManager[None]:
    """A context around one pass: what the method injects, from the batch's own source branch.

    features: where the source is not in the batch, its features (n, ...) by module. Modules they
    lack stay as they are. Raises ValueError for a method that injects and does not read the source.
    """
    names, frames = method.injects(now), len(now.frames)
    if features is None:
        if names and now.which and "source" not in now.which:
            raise ValueError(
                f"{method!r} injects the source's {names[0]!r}, and its reads_source is False: "
                "expected reads_source = True, with which the source goes through the UNet too"
            )
        return hooks.rewrite(
            now.model.unet, dict.fromkeys(names, partial(from_source, frames=frames))
        )

    def whole(name: str) -> Callable[[Tensor], Tensor]:
        def own(output: Tensor) -> Tensor:
            given = features[name].to(output)
            return given.repeat(len(output) // frames, *[1] * (output.ndim - 1))

        return own

    return hooks.rewrite(now.model.unet, {name: whole(name) for name in names if name in features})


def injected(unet: UNet2DConditionModel) -> tuple[str, list[str]]:
    """Where Plug-and-Play injects: one convolution, and the projections of self-attention.

    Raises ValueError where the decoder has none of them.
    """
    place = re.compile(r"up_blocks\.(\d+)\.attentions\.(\d+)\.")
    found = [(name, place.match(name)) for name in hooks.self_attention(unet)]
    inside = [(name, int(at[1]), int(at[2])) for name, at in found if at]
    first = min((block for _, block, _ in inside), default=0)
    layers = [name for name, block, i in inside if block > first or i > 0]
    if not layers:
        raise ValueError(
            "Plug-and-Play needs self-attention in the decoder (up_blocks), two layers or more, "
            "and this UNet has none there; use tfkit.Plain()"
        )
    projections = [f"{name}.{part}" for name in layers for part in ("to_q", "to_k")]
    return f"up_blocks.{first}.resnets.1.conv2", projections
