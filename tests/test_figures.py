"""figures/ holds what the notebooks and the demo make: no more, no less, and small."""

import json
import re
from pathlib import Path

import hygiene
import pytest

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook):
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def saved(notebook):
    """Figures that a notebook's code saves."""
    return re.findall(r'FIGURES / "([^"]+)"', "\n".join(cells(notebook)))


def test_every_figure_is_made_by_a_notebook_or_the_demo():
    made = {name for notebook in NOTEBOOKS for name in saved(notebook)}
    made |= {f"quickstart.{suffix}" for suffix in ("gif", "mp4", "png")}
    assert made == {path.name for path in FIGURES.iterdir()} - {"README.md"}


def test_the_list_of_figures_names_each_with_its_notebook():
    rows = re.findall(
        r"^\| \[`([^`]+)`\]\(\1\) \| (\S+)", (FIGURES / "README.md").read_text(), re.M
    )
    listed = {name: source.strip("`") for name, source in rows}
    for notebook in NOTEBOOKS:
        for name in saved(notebook):
            assert listed.pop(name, None) == notebook.stem, name
    assert set(listed.values()) == {"demo"}


def test_figures_are_small():
    sizes = {path.name: path.stat().st_size for path in FIGURES.iterdir()}
    assert max(sizes.values()) < hygiene.LIMITS["figures"], sizes
    assert sum(sizes.values()) < 12_000_000, sum(sizes.values())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_shape_of_the_house(notebook):
    assert not hygiene.complaints(notebook, ROOT)
