"""The study's page alone, where nobody takes an answer: it says so, and leaves nothing behind."""

from base64 import b64encode

import numpy as np
import pytest

from tfkit.menagerie import film
from tfkit.video import to_uint8
from tfkit.widgets import PreferenceStudy, page

# A second view on a model that counts listeners and messages, and that Python never answers.
SECOND = """async (module) => {
  const { default: widget } = await import("data:text/javascript;base64," + module);
  const state = JSON.parse(document.getElementById("state").textContent, (key, value) =>
    value?.base64 === undefined ? value :
      new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer));
  const heard = [], sent = [], pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const model = {
    get: (name) => state[name], send: (message) => sent.push(message),
    on: (...pair) => heard.push(pair),
    off: (e, f) => heard.splice(heard.findIndex((pair) => pair[0] === e && pair[1] === f), 1),
  };
  const el = document.body.appendChild(document.createElement("div"));
  let drawn = 0, asked = 0;
  el.addEventListener("studied", () => drawn++);
  const leave = widget.render({ model, el });
  const key = (key, repeat) => el.firstChild.dispatchEvent(
    new KeyboardEvent("keydown", { key, repeat, bubbles: true }));
  key("ArrowLeft"); // nothing is shown yet: no answer
  while (el.querySelector("button").disabled) await pause(20);
  await pause(800);
  key(" "); // plays, of the two views this one alone
  key("ArrowLeft", true); // a key held from the question before
  key("ArrowRight");
  key("ArrowLeft"); // too late
  await pause(4300);
  const alarm = el.querySelector(".alarm").innerText;
  el.querySelector(".alarm button").click();
  const alive = [heard.length, drawn, el.children.length];
  leave();
  const request = window.requestAnimationFrame;
  window.requestAnimationFrame = (f) => { asked++; return request(f); };
  await pause(600);
  window.requestAnimationFrame = request;
  return { alive, left: [heard.length, drawn, el.children.length], asked, sent, alarm };
}"""
PIXELS = """(name) => {
  const canvas = document.querySelector(`.tfkit-study .${name} canvas`);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Array.from(data);
}"""


@pytest.fixture
def study(tmp_path):
    clip = film("a red cat on snow", frames=6, seed=1)
    edits = {"TokenFlow": clip.frames.flip(1), "per frame": 1 - clip.frames}
    return PreferenceStudy([(clip, edits, "a blue cat")], file=tmp_path / "a.jsonl", fps=10)


@pytest.fixture
def show(study, opened, tmp_path):
    def open_page(**options):
        names = ("trial", "total", "question", "prompt", "problem", "_data")
        state = {name: getattr(study, name) for name in names}
        made = page.write(
            tmp_path / "p.html", state, module=study._esm, style=study._css, title="Study"
        )
        shown = opened(made.as_uri(), offline=True, **options)
        shown.wait_for_selector(".tfkit-study .left button:enabled")
        return shown

    return open_page


def test_three_films_play_in_step_and_reduced_motion_waits(show, study):
    page = show(reduced_motion="reduce")
    page.wait_for_timeout(500)
    pair, trial = study._pairs[0], study._left[0]
    pixels = {n: np.array(page.evaluate(PIXELS, n)) for n in ("source", "left", "right")}
    for name, i in zip(pixels, study._order(trial), strict=True):
        shown = pixels[name].reshape(128, 128, 4)[..., :3]
        assert np.array_equal(shown, next(to_uint8(pair.videos[i])))  # the first frame, still
    still = page.evaluate(f"String(({PIXELS})('left'))")
    page.locator(".tfkit-study").focus()
    page.keyboard.press(" ")
    page.wait_for_function(f"first => String(({PIXELS})('left')) !== first", arg=still)


def test_an_answer_nobody_takes_is_told_and_fits_a_phone(show):
    page = show(viewport={"width": 360, "height": 640}, has_touch=True)
    page.get_by_role("button", name="The left video").click()
    page.get_by_text("NOT SAVED: “left” for question 1").wait_for()
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_one_choice_is_one_answer_and_a_view_that_is_left_leaves_nothing(show, study):
    found = show(reduced_motion="reduce").evaluate(SECOND, b64encode(study._esm.encode()).decode())
    assert [(m["trial"], m["choice"], m["sent"]) for m in found["sent"]] == [
        (0, "right", 1),
        (0, "right", 2),
    ]
    assert 0.7 < found["sent"][0]["seconds"] < 5
    assert found["alarm"].startswith("NOT SAVED: “right” for question 1. The kernel does not")
    assert found["alive"][0] >= 4 and found["alive"][1] > 10 and found["alive"][2] == 1
    assert found["left"] == [0, found["alive"][1], 0] and found["asked"] == 0
