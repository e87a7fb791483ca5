"""figures/ holds what the notebooks and the demo make now: no more, no less, and small.

What notebooks draw is compared where they run, by notebooks/conftest.py.
"""

import json
import subprocess
import sys
from functools import partial

import hygiene
import matplotlib
import pytest
from pictures import LIMIT, difference
from provenance import DEMO, ROOT, list_of_figures, listed, origins, remedy, sources

from tfkit import demo, read_video
from tfkit.__main__ import main

FIGURES = ROOT / "figures"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook):
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_every_figure_is_made_by_a_notebook_or_the_demo():
    made = [origin.figure for source in sources() for origin in origins(source)]
    assert sorted(made) == sorted({path.name for path in FIGURES.iterdir()} - {"README.md"})
    assert {f"quickstart.{suffix}" for suffix in ("gif", "mp4", "png")} <= set(made)


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_figures_are_of_the_code_and_the_weights_that_are_here(source):
    made_from = listed()
    reasons = [origin.stale(made_from.get(origin.figure)) for origin in origins(source)]
    assert not any(reasons), "\n".join(filter(None, reasons))


def test_the_list_of_figures_names_each_with_its_cell():
    written = (FIGURES / "README.md").read_text()
    assert written == list_of_figures(), "to write it again: python tests/provenance.py"


def test_the_demo_writes_its_pictures_and_prints_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "quickstart", partial(demo.quickstart, frames=3, steps=2))
    assert main(["demo", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("warp error", "TokenFlow", "per frame", "peak memory"))
    assert {path.name for path in tmp_path.iterdir()} == {o.figure for o in origins(DEMO)}
    assert read_video(tmp_path / "quickstart.mp4").frames.shape[0] == 3


# Its edits are notebook 00's as well, which compares them with figures/ in every run
@pytest.mark.slow
def test_the_demo_makes_what_figures_holds(tmp_path):
    command = [sys.executable, "-m", "tfkit", "demo", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TokenFlow" in done.stdout and "peak memory" in done.stdout
    pinned = f"matplotlib=={matplotlib.__version__}\n" in (ROOT / "constraints.txt").read_text()
    for origin in origins(DEMO):
        assert (tmp_path / origin.figure).stat().st_size > 10_000
        if not pinned:  # another version lays a figure out otherwise
            continue
        far = difference(tmp_path / origin.figure, FIGURES / origin.figure)
        assert far <= LIMIT, f"figures/{origin.figure} is stale. {remedy(DEMO)}"


def test_figures_are_small():
    sizes = {path.name: path.stat().st_size for path in FIGURES.iterdir()}
    for name, size in sizes.items():
        assert size < (1_000_000 if name.startswith("quickstart") else 500_000), name
    assert sum(sizes.values()) < 12_000_000, sum(sizes.values())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_shape_of_the_house(notebook):
    assert not hygiene.complaints(notebook, ROOT)
