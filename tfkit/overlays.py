"""Values as pictures of the clip's own size: flow, labels, similarity, differences, tracks, tokens.

All return frames (f, 3, h, w) in [0, 1], for `plots` and `video.show`. Similarity has a perceptual
map (viridis), differences a diverging one (white where equal); labels differ in lightness as well
as in hue, and have outlines, so that a colour-blind reader can tell them apart.
"""

import cv2
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from matplotlib.colors import hsv_to_rgb, to_rgb
from torch import Tensor

from tfkit.checks import check_pair
from tfkit.metrics import warp
from tfkit.tracks import grid_of
from tfkit.video import Clip, as_frames, resize, to_uint8

MARK = "#D55E00"  # vermilion: safe for the colour-blind
LABELS = (  # grey, then Tol's "muted" and "light" schemes, dark and light by turns
    "#DBDBDB", "#117733", "#EE8866", "#332288", "#77AADD", "#882255", "#DDCC77", "#999933",
    "#88CCEE", "#AA4499", "#EEDD88", "#44AA99", "#FFAABB", "#CC6677", "#99DDFF", "#BBCC33",
)  # fmt: skip


def token_images(colors: Float[Tensor, "f n 3"], size: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
    """Colours of tokens, as TokenPCA.to_rgb gives them, as frames of ``size`` (h, w)."""
    rows, columns = grid_of(colors, size)
    image = rearrange(colors, "f (h w) c -> f c h w", h=rows, w=columns)
    return F.interpolate(image, size, mode="nearest-exact")


def flow_colors(flow: Float[Tensor, "s 2 h w"], reach: float | None = None) -> Tensor:
    """Motion as colour (s, 3, h, w): hue the direction, saturation the length, white no motion.

    reach: length in pixels of full saturation; None: the longest in the flow.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow is {tuple(flow.shape)}; expected (s, 2, h, w) in pixels (x, y)")
    flow = flow.detach().float().cpu()
    length = flow.norm(dim=1)
    reach = float(length.max().clamp(min=1e-6)) if reach is None else reach
    hue = torch.atan2(flow[:, 1], flow[:, 0]) / (2 * torch.pi) % 1
    hsv = torch.stack([hue, (length / reach).clamp(0, 1), torch.ones_like(hue)], -1)
    return torch.from_numpy(hsv_to_rgb(hsv.numpy())).permute(0, 3, 1, 2).float()


def label_colors(labels: Int[Tensor, "f h w"], under: Tensor | None = None) -> Tensor:
    """Labels as colours (f, 3, h, w): 0 is grey, the others have a colour each, with outlines.

    under: frames (f, 3, h, w) that shine through.
    """
    palette = torch.tensor([to_rgb(color) for color in LABELS], device=labels.device)
    colors = palette[torch.where(labels > 0, (labels - 1) % (len(LABELS) - 1) + 1, 0)]
    colors = colors.permute(0, 3, 1, 2).contiguous()
    if under is not None:
        colors = 0.65 * colors + 0.35 * as_frames(under).to(labels.device)
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[:, 1:] |= labels.diff(dim=1) != 0
    edge[:, :, 1:] |= labels.diff(dim=2) != 0
    return torch.where(edge[:, None], 0.25 * colors, colors)


def map_colors(
    values: Float[Tensor, "f h w"], low: float, high: float, name: str = "viridis"
) -> Float[Tensor, "f 3 h w"]:
    """Values in one of matplotlib's colour maps, from ``low`` to ``high``."""
    if not high > low:
        raise ValueError(f"low={low!r}, high={high!r}: expected low below high")
    share = ((values.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    colors = matplotlib.colormaps[name](share.numpy())[..., :3]
    return torch.from_numpy(colors).float().permute(0, 3, 1, 2)


def similarity_colors(
    scores: Float[Tensor, "f n"], size: tuple[int, int], low: float | int | None = None
) -> Float[Tensor, "f 3 h w"]:
    """Cosine similarities of each frame's tokens as heat maps: dark is unlike, yellow is like.

    low: what is darkest (None: the 2nd percentile of all); 1 is brightest.
    """
    low = scores.float().quantile(0.02).item() if low is None else float(low)
    rows, columns = grid_of(scores[..., None], size)
    grid = scores.reshape(-1, rows, columns).float()
    grid = F.interpolate(grid[:, None], size, mode="nearest-exact")[:, 0]
    return map_colors(grid, low, 1.0)


def difference_colors(
    a: Clip | Tensor, b: Clip | Tensor, reach: float = 0.5
) -> Float[Tensor, "f 3 h w"]:
    """How much lighter (red) or darker (blue) ``a`` is than ``b``; white where they are equal.

    reach: the difference of lightness, in units of [0, 1], that has the full colour.
    """
    a, b = check_pair("a", a, "b", b)
    difference = a - b
    weights = torch.tensor([0.2126, 0.7152, 0.0722]).to(difference)
    difference = torch.einsum("fchw,c->fhw", difference, weights)
    return map_colors(difference, -reach, reach, "RdBu_r")


def change_colors(
    frames: Clip | Tensor, flow: Tensor, visible: Tensor, reach: float = 0.25
) -> Float[Tensor, "s 3 h w"]:
    """How much each place changes its colour on its way to the next frame: black is not at all.

    What moved is in its place there, so what is left is flicker. Places that the next frame does
    not show are black too. reach: the mean difference of the channels that is brightest, in [0, 1].
    """
    frames = as_frames(frames)
    back, inside = warp(frames, flow)
    change = (back - frames[:-1]).abs().mean(1)
    return map_colors(change.where(inside & visible.to(inside.device), 0), 0.0, reach, "magma")


def crop_around(
    frames: Clip | Tensor, mask: Bool[Tensor, "f h w"], margin: int = 4
) -> Float[Tensor, "s 3 H W"]:
    """The part of the frames, the same of all, that holds a mask and ``margin`` pixels around it.

    The pixels are the mask's; frames may be enlarged by a whole number.
    """
    frames = as_frames(frames)
    zoom, sides = frames.shape[2] // mask.shape[1], []
    for other, side in ((2, mask.shape[1]), (1, mask.shape[2])):
        where = mask.any(0).any(other - 1).nonzero().flatten().tolist()
        if not where:
            raise ValueError("the mask is empty; expected something to crop around")
        sides += [max(0, where[0] - margin) * zoom, min(side, where[-1] + 1 + margin) * zoom]
    top, bottom, left, right = sides
    return frames[:, :, top:bottom, left:right]


def mark_points(
    frames: Clip | Tensor,
    places: Float[Tensor, "f m 2"],
    seen: Bool[Tensor, "f m"] | None = None,
    *,
    zoom: int = 3,
    trail: int = 0,
) -> Float[Tensor, "f 3 H W"]:
    """Frames enlarged ``zoom`` times with points (x, y) on them, each in its own colour.

    Colours go by the points' order. seen: points that are not are left out. trail: how many frames
    back a line shows where a point came from.
    """
    frames = as_frames(frames)
    if len(places) != len(frames):
        raise ValueError(f"places are of {len(places)} frames, the frames are {len(frames)}")
    seen = torch.ones(places.shape[:2], dtype=torch.bool) if seen is None else seen
    h, w = frames.shape[-2:]
    wheel = np.linspace(0.05, 0.95, places.shape[1])
    colors = (matplotlib.colormaps["turbo"](wheel)[:, :3] * 255).tolist()
    # cv2 draws at subpixels given in sixteenths; a pixel's centre moves when it is enlarged
    at = ((places.float() + 0.5) * zoom - 0.5).mul(16).round().int().tolist()
    out = []
    for i, image in enumerate(to_uint8(resize(frames.float(), (h * zoom, w * zoom)))):
        image = np.ascontiguousarray(image)
        for j in seen[i].nonzero().flatten().tolist():
            path = [at[k][j] for k in range(max(0, i - trail), i + 1) if seen[k, j]]
            line = np.array(path, np.int32)
            cv2.polylines(image, [line], False, colors[j], zoom, cv2.LINE_AA, 4)
            for radius, color in ((2.6, (255, 255, 255)), (1.8, colors[j])):
                cv2.circle(image, at[i][j], round(radius * zoom * 16), color, -1, cv2.LINE_AA, 4)
        out.append(torch.from_numpy(image).permute(2, 0, 1))
    return torch.stack(out).float() / 255


def hide(frames: Clip | Tensor, visible: Bool[Tensor, "s h w"]) -> Tensor:
    """Frames (s, 3, h, w) in which what the next frame does not show is vermilion."""
    frames = as_frames(frames)[: len(visible)]
    mark = frames.new_tensor(to_rgb(MARK)).view(3, 1, 1)
    visible = visible.to(frames.device)
    return torch.where(visible[:, None], 0.35 * frames + 0.65, mark)
