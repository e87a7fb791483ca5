"""From tokens to places: following points, labels and masks through a clip.

Tokens (f, n, d) lie on a grid that spans the picture; a point (x, y) is in pixels, 0 at the centre
of the first one. Every frame is compared with one reference frame, so errors do not add up.
Memory: the similarities of the points followed with one frame's tokens.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tfkit.checks import check_flow
from tfkit.correspondence import similarity, widened
from tfkit.video import size_of

Size = tuple[int, int]


def grid_of(tokens: Float[Tensor, "f n d"], size: Size) -> Size:
    """(rows, columns) of the tokens of pictures of ``size`` (h, w), which have its aspect.

    Raises ValueError where no such grid has as many tokens.
    """
    n, (h, w) = tokens.shape[1], size
    rows = max(1, round(math.sqrt(n * h / w)))
    fits = [r for r in range(max(1, rows - 2), rows + 3) if n % r == 0]
    if not fits:
        raise ValueError(f"{n} tokens lie on no grid of the aspect of a picture of {h} x {w}")
    rows = min(fits, key=lambda r: abs(r / (n // r) - h / w))
    return rows, n // rows


def token_centers(grid: Size, size: Size) -> Float[Tensor, "n 2"]:
    """Where in a picture of ``size`` the tokens of a grid lie: pixels (x, y), row by row."""
    (rows, columns), (h, w) = grid, size
    y = (torch.arange(rows) + 0.5) * h / rows - 0.5
    x = (torch.arange(columns) + 0.5) * w / columns - 0.5
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1)


def read_at(
    tokens: Float[Tensor, "n d"], points: Float[Tensor, "m 2"], grid: Size, size: Size
) -> Float[Tensor, "m d"]:
    """Tokens of one frame at points of the picture, between their centres bilinearly."""
    image = rearrange(widened(tokens), "(h w) d -> 1 d h w", h=grid[0])
    points = points.to(image)  # first: half precision tells no pixels beyond 256 apart
    at = 2 * (points + 0.5) / points.new_tensor([size[1], size[0]]) - 1
    found = F.grid_sample(image, at[None, None], padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def locate(
    scores: Float[Tensor, "m n"],
    grid: Size,
    size: Size,
    *,
    window: int | None = None,
    temperature: float | int = 0.02,
) -> Float[Tensor, "m 2"]:
    """Where in the picture the scores of a grid's tokens are highest, in pixels (x, y).

    window: None for the best token's centre, else a soft-argmax over the tokens around it, this
    many (or one more, where that is even) each way across: the mean place, weighted by
    softmax(score / temperature), finer than a token.
    """
    centers = token_centers(grid, size).to(scores)
    best = scores.argmax(1)
    if window is None:
        return centers[best]
    if window < 1 or temperature <= 0:
        raise ValueError(
            f"window={window!r}, temperature={temperature!r}: expected at least 1 token and a "
            "temperature above 0"
        )
    rows, columns = grid
    place = torch.arange(rows * columns, device=scores.device)
    apart = torch.maximum(
        (place // columns - (best // columns)[:, None]).abs(),
        (place % columns - (best % columns)[:, None]).abs(),
    )
    weights = (scores / temperature).masked_fill(apart > window // 2, -math.inf).softmax(1)
    return weights @ centers


@torch.no_grad()
def track_points(
    tokens: Float[Tensor, "f n d"],
    points: Float[Tensor, "m 2"],
    size: Size,
    *,
    start: int = 0,
    window: int | None = 5,
) -> tuple[Float[Tensor, "f m 2"], Float[Tensor, "f m"]]:
    """Where points of frame ``start`` are in every frame, and how similar the tokens there are.

    points: pixels (x, y) of pictures of ``size`` (h, w). window: see :func:`locate`. In frame
    ``start`` itself the points are where they were given, and their similarity is 1.
    Raises ValueError for a frame that is not there, for tokens that do not fit the picture and for
    what are no points.
    """
    _check_frame(tokens, start)
    if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 2:
        got = tuple(points.shape) if isinstance(points, Tensor) else repr(points)
        raise ValueError(f"points: {got}; expected a tensor (m, 2) of pixels (x, y)")
    tokens, grid = widened(tokens), grid_of(tokens, size)
    query = read_at(tokens[start], points, grid, size)
    places, best = [], []
    for frame in tokens:  # the scores of one frame at a time
        scores = similarity(query, frame)
        places.append(locate(scores, grid, size, window=window))
        best.append(scores.max(1).values)
    places[start], best[start] = points.to(places[start]), torch.ones_like(best[start])
    return torch.stack(places), torch.stack(best)


@torch.no_grad()
def propagate_labels(
    tokens: Float[Tensor, "f n d"],
    labels: Int[Tensor, "h w"],
    *,
    start: int = 0,
    neighbors: int = 5,
    temperature: float | int = 0.05,
) -> Int[Tensor, "f h w"]:
    """Labels of frame ``start`` (parts, a mask) carried to every frame by their tokens.

    Each token asks its ``neighbors`` most similar tokens of that frame, which vote with what share
    of them each label covers, weighted by softmax(similarity / temperature); votes are read between
    tokens bilinearly. Frame ``start`` keeps its own. (Jabri et al., NeurIPS 2020, section 3.2.)
    Raises ValueError for settings out of range and tokens that do not fit the picture.
    """
    _check_frame(tokens, start)
    tokens, grid = widened(tokens), grid_of(tokens, size_of(labels))
    if not 1 <= neighbors <= tokens.shape[1] or temperature <= 0:
        raise ValueError(
            f"neighbors={neighbors!r}, temperature={temperature!r}: expected 1 to "
            f"{tokens.shape[1]} tokens and a temperature above 0"
        )
    names = labels.unique()
    shares = (labels == names[:, None, None]).to(tokens.dtype)[None]
    shares = F.adaptive_avg_pool2d(shares.to(tokens.device), grid)[0].flatten(1).T  # (n, names)
    out = []
    for frame in tokens:
        best = similarity(frame, tokens[start]).topk(neighbors, dim=1)
        weight = (best.values / temperature).softmax(1)
        votes = torch.einsum("nk,nkl->ln", weight, shares[best.indices])
        votes = votes.reshape(1, -1, *grid)
        votes = F.interpolate(votes, labels.shape, mode="bilinear", align_corners=False)
        out.append(names.to(votes.device)[votes[0].argmax(0)])
    out[start] = labels.to(out[start])
    return torch.stack(out)


def follow_flow(
    points: Float[Tensor, "m 2"], flow: Float[Tensor, "s 2 h w"], visible: Bool[Tensor, "s h w"]
) -> tuple[Float[Tensor, "f m 2"], Bool[Tensor, "f m"]]:
    """The true tracks of points (x, y) of the first frame, and where they were never lost so far.

    Flow is read between pixels bilinearly, visibility at the nearest one. Frames are one more than
    steps; in pixels, float64. Raises ValueError for shapes that do not fit.
    """
    check_flow(flow, visible)
    h, w = flow.shape[-2:]
    here = points.device
    limits = torch.tensor([w - 1, h - 1], dtype=torch.float64, device=here)
    places, seen = [points.double()], [torch.ones(len(points), dtype=torch.bool, device=here)]
    for way, clear in zip(flow.to(here).double(), visible.to(here), strict=True):
        at = places[-1]
        x, y = torch.minimum(at.clamp(min=0), limits).round().long().T
        grid = 2 * at / limits.clamp(min=1) - 1
        step = F.grid_sample(way[None], grid[None, None], padding_mode="border", align_corners=True)
        places.append(at + step[0, :, 0].T)
        inside = (places[-1] >= 0).all(1) & (places[-1] <= limits).all(1)
        seen.append(seen[-1] & clear[y, x] & inside)
    return torch.stack(places), torch.stack(seen)


def _check_frame(tokens: Tensor, start: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"tokens: {got}; expected (f, n, d), as tfkit.extract_tokens returns")
    if not 0 <= start < len(tokens):
        raise ValueError(f"start={start!r}: expected a frame from 0 to {len(tokens) - 1}")
