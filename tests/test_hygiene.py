"""What pre-commit refuses: each rule on a file that breaks it, and all that is there keeps them."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import hygiene
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GOOD = ROOT / "notebooks" / "00_quickstart.ipynb"
BOOK = json.loads(GOOD.read_text())


def first_code(book):
    return next(cell for cell in book["cells"] if cell["cell_type"] == "code")


def last_code(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"][-1]


def test_a_notebook_of_the_house_is_good():
    assert not list(hygiene.check_notebook(GOOD.read_text()))


def untitled(book):
    del book["cells"][0]


def without_installing(book):
    first_code(book)["source"] = ["import tfkit"]


def long(book):
    book["cells"] += [copy.deepcopy(last_code(book)) for _ in range(30)]
    for number, cell in enumerate((c for c in book["cells"] if c["cell_type"] == "code"), 1):
        cell["execution_count"] = number


def never_run(book):
    last_code(book)["execution_count"] = None


def run_twice(book):
    last_code(book)["execution_count"] += 1


def failed(book):
    last_code(book)["outputs"] = [
        {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
    ]


def cleared(book):
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = []


def with_widgets(book):
    book["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def of_one_machine(book):
    last_code(book)["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": ["wrote /home/ada/out.mp4\n"]}
    ]


def of_one_folder(book):
    last_code(book)["source"] = ['clip = tfkit.read_video("/Users/ada/wolf.mp4")']


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (untitled, "does not begin with a title"),
        (without_installing, "does not install"),
        (long, "expected 25 at the most"),
        (never_run, "run all cells"),
        (run_twice, "run all cells"),
        (failed, "ended in an error"),
        (cleared, "its output is missing"),
        (with_widgets, "state of widgets"),
        (of_one_machine, "'/home/ada/out.mp4'"),
        (of_one_folder, "names a place on one machine"),
    ],
)
def test_a_notebook_that_breaks_a_rule_is_refused(change, words):
    book = copy.deepcopy(BOOK)
    change(book)
    problems = list(hygiene.check_notebook(json.dumps(book) + "\n"))
    assert any(words in problem for problem in problems), problems


def test_a_notebook_ends_with_a_new_line():
    (problem,) = hygiene.check_notebook(GOOD.read_text().rstrip())
    assert "new line" in problem


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("notebooks/00_quickstart.ipynb", 1_000_000),
        ("figures/quickstart.gif", 1_500_000),
        ("tfkit/menagerie/weights/unet/model.safetensors", 32_000_000),
        ("tfkit/video.py", 512_000),
        ("tfkit/tables.csv", 1_000_000),
        ("tfkit/tables.csv.bak", 512_000),
        ("README.md", 512_000),
        ("notebooks_of_mine/one.ipynb", 512_000),
    ],
)
def test_a_file_has_a_limit_by_its_folder(path, limit):
    assert not list(hygiene.check_size(Path(path), limit - 1))
    (problem,) = hygiene.check_size(Path(path), limit)
    assert f"less than {limit:,}" in problem


def test_all_that_is_tracked_is_within_its_limit():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {p.relative_to(ROOT): p.stat().st_size for p in paths if p.is_file()}
    assert not [line for p, size in sizes.items() for line in hygiene.check_size(p, size)]


def test_the_command_says_what_is_wrong_with_which_file(tmp_path):
    (tmp_path / "tests").mkdir()
    script = tmp_path / "tests" / "hygiene.py"
    script.write_text(Path(hygiene.__file__).read_text())
    (tmp_path / "figures").mkdir()
    large, small = tmp_path / "figures" / "large.png", tmp_path / "figures" / "small.png"
    large.write_bytes(bytes(1_500_000))
    small.write_bytes(b"")
    good = subprocess.run([sys.executable, script, small], capture_output=True, text=True)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = subprocess.run([sys.executable, script, small, large], capture_output=True, text=True)
    assert bad.returncode == 1
    assert bad.stderr.startswith("figures/large.png: has 1,500,000 bytes")


def test_pre_commit_needs_nothing_but_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/python ")
