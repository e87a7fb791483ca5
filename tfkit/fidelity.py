"""What an edit keeps of its source: the background's pixels, the structure, the motion.

Edit and source are (f, 3, h, w) in [0, 1] or a Clip, of one size; tokens (f, n, d); tracks
(f, m, 2) in pixels (x, y). All is computed in float64, one frame at a time; self-similarities and
pairs of tracks in blocks of ``BLOCK`` values.
"""

import math
from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from tfkit.checks import check_mask, check_pair
from tfkit.video import Clip

BLOCK = 2**22  # values held at a time: 32 MB in float64
WINDOW, _SIGMA = 11, 1.5  # of SSIM


def background_psnr(
    edit: Clip | Tensor, source: Clip | Tensor, mask: Bool[Tensor, "f h w"]
) -> float:
    """PSNR in dB outside the mask: -10 log10 of the mean squared difference; inf where equal.

    The mean goes over the channels and the pixels of all frames that the mask (the foreground, as
    Clip.mask) does not cover. A float. ValueError for shapes that do not fit and a mask that covers
    everything. (Background preservation as in PIE-Bench: Ju et al., Direct Inversion, ICLR 2024.)
    """
    edit, source = check_pair("edit", edit, "source", source)
    check_mask(edit, mask)
    total, count = 0.0, 0
    for x, y, covered in zip(edit, source, mask, strict=True):
        outside = (x.double() - y.double())[:, ~covered.to(x.device)]
        total, count = total + outside.square().sum().item(), count + outside.numel()
    if not count:
        raise ValueError(f"the mask covers all of the {len(edit)} frames; expected some background")
    return -10 * math.log10(total / count) if total else math.inf


def ssim_map(a: Float[Tensor, "3 h w"], b: Float[Tensor, "3 h w"]) -> Float[Tensor, "y x"]:
    """Structural similarity of two pictures around each pixel that a whole window fits around.

    (2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2)), with means and
    (co)variances weighted by a Gaussian of 11 x 11 pixels and sigma 1.5, C1 = 0.01^2, C2 = 0.03^2
    (Wang et al., IEEE TIP 2004, eqs. 13 to 16); the mean of the three channels.
    """
    a, b = a.double(), b.double()
    place = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    weight = (-place.square() / (2 * _SIGMA**2)).exp()
    weight = weight / weight.sum()
    maps = torch.cat([a, b, a * a, b * b, a * b])[:, None]
    maps = F.conv2d(F.conv2d(maps, weight[None, None, :, None]), weight[None, None, None])[:, 0]
    mean_a, mean_b, aa, bb, ab = maps.chunk(5)
    both, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * both + c1) * (2 * (ab - both) + c2)
    return (top / ((squares + c1) * (aa + bb - squares + c2))).mean(0)


@overload
def ssim(a: Clip | Tensor, b: Clip | Tensor, *, per_frame: Literal[False] = False) -> float: ...


@overload
def ssim(a: Clip | Tensor, b: Clip | Tensor, *, per_frame: Literal[True]) -> Tensor: ...


def ssim(a: Clip | Tensor, b: Clip | Tensor, *, per_frame: bool = False) -> float | Tensor:
    """Mean structural similarity of frames of one size, 1 where equal (see :func:`ssim_map`).

    A float over all frames, or with `per_frame` a tensor (f,). (Wang et al., 2004, eq. 17.)
    """
    a, b = check_pair("a", a, "b", b)
    _check_window(a)
    values = torch.stack([ssim_map(x, y).mean() for x, y in zip(a, b, strict=True)])
    return values if per_frame else values.mean().item()


def background_ssim(
    edit: Clip | Tensor, source: Clip | Tensor, mask: Bool[Tensor, "f h w"]
) -> float:
    """Mean structural similarity of the windows that lie wholly outside the mask, a float.

    Windows, of 11 x 11 pixels weighted by a Gaussian, as :func:`ssim_map` (Wang et al., IEEE TIP
    2004); those that touch the foreground are left out: in them the edit itself would count. The
    mean goes over the windows of all frames. ValueError for shapes that do not fit, and where no
    window is background alone.
    """
    edit, source = check_pair("edit", edit, "source", source)
    _check_window(edit)
    check_mask(edit, mask)
    total, count = 0.0, 0
    for x, y, covered in zip(edit, source, mask, strict=True):
        clear = ssim_map(x, y)[_free(covered, WINDOW).to(x.device)]
        total, count = total + clear.sum().item(), count + clear.numel()
    if not count:
        raise ValueError(
            f"the mask leaves no window of {WINDOW} x {WINDOW} pixels free in any of the "
            f"{len(edit)} frames"
        )
    return total / count


def has_background(mask: Bool[Tensor, "f h w"], window: int = 1) -> bool:
    """Whether the foreground leaves some window of so many pixels each way free."""
    fits = min(mask.shape[-2:]) >= window
    return fits and any(bool(_free(covered, window).any()) for covered in mask)


def _free(covered: Bool[Tensor, "h w"], window: int) -> Bool[Tensor, "y x"]:
    """The windows that touch no foreground."""
    return F.max_pool2d(covered[None].double(), window, stride=1)[0] == 0


@overload
def structure_distance(
    edit: Tensor, source: Tensor, *, per_frame: Literal[False] = False
) -> float: ...


@overload
def structure_distance(edit: Tensor, source: Tensor, *, per_frame: Literal[True]) -> Tensor: ...


def structure_distance(
    edit: Float[Tensor, "f n d"], source: Float[Tensor, "f n e"], *, per_frame: bool = False
) -> float | Tensor:
    """How much the layout changed: mean squared difference of the tokens' self-similarities.

    S[p, q] = cos(token p, token q) within a frame; |S_edit - S_source|_F^2 / n^2, the mean over the
    frames, or with `per_frame` a tensor (f,). 0 for one structure in any appearance. Splice's
    structure loss (Tumanyan et al., CVPR 2022; the keys of DINO's last layer, see tfkit.dino), here
    on any model's tokens: values of different models cannot be compared.
    Raises ValueError unless both have as many frames and tokens.
    """
    for name, tokens in (("edit", edit), ("source", source)):
        _check_3d(name, tokens, "tokens (f, n, d)")
        if not torch.isfinite(tokens).all():
            raise ValueError(f"{name} holds NaN or infinity; expected finite values")
    if edit.shape[:2] != source.shape[:2]:
        raise ValueError(
            f"edit is {tuple(edit.shape)}, source {tuple(source.shape)}; expected as many frames "
            "and tokens (f, n, d)"
        )
    n = edit.shape[1]
    values = []
    for a, b in zip(edit, source, strict=True):
        a, b = (F.normalize(x.double(), dim=-1, eps=1e-300) for x in (a, b))
        rows = torch.arange(n).split(max(1, BLOCK // n))
        parts = [(a[r] @ a.T - (b[r] @ b.T).to(a.device)).square().sum() for r in rows]
        values.append(torch.stack(parts).sum() / n**2)
    out = torch.stack(values)
    return out if per_frame else out.mean().item()


def motion_fidelity(
    edit: Float[Tensor, "f m 2"],
    source: Float[Tensor, "f k 2"],
    *,
    edit_visible: Bool[Tensor, "f m"] | None = None,
    source_visible: Bool[Tensor, "f k"] | None = None,
    still: float | int = 0,
    aligned: bool = False,
) -> float:
    """How well the edit moves as its source does, by tracks of points: from -1 to 1.

    The correlation of two tracks is the mean over the steps of the cosine of their displacements;
    each track takes its best correlation with any of the other video's, so the two need not be of
    the same points; the mean over the edit's tracks and that over the source's, averaged. Where
    both move by at most `still` pixels a step, the cosine counts as 1, where only one does, as 0
    (undefined otherwise). A step counts where both points are visible at both of its ends; tracks
    that share no step with any other are left out.
    aligned: track i of the edit is of the same point as track i of the source and is compared with
    it alone. That is stricter, for the best of all may be found elsewhere: played backwards, a walk
    under a panning camera still scores 0.98, and aligned -1.
    Yatim et al., Space-Time Diffusion Features, CVPR 2024 (the correlation is that of their code,
    which averages the edit's side only). Tracks come from tfkit.tracks: `track_points`, or
    `follow_flow` where the flow is known.
    Raises ValueError for shapes that do not fit and where nothing can be compared.
    """
    for name, tracks in (("edit", edit), ("source", source)):
        _check_3d(name, tracks, "tracks (f, m, 2)")
    frames, planes = {len(edit), len(source)}, {edit.shape[2], source.shape[2]}
    if len(frames) > 1 or frames == {1} or planes != {2}:
        raise ValueError(
            f"edit is {tuple(edit.shape)}, source {tuple(source.shape)}; expected tracks (f, m, 2) "
            "and (f, k, 2) over the same frames, two at least"
        )
    if not still >= 0:
        raise ValueError(f"still={still!r}: expected pixels, 0 or more")
    if aligned and edit.shape[1] != source.shape[1]:
        raise ValueError(
            f"{edit.shape[1]} tracks of the edit, {source.shape[1]} of its source; aligned ones "
            "are as many"
        )
    a, b = _steps(edit, edit_visible, still), _steps(source, source_visible, still)
    if aligned:
        total = (a[0] * b[0]).sum((1, 2)) + (a[1] * b[1]).sum(1)
        steps = (a[2] * b[2]).sum(1)
        return _mean_of((total / steps)[steps > 0])
    best_a, best_b = [], torch.full((source.shape[1],), -math.inf, dtype=torch.float64)
    for rows in torch.arange(edit.shape[1]).split(max(1, BLOCK // max(1, source.shape[1]))):
        way, rest, seen = (x[rows] for x in a)
        total = torch.einsum("mtc,ktc->mk", way, b[0]) + rest @ b[1].T
        steps = seen @ b[2].T
        score = torch.where(steps > 0, total / steps.clamp(min=1), -math.inf)
        best_a.append(score.amax(1))
        best_b = torch.maximum(best_b, score.amax(0))
    sides = [_mean_of(best[best > -math.inf]) for best in (torch.cat(best_a), best_b)]
    return sum(sides) / 2


def _mean_of(values: Tensor) -> float:
    if not len(values):
        raise ValueError("no two tracks are visible in the same step; nothing can be compared")
    return values.mean().item()


def _steps(
    tracks: Tensor, visible: Tensor | None, still: float | int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each track and step: unit displacement (m, t, 2), at rest (m, t), seen at both ends."""
    if visible is None:
        visible = torch.ones(tracks.shape[:2], dtype=torch.bool)
    if visible.shape != tracks.shape[:2] or visible.dtype != torch.bool:
        raise ValueError(
            f"visible is {visible.dtype} {tuple(visible.shape)}; tracks {tuple(tracks.shape)} need "
            f"torch.bool {tuple(tracks.shape[:2])}"
        )
    if not torch.isfinite(tracks[visible.to(tracks.device)]).all():
        raise ValueError(
            "tracks hold NaN or infinity where they are visible; expected pixels (x, y)"
        )
    way = tracks.detach().cpu().double().diff(dim=0).transpose(0, 1)
    seen = (visible[1:] & visible[:-1]).T.cpu()
    length = way.norm(dim=-1)
    moving = (length > still) & seen
    unit = torch.where(moving[..., None], way / length.clamp(min=1e-300)[..., None], 0.0)
    return unit, (seen & ~moving).double(), seen.double()


def _check_window(frames: Tensor) -> None:
    if min(frames.shape[-2:]) < WINDOW:
        raise ValueError(
            f"frames are {tuple(frames.shape)}; SSIM needs {WINDOW} x {WINDOW} pixels at least"
        )


def _check_3d(name: str, value: object, expected: str) -> None:
    if not isinstance(value, Tensor) or value.ndim != 3 or 0 in value.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {got}; expected {expected}")
