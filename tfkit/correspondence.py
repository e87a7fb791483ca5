"""Nearest-neighbour fields between the tokens of two frames.

gamma[p] = argmax_q cos(phi(x_i)[p], phi(x_k)[q])  (TokenFlow, eq. 4). The similarities are never
held whole: memory is bounded by ``CHUNK`` values (or a row), whatever the number of tokens. Half
precision is widened first: next to 1 its cosines lie too far apart to tell the nearest.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Similarities held at a time. On a CPU 16 MB in float32: larger blocks leave its caches, and their
# memory is fetched from the system anew for each. A GPU wants large ones.
CHUNK, CHUNK_GPU = 2**22, 2**26
# Up to so many, numpy finds the place of a maximum sooner than torch: on one thread, but with SIMD.
FEW_THREADS = 4


@dataclass(frozen=True, eq=False)
class Field:
    """For each query token, its nearest key (index) and their cosine similarity, (..., n) each."""

    index: Int[Tensor, "*batch n"]
    similarity: Float[Tensor, "*batch n"]


@torch.no_grad()
def nearest_neighbors(query: Tensor, keys: Tensor) -> Field:
    """The most cosine-similar key of each query token; the first of equals.

    query: (n, d), keys: (m, d); leading batch dimensions, equal in both, are taken pairwise.
    Returns index (..., n) into the keys and similarity (..., n) in [-1, 1]; half precision is
    compared in float32. TokenFlow, eq. 4. Raises ValueError where the shapes do not fit.
    """
    if not isinstance(query, Tensor) or not isinstance(keys, Tensor):
        kinds = f"query is a {type(query).__name__}, keys a {type(keys).__name__}"
        raise ValueError(f"{kinds}; expected tensors (n, d) and (m, d)")
    if query.ndim < 2 or query.ndim != keys.ndim or query.shape[:-2] != keys.shape[:-2]:
        raise ValueError(
            f"query {tuple(query.shape)} and keys {tuple(keys.shape)}: expected (n, d) and (m, d), "
            "with the same leading dimensions if any"
        )
    if query.shape[-1] != keys.shape[-1] or not keys.shape[-2]:
        raise ValueError(
            f"query {tuple(query.shape)} and keys {tuple(keys.shape)}: expected tokens of one "
            "width and at least one key"
        )
    if not query.is_floating_point() or not keys.is_floating_point():
        raise ValueError(f"query {query.dtype} and keys {keys.dtype}: expected floats")
    query, keys = _unit(query), _unit(keys)
    transposed = keys.transpose(-1, -2)
    pairs = keys.shape[:-1].numel()  # similarities in one row of queries over the whole batch
    held = CHUNK if keys.device.type == "cpu" else CHUNK_GPU
    rows = max(1, held // max(1, pairs))
    best = [_best(part @ transposed) for part in query.split(rows, dim=-2)]
    values, index = (torch.cat(each, -1) for each in zip(*best, strict=True))
    return Field(index, values)


def _best(similarities: Float[Tensor, "*batch n m"]) -> tuple[Tensor, Tensor]:
    """The largest of each row, and where it is; the first of equals."""
    plain = similarities.device.type == "cpu" and similarities.dtype in (torch.float, torch.double)
    if plain and torch.get_num_threads() <= FEW_THREADS:
        index = torch.from_numpy(similarities.numpy().argmax(-1))
        return similarities.gather(-1, index.unsqueeze(-1)).squeeze(-1), index
    return similarities.max(-1)


def follow(tokens: Float[Tensor, "*batch m d"], index: Int[Tensor, "*fewer n"]) -> Tensor:
    """The tokens a field points to: (..., n, d); the field serves every leading dimension."""
    index = index.expand(*tokens.shape[:-2], index.shape[-1])
    return tokens.gather(-2, index.unsqueeze(-1).expand(*index.shape, tokens.shape[-1]))


def mutual(query: Tensor, keys: Tensor) -> Bool[Tensor, "*batch n"]:
    """Which query tokens are the nearest neighbour of their own nearest neighbour."""
    there, back = nearest_neighbors(query, keys).index, nearest_neighbors(keys, query).index
    own = torch.arange(query.shape[-2], device=query.device)
    return back.gather(-1, there) == own


def similarity(query: Tensor, keys: Tensor) -> Float[Tensor, "*batch n m"]:
    """Cosine similarity of every query token (n, d) with every key (m, d); held whole."""
    return _unit(query) @ _unit(keys).transpose(-1, -2)


def widened(values: Tensor) -> Tensor:
    """Half precision as float32; all else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _unit(tokens: Tensor) -> Tensor:
    tokens = widened(tokens)
    return F.normalize(tokens, dim=-1, eps=torch.finfo(tokens.dtype).tiny)
