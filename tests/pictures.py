"""Whether two pictures or films show the same, whatever their bytes."""

import math
from itertools import product
from pathlib import Path

import torch.nn.functional as F

import tfkit

TILE = 8  # pixels: about a letter, so that a changed number is not lost in a large picture
# Of 255. Another last digit may be below this: numbers that a notebook prints are for nbval to
# compare.
LIMIT = 40.0
SHIFT = 1  # pixels that a tile may have moved by: rounding moves a curve in its axes


def difference(one: Path, other: Path) -> float:
    """The largest root mean square difference of a tile in a frame, of 255; inf for two sizes.

    Each tile is compared where it is alike the most, at most SHIFT pixels away.
    """
    a, b = (tfkit.read_video(path).frames for path in (one, other))
    if a.shape != b.shape:
        return math.inf
    height, width = a.shape[-2:]
    around = F.pad(b, [SHIFT] * 4, mode="replicate")
    least = a.new_tensor(math.inf)
    for y, x in product(range(2 * SHIFT + 1), repeat=2):
        squares = (a - around[..., y : y + height, x : x + width]).square().mean(1, keepdim=True)
        least = least.minimum(F.avg_pool2d(squares, TILE, ceil_mode=True))
    return 255 * least.max().sqrt().item()


def same(one: Path, other: Path) -> bool:
    """As a reader sees them: other processors round otherwise, other palettes are chosen then."""
    return difference(one, other) <= LIMIT
