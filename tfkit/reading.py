"""Reading video: files and folders of images as clips.

Frames are resized one by one, so a long or large video costs what is kept of it.
"""

import os
from contextlib import closing
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tfkit import codec
from tfkit.codec import DEFAULT_FPS
from tfkit.video import Clip, resize, target_size


def read_video(
    path: str | os.PathLike,
    *,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    start: int = 0,
) -> Clip:
    """Read an mp4 (mov, webm, ...), a GIF, or a folder of images in natural order.

    frames: how many at most, from frame `start` on (None: all). size: (h, w) exactly, or an int for
    the shorter side; None keeps the pixels. Rotation marks are honoured, pixels made square, alpha
    is laid on white. Images carry no rate and get 8 fps. Decoding ends with the last frame wanted.
    FileNotFoundError for a missing path, ValueError for whatever cannot be read as asked.
    """
    path = Path(path).expanduser()
    if frames is not None and (not isinstance(frames, Integral) or frames < 1):
        raise ValueError(f"frames={frames!r}; expected an integer of at least 1, or None for all")
    if not isinstance(start, Integral) or start < 0:
        raise ValueError(f"start={start!r}; expected the first frame's number, 0 or more")
    if size is not None:
        target_size(size, 1, 1)
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist (looked from {os.getcwd()!r}); "
            "expected a video, a GIF or a folder of images"
        )
    kept, seen, fps = [], 0, DEFAULT_FPS
    with closing(codec.read(path)) as source:
        for pixels, rate in source:
            fps, seen = rate, seen + 1
            if seen <= start:
                continue
            frame = _unit(pixels())[None]
            kept.append(frame if size is None else resize(frame, size))
            if len(kept) == frames:
                break
    if not seen:
        raise ValueError(f"{str(path)!r} holds no frames; is the file complete?")
    if not kept:
        raise ValueError(f"start={start} lies beyond the end: {str(path)!r} has {seen} frames")
    out = torch.empty(len(kept), *kept[0].shape[1:])
    for i in range(len(kept)):  # one by one, so that the clip is never in memory twice
        out[i], kept[i] = kept[i][0], None
    return Clip(out, fps)


def _unit(pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
    """Integers as float32 in [0, 1], an alpha channel laid on white."""
    unit = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    unit = torch.from_numpy(unit).permute(2, 0, 1)
    return unit if len(unit) == 3 else unit[:3] * unit[3:] + (1 - unit[3:])
