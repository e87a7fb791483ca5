"""Clips to disk: mp4, GIF or a folder of PNGs, complete or not there at all.

Memory: what is given, and one frame of it as bytes.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
from torch import Tensor

from tfkit import codec
from tfkit.atomic import left_over, remove, replacing
from tfkit.settings import check_path
from tfkit.video import Clip, as_frames, rate_of, size_of, to_uint8

MOVIES = (".mp4", ".mov", ".mkv", ".m4v")
_LONGEST = 255 - len(".new-01234567-")  # bytes of a name, beside which there is a temporary one
_STALE = 3600  # seconds after which an unfinished video is nobody's any more
_NUMBERED = re.compile(r"\d{4,}\.png")


def write_video(
    path: str | os.PathLike,
    frames: Clip | Tensor | Iterable[Tensor],
    fps: float | int | None = None,
    *,
    crf: int = 18,
) -> Path:
    """Write frames (f, 3, h, w) in [0, 1] to an mp4, a GIF (by suffix) or a folder of PNGs (none).

    Chunks of frames, (n, 3, h, w) each, are taken and written one after the other.
    fps: None takes the clip's own, or 8. crf: 0 (best) to 51; 6 more halve the size of an mp4.
    H.264 needs even sides: the last row or column of an odd one is doubled. Missing parent folders
    are made; the path appears only once it is complete, and a folder of numbered PNGs is replaced.
    What a killed run left of it an hour ago or earlier is removed.
    ValueError for other shapes, NaN, values outside [0, 1], or a suffix that is not one of these.
    """
    path = check_output(path)
    suffix = path.suffix.lower()
    fps, pixels = _to_write(frames, fps, crf)
    place = path.resolve()  # where a link leads to
    for kind in ("new", "old"):
        for rest in left_over(place.parent, glob.escape(place.name), age=_STALE, kind=kind):
            with suppress(OSError):  # somebody else's
                remove(rest)
    with replacing(path) as temporary:
        if suffix in MOVIES:
            codec.write_movie(temporary, pixels, fps, crf)
        elif suffix == ".gif":
            codec.write_gif(temporary, pixels, fps)
        else:
            codec.write_images(temporary, pixels)
    return path


def check_output(path: str | os.PathLike) -> Path:
    """The path if `write_video` can write there; ValueError if not. For asking before long work."""
    path = check_path("path", path)
    suffix = path.suffix.lower()
    if path.name in ("", "..") or len(os.fsencode(path.name)) > _LONGEST:
        raise ValueError(
            f"{str(path)!r} does not end in a name; expected that of a video or of a new folder, "
            f"of {_LONGEST} bytes at most"
        )
    if suffix not in (*MOVIES, ".gif", ""):
        raise ValueError(
            f"{str(path)!r} ends in {suffix!r}; expected {', '.join(MOVIES)}, .gif, "
            "or no suffix for a folder of PNGs"
        )
    if not suffix and path.is_file():
        raise ValueError(
            f"{str(path)!r} is a file, and no suffix means a folder of PNGs; expected a new path, "
            f"or one that ends in {', '.join(MOVIES)} or .gif"
        )
    if path.is_dir() and (suffix or not all(_NUMBERED.fullmatch(p.name) for p in path.iterdir())):
        raise ValueError(f"{str(path)!r} is a folder with other things in it; expected a new path")
    above = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"{str(path)!r} cannot be written: {str(above or path.anchor)!r} is no folder that can "
            "be written to; expected one"
        )
    return path


def _to_write(
    frames: Clip | Tensor | Iterable[Tensor], fps: float | int | None, crf: int
) -> tuple[float, Iterator[np.ndarray]]:
    """The rate and the frames as bytes; what is in memory is checked before a file is touched."""
    codec.check_crf(crf)
    rate = rate_of(frames, fps)
    if isinstance(frames, Clip | Tensor) or not isinstance(frames, Iterable):
        return rate, to_uint8(frames)
    chunks = iter(frames)
    first = next(chunks, None)
    if first is None:
        raise ValueError("frames hold no chunk; expected one of (n, 3, h, w) or more")
    size = size_of(as_frames(first))
    rest = (one for chunk in chunks for one in to_uint8(_of_size(chunk, size)))
    return rate, chain(to_uint8(first), rest)


def _of_size(chunk: Clip | Tensor, size: tuple[int, int]) -> Tensor:
    frames = as_frames(chunk)
    if size_of(frames) != size:
        raise ValueError(
            f"a chunk of frames has shape {tuple(frames.shape)}; expected {size[0]} x {size[1]} "
            "pixels, as the first has"
        )
    return frames
