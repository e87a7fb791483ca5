"""The bootstrap, against what is known of means."""

import math

import numpy as np
import pytest
from clips import bare
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit.intervals import bootstrap


def test_the_interval_is_about_the_normal_one_and_narrows_with_the_level():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - half, abs=0.15 * half)
    assert high == pytest.approx(mean + half, abs=0.15 * half)
    narrow = bootstrap(values, level=0.5)
    assert low < narrow.low < mean < narrow.high < high


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        _, low, high = bootstrap(rng.normal(size=30), resamples=300, level=0.8, seed=seed)
        covered += low <= 0 <= high
    assert 0.7 < covered / 200 < 0.9


def test_one_seed_one_result():
    values = np.random.default_rng(0).random(20).tolist()
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    assert bootstrap(v for v in values) == bootstrap(values)


def test_equal_values_are_certain():
    assert bootstrap([0.1] * 3) == (0.1, 0.1, 0.1)


def test_all_resamples_of_two_values_lie_between_them():
    found = bootstrap([0, 1])
    assert found.mean == 0.5 and 0 <= found.low <= 0.5 <= found.high <= 1
    assert str(found) == f"0.5 [{found.low:.4g}, {found.high:.4g}]"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_the_ends_lie_within_the_values(values):
    mean, low, high = bootstrap(values, resamples=200)
    tiny = 1e-9 * max(map(abs, values))
    assert min(values) - tiny <= low <= high <= max(values) + tiny
    assert mean == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, r"values: \[\]; expected at least two"),
        ([3], {}, r"values: \[3\]; expected at least two, all finite, one a clip"),
        ([1, math.inf], {}, r"values: \[1, inf\]; expected"),
        ([1, math.nan], {}, r"values: \[1, nan\]; expected"),
        ([1, 2], {"level": 95}, r"level=95: expected a share between 0 and 1"),
        ([1, 2], {"resamples": 0}, r"resamples=0: expected a whole number of at least 1"),
        ([1, 2], {"seed": -1}, r"seed=-1: expected"),
    ],
)
def test_what_has_no_interval_is_refused(values, settings, message):
    with pytest.raises(ValueError, match=message):
        bare(bootstrap)(values, **settings)
