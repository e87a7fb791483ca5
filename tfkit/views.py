"""What was looked at, kept so that looking again computes nothing.

A view belongs to the latents it was seen at, and goes with them when no branch holds them any more.
Memory: ``budget`` bytes at the most, on the CPU; views not looked at for the longest time go first,
and one that is larger is not kept at all.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

BUDGET = 2**28  # bytes: 85 frames of 512 x 512 in float32

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class _View:
    tensors: Tensors  # on the CPU
    device: torch.device  # where they came from

    @property
    def nbytes(self) -> int:
        return _nbytes(self.tensors)


class Views:
    """The views of a session and its branches, by what they depend on; the model stays as it is.

    budget: bytes, 0 keeps nothing.
    """

    def __init__(self, budget: int = BUDGET):
        self.budget = budget
        self._views = WeakValueDictionary[Hashable, _View]()  # the one seen least recently first
        self._seen_at = WeakIdKeyDictionary()  # {key: view} by latents, which alone keep it alive

    def get(self, latents: Tensor, key: Hashable, look: Callable[[], Tensors]) -> Tensors:
        """What ``look`` gives, or gave under this key: the caller's own, to write into at will."""
        view = self._views.pop(key, None)
        if view is None:
            found = look()
            if _nbytes(found) > self.budget:
                return found
            view = _View(tuple(x.to("cpu", copy=True) for x in found), found[0].device)
        else:
            found = tuple(x.to(view.device, copy=True) for x in view.tensors)
        self._views[key] = view
        self._seen_at.setdefault(latents, {})[key] = view
        for old in list(self._views):
            if self.nbytes <= self.budget:
                break
            for views in self._seen_at.values():
                views.pop(old, None)
        return found

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return sum(view.nbytes for view in self._views.values())

    def __reduce__(self) -> tuple[type["Views"], tuple[int]]:
        return Views, (self.budget,)  # a session's copy in another process begins anew

    def __repr__(self) -> str:
        return f"Views({self.nbytes / 2**20:.0f} MiB of {self.budget / 2**20:.0f})"


def same(x: Tensor) -> Hashable:
    """Part of a key: the very tensor, as long as nothing is written into it."""
    return WeakIdRef(x), None if x.is_inference() else x._version


def _nbytes(tensors: Tensors) -> int:
    return sum(x.nbytes for x in tensors)
