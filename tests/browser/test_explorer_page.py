"""The correspondence explorer in a real browser: its page from a file, with the network off."""

import io
from base64 import b64encode

import numpy as np
import pytest
import torch
from pages import leaving, told
from PIL import Image

from tfkit.menagerie import film
from tfkit.widgets import CorrespondenceExplorer

# Moves a mouse once a frame, and measures the frames.
RACE = """async () => {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
  explored.length = 0;
  const frames = [];
  for (let i = 0; i < 90; i++) {
    const begun = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove",
      { clientX: box.x + 20 + i, clientY: box.y + 80 + i % 30, bubbles: true }));
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - begun);
  }
  return { frames, drawn: explored.length, work: explored.map((e) => e.ms) };
}"""


def tokens(frames, side, width=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(frames, side**2, width, generator=g)


@pytest.fixture(scope="module")
def explorer():
    clip = film("a striped dog on grass", frames=4, seed=3)
    sides = {"up.3": 32, "up.1": 8}
    found = {(t, name): tokens(4, n, seed=t) for t in (0, 4) for name, n in sides.items()}
    return CorrespondenceExplorer(clip, found)


@pytest.fixture
def page(explorer, opened, tmp_path):
    """The saved page, drawn; every test begins where the explorer stands."""
    path = explorer.save_html(tmp_path / "page.html")
    page = opened(path.as_uri(), offline=True)
    page.wait_for_function("explored.length")
    page.wait_for_timeout(500)
    return page


def last(page, condition="true"):
    """What was explored last, once it fulfils a condition on ``e``."""
    page.wait_for_function(f"(e => e && ({condition}))(explored.at(-1))")
    return page.evaluate("explored.at(-1)")


def corner(page):
    box = page.locator("canvas").bounding_box()
    return box["x"], box["y"]


def picture(page):
    """The canvas as it is on the screen, (h, w, 3)."""
    shot = Image.open(io.BytesIO(page.locator("canvas").screenshot()))
    return np.asarray(shot.convert("RGB")).astype(float)


def agrees(explorer, detail):
    """Python finds, from the same bytes, what the page has found."""
    explorer.probe = detail["probe"]
    places = torch.tensor([match[:2] for match in detail["matches"]])
    torch.testing.assert_close(places, explorer.matches(), atol=0.05, rtol=0)
    best = torch.tensor([match[2] for match in detail["matches"]])
    torch.testing.assert_close(best, explorer.similarity().max(1).values, atol=1e-4, rtol=0)
    nowhere = [float("nan")] * 2
    truth = torch.tensor([nowhere if place is None else place for place in detail["truth"]])
    torch.testing.assert_close(truth, explorer.truth(), atol=1e-3, rtol=0, equal_nan=True)


def test_hovering_shows_every_frame_what_python_finds(page, explorer):
    x, y = corner(page)
    before, first = picture(page), last(page)
    page.mouse.move(x + 60, y + 160)
    found = last(page, f"e.probe[1] !== {first['probe'][1]}")
    agrees(explorer, found)
    after = picture(page)
    assert after.std() > 30  # not blank
    quarters = np.array_split(np.abs(after - before).mean(2)[60:], 4, axis=1)
    assert min(quarter.mean() for quarter in quarters) > 5  # each of the four frames has changed
    page.mouse.move(x + 600, y + 200)
    found = last(page, "e.probe[0] > 0")
    assert found["probe"][0] == 2
    agrees(explorer, found)
    told(page, "Frame 2, pixel (", "Off the truth by")


def test_selectors_change_what_is_compared(page, explorer):
    frames, before = last(page)["matches"], picture(page)
    page.get_by_label("layer").select_option("up.1")
    explorer.layer = "up.1"
    coarse = last(page, f"e.matches[1][0] !== {frames[1][0]}")
    agrees(explorer, coarse)
    assert np.abs(picture(page) - before).mean() > 5
    page.get_by_label("timestep").select_option("4")
    explorer.timestep = 4
    agrees(explorer, last(page, f"e.matches[1][0] !== {coarse['matches'][1][0]}"))
    page.get_by_label("opacity").fill("0")
    page.wait_for_timeout(300)
    film_alone = picture(page)
    page.get_by_label("contrast").fill("0.9")
    page.wait_for_timeout(300)
    assert np.abs(picture(page) - film_alone)[60:].mean() < 0.5
    explorer.layer, explorer.timestep = "up.3", 0


def test_keys_move_pin_and_clear(page):
    page.locator("canvas").focus()
    frame, x, y = last(page)["probe"]
    page.keyboard.press("ArrowRight")
    last(page, f"e.probe[1] === {x + 1}")
    page.keyboard.press("Shift+ArrowUp")
    last(page, f"e.probe[2] === {y - 8}")
    page.keyboard.press("PageDown")
    assert last(page, f"e.probe[0] === {frame + 1}")["probe"] == [frame + 1, x + 1, y - 8]
    for _ in range(20):
        page.keyboard.press("Shift+ArrowLeft")
    last(page, "e.probe[1] === 0")  # and no further
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Enter")
    assert len(last(page, "e.tracks.length === 2")["tracks"][0]) == 4
    page.keyboard.press("Backspace")
    last(page, "e.tracks.length === 1")
    page.keyboard.press("Escape")
    last(page, "e.tracks.length === 0")


def test_a_click_pins_and_another_unpins(page, explorer):
    x, y = corner(page)
    before = picture(page)
    page.mouse.click(x + 90, y + 130)
    found = last(page, "e.tracks.length === 1")
    explorer.pins = [found["probe"]]
    track = torch.tensor([place[:2] for place in found["tracks"][0]])
    torch.testing.assert_close(track, explorer.tracks()[:, 0], atol=0.05, rtol=0)
    explorer.pins = []
    page.mouse.move(x + 300, y + 200)
    assert np.abs(picture(page) - before).mean() > 2
    page.mouse.click(x + 91, y + 131)
    last(page, "e.tracks.length === 0")
    page.mouse.click(x + 92, y + 132)
    last(page, "e.tracks.length === 1")
    page.get_by_role("button", name="Clear pins").click()
    last(page, "e.tracks.length === 0")


def test_a_finger_probes_and_pins_with_the_button(explorer, opened, tmp_path):
    path = explorer.save_html(tmp_path / "page.html")
    phone = {"viewport": {"width": 360, "height": 640}, "has_touch": True}
    page = opened(path.as_uri(), offline=True, **phone)
    frame = last(page)["probe"]
    x, y = corner(page)
    page.touchscreen.tap(x + 40, y + 100)
    assert last(page, f"e.probe[1] !== {frame[1]}")["tracks"] == []
    page.get_by_role("button", name="Pin", exact=True).click()
    last(page, "e.tracks.length === 1")
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_a_page_around_it_may_choose_its_colours(explorer, opened, tmp_path):
    address = explorer.save_html(tmp_path / "page.html").as_uri()
    color = "getComputedStyle(document.querySelector('.tfkit-explorer')).color"
    page = opened(address + "#dark", offline=True, color_scheme="light")
    last(page)
    assert page.evaluate(color) == "rgb(255, 255, 255)"
    drawn = page.evaluate("explored.length")
    page.evaluate("location.hash = 'light'")
    page.wait_for_function(f"explored.length > {drawn}")
    assert page.evaluate(color) == "rgb(0, 0, 0)"


def test_a_view_that_is_left_leaves_nothing_running(page, explorer):
    module = b64encode(explorer._esm.encode()).decode()
    script = leaving(
        "explored", 'model.set("probe", [0, 5, 6]);', 'model.set("probe", [0, 9, 9]);',
        'model.set("probe", [0, 7, 6]); dispatchEvent(new Event("resize"));',
    )  # fmt: skip
    alive, left = page.evaluate(script, module)
    assert alive[0] > 5 and alive[1] >= 2 and alive[2] == 1
    assert left == [0, alive[1], 0]


def test_it_follows_the_mouse(opened, tmp_path):
    """16 frames of 1024 tokens; how fast it is depends on the machine, and is printed."""
    clip = film("a cat on snow", frames=16, seed=1)
    explorer = CorrespondenceExplorer(clip, {(1, "up.3"): tokens(16, 32, width=64)})
    page = opened(explorer.save_html(tmp_path / "page.html").as_uri(), offline=True)
    page.wait_for_function("explored.length")
    page.evaluate(RACE)
    race = page.evaluate(RACE)
    frame, work = (np.median(race[name]) for name in ("frames", "work"))
    print(
        f"\n{explorer!r}\n{frame:.1f} ms a frame, of it {work:.1f} ms work; {race['drawn']} drawn"
    )
    assert race["drawn"] >= 85 and frame < 200
