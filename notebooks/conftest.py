"""A notebook under test draws in a folder apart, and must draw what figures/ holds."""

import checked  # noqa: F401  isort: skip  (before anything that imports tfkit)
from pathlib import Path
from tempfile import TemporaryDirectory

import provenance
import pytest
from nbval.plugin import NbCellError
from pictures import LIMIT, difference


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """With the first cell the kernel starts, in notebooks/: it moves to a place like it."""
    yield
    notebook = item.parent
    if not hasattr(notebook, "drawn"):
        apart = TemporaryDirectory()
        notebook.addfinalizer(apart.cleanup)
        notebook.drawn, here = (Path(apart.name, name) for name in ("figures", "notebooks"))
        notebook.drawn.mkdir()
        here.mkdir()
        # no import, whose name would hide that the notebook lacks it
        kernel = notebook.kernel
        sent = kernel.execute_cell_input(f"__import__('os').chdir({str(here)!r})")
        kernel.await_reply(sent, timeout=60)
        kernel.await_idle(sent, timeout=60)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """After a cell: the figures it saved show the same as those of that name in figures/."""
    yield
    root = item.path.parents[1]
    for drawn in sorted(item.parent.drawn.iterdir()):
        kept = root / "figures" / drawn.name
        far = difference(drawn, kept) if kept.exists() else None
        drawn.unlink()
        if far is None or far > LIMIT:
            why = "there is none yet" if far is None else f"drawn now, it is {far:.0f} of 255 away"
            remedy = provenance.remedy(item.path.relative_to(root))
            message = f"figures/{kept.name} is stale: {why}. {remedy}"
            raise NbCellError(item.cell_num, message, item.cell.source)
