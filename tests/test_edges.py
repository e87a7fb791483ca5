"""The environments at both ends of what pyproject.toml admits, and what Python it asks for."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import edges
import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [
    *PROJECT["dependencies"],
    *(x for e in PROJECT["optional-dependencies"].values() for x in e),
]
BOUNDS = {r.name: r.specifier for r in map(Requirement, LINES) if r.name != PROJECT["name"]}


def held(end):
    return {r.name: r.specifier for r in map(Requirement, edges.constraints(end, PROJECT))}


def test_the_oldest_are_the_lower_bounds_and_torch():
    found = held("oldest")
    assert found.keys() == BOUNDS.keys()
    for name in BOUNDS.keys() - {"torch"}:
        assert str(found[name]) == str(BOUNDS[name]).replace(">=", "==")
    (torch,) = found["torch"]
    assert BOUNDS["torch"].contains(torch.version)


def test_the_newest_are_held_to_nothing_but_torch():
    assert held("newest") == {"torch": held("oldest")["torch"]}


def test_the_lower_bounds_lie_at_colabs_or_below():
    assert str(held("oldest")["ipywidgets"]) == "==7.7.1"
    assert str(held("oldest")["diffusers"]) == "==0.39"


def test_another_end_is_refused_before_anything_is_made():
    command = [sys.executable, ROOT / "tests" / "edges.py", "middle"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and "oldest, newest" in refused.stderr


@pytest.mark.parametrize("end", edges.ENDS)
def test_make_makes_the_environment_and_runs_the_tests_in_it(end):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "--no-print-directory", f"test-{end}"]
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    first, second = made.stdout.replace("\\\n", " ").splitlines()
    assert first.endswith(f"tests/edges.py {end}")
    assert f".venv-{end}/bin/python -m pytest" in second and "slow" in second


@pytest.mark.parametrize("folder", ["tfkit", "tests"])
def test_nothing_is_written_in_a_newer_python_than_is_asked_for(folder):
    version = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    files = sorted((ROOT / folder).rglob("*.py"))
    for path in files:
        ast.parse(path.read_text("utf-8"), path.name, feature_version=version)
    assert len(files) > 50
