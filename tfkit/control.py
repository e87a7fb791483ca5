"""ControlNet: the source's structure through a condition, edges say, and nothing else of it.

A ControlNet reads latents, text and condition of each frame by itself and adds to the UNet's skip
connections (Zhang et al., ICCV 2023); self-attention stays the propagation's business. Memory: the
ControlNet, about half the UNet, and the condition clip (edges: one channel of it).
"""

import copy
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor

from tfkit import hooks
from tfkit.checks import check_frames
from tfkit.conditions import canny
from tfkit.diffusion import LatentDiffusion
from tfkit.finding import local_controlnet
from tfkit.identity import key_of
from tfkit.loading import CONTROLNETS, MENAGERIE, load_controlnet
from tfkit.methods import Moment, Noise, Plain, fresh, inverted
from tfkit.overflow import NonFiniteError
from tfkit.settings import check_choice, check_seed, check_share, is_finite, settle
from tfkit.spots import digest_spots
from tfkit.trajectory import Trajectory, digest
from tfkit.video import Clip, resize
from tfkit.video_file import VideoFile


def _weights(net: ControlNetModel) -> str:
    """A short digest: 64 values of each of its weights."""
    return digest_spots(net.parameters()).hex()[:16]


@lru_cache
def _digest_of(file: Path, date: int) -> str:
    """Of a file's content, read once while it keeps its date."""
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as data:
        return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, eq=False)
class Controlled:
    """A ControlNet beside a model, and its condition (f, 3, H, W) in the model's own dtype."""

    net: ControlNetModel
    condition: Float[Tensor, "f 3 H W"]

    def fingerprint(self) -> str:
        """A short digest of the ControlNet: 64 values of each of its weights."""
        return _weights(self.net)


@dataclass(frozen=True, eq=False, repr=False)
class ControlNet(Plain):
    """Holds an edit to a condition clip, in every branch; usable in inversion too.

    condition: a clip (f, 3, h, w) in [0, 1], one picture (1, 3, h, w) for all frames, or a function
    from frames to one; None: what the source was inverted under, else its Canny edges. These are
    of the source's decoded latents; ``tfkit.canny(clip)`` gives those of the frames themselves.
    model: "menagerie", a hub id, a folder or a diffusers ControlNetModel. scale: of what it adds to
    the UNet. until: share of the steps in which it adds it. noise: start from the "inverted"
    latents, or from "fresh" noise, one draw of ``seed`` for all frames; then all structure comes
    from the condition.
    Raises ValueError for settings out of range.
    """

    condition: Tensor | Clip | Callable[[Tensor], Tensor] | None = None
    model: str | Path | ControlNetModel = MENAGERIE
    scale: float | int = 1.0
    until: float | int = 1.0
    noise: Noise = "inverted"
    seed: int = 0

    __eq__, __hash__ = object.__eq__, object.__hash__  # Plain's would compare none of these

    def __post_init__(self) -> None:
        if not is_finite(self.scale):
            raise ValueError(f"scale={self.scale!r}: expected a finite number; 1 is usual")
        if not isinstance(self.model, str | Path | ControlNetModel):
            raise ValueError(
                f"model={self.model!r}: expected {MENAGERIE!r}, a hub id, a folder or a diffusers "
                "ControlNetModel"
            )
        check_choice("noise", self.noise, get_args(Noise))
        settle(
            self,
            scale=float(self.scale),
            until=check_share("until", self.until),
            seed=check_seed(self.seed),
        )
        condition = self.condition
        if not (condition is None or isinstance(condition, Tensor | Clip) or callable(condition)):
            raise ValueError(
                f"condition={condition!r}: expected a clip (f, 3, h, w) in [0, 1], a function from "
                "frames to one such as tfkit.canny, or None for Canny edges"
            )

    def __repr__(self) -> str:
        seen = self.condition.frames if isinstance(self.condition, Clip) else self.condition
        shown = str(seen)
        if isinstance(seen, Tensor):
            shown = f"<{' x '.join(map(str, seen.shape))}, {digest(seen)}>"
        net = self.model if isinstance(self.model, str | Path) else type(self.model).__name__
        return (
            f"ControlNet(condition={shown}, model={str(net)!r}, scale={self.scale}, "
            f"until={self.until}, noise={self.noise!r}, seed={self.seed})"
        )

    def fingerprint(self) -> str:
        """A digest of the settings and the ControlNet: its weights, and of a hub id its name."""
        own: dict[str, Any] = dict(vars(self))
        if isinstance(self.model, ControlNetModel):
            own["model"] = _weights(self.model)
        elif (folder := local_controlnet(self.model)).is_dir():
            files = sorted(folder.glob("*.safetensors"))
            own["model"] = [_digest_of(file, file.stat().st_mtime_ns) for file in files]
        return key_of(own)

    def begin(self, model: LatentDiffusion, source: Trajectory, t: int | None) -> Tensor:
        if self.noise == "inverted" or t is None:
            return inverted(source, t)
        return fresh(source, self.seed).expand_as(source.clean).clone()

    def see(
        self, model: LatentDiffusion, given: Tensor | VideoFile, batch: int = 16
    ) -> Float[Tensor, "f 3 H W"]:
        """The condition of frames (f, 3, h, w), latents (f, 4, h, w) or a file of frames, at the
        latents' size.

        Canny edges are found ``batch`` frames at a time, and held as one channel; a function of
        your own is given all frames. Raises ValueError for a condition that is no clip of as many.
        """
        count, channels, *sides = given.shape
        h, w = sides if channels == 4 else model.grid(*sides)
        size = h * model.factor, w * model.factor

        def frames(part: Tensor) -> Tensor:
            return model.decode(part) if channels == 4 else resize(part, size)

        chunks = given.split(batch) if isinstance(given, Tensor) else given.chunks(batch)
        if self.condition is None:
            edges = torch.cat([canny(frames(part))[:, :1] for part in chunks])
            return edges.to(model.device, model.precision).expand(-1, 3, -1, -1)
        seen = self.condition
        if not isinstance(seen, Tensor | Clip):
            seen = seen(torch.cat([frames(part) for part in chunks]))
        try:
            seen = check_frames(seen).detach()
        except ValueError as error:
            raise ValueError(f"the ControlNet's condition: {error}") from None
        if len(seen) not in (1, count):
            raise ValueError(
                f"the ControlNet's condition has {len(seen)} frames; expected 1 or the video's "
                f"{count}"
            )
        return resize(seen, size).to(model.device, model.precision).expand(count, -1, -1, -1)

    def bind(self, model: LatentDiffusion, condition: Tensor) -> Controlled:
        """The ControlNet, loaded, with its condition. Raises ValueError where it does not fit."""
        net = self.model
        if not isinstance(net, ControlNetModel):
            net = load_controlnet(net, device=model.device, dtype=model.dtype)
        elif (net.device, net.dtype) != (model.device, model.dtype):
            net = copy.deepcopy(net).to(model.device, model.dtype)  # the user's stays as it is
        name = self.model if isinstance(self.model, str | Path) else "this ControlNet"
        check_beside(model, net, str(name))
        if condition.stride(1) == 0:  # one channel for all three
            alike = condition[:, :1].to(model.device, model.dtype).expand(-1, 3, -1, -1)
            return Controlled(net, alike)
        return Controlled(net, condition.to(model.device, model.dtype))

    def prepare(self, model: LatentDiffusion, source: Trajectory) -> Controlled:
        """Loads the ControlNet and makes the condition.

        Raises FileNotFoundError where it is not found, ValueError where it or the condition does
        not fit the model or the video.
        """
        kept = source.conditions.get("control") if self.condition is None else None
        return self.bind(model, self.see(model, source.clean) if kept is None else kept)

    def marks_source(self, prepared: Controlled) -> str:
        seen = digest(prepared.condition.split(16))
        return f"ControlNet {prepared.fingerprint()} {seen} {self.scale} {self.until}"

    def during(self, now: Moment) -> AbstractContextManager:
        if now.step >= int(now.steps * self.until) or not self.scale:
            return nullcontext()
        net, whole = now.prepared.net, now.prepared.condition
        condition = whole[now.frames.to(whole.device)].repeat(now.branches, 1, 1, 1)
        return hooks.add_residuals(now.model.unet, partial(residuals, net, condition, self.scale))


def residuals(
    net: ControlNetModel,
    condition: Tensor,
    scale: float,
    sample: Tensor,
    timestep: Any,
    *,
    encoder_hidden_states: Tensor,
    added_cond_kwargs: dict | None = None,
) -> tuple[list[Tensor], Tensor]:
    """What a ControlNet adds, from what the UNet is about to be given.

    Raises NonFiniteError where it overflows.
    """
    down, mid = net(
        sample[:, : net.config.in_channels], timestep, encoder_hidden_states=encoder_hidden_states,
        controlnet_cond=condition, conditioning_scale=scale, added_cond_kwargs=added_cond_kwargs,
        return_dict=False,
    )  # fmt: skip
    if not all(torch.isfinite(part).all() for part in (*down, mid)):
        raise NonFiniteError(
            f"a NaN or infinity first appears in the ControlNet, at timestep {int(timestep)} in "
            f"{net.dtype}. Load the model with dtype=torch.float32, or lower scale={scale}."
        )
    return list(down), mid


def check_beside(model: LatentDiffusion, net: ControlNetModel, name: str) -> None:
    """Raises ValueError unless a ControlNet's outputs fit the UNet's skip connections."""
    unet = model.unet.config
    for what in ("block_out_channels", "layers_per_block", "cross_attention_dim",
                 "addition_embed_type"):  # fmt: skip
        theirs, ours = (
            list(x) if isinstance(x, tuple) else x for x in (net.config[what], unet[what])
        )
        if theirs != ours:
            raise ValueError(
                f"ControlNet {name!r} does not fit {model.name!r}: its {what} is {theirs}, the "
                f"UNet's {ours}. Give one that was trained on this model: ControlNet(model=...), "
                f"for Stable Diffusion 1.5 {CONTROLNETS['1.5']!r}"
            )
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if factor != model.factor:
        raise ValueError(
            f"ControlNet {name!r} reads conditions {factor} times as large as latents, but a "
            f"latent of {model.name!r} spans {model.factor} pixels; give one trained on this model"
        )
