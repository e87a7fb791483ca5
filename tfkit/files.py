"""Files of tensors that appear whole or not at all, and say so when they were damaged since.

Folders of such files belong to one thing, which their manifest names, and to one process at a time.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from errno import EACCES
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tfkit.atomic import left_over, replacing
from tfkit.settings import check_path

SUM = "crc32"  # of all else that a JSON file says; older ones have none
_SUM = "checksum"  # of a file of tensors; older ones have none, or one of their values alone


def checksum_of(values: Mapping[str, Any]) -> str:
    """CRC-32 over what JSON makes of values."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors by name as safetensors, with a checksum of all that they are.

    Raises OSError where the disk is full or read-only; then nothing is there that was not before.
    """
    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(path, save(values, metadata={_SUM: checksum(values)}))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What :func:`save_tensors` wrote. Raises ValueError where the file is lost, cut or altered.

    The file is mapped into memory; changing a tensor never changes the file.
    """
    try:
        with safe_open(path, "pt", device="cpu") as content:
            values = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            written = (content.metadata() or {}).get(_SUM)
    except (SafetensorError, OSError) as error:
        state = "lost" if isinstance(error, FileNotFoundError) else "damaged"
        raise ValueError(f"{path} is {state} ({error})") from None
    if written is not None and written != checksum(values):
        raise ValueError(f"{path} is damaged (its tensors are not those that were written)")
    return {name: value.to(device) for name, value in values.items()}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over names, shapes, dtypes and values of contiguous tensors on the CPU."""
    total = 0
    for name, values in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tuple(values.shape)} {values.dtype}".encode(), total)
        total = zlib.crc32(as_bytes(values), total)
    return f"{total:08x}"


def weights_there(folder: str | Path) -> list[tuple[str, int, int]]:
    """Of each safetensors file below a folder its name, when it was written, and its bytes.

    Other weights that lie there since are told by it, without being read. Empty: no such folder.
    """
    folder = Path(folder).expanduser()
    files = (file for file in sorted(folder.rglob("*.safetensors")) if file.is_file())
    found = ((file, file.stat()) for file in files)
    return [(str(file.relative_to(folder)), of.st_mtime_ns, of.st_size) for file, of in found]


def as_bytes(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, whatever its dtype; nothing is copied."""
    row = values.as_strided((values.numel(),), (1,))
    return row.view(torch.uint8).numpy().data


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all.

    Raises OSError, with the file's name, where the disk is full or read-only.
    """
    try:
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        why = f"{error.strerror}; what was finished is kept; once this is mended, go on from there"
        raise OSError(error.errno, why, str(path)) from error


@contextmanager
def claimed(
    path: str | Path,
    kind: str,
    origin: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    beside: Mapping[str, Any] | None = None,
    unsaid: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """A folder as the place of one thing, made where it is new, for as long as the block lasts.

    kind: what it is ("trajectory"): the manifest is ``kind.json``, and holds ``origin``, which says
    what the thing is computed from. names: how errors call what differs. beside: what a new
    manifest says besides, and is not compared. unsaid: what manifests mean that are silent on it.
    What a killed process left half-written is removed.
    Raises ValueError where the folder belongs to something else, is a file, holds other things or
    is in use by another process.
    """
    path, manifest = check_path("folder", path).absolute(), f"{kind}.json"
    origin = json.loads(json.dumps(origin))
    check_folder(path, kind)
    path.mkdir(parents=True, exist_ok=True)
    with held(path):  # before a look at it: another process may have just begun there
        _check_place(path, kind, origin, names, unsaid)
        for ending in ("json", "safetensors"):  # others may be writing other things here
            for file in left_over(path, f"*.{ending}"):
                file.unlink()
        if not (path / manifest).exists():
            says = {**origin, **(beside or {})}
            says |= {SUM: checksum_of(says)}
            write_whole(path / manifest, json.dumps(says, indent=1).encode())
        yield path


def check_folder(path: str | Path, kind: str) -> None:
    """Raises ValueError unless a folder is new, empty or holds such a thing, whoever's it is.

    PermissionError for a new or empty one that cannot be written.
    """
    path = check_path("folder", path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder for the {kind}")
    if (path / f"{kind}.json").exists():
        return
    if path.exists() and set(path.iterdir()) - set(left_over(path)):
        raise ValueError(f"{path} is not empty and holds no {kind}; give an empty or a new folder")
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(
            EACCES, f"no {kind} can be written there; give another folder", str(place)
        )


def _check_place(
    path: Path,
    kind: str,
    origin: Mapping[str, Any],
    names: Mapping[str, str] | None,
    unsaid: Mapping[str, Any] | None,
) -> None:
    """Raises ValueError unless a folder is empty, or the place of a thing of this origin."""
    if (path / f"{kind}.json").exists():
        theirs = read_manifest(path, kind, origin.keys() - {*(unsaid or {})}, unsaid)
        for name, here in origin.items():
            if theirs[name] != here:
                raise ValueError(
                    f"{path} holds the {kind} of another {(names or {}).get(name, name)}: "
                    f"{_short(theirs[name])} there, {_short(here)} asked for. "
                    "Give another folder, or delete this one."
                )
    else:
        check_folder(path, kind)


def read_manifest(
    path: Path, kind: str, keys: Iterable[str], unsaid: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a folder says it is computed from. ValueError where that is damaged.

    unsaid: what it may say besides, and what it means where it does not.
    """
    try:
        values = json.loads((path / f"{kind}.json").read_text())
        if values.pop(SUM, None) not in (None, checksum_of(values)):
            raise ValueError("altered")
        said = {name: values[name] for name in keys}
        return said | {name: values.get(name, mean) for name, mean in (unsaid or {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{path / kind}.json is damaged, so what {path} belongs to is lost; delete the folder "
            "and begin again"
        ) from None


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out, where the system has locks; a killed process holds none.

    Where another one is in, it waits for it to leave, or raises ValueError.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):  # Windows; a file system without locks
            import fcntl

            lock = os.open(path, os.O_RDONLY)  # the folder itself: nothing is left behind
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise ValueError(
                    f"{path} is in use: another process, or another call in this one, is writing "
                    "to it. Wait for it to end, or give another folder"
                ) from None
        yield


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
