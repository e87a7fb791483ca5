"""Reads models, wherever they were found: from safetensors only.

Nothing is unpickled and no remote code is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tfkit.diffusion import LatentDiffusion
from tfkit.finding import (
    CONTROLNETS,
    MENAGERIE,
    STABLE_DIFFUSION,
    WEIGHTS,
    XL_PARTS,
    find_controlnet,
    find_model,
    weights_in,
)
from tfkit.libraries import explained, in_a_line, quietly
from tfkit.memory import keep_freed
from tfkit.overflow import HALF

__all__ = [
    "CONTROLNETS", "MENAGERIE", "STABLE_DIFFUSION", "WEIGHTS", "as_ddim", "load",
    "load_controlnet",
]  # fmt: skip
_VOCABULARY = ("vocab.json", "tokenizer.json")


def load(
    name: str | Path = MENAGERIE,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LatentDiffusion:
    """Loads the menagerie, a local folder or a hub id in Stable Diffusion's layout.

    device: the GPU where there is one. dtype: float16 there, float32 on the CPU; the VAE stays in
    float32 beside a half-precision UNet, because Stable Diffusion's, XL's above all, can overflow.
    Raises FileNotFoundError where nothing is found, ValueError for pickled or damaged weights and
    for models that are no Stable Diffusion 1.x, 2.x, 2 depth or XL.
    """
    device = _device(device)
    if device.type == "cpu":
        keep_freed()
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if dtype not in (*HALF, torch.float32, torch.float64):
        raise ValueError(f"dtype={dtype!r}: expected torch.float16, bfloat16, float32 or float64")
    half = dtype in HALF
    folder, parts = find_model(name, half)
    vae_dtype = torch.float32 if half else dtype
    unet = _read(UNet2DConditionModel, folder / "unet", half, torch_dtype=dtype)
    vae = _read(AutoencoderKL, folder / "vae", half, torch_dtype=vae_dtype)
    # What its loader calls the option differs between releases of transformers.
    text_encoder = _read(CLIPTextModel, folder / "text_encoder", half).to(dtype)
    tokenizer, text_encoder_2, tokenizer_2 = _tokenizer(folder / "tokenizer"), None, None
    if parts == XL_PARTS:
        kind, tokenizer_2 = CLIPTextModelWithProjection, _tokenizer(folder / "tokenizer_2")
        text_encoder_2 = _read(kind, folder / "text_encoder_2", half).to(dtype)
    with explained("scheduler", folder), quietly():
        scheduler = as_ddim(DDIMScheduler.load_config(folder / "scheduler"))
    for part in filter(None, (unet, vae, text_encoder, text_encoder_2)):
        part.to(device).eval().requires_grad_(False)
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)
    return LatentDiffusion(
        unet, vae, text_encoder, tokenizer, scheduler, str(name), text_encoder_2, tokenizer_2
    )


def as_ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """The DDIM schedule of any scheduler's config, which clips nothing."""
    return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)


def load_controlnet(
    name: str | Path = MENAGERIE,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> ControlNetModel:
    """Loads the menagerie's ControlNet, a local folder or a hub id, from safetensors only.

    Raises FileNotFoundError where nothing is found, ValueError for pickled or damaged weights.
    """
    half = dtype in HALF
    folder = find_controlnet(name, half)
    net = _read(ControlNetModel, folder, half, torch_dtype=dtype)
    net = net.to(_device(device)).eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


def _device(device: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # "meta" holds no values
    except (RuntimeError, AssertionError, TypeError) as error:  # unknown; or not there
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({in_a_line(error)}); expected 'cpu', or "
            "'cuda' where torch sees a GPU"
        ) from None
    return device


def _tokenizer(folder: Path) -> CLIPTokenizer:
    with explained(folder.name, folder.parent), quietly():
        if not any((folder / file).is_file() for file in _VOCABULARY):
            raise FileNotFoundError(f"{' or '.join(_VOCABULARY)} is missing")  # read as empty
        return CLIPTokenizer.from_pretrained(folder)


def _read(kind: Any, folder: Path, half: bool, **options: Any) -> Any:
    """One component, from safetensors, in the variant that is there."""
    variant, _ = weights_in(folder, (file.name for file in folder.iterdir()), half)
    with explained(folder.name, folder.parent), quietly():
        return kind.from_pretrained(folder, variant=variant, use_safetensors=True, **options)
