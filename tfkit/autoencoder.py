"""Frames to latents and back, in batches; in tiles where a single frame is too much for memory.

Memory: one batch of a VAE's activations: what there is room for, and half of it each time that it
runs out all the same.
"""

import math
import warnings
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from tfkit import hooks
from tfkit.memory import available_memory, fitting, is_out_of_memory
from tfkit.overflow import overflowed
from tfkit.video import resize, size_of

SHARE = 0.8  # of the memory that is free, to leave some for what is not counted
LEAST_TILE = 32  # latents a side: smaller ones differ too much in colour


def factor_of(vae: AutoencoderKL) -> int:
    """How many pixels a latent spans."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode(
    vae: AutoencoderKL, frames: Float[Tensor, "f 3 H W"], grid: tuple[int, int], batch: int
) -> Float[Tensor, "f c h w"]:
    """Posterior means of frames in [0, 1], resized to what latents of ``grid`` (h, w) span.

    Raises NonFiniteError where the VAE overflows, MemoryError where
    memory runs out even for a small frame or a tile.
    """
    h, w = (side * factor_of(vae) for side in grid)

    def encoded(chunk: Tensor) -> Tensor:
        chunk = resize(chunk.to(vae.device, vae.dtype), (h, w))
        latents = vae.encode(chunk * 2 - 1).latent_dist.mean
        if not torch.isfinite(latents).all():
            raise overflowed("the VAE's encoder", vae.dtype)
        return latents * vae.config.scaling_factor

    return _coded(vae, encoded, frames, grid, batch)


@torch.no_grad()
def decode(
    vae: AutoencoderKL, latents: Float[Tensor, "f c h w"], size: tuple[int, int] | None, batch: int
) -> Float[Tensor, "f 3 H W"]:
    """Frames in [0, 1], resized to ``size`` (H, W) if given.

    Raises NonFiniteError where the VAE overflows, MemoryError where
    memory runs out even for a small frame or a tile.
    """

    def decoded(chunk: Tensor) -> Tensor:
        chunk = chunk.to(vae.device, vae.dtype) / vae.config.scaling_factor
        frames = vae.decode(chunk).sample / 2 + 0.5
        if not torch.isfinite(frames).all():
            raise overflowed("the VAE's decoder", vae.dtype)
        return resize(frames, size or size_of(frames)).clamp(0, 1)

    return _coded(vae, decoded, latents, size_of(latents), batch)


def _coded(
    vae: AutoencoderKL,
    code: Callable[[Tensor], Tensor],
    x: Tensor,
    grid: tuple[int, int],
    batch: int,
) -> Tensor:
    """``code`` of every frame of x, so many at a time as memory allows.

    grid: height and width of the latents. Where one frame is too many, it goes in tiles, which
    costs quality: what the VAE sees of a whole frame is then of a tile.
    """

    def some(n: int) -> Tensor:
        out = None
        for at in range(0, len(x), n):
            part = code(x[at : at + n])
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[at : at + n] = part
        return x if out is None else out

    def tiled(side: int) -> Tensor:
        with hooks.tiles(vae, side, factor_of(vae)):
            return some(1)

    side = 1 << (max(grid) // 2).bit_length() >> 1  # the power of two up to half a frame
    cuts, room = side >= LEAST_TILE, int(SHARE * available_memory(vae.device))
    one, told = activations(vae, *grid), "out of memory"
    if one <= room or not cuts:
        pictures = 12 * len(x) * math.prod(grid) * factor_of(vae) ** 2  # what comes out is held too
        try:
            return fitting(some, min(batch, max((room - pictures) // one, 1)))[0]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not cuts:
                raise
    else:
        told = f"coding a frame takes {one / 2**20:,.0f} MiB of {room / 2**20:,.0f} that are free"
    while side > LEAST_TILE and activations(vae, side, side) > room:
        side //= 2
    warnings.warn(
        f"{told}: coding frames in tiles of {side} x {side} latents, which changes colours a "
        "little; smaller frames would not need it",
        stacklevel=5,  # past encode, no_grad's wrapper and LatentDiffusion's method
    )
    return fitting(tiled, side, name="tile", least=LEAST_TILE)[0]


def activations(vae: AutoencoderKL, h: int, w: int) -> int:
    """Bytes that coding one frame of latents (h, w) takes.

    Counted of diffusers' AutoencoderKL: six maps of its first width and the frame's size at once
    in the decoder, four or five in the encoder.
    """
    size = torch.finfo(vae.dtype).bits // 8
    return 6 * vae.config.block_out_channels[0] * h * w * factor_of(vae) ** 2 * size
