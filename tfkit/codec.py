"""Video files as numpy pixels, through PyAV and Pillow: what video.py reads from and writes to.

Pixels are (h, w, 3) RGB or (h, w, 4) RGBA, uint8 or uint16, one frame at a time in both directions;
only a GIF holds all its frames while it is written, for they share one palette.
"""

import re
import warnings
from collections.abc import Callable, Generator, Iterable
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from tfkit.settings import is_whole

DEFAULT_FPS = 8.0
_SUBFILE = 254  # TIFF's tag NewSubfileType; its first bit: a reduced version of another image
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Turn = tuple[int, int, int, int]  # (a, b, c, d) of a display matrix
# A decoded frame is converted only if it is wanted: frames before `start` are merely counted.
Lazy = tuple[Callable[[], np.ndarray], float]


def read(path: Path) -> Generator[Lazy, None, None]:
    """Yield (function giving the pixels, frames a second) for each frame; ValueError if damaged."""
    if path.is_dir() or path.suffix.lower() in IMAGES:
        return _read_images(path)
    return _read_gif(path) if path.suffix.lower() == ".gif" else _read_movie(path)


def _read_images(path: Path) -> Generator[Lazy, None, None]:
    paths = [path] if path.is_file() else images_of(path)
    if not paths:
        raise ValueError(f"the folder {str(path)!r} has no images; expected {' '.join(IMAGES)}")
    first = None
    for one in paths:
        try:
            if one.is_fifo():
                raise ValueError("it is a pipe, which would be waited for")
            with Image.open(one) as image:
                # of a camera's MPO, a JPEG with previews, and of a TIFF with one, the first is it
                moving = image.format in ("WEBP", "PNG", "GIF") or _pages(image)
                count = getattr(image, "n_frames", 1) if moving else 1
                if count > 1:
                    raise ValueError(
                        f"it has {count} frames, and an image has one; expected a GIF or a video, "
                        f"as ffmpeg -i {one.name} {one.stem}.mp4 makes"
                    )
                pixels = _pixels(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{str(one)!r} cannot be read as an image: {error}") from error
        first = first or pixels.shape[:2]
        if pixels.shape[:2] != first:
            raise ValueError(
                f"{str(one)!r} is {pixels.shape[0]}x{pixels.shape[1]} but {paths[0].name!r} is "
                f"{first[0]}x{first[1]}; all images of a folder must have one size"
            )
        yield partial(np.asarray, pixels), DEFAULT_FPS


def _pages(image: Image.Image) -> bool:
    """Whether a TIFF has more than one picture: reduced ones, as cameras add, are none."""
    if image.format != "TIFF":
        return False
    reduced = 0
    for i in range(1, getattr(image, "n_frames", 1)):
        image.seek(i)
        reduced += int(getattr(image, "tag_v2", {}).get(_SUBFILE, 0)) & 1
    image.seek(0)
    return reduced < getattr(image, "n_frames", 1) - 1


def images_of(folder: Path) -> list[Path]:
    """The images of a folder, in natural order."""
    found = (p for p in folder.iterdir() if p.name[0] != "." and p.suffix.lower() in IMAGES)
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: 2.png before 10.png."""
    pieces = re.split(r"(\d+)", path.name.lower())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "F":
        raise ValueError("its pixels are floats, in no known range; expected 8 or 16 bits")
    clear = "A" in image.getbands() or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if clear else "RGB"))


def _read_gif(path: Path) -> Generator[Lazy, None, None]:
    """By Pillow: ffmpeg takes frames that say no duration for one, and half a file for a whole."""
    try:
        with Image.open(path, formats=["GIF"]) as image:
            times = []  # of each frame, in seconds
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                times.append(image.info.get("duration", 0) / 1000)
            fps = _pace(times)
            if sum(times) and any(abs(time * fps - 1) >= 0.5 for time in times[:-1]):
                _warn_uneven(path, fps)
            for i in range(len(times)):
                image.seek(i)
                yield partial(np.asarray, _pixels(image)), fps
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a GIF: {error}") from error


def _pace(times: list[float]) -> float:
    """Frames a second, of how long each is shown in hundredths; the last may be held for longer.

    A whole number where the hundredths leave that open.
    """
    rest = times[:-1] or times
    told = rest if times[-1] > 1.5 * max(rest) else times
    if not sum(told):
        return DEFAULT_FPS
    fps = len(told) / sum(told)
    whole = max(round(fps), 1)
    return float(whole) if abs(len(told) / whole - sum(told)) < 0.011 else fps


def _warn_uneven(path: Path, fps: float) -> None:
    warnings.warn(
        f"{str(path)!r} shows its frames for unequal times; they are taken one by one, as if there "
        f"were {fps:g} in every second. To keep its pace, give the video a constant rate first: "
        "ffmpeg -i in.mp4 -vf fps=25 out.mp4",
        stacklevel=3,
    )


def _read_movie(path: Path) -> Generator[Lazy, None, None]:
    even, frames, end, turn = True, 0, 0.0, (1, 0, 0, 1)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            # ffmpeg draws text files as a terminal would, which nobody means here
            if not container.streams.video or container.format.name == "tty":
                raise ValueError(f"{str(path)!r} has no video in it; expected a video or a GIF")
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"  # threads that take a frame each keep errors to themselves
            fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            aspect = stream.sample_aspect_ratio
            before: float | None = None
            for frame in container.decode(stream):
                if even and not _in_step(before, frame.time, fps):
                    even = False
                    _warn_uneven(path, fps)
                turn = turn if frames else _turn(frame)
                before, frames, end = frame.time, frames + 1, (frame.time or 0) + 1 / fps
                yield partial(_decoded, frame, aspect, turn), fps
            said = _seconds(stream)
            if frames and said - end > max(1.5 / fps, said / 50):
                warnings.warn(
                    f"{str(path)!r} says that it has {said:.2f} s of video, and its {frames} "
                    f"frames end at {end:.2f} s: it seems to be cut off",
                    stacklevel=2,
                )
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{str(path)!r} cannot be decoded ({error.strerror}); "
            "is it a video, and complete and undamaged?"
        ) from error


def _seconds(stream: av.VideoStream) -> float:
    """How long a file says that its video is, from its start; 0 where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    found = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    hours, minutes, seconds = map(float, found.groups()) if found else (0.0, 0.0, 0.0)
    return 3600 * hours + 60 * minutes + seconds


def _in_step(before: float | None, now: float | None, fps: float) -> bool:
    """Whether two times, where known, are as far apart as frames should be, to half a frame."""
    return before is None or now is None or abs((now - before) * fps - 1) < 0.5


def _turn(frame: av.VideoFrame) -> Turn:
    """What a frame's display matrix does: a pixel at (x, y) is shown at (ax + cy, bx + dy).

    To be asked of one frame of a video: it and its side data hold each other in memory.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32, 9).tolist()
    return a, b, c, d


def _decoded(frame: av.VideoFrame, aspect: Fraction | None, turn: Turn) -> np.ndarray:
    """A frame upright, as its display matrix says, in quarter turns, and with square pixels."""
    clear = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
    width = round(frame.width * aspect) if aspect else frame.width
    pixels = frame.to_ndarray(format="rgba" if clear else "rgb24", width=width)
    a, b, c, d = turn
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# --- writing ------------------------------------------------------------------------------------


def check_crf(crf: object) -> None:
    """Raises ValueError for what is no quality of H.264."""
    if not is_whole(crf) or not 0 <= crf <= 51:
        raise ValueError(f"crf={crf!r}; expected an integer from 0 (lossless) to 51 (smallest)")


def write_movie(
    target: Path | BytesIO, frames: Iterable[np.ndarray], fps: float | int, crf: int
) -> None:
    """H.264 in yuv420p (BT.709), which every browser plays; the same frames give the same bytes.

    4:2:0 needs even sides: an odd one gets its last row or column twice, so that nothing is lost.
    """
    suffix = target.suffix.lower() if isinstance(target, Path) else ""
    kind = {".mkv": "matroska", ".mov": "mov"}.get(suffix, "mp4")
    # the index moves to the front, so that a page plays at once; a buffer in memory cannot do that
    options = {"movflags": "+faststart"} if suffix and suffix != ".mkv" else {}
    with av.open(str(target) if suffix else target, "w", format=kind, options=options) as out:
        # Equal bytes for equal frames: mbtree reads memory it never wrote where the width is no
        # multiple of 64, and the result depends on the number of threads, so not on the machine's.
        settings = {"crf": str(crf), "x264-params": "mbtree=0"}
        stream = out.add_stream("libx264", rate=_rate(fps), options=settings)
        stream.codec_context.thread_count = 1
        stream.pix_fmt = "yuv420p"
        for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, name, 1)  # BT.709, limited range
        for pixels in frames:
            h, w = pixels.shape[:2]
            pixels = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
            if not stream.codec_context.is_open:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        out.mux(stream.encode(None))


def write_gif(target: Path | BytesIO, frames: Iterable[np.ndarray], fps: float | int) -> None:
    """A looping GIF, 256 colours for all frames; its clock ticks in hundredths of a second."""
    tick, graph, source = 1 / _rate(fps), av.filter.Graph(), None
    file = target if isinstance(target, BytesIO) else str(target)
    with av.open(file, "w", format="gif") as out:
        stream = out.add_stream("gif", rate=_rate(fps))
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = i, tick
            if source is None:
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, "pal8"
                source = graph.add_buffer(
                    None, frame.width, frame.height, frame.format, time_base=tick
                )
                names = "split", "palettegen", "paletteuse", "buffersink"
                split, make, use, sink = (graph.add(name) for name in names)
                source.link_to(split)
                split.link_to(make, 0, 0)
                split.link_to(use, 1, 0)
                make.link_to(use, 0, 1)
                use.link_to(sink)
                graph.configure()
            graph.push(frame)
        graph.push(None)
        for _ in range(i + 1):
            out.mux(stream.encode(graph.vpull()))
        out.mux(stream.encode(None))


def encoded(pixels: np.ndarray, kind: str, **options: int | bool) -> bytes:
    """The bytes of one picture as a file of a kind that Pillow knows: "PNG", "WEBP"."""
    memory = BytesIO()
    Image.fromarray(pixels).save(memory, kind, **options)
    return memory.getvalue()


def write_images(target: Path, frames: Iterable[np.ndarray]) -> None:
    """A folder of PNGs, 0000.png and so on."""
    target.mkdir()
    for i, pixels in enumerate(frames):
        Image.fromarray(pixels).save(target / f"{i:04d}.png")


def _rate(fps: float | int) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
