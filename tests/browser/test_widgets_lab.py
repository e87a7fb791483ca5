"""What the widgets have in common in JupyterLab: pictures that show, and keys that are theirs."""

import pytest

RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"
CELLS = "jupyterapp.shell.currentWidget.content.widgets.map((cell) => cell.model.type)"
MAKE = """
import tfkit, torch
from tfkit.menagerie import film
from tfkit import widgets
torch.set_num_threads(1)
clip = film("a red cat on snow", frames=4, seed=1)
tokens = {(1, "up.3"): torch.randn(4, 256, 16)}
"""
KINDS = {
    "explorer": "widgets.CorrespondenceExplorer(clip, tokens)",
    "components": "widgets.PCAExplorer(clip, tokens)",
    "compare": "widgets.VideoCompare({'source': clip, 'negative': 1 - clip.frames})",
    "stepper": """
model = tfkit.load()
source = tfkit.invert(model, clip.frames[:2], steps=2, progress=False)
widgets.EditStepper(tfkit.EditSession(model, source, "a dog", propagation=tfkit.PerFrame()))""",
    "study": "widgets.PreferenceStudy([(clip, {'a': clip.frames, 'b': 1 - clip.frames}, 'a cat')])",
}


def test_pictures_of_ipywidgets_show_and_have_titles(notebook):
    page = notebook(
        [MAKE, "widgets.CaptionComposer()", "widgets.Flipbook({(0,): clip.frames[0]}, ['step'])"]
    )
    page.evaluate(RUN_ALL)
    page.wait_for_function("document.querySelectorAll('.jp-OutputArea img[title]').length === 2")
    pictures = page.locator(".jp-OutputArea img[title]")
    for i in range(2):
        pictures.nth(i).scroll_into_view_if_needed()
        box = pictures.nth(i).bounding_box()
        assert box["width"] == box["height"] >= 128  # neither stretched nor broken
        assert pictures.nth(i).evaluate("(picture) => picture.naturalWidth") >= 128

    menu = page.locator(".jp-OutputArea select").first
    before = menu.bounding_box()["width"]
    caption = page.locator(".jp-OutputArea input[type=text]").first
    caption.fill("a green unicorn on the moon")
    caption.press("Enter")
    page.get_by_text("unicorn").last.wait_for()  # a long answer, which lists the known words
    assert menu.bounding_box()["width"] == before


@pytest.mark.parametrize("name", KINDS)
def test_keys_in_a_widget_change_no_cell(notebook, name):
    page = notebook([MAKE, KINDS[name], "1 + 1"])
    page.evaluate(RUN_ALL)
    root = page.locator(f".tfkit-{name}")
    root.wait_for()
    root.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    before = page.evaluate(CELLS)
    inside = "canvas[tabindex], select, button:enabled, input[type=checkbox], input[type=range]"
    for i in range(min(root.locator(inside).count(), 6)):
        for key in "abxmrydd":  # in JupyterLab: insert, cut, convert, delete
            root.locator(inside).nth(i).focus()
            page.keyboard.press(key)
    assert page.evaluate(CELLS) == before and root.count() == 1


def test_keys_that_buttons_name_work_on_them(notebook):
    page = notebook([MAKE, KINDS["stepper"]])
    page.evaluate(RUN_ALL)
    page.get_by_text("0 of 2", exact=True).wait_for()
    page.get_by_role("button", name="Play").focus()
    page.keyboard.press("n")
    page.get_by_text("1 of 2", exact=True).wait_for()
    page.keyboard.press("b")
    page.get_by_text("0 of 2", exact=True).wait_for()
