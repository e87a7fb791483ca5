"""The correspondence explorer in JupyterLab: between Python and page, and after Python."""

from pages import ASK, KERNEL, RUN

MAKE = """
import torch
from tfkit.menagerie import film
from tfkit.widgets import CorrespondenceExplorer
torch.set_num_threads(1)
clip = film("a red cat on snow", frames=4, seed=1)
explorer = CorrespondenceExplorer(clip, {(1, "up.3"): torch.randn(4, 256, 16)})
explorer
"""


def test_traits_move_the_view_and_the_view_the_traits_and_then_the_kernel_dies(notebook):
    page = notebook([MAKE, "1 + 1"])
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("window.explored.length")
    canvas = page.locator(".tfkit-explorer canvas")
    canvas.scroll_into_view_if_needed()

    page.evaluate(RUN, "explorer.probe = [2, 30.0, 40.0]")  # Python moves the view
    page.wait_for_function("String(explored.at(-1).probe) === '2,30,40'")
    page.evaluate(RUN, "explorer.pins = [[1, 50.0, 60.0]]")
    page.wait_for_function("explored.at(-1).tracks.length === 1")

    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 100)  # the view moves Python
    page.wait_for_function("explored.at(-1).probe[0] === 0")
    page.wait_for_timeout(1000)
    shown = page.evaluate("explored.at(-1).probe.map((v) => Number(v.toFixed(3)))")
    assert page.evaluate(ASK, "[round(float(v), 3) for v in explorer.probe]") == str(
        [float(v) for v in shown]
    )

    page.mouse.click(box["x"] + 60, box["y"] + 120)  # its keys are its own, not JupyterLab's
    page.wait_for_function("explored.at(-1).tracks.length === 2")
    cell = "jupyterapp.shell.currentWidget.content.activeCellIndex"
    active, before = page.evaluate(cell), page.evaluate("explored.at(-1).probe[2]")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"explored.at(-1).probe[2] === {before + 1}")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.wait_for_function("explored.at(-1).tracks.length === 0")
    assert page.evaluate(cell) == active

    page.evaluate(f"{KERNEL}.shutdown()")
    page.wait_for_timeout(1000)
    count, still = page.evaluate("explored.length"), canvas.screenshot()
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    page.wait_for_function(f"explored.length > {count}")
    page.wait_for_timeout(300)
    assert canvas.screenshot() != still

    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function("!document.querySelector('.tfkit-explorer')")
