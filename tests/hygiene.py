"""What is not committed: notebooks out of shape, and files that are too large.

    python tests/hygiene.py FILE ...

prints what is wrong and exits with 1. pre-commit runs it on what is about to be committed,
test_figures.py and test_hygiene.py on all there is.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Bytes that a file may have, by its own path or a folder it lies in, relative to the repository.
LIMITS = {
    "tfkit/menagerie/weights": 32_000_000, "figures": 1_500_000, "notebooks": 1_000_000,
    "tfkit/tables.csv": 1_000_000,  # every number of 13 methods on 72 prompts
}  # fmt: skip
LIMIT = 512_000  # anywhere else
CELLS = 25  # of code in a notebook
# Not within base64, and no part of an address.
MACHINE = re.compile(r"(?<![\w+/=.:-])/(?:home|root|Users|tmp|work)/\w[^\s'\"]*")


def limit_of(path: Path) -> int:
    """How large a file of the repository may be, in bytes."""
    whole = path.as_posix() + "/"
    return next((n for place, n in LIMITS.items() if whole.startswith(place + "/")), LIMIT)


def check_size(path: Path, size: int) -> Iterator[str]:
    """A complaint where a file, its path relative to the repository, is too large."""
    if size >= limit_of(path):
        yield f"has {size:,} bytes; expected less than {limit_of(path):,} there"


def check_notebook(text: str) -> Iterator[str]:
    """What is wrong with a notebook: its shape, or what it was left with."""
    book = json.loads(text)
    cells = book["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    yield from _check_opening(cells, code)
    if len(code) > CELLS:
        yield f"has {len(code)} cells of code; expected {CELLS} at the most"
    if [cell["execution_count"] for cell in code] != [*range(1, len(code) + 1)]:
        yield "was not executed from top to bottom in one go; restart its kernel and run all cells"
    for number, cell in enumerate(code, 1):
        yield from (f"cell {number} of code {problem}" for problem in _check_cell(cell))
    if "widgets" in book["metadata"]:
        yield "holds the state of widgets, which is megabytes; execute it without storing that"
    if not text.endswith("\n"):
        yield "does not end with a new line"


def _check_opening(cells: list[dict], code: list[dict]) -> Iterator[str]:
    first = "".join(cells[0]["source"]) if cells else ""
    if not (first.startswith("# ") and "colab" in first and "**Question.**" in first):
        yield "does not begin with a title, a Colab badge and a **Question.**"
    install = "".join(code[0]["source"]) if code else ""
    if not ("except ImportError" in install and "SEED" in install):
        yield "does not install where `import tfkit` fails and set SEED in its first cell of code"


def _check_cell(cell: dict) -> Iterator[str]:
    if any(output["output_type"] == "error" for output in cell["outputs"]):
        yield "ended in an error"
    if "print(" in "".join(cell["source"]) and not cell["outputs"]:
        yield "prints, and its output is missing"
    for words in ["".join(cell["source"]), *map(_words, cell["outputs"])]:
        if found := MACHINE.search(words):
            yield f"names a place on one machine, {found[0]!r}"
            return


def _words(output: dict) -> str:
    """What can be read in an output; pictures and videos are no words."""
    texts = [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(text) for text in (output.get("text", ""), *texts))


def complaints(path: Path, root: Path) -> list[str]:
    """What is wrong with a file of the repository at ``root``; empty where nothing is."""
    place = path.resolve().relative_to(root.resolve())
    found = [*check_size(place, path.stat().st_size)]
    if path.suffix == ".ipynb":
        found += check_notebook(path.read_text(encoding="utf-8"))
    return [f"{place}: {problem}" for problem in found]


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    wrong = [line for name in sys.argv[1:] for line in complaints(Path(name), root)]
    sys.exit("\n".join(wrong) or 0)
