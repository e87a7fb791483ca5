"""One edit against its source by every metric that can be taken: one row of a table.

Memory: both clips, their tokens where these are asked for, and the CLIP with one batch. A Scorer
holds what it read of its source, at the source's own size and at that of the last edit.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkit import clip as clips
from tfkit import fidelity, raft
from tfkit.clip import CLIP, load_clip
from tfkit.editing import Edit
from tfkit.files import weights_there
from tfkit.loading import MENAGERIE
from tfkit.matches import Matches, matches_by_field, matches_by_flow, token_consistency
from tfkit.metrics import estimate_flow, resize_flow, warp_error
from tfkit.readers import Reader, name_of
from tfkit.records import key_of
from tfkit.scores import Score
from tfkit.tracks import grid_of, token_centers, track_points
from tfkit.video import Clip, as_frames, resize, size_of

T = TypeVar("T")

FLOWS = ("exact", "dis", "raft")
Flow = Literal["exact", "dis", "raft"]
At = tuple[tuple[int, int], torch.device]  # the size and the device of an edit
STILL = 0.5  # pixels a step: what tracks by tokens wander where nothing moves
_ESTIMATED = {"occlusion": "forward-backward check"}  # see tfkit.metrics.trusted
_WINDOW = f"{fidelity.WINDOW} x {fidelity.WINDOW} Gaussian"


def score(
    edit: Clip | Tensor | Edit,
    source: Clip | Tensor,
    prompt: str,
    source_prompt: str | None = None,
    *,
    clip: CLIP | str | Path = MENAGERIE,
    flow: Flow | tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    tokens: Reader | None = None,
    structure: Reader | None = None,
    tracks: Reader | tuple[Tensor, Tensor] | None = None,
) -> dict[str, Score]:
    """Every metric of an edit that can be taken, each with what it was measured with.

    edit: frames (f, 3, h, w), a Clip or an Edit. source: of as many frames; resized to the edit's
    size where that differs. source_prompt: the source's caption by default; without one, or where
    the CLIP cannot tell it from the prompt, there is no directional and success CLIP. flow: the
    source's own where it is known, else DIS; or "raft", or (flow, visible) given. mask: the
    foreground (f, h, w), the source's own by default; without one, or where it covers all, there is
    no background. tokens: reads frames' tokens (:class:`tfkit.readers.TokenReader`), for token
    consistency, structure and motion. structure: another reader for the structure distance, such as
    tfkit.dino's. tracks: (edit's, source's), (f, m, 2) each, or what makes them of frames, by
    default followed by the tokens.
    `ScoreTable({name: score(...), ...})` prints many; :class:`Scorer` measures several edits of one
    source. Raises ValueError where edit and source do not fit, and for a flow that is not there.
    """
    pair = tracks if isinstance(tracks, tuple) else None
    scorer = Scorer(
        source, source_prompt, clip=clip, flow=flow, mask=mask, tokens=tokens,
        structure=structure, tracks=None if isinstance(tracks, tuple) else tracks,
    )  # fmt: skip
    return scorer(edit, prompt, tracks=pair)


def _once(make: Callable[..., T]) -> Callable[..., T]:
    """A part of the source as edits of one size need it: made when first needed, and kept."""

    @wraps(make)
    def once(self: "Scorer", at: At, *of: str) -> T:
        key = make, at, of
        if key not in self._made:
            self._made[key] = make(self, at, *of)
        return self._made[key]

    return once


@dataclass(frozen=True, eq=False)
class Scorer:
    """Measures edits of one source, which is read once: `Scorer(source)(edit, prompt)`.

    All is as :func:`score` has it; a pair of tracks, which is of one edit alone, goes with that.
    What is written into the source meanwhile is not noticed.
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

    def __call__(
        self,
        edit: Clip | Tensor | Edit,
        prompt: str,
        *,
        tracks: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Score]:
        """The scores of one edit. tracks: (edit's, source's), (f, m, 2) each."""
        edit, known = as_frames(getattr(edit, "frames", edit), "edit"), self._known
        if len(known) != len(edit) or len(edit) < 2:
            raise ValueError(
                f"edit has {len(edit)} frames, source {len(known)}; expected as many, two at least"
            )
        at = size_of(edit), edit.device
        sizes = at[0], size_of(known.frames)  # of a third size nothing stays
        for key in [key for key in self._made if key[1][0] not in sizes]:
            del self._made[key]
        out: list[Score] = []

        def add(name: str, value: float | int, **settings: str | float | int) -> None:
            out.append(Score(name, value, settings))

        flow, visible, how = self._flow_at(at)
        add("warp_error", warp_error(edit, flow, visible), **how)

        judge, by = self._judge, name_of(self._judge)
        images, target = judge.embed(edit, prompt)
        add("frame_consistency", clips.consistency(images, "consecutive"), CLIP=by)
        add("frame_consistency_all", clips.consistency(images, "all"), CLIP=by)
        add("text_alignment", clips.alignment(images, target), CLIP=by)
        if self._caption and self._caption != prompt and clips.told_apart(target, self._words):
            value = clips.direction(images, self._images(at), target, self._words)
            add("directional", value, CLIP=by)
            add("success", clips.accuracy(images, target, self._words), CLIP=by)

        read = None if self.tokens is None else self.tokens(edit)
        by = "" if self.tokens is None else name_of(self.tokens)
        if self.structure is not None:
            value = fidelity.structure_distance(self.structure(edit), self._read(at, "structure"))
            add("structure_distance", value, tokens=name_of(self.structure))
        elif read is not None:
            value = fidelity.structure_distance(read, self._read(at, "tokens"))
            add("structure_distance", value, tokens=by)
        if read is not None:
            matches = self._matches(at)
            value = token_consistency(read, matches, centered=True)
            add("token_consistency", value, tokens=f"{by}, centred", matches=matches.how)
        if tracks is not None:
            add("motion_fidelity", fidelity.motion_fidelity(*tracks), tracks="given", still=0)
        elif self.tracks is not None:
            value = fidelity.motion_fidelity(self.tracks(edit), self._read(at, "tracks"))
            add("motion_fidelity", value, tracks=name_of(self.tracks), still=0)
        elif read is not None:
            moved = _follow(read, at[0])
            value = fidelity.motion_fidelity(moved, self._followed(at), still=STILL)
            add("motion_fidelity", value, tracks=by, still=STILL)

        if self._mask is not None:
            mask, background, windows = self._mask_at(at)
            whose = "the source's" if self._mask is known.mask else "given"
            if background:
                value = fidelity.background_psnr(edit, self._frames(at), mask)
                add("background_psnr", value, mask=whose)
            if windows:
                value = fidelity.background_ssim(edit, self._frames(at), mask)
                add("background_ssim", value, mask=whose, window=_WINDOW)
        return {score.name: score for score in out}

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
        return _follow(self._read(at, "tokens"), at[0])

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


def _follow(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Where every other token of the first frame, each way, is in every frame: (f, m, 2)."""
    grid = grid_of(tokens, size)
    points = token_centers(grid, size).to(tokens.device).reshape(*grid, 2)[::2, ::2].reshape(-1, 2)
    return track_points(tokens, points.to(tokens.dtype), size)[0]
