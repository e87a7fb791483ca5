"""LoRA and textual inversion, through diffusers' own loaders; and any pipeline diffusers holds.

A model is never changed: what is learned goes into a copy of the parts it changes. LoRA weights are
merged into the UNet (and text encoders), so that its modules keep their names. Read from
safetensors only. Memory: a second UNet for LoRA, a second text encoder for an embedding.
"""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tfkit.diffusion import LatentDiffusion, check_model
from tfkit.finding import PARTS, PICKLED, listing, parts_of
from tfkit.libraries import explained, quietly
from tfkit.loading import as_ddim
from tfkit.overflow import HALF


def from_pipeline(pipeline: Any, *, name: str = "") -> LatentDiffusion:
    """The model of a StableDiffusionPipeline or its kin (XL, depth), adapters and all.

    Its parts are shared, not copied, set to evaluation and frozen (no gradients), as weights are
    never trained here; its scheduler is left and a DDIM schedule made of its config. A VAE in half
    precision is copied to float32. Raises ValueError for a pipeline without the parts of a Stable
    Diffusion, and for one that reads more than latents, as inpainting does.
    """
    missing = [part for part in PARTS if getattr(pipeline, part, None) is None]
    if missing:
        raise ValueError(
            f"{type(pipeline).__name__} has no {missing[0]}; expected a diffusers pipeline with "
            f"{', '.join(PARTS)}, such as StableDiffusionPipeline"
        )
    parts_of(name or type(pipeline).__name__, pipeline.unet.config)
    second = (getattr(pipeline, part, None) for part in ("text_encoder_2", "tokenizer_2"))
    vae = pipeline.vae
    if vae.dtype in HALF:
        vae = copy.deepcopy(vae).float()
    model = LatentDiffusion(
        pipeline.unet, vae, pipeline.text_encoder, pipeline.tokenizer,
        as_ddim(pipeline.scheduler.config), name or type(pipeline).__name__, *second,
    )  # fmt: skip
    for part in filter(None, (model.unet, vae, model.text_encoder, model.text_encoder_2)):
        part.eval().requires_grad_(False)
    return model


def load_lora(
    model: LatentDiffusion, weights: str | Path, *, scale: float | int = 1.0
) -> LatentDiffusion:
    """The model with a LoRA (Hu et al. 2022) merged in, ``scale`` times.

    weights: a .safetensors file, a folder that holds one, or a hub id. Needs peft, as diffusers
    does. Raises ImportError without it, FileNotFoundError where nothing is found, ValueError for
    weights that are pickled, damaged or fit no layer of this model.
    """
    check_model(model)
    if importlib.util.find_spec("peft") is None:
        raise ImportError(
            "a LoRA is read through diffusers, which needs peft for it; install it with "
            "pip install 'tfkit[adapters]'"
        )
    state, place = _read(weights, "pytorch_lora_weights.safetensors")
    changed = {"unet": copy.deepcopy(model.unet)} | _copies(model, "text_encoder")
    pipeline = _pipeline(replace(model, **changed))
    with explained("LoRA", place), quietly():
        pipeline.load_lora_weights(state)
        found = [k for part in changed.values() for k in part.state_dict() if "lora_" in k]
        if not found:
            raise ValueError(
                f"its {len(state)} tensors, {min(state)!r} the first, fit no layer of "
                f"{model.name!r}; expected a LoRA of the same Stable Diffusion"
            )
        pipeline.fuse_lora(lora_scale=float(scale))
        pipeline.unload_lora_weights()
    return _merged(model, pipeline, place)


def load_embedding(
    model: LatentDiffusion, weights: str | Path, *, token: str | None = None
) -> LatentDiffusion:
    """The model with a learned word (textual inversion, Gal et al. 2023) in its vocabulary.

    weights: a .safetensors file, a folder that holds one, or a hub id. token: how prompts spell it;
    None: as its file says. For SDXL a file holds "clip_l" and "clip_g". Raises FileNotFoundError
    where nothing is found, ValueError for weights that are pickled, damaged or do not fit, and for
    a token that is in the vocabulary already.
    """
    check_model(model)
    state, place = _read(weights, "learned_embeds.safetensors")
    changed = _copies(model, "text_encoder") | _copies(model, "tokenizer")
    pipeline = _pipeline(replace(model, **changed))
    with explained("embedding", place), quietly():
        if model.text_encoder_2 is None:
            pipeline.load_textual_inversion(state, token=token)
        else:
            if not {"clip_l", "clip_g"} <= state.keys() or token is None:
                raise ValueError(
                    f"it holds {', '.join(sorted(state))} and token={token!r}; expected clip_l and "
                    "clip_g, one for each text encoder of SDXL, and a token"
                )
            for key, end in (("clip_l", ""), ("clip_g", "_2")):
                pipeline.load_textual_inversion(
                    state[key], token=token, text_encoder=getattr(pipeline, f"text_encoder{end}"),
                    tokenizer=getattr(pipeline, f"tokenizer{end}"),
                )  # fmt: skip
    return _merged(model, pipeline, place)


def _copies(model: LatentDiffusion, part: str) -> dict:
    names = [name for name in (part, f"{part}_2") if getattr(model, name) is not None]
    return {name: copy.deepcopy(getattr(model, name)) for name in names}


def _merged(model: LatentDiffusion, pipeline: Any, place: Path) -> LatentDiffusion:
    """What is in the pipeline, on the model's own schedule and with its own VAE."""
    name = f"{model.name} + {place.stem}"
    made = replace(from_pipeline(pipeline, name=name), vae=model.vae, scheduler=model.scheduler)
    for encoder in filter(None, (made.text_encoder, made.text_encoder_2)):
        encoder.to(model.device, model.dtype)
    return made


def _pipeline(model: LatentDiffusion) -> Any:
    """A diffusers pipeline around the model's parts: its loaders are methods of one."""
    # Here, not above: beside a broken torchvision this import fails, and nothing else needs it.
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = {name: getattr(model, name) for name in PARTS}
    parts["scheduler"] = copy.deepcopy(model.scheduler)  # whose settings the pipeline corrects
    with quietly():
        if model.text_encoder_2 is not None:
            second = {n: getattr(model, n) for n in ("text_encoder_2", "tokenizer_2")}
            return StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
        unchecked = {"safety_checker": None, "feature_extractor": None}
        return StableDiffusionPipeline(**parts, **unchecked, requires_safety_checker=False)


def _read(weights: str | Path, usual: str) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a safetensors file and its path, wherever it is found."""
    if not isinstance(weights, str | Path) or not str(weights).strip():
        raise ValueError(f"weights={weights!r}: expected a .safetensors file, a folder or a hub id")
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / _choose(weights, [file.name for file in path.iterdir()], usual)
    elif not path.is_file():
        if path.suffix in (".safetensors", *PICKLED) or path.is_absolute():
            raise FileNotFoundError(
                f"{str(weights)!r} does not exist; expected a .safetensors file, a folder or a hub "
                "id"
            )
        names = listing(str(weights), usual)
        if isinstance(names, Path):
            path = names / usual
        else:
            path = Path(hf_hub_download(str(weights), _choose(weights, names, usual)))
    if path.suffix != ".safetensors":
        how = (
            "is pickled and could run code: refused" if path.suffix in PICKLED else "is no weights"
        )
        raise ValueError(f"{str(path)!r} {how}; expected a .safetensors file")
    try:
        return {k: v.to(torch.float32) for k, v in load_file(path).items()}, path
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); download it again") from None


def _choose(place: str | Path, names: list[str], usual: str) -> str:
    """The one file of weights among names."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if usual in found or len(found) == 1:
        return usual if usual in found else found[0]
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled and not found:
        raise ValueError(
            f"{str(place)!r} holds only {pickled[0]}, which is pickled and could run code: "
            "refused; expected a .safetensors file"
        )
    raise FileNotFoundError(
        f"{str(place)!r} holds {', '.join(found) or 'no .safetensors file'}; expected one of them "
        f"or {usual!r}: give the file's own path"
    )
