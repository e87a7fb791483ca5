"""`make figures` in a house of two notebooks: what is renewed, what stays, and what is stale."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import make_figures
import pytest
from pictures import LIMIT, difference
from provenance import DEMO, ROOT, TABLE, WEIGHTS, list_of_figures, listed, origins, sources

from tfkit import charts, plots

NOTEBOOK = Path("notebooks/01_a.ipynb")
FIRST = """\
from pathlib import Path

SEED = 7
FIGURES = Path("../figures")"""
DRAW = """\
from PIL import Image, ImageDraw

picture = Image.new("RGB", (300, 200), "white")
ImageDraw.Draw(picture).text((90, 90), f"seed {SEED}", "black")
picture.save(FIGURES / "01_a.png")"""
TIMED = "import time, uuid\nprint('took', time.time(), 's', uuid.uuid4())"


def code(source, *outputs):
    return {"cell_type": "code", "id": f"c{abs(hash(source))}", "metadata": {}, "source": source,
            "execution_count": 1, "outputs": list(outputs)}  # fmt: skip


def words(text):
    return {"cell_type": "markdown", "id": "words", "metadata": {}, "source": text}


def write(root, *cells):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": list(cells), "metadata": {"kernelspec": kernel}}
    (root / NOTEBOOK).write_text(json.dumps(book | {"nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def house(tmp_path):
    for folder in ("notebooks", "figures", WEIGHTS / "unet"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / WEIGHTS / "unet" / "model.safetensors").write_bytes(b"one")
    (tmp_path / TABLE).write_text("a,b\n")
    shutil.copy(ROOT / "notebooks" / "conftest.py", tmp_path / "notebooks")
    write(tmp_path, code(FIRST), words("# A picture"), code(DRAW), code(TIMED))
    (tmp_path / "figures" / "README.md").write_text(list_of_figures([NOTEBOOK], tmp_path))
    return tmp_path


def reasons(house):
    made_from = listed(house)
    return [origin.stale(made_from.get(origin.figure)) for origin in origins(NOTEBOOK, house)]


def test_a_figure_has_a_cell_and_a_heading(house):
    (origin,) = origins(NOTEBOOK, house)
    assert (origin.figure, origin.cell, origin.heading) == ("01_a.png", 2, "A picture")
    assert reasons(house) == [None]
    assert DEMO in sources() and len(sources()) > 10


def test_what_draws_nothing_may_change(house):
    install = "try:\n    import tfkit\nexcept ImportError:\n    %pip install tfkit\n\n"
    more = code("print('after it')")
    write(house, code(install + FIRST), words("# Another name"), code(DRAW), code(TIMED), more)
    (house / WEIGHTS / "README.md").write_text("a card")
    assert reasons(house) == [None]
    assert "Another name" in list_of_figures((), house)


def test_code_before_the_cell_and_weights_may_not(house):
    write(house, code(FIRST), code("SEED += 1"), words("# A picture"), code(DRAW), code(TIMED))
    (reason,) = reasons(house)
    assert "01_a.png is stale: the code up to cell 3 of notebooks/01_a.ipynb changed" in reason
    assert reason.endswith("make figures NOTEBOOKS=notebooks/01_a.ipynb")
    (house / WEIGHTS / "unet" / "model.safetensors").write_bytes(b"two")
    assert f"ipynb and {WEIGHTS} changed since it was made" in reasons(house)[0]
    write(house, code(FIRST.replace("7", "8")), words("# A picture"), code(DRAW))
    assert "the code up to cell 2" in reasons(house)[0]
    (house / "figures" / "README.md").unlink()
    assert "nothing in figures/README.md says" in reasons(house)[0]


def test_a_table_counts_where_it_is_read(house):
    write(house, code(FIRST), code("table = read_table()"), code(DRAW))
    (house / "figures" / "README.md").write_text(list_of_figures([NOTEBOOK], house))
    (house / WEIGHTS / "unet" / "model.safetensors").write_bytes(b"two")
    assert reasons(house) == [None]
    (house / TABLE).write_text("a,b\n1,2\n")
    assert f"{TABLE} changed" in reasons(house)[0]
    (house / TABLE).write_text("a,b\n")
    assert reasons(house) == [None]
    (house / TABLE).with_name("tables_50.csv").write_text("a,b\n")
    assert f"{TABLE} changed" in reasons(house)[0]


def test_a_second_run_changes_no_file(house, capsys):
    assert make_figures.main([str(house / NOTEBOOK)], house) == 0
    assert "01_a.png" in capsys.readouterr().out
    files = [path for path in house.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert b"took" in before[house / NOTEBOOK] and b"execution_count" in before[house / NOTEBOOK]
    assert make_figures.main([str(house / NOTEBOOK)], house) == 0
    assert "every figure is as it was" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in house.rglob("*") if path.is_file()} == before


def test_a_figure_stays_unless_it_shows_another_thing_or_is_stale(tmp_path):
    def sheet(folder, value, colors=None):
        chart = charts.bars({"PSNR": value}, x="dB")
        return plots.save(chart, tmp_path / folder / "a.png", 80, colors=colors)

    kept, figures = sheet("kept", 25.1), tmp_path / "kept"
    before = kept.read_bytes()
    assert not make_figures.renew(sheet("same", 25.1), figures, {"a.png"})
    assert not make_figures.renew(sheet("rounded", 25.1, colors=128), figures, set())
    assert kept.read_bytes() == before
    assert make_figures.renew(sheet("stale", 25.1, colors=128), figures, {"a.png"})
    assert make_figures.renew(sheet("other", 31.8), figures, set())
    kept.unlink()
    assert make_figures.renew(sheet("removed", 25.1), figures, set())
    assert kept.read_bytes() == before


def test_a_notebook_that_fails_leaves_everything_as_it_was(house, capsys):
    write(house, code(FIRST), code(DRAW), code("1 / 0"))
    before = (house / NOTEBOOK).read_bytes()
    assert make_figures.main([str(house / NOTEBOOK)], house) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert (house / NOTEBOOK).read_bytes() == before
    assert {path.name for path in (house / "figures").iterdir()} == {"README.md"}
    assert make_figures.main([str(house / "notebooks/02_b.ipynb")], house) == 2


def test_outputs_stay_where_they_say_the_same():
    def book(text, picture):
        drawn = {"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}}
        printed = [{"output_type": "stream", "name": "stdout", "text": x} for x in text]
        return {"cells": [code("x", *printed, drawn)]}

    before = book(["PSNR 25 dB\n", "took 3 s\n"], "aaaa")
    after = make_figures.renewed(before, book(["PSNR 25 dB\ntook 4 s\n"], "aaaa"))
    assert "took 3 s" in json.dumps(after)
    for other in (book(["PSNR 26 dB\ntook 4 s\n"], "aaaa"), book(["PSNR 25 dB\ntook 4 s\n"], "b")):
        assert make_figures.renewed(json.loads(json.dumps(before)), other) == other


def test_under_nbval_a_figure_that_is_drawn_otherwise_fails_in_its_cell(house):
    write(house, code(FIRST), code(DRAW), code(DRAW.replace("01_a", "01_b")))
    assert make_figures.main([str(house / NOTEBOOK)], house) == 0
    kept = {path: path.read_bytes() for path in (house / "figures").iterdir()}
    again, other = DRAW.replace("01_a", "01_b"), DRAW.replace('"seed', '"Seed')
    write(house, code(FIRST), code(again), code(other), code(DRAW.replace("01_a", "01_c")))
    (house / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT / 'tests'}\n")
    options = re.search(r"(?<=\t)--nbval.*", (ROOT / "Makefile").read_text())[0].split()
    options[-1] = ROOT / options[-1]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += [*options, "notebooks"]
    printed = subprocess.run(command, cwd=house, capture_output=True, text=True).stdout
    assert "2 failed, 2 passed" in printed, printed
    assert "01_a.ipynb::Cell 2" in printed and "01_a.png is stale: drawn now, it is" in printed
    assert "01_a.ipynb::Cell 3" in printed and "01_c.png is stale: there is none yet" in printed
    assert "make figures NOTEBOOKS=notebooks/01_a.ipynb" in printed
    assert {path: path.read_bytes() for path in (house / "figures").iterdir()} == kept


def test_another_number_is_a_difference_and_a_palette_is_none(tmp_path):
    def sheet(value, colors=None, size=(6, 2)):
        path = tmp_path / f"{value} {colors} {size}.png"
        return plots.save(charts.bars({"PSNR": value}, x="dB", size=size), path, 80, colors=colors)

    seen = sheet(25.1)
    assert difference(seen, seen) == 0
    assert difference(seen, sheet(25.1, colors=128)) < LIMIT / 2
    assert difference(seen, sheet(31.8)) > LIMIT
    assert difference(seen, sheet(25.1, size=(6, 2.1))) == math.inf


def test_a_curve_that_rounding_moves_is_the_same_and_one_that_is_elsewhere_is_not(tmp_path):
    def curve(value):
        chart = charts.curves({"cost": ([1, 2, 3], [0.0, value, 0.3])}, x="frames", y="dB")
        return plots.save(chart, tmp_path / f"{value}.png", 100)

    seen = curve(0.1)
    assert max(difference(seen, curve(value)) for value in (0.1005, 0.101)) < LIMIT  # a pixel
    assert difference(seen, curve(0.105)) > 2 * LIMIT
