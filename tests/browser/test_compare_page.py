"""The comparison of clips in a real browser: its page from a file, with the network off."""

from base64 import b64encode

import numpy as np
import pytest
import torch
from pages import leaving, told

from tfkit.menagerie import film
from tfkit.video import to_uint8
from tfkit.widgets import VideoCompare, page

COUNT, SIDE = 8, 128

# Reads the canvas at the centre of every pixel of the film: [y][x] of [r, g, b].
READ = f"""() => {{
  const canvas = document.querySelector(".tfkit-compare canvas"), top = 20 * devicePixelRatio;
  const pen = canvas.getContext("2d"), {{ width, height }} = canvas, n = {SIDE};
  const {{ data }} = pen.getImageData(0, 0, width, height), zoom = (height - top) / n;
  return Array.from({{ length: n }}, (_, y) => Array.from({{ length: n }}, (_, x) => {{
    const at = 4 * (Math.floor(top + (y + 0.5) * zoom) * width + Math.floor((x + 0.5) * zoom));
    return [data[at], data[at + 1], data[at + 2]];
  }}));
}}"""
WATCH = "() => { window.seen = []; addEventListener('compared', (e) => seen.push(e.detail)); }"
LEAVING = leaving(
    "compared", 'model.set("playing", true);', "const before = drawn;",
    """let asked = 0;
  const request = window.requestAnimationFrame;
  window.requestAnimationFrame = (f) => { asked++; return request(f); };
  model.set("frame", 0);
  await pause();
  window.requestAnimationFrame = request;""",
    tell="asked, before, state.frame",
)  # fmt: skip


@pytest.fixture(scope="module")
def clips():
    """Two films that differ in their colour alone, and noise."""
    frames = film("a striped dog on grass", frames=COUNT, seed=3).frames
    noise = torch.rand(frames.shape, generator=torch.Generator().manual_seed(0))
    return {"source": frames, "per frame": frames.flip(1), "noise": noise}


@pytest.fixture
def compare(clips):
    return VideoCompare(clips, fps=20)


@pytest.fixture
def show(compare, opened, tmp_path):
    """Opens the page of the comparison as it stands, with all its frames decoded."""

    def open_page(**options):
        path = compare.save_html(tmp_path / "page.html")
        page = opened(path.as_uri(), offline=True, **options)
        page.wait_for_selector(".tfkit-compare[aria-busy=false]")
        page.evaluate(WATCH)
        page.wait_for_timeout(300)
        return page

    return open_page


def last(page, condition):
    """What was drawn last, once it fulfils a condition on ``e``."""
    page.wait_for_function(f"(e => e && ({condition}))(seen.at(-1))")
    return page.evaluate("seen.at(-1)")


def pixels(page):
    return np.array(page.evaluate(READ))


def levels(clips, name, frame):
    return list(to_uint8(clips[name]))[frame].astype(int)


def test_each_frame_is_drawn_exactly_and_dragging_wipes(show, clips):
    page = show()
    box = page.locator("canvas").bounding_box()
    for frame in (0, 1):
        shown = pixels(page)
        assert shown.std() > 20  # not blank
        want = [levels(clips, name, frame) for name in ("source", "per frame")]
        assert np.array_equal(shown[:, :56], want[0][:, :56])  # the line is 4 wide, its knob more
        assert np.array_equal(shown[:, 72:], want[1][:, 72:])
        page.locator("canvas").focus()
        page.keyboard.press("ArrowRight")
        last(page, f"e.frame === {frame + 1}")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 80, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    shown, want = pixels(page), levels(clips, "per frame", 2)
    assert np.array_equal(shown[:, 40:], want[:, 40:])
    page.mouse.move(box["x"] + 5, box["y"] + 80)  # no button held: it stays
    told(page, "Frame 2 of 0 to 7. Left 25 %")
    page.wait_for_timeout(300)
    assert page.get_by_role("status").inner_text().startswith("Frame 2 of 0 to 7. Left 25 %")
    page.get_by_label("right", exact=True).select_option("noise")
    page.wait_for_timeout(200)
    assert np.array_equal(pixels(page)[:, 40:], levels(clips, "noise", 2)[:, 40:])


def test_the_difference_is_what_python_finds(show, compare, clips):
    compare.frame, compare.view, compare.gain = 3, "difference", 2
    page = show()
    off = np.abs(levels(clips, "source", 3) - levels(clips, "per frame", 3))
    assert off.mean() > 5
    assert np.array_equal(pixels(page), np.minimum(255, 2 * off))
    page.locator("canvas").focus()
    page.keyboard.press("+")
    found = last(page, "e.view === 'difference'")
    assert found["mean"] == pytest.approx(off.mean(), abs=1e-6)
    assert np.array_equal(pixels(page), np.minimum(255, 3 * off))
    told(page, f"differ by {off.mean():.2f} of 255")


def test_a_difference_of_pictures_shown_smaller_says_so(opened, tmp_path):
    compare = VideoCompare(torch.zeros(1, 3, 32, 800), torch.ones(1, 3, 32, 800))
    compare.view = "difference"
    page = opened(compare.save_html(tmp_path / "page.html").as_uri(), offline=True)
    told(page, "differ by 255.00 of 255 on average. They are shown at 768 × 31 of 800 × 32 pixels")


def test_keys_change_view_and_frame_and_sliders_keep_their_own(show):
    page = show()
    page.locator("canvas").focus()
    for key, view in {"d": "difference", "g": "grid", "w": "wipe"}.items():
        page.keyboard.press(key)
        last(page, f"e.view === '{view}'")
        pressed = page.locator(".tfkit-compare button[aria-pressed=true]")
        assert pressed.count() == 1 and f"({key})" in pressed.get_attribute("aria-label")
    page.keyboard.press("End")
    last(page, f"e.frame === {COUNT - 1}")
    page.keyboard.press("ArrowRight")  # round and round
    last(page, "e.frame === 0")
    page.keyboard.press("Shift+ArrowRight")
    told(page, "Frame 0 of", "Left 52 %")
    slider = page.get_by_label("frame", exact=True)
    slider.focus()
    page.keyboard.press("ArrowRight")  # once, by the slider alone
    last(page, "e.frame === 1")
    page.wait_for_timeout(200)
    assert page.evaluate("seen.at(-1).frame") == 1


def test_it_plays_loops_and_stops_at_the_end_and_how_fast(show):
    """How fast it is depends on the machine, and is printed."""
    page = show()
    page.locator("canvas").focus()
    page.keyboard.press("d")  # the dearest view
    last(page, "e.view === 'difference'")
    page.evaluate("seen.length = 0")
    page.keyboard.press("Space")
    page.wait_for_timeout(2000)
    seen = page.evaluate("seen")
    page.keyboard.press("Space")
    frames = [e["frame"] for e in seen]
    assert set(frames) == set(range(COUNT)) and frames.count(0) >= 2  # all of them, in a loop
    beats = np.diff([e["at"] for e in seen])
    print(
        f"\n{np.median(beats):.1f} ms a frame of 50; {np.median([e['ms'] for e in seen]):.1f} work"
    )
    assert np.median(beats) > 35
    steps = np.diff(frames) % COUNT
    assert (steps <= 1).mean() > 0.7  # it hardly skips
    page.wait_for_timeout(200)
    frame = page.evaluate("seen.at(-1).frame")
    page.wait_for_timeout(300)
    assert page.evaluate("seen.at(-1).frame") == frame  # it stands
    page.keyboard.press("l")
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    last(page, f"e.frame === {COUNT - 1}")
    page.get_by_role("button", name="Play (Space)").wait_for()
    page.evaluate("seen.length = 0")
    page.keyboard.press("Space")  # from the end it begins anew
    anew = "seen.some((e) => e.frame === 0)"
    page.wait_for_function(f"{anew} && seen.at(-1).frame === {COUNT - 1}")


def test_a_finger_wipes_and_nothing_is_wider_than_a_phone(show):
    page = show(viewport={"width": 360, "height": 640}, has_touch=True)
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 100
    hand = page.context.new_cdp_session(page)
    for kind, at in [("Start", x), ("Move", x - 30), ("Move", x - 60), ("End", None)]:
        points = [] if at is None else [{"x": at, "y": y}]
        hand.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    share = 100 * (box["width"] / 2 - 60) / box["width"]
    found = "Number(document.querySelector('[role=status]').innerText.match(/Left (\\d+) %/)?.[1])"
    page.wait_for_function(f"Math.abs({found} - {share}) <= 1.5")
    page.get_by_role("button", name="Side by side").click()  # a tap that lasts is a long press
    last(page, "e.view === 'grid'")
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


def test_it_is_drawn_where_no_word_fits(show):
    page = show(viewport={"width": 50, "height": 600})
    assert page.locator("canvas").bounding_box()["width"] < 38
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    last(page, "e.frame === 1 && e.view === 'wipe'")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_by_itself_where_that_is_not_wanted(compare, opened, tmp_path, motion):
    path = compare.save_html(tmp_path / "page.html")
    text = path.read_text()
    assert '"playing": false' in text
    path.write_text(text.replace('"playing": false', '"playing": true'))
    page = opened(path.as_uri(), offline=True, reduced_motion=motion)
    page.wait_for_selector(".tfkit-compare[aria-busy=false]")
    moving = page.get_by_role("button", name="Pause (Space)").count()
    assert moving == (motion == "no-preference")


def test_more_frames_than_are_kept_are_decoded_in_time(compare, opened, tmp_path):
    """With room for ten pictures, of 24."""
    module = compare._esm.replace("ROOM = 256e6", "ROOM = 1")
    module = module.replace("AHEAD = 4", "AHEAD = 1")
    assert module != compare._esm
    names = ("frame", "wipe", "view", "left", "right", "gain", "loop", "fps", "playing", "_data")
    state = {name: getattr(compare, name) for name in names}
    path = page.write(tmp_path / "p.html", state, module=module, style="", title="few")
    shown = opened(path.as_uri(), offline=True)
    shown.evaluate(WATCH)
    shown.locator("canvas").focus()
    for frame in [*range(1, COUNT), 0, 1]:
        shown.keyboard.press("ArrowRight")
        last(shown, f"e.frame === {frame}")
    want = list(to_uint8(compare._frames["source"]))[1].astype(int)
    assert np.array_equal(pixels(shown)[:, :56], want[:, :56])


def test_a_view_that_is_left_leaves_nothing_running(show, compare):
    module = b64encode(compare._esm.encode()).decode()
    alive, left, asked, before, after = show().evaluate(LEAVING, module)
    assert alive[0] > 10 and alive[1] >= 3 and alive[2] == 1 and before > 0
    assert left == [0, alive[1], 0] and asked == 0 and after == 0
