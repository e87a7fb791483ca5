"""What edits read of their source, kept so that further edits need not compute it again.

An entry belongs to a timestep and a key, which digests what it depends on besides the source:
correspondence fields as compact integers, and the features that the method injects. Everything else
of the source branch is used once and forgotten.
Memory, or disk where the trajectory lies in a folder: ``budget`` bytes at the most, written and
read in parts of some frames, so that a long video costs no more than a short one meanwhile.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from tfkit.atomic import left_over
from tfkit.files import held, load_tensors, save_tensors

T = TypeVar("T")

BUDGET = 2**30  # bytes: 16 frames of the menagerie in 50 steps take 45 MB
PART = 64  # frames in a part, at least: what is held until it is written

Features = Mapping[str, Tensor]  # by the module's name, (n, ...); "frames" says which
INDEX = None  # the part that says which frames the others have, under the names of all features


class SourceCache:
    """Features of a source by key and timestep; keys written least recently go first.

    folder: where they lie as safetensors, None for memory. budget: bytes, 0 keeps nothing. What
    is kept is an optimisation alone: a step of which a file is lost or damaged counts as absent,
    one that cannot be written is not kept, with a warning, and all gives way to what matters more.
    """

    def __init__(self, folder: str | Path | None = None, budget: int = BUDGET):
        self.folder, self.budget = None if folder is None else Path(folder), budget
        self.warned: set[str] = set()  # keys told of: too large for the budget
        self._refused = False  # whether it was told that the folder takes nothing
        self._memory: dict[str, dict[tuple[int, int | None], Features]] = {}

    def get(self, key: str, t: int) -> "KeptStep | None":
        """What is kept of a step, every part of it, or None."""
        try:
            index = dict(self.load(key, t, INDEX))
            sizes = index.pop("sizes")
            step = KeptStep(self, key, t, set(index), index["frames"], sizes)
            for part in range(len(step.sizes)):
                step.part(part)
        except (ValueError, KeyError):
            return None
        return step

    def put(self, key: str, t: int, part: int | None, features: Features) -> bool:
        """Keeps a part if the budget allows, forgetting other keys for it; whether it did."""
        size = sum(tensor.nbytes for tensor in features.values())
        sizes = dict(self.sizes())
        own = sizes.pop(key, 0)
        if own + size > self.budget:
            return False
        for other in list(sizes):
            if own + size + sum(sizes.values()) <= self.budget:
                break
            del sizes[other]
            self._forget(other)
        if self.folder is None:
            self._memory[key] = self._memory.pop(key, {}) | {(t, part): features}
            return True
        file = self._file(key, t, part)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with held(file.parent, wait=True):  # what is half-written is nobody's then
                for rest in left_over(file.parent, file.name):
                    rest.unlink(missing_ok=True)
                save_tensors(file, features)
        except OSError as error:
            self._tell(error)
            return False
        return True

    def giving_way(self, write: Callable[[], T]) -> T:
        """Calls ``write``, which puts a file on the disk that matters more than what is kept here.

        Where it finds the disk full, everything here is forgotten for it, with a warning, nothing
        more is kept, and it is called once more. Raises OSError where that does not help.
        """
        try:
            return write()
        except OSError as error:
            kept = sum(self.sizes().values())
            if error.errno not in (ENOSPC, EDQUOT) or not kept or not self._beside(error.filename):
                raise
        warnings.warn(
            f"the disk is full: the {kept / 2**20:,.1f} MiB that were kept of the source give way, "
            "and further edits of this video will compute them again. Once there is room: "
            f"source.cache.budget = {self.budget or BUDGET}",
            stacklevel=2,
        )
        self.clear()
        self.budget = 0
        return write()

    def load(self, key: str, t: int, part: int | None) -> Features:
        """A part of a step. Raises KeyError or ValueError where it is lost or damaged."""
        if self.folder is None:
            return self._memory[key][t, part]
        return load_tensors(self._file(key, t, part))

    def drop(self, key: str, t: int) -> None:
        """Forgets a step."""
        if self.folder is None:
            steps = self._memory.get(key, {})
            self._memory[key] = {at: x for at, x in steps.items() if at[0] != t}
            return
        index, parts = self._file(key, t, INDEX), f"t{t:04d}-*.safetensors"
        for file in (index, *(self.folder / key).glob(parts)):  # without an index there is none
            with suppress(OSError):  # not there, or in a folder that is read-only by now
                file.unlink()

    def sizes(self) -> Mapping[str, int]:
        """Bytes kept under each key, the one written least recently first."""
        if self.folder is None:
            return {
                name: sum(x.nbytes for part in parts.values() for x in part.values())
                for name, parts in self._memory.items()
            }
        found: dict[Path, int] = {}
        for file in self.folder.glob("*/*"):
            with suppress(OSError):  # another process forgets it, or has just finished writing it
                found[file.parent] = found.get(file.parent, 0) + file.stat().st_size
        ages = {}
        for path in found:
            with suppress(OSError):
                ages[path] = path.stat().st_mtime
        return {path.name: found[path] for path in sorted(ages, key=lambda path: ages[path])}

    def clear(self) -> None:
        """Forgets everything."""
        for key in self.sizes():
            self._forget(key)

    def _forget(self, key: str) -> None:
        self._memory.pop(key, None)
        if self.folder is not None:
            shutil.rmtree(self.folder / key, ignore_errors=True)

    def _tell(self, error: OSError) -> None:
        """Warns, once, that the folder takes nothing."""
        if not self._refused:
            self._refused = True
            reason = os.strerror(error.errno) if error.errno else str(error)
            warnings.warn(
                f"what the steps read of the source cannot be kept in {str(self.folder)!r} "
                f"({reason}): further edits of this video will compute it again",
                stacklevel=2,
            )

    def _beside(self, file: str | None) -> bool:
        """Whether a file's folder is on the disk that this one is on."""
        if self.folder is None or file is None:
            return False
        return self.folder.stat().st_dev == Path(file).parent.stat().st_dev

    def _file(self, key: str, t: int, part: int | None) -> Path:
        which = "" if part is INDEX else f"-{part:04d}"
        assert self.folder is not None, "in memory there are no files"
        return self.folder / key / f"t{t:04d}{which}.safetensors"

    def __repr__(self) -> str:
        kept, where = sum(self.sizes().values()), self.folder or "in memory"
        return f"SourceCache({kept / 2**20:.0f} MiB of {self.budget / 2**20:.0f}, {where})"


@dataclass(eq=False)
class KeptStep:
    """What is kept of one step. Memory: one part.

    names: of its features. frames: (n,), ascending, those it has. sizes: (parts,), how many of
    these frames are in each part.
    """

    cache: SourceCache
    key: str
    t: int
    names: set[str]
    frames: Int[Tensor, " n"]
    sizes: Int[Tensor, " parts"]
    _last: tuple[int, Features] = (-1, {})

    def part(self, number: int) -> Features:
        """One part; the last one asked for is at hand."""
        if self._last[0] != number:
            self._last = number, self.cache.load(self.key, self.t, number)
        return self._last[1]

    def of(self, frames: Int[Tensor, " m"]) -> Features:
        """The features of some frames.

        Raises KeyError or ValueError where a part is lost since, or another process wrote the step
        again in parts of another size.
        """
        ends = self.sizes.cumsum(0)
        at = torch.searchsorted(self.frames, frames.cpu())
        first, last = (int(torch.searchsorted(ends, x, right=True)) for x in at.aminmax())
        parts = [self.part(number) for number in range(first, last + 1)]
        rows = at - (ends[first] - self.sizes[first])
        found = {}
        for name in self.names:
            of_parts = [part[name] for part in parts]
            whole = torch.cat(of_parts) if len(of_parts) > 1 else of_parts[0]
            found[name] = whole[rows[rows < len(whole)]]
        if not torch.equal(found["frames"], frames.cpu()):
            raise KeyError(f"step {self.t} of {self.key!r}, written again by another process")
        return found


@dataclass(eq=False)
class StepWriter:
    """Keeps a step, frames in ascending order as they come, a part as soon as it is whole.

    bytes: of all that came, kept or not.
    """

    cache: SourceCache
    key: str
    t: int
    bytes: int = 0
    _waiting: list[Features] = field(default_factory=list)
    _frames: list[Tensor] = field(default_factory=list)  # of each part that is written
    _names: list[str] = field(default_factory=list)
    _room: bool = True

    def add(self, features: Features) -> None:
        """Some frames' features; they are copied to the CPU."""
        self.bytes += sum(values.nbytes for values in features.values())
        if self._room:
            self._waiting.append({name: values.cpu() for name, values in features.items()})
            if sum(len(some["frames"]) for some in self._waiting) >= PART:
                self._write()

    def finish(self) -> bool:
        """Writes what is left; whether the step is kept. Without room nothing of it stays."""
        if self._waiting:
            self._write()
        if self._frames and self._room:
            index = {name: torch.empty(0) for name in self._names}
            index["frames"] = torch.cat(self._frames)
            index["sizes"] = torch.tensor([len(some) for some in self._frames])
            self._room = self.cache.put(self.key, self.t, INDEX, index)
        if self._frames and not self._room:  # else what is there is another process's
            self.cache.drop(self.key, self.t)
        return self._room and bool(self._frames)

    def _write(self) -> None:
        part = {
            name: torch.cat([some[name] for some in self._waiting]) for name in self._waiting[0]
        }
        if not self._frames:
            self.cache.drop(self.key, self.t)
        self._room = self.cache.put(self.key, self.t, len(self._frames), part)
        if self._room:
            self._frames.append(part["frames"])
        self._names = list(part)
        self._waiting = []
