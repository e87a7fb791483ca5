"""Numbers for video: PSNR, steadiness along the motion (warp error), colour, correspondences.

What an edit keeps of its source is in fidelity.py, how its tokens agree in matches.py.

Frames are (f, 3, h, w) in [0, 1], or a Clip; flow is (f-1, 2, h, w) in pixels (x, y) from frame i
to i+1; visible and masks are bool. All is computed in float64, one frame at a time.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tfkit.checks import check_flow, check_mask, check_pair
from tfkit.settings import is_finite
from tfkit.video import Clip, as_frames, to_uint8


@overload
def psnr(a: Clip | Tensor, b: Clip | Tensor, *, per_frame: Literal[False] = False) -> float: ...


@overload
def psnr(a: Clip | Tensor, b: Clip | Tensor, *, per_frame: Literal[True]) -> Tensor: ...


def psnr(a: Clip | Tensor, b: Clip | Tensor, *, per_frame: bool = False) -> float | Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10(mean squared difference); inf where equal.

    A float over all frames together, or with `per_frame` a tensor (f,) with one value a frame.
    """
    a, b = check_pair("a", a, "b", b)
    errors = torch.stack(
        [(x.double() - y.double()).square().mean() for x, y in zip(a, b, strict=True)]
    )
    return -10 * errors.log10() if per_frame else -10 * errors.mean().log10().item()


def warp(
    frames: Clip | Tensor, flow: Float[Tensor, "n 2 h w"]
) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, "n h w"]]:
    """Each next frame brought back to the one before: frame i+1 sampled at x + flow_i(x), bilinear.

    The warped frames 1 to f-1 (compare them with `frames[:-1]`), and which points landed inside the
    picture; the others repeat its border.
    """
    frames = as_frames(frames)
    _check_flow(frames, flow)
    pairs = [_sample(image, way) for image, way in zip(frames[1:], flow, strict=True)]
    warped, inside = zip(*pairs, strict=True)
    return torch.stack(warped).to(frames.dtype), torch.stack(inside)


@overload
def warp_error(
    frames: Clip | Tensor, flow: Tensor, visible: Tensor, *, per_pair: Literal[False] = False
) -> float: ...


@overload
def warp_error(
    frames: Clip | Tensor, flow: Tensor, visible: Tensor, *, per_pair: Literal[True]
) -> Tensor: ...


def warp_error(
    frames: Clip | Tensor,
    flow: Float[Tensor, "n 2 h w"],
    visible: Bool[Tensor, "n h w"],
    *,
    per_pair: bool = False,
) -> float | Tensor:
    """How much colours change along the motion: mean (frame_i(x) - frame_{i+1}(x + flow_i(x)))^2.

    First over the channels and the visible points of a pair of frames, then over the pairs (those
    with any visible point), in squared units of [0, 1] (published tables print it times 1000).
    Points that land outside the picture count as not visible. An edit is measured along the flow of
    its *source*. ValueError where no point is visible. Lai et al., ECCV 2018, section 4.2.
    """
    frames = as_frames(frames)
    _check_flow(frames, flow)
    wanted = (len(flow), *flow.shape[-2:])
    bools = isinstance(visible, Tensor) and visible.dtype == torch.bool
    if not bools or tuple(visible.shape) != wanted:
        tensor = isinstance(visible, Tensor)
        got = f"{visible.dtype} {tuple(visible.shape)}" if tensor else repr(visible)
        raise ValueError(
            f"visible is {got}; the flow {tuple(flow.shape)} needs torch.bool {wanted}"
        )
    if not torch.isfinite(frames).all():
        raise ValueError("frames hold NaN or infinity; expected finite values")
    if not torch.isfinite(flow.movedim(1, -1)[visible.to(flow.device)]).all():
        raise ValueError("flow holds NaN or infinity where points are visible; expected pixels")
    errors = []
    for (here, after), way, seen in zip(pairwise(frames), flow, visible, strict=True):
        warped, inside = _sample(after, way)
        squared = (here.double() - warped).square().mean(0)[seen.to(inside.device) & inside]
        errors.append(squared.mean())  # of none: NaN
    every = torch.stack(errors)
    if every.isnan().all():
        raise ValueError(
            f"no point is visible in any of the {len(flow)} pairs of frames; expected some"
        )
    return every if per_pair else every.nanmean().item()


def estimate_flow(
    frames: Clip | Tensor, preset: Literal["ultrafast", "fast", "medium"] = "medium"
) -> tuple[Float[Tensor, "n 2 h w"], Bool[Tensor, "n h w"]]:
    """Optical flow from each frame to the next, and where it can be trusted: (flow, visible).

    Dense inverse search (Kroeger et al., ECCV 2016) in OpenCV, on grey 8-bit frames and down to
    their full resolution, forward and backward, and seen where the two agree (:func:`trusted`).
    About 0.4 s a pair at 512 x 512. On the device of the frames, float32. For RAFT's flow:
    tfkit.raft.
    """
    import cv2  # slow to import, and needed only here

    presets = {name: f"DISOPTICAL_FLOW_PRESET_{name.upper()}" for name in _PRESETS}
    if preset not in presets:
        raise ValueError(f"preset={preset!r}; expected one of {', '.join(_PRESETS)}")
    frames = as_frames(frames)
    if len(frames) < 2 or min(frames.shape[-2:]) < 16:
        raise ValueError(
            f"frames has shape {tuple(frames.shape)}; flow needs two frames of 16 x 16 at least"
        )
    engine = cv2.DISOpticalFlow.create(getattr(cv2, presets[preset]))
    # down to full resolution, where the presets stop at half: on three menagerie clips the flow's
    # error fell to 0.6 of what it was, the warp error to 0.4, about that of the true flow
    engine.setFinestScale(0)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in to_uint8(frames)]

    def between(a: np.ndarray, b: np.ndarray) -> Tensor:
        return torch.from_numpy(engine.calc(a, b, None)).permute(2, 0, 1)  # type: ignore[call-overload]  # None: no first guess

    ways = [(between(a, b), between(b, a)) for a, b in pairwise(grey)]
    flow = torch.stack([forward for forward, _ in ways])
    visible = torch.stack([trusted(*pair) for pair in ways])
    return flow.to(frames.device), visible.to(frames.device)


def trusted(
    forward: Float[Tensor, "2 h w"], backward: Float[Tensor, "2 h w"]
) -> Bool[Tensor, "h w"]:
    """Where a flow and the one back agree, (h, w) bool: there, and inside the picture, it is seen.

    A point is occluded where |f + b(x + f)|^2 > 0.01 (|f|^2 + |b|^2) + 0.5 (Sundaram et al., ECCV
    2010), b read at x + f.
    """
    backward, inside = _sample(backward, forward)
    apart = (forward + backward).square().sum(0)
    lengths = forward.square().sum(0) + backward.square().sum(0)
    return inside & (apart <= 0.01 * lengths + 0.5)


_PRESETS = ("ultrafast", "fast", "medium")


def resize_flow(
    flow: Float[Tensor, "n 2 h w"], visible: Bool[Tensor, "n h w"], size: tuple[int, int]
) -> tuple[Float[Tensor, "n 2 ..."], Bool[Tensor, "n ..."]]:
    """The flow and its visibility for frames of another size (h, w), the vectors scaled along.

    A point stays visible where all points it is drawn from are.
    """
    check_flow(flow, visible)
    if np.ndim(size) != 1 or len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={size!r}; expected (h, w)")
    h, w = size
    scale = flow.new_tensor([w / flow.shape[-1], h / flow.shape[-2]]).view(2, 1, 1)
    both = torch.cat([flow, visible[:, None].to(flow.dtype)], dim=1).double()
    both = F.interpolate(both, (h, w), mode="bilinear", antialias=True, align_corners=False)
    return both[:, :2].to(flow.dtype) * scale, both[:, 2] > 0.999


def color_spread(frames: Clip | Tensor, mask: Bool[Tensor, "f h w"]) -> float:
    """How much what the mask covers changes its colour over time, in units of [0, 1].

    The mean colour under the mask of each frame; its variance over the frames (divided by their
    number); the mean of that over the three channels; the root. Frames with an empty mask are left
    out; ValueError if all are.
    """
    frames = as_frames(frames)
    check_mask(frames, mask)
    colors = [x[:, m].double().mean(1) for x, m in zip(frames, mask, strict=True) if m.any()]
    if not colors:
        raise ValueError(f"the mask covers nothing in any of the {len(frames)} frames")
    return torch.stack(colors).var(dim=0, correction=0).mean().sqrt().item()


def pck(
    found: Tensor | Iterable[Tensor],
    truth: Tensor | Iterable[Tensor],
    reach: float | int | Iterable[float | int],
    *,
    per: Literal["point", "image"] = "point",
) -> float:
    """PCK, the share of correct keypoints: found points within ``reach`` pixels of the truth.

    found, truth: (n, 2) each in pixels (x, y), or a list with one of each image. reach: pixels, or
    one number an image, as :func:`pck_reach` gives them (Yang and Ramanan, 2013). per: "point"
    counts every point alike; "image" takes the mean of the images' own shares, so that one with
    many points weighs no more than the others. Raises ValueError where the lists or shapes do not
    match.
    """
    if per not in ("point", "image"):
        raise ValueError(f"per={per!r}; expected 'point' or 'image'")
    found, truth = _of_images("found", found), _of_images("truth", truth)
    if isinstance(reach, Tensor):
        reach = reach.tolist()
    most = list(reach) if isinstance(reach, Iterable) else [reach] * len(found)
    for pixels in most:
        _check_reach("reach", pixels, "pixels")
    if not len(found) == len(truth) == len(most) or not found:
        raise ValueError(
            f"{len(found)} images of found points, {len(truth)} of true ones and {len(most)} "
            "thresholds; expected as many, one at least"
        )
    right = [_distances(a, b) <= near for a, b, near in zip(found, truth, most, strict=True)]
    if per == "point":
        return torch.cat([x.cpu() for x in right]).double().mean().item()
    return sum(x.double().mean().item() for x in right) / len(right)


def pck_reach(alpha: float | int, of: tuple[int, int] | Bool[Tensor, "h w"]) -> float:
    """The threshold of ``PCK@alpha`` in pixels: ``alpha`` of the longer side of ``of``.

    of: an image's (h, w), or a foreground mask (h, w), whose bounding box is then meant. The two
    are apart: 0.1 of the box asks for more on small animals. Raises ValueError for an empty mask.
    """
    _check_reach("alpha", alpha, "share of a side; 0.1 is usual")
    if not isinstance(of, Tensor):
        return float(alpha * max(of))
    if of.dtype != torch.bool:
        raise ValueError(f"of is {of.dtype}; expected a mask (h, w) of booleans, or (h, w)")
    if not of.any():
        raise ValueError("the mask is empty: there is no box to take a threshold from")
    sides = [places.max() - places.min() + 1 for places in of.nonzero(as_tuple=True)]
    return float(alpha * max(sides).item())


def _of_images(name: str, given: object) -> list[Tensor]:
    """The points of each image, where they are those of one or of several."""
    several = given if isinstance(given, Iterable) and not isinstance(given, Tensor) else [given]
    points = list(several)
    if not all(isinstance(x, Tensor) for x in points):
        raise ValueError(
            f"{name} is a {type(given).__name__}; expected a tensor (n, 2) of pixels (x, y), or a "
            "list of such tensors (torch.as_tensor(x) makes one)"
        )
    return points


def _check_reach(name: str, value: object, what: str) -> None:
    if not is_finite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: expected a number of at least 0, {what}")


def end_point_error(found: Float[Tensor, "n 2"], truth: Float[Tensor, "n 2"]) -> float:
    """Mean distance in pixels between found points and the truth."""
    return _distances(found, truth).mean().item()


def _distances(found: Tensor, truth: Tensor) -> Float[Tensor, " n"]:
    if found.shape != truth.shape or found.ndim != 2 or not len(found):
        raise ValueError(
            f"found is {tuple(found.shape)}, truth {tuple(truth.shape)}; expected both (n, 2)"
        )
    return (found.double() - truth.to(found.device).double()).norm(dim=1)


def iou(found: Int[Tensor, "*n"], truth: Int[Tensor, "*n"]) -> dict[int, float]:
    """Intersection over union of every label that occurs in the truth, over all frames together."""
    if found.shape != truth.shape:
        raise ValueError(
            f"found is {tuple(found.shape)}, truth {tuple(truth.shape)}; expected one shape"
        )
    truth = truth.to(found.device)
    pairs = ((name, found == name, truth == name) for name in truth.unique().tolist())
    return {name: ((a & b).sum() / (a | b).sum()).item() for name, a, b in pairs}


def _sample(image: Tensor, flow: Tensor) -> tuple[Float[Tensor, "c h w"], Bool[Tensor, "h w"]]:
    """The image (c, h, w) at x + flow(x), in float64, and which points are inside the picture."""
    flow, (h, w) = flow.to(image.device), image.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device), torch.arange(w, device=flow.device), indexing="ij"
    )
    at_x, at_y = flow[0].double() + x, flow[1].double() + y
    inside = (at_x >= 0) & (at_x <= w - 1) & (at_y >= 0) & (at_y <= h - 1)
    # grid_sample counts from -1, the first pixel's centre, to 1, the last one's
    grid = torch.stack([2 * at_x / max(w - 1, 1) - 1, 2 * at_y / max(h - 1, 1) - 1], dim=-1)
    image = image.double()[None]
    found = F.grid_sample(image, grid[None], padding_mode="border", align_corners=True)
    return found[0], inside


def _check_flow(frames: Tensor, flow: object) -> None:
    f, _, h, w = frames.shape
    if not isinstance(flow, Tensor) or tuple(flow.shape) != (f - 1, 2, h, w) or f < 2:
        got = tuple(flow.shape) if isinstance(flow, Tensor) else type(flow).__name__
        raise ValueError(
            f"flow is {got}; frames {tuple(frames.shape)} need {(f - 1, 2, h, w)}, at least one"
            " pair (for another height and width: resize_flow)"
        )
