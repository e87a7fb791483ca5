"""One edit against its source by every metric that can be taken: one row of a table.

Memory: both clips, their tokens where these are asked for, and the CLIP with one batch.
"""

from pathlib import Path

from torch import Tensor

from tfkit import clip as clips
from tfkit import fidelity
from tfkit.clip import CLIP
from tfkit.editing import Edit
from tfkit.loading import MENAGERIE
from tfkit.matches import token_consistency
from tfkit.measured_source import Flow, MeasuredSource, follow_tokens
from tfkit.metrics import warp_error
from tfkit.readers import Reader, name_of
from tfkit.scores import Score
from tfkit.video import Clip, as_frames, size_of

STILL = 0.5  # pixels a step: what tracks by tokens wander where nothing moves
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


class Scorer(MeasuredSource):
    """Measures edits of one source, which is read once: `Scorer(source)(edit, prompt)`.

    All is as :func:`score` has it; a pair of tracks, which is of one edit alone, goes with that.
    What is written into the source meanwhile is not noticed.
    """

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
            moved = follow_tokens(read, at[0])
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
