"""Clips: holding, resizing and showing video, as frames (f, 3, h, w) in [0, 1].

Everything is float32 in memory: 512 x 512 costs 3 MB a frame; showing converts one at a time.
How clips come from disk is in video_file.py, how they get there in writing.py.
"""

import base64
import html
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tfkit import codec
from tfkit.codec import DEFAULT_FPS
from tfkit.settings import is_whole

if TYPE_CHECKING:
    import IPython.display

TRUTH = ("flow", "visible", "parts", "mask", "depth")


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """A video with what is known of it; the ground truth is None where there is none.

    frames (f, 3, h, w) in [0, 1]; fps in frames a second; flow (f-1, 2, h, w) in pixels (x, y)
    from frame i to i+1; visible (f-1, h, w): neither occluded nor leaving on that way; parts
    (f, h, w) labels; mask (f, h, w) foreground; depth (f, h, w): which animal, 0 for the ground,
    larger is nearer.

    `len(clip)` counts frames, `clip[i]` is one frame (3, h, w), `clip[a:b]` a clip whose truth is
    sliced along. With a step (`clip[::2]`) flow and visible are dropped, for they hold between
    neighbours only, and fps is divided by the step. Raises ValueError for shapes that do not fit.
    """

    frames: Float[Tensor, "f 3 h w"]
    fps: float | int = DEFAULT_FPS
    caption: str = ""
    flow: Float[Tensor, "f-1 2 h w"] | None = None
    visible: Bool[Tensor, "f-1 h w"] | None = None
    parts: Int[Tensor, "f h w"] | None = None
    mask: Bool[Tensor, "f h w"] | None = None
    depth: Int[Tensor, "f h w"] | None = None

    def __post_init__(self) -> None:
        f, _, h, w = as_frames(self.frames).shape
        _check_fps(self.fps)
        for name in TRUTH:
            value = getattr(self, name)
            between = name in ("flow", "visible")
            expected = (f - between, *((2,) if name == "flow" else ()), h, w)
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}; {f} frames of {h}x{w} need {expected}"
                )

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Float[Tensor, "3 h w"]: ...

    @overload
    def __getitem__(self, index: slice) -> "Clip": ...

    def __getitem__(self, index: int | slice) -> "Tensor | Clip":
        if not isinstance(index, slice):
            return self.frames[index]
        start, stop, step = index.indices(len(self))
        if step < 1 or stop <= start:
            raise ValueError(
                f"clip[{start}:{stop}:{step}] of {len(self)} frames: expected at least one frame "
                "and a step of 1 or more"
            )
        known = {name: getattr(self, name) for name in TRUTH}
        known = {name: value for name, value in known.items() if value is not None}
        for name in known.keys() & {"flow", "visible"}:
            known[name] = known[name][start : stop - 1] if step == 1 else None
        for name in known.keys() - {"flow", "visible"}:
            known[name] = known[name][index]
        return Clip(self.frames[index], self.fps / step, self.caption, **known)

    def truth(self, name: str) -> Tensor:
        """What is known under a name of TRUTH; ValueError where this clip does not know it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this clip knows no {name}; those of tfkit.menagerie.film do")
        return value

    def __repr__(self) -> str:
        f, _, h, w = self.frames.shape
        known = ", ".join(name for name in TRUTH if getattr(self, name) is not None)
        caption = f", {self.caption!r}" if self.caption else ""
        truth = f", knows {known}" if known else ""
        return f"Clip({f} frames of {h}x{w} at {self.fps:g} fps{caption}{truth})"

    def _repr_html_(self) -> str:
        return _player(self, caption=self.caption)


def as_frames(frames: object, name: str = "frames") -> Float[Tensor, "f 3 h w"]:
    """Frames of a clip or the tensor itself, (f, 3, h, w), f >= 1; ValueError for anything else."""
    frames = frames.frames if isinstance(frames, Clip) else frames
    if not isinstance(frames, Tensor):
        raise ValueError(
            f"{name} is of type {type(frames).__name__}; expected a Clip or a torch tensor "
            f"(f, 3, h, w){way_to_frames(frames)}"
        )
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"{name} has shape {tuple(frames.shape)}; expected (f, 3, h, w) with at least one frame"
            f"{way_to_frames(frames)}"
        )
    if not frames.is_floating_point():
        raise ValueError(f"{name} is {frames.dtype}; expected floats in [0, 1] (uint8: x / 255)")
    check_dense(frames, name)
    return frames


def way_to_frames(given: object) -> str:
    """How what was given becomes frames (f, 3, h, w), for the end of a message; "" if unknown."""
    if isinstance(given, str | os.PathLike):
        return f": tfkit.read_video({str(given)!r}) reads one"
    if hasattr(given, "frames"):
        return ", as its .frames are"
    if isinstance(given, list | tuple):
        return " (frames in a list: torch.stack(x))"
    if isinstance(given, np.ndarray) and given.shape[-1:] == (3,):
        return " (channels last: torch.from_numpy(x).permute(0, 3, 1, 2), of bytes / 255)"
    if isinstance(given, np.ndarray):
        return " (torch.from_numpy(x), of bytes / 255)"
    if isinstance(given, Tensor) and given.ndim == 3:
        return " (one frame: x[None])"
    if isinstance(given, Tensor) and given.ndim == 4:
        ways = {3: "permute(0, 3, 1, 2)", 4: "permute(0, 3, 1, 2)[:, :3]"}
        if given.shape[-1] in ways:
            return f" (channels last: x.{ways[given.shape[-1]]})"
        if given.shape[1] == 4:
            return " (with alpha: x[:, :3])"
        if given.shape[0] == 3:
            return " (channels first: x.transpose(0, 1))"
    return ""


def check_dense(tensor: Tensor, name: str) -> None:
    """Raises ValueError for a tensor that is sparse, or "meta" and so without values."""
    if tensor.is_meta or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is {tensor.layout} on {str(tensor.device)!r}; expected a dense tensor "
            "(sparse: x.to_dense()) that holds values"
        )


def size_of(pictures: Tensor) -> tuple[int, int]:
    """Height and width of pictures or latents (..., h, w)."""
    h, w = pictures.shape[-2:]
    return h, w


WAYS_TO_RANGE = "(from [-1, 1]: x / 2 + 0.5; from [0, 255]: x / 255; or clamp them)"


def to_uint8(frames: object, name: str = "frames") -> Iterator[np.ndarray]:
    """Frames in [0, 1] as (h, w, 3) bytes, one at a time; up to 1e-3 outside [0, 1] is rounding.

    NaN, infinity and values further out raise ValueError here, before the first frame is taken.
    """
    frames = as_frames(frames, name).detach()
    low, high = (x.item() for x in torch.aminmax(frames))
    if not math.isfinite(low + high):
        bad = [i for i, frame in enumerate(frames) if not frame.isfinite().all()]
        raise ValueError(f"{name} hold NaN or infinity, first in frame {bad[0]}; expected [0, 1]")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"{name} range from {low:.4g} to {high:.4g}; expected [0, 1] {WAYS_TO_RANGE}"
        )

    def convert(frame: Tensor) -> np.ndarray:
        return (frame.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()

    return map(convert, frames)


def resize(frames: Clip | Tensor, size: int | tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
    """Resize frames to `size`, bicubic and antialiased, clamped to [0, 1].

    size: (h, w) exactly, or an int for the shorter side, keeping the aspect. Any float dtype.
    """
    frames = as_frames(frames)
    size = target_size(size, *frames.shape[-2:])
    if size == tuple(frames.shape[-2:]):
        return frames
    # half precision has no antialiased kernel on every device
    wide = frames if frames.dtype == torch.float64 else frames.float()
    wide = F.interpolate(wide, size, mode="bicubic", antialias=True, align_corners=False)
    return wide.clamp(0, 1).to(frames.dtype)


LARGEST = 2**14  # pixels of a side


def target_size(size: int | tuple[int, int], h: int, w: int) -> tuple[int, int]:
    """The (h, w) that `size` asks of frames of h x w."""
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if len(sides) > 2 or any(not is_whole(n) or n < 1 for n in sides) or not sides:
        raise ValueError(f"size={size!r}; expected a positive integer (the shorter side) or (h, w)")
    if max(sides) > LARGEST:
        raise ValueError(f"size={size!r}; expected at most {LARGEST} pixels")
    if len(sides) == 2:
        return sides[0], sides[1]
    height, width = (max(1, round(side * sides[0] / min(h, w))) for side in (h, w))
    return height, width


def rate_of(frames: object, fps: float | int | None = None) -> float:
    """Frames a second: those asked for, else a clip's own, else 8; ValueError for others."""
    if fps is None:
        fps = frames.fps if isinstance(frames, Clip) else DEFAULT_FPS
    _check_fps(fps)
    return float(fps)


def _check_fps(fps: float | int) -> None:
    if not isinstance(fps, Real) or isinstance(fps, bool) or not 0.001 <= fps <= 1000:
        raise ValueError(f"fps={fps!r}; expected frames a second, from 0.001 to 1000")


def video_bytes(frames: Clip | Tensor, fps: float | int | None = None, *, crf: int = 26) -> bytes:
    """The mp4 of `write_video`, in memory, for a page to embed; equal frames give equal bytes."""
    codec.check_crf(crf)
    fps, pixels, memory = rate_of(frames, fps), to_uint8(frames), io.BytesIO()
    codec.write_movie(memory, pixels, fps, crf)
    return memory.getvalue()


def show(
    frames: Clip | Tensor, fps: float | int | None = None, *, caption: str | None = None
) -> "IPython.display.HTML":
    """Play frames in a notebook: an IPython HTML object, waiting for the reader to press play.

    Embedded with at most 384 pixels on the shorter side; small clips are shown enlarged.
    """
    from IPython.display import HTML  # only where there is a notebook

    return HTML(_player(frames, fps, caption))


def _player(
    frames: Clip | Tensor, fps: float | int | None = None, caption: str | None = None
) -> str:
    if isinstance(frames, Clip):
        fps, caption = fps or frames.fps, frames.caption if caption is None else caption
    pixels = as_frames(frames)
    if min(pixels.shape[-2:]) > 384:
        pixels = resize(pixels, 384)
    f, _, h, w = pixels.shape
    zoom = max(1, round(256 / min(h, w)))
    words = html.escape(caption or "")
    label = html.escape(f"Video of {f} frames" + (f": {caption}" if caption else ""))
    data = base64.b64encode(video_bytes(pixels, fps)).decode()
    return (
        f'<figure style="margin:0"><video controls loop muted playsinline aria-label="{label}"'
        f' width="{w * zoom}" height="{h * zoom}" style="max-width:100%;height:auto">'
        f'<source src="data:video/mp4;base64,{data}" type="video/mp4"></video>'
        f"<figcaption>{words}</figcaption></figure>"
    )
