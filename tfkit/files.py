"""Files of tensors that appear whole or not at all, and say so when they were damaged since."""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by name as safetensors, with a checksum of their values.

    Raises OSError where the disk is full or read-only; then nothing is there that was not before.
    """
    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(path, save(values, metadata={"crc32": checksum(values)}))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What :func:`save_tensors` wrote; the file is mapped, and a change of a tensor never reaches
    it. Raises ValueError where it is lost, cut or altered."""
    try:
        with safe_open(path, "pt", device="cpu") as content:
            values = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            written = (content.metadata() or {}).get("crc32")
    except (SafetensorError, OSError) as error:
        state = "lost" if isinstance(error, FileNotFoundError) else "damaged"
        raise ValueError(f"{path} is {state} ({error})") from None
    if written is not None and written != checksum(values):
        raise ValueError(f"{path} is damaged (its values are not those that were written)")
    return {name: value.to(device) for name, value in values.items()}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over the values of contiguous tensors on the CPU, in the order of their names."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(as_bytes(tensors[name]), total)
    return f"{total:08x}"


def as_bytes(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, whatever its dtype; nothing is copied."""
    row = values.as_strided((values.numel(),), (1,))
    return memoryview(row.view(torch.uint8).numpy())


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_part(file: Path) -> bool:
    """Whether a file is what a killed run left half-written."""
    return file.name.startswith(".") and file.name.endswith(".part")
