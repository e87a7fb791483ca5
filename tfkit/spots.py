"""A few values of tensors, spread over each: what tells weights apart without reading all of them.

Memory: the values.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor


def spots(value: Tensor, count: int) -> Tensor:
    """``count`` values of a tensor, from its first to its last, evenly spread."""
    value = torch.atleast_1d(value.detach())
    return value[tuple(at.to(value.device) for at in _places(value.shape, count))]


def digest_spots(values: Iterable[Tensor], count: int = 64) -> bytes:
    """A digest of the shapes of tensors and of ``count`` values of each; they leave a device
    together."""
    shapes, some = [], dict[torch.device, list[Tensor]]()
    for value in values:
        shapes.append(tuple(value.shape))
        some.setdefault(value.device, []).append(spots(value, count))
    digest = hashlib.sha256(str(shapes).encode())
    for found in some.values():
        digest.update(torch.cat(found).cpu().double().numpy().tobytes())
    return digest.digest()


@lru_cache(4096)
def _places(shape: torch.Size, count: int) -> tuple[Tensor, ...]:
    ends = torch.linspace(0, shape.numel() - 1, count, dtype=torch.float64, device="cpu")
    return torch.unravel_index(ends.long(), shape)
