"""What makes the frames of an edit consistent: TokenFlow, joint attention, or nothing.

Each answers what :class:`tfkit.protocols.Propagation` asks. None knows of the editing method.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tfkit.attention import FlowAttention, JointAttention, KeyframeAttention
from tfkit.keyframes import Neighbors, draw_keyframes, paper_neighbors, reference_neighbors
from tfkit.protocols import (
    Carrying,
    Pass,
    Passes,
    Propagation,
    check_window,
    in_blocks,
    in_order,
    jointly,
    split,
)
from tfkit.settings import check_choice, check_whole, settle

__all__ = [
    "Carrying", "ExtendedAttention", "FirstFrame", "Passes", "PerFrame", "Propagation", "TokenFlow",
]  # fmt: skip

WINDOW = 12  # keyframes: all of them up to 96 frames at an interval of 8


@dataclass(frozen=True)
class PerFrame:
    """Every frame for itself: what image editing does to a video."""

    reads_source = False

    def draw(self, frames: int, steps: int, seed: int) -> None:
        return None

    def check(self, keyframes: Tensor, frames: int) -> None:
        raise ValueError(f"{type(self).__name__} takes no keyframes; leave them out")

    def attention(self, branches: int, source: bool) -> Any:
        return None

    def predict(
        self, run: Pass, attention: Any, frames: int, keyframes: Tensor | None, batch: int
    ) -> Tensor:
        return torch.cat([run(chunk) for chunk in torch.arange(frames).split(batch)])


@dataclass(frozen=True)
class ExtendedAttention:
    """Joint attention: each frame attends to all frames (eq. 3), or to the keyframes alone.

    interval: None: all frames together. A whole number: one keyframe in so many frames;
    keyframes attend to each other, then the other frames to the keyframes, a batch at a time: the
    paper's ablation of TokenFlow (section 5.3). keyframes: "random" in each interval at every step,
    or "fixed" in the middles. window: to how many keyframes a frame attends where there are more:
    see :class:`TokenFlow`. Raises ValueError for settings out of range.
    """

    interval: int | None = None
    keyframes: Literal["random", "fixed"] = "random"
    window: int | None = WINDOW

    reads_source = False

    def __post_init__(self) -> None:
        if self.interval is not None:
            settle(self, interval=check_whole("interval", self.interval))
        check_choice("keyframes", self.keyframes, ("random", "fixed"))
        settle(self, window=check_window(self.window))

    def draw(self, frames: int, steps: int, seed: int) -> Int[Tensor, "steps k"] | None:
        if self.interval is None:
            return None
        fixed = self.keyframes == "fixed"
        return draw_keyframes(frames, self.interval, steps, fixed=fixed, seed=seed)

    def check(self, keyframes: Tensor, frames: int) -> None:
        if self.interval is None:
            raise ValueError(
                "ExtendedAttention() takes no keyframes; leave them out, or give an interval for "
                "joint attention to keyframes alone"
            )

    def attention(self, branches: int, source: bool) -> JointAttention | KeyframeAttention:
        kind = JointAttention if self.interval is None else KeyframeAttention
        return kind(branches, source)

    def predict(
        self, run: Passes, attention: Any, frames: int, keyframes: Tensor | None, batch: int
    ) -> Tensor:
        if keyframes is None:
            return jointly(run, torch.arange(frames), attention, batch)
        return in_order(frames, self._passes(run, attention, frames, keyframes, batch))

    def _passes(
        self, run: Passes, attention: KeyframeAttention, frames: int, keyframes: Tensor, batch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        every = torch.arange(frames)
        others = every[~torch.isin(every, keyframes)]
        # a frame goes when the keyframe after it has gone, or the last one
        needs = torch.searchsorted(keyframes, others).clamp(max=len(keyframes) - 1)
        for block, ready in in_blocks(len(keyframes), self.window, needs):
            attention.recall, attention.context = False, block.context
            yield keyframes[block.own], jointly(run, keyframes[block.own], attention, batch)
            attention.recall = True
            yield from ((chunk, run(chunk)) for chunk in split(others[ready], batch))


@dataclass(frozen=True)
class FirstFrame(PerFrame):
    """Cross-frame attention: each frame attends to the first one only, not even to itself.

    Text2Video-Zero's way to one look for all frames (Khachatryan et al., ICCV 2023, eq. 8).
    """

    def attention(self, branches: int, source: bool) -> KeyframeAttention:
        return KeyframeAttention(branches, source)

    def predict(
        self, run: Pass, attention: Any, frames: int, keyframes: Tensor | None, batch: int
    ) -> Tensor:
        first, others = torch.arange(frames).split([1, frames - 1])
        attention.recall = False
        out = [run(first)]
        attention.recall = True
        return torch.cat([*out, *map(run, split(others, batch))])


@dataclass(frozen=True)
class TokenFlow:
    """Edits keyframes jointly and carries their tokens along the source's correspondences.

    interval: frames for each keyframe. variant: "paper", or "reference" for what the authors'
    code does: tokens come from a frame's own and the previous interval's keyframes, never the next
    one's; distances are to the intervals' middles; the source branch is carried too.
    field: tokens the correspondences are computed from, attn1's "output" or "input"; None is the
    variant's own (paper: output, reference: input). blend: "sigmoid" as in eq. 5, or "linear".
    keyframes: "random" in each interval at every step, or "fixed" in the middles. window: where
    there are more keyframes than so many, each attends to that many: those near it, and a few
    anchors spread over the clip (:func:`tfkit.keyframes.key_blocks`), so that time and memory grow
    no faster than the clip; None: to all, however many. Raises ValueError for settings out of
    range.
    """

    interval: int = 8
    variant: Literal["paper", "reference"] = "paper"
    field: Literal["output", "input"] | None = None
    blend: Literal["sigmoid", "linear"] = "sigmoid"
    keyframes: Literal["random", "fixed"] = "random"
    window: int | None = WINDOW

    reads_source = True

    def __post_init__(self) -> None:
        settle(
            self,
            interval=check_whole("interval", self.interval),
            window=check_window(self.window),
        )
        check_choice("variant", self.variant, ("paper", "reference"))
        check_choice("field", self.field, (None, "output", "input"))
        check_choice("blend", self.blend, ("sigmoid", "linear"))
        check_choice("keyframes", self.keyframes, ("random", "fixed"))

    def draw(self, frames: int, steps: int, seed: int) -> Int[Tensor, "steps k"]:
        fixed = self.keyframes == "fixed"
        return draw_keyframes(frames, self.interval, steps, fixed=fixed, seed=seed)

    def check(self, keyframes: Tensor, frames: int) -> None:
        wanted = -(-frames // self.interval)
        if self.variant == "reference" and keyframes.shape[1] != wanted:
            raise ValueError(
                f"{keyframes.shape[1]} keyframes: the reference variant takes one for each "
                f"interval, {wanted} for {frames} frames at interval {self.interval}"
            )
        apart = keyframes // self.interval != torch.arange(keyframes.shape[1])
        if self.variant == "reference" and apart.any():
            raise ValueError(
                f"keyframes {keyframes.tolist()}: the reference variant takes one in each interval "
                f"of {self.interval} frames, in their order"
            )

    @property
    def field_of(self) -> Literal["output", "input"]:
        """The tokens that fields are computed from."""
        return self.field or ("input" if self.variant == "reference" else "output")

    @property
    def alters_source(self) -> bool:
        """Whether the source's branch is carried as well."""
        return self.variant == "reference"

    def neighbors(self, frames: Tensor, keyframes: Tensor, total: int) -> Neighbors:
        """The keyframes that frames (n,) of a clip of ``total`` take their tokens from."""
        if self.variant == "paper":
            return paper_neighbors(frames, keyframes, self.blend)
        return reference_neighbors(frames, total, self.interval, self.blend)

    def fields_key(self, keyframes: Sequence[Tensor | None]) -> str | None:
        deciding = ("neighbors", "attention", "predict", "_passes")
        if any(getattr(type(self), name) is not getattr(TokenFlow, name) for name in deciding):
            return None  # of a subclass, which may carry other tokens
        carried = f" {self.interval} {self.blend}" if self.alters_source else ""
        rows = [None if row is None else row.tolist() for row in keyframes]
        return f"{self.variant} {self.field_of}{carried} {rows}"

    def attention(self, branches: int, source: bool) -> FlowAttention:
        return FlowAttention(branches, on=self.field_of, live=self.alters_source)

    def predict(
        self,
        run: Passes,
        attention: FlowAttention,
        frames: int,
        keyframes: Tensor | None,
        batch: int,
    ) -> Tensor:
        assert keyframes is not None, "TokenFlow draws keyframes for every step"
        return in_order(frames, self._passes(run, attention, frames, keyframes, batch))

    def _passes(
        self, run: Passes, attention: FlowAttention, frames: int, keyframes: Tensor, batch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The passes of a step, block after block of keyframes: (frames, their noise)."""
        paper, every = self.variant == "paper", torch.arange(frames)
        carried = every[~torch.isin(every, keyframes)] if paper else every
        near = self.neighbors(carried, keyframes, frames)
        needs = torch.maximum(near.first, near.second)
        attention.in_blocks = len(keyframes) > (self.window or len(keyframes))
        for block, ready in in_blocks(len(keyframes), self.window, needs):
            attention.mode, attention.context = "keyframes", block.context
            noise = jointly(run, keyframes[block.own], attention, batch)
            if paper:  # else keyframes are carried like all frames
                yield keyframes[block.own], noise
            for chunk in split(carried[ready], batch):
                near = self.neighbors(chunk, keyframes, frames).among(block.held)
                attention.neighbors = near.to(noise.device)
                attention.mode = "source"
                features = run.read_source(chunk, attention)
                attention.mode = "edited"
                yield chunk, run.edited(chunk, features)
