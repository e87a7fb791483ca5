"""Every command and code block of the README does what it says, on fewer frames and steps."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import tomllib

import tfkit
from tfkit.__main__ import main

HOUSE = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (HOUSE / "README.md").read_text(), re.M | re.S)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
LINES = [
    line.split("  #")[0].strip()
    for kind, code in BLOCKS
    if kind == "bash"
    for line in code.splitlines()
    if line.strip()
]
FEWER = {"frames=16": "frames=4", "steps=20": "steps=2", "steps=50": "steps=2", "[25]": "[1]"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of the reader's, with a video in it."""
    clip = tfkit.menagerie.film("a cat", frames=4)
    tfkit.write_video(tmp_path / "my.mp4", clip)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_are_of_known_kinds():
    assert {kind for kind, _ in BLOCKS} == {"python", "bash", "bibtex"} and len(PYTHON) >= 2
    starts = {shlex.split(line)[0] for line in LINES}
    assert starts == {"make", "pip", "python"}


def test_python_blocks_run_one_after_the_other(place):
    names = {}
    for code in PYTHON:
        for much, little in FEWER.items():
            code = code.replace(much, little)
        exec(compile(code, "README.md", "exec"), names)
    assert len(tfkit.read_video(place / "fox.mp4")) == 4
    assert {rgb.shape[::2] for rgb in names["colors"].values()} == {(4, 3)}


def test_every_make_target_is_there():
    make = shutil.which("make")
    text = (HOUSE / "README.md").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text))
    targets |= {shlex.split(line)[1] for line in LINES if line.startswith("make")}
    assert {"demo", "test", "lab", "bench"} <= targets
    for target in targets:
        dry = subprocess.run([make, "-n", target], cwd=HOUSE, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr


def test_what_pip_is_given_is_there():
    (line,) = [shlex.split(line) for line in LINES if line.startswith("pip")]
    assert line[:4] == ["pip", "install", "-c", "constraints.txt"]
    assert (HOUSE / line[3]).is_file()
    extra = re.fullmatch(r"\.\[(\w+)\]", line[-1])[1]
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


@pytest.mark.parametrize("line", [line for line in LINES if " edit " in line])
def test_every_edit_runs(place, pipeline_folder, line):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "tfkit"]
    swaps = {"path/to/stable-diffusion": str(pipeline_folder), "16": "3", "512": "64"}
    words = [swaps.get(word, word) for word in words[3:]]
    assert main([*words, "--steps", "2", "--quiet"]) == 0
    written = "out.mp4" if "out.mp4" in words else "my-edited.mp4"
    assert len(tfkit.open_video(place / written)) == (3 if "3" in words else 4)


def test_other_commands_are_known():
    from tfkit.__main__ import parser

    found = re.findall(r"`?python -m tfkit (\w+)", (HOUSE / "README.md").read_text())
    commands = next(iter(parser()._subparsers._group_actions)).choices
    assert found and set(found) <= set(commands)


def test_every_notebook_has_its_picture_its_sentence_and_its_badge():
    text = (HOUSE / "README.md").read_text()
    notebooks = sorted(path.stem for path in (HOUSE / "notebooks").glob("*.ipynb"))
    rows = re.findall(
        r'^\| <img src="figures/[\w.]+" [^|]*\| \*\*\[[^]]+\]\(notebooks/(\w+)\.ipynb\)\*\*[^|]*'
        r"\]\[colab (\w+)\]<br>[A-Z][^|]+\. \|$", text, re.M,
    )  # fmt: skip
    assert rows == [(name, name) for name in notebooks]
    assert re.findall(r"^\[colab (\w+)\]: \S+$", text, re.M) == notebooks


def test_every_file_it_links_to_is_there():
    text = (HOUSE / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    missing = [link for link in links if "//" not in link and not (HOUSE / link).exists()]
    assert len(links) > 15 and not missing
