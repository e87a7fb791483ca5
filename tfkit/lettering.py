"""Words in pictures: how wide they are, and where their lines break."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from PIL.ImageFont import FreeTypeFont

# comes with matplotlib; a str, since Pillow 10 takes no Path
FONT = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))


def wide(words: str, size: float | int) -> float:
    """How wide matplotlib draws words of ``size`` points, in inches."""
    return (
        float(TextPath((0, 0), words, size=size).get_extents().width) / 72 if words.strip() else 0.0
    )


def lines_of(
    words: str, width: float | int, size: float | int = 10, *, font: FreeTypeFont | None = None
) -> list[str]:
    """Words in lines no wider than ``width``; a word that is wider alone is broken.

    width: in inches, of matplotlib's letters of ``size`` points; of a ``font``, in its pixels.
    """

    def fits(line: str) -> bool:
        return (wide(line, size) if font is None else font.getlength(line)) <= width

    lines: list[str] = []
    for word in words.split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
            continue
        while not fits(word) and len(word) > 1:
            cut = next((n for n in range(len(word) - 1, 1, -1) if fits(word[:n])), 1)
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines or [""]


def write(
    figure: Figure,
    x: float | int,
    y: float | int,
    words: str,
    color: str,
    size: int,
    **alignment: Any,
) -> None:
    """Words at (x, y) inches of a figure."""
    across, high = figure.get_size_inches()
    figure.text(x / across, y / high, words, color=color, fontsize=size, **alignment)
