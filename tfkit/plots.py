"""Static pictures of clips, in one style: contact sheets, x-t slices, videos side by side.

Every function takes {label: frames} with frames (f, 3, h, w) in [0, 1] or Clips. Figures are
matplotlib's, but unknown to pyplot: there is nothing to close, and Jupyter draws one once, as the
value of its cell. `save` writes them. Only the frames that are shown are copied.
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tfkit import overlays
from tfkit.atomic import replacing
from tfkit.lettering import FONT, lines_of, wide, write
from tfkit.video import Clip, as_frames, resize, to_uint8

INK, QUIET, PALE = "#222222", "#777777", "#EEEEEE"
WIDTH = 9.0  # inches; at 100 dots an inch the column of a notebook or a README
GAP = 0.05  # between pictures
FORMATS = (".png", ".svg", ".pdf", ".jpg", ".webp")


class Sheet(Figure):
    """A figure that shows itself in Jupyter even where pyplot was never imported.

    In 256 colours, which makes a notebook a third as large; ``save`` keeps them all.
    """

    def _repr_png_(self) -> bytes:
        memory, small = io.BytesIO(), io.BytesIO()
        self.savefig(memory, format="png")
        image = Image.open(memory).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        return small.getvalue()


def contact_sheet(
    clips: Mapping,
    *,
    columns: int = 8,
    every: int | None = None,
    titles: Sequence | None = None,
) -> Sheet:
    """Rows of frames, one row a clip, labelled on the left and numbered on top.

    columns: how many frames at most. every: frames 0, every, 2 every ...; None spreads them evenly
    from the first to the last. titles: one for each frame, instead of its number. All clips have
    the same number of frames.
    """
    clips, f = _equally_long(clips)
    if titles is not None and len(titles) != f:
        raise ValueError(f"{len(titles)} titles for {f} frames; expected one for each")
    if columns < 1 or (every is not None and every < 1):
        raise ValueError(f"columns={columns!r}, every={every!r}; expected 1 or more of each")
    if every is None:
        chosen = np.linspace(0, f - 1, min(columns, f)).round().astype(int).tolist()
    else:
        chosen = list(range(0, f, every))[:columns]
    labels = ["\n".join(wrap(label, 16)) for label in clips]
    left = 0.2 + max((wide(line, 10) for x in labels for line in x.split("\n")), default=0)
    cell = min(1.7, (WIDTH - left - GAP) / len(chosen) - GAP)
    heights = [cell * x.shape[2] / x.shape[3] for x in clips.values()]
    numbers = [f"frame {i}" if i == chosen[0] and cell > 0.6 else str(i) for i in chosen]
    if titles is not None:
        numbers = ["\n".join(lines_of(str(titles[i]), 0.92 * cell, 8)) for i in chosen]
    top = 0.24 + 0.14 * max(words.count("\n") for words in numbers)
    width = left + len(chosen) * (cell + GAP)
    height = top + sum(heights) + GAP * len(heights)
    figure = _figure(width, height)
    for column, words in enumerate(numbers):
        x = left + column * (cell + GAP) + cell / 2
        write(figure, x, height - top + 0.07, words, QUIET, 8, ha="center", va="bottom")
    y = height - top
    for label, frames, tall in zip(labels, clips.values(), heights, strict=True):
        y -= tall
        write(figure, left - 0.08, y + tall / 2, label, INK, 10, ha="right", va="center")
        for column, i in enumerate(chosen):
            _image(figure, left + column * (cell + GAP), y, cell, tall, frames[i : i + 1])
        y -= GAP
    return figure


def xt_slice(frames: Clip | Tensor, row: int) -> Float[Tensor, "3 f w"]:
    """One row of pixels over time: the picture's x runs right, time runs down."""
    frames = as_frames(frames)
    if not 0 <= row < frames.shape[2]:
        raise ValueError(f"row={row!r}; expected 0 to {frames.shape[2] - 1}, a row of the frames")
    return frames[:, :, row].transpose(0, 1)


def yt_slice(frames: Clip | Tensor, column: int) -> Float[Tensor, "3 h f"]:
    """One column of pixels over time: the picture's y runs down, time runs right."""
    frames = as_frames(frames)
    if not 0 <= column < frames.shape[3]:
        raise ValueError(
            f"column={column!r}; expected 0 to {frames.shape[3] - 1}, a column of the frames"
        )
    return rearrange(frames[:, :, :, column], "f c h -> c h f")


def xt_slices(clips: Mapping, *, row: int | None = None) -> Sheet:
    """The same row of each clip over time, under its first frame with the row marked.

    What moves draws slanted stripes; flicker shows as horizontal bands. row: from the top, in the
    first clip's pixels (None: the middle one); in clips of another height the row at that place.
    """
    clips, f = _equally_long(clips)
    reference = next(iter(clips.values())).shape[2]
    row = _row(row, reference)
    left, gap, bottom = 0.42, 0.12, 0.28
    cell = min(3.0, (WIDTH - left) / len(clips) - gap)
    labels = ["\n".join(lines_of(label, 0.95 * cell, 10)) for label in clips]
    top = 0.3 + 0.17 * max(x.count("\n") for x in labels)
    tall = [cell * x.shape[2] / x.shape[3] for x in clips.values()]
    time = 0.75 * cell
    height = top + max(tall) + gap + time + bottom
    figure = _figure(left + len(clips) * (cell + gap), height)
    for column, (label, frames, high) in enumerate(zip(labels, clips.values(), tall, strict=True)):
        x, here = left + column * (cell + gap), row * frames.shape[2] // reference
        write(figure, x, height - top + 0.08, label, INK, 10, ha="left", va="bottom")
        axes = _image(figure, x, bottom + time + gap, cell, high, frames[:1])
        _mark_row(axes, here)
        axes = _image(figure, x, bottom, cell, time, xt_slice(frames, here)[None], "nearest")
        axes.set_axis_on()
        axes.set(frame_on=False, xticks=[], yticks=[0, f - 1] if column == 0 and f > 1 else [])
        axes.tick_params(length=0, pad=3, labelsize=8, labelcolor=QUIET)
        axes.set_xlabel("x →", color=QUIET, fontsize=8, labelpad=3)
        if column == 0:
            axes.set_ylabel("← frame", color=QUIET, fontsize=8, labelpad=-2)
    return figure


def _mark_row(axes: Axes, row: int) -> None:
    """A line with dark edges, seen on light and dark pictures, and an arrow at each end of it."""
    axes.axhline(row, linewidth=2.2)
    for x, arrow in ((0, ">"), (1, "<")):
        axes.plot(x, row, arrow, ms=7, mew=0, clip_on=False, transform=axes.get_yaxis_transform())
    for drawn in axes.lines:
        drawn.set(color=overlays.MARK, path_effects=[Stroke(linewidth=4, foreground=INK), Normal()])


def with_slices(clips: Mapping, *, row: int | None = None) -> dict[str, Float[Tensor, "f 3 H w"]]:
    """Each clip with a row of it marked, and under it that row's x-t slice as it comes to be.

    For :func:`side_by_side`: what flickers leaves bands. row: as of :func:`xt_slices`.
    """
    clips, f = _equally_long(clips)
    reference = next(iter(clips.values())).shape[2]
    row = _row(row, reference)
    mark, paper = (torch.tensor(to_rgb(color))[:, None, None] for color in (overlays.MARK, PALE))
    out = {}
    for label, frames in clips.items():
        h, w = frames.shape[-2:]
        here, tall = row * h // reference, max(1, round(0.75 * h / f))  # pixels for each moment
        drawn = xt_slice(frames, here).float().repeat_interleave(tall, 1)
        page = torch.ones(f, 3, h + max(2, h // 32) + f * tall, w)
        page[:, :, :h] = frames.float()
        page[:, :, here : here + 1] = mark
        page[:, :, -f * tall :] = paper
        for i in range(f):
            start = page.shape[2] - f * tall
            page[i, :, start : start + (i + 1) * tall] = drawn[:, : (i + 1) * tall]
        out[label] = page
    return out


def _row(row: int | None, height: int) -> int:
    """The row asked for, or the middle one."""
    row = height // 2 if row is None else row
    if not 0 <= row < height:
        raise ValueError(f"row={row!r}; expected 0 to {height - 1}, a row of the frames")
    return row


def side_by_side(clips: Mapping, *, zoom: int | None = None) -> Float[Tensor, "f 3 h w"]:
    """The clips next to each other as one video, labels above: frames for `write_video`.

    zoom: each is enlarged by this whole number (None: what brings the first to 256 pixels or more);
    clips of another height are fitted to the first's. Height and width come out even.
    """
    clips, f = _equally_long(clips)
    h = next(iter(clips.values())).shape[2]
    zoom = -(-256 // h) if zoom is None else zoom
    if zoom < 1:
        raise ValueError(f"zoom={zoom!r}; expected a whole number of at least 1")
    high = h * zoom
    widths = [round(x.shape[3] * high / x.shape[2]) for x in clips.values()]
    gap, line = max(4, high // 64 * 2), max(16, high // 20 * 2)  # even: chroma edges stay sharp
    font = ImageFont.truetype(FONT, round(line * 0.54))
    labels = [lines_of(x, w, font=font) for x, w in zip(clips, widths, strict=True)]
    below = line * 7 // 20 * 2  # from one line to the next
    band = line + below * (max(map(len, labels)) - 1)
    height, width = band + high + gap, sum(widths) + gap * (len(widths) + 1)
    height, width = height + height % 2, width + width % 2
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    starts = np.cumsum([gap] + [w + gap for w in widths[:-1]]).tolist()
    for label, x in zip(labels, starts, strict=True):
        for i, words in enumerate(reversed(label)):
            draw.text((x, band - line * 0.46 - below * i), words, INK, font, anchor="lm")
    out = torch.from_numpy(np.array(page)).float().div(255).permute(2, 0, 1)
    out = out.expand(f, -1, -1, -1).clone()
    for frames, x, w in zip(clips.values(), starts, widths, strict=True):
        for i in range(f):
            out[i, :, band : band + high, x : x + w] = resize(frames[i : i + 1].float(), (high, w))
    return out


def save(
    figure: Figure, path: str | os.PathLike, dpi: int = 150, *, colors: int | None = None
) -> Path:
    """Write a figure to a .png, .svg, .pdf, .jpg or .webp, which appears only once complete.

    colors: of a PNG, at most 256: a sheet of frames takes a quarter of the bytes then; None: all.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{str(path)!r} ends in {path.suffix!r}; expected {', '.join(FORMATS)}")
    if colors is not None and (path.suffix.lower() != ".png" or not 2 <= colors <= 256):
        raise ValueError(f"colors={colors!r} for {str(path)!r}: expected 2 to 256, and a .png")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=dpi)
        if colors is not None:
            with Image.open(temporary) as picture:
                few = picture.convert("RGB").quantize(colors)
            few.save(temporary, format="png", optimize=True)
    return path


def _equally_long(clips: Mapping) -> tuple[dict[str, Tensor], int]:
    """The frames of each clip and how many there are; ValueError if that differs."""
    if not isinstance(clips, Mapping) or not clips:
        raise ValueError(f"clips is a {type(clips).__name__}; expected {{label: frames, ...}}")
    frames = {str(label): as_frames(x, repr(label)).detach() for label, x in clips.items()}
    for label, x in frames.items():
        to_uint8(x, repr(label))  # for its complaints about NaN and values outside [0, 1]
    lengths = {label: len(x) for label, x in frames.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"numbers of frames differ: {lengths}; expected one number for all")
    return frames, min(lengths.values())


def _figure(width: float | int, height: float | int) -> Sheet:
    return Sheet(figsize=(width, height), dpi=100, facecolor="white")


def _image(
    figure: Figure,
    x: float | int,
    y: float | int,
    width: float | int,
    height: float | int,
    frame: Float[Tensor, "1 3 h w"],
    smoothing: str = "lanczos",
) -> Axes:
    """Draw a frame (1, 3, h, w) into a rectangle in inches; its pixels are the axes' units."""
    edges = -0.5, frame.shape[3] - 0.5, frame.shape[2] - 0.5, -0.5
    if smoothing == "lanczos" and (squares := _squares(frame)) is not None:
        frame, smoothing = squares, "antialiased"  # lanczos would draw a frame into each
    high, across = (max(1, round(side * 300)) for side in (height, width))
    if smoothing == "lanczos" and frame.shape[2] > high:  # matplotlib would alias
        frame = resize(frame, (high, across))
    (inches_x, inches_y), (picture,) = figure.get_size_inches(), to_uint8(frame)
    place = x / inches_x, y / inches_y, width / inches_x, height / inches_y
    axes = figure.add_axes(place)
    axes.imshow(picture, interpolation=smoothing, aspect="auto", extent=edges)
    axes.set_axis_off()
    return axes


def _squares(frame: Float[Tensor, "1 3 h w"]) -> Tensor | None:
    """Of a picture made of squares, as those of tokens are, a pixel for each; None of others."""
    few = frame[..., ::4, ::4]
    return few if torch.equal(few.repeat_interleave(4, 2).repeat_interleave(4, 3), frame) else None
