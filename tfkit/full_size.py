"""What an edit takes at Stable Diffusion's full size: its shapes with random weights, on a GPU.

Time and memory depend on shapes alone, so that no weights are needed. Rows of the benchmark, in
absolute seconds and GiB; every edit's ratio is to plain UNet passes over all frames.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tfkit.diffusion import LatentDiffusion
from tfkit.inversion import invert
from tfkit.loading import load
from tfkit.menagerie import film
from tfkit.propagation import TokenFlow
from tfkit.session import EditSession
from tfkit.timing import Row
from tfkit.trajectory import Trajectory
from tfkit.video import resize

CAPTION, PROMPT = "a striped orange fox on grass", "a fox at night"
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What decides time and memory. text: widths of the text encoders."""

    name: str
    unet: Mapping[str, Any]
    vae_widths: tuple[int, ...]
    text: tuple[int, ...]


SD15 = Shape(
    "Stable Diffusion 1.5",
    MappingProxyType({
        "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768, "attention_head_dim": 8,
    }),
    (128, 256, 512, 512),
    (768,),
)  # fmt: skip
SDXL = Shape(
    "Stable Diffusion XL",
    MappingProxyType({
        "sample_size": 128, "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True, "cross_attention_dim": 2048,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    }),
    (128, 256, 512, 512),
    (768, 1280),
)  # fmt: skip


@torch.no_grad()
def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """A model of a shape with the weights that its classes begin with.

    The text encoders have the width that matters and two layers: a prompt is read once.
    """
    tokenizer = load(device="cpu").tokenizer
    levels = len(shape.vae_widths)
    with torch.device(device), _made_in(dtype):
        unet = UNet2DConditionModel(**shape.unet)
        first = CLIPTextModel(_text_config(shape.text[0], tokenizer))
        second = None
        if len(shape.text) > 1:
            second = CLIPTextModelWithProjection(_text_config(shape.text[1], tokenizer))
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=shape.vae_widths, layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    for part in filter(None, (unet, first, second)):
        nn.Module.to(part, dtype)  # diffusers' own warns of layers to keep in float32: here none
        part.eval().requires_grad_(False)
    vae.eval().requires_grad_(False)
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)
    return LatentDiffusion(
        unet, vae, first, tokenizer, scheduler, shape.name, second, second and tokenizer
    )


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """New weights have this dtype: in float32 first, XL's would fill a GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _text_config(width: int, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=2, num_attention_heads=width // 64, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def video_to_video(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype = torch.float16,
    *,
    frames: int = 40,
    side: int = 512,
    steps: int = 50,
    batch: int = 8,
) -> Iterator[Row]:
    """Inverting a video, its first edit and a further one, decoded."""
    model = random_model(shape, device, dtype)
    clip = resize(film(CAPTION, frames=frames), side)
    x, text = model.encode(clip, batch=batch), model.embed(CAPTION)
    found: list[Trajectory] = []

    def plain() -> None:
        for _ in range(steps):
            for some in x.split(batch):
                model.predict_noise(some, 501, text)

    def inverted() -> None:
        found.append(invert(model, clip, CAPTION, steps=steps, batch=batch, progress=False))
        found[0].cache.budget = 8 * GIB  # all of it, so that a further edit is one

    def edited() -> None:
        way = TokenFlow(interval=8)
        session = EditSession(model, found[0], PROMPT, propagation=way, batch=batch)
        session.run(progress=False).frames()

    model.predict_noise(x[:batch], 501, text)  # the first pass chooses its kernels
    what = f"{shape.name}, {frames} frames of {side}, {steps} steps"
    passes, _ = _taken(plain, device)
    yield Row(f"{what}: plain passes", passes)
    jobs: dict[str, Callable[[], None]] = {
        "inversion": inverted, "first edit, decoded": edited, "a further edit, decoded": edited,
    }  # fmt: skip
    for name, job in jobs.items():
        took, peak = _taken(job, device)
        yield Row(f"{what}: {name}", took, took / passes, "the plain passes")
        if peak:
            yield Row(f"{what}: {name}, peak", peak / GIB, unit="GiB")


def _taken(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds, and bytes at the peak of the GPU's memory (0 without one), of a single call."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize(device)
    took = time.perf_counter() - start
    return took, torch.cuda.max_memory_allocated(device) if gpu else 0


def on_gpu(model: LatentDiffusion) -> Iterator[Row]:
    """Stable Diffusion's shapes in float16, on the GPU where the benchmark runs."""
    if model.device.type == "cuda":
        for shape in (SD15, SDXL):
            yield from video_to_video(shape, model.device)
            torch.cuda.empty_cache()
