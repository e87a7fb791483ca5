"""Results that say what they were measured with, means of them over clips, and their table."""

import html
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tfkit.intervals import bootstrap


class Kind(NamedTuple):
    """How a metric is printed: its title, times what, to how many digits; and what is better."""

    title: str
    scale: float | int = 1
    digits: int = 3
    better: str = ""  # "higher", "lower", or neither


METRICS = {  # in the order of a table's columns
    "warp_error": Kind("warp error ×10³", 1e3, 2, "lower"),
    "frame_consistency": Kind("CLIP-F consecutive", better="higher"),
    "frame_consistency_all": Kind("CLIP-F all pairs", better="higher"),
    "text_alignment": Kind("CLIP-T", better="higher"),
    "directional": Kind("CLIP directional", better="higher"),
    "success": Kind("CLIP success %", 100, 0, "higher"),
    "structure_distance": Kind("structure distance ×10³", 1e3, 2, "lower"),
    "token_consistency": Kind("token consistency", better="higher"),
    "motion_fidelity": Kind("motion fidelity", better="higher"),
    "background_psnr": Kind("background PSNR dB", 1, 1, "higher"),
    "background_ssim": Kind("background SSIM", better="higher"),
}


@dataclass(frozen=True)
class Score:
    """A number, the name of what it measures, and what it was measured with; `float(score)`.

    settings: by name, such as {"CLIP": "menagerie"}. interval: of a mean over several `clips`.
    """

    name: str
    value: float | int
    settings: Mapping[str, str | float | int]
    interval: tuple[float, float] | None = None
    clips: int = 1

    def __float__(self) -> float:
        return float(self.value)

    @property
    def kind(self) -> Kind:
        """How it is printed; under its own name where it is none of METRICS."""
        return METRICS.get(self.name, Kind(self.name))

    @property
    def measured_with(self) -> str:
        """The settings in one line: what two numbers must share to be compared."""
        return ", ".join(f"{key}: {value}" for key, value in self.settings.items())

    def text(self) -> str:
        """The value as a table shows it, scaled and rounded, with its interval if it has one."""
        shown = [self._rounded(value) for value in (self.value, *(self.interval or ()))]
        return shown[0] + (f" [{shown[1]}, {shown[2]}]" if self.interval else "")

    def _rounded(self, value: float | int) -> str:
        return f"{self.kind.scale * value:.{self.kind.digits}f}"

    def __str__(self) -> str:
        over = f" over {self.clips} clips" if self.clips > 1 else ""
        return f"{self.kind.title} {self.text()}{over} ({self.measured_with or 'no settings'})"


def settings_of(measured_with: str) -> dict[str, str]:
    """The settings, by name, that ``Score.measured_with`` wrote in one line."""
    pairs = re.split(r", (?=[^,:]+: )", measured_with) if measured_with else []
    return {name: value for name, _, value in (pair.partition(": ") for pair in pairs)}


def one_way(metric: str, measured_with: Iterable[str]) -> str:
    """What all values of a metric were measured with. ValueError where it was not the same."""
    first, *others = dict.fromkeys(measured_with)
    if others:
        raise ValueError(
            f"{metric} was measured with {first!r} and with {others[0]!r}; expected one way"
        )
    return first


def over_clips(
    rows: Iterable[Mapping[str, Score]],
    *,
    resamples: int = 9999,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Score]:
    """The mean of each metric over clips, with a bootstrap interval (see tfkit.intervals).

    rows: one a clip, as :func:`tfkit.scoring.score` returns. A metric is averaged over the clips
    that have it; one clip, or an infinite value, leaves it without an interval. Raises ValueError
    where clips were measured differently: such a mean is of nothing.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("no rows; expected the scores of at least one clip")
    out = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        scores = [row[name] for row in rows if name in row]
        one_way(name, (score.measured_with for score in scores))
        values = [float(score) for score in scores]
        mean, interval = sum(values) / len(values), None
        if len(values) > 1 and all(map(math.isfinite, values)):
            mean, *ends = bootstrap(values, resamples=resamples, level=level, seed=seed)
            interval = ends[0], ends[1]
        out[name] = Score(name, mean, scores[0].settings, interval, len(values))
    return out


@dataclass(frozen=True)
class ScoreTable:
    """Scores of several edits or methods, one row each; the best of a column is marked.

    rows: {"TokenFlow": score(...), ...}. Prints as text, shows as HTML; what each column was
    measured with stands below, and which columns cannot be compared because that differs.
    """

    rows: Mapping[str, Mapping[str, Score]]

    @property
    def columns(self) -> list[str]:
        """Names of the metrics any row has: the known ones in their order, then the others."""
        there = dict.fromkeys(name for row in self.rows.values() for name in row)
        return [*(m for m in METRICS if m in there), *(m for m in there if m not in METRICS)]

    def ways(self, column: str) -> dict[str, list[str]]:
        """What a column was measured with: {settings: the rows}. More than one: not comparable."""
        found: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            if column in row:
                found.setdefault(row[column].measured_with, []).append(name)
        return found

    def best(self, column: str) -> set[str]:
        """The rows with the best value of a column, as printed; none where they differ in kind."""
        values = {name: float(row[column]) for name, row in self.rows.items() if column in row}
        better = METRICS.get(column, Kind(column)).better
        values = {name: value for name, value in values.items() if not math.isnan(value)}
        if not better or len(values) < 2 or len(self.ways(column)) > 1:
            return set()
        top = (max if better == "higher" else min)(values, key=values.__getitem__)
        rounded = self.rows[top][column]._rounded
        return {name for name, value in values.items() if rounded(value) == rounded(values[top])}

    def tidy(self) -> list[dict]:
        """One record for each number, for pandas.DataFrame: row, metric, value, low, high, ..."""
        return [
            {
                "row": name, "metric": column, "value": float(row[column]),
                "low": (row[column].interval or (math.nan,) * 2)[0],
                "high": (row[column].interval or (math.nan,) * 2)[1],
                "clips": row[column].clips, "measured_with": row[column].measured_with,
            }
            for name, row in self.rows.items() for column in self.columns if column in row
        ]  # fmt: skip

    def notes(self) -> list[str]:
        """Under the table: what was measured with what; one line for columns that agree."""
        same: dict[str, list[str]] = {}
        odd = []
        for column in self.columns:
            ways, title = self.ways(column), METRICS.get(column, Kind(column)).title
            if len(ways) == 1:
                same.setdefault(next(iter(ways)), []).append(title)
            else:
                each = "; ".join(f"{', '.join(names)} with {way}" for way, names in ways.items())
                odd.append(f"{title} is not comparable: {each}")
        return [f"{', '.join(titles)} with {way}" for way, titles in same.items() if way] + odd

    def _head(self) -> list[str]:
        arrows = {"higher": " ↑", "lower": " ↓"}
        kinds = [METRICS.get(column, Kind(column)) for column in self.columns]
        return [kind.title + arrows.get(kind.better, "") for kind in kinds]

    def __repr__(self) -> str:
        best = {column: self.best(column) for column in self.columns}
        lines = [["", *(f"{title} " for title in self._head())]]  # a place for the mark
        for name, row in self.rows.items():
            cells = [
                f"{row[c].text()}{'*' if name in best[c] else ' '}" if c in row else "– "
                for c in self.columns
            ]
            lines.append([name, *cells])
        wide = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = []
        for name, *cells in lines:
            right = [cell.rjust(w) for cell, w in zip(cells, wide[1:], strict=True)]
            text.append("  ".join([name.ljust(wide[0]), *right]).rstrip())
        return "\n".join([*text, *self.notes()])

    def _repr_html_(self) -> str:
        best = {column: self.best(column) for column in self.columns}
        titles = map(html.escape, ["", *self._head()])
        head = "".join(f"<th scope='col'>{title}</th>" for title in titles)
        body = ""
        for name, row in self.rows.items():
            body += f"<tr><th scope='row'>{html.escape(name)}</th>"
            for column in self.columns:
                cell = html.escape(row[column].text()) if column in row else "–"
                body += f"<td>{f'<b>{cell}</b>' if name in best[column] else cell}</td>"
            body += "</tr>"
        notes = "<br>".join(map(html.escape, self.notes()))
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p><small>{notes}</small></p>"
        )
