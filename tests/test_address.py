"""The repository's address stands in pyproject.toml; the notebooks repeat it, and only it."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GITHUB = "https://github.com/ada/tfkit"


@pytest.fixture(scope="module")
def address():
    """The script as a module: it is no part of the package."""
    spec = importlib.util.spec_from_file_location("address", ROOT / "notebooks" / "address.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources(text):
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"]]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_address_of_pyproject(address, notebook):
    text = notebook.read_text("utf-8")
    assert text == address.addressed(text, address.address(), notebook.name), "run make address"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_another_address_changes_badge_and_first_cell_alone(address, notebook):
    text = notebook.read_text("utf-8")
    moved = address.addressed(text, GITHUB, notebook.name)
    link = f"https://colab.research.google.com/github/ada/tfkit/blob/main/notebooks/{notebook.name}"
    assert f"]({link}) " in sources(moved)[0]
    assert f'REPOSITORY = "{GITHUB}.git"' in sources(moved)[1]
    assert sources(moved)[2:] == sources(text)[2:] and "Upload" not in sources(moved)[0]
    outputs = [cell.get("outputs") for cell in json.loads(text)["cells"]]
    assert [cell.get("outputs") for cell in json.loads(moved)["cells"]] == outputs
    assert address.addressed(moved, address.address(), notebook.name) == text


def test_a_badge_promises_no_more_than_its_address_keeps(address):
    assert "set `REPOSITORY` to" in address.badge("https://example.org/tfkit", "a.ipynb")
    elsewhere = address.badge("https://git.example.net/tfkit", "a.ipynb")
    assert "(https://colab.research.google.com/) " in elsewhere and "Upload" in elsewhere


def test_the_readmes_badges_lead_where_the_notebooks_do(address):
    text = (ROOT / "README.md").read_text("utf-8")
    assert text == address.linked(text, address.address()), "run make address"
    moved = address.linked(text, GITHUB)
    for notebook in NOTEBOOKS:
        place = address.place(GITHUB, notebook.name)
        assert f"[colab {notebook.stem}]: {place}\n" in moved
    assert address.linked(moved, address.address()) == text


def test_a_notebook_without_its_first_cell_is_told(address):
    book = {"cells": [{"source": ["# Title\n", "[![Open in Colab](a)](b)"]}, {"source": ["1"]}]}
    with pytest.raises(ValueError, match=r"a\.ipynb: 0 places"):
        address.addressed(json.dumps(book), GITHUB, "a.ipynb")


def test_the_address_stands_in_one_place(address):
    url = re.escape(address.address())
    files = [path for kind in ("*.py", "*.toml", "*.yml") for path in ROOT.glob(kind)]
    files += ROOT.glob("tfkit/**/*.py")
    found = [path.name for path in files if re.search(url, path.read_text("utf-8"))]
    assert found == ["pyproject.toml"]
