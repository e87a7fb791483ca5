"""A newcomer's walk: every notebook from top to bottom in JupyterLab, its outputs cleared."""

import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MINUTES = 10  # for a notebook, on a machine that does other things too
CELLS = """() => {
    const kinds = {"application/vnd.jupyter.widget-view+json": "widget", "image/png": "picture"};
    const cells = [...jupyterapp.shell.currentWidget.content.model.cells];
    return cells.filter((cell) => cell.type === "code").map((cell) => {
        const outputs = cell.outputs.toJSON();
        return {
            done: cell.executionCount !== null && cell.executionState !== "running",
            errors: outputs.filter((o) => o.output_type === "error").map((o) => o.evalue),
            kinds: outputs.flatMap((o) => Object.keys(o.data ?? {}).map((kind) => kinds[kind])),
        };
    });
}"""
DONE = f"() => ({CELLS})().every((cell) => cell.done || cell.errors.length)"


@pytest.fixture(scope="module")
def clone(lab):
    """The notebooks without their outputs, in the lab's folder, beside an empty figures/."""
    _, folder = lab
    (folder / "figures").mkdir()
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for path in (folder / "notebooks").glob("*.ipynb"):
        content = json.loads(path.read_text())
        for cell in content["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        path.write_text(json.dumps(content))
    return folder / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(in_lab, clone, name, request):
    page = in_lab(clone / name)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(DONE, timeout=MINUTES * 60_000, polling=500)
    cells = page.evaluate(CELLS)
    assert [error for cell in cells for error in cell["errors"]] == []
    shown = [kind for cell in cells for kind in cell["kinds"] if kind]
    assert "picture" in shown
    for broken in ("Error displaying widget", "Loading widget", "Error creating widget"):
        assert page.get_by_text(broken).count() == 0
    for figure in (ROOT / "figures").glob(f"{name[:2]}_*.png"):
        assert (clone.parent / "figures" / figure.name).is_file(), figure.name
