"""Figures of numbers: what is drawn is what was given."""

import io

import numpy as np
import pytest
from PIL import Image

from tfkit import charts


def drawn(figure):
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


def test_curves_are_those_given_and_told_apart_without_colour():
    figure = charts.curves(
        {"plain": ([5, 10, 50], [1, 2, 4]), "refined": ([5, 10, 50], [2, 3, 5])},
        x="steps", y="dB", log=True, level={"VAE": 6},
    )  # fmt: skip
    (axes,) = figure.axes
    first, second = axes.lines[:2]
    assert first.get_xydata().tolist() == [[5, 1], [10, 2], [50, 4]]
    assert first.get_marker() != second.get_marker()
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "10", "50"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["plain", "refined"]
    assert drawn(figure).std() > 5
    with pytest.raises(ValueError, match="lines is empty"):
        charts.curves({}, x="", y="")


def test_bars_say_their_values():
    figure = charts.bars({"tokens": 0.5, "patches": 0.25}, x="PCK")
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [0.5, 0.25]
    assert {"0.5", "0.25"} <= {text.get_text() for text in axes.texts}
    with pytest.raises(ValueError, match="values is empty"):
        charts.bars({}, x="")


@pytest.mark.parametrize("center", [None, 0.0])
def test_a_heat_map_writes_every_value_legibly(center):
    figure = charts.heat_map(
        [[0.1, 0.9], [0.5, -0.4]], ["a", "b"], [1, 2], x="t", label="PCK", center=center
    )
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.90", "0.50", "-0.40"]
    image = axes.images[0]
    for text, value in zip(axes.texts, [0.1, 0.9, 0.5, -0.4], strict=True):
        lightness = np.dot(image.cmap(image.norm(value))[:3], [0.2126, 0.7152, 0.0722])
        assert (text.get_color() == "white") == (lightness < 0.5)
    assert drawn(figure).std() > 5
    with pytest.raises(ValueError, match="2 rows and 3 columns"):
        charts.heat_map([[1, 2], [3, 4]], ["a", "b"], [1, 2, 3], x="", label="")
