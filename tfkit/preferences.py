"""What the answers of a forced choice say: who is preferred, how surely, and who agrees."""

import html
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import sqrt
from statistics import NormalDist, median

from tfkit.choices import Answer, Question
from tfkit.intervals import bootstrap
from tfkit.settings import check_choice, is_finite

INTERVALS = ("exact", "wilson", "bootstrap")


@dataclass(frozen=True)
class Preference:
    """How often the first method was preferred to the second: wins of answers, and its interval.

    p: of as uneven a split if each pair's answers, all together, were as likely the other way round
    (two-sided, exact; the sign test where each pair has one). agreement: how often two raters of
    one pair chose alike (0.5 is chance). kappa: the same beyond chance (`fleiss`). None where no
    pair has two raters, or where kappa is undefined.
    """

    first: str
    second: str
    wins: int
    answers: int
    share: float
    low: float
    high: float
    p: float
    pairs: int
    raters: int
    agreement: float | None
    kappa: float | None


@dataclass(frozen=True)
class Rater:
    """One rater: answers, share of answers to the left, repeats answered alike, median seconds."""

    answers: int
    left: float
    repeats: int
    consistent: int
    seconds: float | None


@dataclass(frozen=True)
class Preferences:
    """The result of a study. Prints as text, shows as HTML; ``tidy()`` is for pandas."""

    question: str
    rows: tuple[Preference, ...]
    raters: Mapping[str, Rater]
    level: float = 0.95
    interval: str = "wilson"

    def tidy(self) -> list[dict]:
        """One record for each pair of methods, for pandas.DataFrame."""
        return [asdict(row) for row in self.rows]

    def notes(self) -> list[str]:
        """Under the table: the question, what the columns are, and the raters one by one."""
        several = any(row.answers > row.pairs for row in self.rows)
        answers = "answers, several of one pair not independent" if several else "answers"
        way = {
            "exact": f"Clopper-Pearson over {answers}",
            "wilson": f"Wilson over {answers}",
            "bootstrap": "bootstrap over pairs",
        }[self.interval]
        alike = self.interval == "bootstrap"  # pairs, however many answers each has
        counted = "each pair's answers, the mean over pairs" if alike else "answers"
        told = [
            f"Question: {self.question}",
            f"preferred: the first, in % of {counted}, with a {self.level:.0%} interval ({way})",
        ]
        for name, rater in self.raters.items():
            words = f"{name}: {rater.answers} answers, {rater.left:.0%} to the left"
            if rater.repeats:
                words += f", {rater.consistent} of {rater.repeats} repeats alike"
            told.append(words + (f", median {rater.seconds:.1f} s" if rater.seconds else ""))
        return told

    def _cells(self) -> list[list[str]]:
        head = ["first", "second", "preferred", "p", "answers", "pairs", "raters"]
        lines = [[*head, "agreement", "kappa"]]
        for row in self.rows:
            share, low, high = (f"{100 * v:.0f}" for v in (row.share, row.low, row.high))
            rest = ("–" if v is None else f"{v:.2f}" for v in (row.agreement, row.kappa))
            counts = (str(v) for v in (row.answers, row.pairs, row.raters))
            shown = f"{share} [{low}, {high}]"
            lines.append([row.first, row.second, shown, f"{row.p:.2g}", *counts, *rest])
        return lines

    def __repr__(self) -> str:
        lines = self._cells()
        wide = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, wide, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *self.notes()])

    def _repr_html_(self) -> str:
        head, *lines = [[html.escape(cell) for cell in line] for line in self._cells()]
        titles = "".join(f"<th scope='col'>{cell}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines
        )
        notes = "<br>".join(map(html.escape, self.notes()))
        return (
            f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
            f"<p><small>{notes}</small></p>"
        )


def summarize(
    answers: Iterable[Answer],
    questions: Sequence[Question],
    asked: str = "",
    *,
    level: float = 0.95,
    interval: str = "wilson",
    seed: int = 0,
) -> Preferences:
    """Shares, intervals and agreement of every two methods; repeats only tell of the raters.

    interval: "wilson" or "exact" (Clopper-Pearson), of as many answers as those there are worth:
    several of one pair are not independent (:func:`effective`). "bootstrap" draws pairs with
    replacement and gives their mean share; of few pairs that agree it is too narrow. All take pairs
    for independent, and speak of raters like these.
    Raises ValueError where there are no answers, or for settings out of range.
    """
    check_choice("interval", interval, INTERVALS)
    if not is_finite(level) or not 0 < level < 1:
        raise ValueError(f"level={level!r}: expected a share between 0 and 1, such as 0.95")
    answers = list(answers)
    counted = [answer for answer in answers if not answer.repeat]
    if not counted:
        raise ValueError("no answers yet; expected at least one (study.answer, or the widget)")
    groups: dict[frozenset, list[Answer]] = {}
    for answer in counted:
        groups.setdefault(frozenset((answer.left, answer.right)), []).append(answer)
    rows = []
    for names, group in groups.items():
        asked_of = [q.methods for q in questions if set(q.methods) == names]
        if not asked_of:
            raise ValueError(
                f"an answer about {' and '.join(map(repr, sorted(names)))}, of which no question "
                "is; expected answers to these questions"
            )
        first, second = asked_of[0]
        rows.append(_row(first, second, group, level, interval, seed))
    return Preferences(asked, tuple(rows), _raters(answers), level, interval)


def fleiss(choices: Iterable[tuple[int, int]]) -> tuple[float | None, float | None]:
    """Agreement of raters who choose one of two, and its kappa: of (ayes, noes) of each item.

    Items may have unequal numbers of raters; those with one say nothing. With equal numbers it is
    Fleiss' kappa (1971); else that of Fleiss and Cuzick, Applied Psychological Measurement 3(4),
    1979. None where no item has two raters; kappa is None where all chose the same.
    """
    items = [(ayes, ayes + noes) for ayes, noes in choices if ayes + noes > 1]
    if not items:
        return None, None
    total = sum(n for _, n in items)
    alike = sum((a * (a - 1) + (n - a) * (n - a - 1)) / (n - 1) for a, n in items) / total
    p = sum(a for a, _ in items) / total
    if p in (0, 1):
        return alike, None
    apart = sum(a * (n - a) / n for a, n in items)
    return alike, 1 - apart / ((total - len(items)) * p * (1 - p))


def effective(votes: Sequence[tuple[int, int]]) -> float:
    """How many independent answers the (ayes, noes) of each pair are worth; all, if one a pair.

    By how much the pairs differ, beyond what as many independent answers would (Rao and Scott,
    Biometrics 48, 1992); no more than there are, and no fewer than if each pair's were one.
    """
    sizes = [ayes + noes for ayes, noes in votes]
    k, n = len(votes), sum(sizes)
    least = n**2 / sum(size**2 for size in sizes)
    p = sum(ayes for ayes, _ in votes) / n
    apart = sum((ayes - p * (ayes + noes)) ** 2 for ayes, noes in votes)
    if k == 1 or p in (0, 1):
        return least  # nothing tells how far pairs differ
    if not apart:
        return float(n)
    return min(max(p * (1 - p) * n**2 * (k - 1) / (k * apart), least), float(n))


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = share + z2 / (2 * n)
    reach = sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2)
    low, high = ((middle + way * reach) / (1 + z2 / n) for way in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # which rounding may cross


def _exact(share: float, n: float, level: float) -> tuple[float, float]:
    """Clopper-Pearson's, also of an n that is not whole (Korn and Graubard, 1998)."""
    from scipy.stats import beta  # slow to import, and needed only here

    wins, tail = share * n, (1 - level) / 2
    low = beta.ppf(tail, wins, n - wins + 1) if share > 0 else 0
    high = beta.ppf(1 - tail, wins + 1, n - wins) if share < 1 else 1
    return float(low), float(high)


def _p(votes: Iterable[tuple[int, int]]) -> float:
    """The share of all ways to turn pairs round that are as uneven as what was answered."""
    ways, lead = Counter({0: 1}), 0
    for ayes, noes in votes:
        lead += ayes - noes
        turned: Counter = Counter()
        for margin, count in ways.items():
            turned[margin + ayes - noes] += count
            turned[margin - ayes + noes] += count
        ways = turned
    return sum(n for margin, n in ways.items() if abs(margin) >= abs(lead)) / ways.total()


def _row(
    first: str, second: str, group: list[Answer], level: float, interval: str, seed: int
) -> Preference:
    by_pair: dict[int, Counter] = defaultdict(Counter)
    for answer in group:
        by_pair[answer.question][answer.preferred] += 1
    votes = [(v[first], v[second]) for v in by_pair.values()]
    wins, n = sum(ayes for ayes, _ in votes), len(group)
    share, shares = wins / n, [ayes / (ayes + noes) for ayes, noes in votes]
    if interval != "bootstrap":
        way = _wilson if interval == "wilson" else _exact
        low, high = way(share, effective(votes), level)
    elif len(shares) > 1:
        share, low, high = bootstrap(shares, level=level, seed=seed)
    else:
        raise ValueError(f"one pair of {first!r} and {second!r}: a bootstrap needs two or more")
    agreement, kappa = fleiss(votes)
    return Preference(
        first, second, wins, n, share, low, high, _p(votes), len(votes),
        len({answer.rater for answer in group}), agreement, kappa,
    )  # fmt: skip


def _raters(answers: list[Answer]) -> dict[str, Rater]:
    out = {}
    for name in dict.fromkeys(answer.rater for answer in answers):
        own = [answer for answer in answers if answer.rater == name]
        seconds = [answer.seconds for answer in own if answer.seconds is not None]
        twice = [(a, b) for a, b in combinations(own, 2) if a.question == b.question]
        out[name] = Rater(
            len(own),
            sum(answer.choice == "left" for answer in own) / len(own),
            len(twice),
            sum(a.preferred == b.preferred for a, b in twice),
            float(median(seconds)) if seconds else None,
        )
    return out
