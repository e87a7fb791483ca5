"""Writes the repository's address into every notebook, and the README's badges: `make address`.

The address is `Repository` in pyproject.toml's [project.urls] and stands there alone. A notebook
needs it where tfkit is not installed yet: in its first cell, and in its badge. Outputs stay.
"""

import json
import re
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
COLAB = "https://colab.research.google.com/"
PLACEHOLDER = "https://example.org/"  # where nobody's repository lies


def address() -> str:
    """Where the repository lies, as pyproject.toml has it."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    return project["urls"]["Repository"].removesuffix("/").removesuffix(".git")


def place(url: str, name: str) -> str:
    """Where Colab opens a notebook: at once where it lies on GitHub, else after an upload."""
    on_github = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", url)
    return f"{COLAB}github/{on_github[1]}/blob/main/notebooks/{name}" if on_github else COLAB


def badge(url: str, name: str) -> str:
    """The line under a notebook's title."""
    hint = "File → Upload notebook; its first cell installs what is missing."
    if url.startswith(PLACEHOLDER):
        hint = "File → Upload notebook; in its first cell set `REPOSITORY` to where tfkit lies."
    elif place(url, name) != COLAB:
        hint = "Its first cell installs what is missing."
    return f"[![Open in Colab]({COLAB}assets/colab-badge.svg)]({place(url, name)}) &nbsp; {hint}"


def install(url: str) -> str:
    """The lines that install tfkit where it is missing, and what its widgets need beside it."""
    return (
        f'    REPOSITORY = "{url}.git"  # see notebooks/address.py\n'
        '    %pip install -q anywidget "tfkit @ git+{REPOSITORY}"\n'
    )


def addressed(text: str, url: str, name: str) -> str:
    """A notebook's text with the address in its badge and in its first cell of code."""
    book = json.loads(text)
    for cell, pattern, lines in (
        (book["cells"][0], r"\[!\[Open in Colab\].*", badge(url, name)),
        (book["cells"][1], r" *REPOSITORY = .*\n *%pip install .*\n", install(url)),
    ):
        source, found = re.subn(pattern, lambda _, to=lines: to, "".join(cell["source"]))
        if found != 1:
            raise ValueError(f"{name}: {found} places that match {pattern!r}; expected one")
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def linked(text: str, url: str) -> str:
    """The README's text with the links of its badges, one for each notebook."""

    def link(found: re.Match[str]) -> str:
        return f"[colab {found[1]}]: {place(url, f'{found[1]}.ipynb')}"

    return re.sub(r"^\[colab (\w+)\]: .*$", link, text, flags=re.M)


def main() -> None:
    README.write_text(linked(README.read_text("utf-8"), address()), "utf-8")
    for notebook in sorted(HERE.glob("*.ipynb")):
        before = notebook.read_text("utf-8")
        after = addressed(before, address(), notebook.name)
        if after != before:
            notebook.write_text(after, "utf-8")
            print(f"wrote {notebook.name}")


if __name__ == "__main__":
    main()
