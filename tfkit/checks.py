"""What is asked of frames and latents before anything is computed with them."""

import torch
from jaxtyping import Float
from torch import Tensor

from tfkit.video import WAYS_TO_RANGE, Clip, as_frames, check_dense


def check_frames(frames: Tensor | Clip) -> Float[Tensor, "f 3 h w"]:
    """The frames of a clip or tensor; ValueError unless (f, 3, h, w), finite and in [0, 1]."""
    frames = as_frames(frames)
    if not torch.isfinite(frames).all():
        raise ValueError("frames hold NaN or infinity; expected finite values in [0, 1]")
    low, high = (x.item() for x in frames.aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"frames span {low:.3g} to {high:.3g}; expected [0, 1] {WAYS_TO_RANGE}")
    return frames


def check_pair(
    one: str, a: Tensor | Clip, other: str, b: Tensor | Clip
) -> tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 3 h w"]]:
    """The frames of both, on one device; ValueError, by their names, unless they are of one shape.

    Values outside [0, 1] are let through, for a metric may be asked about them; NaN is not.
    """
    a, b = as_frames(a, one), as_frames(b, other)
    for name, frames in ((one, a), (other, b)):
        if not torch.isfinite(frames).all():
            raise ValueError(f"{name} hold NaN or infinity; expected finite values")
    if a.shape != b.shape:
        raise ValueError(
            f"{one} is {tuple(a.shape)} but {other} is {tuple(b.shape)}; expected one shape"
        )
    return a, b.to(a.device)


def check_mask(frames: Tensor, mask: object) -> None:
    """Raises ValueError unless ``mask`` is bool and (f, h, w), as the frames (f, 3, h, w) are."""
    wanted = tuple(frames[:, 0].shape)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != wanted or mask.dtype != torch.bool:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(f"mask is {got}; frames of {tuple(frames.shape)} need torch.bool {wanted}")


def check_flow(flow: Tensor, visible: Tensor) -> None:
    """Raises ValueError unless flow is (s, 2, h, w) and its visibility (s, h, w)."""
    if flow.ndim != 4 or flow.shape[1] != 2 or visible.shape != flow[:, 0].shape:
        raise ValueError(
            f"flow is {tuple(flow.shape)}, visible {tuple(visible.shape)}; "
            "expected (s, 2, h, w) and (s, h, w)"
        )


def check_latents(latents: Tensor) -> None:
    """Raises ValueError unless ``latents`` are floats (f, 4, h, w), finite, one frame or more."""
    if not isinstance(latents, Tensor):
        raise ValueError(f"latents: a {type(latents).__name__}; expected a tensor (f, 4, h, w)")
    if latents.ndim != 4 or latents.shape[1] != 4 or 0 in latents.shape:
        raise ValueError(f"latents of shape {tuple(latents.shape)}; expected (f, 4, h, w)")
    if not latents.is_floating_point():
        raise ValueError(f"latents of {latents.dtype}; expected floats")
    check_dense(latents, "latents")
    if not torch.isfinite(latents).all():
        raise ValueError("latents hold NaN or infinity; expected finite values")
