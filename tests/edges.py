"""Makes .venv-oldest or .venv-newest: the two ends of what pyproject.toml admits.

`make test-oldest` and `make test-newest` run the tests in them. Oldest takes the lower bound of
each package that is named there, and of what those bring along the newest that goes with them.
Newest takes whatever pip finds. Between the two lie Colab's versions and those of `make setup`.
"""

import re
import subprocess
import sys
import venv
from itertools import chain
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
ENDS = ("oldest", "newest")
# One version at both ends: the only one that is sure to be there as a CPU build. Any other would be
# a CUDA build of several GB, twice.
TORCH = re.search(r"^torch==.*", (ROOT / "constraints.txt").read_text("utf-8"), re.M)[0]


def constraints(end: str, project: dict) -> list[str]:
    """What pip is held to. project: that table of pyproject.toml."""
    if end == "newest":
        return [TORCH]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    bounds = [line.replace(">=", "==") for line in lines if ">=" in line]
    return [TORCH, *(line for line in bounds if not line.startswith("torch=="))]


def make(end: str) -> int:
    """Makes or updates the environment; pip's return code."""
    place = ROOT / f".venv-{end}"
    python, held = place / "bin" / "python", place / "constraints.txt"
    if not python.exists():
        venv.EnvBuilder(with_pip=True, symlinks=True, clear=True).create(place)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    held.write_text("\n".join([*constraints(end, project), ""]))
    command = "-m pip install --no-input --disable-pip-version-check --upgrade"
    command = [python, *command.split(), "--upgrade-strategy", "eager", "-c", held, "-e", ".[all]"]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    if sys.argv[1:] not in ([end] for end in ENDS):
        sys.exit(f"expected one of {', '.join(ENDS)}")
    sys.exit(make(sys.argv[1]))
