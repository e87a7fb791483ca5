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
        x="steps", y="dB", log=True, level={"VAE": 6}, across=[20],
    )  # fmt: skip
    (axes,) = figure.axes
    first, second = axes.lines[:2]
    assert first.get_xydata().tolist() == [[5, 1], [10, 2], [50, 4]]
    assert first.get_marker() != second.get_marker()
    assert axes.lines[3].get_xdata() == [20, 20]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["5", "10", "50"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["plain", "refined"]
    assert drawn(figure).std() > 5
    with pytest.raises(ValueError, match="lines is empty"):
        charts.curves({}, x="", y="")


def test_bars_say_their_values():
    figure = charts.bars({"tokens": 0.5, "patches": 0.25}, x="PCK")
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [0.5, 0.25]
    assert [text.get_text() for text in axes.texts] == ["0.500", "0.250"]
    for values, said in (
        ([1.5, 1.51], ["1.50", "1.51"]),
        ([210, 3], ["210", "3"]),
        ([0], ["0.00"]),
    ):
        (axes,) = charts.bars({str(i): v for i, v in enumerate(values)}, x="").axes
        assert [text.get_text() for text in axes.texts] == said
    (axes,) = charts.bars({"a": 0.25}, x="", digits=1).axes
    assert axes.texts[0].get_text() == "0.2"
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


def test_a_heat_map_may_have_no_bar_and_whole_numbers():
    figure = charts.heat_map([[0, 1]], ["a"], ["b", "c"], x="", digits=0)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0", "1"]


def test_long_labels_are_wrapped_and_inside_the_figure():
    long = "a rather long name of what is shown here, with all that belongs to it"
    figures = [
        charts.bars({long: 1.0, "b": 2.0}, x=long),
        charts.heat_map([[0, 1]] * 3, [long, "b", "c"], [long, "c"], x=long, label=long),
        charts.curves({long: ([1, 2], [1, 2]), "b": ([1, 2], [2, 1])}, x=long, y=long),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        inner = figure.get_tightbbox()
        assert inner.x0 > -0.05 and inner.x1 < figure.get_figwidth() + 0.05
        assert inner.y0 > -0.05 and inner.y1 < figure.get_figheight() + 0.05
