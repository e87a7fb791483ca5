"""The source of an edit as metrics read it: its flow, tokens, mask and images, each read once.

Memory: what was read, at the source's own size and at that of the last edit.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkit import fidelity, raft
from tfkit.clip import CLIP, load_clip
from tfkit.files import weights_there
from tfkit.identity import key_of
from tfkit.loading import MENAGERIE
from tfkit.matches import Matches, matches_by_field, matches_by_flow
from tfkit.metrics import estimate_flow, resize_flow
from tfkit.readers import Reader
from tfkit.tracks import grid_of, token_centers, track_points
from tfkit.video import Clip, as_frames, resize, size_of

T = TypeVar("T")

FLOWS = ("exact", "dis", "raft")
Flow = Literal["exact", "dis", "raft"]
At = tuple[tuple[int, int], torch.device]  # the size and the device of an edit
_ESTIMATED = {"occlusion": "forward-backward check"}  # see tfkit.metrics.trusted


def _once(make: Callable[..., T]) -> Callable[..., T]:
    """A part of the source as edits of one size need it: made when first needed, and kept."""

    @wraps(make)
    def once(self: "MeasuredSource", at: At, *of: str) -> T:
        key = make, at, of
        if key not in self._made:
            self._made[key] = make(self, at, *of)
        return self._made[key]

    return once


@dataclass(frozen=True, eq=False)
class MeasuredSource:
    """What edits of one source are measured against; :class:`tfkit.scoring.Scorer` measures them.

    Its settings are those of :func:`tfkit.scoring.score`.
    """

    source: Clip | Tensor
    source_prompt: str | None = None
    _: KW_ONLY
    clip: CLIP | str | Path = MENAGERIE
    flow: Flow | tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None
    tokens: Reader | None = None
    structure: Reader | None = None
    tracks: Reader | None = None
    _made: dict[tuple[Callable, At, tuple[str, ...]], Any] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "structure", "tracks"):
            reader = getattr(self, name)
            if reader is not None and not callable(reader):
                raise ValueError(
                    f"{name}={reader!r}: expected a function of frames, such as "
                    "tfkit.readers.TokenReader or what tfkit.dino.load_dino returns"
                )
        given = self._flow
        pair = isinstance(given, tuple) and [isinstance(x, Tensor) for x in given] == [True, True]
        if not pair and (isinstance(given, tuple) or given not in FLOWS):
            raise ValueError(
                f"flow={self._flow!r}; expected (flow, visible) or one of {', '.join(FLOWS)}"
            )
        if self._flow == "exact" and not self._exact:
            raise ValueError("flow='exact', but the source knows no flow; expected 'dis' or 'raft'")
        mask, count = self.mask, len(self._known)
        if mask is not None and not (
            isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 3
            and len(mask) == count
        ):  # fmt: skip
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
            raise ValueError(f"mask is {got}; expected torch.bool ({count}, h, w)")

    @cached_property
    def _known(self) -> Clip:
        source = self.source
        return source if isinstance(source, Clip) else Clip(as_frames(source, "source"))

    @cached_property
    def _judge(self) -> CLIP:
        if isinstance(self.clip, CLIP):
            return self.clip
        return _load(str(self.clip), tuple(weights_there(self.clip)))

    @cached_property
    def _caption(self) -> str:
        return self._known.caption if self.source_prompt is None else self.source_prompt

    @cached_property
    def _mask(self) -> Tensor | None:
        return self._known.mask if self.mask is None else self.mask

    @property
    def _exact(self) -> bool:
        return self._known.flow is not None and self._known.visible is not None

    @cached_property
    def _flow(self) -> Flow | tuple[Tensor, Tensor]:
        return self.flow or ("exact" if self._exact else "dis")

    @cached_property
    def _words(self) -> Tensor:
        return self._judge.embed_prompt(self._caption)

    @_once
    def _frames(self, at: At) -> Tensor:
        frames, (size, device) = self._known.frames, at
        frames = frames.to(device)
        return frames if size_of(frames) == size else resize(frames, size)

    @_once
    def _flow_at(self, at: At) -> tuple[Tensor, Tensor, dict[str, str]]:
        size, device = at
        flow, visible, how = self._own_flow((size_of(self._known.frames), device))
        if size_of(flow) != size:
            flow, visible = resize_flow(flow, visible, size)
        return flow.to(device), visible.to(device), how

    @_once
    def _own_flow(self, at: At) -> tuple[Tensor, Tensor, dict[str, str]]:
        """(flow, visible, what it is) at the source's size, or as given."""
        if isinstance(self._flow, tuple):
            return *self._flow, {"flow": "given"}
        if self._flow == "exact":
            return self._known.truth("flow"), self._known.truth("visible"), {"flow": "exact"}
        frames = self._frames(at)
        if self._flow == "dis":
            return *estimate_flow(frames), {"flow": "DIS"} | _ESTIMATED
        model = raft.shared_raft(frames.device)
        how = {"flow": f"RAFT large {key_of(model.state_dict())[:8]}"} | _ESTIMATED
        return *raft.estimate_flow(frames, model), how

    @_once
    def _images(self, at: At) -> Tensor:
        return self._judge.embed_frames(self._frames(at))

    @_once
    def _read(self, at: At, reader: str) -> Tensor:
        """What one of its readers, by the setting's name, makes of the source."""
        return getattr(self, reader)(self._frames(at))

    @_once
    def _matches(self, at: At) -> Matches:
        tokens = self._read(at, "tokens")
        if self._flow != "exact":
            return matches_by_field(tokens)
        flow, visible, _ = self._flow_at(at)
        return matches_by_flow(flow, visible, grid_of(tokens, at[0]), how="exact flow")

    @_once
    def _followed(self, at: At) -> Tensor:
        return follow_tokens(self._read(at, "tokens"), at[0])

    @_once
    def _mask_at(self, at: At) -> tuple[Tensor, bool, bool]:
        """The mask, whether it leaves some background, and whether a whole window of SSIM."""
        mask, size = self._mask, at[0]
        assert mask is not None, "asked for only where there is one"
        if mask.ndim == 3 and size_of(mask) != size:
            # a pixel is foreground where any it is drawn from is
            mask = F.adaptive_max_pool2d(mask[:, None].double(), size)[:, 0] > 0
        return mask, fidelity.has_background(mask), fidelity.has_background(mask, fidelity.WINDOW)


@lru_cache(maxsize=2)
def _load(name: str, there: tuple[tuple[str, int, int], ...]) -> CLIP:
    """Every edit of a table is judged by one CLIP: it is read once, while its files stay."""
    return load_clip(name)


def follow_tokens(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Where every other token of the first frame, each way, is in every frame: (f, m, 2)."""
    grid = grid_of(tokens, size)
    points = token_centers(grid, size).to(tokens.device).reshape(*grid, 2)[::2, ::2].reshape(-1, 2)
    return track_points(tokens, points, size)[0]
