"""One edit against its source by every metric that can be taken: one row of a table.

Memory: both clips, their tokens where these are asked for, and the CLIP with one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from tfkit import clip as clips
from tfkit import fidelity, raft
from tfkit.clip import CLIP, load_clip
from tfkit.diffusion import LatentDiffusion
from tfkit.editing import Edit
from tfkit.loading import MENAGERIE
from tfkit.matches import matches_by_field, matches_by_flow, token_consistency
from tfkit.metrics import estimate_flow, resize_flow, warp_error
from tfkit.scores import Score
from tfkit.tokens import Kind, extract_tokens, noised
from tfkit.tracks import grid_of, token_centers, track_points
from tfkit.video import Clip, as_frames, resize, size_of

FLOWS = ("exact", "dis", "raft")
Flow = Literal["exact", "dis", "raft"]
STILL = 0.5  # pixels a step: what tracks by tokens wander where nothing moves


@dataclass(frozen=True, eq=False)
class TokenReader:
    """Reads any frames' tokens with one layer of one model at one timestep, noise put on.

    Called with frames (f, 3, h, w) it returns (f, n, d); the same noise for source and edit.
    """

    model: LatentDiffusion
    layer: str
    timestep: int
    kind: Kind = "output"
    seed: int = 0

    @property
    def name(self) -> str:
        """Model, layer, kind and timestep: what its tokens must share to be compared."""
        kind = "" if self.kind == "output" else f" {self.kind}"
        return f"{self.model.name} {self.layer}{kind} at t = {self.timestep}"

    def __call__(self, frames: Tensor | Clip) -> Tensor:
        source = noised(self.model, frames, seed=self.seed)
        found = extract_tokens(
            self.model, source, timestep=self.timestep, layers=self.layer, kind=self.kind
        )
        if len(found) != 1:
            fits = ", ".join(found)
            raise ValueError(f"layer={self.layer!r}: expected one layer, it fits {fits}")
        return next(iter(found.values()))


def score(
    edit: Clip | Tensor | Edit,
    source: Clip | Tensor,
    prompt: str,
    source_prompt: str | None = None,
    *,
    clip: CLIP | str | Path = MENAGERIE,
    flow: Flow | tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    tokens: Callable[[Tensor], Tensor] | None = None,
    structure: Callable[[Tensor], Tensor] | None = None,
    tracks: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Score]:
    """Every metric of an edit that can be taken, each with what it was measured with.

    edit: frames (f, 3, h, w), a Clip or an Edit. source: of as many frames; resized to the edit's
    size where that differs. source_prompt: the source's caption by default; without one, or where
    the CLIP cannot tell it from the prompt, there is no directional and success CLIP. flow: the
    source's own where it is known, else DIS; or "raft", or (flow, visible) given. mask: the
    foreground (f, h, w), the source's own by default; without one, or where it covers all, there is
    no background. tokens: reads frames' tokens (:class:`TokenReader`), for token consistency,
    structure and motion. structure: another reader for the structure distance, such as
    tfkit.dino's. tracks: (edit's, source's), (f, m, 2) each, by default followed by the tokens.
    `ScoreTable({name: score(...), ...})` prints many. Raises ValueError where edit and source do
    not fit, and for a flow that is not there.
    """
    edit = as_frames(getattr(edit, "frames", edit), "edit")
    given = as_frames(source, "source").to(edit.device)
    if len(given) != len(edit) or len(edit) < 2:
        raise ValueError(
            f"edit has {len(edit)} frames, source {len(given)}; expected as many, two at least"
        )
    size = size_of(edit)
    frames = given if size_of(given) == size else resize(given, size)
    known = source if isinstance(source, Clip) else None
    out: list[Score] = []

    def add(name: str, value: float | int, **settings: str | float | int) -> None:
        settings = {key.replace("_", " "): value for key, value in settings.items()}
        out.append(Score(name, value, settings))

    way, visible, how = _flow(known, given, flow)
    if size_of(way) != size:
        way, visible = resize_flow(way, visible, size)
    way, visible = way.to(edit.device), visible.to(edit.device)
    add("warp_error", warp_error(edit, way, visible), flow=how)

    judge = clip if isinstance(clip, CLIP) else _load(str(clip))
    images, target = judge.embed(edit, prompt)
    add("frame_consistency", clips.consistency(images, "consecutive"), CLIP=judge.name)
    add("frame_consistency_all", clips.consistency(images, "all"), CLIP=judge.name)
    add("text_alignment", clips.alignment(images, target), CLIP=judge.name)
    if source_prompt is None:
        source_prompt = known.caption if known is not None else ""
    if source_prompt and source_prompt != prompt:
        before, words = judge.embed(frames, source_prompt)
        if clips.told_apart(target, words):
            add("directional", clips.direction(images, before, target, words), CLIP=judge.name)
            add("success", clips.accuracy(images, target, words), CLIP=judge.name)

    pair = None if tokens is None else (tokens(edit), tokens(frames))
    shapes = pair if structure is None else (structure(edit), structure(frames))
    if shapes is not None:
        value = fidelity.structure_distance(*shapes)
        add("structure_distance", value, tokens=_name(structure or tokens))
    if pair is not None:
        if how == "exact":
            matches = matches_by_flow(way, visible, grid_of(pair[1], size), how="exact flow")
        else:
            matches = matches_by_field(pair[1])
        value = token_consistency(pair[0], matches, centered=True)
        add("token_consistency", value, tokens=f"{_name(tokens)}, centred", matches=matches.how)
    if tracks is not None:
        add("motion_fidelity", fidelity.motion_fidelity(*tracks), tracks="given", still=0)
    elif pair is not None:
        moved, moving = (_tracks(one, size) for one in pair)
        value = fidelity.motion_fidelity(moved, moving, still=STILL)
        add("motion_fidelity", value, tracks=_name(tokens), still=STILL)

    mask = known.mask if mask is None and known is not None else mask
    if mask is not None:
        whose = "the source's" if known is not None and mask is known.mask else "given"
        mask = _resized(mask, size)
        if fidelity.has_background(mask):
            add("background_psnr", fidelity.background_psnr(edit, frames, mask), mask=whose)
        if fidelity.has_background(mask, fidelity.WINDOW):
            add("background_ssim", fidelity.background_ssim(edit, frames, mask), mask=whose)
    return {score.name: score for score in out}


@lru_cache(maxsize=2)
def _load(name: str) -> CLIP:
    """Every edit of a table is judged by one CLIP: it is read once."""
    return load_clip(name)


def _name(reader: object) -> str:
    own = getattr(reader, "name", None) or getattr(reader, "__name__", None)
    return str(own or type(reader).__name__)


def _flow(
    source: Clip | None, frames: Tensor, flow: Flow | tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, str]:
    """(flow, visible, what it is) of the source, as asked for."""
    if isinstance(flow, tuple):
        return *flow, "given"
    exact = source is not None and source.flow is not None and source.visible is not None
    if flow is None:
        flow = "exact" if exact else "dis"
    if flow not in FLOWS:
        raise ValueError(f"flow={flow!r}; expected (flow, visible) or one of {', '.join(FLOWS)}")
    if flow == "exact":
        if source is None or not exact:
            raise ValueError("flow='exact', but the source knows no flow; expected 'dis' or 'raft'")
        return source.truth("flow"), source.truth("visible"), "exact"
    if flow == "raft":
        return *raft.estimate_flow(frames), "RAFT"
    return *estimate_flow(frames), "DIS"


def _tracks(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Where every other token of the first frame, each way, is in every frame: (f, m, 2)."""
    grid = grid_of(tokens, size)
    points = token_centers(grid, size).to(tokens.device).reshape(*grid, 2)[::2, ::2].reshape(-1, 2)
    return track_points(tokens, points.to(tokens.dtype), size)[0]


def _resized(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if mask.ndim != 3 or size_of(mask) == size:
        return mask
    # a pixel is foreground where any it is drawn from is
    return F.adaptive_max_pool2d(mask[:, None].double(), size)[:, 0] > 0
