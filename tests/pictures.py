"""Whether two pictures or films show the same, whatever their bytes."""

import math
from pathlib import Path

import torch.nn.functional as F

import tfkit

TILE = 8  # pixels: about a letter, so that a changed number is not lost in a large picture
# Of 255. A dotted line that moved by a part of a pixel is at 42. Another last digit may be below
# this too: numbers that a notebook prints are for nbval to compare.
LIMIT = 50.0


def difference(one: Path, other: Path) -> float:
    """The largest root mean square difference of a tile in a frame, of 255; inf for two sizes."""
    a, b = (tfkit.read_video(path).frames for path in (one, other))
    if a.shape != b.shape:
        return math.inf
    squares = (a - b).square().mean(1, keepdim=True)
    return 255 * F.avg_pool2d(squares, TILE, ceil_mode=True).max().sqrt().item()


def same(one: Path, other: Path) -> bool:
    """As a reader sees them: other processors round otherwise, other palettes are chosen then."""
    return difference(one, other) <= LIMIT
