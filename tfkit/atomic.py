"""Files and folders that appear whole or not at all: the one way tfkit writes."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when all went well, and vanishes if not.

    A folder replaces a folder as a whole, which is put back if that fails midway; a
    file never takes that of a folder, and is on the disk before it has its name. What a link leads
    to is replaced, and not the link. Missing parent folders are made.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary, old = (path.with_name(f".{kind}-{mark}-{path.name}") for kind in ("new", "old"))
    try:
        yield temporary
        if temporary.is_file():
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
        try:
            if temporary.is_dir() and path.is_dir():  # os.replace refuses one with files in it
                os.replace(path, old)
            os.replace(temporary, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        remove(temporary)


def _flush(folder: Path) -> None:
    """Puts a folder's names on the disk, so that a file keeps its own when the power goes."""
    with suppress(OSError):  # Windows, and file systems that cannot
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def left_over(
    folder: Path, name: str = "*", *, age: float | int = 0, kind: str = "new"
) -> list[Path]:
    """What killed runs left half-written of files of a name or pattern.

    age: only what nobody has touched for so many seconds; what is younger may be being written.
    kind: "old" for folders whose place was being taken, where another has it now.
    """
    found, now = [], time.time()
    for path in folder.glob(f".{kind}-{'[0-9a-f]' * 8}-{name}"):
        with suppress(FileNotFoundError):  # it has just got its name
            gone = kind == "old" and not path.with_name(path.name[len(".old-01234567-") :]).exists()
            if not gone and (not age or now - path.stat().st_mtime > age):
                found.append(path)
    return found


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
