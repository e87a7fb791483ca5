"""Keyframes, which of them serve a frame, and with what weights: pure functions on indices.

"paper" follows section 4 of the paper; "reference" follows the authors' code where it differs.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Indices = Tensor | np.ndarray | Sequence[Any]  # of keyframes: (steps, k), or (k,) for every step


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The keyframes each frame takes its tokens from.

    first, second: (f,) which of the keyframes (0 ... k-1); weight: (f,) of the first one;
    blended: (f,) whether there is a second one at all; rows: which frames these are.
    """

    first: Int[Tensor, " f"]
    second: Int[Tensor, " f"]
    weight: Float[Tensor, " f"]
    blended: Bool[Tensor, " f"]

    @cached_property
    def rows(self) -> Int[Tensor, " b"]:
        return self.blended.nonzero().squeeze(1)

    def to(self, device: torch.device) -> "Neighbors":
        """The same on another device."""
        moved = {of.name: getattr(self, of.name).to(device) for of in fields(self)}
        there = Neighbors(**moved)
        vars(there)["rows"] = self.rows.to(device)  # to count them there would wait for a GPU
        return there

    def among(self, held: Int[Tensor, " h"]) -> "Neighbors":
        """The same, counted by position in ``held``: the keyframes at hand, in their order."""
        first, second = ((x[:, None] == held).int().argmax(1) for x in (self.first, self.second))
        return replace(self, first=first, second=second)

    def shares(self, keyframes: int) -> Float[Tensor, "f k"]:
        """How much each frame takes from each of so many keyframes; rows add up to 1."""
        out = torch.zeros(len(self.first), keyframes, dtype=torch.float64)
        out.scatter_add_(1, self.first[:, None], self.weight[:, None].double())
        rest = torch.where(self.blended, 1 - self.weight.double(), 0.0)
        return out.scatter_add_(1, self.second[:, None], rest[:, None])


@dataclass(frozen=True, eq=False)
class Block:
    """Keyframes that go through the model together, and attend to some that went before them.

    Keyframes are numbered from 0 in the order of the clip. own: (n,) those that go. context: (c,)
    those attended to besides, by position in ``held`` of the block before. held: (c + n,) those
    whose tokens are at hand once the block has gone. until: all keyframes with a lower number have
    gone by then.
    """

    own: Int[Tensor, " n"]
    context: Int[Tensor, " c"]
    held: Int[Tensor, " c+n"]
    until: int


def key_blocks(count: int, window: int | None) -> list[Block]:
    """How ``count`` keyframes attend to at most ``window`` of them, themselves included.

    Where they are no more than that, all at once, as in eq. 3. Else a quarter of the window are
    anchors, spread over the clip, which go first and are seen by all; the others follow in order,
    each block seeing the one before it, so that time and memory are linear in ``count``.
    """
    every = torch.arange(count)
    if window is None or count <= window:
        return [Block(every, every[:0], every, count)]
    anchors = torch.linspace(0, count - 1, max(window // 4, 1)).round().long()
    others = every[~torch.isin(every, anchors)].split((window - len(anchors)) // 2)
    blocks, firsts = [Block(anchors, every[:0], anchors, 0)], [int(own[0]) for own in others]
    for own, until in zip(others, [*firsts[1:], count], strict=True):
        last = blocks[-1]
        stay = [torch.isin(last.held, anchors), torch.isin(last.held, last.own)]
        context = (stay[0] | stay[1]).nonzero().squeeze(1)
        blocks.append(Block(own, context, torch.cat([last.held[context], own]), until))
    return blocks


def seams(keyframes: Int[Tensor, " k"], frames: int, window: int | None) -> Bool[Tensor, " pairs"]:
    """Which pairs of neighbouring frames (f-1,) lie where a block of keyframes meets the next.

    From the last keyframe of the one to the first of the other; none where all go at once.
    """
    out, count = torch.zeros(max(frames - 1, 0), dtype=torch.bool), len(keyframes)
    for block in key_blocks(count, window):
        if 0 < block.until < count:
            out[keyframes[block.until - 1] : keyframes[block.until]] = True
    return out


def draw_keyframes(
    frames: int, interval: int, steps: int, *, fixed: bool = False, seed: int = 0
) -> Int[Tensor, "steps k"]:
    """One keyframe in each interval, drawn anew at every step; the last interval may be shorter.

    fixed: the middle of each interval, at every step.
    """
    starts = torch.arange(0, frames, interval)
    lengths = (frames - starts).clamp(max=interval)
    if fixed:
        return (starts + lengths // 2).expand(steps, -1).clone()
    generator = torch.Generator().manual_seed(int(seed))
    offset = torch.rand(steps, len(starts), generator=generator, dtype=torch.float64) * lengths
    return starts + offset.long()


def check_keyframes(keyframes: Indices, frames: int, steps: int) -> Int[Tensor, "steps k"]:
    """Given keyframes as (steps, k) indices, or a tensor of each step's; (k,) serves every step.

    Raises ValueError unless they are whole numbers, inside the clip, and ascending in each step.
    """
    try:
        listed = isinstance(keyframes, Sequence) and len(keyframes) > 0
        stacked = listed and all(isinstance(row, Tensor) for row in keyframes)
        rows = torch.stack(list(keyframes)) if stacked else torch.as_tensor(keyframes)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(
            f"keyframes={keyframes!r}: expected whole numbers (steps, k) or (k,), every step with "
            "as many"
        ) from None
    whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    if not whole or rows.ndim not in (1, 2) or not rows.numel():
        raise ValueError(
            f"keyframes={reprlib.repr(rows.tolist())}, of shape {tuple(rows.shape)} and "
            f"{rows.dtype}: expected whole numbers (steps, k) or (k,)"
        )
    rows = rows.to("cpu", torch.long, copy=True)  # the user may write into what he gave
    rows = rows.repeat(steps, 1) if rows.ndim == 1 else rows
    if len(rows) != steps:
        raise ValueError(
            f"keyframes for {len(rows)} steps, but the edit takes {steps}; give (steps, k), or "
            "(k,) for the same in every step"
        )
    if rows.min() < 0 or rows.max() >= frames:
        raise ValueError(
            f"keyframes span {int(rows.min())} to {int(rows.max())}: expected frame indices from 0 "
            f"to {frames - 1}"
        )
    if (rows.diff(dim=1) <= 0).any():
        bad = rows[(rows.diff(dim=1) <= 0).any(1)][0].tolist()
        raise ValueError(f"keyframes {bad}: expected each step's in ascending order, none twice")
    return rows


def share(distance: Tensor, other: Tensor, blend: str) -> Float[Tensor, " f"]:
    """The weight (f,) of one of two keyframes, from each frame's distances to both, in frames.

    distance: to the one that is weighed; other: to the other one. sigmoid(other / (distance +
    other)), eq. 5: the farther the other one, the more this one weighs. blend: "linear" leaves
    the sigmoid out.
    """
    weight = other / (distance + other)
    return torch.sigmoid(weight) if blend == "sigmoid" else weight


def paper_neighbors(
    frames: Int[Tensor, " f"], keyframes: Int[Tensor, " k"], blend: str = "sigmoid"
) -> Neighbors:
    """The keyframes around each frame, weighed by their true distance; one at either end."""
    after = torch.searchsorted(keyframes, frames)
    before = (torch.searchsorted(keyframes, frames, right=True) - 1).clamp(min=0)
    after = torch.where(after == len(keyframes), before, after)
    blended = before != after
    near, far = (keyframes[after] - frames).abs(), (frames - keyframes[before]).abs()
    near = torch.where(blended, near, 1)  # keeps the division defined where it is not used
    weight = torch.where(blended, share(near.double(), far.double(), blend), 1.0)
    return Neighbors(after, before, weight, blended)


def reference_neighbors(
    frames: Int[Tensor, " f"], total: int, interval: int, blend: str = "sigmoid"
) -> Neighbors:
    """The keyframes of a frame's own interval and of the previous one, as the authors' code has it.

    Distances are to the middles of the intervals, wherever the keyframes are. The authors divide
    integers, so these weights have torch's default precision, float32.
    """
    own = frames // interval
    previous = (own - 1).clamp(min=0)
    length = (total - own * interval).clamp(max=interval)
    to_own = (frames - own * interval - length // 2).abs()
    to_previous = (frames - previous * interval - interval // 2).abs()
    blended = own > 0
    to_previous = torch.where(blended, to_previous, 1)
    weight = torch.where(blended, share(to_own, to_previous, blend), 1.0)
    return Neighbors(own, previous, weight, blended)
