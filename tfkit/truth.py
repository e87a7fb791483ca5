"""TokenFlow along the true motion: fields are read from a clip's exact flow, not from features.

Its errors cannot come from wrong correspondences, so it bounds what better features could win. Only
a clip of the menagerie can be edited like this, for its flow is known.
Memory: of each pair of frames and size of grid one field, and one frame's tracks at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Int
from torch import Tensor

from tfkit.attention import NONE, Branches, FlowAttention
from tfkit.propagation import TokenFlow
from tfkit.protocols import Passes
from tfkit.source_cache import Features
from tfkit.tracks import Size, follow_flow, grid_of, token_centers
from tfkit.video import Clip, size_of


def true_field(clip: Clip, frame: int, keyframe: int, grid: Size) -> Int[Tensor, " n"]:
    """For each token of ``frame``, the token of ``keyframe`` that shows the same; -1: unknown.

    To a later keyframe the token's centre is moved along the flow: the answer is the token that
    covers the place where it arrives. To an earlier one all pixels of the keyframe are moved to
    ``frame``: of those that arrive within the token, the one nearest to its centre says where it
    came from. A point that is hidden on the way, or leaves the picture, leaves the token unknown.
    Raises ValueError for a clip without flow.
    """
    if clip.flow is None or clip.visible is None:
        raise ValueError(
            "the clip knows no flow; expected one of tfkit.menagerie.film, two frames at least"
        )
    size, first, last = size_of(clip.frames), *sorted((frame, keyframe))
    forward = frame == first
    starts = token_centers(grid if forward else size, size)
    places, seen = follow_flow(starts, clip.flow[first:last], clip.visible[first:last])
    starts, ends = starts[seen[-1]], places[-1][seen[-1]]
    out = torch.full((grid[0] * grid[1],), -1)
    if forward:
        out[seen[-1]] = _covering(ends, grid, size)
        return out
    at = _covering(ends, grid, size)
    apart = (ends - token_centers(grid, size)[at]).square().sum(1)
    order = apart.argsort(stable=True)
    reached, nearest = np.unique(at[order].numpy(), return_index=True)  # the first of each token
    out[torch.from_numpy(reached)] = _covering(starts[order], grid, size)[nearest]
    return out


def _covering(points: Tensor, grid: Size, size: Size) -> Int[Tensor, " m"]:
    """The token that covers each point (x, y) of a picture."""
    (rows, columns), (h, w) = grid, size
    x = ((points[:, 0] + 0.5) * columns / w).floor().clamp(0, columns - 1)
    y = ((points[:, 1] + 0.5) * rows / h).floor().clamp(0, rows - 1)
    return (y * columns + x).long()


@dataclass(eq=False)
class TrueAttention(FlowAttention):
    """Finds fields as FlowAttention does, and puts the true one wherever it is known."""

    clip: Clip | None = None
    frames: Tensor = NONE  # of the pass
    keyframes: Tensor = NONE  # of the step
    known: dict[tuple[int, int, Size], Tensor] = field(default_factory=dict)

    def _source(self, attn: Attention, tokens: Tensor) -> Tensor:
        out, found, near = super()._source(attn, tokens), self.fields[attn], self.neighbors
        assert self.clip is not None and near is not None, "set by TrueFlow, and by the pass"
        grid = grid_of(tokens, size_of(self.clip.frames))
        for i, frame in enumerate(self.frames.tolist()):
            for side, of in enumerate((near.first, near.second)):
                true = self._true(self.clip, frame, int(self.keyframes[of[i]]), grid).to(found)
                found[i, side] = torch.where(true < 0, found[i, side], true)
        return out

    def _true(self, clip: Clip, frame: int, keyframe: int, grid: Size) -> Tensor:
        key = frame, keyframe, grid
        if key not in self.known:
            self.known[key] = true_field(clip, frame, keyframe, grid)
        return self.known[key]


@dataclass(frozen=True, eq=False)
class TrueFlow(TokenFlow):
    """TokenFlow as the paper has it, along the true motion of ``clip``, the one that is edited.

    Where that is unknown the source's tokens decide, as ever. Raises ValueError without a clip's
    flow, for the reference variant and for a window of keyframes.
    """

    window: int | None = None
    clip: Clip | None = None

    __eq__, __hash__ = object.__eq__, object.__hash__  # TokenFlow's would leave out the clip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is None or self.clip.flow is None or self.clip.visible is None:
            raise ValueError(
                f"clip={self.clip!r}: expected a filmed clip, whose flow and visibility are known"
            )
        for name, only in (("variant", "paper"), ("window", None)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected {only!r}, along the true motion"
                )

    def draw(self, frames: int, steps: int, seed: int) -> Int[Tensor, "steps k"]:
        self._check_length(frames)
        return super().draw(frames, steps, seed)

    def check(self, keyframes: Tensor, frames: int) -> None:
        self._check_length(frames)
        super().check(keyframes, frames)

    def _check_length(self, frames: int) -> None:
        if self.clip is not None and len(self.clip) != frames:
            raise ValueError(
                f"clip has {len(self.clip)} frames; expected the one that is edited, of {frames}"
            )

    @cached_property
    def known(self) -> dict[tuple[int, int, Size], Tensor]:
        """The true fields that were needed so far, by frame, keyframe and grid."""
        return {}

    def fields_key(self, keyframes: Sequence[Tensor | None]) -> None:
        """Its fields are not the source's, so nothing of them is kept for other edits."""

    def attention(self, branches: int, source: bool) -> TrueAttention:
        return TrueAttention(branches, on=self.field_of, clip=self.clip, known=self.known)

    def predict(
        self, run: Passes, attention: Any, frames: int, keyframes: Tensor | None, batch: int
    ) -> Tensor:
        attention.keyframes = keyframes
        return super().predict(_Told(run, attention), attention, frames, keyframes, batch)


@dataclass(frozen=True, eq=False)
class _Told:
    """Passes that tell the attention which frames are read."""

    run: Passes
    attention: TrueAttention

    def __call__(self, frames: Tensor) -> Tensor:
        return self.run(frames)

    def in_turn(self, frames: Tensor, attention: Branches) -> Tensor:
        return self.run.in_turn(frames, attention)

    def read_source(self, frames: Tensor, attention: Any) -> Features:
        self.attention.frames = frames
        return self.run.read_source(frames, attention)

    def edited(self, frames: Tensor, features: Features) -> Tensor:
        return self.run.edited(frames, features)
