"""What a pass takes: seconds, and bytes of the tensors that live at once.

Time is measured on this machine. Memory is counted as tensors come and go; the libraries' own
workspaces and fragmentation come on top.
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it: those alive now, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):  # a view of what was given is nothing new
            if storage._cdata not in given:
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]


@dataclass(frozen=True)
class Pass:
    """What one frame costs in a pass of its kind."""

    seconds: float
    bytes: int


@torch.no_grad()
def measured(work: Callable[[], object], frames: int) -> Pass:
    """What each of the frames of ``work()`` costs."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    with Live() as live:
        work()  # also the first call, which is slow
    finish()
    start = time.perf_counter()
    work()
    finish()
    return Pass((time.perf_counter() - start) / frames, live.peak // frames)
