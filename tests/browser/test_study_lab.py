"""The study and the comparison in JupyterLab: between page and Python, and after Python is gone."""

import json
from itertools import pairwise

from pages import ASK, KERNEL, RUN

MAKE = """
import torch
from tfkit.menagerie import film
from tfkit.widgets import PreferenceStudy
torch.set_num_threads(1)
clip = film("a red cat on snow", frames=6, seed=1)
edits = {"TokenFlow": clip.frames.flip(1), "per frame": 1 - clip.frames}
pairs = [(clip, edits, f"a cat, {i}") for i in range(5)]
study = PreferenceStudy(pairs, file="answers.jsonl")
study
"""
COMPARE = """
from tfkit.menagerie import film
from tfkit.widgets import VideoCompare
clip = film("a red cat on snow", frames=6, seed=1)
compare = VideoCompare({"source": clip, "negative": 1 - clip.frames}, fps=10)
compare
"""
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"


def asked(page, number):
    """Waits until a question can be answered."""
    page.get_by_text(f"Question {number} of 5").wait_for()
    page.wait_for_selector(".tfkit-study .left button:enabled")


def test_answers_land_in_the_file_and_a_lost_one_is_told(notebook, lab):
    file = lab[1] / "answers.jsonl"

    def choices():
        return [json.loads(line)["choice"] for line in file.read_text().splitlines()[1:]]

    page = notebook([MAKE])
    page.evaluate(RUN_ALL)
    asked(page, 1)
    study = page.locator(".tfkit-study")
    study.scroll_into_view_if_needed()
    told = study.inner_html() + (study.get_attribute("aria-label") or "")
    assert "TokenFlow" not in told and "per frame" not in told and "a cat, " in told
    study.focus()
    page.keyboard.press("ArrowLeft")
    asked(page, 2)
    assert choices() == ["left"]
    page.get_by_role("button", name="The right video").click()
    asked(page, 3)
    assert choices() == ["left", "right"]
    page.keyboard.press(" ")  # pauses; the button that was clicked does not answer again
    page.get_by_role("button", name="Play").wait_for()
    page.evaluate(RUN, "study.answer('right')")  # Python moves the view
    asked(page, 4)
    page.get_by_text("Saved.").wait_for()

    # the disk fails once: told, kept, and saved with a second try
    file.rename(lab[1] / "away")
    study.focus()
    page.keyboard.press("ArrowLeft")
    alarm = page.locator(".tfkit-study .alarm")
    alarm.get_by_text("NOT SAVED: “left” for question 4. It could not be written").wait_for()
    (lab[1] / "away").rename(file)
    alarm.get_by_role("button").click()
    asked(page, 5)
    assert choices() == ["left", "right", "right", "left"] and not alarm.is_visible()

    page.evaluate(f"{KERNEL}.shutdown()")
    page.wait_for_timeout(500)
    study.focus()
    page.keyboard.press("ArrowRight")
    alarm.get_by_text("NOT SAVED: “right” for question 5. The kernel does not answer").wait_for()
    assert len(choices()) == 4
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function("!document.querySelector('.tfkit-study')")


def test_a_study_made_anew_goes_on(notebook):
    page = notebook([MAKE])
    page.evaluate(RUN_ALL)
    asked(page, 5)
    assert page.evaluate(ASK, "[a.choice for a in study.answers]") == str(
        ["left", "right", "right", "left"]
    )
    page.locator(".tfkit-study").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("Thank you: all 5 answers are saved.").wait_for()
    assert page.evaluate(ASK, "study.result().rows[0].answers") == "5"


def test_traits_move_the_comparison_and_it_outlives_the_kernel(notebook):
    page = notebook([COMPARE])
    page.evaluate(RUN_ALL)
    page.wait_for_selector(".tfkit-compare[aria-busy=false]")
    page.evaluate(
        "() => { window.seen = []; addEventListener('compared', e => seen.push(e.detail)) }"
    )
    canvas = page.locator(".tfkit-compare canvas")
    page.evaluate(RUN, "compare.frame, compare.view = 2, 'difference'")  # Python moves the view
    page.wait_for_function("seen.at(-1)?.frame === 2 && seen.at(-1).view === 'difference'")
    canvas.focus()
    page.keyboard.press("ArrowRight")  # the view moves Python
    page.wait_for_timeout(500)
    assert page.evaluate(ASK, "(compare.frame, compare.playing)") == "(3, False)"
    page.evaluate("seen.length = 0")
    page.evaluate(RUN, "compare.playing = True")
    page.wait_for_function("seen.length >= 12")
    frames = page.evaluate("seen.map((e) => e.frame)")
    back = [b for a, b in pairwise(frames) if (b - a) % 6 > 3]
    assert not back  # Python's echo never sets it back
    page.keyboard.press(" ")
    page.wait_for_timeout(600)
    shown = page.evaluate("seen.at(-1).frame")
    assert page.evaluate(ASK, "(compare.frame, compare.playing)") == f"({shown}, False)"

    page.evaluate(f"{KERNEL}.shutdown()")
    page.wait_for_timeout(500)
    before = canvas.screenshot()
    page.keyboard.press("w")
    page.wait_for_function("seen.at(-1).view === 'wipe'")
    page.keyboard.press(" ")
    page.evaluate("seen.length = 0")
    page.wait_for_function("new Set(seen.map((e) => e.frame)).size === 6")
    page.keyboard.press(" ")
    assert canvas.screenshot() != before
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function("!document.querySelector('.tfkit-compare')")
