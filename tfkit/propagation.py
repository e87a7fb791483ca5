"""What makes the frames of an edit consistent: TokenFlow, joint attention, or nothing.

A propagation says which keyframes it wants, gives the processor that computes self-attention, and
orders the passes of one denoising step. It knows nothing of the editing method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tfkit.attention import FirstAttention, FlowAttention, JointAttention, KeyframeAttention
from tfkit.checks import check_choice, check_whole
from tfkit.keyframes import Neighbors, draw_keyframes, paper_neighbors, reference_neighbors

Pass = Callable[[Tensor], Tensor]  # frame indices (n,) -> their guided noise (n, c, h, w)


@runtime_checkable
class Passes(Protocol):
    """The passes of one step that a propagation can order."""

    def __call__(self, frames: Tensor) -> Tensor:
        """The guided noise (n, c, h, w) of frames (n,), the source among the branches."""
        ...

    def read_source(self, frames: Tensor, attention: Any) -> None:
        """The source's pass alone, or what is known of it from an earlier edit."""
        ...

    def edited(self, frames: Tensor) -> Tensor:
        """The guided noise of the same frames, by the other branches alone."""
        ...


@runtime_checkable
class Propagation(Protocol):
    """What the denoising loop asks of a propagation."""

    reads_source: bool

    def draw(self, frames: int, steps: int, seed: int) -> Int[Tensor, "steps k"] | None:
        """The keyframes of each step, or None where there are none."""
        ...

    def check(self, keyframes: Tensor, frames: int) -> None:
        """Raises ValueError unless keyframes that were given (steps, k) suit it."""
        ...

    def attention(self, branches: int, source: bool) -> Any:
        """The self-attention processor for the whole edit, or None for the model's own."""
        ...

    def predict(
        self, run: Passes, attention: Any, frames: int, keyframes: Tensor | None, batch: int
    ) -> Float[Tensor, "f c h w"]:
        """The noise of every frame in one step, by passes of at most about ``batch`` frames."""
        ...


@dataclass(frozen=True)
class PerFrame:
    """Every frame for itself: what image editing does to a video."""

    reads_source = False

    def draw(self, frames, steps, seed) -> None:
        return None

    def check(self, keyframes, frames) -> None:
        raise ValueError("PerFrame takes no keyframes; leave them out")

    def attention(self, branches, source) -> None:
        return None

    def predict(self, run, attention, frames, keyframes, batch) -> Tensor:
        return torch.cat([run(chunk) for chunk in torch.arange(frames).split(batch)])


@dataclass(frozen=True)
class ExtendedAttention:
    """Joint attention: each frame attends to all frames (eq. 3), or to the keyframes alone.

    interval: None: all frames in one pass. A whole number: one keyframe in so many frames; they
    attend to each other, then the others to them, a batch at a time: the paper's ablation of
    TokenFlow (section 5.3). keyframes: "random" in each interval at every step, or "fixed".
    """

    interval: int | None = None
    keyframes: Literal["random", "fixed"] = "random"

    reads_source = False

    def __post_init__(self):
        if self.interval is not None:
            check_whole("interval", self.interval)
        check_choice("keyframes", self.keyframes, ("random", "fixed"))

    def draw(self, frames, steps, seed) -> Int[Tensor, "steps k"] | None:
        if self.interval is None:
            return None
        fixed = self.keyframes == "fixed"
        return draw_keyframes(frames, self.interval, steps, fixed=fixed, seed=seed)

    def check(self, keyframes, frames) -> None:
        if self.interval is None:
            raise ValueError(
                "ExtendedAttention() takes no keyframes; leave them out, or give an interval for "
                "joint attention to keyframes alone"
            )

    def attention(self, branches, source) -> JointAttention | KeyframeAttention:
        kind = JointAttention if self.interval is None else KeyframeAttention
        return kind(branches, source)

    def predict(self, run, attention, frames, keyframes, batch) -> Tensor:
        if keyframes is None:
            return run(torch.arange(frames))
        attention.recall = False
        noise = run(keyframes)
        attention.recall = True
        return _with_others(run, noise, keyframes, frames, batch)


@dataclass(frozen=True)
class FirstFrame:
    """Cross-frame attention: each frame attends to the first one only, not even to itself.

    Text2Video-Zero's way to one look for all frames (Khachatryan et al., ICCV 2023, eq. 8).
    """

    reads_source = False

    def draw(self, frames, steps, seed) -> None:
        return None

    def check(self, keyframes, frames) -> None:
        raise ValueError("FirstFrame takes no keyframes; leave them out")

    def attention(self, branches, source) -> FirstAttention:
        return FirstAttention(branches, source)

    def predict(self, run, attention, frames, keyframes, batch) -> Tensor:
        first, out = torch.zeros(1, dtype=torch.long), []
        for chunk in torch.arange(1, frames).split(batch) if frames > 1 else [first[:0]]:
            noise = run(torch.cat([first, chunk]))
            out.append(noise if not out else noise[1:])
        return torch.cat(out)


@dataclass(frozen=True)
class TokenFlow:
    """Edits keyframes jointly and carries their tokens along the source's correspondences.

    interval: frames for each keyframe. variant: "paper", or "reference" for what the authors'
    code does (DESIGN: previous keyframe instead of the next, live source branch, middles).
    field: tokens the correspondences are computed from, attn1's "output" or "input"; None is the
    variant's own (paper: output, reference: input). blend: "sigmoid" as in eq. 5, or "linear".
    keyframes: "random" in each interval at every step, or "fixed" in the middles.
    """

    interval: int = 8
    variant: Literal["paper", "reference"] = "paper"
    field: Literal["output", "input"] | None = None
    blend: Literal["sigmoid", "linear"] = "sigmoid"
    keyframes: Literal["random", "fixed"] = "random"

    reads_source = True

    def __post_init__(self):
        check_whole("interval", self.interval)
        check_choice("variant", self.variant, ("paper", "reference"))
        check_choice("field", self.field, (None, "output", "input"))
        check_choice("blend", self.blend, ("sigmoid", "linear"))
        check_choice("keyframes", self.keyframes, ("random", "fixed"))

    def draw(self, frames, steps, seed) -> Int[Tensor, "steps k"]:
        fixed = self.keyframes == "fixed"
        return draw_keyframes(frames, self.interval, steps, fixed=fixed, seed=seed)

    def check(self, keyframes, frames) -> None:
        wanted = -(-frames // self.interval)
        if self.variant == "reference" and keyframes.shape[1] != wanted:
            raise ValueError(
                f"{keyframes.shape[1]} keyframes: the reference variant takes one for each "
                f"interval, {wanted} for {frames} frames at interval {self.interval}"
            )

    @property
    def field_of(self) -> Literal["output", "input"]:
        """The tokens that fields are computed from."""
        return self.field or ("input" if self.variant == "reference" else "output")

    def neighbors(self, frames: Tensor, keyframes: Tensor, total: int) -> Neighbors:
        """The keyframes that frames (n,) of a clip of ``total`` take their tokens from."""
        if self.variant == "paper":
            return paper_neighbors(frames, keyframes, self.blend)
        return reference_neighbors(frames, total, self.interval, self.blend)

    def schedule(self, keyframes: Tensor) -> str | None:
        """What the fields to keyframes (steps, k) depend on, besides the source."""
        middles = f" {self.interval}" if self.variant == "reference" else ""
        return f"{self.variant} {self.field_of}{middles} {keyframes.tolist()}"

    def attention(self, branches, source) -> FlowAttention:
        return FlowAttention(branches, self.field_of, self.variant == "reference")

    def predict(self, run, attention, frames, keyframes, batch) -> Tensor:
        attention.mode = "keyframes"
        noise = run(keyframes)

        def carried(chunk: Tensor) -> Tensor:
            attention.neighbors = self.neighbors(chunk, keyframes, frames).to(noise.device)
            attention.mode = "source"
            run.read_source(chunk, attention)
            attention.mode = "edited"
            return run.edited(chunk)

        if self.variant == "paper":
            return _with_others(carried, noise, keyframes, frames, batch)
        return torch.cat([carried(chunk) for chunk in torch.arange(frames).split(batch)])


def _with_others(
    run: Pass, noise: Tensor, keyframes: Tensor, frames: int, batch: int
) -> Float[Tensor, "f c h w"]:
    """The keyframes' noise, which is there, and that of all other frames."""
    others = torch.ones(frames, dtype=torch.bool).index_fill(0, keyframes, False).nonzero()[:, 0]
    out = noise.new_empty(frames, *noise.shape[1:])
    out[keyframes] = noise
    for chunk in others.split(batch) if len(others) else ():
        out[chunk] = run(chunk)
    return out
