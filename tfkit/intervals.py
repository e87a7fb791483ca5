"""How sure a mean is: intervals by resampling. Memory: a thousand resamples at a time."""

import math
import warnings
from collections.abc import Iterable
from numbers import Real
from typing import NamedTuple

import numpy as np

from tfkit.settings import check_seed, check_whole

_BATCH = 1000


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


def bootstrap(
    values: Iterable, *, resamples: int = 9999, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of values and its bootstrap confidence interval: (mean, low, high).

    values: numbers or scores, one a clip. Clips are drawn with replacement, as many as there are,
    `resamples` times; the interval is bias-corrected and accelerated (BCa: Efron, JASA 1987), or,
    where that is undefined (almost all values equal), between percentiles. One seed, one result.
    Raises ValueError for fewer than two values, for any that is not finite, and settings out of
    range.
    """
    try:
        values = np.asarray([float(value) for value in values])
    except TypeError:
        raise ValueError(f"values={values!r}: expected numbers, one a clip") from None
    if len(values) < 2 or not np.isfinite(values).all():
        shown = ", ".join(f"{v:g}" for v in values[:8])
        raise ValueError(f"values: [{shown}]; expected at least two, all finite, one a clip")
    check_whole("resamples", resamples)
    seed = check_seed(seed)
    if not isinstance(level, Real) or not 0 < level < 1:
        raise ValueError(f"level={level!r}: expected a share between 0 and 1, such as 0.95")
    if np.ptp(values) == 0:
        return Interval(*[float(values[0])] * 3)
    mean = math.fsum(values) / len(values)
    ends = _ends(values, "BCa", resamples, level, seed)
    if not all(map(math.isfinite, ends)):
        ends = _ends(values, "percentile", resamples, level, seed)
    return Interval(mean, *ends)


def _ends(
    values: np.ndarray, method: str, resamples: int, level: float, seed: int
) -> tuple[float, float]:
    from scipy.stats import DegenerateDataWarning  # slow to import, and needed only here
    from scipy.stats import bootstrap as resampled

    settings = {"n_resamples": resamples, "confidence_level": level, "batch": _BATCH}
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = resampled(
            (values,), np.mean, method=method, random_state=np.random.default_rng(seed), **settings
        ).confidence_interval
    return float(found.low), float(found.high)
