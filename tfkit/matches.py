"""Which tokens of two frames show the same place, and how much an edit's tokens agree there.

TokenFlow's argument as a number: a video flickers where tokens that correspond in the *source* are
not alike in the *edit* (Geyer et al., ICLR 2024, sections 1 and 4). Memory: two frames of tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tfkit.checks import check_flow
from tfkit.correspondence import follow, nearest_neighbors
from tfkit.tracks import Size, token_centers


@dataclass(frozen=True, eq=False)
class Matches:
    """Of pairs of frames: which token of frame `after` each token of frame `before` became.

    pairs (p, 2) frame indices (before, after); index (p, n) into the tokens of `after`; valid
    (p, n): where that is known. how: what they come from, for the record.
    """

    pairs: Int[Tensor, "p 2"]
    index: Int[Tensor, "p n"]
    valid: Bool[Tensor, "p n"]
    how: str

    def __repr__(self) -> str:
        share = self.valid.double().mean().item()
        return f"Matches({len(self.pairs)} pairs of frames by {self.how}, {share:.0%} known)"


@torch.no_grad()
def matches_by_field(
    tokens: Float[Tensor, "f n d"],
    pairs: Tensor | Iterable[Sequence[int]] | None = None,
    *,
    mutual: bool = True,
) -> Matches:
    """Matches by the nearest-neighbour field of the source's tokens (TokenFlow, eq. 4).

    pairs: (before, after) frame indices; each frame and the next by default. mutual: only where
    the match leads back to where it came from, else everywhere.
    """
    f, n, _ = _check_tokens(tokens).shape
    pairs = _check_pairs(pairwise(range(f)) if pairs is None else pairs, f)
    index, valid = [], []
    for before, after in pairs.tolist():
        found = nearest_neighbors(tokens[before], tokens[after]).index
        known = torch.ones_like(found, dtype=torch.bool)
        if mutual:
            back = nearest_neighbors(tokens[after], tokens[before]).index
            known = back[found] == torch.arange(n, device=found.device)
        index.append(found)
        valid.append(known)
    return Matches(
        pairs, torch.stack(index), torch.stack(valid), "mutual field" if mutual else "field"
    )


def matches_by_flow(
    flow: Float[Tensor, "s 2 h w"],
    visible: Bool[Tensor, "s h w"],
    grid: Size,
    *,
    how: str = "flow",
) -> Matches:
    """Matches of each frame and the next by the source's flow, for tokens on a grid.

    grid: (rows, columns), see tfkit.tracks.grid_of. A token's centre moves by the flow at the pixel
    nearest to it and becomes the token that covers the place it comes to; known where that pixel is
    visible and the place is in the picture. Raises ValueError for shapes that do not fit.
    """
    check_flow(flow, visible)
    (rows, columns), (h, w) = grid, flow.shape[-2:]
    if min(grid) < 1 or rows > h or columns > w or not len(flow):
        raise ValueError(f"grid={grid!r}: expected (rows, columns) within pictures of {h} x {w}")
    centers = token_centers(grid, (h, w)).double().to(flow.device)
    x, y = centers.round().long().T
    at = centers + flow[:, :, y, x].transpose(1, 2).double()  # (s, n, 2)
    column = ((at[..., 0] + 0.5) * columns / w).floor().long()
    row = ((at[..., 1] + 0.5) * rows / h).floor().long()
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    index = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
    steps = torch.arange(len(flow))
    return Matches(torch.stack([steps, steps + 1], 1), index, inside & visible[:, y, x], how)


@overload
def token_consistency(
    tokens: Tensor, matches: Matches, *, centered: bool = False, per_pair: Literal[False] = False
) -> float: ...


@overload
def token_consistency(
    tokens: Tensor, matches: Matches, *, centered: bool = False, per_pair: Literal[True]
) -> Tensor: ...


@torch.no_grad()
def token_consistency(
    tokens: Float[Tensor, "f n d"],
    matches: Matches,
    *,
    centered: bool = False,
    per_pair: bool = False,
) -> float | Tensor:
    """How alike an edit's tokens are where the source's correspond: mean cosine, at most 1.

    For frames i and j with the source's correspondence gamma: the mean over the known tokens p of
    cos(phi(edit_i)[p], phi(edit_j)[gamma(p)]), then over the pairs of frames with any. A float, or
    with `per_pair` a tensor (p,), NaN where none is known. centered: the mean token of the whole
    video is taken off first. Where it dominates, as in coarse layers, any two tokens have a cosine
    of 0.99 and only what is left can tell consistent from not. The source's own tokens along the
    same matches are what to hold it against: natural video does not reach 1 either.
    After TokenFlow's argument (Geyer et al., ICLR 2024, section 4); the number is tfkit's own.
    Raises ValueError where the matches do not fit the tokens or none is known.
    """
    f, n, _ = _check_tokens(tokens).shape
    _check_pairs(matches.pairs, f)
    if matches.index.shape[1] != n:
        raise ValueError(
            f"tokens are {tuple(tokens.shape)}, the matches of {matches.index.shape[1]} tokens a "
            "frame; expected as many"
        )
    mean = tokens.double().mean((0, 1)) if centered else 0.0
    values = []
    for (before, after), index, valid in zip(
        matches.pairs.tolist(), matches.index, matches.valid, strict=True
    ):
        index, valid = index.to(tokens.device), valid.to(tokens.device)
        here = tokens[before][valid].double() - mean
        there = follow(tokens[after], index)[valid].double() - mean
        values.append(F.cosine_similarity(here, there, dim=-1).mean())
    known = matches.valid.any(1)
    if not known.any():
        raise ValueError(f"no match is known in any of the {len(values)} pairs of frames")
    out = torch.stack(values)
    return out if per_pair else out[known.to(out.device)].mean().item()


def _check_tokens(tokens: object) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or 0 in tokens.shape:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens: {got}; expected (f, n, d), as tfkit.extract_tokens returns")
    if not torch.isfinite(tokens).all():
        raise ValueError("tokens hold NaN or infinity; expected finite values")
    return tokens


def _check_pairs(pairs: Tensor | Iterable[Sequence[int]], frames: int) -> Int[Tensor, "p 2"]:
    pairs = torch.as_tensor(pairs if isinstance(pairs, Tensor) else [tuple(pair) for pair in pairs])
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise ValueError(
            f"{len(pairs)} pairs of {frames} frames; expected some, each (before, after)"
        )
    if pairs.is_floating_point() or pairs.is_complex() or pairs.dtype == torch.bool:
        raise ValueError(f"pairs of {pairs.dtype}; expected whole numbers, indices of frames")
    pairs = pairs.long()
    if pairs.min() < 0 or pairs.max() >= frames:
        raise ValueError(
            f"pairs span {pairs.min()} to {pairs.max()}; expected frames from 0 to {frames - 1}"
        )
    return pairs
