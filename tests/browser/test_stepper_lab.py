"""The stepper in JupyterLab: steps played, stopped, interrupted, branched; and then no kernel."""

import io

import numpy as np
from pages import ASK, KERNEL, RUN
from PIL import Image

MAKE = """
import time
import torch
torch.set_num_threads(1)
import tfkit
from tfkit.menagerie import film
from tfkit.widgets import EditStepper
model = tfkit.load()
model.unet.register_forward_pre_hook(lambda *_: time.sleep(0.1))  # a step is long enough to stop
clip = film("a striped dog on grass", frames=6, seed=3)
source = tfkit.invert(model, clip, steps=6, progress=False)
def session(steps=0):
    flow = tfkit.TokenFlow(interval=3)
    made = tfkit.EditSession(model, source, "a red cat on snow", propagation=flow, batch=1)
    return made.step(steps)
stepper = EditStepper(session())
stepper
"""
SAME = "torch.equal(stepper.session.latents, session(stepper.position).latents)"


def started(notebook):
    page = notebook([MAKE, "1 + 1"])
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("window.explored.length && explored.at(-1).ready")
    page.locator(".tfkit-stepper").scroll_into_view_if_needed()
    return page


def last(page, condition="true"):
    """What is shown, once its pictures are there and it fulfils a condition on ``e``."""
    try:
        page.wait_for_function(f"(e => e.ready && ({condition}))(explored.at(-1))")
    except Exception as error:  # Playwright's, which may not be there to be imported
        seen = page.evaluate("explored.slice(-3).map((e) => JSON.stringify(e))")
        raise AssertionError(f"expected {condition}; last seen: {' '.join(seen)}") from error
    return page.evaluate("explored.at(-1)")


def click(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def strip(page, which=0):
    shot = page.locator(".tfkit-stepper canvas").nth(which).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)


def test_an_edit_is_played_stopped_changed_and_branched(notebook):
    page = started(notebook)
    first = strip(page)
    assert first.std() > 30  # not blank

    click(page, "Step ▶")
    seen = last(page, "e.position === 1")
    assert page.evaluate(ASK, "stepper.session.keyframes[0].tolist()") == str(seen["keyframes"])
    assert np.abs(strip(page) - first).mean() > 5

    click(page, "Play")  # and stop, while a step is under way: that one is finished, no other begun
    page.wait_for_function("explored.at(-1).position >= 2 && explored.at(-1).progress[0] >= 1")
    click(page, "Stop")
    stopped = last(page, "!e.playing && !e.progress.length")["position"]
    page.wait_for_timeout(1500)
    assert last(page)["position"] == stopped < 6
    assert page.evaluate(ASK, f"(stepper.position, stepper.playing, {SAME})") == str(
        (stopped, False, True)
    )
    told = page.evaluate("explored.map((e) => e.progress.join('/'))")
    # a pass of each branch of the keyframes, and of each of four other frames the source, the edit
    assert {"0/11", "1/11", "5/11"} <= set(told)

    click(page, "Step ▶")  # interrupted in the middle, it was not taken
    page.wait_for_function("explored.at(-1).progress[0] >= 1")
    page.evaluate(f"{KERNEL}.interrupt()")
    seen = last(page, "e.message")
    assert "Interrupted: the step was not taken." in seen["message"]
    assert seen["position"] == stopped
    click(page, "Step ▶")
    last(page, f"e.position === {stopped + 1} && !e.message")
    assert page.evaluate(ASK, SAME) == "True"

    page.evaluate(RUN, "stepper.position = 2")  # Python moves the view
    last(page, "e.position === 2")
    page.get_by_label("guidance").fill("")
    click(page, "Apply from here on")
    assert "guidance=None: expected a finite number" in last(page, "e.message")["message"]
    page.get_by_label("guidance").fill("5")
    page.get_by_label("prompt").fill("a blue dog on grass")
    click(page, "Branch")
    last(page, "e.branches.length === 2 && e.active === 'B'")
    page.get_by_label("prompt").press("Enter")
    page.get_by_label("step all branches").check()
    click(page, "Step ▶")
    last(page, "e.position === 3")
    asked = "[(s.plan.prompt, s.plan.guidance, s.position) for s in stepper.sessions.values()]"
    want = [("a red cat on snow", 7.5, 3), ("a blue dog on grass", 5.0, 3)]
    assert page.evaluate(ASK, asked) == str(want)
    page.wait_for_timeout(500)
    shape = np.minimum(strip(page, 0).shape, strip(page, 1).shape)
    one, other = (strip(page, which)[: shape[0], : shape[1]] for which in (0, 1))
    assert np.abs(one - other).mean() > 3  # the two part

    page.evaluate(RUN, "stepper.playing = True")  # nothing goes on without a view
    page.wait_for_function("explored.at(-1).progress.length")
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.wait_for_function("!document.querySelector('.tfkit-stepper')")
    count = page.evaluate("explored.length")
    page.wait_for_timeout(3000)
    assert page.evaluate(ASK, "(stepper.playing, stepper.position)") == "(False, 4)"
    assert page.evaluate("explored.length") == count


# What the page asks of the kernel is lost on its way, until `found` is called
LOSE = """() => {
  const send = WebSocket.prototype.send;
  window.lost = [];
  window.found = () => { WebSocket.prototype.send = send; };
  WebSocket.prototype.send = function (data) {
    const words = typeof data === "string" ? data : new TextDecoder().decode(data);
    const asked = words.match(/"do":"(\\w+)"/);
    if (asked) lost.push(asked[1]);
    else send.call(this, data);
  };
}"""


def test_a_lost_message_is_noticed_and_asked_again(notebook):
    page = started(notebook)
    page.evaluate(LOSE)
    click(page, "Step ▶")
    page.wait_for_function("lost.includes('tell')")  # the first of these is lost as well
    assert page.evaluate("lost[0]") == "step"
    assert last(page, "e.message")["message"].startswith("Waiting for the kernel")
    assert page.get_by_role("button", name="Step ▶").is_disabled()
    page.evaluate("found()")
    assert last(page, "!e.message")["position"] == 0
    click(page, "Step ▶")
    last(page, "e.position === 1 && !e.message")


def test_steps_play_again_under_a_moving_mouse_and_after_they_are_forgotten(notebook):
    page = started(notebook)
    page.evaluate(RUN, "stepper.step(4); stepper.position = 0")
    last(page, "e.position === 0 && !e.progress.length")
    box = page.locator(".tfkit-stepper canvas").bounding_box()
    click(page, "Play")
    for i in range(40):  # every move draws anew, and each is sooner than the next step
        page.mouse.move(box["x"] + 30 + i, box["y"] + 60)
        page.wait_for_timeout(50)
    click(page, "Stop")
    assert last(page, "!e.playing && !e.progress.length")["position"] >= 2

    page.evaluate(RUN, "stepper.session.run(progress=False); stepper.refresh()")
    assert last(page, "e.position === 6")["message"] == ""
    slide = page.get_by_label("steps taken")
    assert slide.get_attribute("min") == "5"
    click(page, "◀ Back")  # to what the last step began from, and no further
    last(page, "e.position === 5")
    assert page.get_by_role("button", name="◀ Back").is_disabled()
    click(page, "Step ▶")
    last(page, "e.position === 6")


def test_hovering_shows_weights_and_fields_and_outlives_the_kernel(notebook):
    page = started(notebook)
    page.locator(".tfkit-stepper canvas").focus()
    page.keyboard.press("n")  # its keys are its own, not JupyterLab's
    seen = last(page, "e.position === 1 && !e.progress.length")
    box, before = page.locator(".tfkit-stepper canvas").bounding_box(), strip(page)
    frame = next(i for i in range(6) if i not in seen["keyframes"])
    page.evaluate(RUN, f"stepper.probe = [{frame}, 60.0, 70.0]")
    found = last(page, "e.found")["found"]
    python = "[[round(v, 2) for v in row] for row in stepper.matches().tolist()]"
    assert page.evaluate(ASK, python) == str([[float(round(v, 2)) for v in row] for row in found])
    page.wait_for_timeout(500)
    page.locator(".told").filter(has_text="takes").wait_for()
    assert np.abs(strip(page) - before).max() > 50  # marks

    page.mouse.move(box["x"] + 30, box["y"] + 60)  # no pass for another place: it is all there
    other = last(page, f"JSON.stringify(e.found) !== '{str(found).replace(' ', '')}'")
    page.wait_for_timeout(500)
    assert page.evaluate(ASK, "stepper.probe[0]") == "0"
    print(f"\n{other['ms']:.1f} ms to draw a strip of 6 frames")

    page.evaluate(f"{KERNEL}.restart()")
    page.wait_for_timeout(2000)
    click(page, "◀ Back")
    assert "The kernel is gone" in last(page, "e.gone && e.position === 0")["message"]
    assert page.get_by_role("button", name="Step ▶").is_enabled()  # over steps that were seen
    page.keyboard.press("Escape")
    still = strip(page)
    click(page, "Step ▶")
    last(page, "e.position === 1")
    assert np.abs(strip(page) - still).mean() > 5
    assert page.get_by_role("button", name="Step ▶").is_disabled()
    assert page.get_by_role("button", name="Play").is_disabled()
