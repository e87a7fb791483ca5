"""What a propagation is asked, what it may order, and what those that batch frames share.

A propagation says which keyframes it wants, gives the processor that computes self-attention, and
orders the passes of one denoising step; those there are lie in propagation.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from tfkit.attention import Branches
from tfkit.keyframes import Block, Neighbors, key_blocks
from tfkit.settings import check_whole
from tfkit.source_cache import Features

LEAST_WINDOW = 3  # keyframes: an anchor, and two that go in blocks of one

Pass = Callable[[Tensor], Tensor]  # frames (n,) -> their guided noise (n, c, h, w)


@runtime_checkable
class Passes(Protocol):
    """The passes of one step that a propagation can order."""

    def __call__(self, frames: Tensor) -> Tensor:
        """The guided noise (n, c, h, w) of frames (n,), the source among the branches."""
        ...

    def in_turn(self, frames: Tensor, attention: Branches) -> Tensor:
        """The same noise as a call's, from a pass for each branch: less memory at a time."""
        ...

    def read_source(self, frames: Tensor, attention: Any) -> Features:
        """What the source's pass alone finds in frames (n,), or is known from an earlier edit."""
        ...

    def edited(self, frames: Tensor, features: Features) -> Tensor:
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
        """The self-attention processor of one step, or None for the model's own."""
        ...

    def predict(
        self, run: Passes, attention: Any, frames: int, keyframes: Tensor | None, batch: int
    ) -> Float[Tensor, "f c h w"]:
        """The noise of every frame in one step, by passes of at most about ``batch`` frames."""
        ...


@runtime_checkable
class Carrying(Propagation, Protocol):
    """A propagation that carries keyframes' tokens to other frames, as TokenFlow does."""

    @property
    def field_of(self) -> Literal["output", "input"]:
        """The tokens that fields are computed from."""
        ...

    @property
    def alters_source(self) -> bool:
        """Whether the source's own branch is carried too, so that its passes are no plain ones."""
        ...

    def neighbors(self, frames: Tensor, keyframes: Tensor, total: int) -> Neighbors:
        """The keyframes that frames (n,) of a clip of ``total`` take their tokens from."""
        ...

    def fields_key(self, keyframes: Sequence[Tensor | None]) -> str | None:
        """What the fields to the keyframes (k,) of each step depend on, besides the source.

        None where that cannot be told: then nothing of the source is kept for further edits.
        """
        ...


@runtime_checkable
class Windowed(Propagation, Protocol):
    """A propagation whose frames attend to some of the keyframes where there are many."""

    @property
    def window(self) -> int | None:
        """To how many at the most; None: to all, however many."""
        ...


def in_blocks(
    count: int, window: int | None, needs: Int[Tensor, " f"]
) -> Iterator[tuple[Block, slice]]:
    """The blocks of ``count`` keyframes, and which of the other frames can go after each.

    needs: the last keyframe that each frame depends on, in ascending order.
    """
    done = 0
    for block in key_blocks(count, window):
        ready = int((needs < block.until).sum())
        yield block, slice(done, ready)
        done = ready


def split(frames: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Chunks of at most ``batch`` frames, none where there are none."""
    return frames.split(batch) if len(frames) else ()


def jointly(run: Passes, frames: Tensor, attention: Any, batch: int) -> Tensor:
    """The noise of frames that attend to each other, and so cannot be split into batches.

    Where they are more than a batch, the branches go in turn, if the processor knows of them: as
    one of :class:`tfkit.attention.Branches`, which it asks which are ``there``.
    """
    if len(frames) <= batch or not isinstance(attention, Branches):
        return run(frames)
    return run.in_turn(frames, attention)


def in_order(frames: int, parts: Iterable[tuple[Tensor, Tensor]]) -> Float[Tensor, "f c h w"]:
    """The noise of all ``frames``, from parts of (frames, noise), each put in place as it comes.

    Memory: one block. Parts held until the last would lie scattered among the passes' activations,
    whose memory could not be given back.
    """
    whole: Tensor | None = None
    for some, noise in parts:
        if whole is None:
            whole = noise.new_empty(frames, *noise.shape[1:])
        whole[some.to(whole.device)] = noise
    if whole is None:
        raise ValueError("no part of the noise came; expected one pass or more")
    return whole


def check_window(window: int | None) -> int | None:
    """The same; raises ValueError unless it is None or counts three keyframes or more."""
    return None if window is None else check_whole("window", window, least=LEAST_WINDOW)
