"""What an edit can be held to besides latents: edges and depth, of frames and for a model."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tfkit.checks import check_frames
from tfkit.diffusion import LatentDiffusion, check_depth
from tfkit.settings import check_whole
from tfkit.video import Clip


def canny(frames: Tensor | Clip, *, low: int = 100, high: int = 200) -> Float[Tensor, "f 3 h w"]:
    """Canny edges of frames (f, 3, h, w) in [0, 1]: white on black, the same in three channels.

    low, high: OpenCV's hysteresis thresholds on the gradient of 8-bit RGB; those of the authors'
    code and of the ControlNets trained on edges. Raises ValueError for bad frames and for
    thresholds that are no whole numbers with low at most high.
    """
    frames = check_frames(frames)
    check_whole("low", low, least=0)
    check_whole("high", high, least=0)
    if low > high:
        raise ValueError(f"low={low}, high={high}: expected low to be at most high")
    images = (frames.detach().cpu().float() * 255).round().clamp(0, 255).byte()
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    edges = np.stack([cv2.Canny(image, low, high) for image in pixels])
    return torch.from_numpy(edges)[:, None].expand(-1, 3, -1, -1).to(frames) / 255


def latent_depth(
    model: LatentDiffusion, depth: Tensor | None, count: int, size: tuple[int, int]
) -> Float[Tensor, "f 1 h w"] | None:
    """Depth as a depth model reads it: at the latents' ``size`` (h, w), each frame in [-1, 1].

    depth: (f, h, w) or (f, 1, h, w) in any unit, larger is nearer, as MiDaS has it. Resized
    (bicubic) and spread over [-1, 1] frame by frame as diffusers' StableDiffusionDepth2ImgPipeline
    does; a flat frame, where that divides by zero, is 0. None for a model that reads none.
    Raises ValueError for another shape or count, for NaN, and where a model does not match.
    """
    check_depth(model, depth)
    if depth is None:
        return None
    if not isinstance(depth, Tensor):
        raise ValueError(f"depth: a {type(depth).__name__}; expected a tensor (f, h, w)")
    shape = tuple(depth.shape)
    depth = depth[:, None] if depth.ndim == 3 else depth
    if depth.ndim != 4 or depth.shape[1] != 1 or len(depth) != count or 0 in shape:
        raise ValueError(
            f"depth {shape}: expected (f, h, w) or (f, 1, h, w), one for each of {count} frames"
        )
    if not torch.isfinite(depth).all():
        raise ValueError("depth holds NaN or infinity; expected finite values, larger is nearer")
    depth = depth.to(model.device, model.precision)
    depth = F.interpolate(depth, size=size, mode="bicubic", align_corners=False)
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    spread = torch.where(high > low, high - low, 1)
    return torch.where(high > low, 2 * (depth - low) / spread - 1, 0)
