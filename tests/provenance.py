"""What each figure is made from. figures/README.md says it; where that is no more so, it is stale.

A figure comes from the cell of a notebook that saves it, or from the demo. Its provenance is two
digests: of the code up to that cell, and of the weights or the table that the code starts from.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path("tfkit/demo.py")
WEIGHTS, TABLE = Path("tfkit/menagerie/weights"), Path("tfkit/tables.csv")
_SAVED = re.compile(r'(?<=FIGURES / ")[^"]+|(?<=")quickstart\.\w+')
_SEED = re.compile(r"^SEED.*", re.MULTILINE)
INTRODUCTION = """\
# Figures

`make figures` makes them all again, and this list; `make figures NOTEBOOKS=notebooks/03*` those of
some notebooks. The last column has digests of the code up to the cell and of the weights (for
notebook 11: of the table) it starts from: where they have changed, `make test` calls the figure
stale. It also draws every figure anew and compares.

| figure | made by | cell | under the heading | from |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Origin:
    """Where a figure comes from: a path from the root, and the cell by the number Jupyter shows."""

    figure: str
    source: Path
    cell: int | None
    heading: str
    start: Path  # the weights, or the table
    code: str  # digests
    data: str

    def row(self) -> str:
        """Its line in the list of figures."""
        name = self.source if self.source == DEMO else self.source.stem
        cells = (
            f"[`{self.figure}`]({self.figure})", f"[`{name}`](../{self.source.as_posix()})",
            self.cell or "", self.heading, f"`{self.code}-{self.data}`",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"

    def stale(self, made_from: str | None) -> str | None:
        """Why the figure is not what would be made now, and the remedy; None where it is."""
        if made_from is None:
            why = "nothing in figures/README.md says what it was made from"
        else:
            place = (
                DEMO if self.cell is None else f"the code up to cell {self.cell} of {self.source}"
            )
            now = ((place, self.code), (self.start, self.data))
            pairs = zip(now, made_from.split("-"), strict=True)
            changed = [str(what) for (what, digest), before in pairs if digest != before]
            why = f"{' and '.join(changed)} changed since it was made"
            if not changed:
                return None
        return f"figures/{self.figure} is stale: {why}. {remedy(self.source)}"


def remedy(source: Path) -> str:
    """What to do about a stale figure of a notebook or the demo."""
    return f"To make it again: make figures NOTEBOOKS={source.as_posix()}"


def sources(root: Path = ROOT) -> list[Path]:
    """Notebooks that save figures, and the demo, as paths from the root."""
    notebooks = sorted(path.relative_to(root) for path in root.glob("notebooks/*.ipynb"))
    return [path for path in (*notebooks, DEMO) if origins(path, root)]


def origins(source: Path, root: Path = ROOT) -> list[Origin]:
    """The figures of a notebook or of the demo, in the order they are made."""
    if source == DEMO:
        cells = [(None, "`make demo`", (root / DEMO).read_text())] if (root / DEMO).exists() else []
    else:
        cells = _code_cells(json.loads((root / source).read_text()))
    data, found, before = {path: data_digest(root / path) for path in (WEIGHTS, TABLE)}, [], []
    for cell, heading, code in cells:
        # how tfkit is installed and what is imported draws nothing
        whole = before or source == DEMO
        before.append(code if whole else "\n".join(_SEED.findall(code)))
        so_far = "\n\n".join(before)
        start = TABLE if "read_table(" in so_far else WEIGHTS
        digests = _digest(so_far.encode()), data[start]
        names = dict.fromkeys(_SAVED.findall(code))
        found += [Origin(name, source, cell, heading, start, *digests) for name in names]
    return found


def _code_cells(book: dict):
    """Yield (number, heading above it, code) of each code cell."""
    number, heading = 0, ""
    for cell in book["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield (number := number + 1), heading, text
        else:
            heading = ([heading, *re.findall(r"^#+ (.+)", text, re.MULTILINE)])[-1]


def data_digest(path: Path) -> str:
    """Of a table and those beside it, or of the models below a folder, but not of their card."""
    parts = path.glob("*/*") if path.is_dir() else path.parent.glob(f"{path.stem}*{path.suffix}")
    return _digest(*(part.read_bytes() for part in sorted(parts) if part.is_file()))


def _digest(*texts: bytes) -> str:
    digest = sha256()
    for text in texts:
        digest.update(sha256(text).digest())
    return digest.hexdigest()[:8]


def listed(root: Path = ROOT) -> dict[str, str]:
    """The digests that figures/README.md has of each figure, "code-data"."""
    path = root / "figures" / "README.md"
    text = path.read_text() if path.exists() else ""
    return dict(re.findall(r"^\| \[`([^`]+)`\].* `(\w+-\w+)` \|$", text, re.MULTILINE))


def list_of_figures(made: Iterable[Path] = (), root: Path = ROOT) -> str:
    """What figures/README.md says: new digests for what was just made, the others as they were."""
    before, rows = listed(root), []
    for source in sources(root):
        for origin in origins(source, root):
            code, data = origin.code, origin.data
            if source not in made:
                code, _, data = before.get(origin.figure, "-").partition("-")
            rows.append(replace(origin, code=code, data=data).row())
    return INTRODUCTION + "\n".join(rows) + "\n"


def write_list(made: Iterable[Path] = (), root: Path = ROOT) -> None:
    """Writes figures/README.md."""
    text = list_of_figures(made, root)
    (root / "figures" / "README.md").write_text(text)


if __name__ == "__main__":
    write_list()  # where only headings and the order of cells have changed
