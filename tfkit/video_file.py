"""Reading video: files and folders of images as clips.

Frames are resized one by one, so a long or large video costs what is kept of it; a video that is
opened instead of read costs one chunk.
"""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tfkit import codec
from tfkit.codec import DEFAULT_FPS
from tfkit.memory import OutOfMemory, available_memory
from tfkit.settings import check_path, check_whole
from tfkit.video import Clip, rate_of, resize, size_of, target_size

LOOK = 2**26  # bytes of frames between two looks at how much memory is left


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
    FileNotFoundError for a missing path, ValueError for whatever cannot be read as asked,
    MemoryError before the frames fill what memory is free.
    """
    return _read(_checked(path, frames, size, start), frames, size, start)


@dataclass(frozen=True)
class VideoFile:
    """A video that stays in its file: frames are read as they are needed, in chunks.

    shape: (f, 3, h, w), of float32 in [0, 1]. fps: frames a second. `len(video)` counts frames.
    """

    path: Path
    shape: tuple[int, int, int, int]
    fps: float
    start: int = 0
    _stamp: tuple[object, ...] = field(default=(), repr=False, compare=False)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its frames."""
        return self.shape[2], self.shape[3]

    def chunks(self, batch: int = 16) -> Iterator[Float[Tensor, "n 3 h w"]]:
        """All frames in order, ``batch`` at a time. ValueError where the file has changed."""
        check_whole("batch", batch)
        self._check_stamp()
        kept, seen = [], 0
        for frame, _ in _frames(self.path, len(self), self.size, self.start):
            kept.append(frame)
            seen += 1
            if len(kept) == batch or seen == len(self):
                yield torch.stack(kept)
                kept = []
        self._check_count(seen)

    def read(self) -> Clip:
        """The same in memory; errors are those of :func:`read_video`, and of a changed file."""
        self._check_stamp()
        clip = _read(self.path, len(self), self.size, self.start)
        self._check_count(len(clip))
        return clip

    def _check_stamp(self) -> None:
        if self._stamp and self._stamp != _stamp(self.path):
            raise ValueError(f"{str(self.path)!r} has changed since it was opened; open it again")

    def _check_count(self, found: int) -> None:
        if found != len(self):
            raise ValueError(
                f"{str(self.path)!r} has {found} frames from frame {self.start} on, and had "
                f"{len(self)} when it was opened; open it again"
            )


def open_video(
    path: str | os.PathLike,
    *,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    start: int = 0,
) -> VideoFile:
    """The same video without reading it into memory: for :func:`tfkit.invert`, however long it is.

    Settings and errors are those of :func:`read_video`. The file is decoded once to be counted.
    """
    path = _checked(path, frames, size, start)
    stamp = _stamp(path)
    count, fps, sides = 0, DEFAULT_FPS, (0, 0)
    for lazy, rate in _wanted(path, frames, start):
        if not count:
            sides = lazy().shape[:2]
        count, fps = count + 1, rate
    sides = sides if size is None else target_size(size, *sides)
    return VideoFile(path.absolute(), (count, 3, *sides), rate_of((), fps), start, stamp)


def _stamp(path: Path) -> tuple[object, ...]:
    """Of a file, or of each image in a folder: name, bytes, and when it was written."""
    files = codec.images_of(path) if path.is_dir() else [path]
    stats = ((file.name, file.stat()) for file in files if file.exists())
    return tuple((name, of.st_size, of.st_mtime_ns) for name, of in stats)


def _checked(
    path: str | os.PathLike, frames: int | None, size: int | tuple[int, int] | None, start: int
) -> Path:
    """The path, where it and the settings can be meant."""
    path = check_path("path", path)
    if frames is not None:
        check_whole("frames", frames)
    check_whole("start", start, least=0)
    if size is not None:
        target_size(size, 1, 1)
    if not path.exists():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist (looked from {os.getcwd()!r}); "
            "expected a video, a GIF or a folder of images"
        )
    if not path.is_file() and not path.is_dir():  # a pipe is waited for, and read but once
        raise ValueError(
            f"{str(path)!r} is neither a file nor a folder; expected a video, a GIF or a folder of "
            "images: write what comes through a pipe to a file first"
        )
    return path


def _read(path: Path, frames: int | None, size: int | tuple[int, int] | None, start: int) -> Clip:
    """The frames wanted, each moved into the clip: it is never in memory twice."""
    kept: deque[Tensor] = deque()
    fps = DEFAULT_FPS
    for frame, rate in _frames(path, frames, size, start):
        fps = rate
        kept.append(frame)
        if len(kept) % max(1, LOOK // frame.nbytes) == 0:
            _check_room(path, frame, len(kept))
    out = torch.empty(len(kept), *kept[0].shape)
    for i in range(len(kept)):
        out[i] = kept.popleft()
    return Clip(out, fps)


def _check_room(path: Path, frame: Tensor, count: int) -> None:
    """Raises OutOfMemory where ``count`` such frames leave no room for as many as come unseen.

    A sixteenth of what they take is left to others: a system without memory kills without a word.
    """
    held, free = count * frame.nbytes, available_memory(frame.device)
    if free < held / 16 + max(LOOK, frame.nbytes):
        h, w = frame.shape[1:]
        raise OutOfMemory(
            f"{count} frames of {w} x {h} of {str(path)!r} take {held / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} are left for more: expected fewer (frames=...), smaller ones "
            "(size=...), or tfkit.open_video, which leaves them in their file"
        )


def _frames(
    path: Path, frames: int | None, size: int | tuple[int, int] | None, start: int
) -> Iterator[tuple[Float[Tensor, "3 h w"], float]]:
    """The frames wanted, resized, and the rate. ValueError where the file's own size changes."""
    first = None
    for pixels, rate in _wanted(path, frames, start):
        frame = _unit(pixels())[None]
        first = first or size_of(frame)
        if size_of(frame) != first:
            (h, w), (now, wide) = first, size_of(frame)
            raise ValueError(
                f"the frames of {str(path)!r} change from {w} x {h} to {wide} x {now} pixels; "
                f"expected one size, as ffmpeg -i in.mp4 -vf scale={w}:{h} out.mp4 gives"
            )
        yield (frame if size is None else resize(frame, size))[0], rate


def _wanted(path: Path, frames: int | None, start: int) -> Iterator[codec.Lazy]:
    """The frames wanted, not yet converted. ValueError where there are none."""
    seen = 0
    with closing(codec.read(path)) as source:
        for lazy in source:
            seen += 1
            if seen > start:
                yield lazy
            if frames is not None and seen == start + frames:
                break
    if not seen:
        raise ValueError(f"{str(path)!r} holds no frames; is the file complete?")
    if seen <= start:
        raise ValueError(f"start={start} lies beyond the end: {str(path)!r} has {seen} frames")


def _unit(pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
    """Integers as float32 in [0, 1], an alpha channel laid on white."""
    values = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    unit = torch.from_numpy(values).permute(2, 0, 1)
    return unit if len(unit) == 3 else unit[:3] * unit[3:] + (1 - unit[3:])
