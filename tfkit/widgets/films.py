"""Clips side by side for a page: checked to fit, and packed as WebP pictures, frame by frame.

A page can then step through them exactly and in sync, which its video player cannot. Memory: the
files, and one clip resized at a time.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from tfkit.codec import encoded
from tfkit.tracks import Size
from tfkit.video import as_frames, resize, to_uint8

QUALITIES = (  # the first that fits is taken; each about half of the one before, in bytes
    {"lossless": True, "quality": 50, "method": 2},
    {"quality": 95, "method": 2},
    {"quality": 85, "method": 2},
    {"quality": 65, "method": 2},
)
SHRINK = (1, 0.75, 0.5, 0.375, 0.25)  # where even the last quality does not fit
LEAST = 32  # pixels of the shorter side; smaller is no use to anyone
TRIED = 3  # frames of each clip that tell how large all of them will be


@dataclass(frozen=True)
class Films:
    """WebP files [clip][frame] of one size (h, w); error: RMS of the levels 0 to 255."""

    files: list[list[bytes]]
    size: Size
    error: float

    @property
    def nbytes(self) -> int:
        """What all the files take."""
        return sum(len(file) for film in self.files for file in film)


def alike(clips: Mapping[str, object]) -> dict[str, Tensor]:
    """The frames of clips, edits or tensors by name; ValueError where they differ in shape."""
    frames = {}
    for name, clip in clips.items():
        given = as_frames(getattr(clip, "frames", clip), f"{name!r}")
        frames[name] = given.detach().float().cpu()
        first, one = next(iter(frames.items()))
        if frames[name].shape != one.shape:
            shown, wanted = (
                f"{len(x)} frames of {x.shape[2]}x{x.shape[3]}" for x in (frames[name], one)
            )
            raise ValueError(
                f"{name!r} has {shown}, {first!r} {wanted}; expected equal length and size "
                "(take clip[:f], or tfkit.video.resize)"
            )
    return frames


def pack(clips: Sequence[Tensor], budget: float | int, *, longest: int = 768) -> Films:
    """Clips (f, 3, h, w) as WebP in at most ``budget`` bytes: lossless if that fits.

    Else the best of QUALITIES, and then smaller pictures; all clips alike, so that none looks
    better for it. No side is above ``longest``. Raises ValueError where nothing fits.
    """
    h, w = clips[0].shape[-2:]
    fitting = min(1.0, longest / max(h, w))
    for shrink in SHRINK:
        size = round(h * fitting * shrink) or 1, round(w * fitting * shrink) or 1
        if shrink < 1 and min(size) < LEAST:
            break
        small = [resize(clip, size) for clip in clips]
        few = [clip[:: max(1, len(clip) // TRIED)] for clip in small]
        for quality in QUALITIES:
            trial = [_files(clip, quality) for clip in few]
            sizes = [len(file) for film in trial for file in film]
            if sum(sizes) / len(sizes) * sum(map(len, small)) > budget:
                continue
            films = Films([_files(clip, quality) for clip in small], size, _error(few, trial))
            if films.nbytes <= budget:
                return films
    raise ValueError(
        f"budget: {len(clips)} clips of {len(clips[0])} frames of {h}x{w} do not fit into "
        f"{budget / 1e6:g} MB, not even at {min(size)} pixels; raise it, or give fewer frames"
    )


def _files(clip: Tensor, quality: dict) -> list[bytes]:
    return [encoded(pixels, "WEBP", **quality) for pixels in to_uint8(clip)]


def _error(clips: Sequence[Tensor], films: list[list[bytes]]) -> float:
    """What the files have lost, RMS of the levels 0 to 255."""
    squares = [
        np.square(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) - pixels.astype(float))
        for clip, film in zip(clips, films, strict=True)
        for pixels, file in zip(to_uint8(clip), film, strict=True)
    ]
    return float(np.sqrt(np.mean(squares)))
