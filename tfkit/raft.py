"""RAFT's optical flow, an optional extra: it needs torchvision, which tfkit never installs.

RAFT: Teed and Deng, ECCV 2020, as torchvision has it. Use it where the motion is too large or the
pictures too plain for tfkit.metrics.estimate_flow (DIS). Memory: two frames and RAFT's
correlations, (h w / 64)^2 values.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor

from tfkit.metrics import trusted
from tfkit.video import Clip, as_frames

SIZES = ("large", "small")
_LEAST = 128  # RAFT halves its features, an eighth of the frames, three times more


def load_raft(
    size: Literal["large", "small"] = "large",
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> torch.nn.Module:
    """torchvision's RAFT with its own weights, downloaded, or those of a .safetensors file.

    Raises ImportError, saying what to install, where torchvision is missing or does not fit the
    torch that is there; ValueError for another size, FileNotFoundError for a file that is not.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}; expected 'large' or 'small'")
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"no weights {str(weights)!r}; expected a .safetensors file")
    try:
        from torchvision.models import optical_flow
    except Exception as error:  # a torchvision of another torch raises RuntimeError, for one
        reason = " ".join(str(error).split())
        raise ImportError(
            f"RAFT needs torchvision, which cannot be imported here ({reason}). Install the build "
            f"that belongs to torch {torch.__version__}, from where that torch came (pip install "
            "torchvision), or measure with DIS: tfkit.metrics.estimate_flow"
        ) from error
    model = getattr(optical_flow, f"raft_{size}")(weights=None)
    if weights is None:
        entry = getattr(optical_flow, f"Raft_{size.title()}_Weights").DEFAULT
        # these come pickled: read as nothing but tensors, and only if their hash is right
        state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    else:
        state = load_file(Path(weights))
    model.load_state_dict(state)
    return model.to(device).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def shared_raft(device: torch.device) -> torch.nn.Module:
    """The large one with torchvision's weights, read once in each process."""
    return load_raft(device=device)


@torch.no_grad()
def estimate_flow(
    frames: Clip | Tensor, model: Callable[[Tensor, Tensor], list[Tensor]] | None = None
) -> tuple[Float[Tensor, "n 2 h w"], Bool[Tensor, "n h w"]]:
    """Optical flow from each frame to the next by RAFT, and where it can be trusted.

    As tfkit.metrics.estimate_flow: (flow, visible) in pixels (x, y), seen where forward and
    backward agree. model: from :func:`load_raft`, by default :func:`shared_raft`. Frames are
    repeated at their border to multiples of 8, 128 at least. Raises ValueError for fewer than two
    frames.
    """
    frames = as_frames(frames)
    if len(frames) < 2:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; flow needs two frames at least")
    model = shared_raft(frames.device) if model is None else model
    h, w = frames.shape[-2:]
    right, below = (max(_LEAST, -(-side // 8) * 8) - side for side in (w, h))

    def ready(frame: Tensor) -> Tensor:
        padded = F.pad(frame[None].float(), (0, right, 0, below), mode="replicate")
        return 2 * padded.clamp(0, 1) - 1  # RAFT's range

    def between(a: Tensor, b: Tensor) -> Tensor:
        return model(ready(a), ready(b))[-1][0, :, :h, :w]  # the last of its refinements

    flows, visible = [], []
    for a, b in pairwise(frames):
        forward = between(a, b)
        flows.append(forward)
        visible.append(trusted(forward, between(b, a)))
    return torch.stack(flows), torch.stack(visible)
