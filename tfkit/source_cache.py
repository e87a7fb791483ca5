"""What edits read of their source, kept so that further edits need not compute it again.

An entry belongs to one step of one schedule: correspondence fields as compact integers, and the
features that the method injects. Everything else of the source branch is used once and forgotten.
Memory, or disk where the trajectory lies in a folder: ``budget`` bytes at the most.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tfkit.files import load_tensors, save_tensors

BUDGET = 2**30  # bytes: 16 frames of the menagerie in 50 steps take 45 MB

Features = dict[str, Tensor]  # by name, over the frames of a step


class SourceCache:
    """Features of a source by schedule and timestep; schedules written least recently go first.

    folder: where they lie as safetensors, None for memory. budget: bytes, 0 keeps nothing. What
    is kept is an optimisation alone: a file that is lost or damaged counts as absent, and one
    that cannot be written is not kept.
    """

    def __init__(self, folder: str | Path | None = None, budget: int = BUDGET):
        self.folder, self.budget = None if folder is None else Path(folder), budget
        self._memory: dict[str, dict[int, Features]] = {}

    def get(self, schedule: str, t: int) -> Features | None:
        """What is kept of a step, or None."""
        if self.folder is None:
            return self._memory.get(schedule, {}).get(t)
        try:
            return load_tensors(self._file(schedule, t))
        except ValueError:
            return None

    def put(self, schedule: str, t: int, features: Features) -> bool:
        """Keeps a step where the budget allows, at the cost of other schedules; whether it did."""
        size = sum(tensor.nbytes for tensor in features.values())
        sizes = self.sizes()
        own = sizes.pop(schedule, 0)
        if own + size > self.budget:
            return False
        for other in list(sizes):
            if own + size + sum(sizes.values()) <= self.budget:
                break
            del sizes[other]
            self._forget(other)
        if self.folder is None:
            self._memory[schedule] = self._memory.pop(schedule, {}) | {t: features}
            return True
        file = self._file(schedule, t)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            for part in file.parent.glob(f".{file.name}.*"):  # of a killed process
                part.unlink(missing_ok=True)
            save_tensors(file, features)
        except OSError:
            return False
        return True

    def sizes(self) -> Mapping[str, int]:
        """Bytes kept of each schedule, the one written least recently first."""
        if self.folder is None:
            return {
                name: sum(x.nbytes for step in steps.values() for x in step.values())
                for name, steps in self._memory.items()
            }
        found = sorted(self.folder.glob("*/"), key=lambda path: path.stat().st_mtime)
        return {path.name: sum(f.stat().st_size for f in path.iterdir()) for path in found}

    def clear(self) -> None:
        """Forgets everything."""
        for schedule in self.sizes():
            self._forget(schedule)

    def _forget(self, schedule: str) -> None:
        self._memory.pop(schedule, None)
        if self.folder is not None:
            shutil.rmtree(self.folder / schedule, ignore_errors=True)

    def _file(self, schedule: str, t: int) -> Path:
        return self.folder / schedule / f"t{t:04d}.safetensors"

    def __repr__(self) -> str:
        kept, where = sum(self.sizes().values()), self.folder or "in memory"
        return f"SourceCache({kept / 2**20:.0f} MiB of {self.budget / 2**20:.0f}, {where})"
