"""Figures of numbers, in the style of `plots`: curves, bars and tables as heat maps.

They are `plots.Sheet`s: matplotlib figures unknown to pyplot, saved with `plots.save`.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import floor, log10
from textwrap import fill

import matplotlib
import numpy as np
from torch import Tensor

from tfkit.lettering import lines_of
from tfkit.plots import INK, QUIET, Sheet

# Okabe and Ito's colours, dark ones first, with a marker each: nothing depends on hue alone
_STYLES = (
    ("#0072B2", "o", "-"), ("#D55E00", "s", "-"), ("#009E73", "^", "-"), ("#CC79A7", "D", "--"),
    ("#E69F00", "v", "--"), ("#56B4E9", "P", "--"), ("#000000", "X", ":"),
)  # fmt: skip


def curves(
    lines: Mapping[str, tuple[Iterable, Iterable]],
    *,
    x: str,
    y: str,
    log: bool = False,
    level: Mapping[str, float | int] | None = None,
    across: Iterable[float | int] = (),
    size: tuple[float | int, float | int] = (7.0, 3.2),
) -> Sheet:
    """Curves {label: (x values, y values)} in one pair of axes, named beside it.

    log: x on a logarithmic scale, with a tick at each value. level: horizontal lines by label.
    across: where vertical lines are.
    """
    if not lines:
        raise ValueError("lines is empty; expected {label: (x values, y values), ...}")
    figure = Sheet(figsize=size, dpi=100, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    ticks: set[float] = set()
    for i, (label, (xs, ys)) in enumerate(lines.items()):
        xs, ys = [float(v) for v in xs], [float(v) for v in ys]
        color, marker, dash = _STYLES[i % len(_STYLES)]
        axes.plot(
            xs,
            ys,
            dash,
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            label=fill(label, 28),
        )
        ticks |= set(xs)
    for label, value in (level or {}).items():
        axes.axhline(value, color=QUIET, linewidth=1, linestyle=":")
        axes.annotate(label, (0.01, value), xycoords=("axes fraction", "data"), color=QUIET,
                      fontsize=8, va="bottom")  # fmt: skip
    for value in across:
        axes.axvline(value, color=QUIET, linewidth=1, linestyle=":")
    if log:
        axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [f"{v:g}" for v in sorted(ticks)])
        axes.minorticks_off()
    _quiet(figure, axes, x, y)
    if len(lines) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8,
                    labelcolor=INK)  # beside the axes, where it hides no curve  # fmt: skip
    return figure


def bars(
    values: Mapping[str, float | int],
    *,
    x: str,
    digits: int | None = None,
    size: tuple[float | int, float | int] | None = None,
) -> Sheet:
    """Horizontal bars {label: value}, the values written at their ends.

    digits: after the point, the same for all; None: the largest has three significant ones.
    """
    if not values:
        raise ValueError("values is empty; expected {label: number, ...}")
    if digits is None:
        largest = max(abs(float(v)) for v in values.values()) or 1
        digits = max(0, 2 - floor(log10(largest)))
    figure = Sheet(figsize=size or (6.0, 0.5 + 0.32 * len(values)), dpi=100, facecolor="white",
                   layout="constrained")  # fmt: skip
    axes = figure.add_subplot()
    labels = [fill(label, 28) for label in values]
    drawn = axes.barh(labels, [float(v) for v in values.values()], color=_STYLES[0][0])
    axes.bar_label(drawn, fmt=f"%.{digits}f", padding=3, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    _quiet(figure, axes, x, "")
    return figure


def heat_map(
    values: Tensor | np.ndarray | Sequence[Sequence],
    rows: Sequence[str],
    columns: Sequence,
    *,
    x: str,
    label: str | None = None,
    digits: int = 2,
    center: float | int | None = None,
) -> Sheet:
    """A table (rows, columns) as colours, every value written in its cell.

    label: of the colour bar; None: there is none. digits: after the point. center: the value that
    is white in a diverging map; None: a perceptual map from least to most.
    """
    values = values.detach().cpu().float() if isinstance(values, Tensor) else values
    table = np.asarray(values, dtype=float)
    if table.shape != (len(rows), len(columns)):
        raise ValueError(
            f"values is {table.shape}; {len(rows)} rows and {len(columns)} columns are named"
        )
    over, beside = [fill(str(c), 10) for c in columns], [fill(row, 28) for row in rows]
    lines = max(c.count("\n") for c in over) + sum(row.count("\n") for row in beside)
    width = min(9.0, 2.6 + 0.62 * len(columns))
    figure = Sheet(figsize=(width, 0.75 + 0.3 * len(rows) + 0.13 * lines), dpi=100,
                   facecolor="white", layout="constrained")  # fmt: skip
    axes = figure.add_subplot()
    low, high, name = np.nanmin(table), np.nanmax(table), "viridis"
    if center is not None:
        far = max(high - center, center - low, 1e-9)
        low, high, name = center - far, center + far, "RdBu_r"
    image = axes.imshow(table, cmap=name, vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
        axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7,
                  color="white" if dark else INK)  # fmt: skip
    axes.set_yticks(range(len(rows)), beside)
    axes.set_xticks(range(len(columns)), over)
    _quiet(figure, axes, x, "")
    axes.tick_params(length=0)
    if label is not None:
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.set_label(_fitted(label, 0.3 * len(rows), 8), color=QUIET, fontsize=8)
        bar.ax.tick_params(labelsize=7, labelcolor=QUIET)
        bar.outline.set_visible(False)
    return figure


def _quiet(figure: Sheet, axes: matplotlib.axes.Axes, x: str, y: str) -> None:
    """Only what is needed: no box, small grey words."""
    axes.spines[:].set_visible(False)
    wide, high = figure.get_size_inches().tolist()
    axes.set_xlabel(_fitted(x, wide - 1.8, 9), color=QUIET, fontsize=9)
    axes.set_ylabel(_fitted(y, high - 0.3, 9), color=QUIET, fontsize=9)
    axes.tick_params(labelsize=8, labelcolor=QUIET, color=QUIET)
    axes.set_axisbelow(True)
    if not axes.images:
        axes.grid(axis="y" if y else "x", color="#E5E5E5", linewidth=0.8)


def _fitted(words: str, room: float, size: int) -> str:
    """Words in lines that fit into ``room`` inches."""
    return "\n".join(lines_of(words, max(room, 1.0), size))
