"""What tfkit is installed from: one list of dependencies, its pins, the set-up and the Makefile."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# fmt: off
ALLOWED_AT_TOP = {
    "notebooks", "tfkit", "figures", "tests", "environment.yml", "README.md", "pyproject.toml",
    "LICENSE", "Makefile", ".ci", ".gitignore", ".gitattributes", "constraints.txt", "setup_env.py",
    "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks", "docs",
    ".pre-commit-config.yaml",
}
# fmt: on
HANDS_TO_PIP = ["constraints.txt", "environment.yml", "setup_env.py", "Makefile", ".ci/run"]


def by_name(lines):
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


CORE = by_name(PROJECT["dependencies"])
WITH = ("notebooks", "dev", "adapters", "evaluation", "cluster", "docs")
DIRECT = CORE | by_name(line for extra in WITH for line in EXTRAS[extra])
ASKED = DIRECT | by_name(EXTRAS["browser"])
PINS = by_name(
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
)


@pytest.fixture(scope="module")
def setup_env():
    """The set-up script as a module: it is no part of the package."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, **options):
    return subprocess.run(command, **{"cwd": ROOT, "capture_output": True, "text": True} | options)


def git(*arguments):
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    return run("git", *arguments)


# --- Dependencies ---


def test_environment_yml_adds_only_python_and_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python = "python" + PROJECT["requires-python"]
    assert environment["dependencies"] == [python, "pip", {"pip": ["-e .[all]"]}]


def test_all_is_every_other_extra_but_the_browsers():
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"all", "browser"}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_dependencies_have_a_lower_bound_and_no_other(name):
    assert [s.operator for s in ASKED[name].specifier] == [">="]


@pytest.mark.parametrize("name", sorted(ASKED))
def test_dependencies_are_pinned_within_their_bound(name):
    assert name in PINS, f"constraints.txt has no pin for {name}"
    (pin,) = PINS[name].specifier
    assert pin.operator == "=="
    assert ASKED[name].specifier.contains(pin.version), f"{PINS[name]} is not {ASKED[name]}"


def test_constraints_pin_each_package_once_and_exactly():
    lines = re.findall(r"^[^#\n].*", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(lines) == len(PINS)
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)


@pytest.mark.parametrize(
    ("name", "version"), [("torch", "2.8.0"), ("diffusers", "0.39.0"), ("ipywidgets", "7.7.1")]
)
def test_colab_has_what_tfkit_asks_for(name, version):
    assert DIRECT[name].specifier.contains(version)
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.13")


def test_torchvision_is_never_asked_for():
    assert "torchvision" not in DIRECT
    assert "torchvision" not in PINS


@pytest.mark.parametrize("name", HANDS_TO_PIP)
def test_the_index_is_the_users_choice(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)


def imported(folder):
    """Other people's packages that the modules in a folder import, whatever is there.

    Left out are guarded imports, and those that only the type checker follows.
    """
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text())
        guarded = {
            id(inner)
            for block in ast.walk(tree)
            if (isinstance(block, ast.Try) and block.handlers)
            or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
            for statement in block.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if id(node) in guarded:
                continue
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names:
                if name != PROJECT["name"] and not list(ROOT.glob(f"tests/{name}*")):
                    yield name, path


@pytest.mark.parametrize(("folder", "declared"), [("tfkit", CORE), ("tests", DIRECT)])
def test_what_is_imported_is_declared(folder, declared):
    owners = packages_distributions()
    for name, path in imported(ROOT / folder):
        widget = ROOT / "tfkit" / "widgets" in path.parents  # only there an extra's packages may be
        allowed = DIRECT if widget else declared
        candidates = {canonicalize_name(owner) for owner in owners.get(name, [name])}
        assert candidates & set(allowed), f"{path} imports {name}, which no dependency brings"


def test_the_console_script_exists():
    module, _, function = PROJECT["scripts"]["tfkit"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_users_type_checkers_are_told_that_there_are_types():
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "tfkit" / "py.typed").is_file()
    assert git("check-ignore", "--no-index", "tfkit/py.typed").returncode == 1


# --- The tree ---


def test_the_top_level_holds_only_what_was_designed():
    tracked = {path.partition("/")[0] for path in git("ls-files").stdout.splitlines()}
    assert tracked <= ALLOWED_AT_TOP, f"new at the top level: {sorted(tracked - ALLOWED_AT_TOP)}"


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("tfkit/menagerie/weights/unet/diffusion_pytorch_model.safetensors", False),
        ("figures/quickstart.mp4", False),
        ("notebooks/00_quickstart.ipynb", False),
        (".venv/bin/python", True),
        ("runs/menagerie/unet.safetensors", True),
        ("out.mp4", True),
        ("docs/index.md", False),
        ("docs/_build/html/index.html", True),
        ("docs/notebooks/00_quickstart.ipynb", True),
        ("notebooks/.ipynb_checkpoints/00_quickstart-checkpoint.ipynb", True),
    ],
)
def test_git_tracks_figures_and_weights_but_not_leftovers(path, ignored):
    # --no-index: the rules alone, whatever is tracked already
    assert git("check-ignore", "--no-index", path).returncode == (not ignored)


# --- The set-up ---


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13)])
def test_an_old_python_is_refused_by_name(setup_env, version):
    message = setup_env.version_error(version, "/opt/bin/python3")
    assert "/opt/bin/python3" in message
    assert ".".join(map(str, version)) in message
    assert "3.11 or newer" in message
    assert "make setup PYTHON=" in message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 2), (4, 0, 0)])
def test_a_newer_python_is_accepted(setup_env, version):
    assert setup_env.version_error(version, "python3") is None


def test_the_fingerprint_follows_sources_place_and_python(setup_env, tmp_path):
    for name in setup_env.SOURCES:
        (tmp_path / name).write_text("as it was")
    before = setup_env.fingerprint(tmp_path, (3, 11, 7))
    assert before == setup_env.fingerprint(tmp_path, (3, 11, 9))
    assert before != setup_env.fingerprint(tmp_path, (3, 12, 7))
    for name in setup_env.SOURCES:
        (tmp_path / name).write_text("changed")
        after = setup_env.fingerprint(tmp_path, (3, 11, 7))
        assert after != before
        assert after.splitlines()[0] == before.splitlines()[0]
        before = after
    moved = shutil.copytree(tmp_path, tmp_path / "moved")
    assert setup_env.fingerprint(moved, (3, 11, 7)).splitlines()[0] != before.splitlines()[0]


@pytest.mark.parametrize(
    ("note", "healthy", "expected"),
    [
        ("/here python 3.11\nabc", True, "keep"),
        ("/here python 3.11\nabc", False, "remake"),
        ("/here python 3.11\nold", True, "update"),
        ("/moved python 3.11\nabc", True, "remake"),
        ("/here python 3.10\nabc", True, "remake"),
        ("unfinished", True, "remake"),
        ("", True, "remake"),
        (None, True, "update"),
        (None, False, "remake"),
    ],
)
def test_what_happens_to_an_environment(setup_env, note, healthy, expected):
    assert setup_env.plan(note, "/here python 3.11\nabc", healthy) == expected


@pytest.mark.parametrize(
    ("complaint", "expected"),
    [
        ("NewConnectionError('<...>: [Errno 111] Connection refused')", "network"),
        ("ERROR: No matching distribution found for numpy==2.4.6", "make setup PYTHON="),
        ("something new", "above"),
    ],
)
def test_a_failure_of_pip_is_explained(setup_env, complaint, expected):
    assert expected in setup_env.explain(complaint)


def test_a_failed_set_up_says_so_and_stays_unfinished(setup_env, tmp_path):
    for name in setup_env.SOURCES:
        shutil.copy(ROOT / name, tmp_path)
    offline = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    offline |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    failed = run(sys.executable, "setup_env.py", cwd=tmp_path, env=offline)
    assert failed.returncode == 1
    assert "Set-up failed." in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (tmp_path / ".venv" / setup_env.NOTE.name).read_text() == setup_env.UNFINISHED


# --- Make and CI ---


def make(*arguments):
    """What make prints, on its own even where make itself runs these tests."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    made = run("make", "--no-print-directory", *arguments, env=environment)
    assert made.returncode == 0, made.stderr
    return made.stdout


def steps(*target):
    """The commands of a make target, in order, without running them."""
    return make("-n", *target).replace("\\\n", " ").splitlines()


@pytest.mark.parametrize(
    "target",
    ["setup", "demo", "figures", "test", "test-slow", "test-browser", "bench", "docs", "lab",
     "lint", "types", "format"],
)  # fmt: skip
def test_each_target_sets_up_first(target):
    assert steps(target)[0].endswith("setup_env.py")


def test_make_test_lints_then_ends_with_the_one_pytest_run():
    _, check, formatting, types, tests = steps("test")
    assert check.endswith("ruff check")
    assert formatting.endswith("ruff format --check")
    assert types.endswith("-m mypy")
    for option in ("-m pytest", "OMP_NUM_THREADS=1", "--nbval-current-env", '-m "not slow"'):
        assert option in tests


def test_make_alone_lists_every_target():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    phony = re.search(r"^\.PHONY: (.*)", text, re.MULTILINE)[1].split()
    assert re.findall(r"^  make (\S+)", make("help"), re.MULTILINE) == phony
    assert steps() == steps("help")


def test_ci_runs_the_tests_and_those_in_a_browser_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert lines[:3] == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
    assert re.findall(r"\bmake ([\w-]+)", "\n".join(lines)) == ["test", "test-browser"]
