"""The components' explorer in a real browser: its page from a file, with the network off."""

import io
from base64 import b64encode

import numpy as np
import pytest
import torch
from pages import leaving, told
from PIL import Image

from tfkit.menagerie import film
from tfkit.widgets import PCAExplorer

# Drags a line's end once a frame, and measures the frames.
RACE = """async () => {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
  const send = (kind, x, y) => canvas.dispatchEvent(new PointerEvent(kind,
    { pointerId: 1, clientX: box.x + x, clientY: box.y + y, bubbles: true }));
  canvas.setPointerCapture = () => {};
  explored.length = 0;
  const frames = [];
  send("pointerdown", 10, 30);
  for (let i = 0; i < 90; i++) {
    const begun = performance.now();
    send("pointermove", 20 + i, 40 + i);
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - begun);
  }
  send("pointerup", 110, 130);
  return { frames, drawn: explored.length, work: explored.map((e) => e.ms) };
}"""


def tokens(frames, side, width=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    scene = torch.randn(5, side, side + frames, generator=g)
    moved = torch.stack([scene[..., i : i + side].flatten(1).T for i in range(frames)])
    noise = torch.randn(frames, side**2, width, generator=g)
    return moved @ torch.randn(5, width, generator=g) + 0.5 * noise


@pytest.fixture(scope="module")
def explorer():
    clip = film("a striped dog on grass", frames=4, seed=3)
    sides = {"up.3": 32, "up.1": 8}
    return PCAExplorer(clip, {(t, name): tokens(4, n, seed=t) for t in (0, 4)
                              for name, n in sides.items()})  # fmt: skip


@pytest.fixture
def page(explorer, opened, tmp_path):
    """The saved page, drawn; every test begins where the explorer stands."""
    path = explorer.save_html(tmp_path / "page.html")
    page = opened(path.as_uri(), offline=True)
    last(page)
    page.wait_for_timeout(300)
    return page


def last(page, condition="true"):
    """What was drawn last, once the film is there and it fulfils a condition on ``e``."""
    page.wait_for_function(f"(e => e?.ready && ({condition}))(explored.at(-1))")
    return page.evaluate("explored.at(-1)")


def corner(page, which=0):
    box = page.locator("canvas").nth(which).bounding_box()
    return box["x"], box["y"]


def picture(page, which=0):
    """A canvas as it is on the screen, (h, w, 3)."""
    shot = Image.open(io.BytesIO(page.locator("canvas").nth(which).screenshot()))
    return np.asarray(shot.convert("RGB")).astype(float)


def agrees(explorer, detail):
    """Python makes, from the same bytes, the colours and slices that the page has made."""
    for name in ("layer", "timestep", "basis", "components", "strength", "line"):
        setattr(explorer, name, detail[name])
    assert detail["long"] == explorer.slices()["joint"].shape[-1]
    mean = explorer.colors().flatten(0, 1).mean(0)
    torch.testing.assert_close(torch.tensor(detail["mean"]), mean, atol=0.004, rtol=0)
    want = explorer.flicker()
    for name, off in {"joint": 0.004, "frame": 0.004, "film": 0.006}.items():
        assert abs(detail["flicker"][name] - want[name]) < off, name


def back(explorer):
    explorer.layer, explorer.timestep, explorer.basis = "up.3", 0, "joint"
    explorer.components, explorer.strength = [0, 1, 2], [1.0, 1.0, 1.0]
    explorer.line, explorer.probe = [0.0, 64.0, 127.0, 64.0], []


def test_it_shows_frames_and_slices_as_python_has_them(page, explorer):
    seen = last(page)
    agrees(explorer, seen)
    assert picture(page).std() > 30 and picture(page, 1).std() > 20  # not blank
    page.get_by_label("basis").select_option("frame")
    agrees(explorer, last(page, "e.basis === 'frame'"))
    page.get_by_label("layer").select_option("up.1")
    agrees(explorer, last(page, "e.layer === 'up.1'"))
    page.get_by_label("timestep").select_option("4")
    agrees(explorer, last(page, "e.timestep === 4"))
    told(page, "in one basis", "each frame's own")
    back(explorer)


def test_components_and_strengths_recolour_the_frames(page, explorer):
    before, cut = picture(page), picture(page, 1)
    page.get_by_label("component of red").select_option("4")
    agrees(explorer, last(page, "e.components[0] === 4"))
    page.wait_for_timeout(200)
    assert np.abs(picture(page) - before)[30:].mean() > 5
    assert np.abs(picture(page, 1) - cut).mean() > 3
    page.get_by_label("strength of blue").fill("-1")
    agrees(explorer, last(page, "e.strength[2] === -1"))
    for color in ("red", "green", "blue"):
        page.get_by_label(f"strength of {color}").fill("0")
    last(page, "e.mean.every((v) => Math.abs(v - 0.5) < 0.01)")
    page.get_by_role("button", name="Reset").click()
    last(page, "e.strength.every((v) => v === 1) && e.components[0] === 0")
    page.wait_for_timeout(200)
    assert np.abs(picture(page) - before).mean() < 0.5
    back(explorer)


def test_a_line_is_dragged_and_clicked(page, explorer):
    x, y = corner(page)
    before = picture(page, 1)
    page.mouse.move(x + 30, y + 60)
    page.mouse.down()
    page.mouse.move(x + 100, y + 150, steps=4)
    page.mouse.up()
    seen = last(page, "e.line[0] !== 0")
    agrees(explorer, seen)
    assert seen["line"][2] > seen["line"][0] and seen["line"][3] > seen["line"][1]
    page.wait_for_timeout(200)
    assert np.abs(picture(page, 1) - before).mean() > 3
    page.mouse.click(x + 50, y + 100)  # a whole row
    seen = last(page, "e.line[0] === 0 && e.line[2] === 127")
    assert seen["line"][1] == seen["line"][3]
    page.get_by_role("button", name="Column").click()
    agrees(explorer, last(page, "e.line[1] === 0 && e.line[3] === 127"))
    back(explorer)


def test_hovering_a_slice_marks_the_place_in_its_frame(page):
    x, y = corner(page, 1)
    before = picture(page)
    page.mouse.move(x + 100, y + 50)
    probe = last(page, "e.probe.length")["probe"]
    assert 0 <= probe[0] <= 3 and 0.2 < probe[1] < 0.5
    page.wait_for_timeout(300)
    assert np.abs(picture(page) - before).max() > 50
    page.locator("canvas").nth(1).focus()
    page.keyboard.press("ArrowRight")
    last(page, f"Math.abs(e.probe[1] - {probe[1]} - 0.01) < 1e-6")
    page.keyboard.press("Escape")
    last(page, "!e.probe.length")


def test_keys_move_and_turn_the_line(page, explorer):
    page.locator("canvas").first.focus()
    page.keyboard.press("ArrowDown")
    assert last(page, "e.line[1] === 65")["line"] == [0, 65, 127, 65]
    page.keyboard.press("Shift+ArrowUp")
    assert last(page, "e.line[1] === 57")["line"] == [0, 57, 127, 57]
    page.keyboard.press("ArrowRight")  # it is as wide as the picture
    page.keyboard.press("-")
    shorter = last(page, "e.line[0] > 0")["line"]
    assert shorter[0] == pytest.approx(63.5 - 63.5 / 1.1)
    page.keyboard.press("]")
    agrees(explorer, last(page, "e.line[3] > 57"))
    page.keyboard.press("v")
    assert last(page, "e.line[3] === 127")["line"] == pytest.approx([63.5, 0, 63.5, 127])
    page.keyboard.press("h")
    last(page, "e.line[2] === 127")
    back(explorer)


def test_a_finger_draws_a_line_and_all_fits_a_phone(explorer, opened, tmp_path):
    path = explorer.save_html(tmp_path / "page.html")
    phone = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "color_scheme": "dark"}
    page = opened(path.as_uri(), offline=True, **phone)
    last(page)
    x, y = corner(page)
    page.touchscreen.tap(x + 40, y + 50)
    assert last(page, "e.line[1] !== 64")["line"][0] == 0
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_a_view_that_is_left_leaves_nothing_running(page, explorer):
    module = b64encode(explorer._esm.encode()).decode()
    script = leaving(
        "explored", 'model.set("line", [1, 2, 35, 46]);', 'model.set("line", [1, 2, 39, 49]);',
        'model.set("line", [1, 2, 37, 46]); dispatchEvent(new Event("resize"));',
    )  # fmt: skip
    alive, left = page.evaluate(script, module)
    assert alive[0] > 8 and alive[1] >= 2 and alive[2] == 1
    assert left == [0, alive[1], 0]


def test_it_follows_the_mouse(opened, tmp_path):
    """16 frames of 1024 tokens; how fast it is depends on the machine, and is printed."""
    clip = film("a cat on snow", frames=16, seed=1)
    explorer = PCAExplorer(clip, {(1, "up.3"): tokens(16, 32, width=64)})
    page = opened(explorer.save_html(tmp_path / "page.html").as_uri(), offline=True)
    last(page)
    page.evaluate(RACE)
    race = page.evaluate(RACE)
    frame, work = (np.median(race[name]) for name in ("frames", "work"))
    print(f"\n{explorer!r}\n{frame:.1f} ms a frame, {work:.1f} ms work; {race['drawn']} drawn")
    assert race["drawn"] >= 85 and frame < 200
