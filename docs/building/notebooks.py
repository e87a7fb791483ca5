"""Brings the notebooks, as they were committed, to where Sphinx reads them."""

import json
import re
from pathlib import Path

BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)")
PLACES = {"../tfkit/menagerie/weights/README.md": "../model-card.md"}


def adapted(markdown: str) -> str:
    """Without pictures from the network, and with links to pages in place of files."""
    markdown = BADGE.sub(r"[Open in Colab](\1)", markdown)
    for file, page in PLACES.items():
        markdown = markdown.replace(f"]({file})", f"]({page})")
    return markdown


def bring(app) -> None:
    """Copies notebooks/*.ipynb; a copy is touched only where it would change."""
    source, target = Path(app.srcdir).parent / "notebooks", Path(app.srcdir) / "notebooks"
    target.mkdir(exist_ok=True)
    names = {path.name for path in source.glob("*.ipynb")}
    for path in target.glob("*.ipynb"):
        if path.name not in names:
            path.unlink()
    for name in names:
        notebook = json.loads((source / name).read_text("utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = adapted("".join(cell["source"]))
        text, copy = json.dumps(notebook), target / name
        if not copy.exists() or copy.read_text("utf-8") != text:
            copy.write_text(text, "utf-8")


def setup(app):
    app.connect("builder-inited", bring, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
