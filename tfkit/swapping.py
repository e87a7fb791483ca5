"""Rebuilding a clip from one of its frames: what the redundancy of features amounts to (Figure 2).

Every frame is sampled back from its inversion, but with each self-attention token replaced by its
nearest neighbour among one frame's tokens. If the result is still the frame, that one frame held
all that the others need. Baselines swap pixels or VAE latents instead.
Memory: twice that of sampling, for the unaltered frames go through the UNet too: their tokens say
which is nearest to which.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from tfkit import hooks
from tfkit.attention import attend, project
from tfkit.checks import check_frames
from tfkit.correspondence import nearest_neighbors
from tfkit.diffusion import LatentDiffusion, check_model
from tfkit.inversion import check_fits
from tfkit.memory import fitting
from tfkit.sampling import sample
from tfkit.settings import check_choice, check_whole
from tfkit.trajectory import Trajectory
from tfkit.video import Clip, size_of


@dataclass(eq=False)
class SwapAttention:
    """A processor on [unaltered | altered] frames, the key frame first in both.

    In the altered half each place of a layer's output takes, of the key frame's unaltered tokens,
    the one nearest to its own unaltered token; with match="random", as a control, any of them,
    drawn once for all frames.
    """

    layers: set[nn.Module] = field(default_factory=set)
    match: Literal["nearest", "random"] = "nearest"
    swaps: bool = True

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        if not self.swaps or attn not in self.layers:
            return attend(attn, *project(attn, hidden_states))
        own = attend(attn, *project(attn, hidden_states[: len(hidden_states) // 2]))
        if self.match == "random":
            count = own.shape[1]  # one draw for all frames, however many there are in a pass
            dice = torch.Generator().manual_seed(count)
            index = torch.randint(count, (count,), generator=dice).to(own.device)
            index = index.expand(len(own), -1)
        else:
            index = nearest_neighbors(own, own[:1].expand_as(own)).index
        return torch.cat([own, own[0][index]])


@torch.no_grad()
def rebuild(
    model: LatentDiffusion,
    source: Trajectory,
    *,
    key: int = 0,
    layers: str | Iterable[str] = "*",
    timesteps: Iterable[int] | None = None,
    match: Literal["nearest", "random"] = "nearest",
    batch: int = 8,
    progress: bool = True,
) -> Float[Tensor, "f 3 h w"]:
    """The clip sampled back with every frame's tokens swapped for nearest ones of frame ``key``.

    layers: where (names or wildcards of self-attention); timesteps: when (None: at every one).
    With no timesteps it is tfkit.reconstruct. Tokens are those of the inverted latents. match:
    "random" takes any token of the key frame instead, which shows what the choice is worth.
    Raises ValueError for a frame, layers or timesteps that are not there, and for a source inverted
    under a ControlNet. TokenFlow, section 4.1.
    """
    check_fits(model, source)
    if "control" in source.conditions:
        raise ValueError(
            "the source was inverted under a ControlNet, and rebuilding without it would not lead "
            "back; expected one inverted without"
        )
    batch = check_whole("batch", batch)
    check_choice("match", match, ("nearest", "random"))
    _check_key(key, len(source))
    when = set(source.timesteps if timesteps is None else (int(t) for t in timesteps))
    if when - set(source.timesteps):
        source.at(min(when - set(source.timesteps)))  # says which there are
    text = model.embed(source.prompt)
    modules = hooks.self_attention(model.unet)
    swap = SwapAttention({modules[name] for name in hooks.match(model.unet, layers)}, match=match)
    every = torch.arange(len(source))

    def noise_of(step: int, t: int, x: Tensor) -> Tensor:
        nonlocal batch
        swap.swaps, out = t in when, torch.empty_like(x)
        own = source.at(t) if swap.swaps else x

        def passes(batch: int) -> Tensor:
            for chunk in every.split(batch):
                unaltered = x[:0]
                if swap.swaps:
                    chunk = torch.cat([torch.tensor([key]), chunk])
                    unaltered = own[chunk.to(own.device)].to(x)
                both = torch.cat([unaltered, x[chunk.to(x.device)]])
                depth = source.depth_of(chunk, branches=1 + swap.swaps)
                out[chunk] = model.predict_noise(both, t, text, depth=depth)[len(unaltered) :]
            return out

        _, batch = fitting(passes, batch)
        return out

    x = source.noise.to(model.device, model.precision)
    with hooks.processor(model.unet, swap):
        x = sample(model, x, source.timesteps, noise_of, label="rebuild", progress=progress)
    return model.decode(x, size=source.size, batch=batch)


@torch.no_grad()
def rebuild_from_patches(
    frames: Clip | Tensor, *, key: int = 0, patch: int = 4
) -> Float[Tensor, "f 3 h w"]:
    """The baseline in pixels: every patch of a frame replaced by the most similar one of ``key``.

    patch: its side in pixels, which divides the frames'. Similarity is the squared difference.
    """
    frames = check_frames(frames)
    check_whole("patch", patch)
    h, w = size_of(frames)
    if h % patch or w % patch:
        raise ValueError(f"patch={patch!r}: expected a divisor of the frames' {h} and {w} pixels")
    return _swapped(frames, key, patch)


@torch.no_grad()
def rebuild_from_latents(
    model: LatentDiffusion, frames: Clip | Tensor, *, key: int = 0
) -> Float[Tensor, "f 3 h w"]:
    """The baseline in the VAE: every latent replaced by the most similar one of frame ``key``."""
    check_model(model)
    frames = check_frames(frames)
    return model.decode(_swapped(model.encode(frames), key, 1), size=size_of(frames))


def _swapped(images: Float[Tensor, "f c h w"], key: int, patch: int) -> Tensor:
    """Every patch of every image replaced by the most similar patch of image ``key``."""
    _check_key(key, len(images))
    rows = F.unfold(images, patch, stride=patch).transpose(1, 2)  # (f, n, c * patch^2)
    exact = "donot_use_mm_for_euclid_dist"  # by a product, equal patches are not 0 apart
    index = torch.stack([torch.cdist(x, rows[key], compute_mode=exact).argmin(1) for x in rows])
    swapped = rows[key][index].transpose(1, 2)
    return F.fold(swapped, images.shape[-2:], patch, stride=patch)


def _check_key(key: object, count: int) -> None:
    if not isinstance(key, int) or not 0 <= key < count:
        raise ValueError(f"key={key!r}: expected a frame from 0 to {count - 1}")
