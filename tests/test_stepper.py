"""The stepper without a browser: traits and sessions say the same, and errors change nothing."""

import gc
import io
import threading
import weakref
from base64 import b64decode

import numpy as np
import pytest
import torch
import traitlets
from PIL import Image
from pipelines import moving_latents
from unchanged import unchanged

import tfkit
from tfkit.steps import Steps
from tfkit.widgets import EditStepper, compact
from tfkit.widgets.counting import passes

STEPS, LAYER = 4, "up_blocks.2.attentions.0.transformer_blocks.0.attn1"
FLOW = tfkit.TokenFlow(interval=2)


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def source(model):
    latents = moving_latents(5, 8, 8).double()
    return tfkit.invert(model, latents, "a cat", steps=STEPS, progress=False)


def session(model, source, **settings):
    settings = {"propagation": FLOW, "guidance": 3, "batch": 2} | settings
    return tfkit.EditSession(model, source, "a dog", **settings)


@pytest.fixture
def stepper(model, source):
    return EditStepper(session(model, source))


@pytest.fixture
def page(stepper, monkeypatch):
    """What the page hears, and a way for it to ask: page(do, **words)."""
    heard = []
    monkeypatch.setattr(stepper, "send", lambda what, buffers=None: heard.append((what, buffers)))

    def ask(do, **words):
        heard.clear()
        stepper._handle_custom_msg({"do": do, "with": words, "number": 7}, [])
        assert heard.pop() == ({"done": 7}, None)
        return heard

    return ask


# --- Walking ---


def test_it_walks_the_session_that_it_was_given(stepper, model, source):
    whole = session(model, source).step(STEPS)
    for i in range(STEPS):
        assert stepper.position == i == stepper.session.position
        stepper.step()
    assert torch.equal(stepper.session.latents, whole.latents)
    stepper.back()
    assert stepper.position == STEPS - 1
    stepper.position = 1
    assert stepper.session.position == 1
    stepper.position = STEPS
    assert torch.equal(stepper.session.latents, whole.latents)


def test_frames_are_those_that_the_step_headed_for(stepper):
    size = stepper.size
    source = stepper.frames()
    assert source.shape == (5, 3, *size) and source.std() > 0.05
    stepper.step()
    stepper.frames()
    assert stepper.session.views.nbytes == 0  # that room is for fields
    predicted = stepper.session.predicted().float()
    off = (stepper.frames() - predicted).abs().mean()
    assert off < 0.05 < (source - predicted).abs().mean()  # WebP, and not the source


def test_steps_taken_elsewhere_are_seen(stepper):
    stepper.session.step(3)
    assert stepper.position == 0
    assert stepper.refresh().position == 3 and len(stepper._state["A"]["path"]) == 4


def test_going_back_keeps_its_stops_and_a_change_forgets_those_beyond(stepper):
    stepper.step(3)
    path = stepper._state["A"]["path"]
    stepper.position = 1
    assert stepper._state["A"]["path"] == path
    stepper.prompt = "a fox"
    assert stepper._state["A"]["path"] == path[:2]
    stepper.step()
    assert stepper._state["A"]["path"][:2] == path[:2] and len(stepper._stops._stops) == 3
    assert stepper._state["A"]["path"][2] not in path


def states(session):
    """Weak references to the latents of every step that a session holds."""
    return [weakref.ref(session.branch().goto(i).latents) for i in range(session.known + 1)]


def test_what_a_change_forgets_no_stop_keeps(stepper):
    held = states(stepper.step(3).session)
    stepper.position = 1
    stepper.prompt = "a fox"
    gc.collect()
    assert [one() is not None for one in held] == [True, True, False, False]


def test_a_session_that_forgot_goes_on(stepper, page):
    stepper.step(2).session.run(progress=False)
    stepper.refresh()
    path = stepper._state["A"]["path"]
    assert stepper.position == STEPS and path[: STEPS - 1] == [None] * (STEPS - 1)
    assert torch.equal(stepper.frames(), EditStepper(stepper.session).frames())
    assert page("picture", stop=path[-1])[0][1]
    stepper.back()  # there the latents are all that is left
    shown = stepper._stops.of(stepper.session).pictures()
    assert shown == compact.pictures(stepper.session.frames())
    with pytest.raises(ValueError, match="position 1 is forgotten: expected 3 or more"):
        stepper.position = 1
    assert stepper.position == STEPS - 1
    stepper.prompt = "a fox"
    stepper.step()
    assert stepper._state["A"]["path"][:-2] == path[:-2] and stepper.session.known == STEPS


@pytest.mark.parametrize("name", [1, "", " "])
def test_a_name_that_is_none_makes_no_branch(stepper, unchecked, name):
    with pytest.raises(ValueError, match=f"name={name!r}: expected a text"):
        stepper.branch(name)
    assert list(stepper.sessions) == stepper.branches == ["A"]
    assert stepper.step().position == 1


def test_a_stop_shows_the_weights_of_its_own_propagation(stepper):
    before = stepper._stops.of(stepper.session)
    stepper.change(prompt="a fox")
    assert stepper._stops.of(stepper.session) is before  # a prompt carries nothing
    linear = tfkit.TokenFlow(FLOW.interval, blend="linear")
    stepper.change(propagation=linear, keyframes=stepper.session.keyframes)
    after = stepper._stops.of(stepper.session)
    assert after.row == before.row
    assert torch.equal(after.session.weights(), stepper.session.weights())
    assert not torch.equal(after.session.weights(), before.session.weights())


def test_seed_and_keyframes_of_none_change_nothing(stepper):
    stepper.step(2).seed = 5
    rows = [row.tolist() for row in stepper.session.keyframes]
    stepper.back().change(seed=None, keyframes=None)
    stepper.seed = None
    assert stepper.seed == 5 and stepper.session.known == 2
    assert [row.tolist() for row in stepper.session.keyframes] == rows


def test_a_step_tells_how_far_it_is(stepper):
    told = []
    stepper.observe(lambda change: told.append(change["new"]), "progress")
    expected = passes(stepper.session)
    stepper.step()
    assert expected == 3 + 1  # 3 keyframes a branch at a time, the other 2 frames in a pass
    assert told == [*([done, 4] for done in range(5)), []]
    told.clear()
    stepper.back().step()  # for nothing
    assert [4, 4] not in told and stepper.progress == []


@pytest.mark.parametrize(
    "propagation",
    [
        tfkit.TokenFlow(interval=2, variant="reference"), tfkit.PerFrame(),
        tfkit.ExtendedAttention(), tfkit.propagation.FirstFrame(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("guidance", [1, 4])
def test_the_passes_expected_are_those_made(model, source, propagation, guidance):
    walk = session(model, source, propagation=propagation, guidance=guidance)
    stepper, told = EditStepper(walk), []
    stepper.observe(lambda change: told.append(change["new"]), "progress")
    stepper.step()
    done, expected = told[-2]
    assert done == expected == len(told) - 2


# --- Changing ---


def test_another_prompt_keeps_the_keyframes(stepper, model, source):
    rows = stepper.session.keyframes
    stepper.step().change(prompt="a fox", guidance=5)
    assert (stepper.prompt, stepper.guidance, stepper.seed) == ("a fox", 5, None)
    assert all(torch.equal(a, b) for a, b in zip(rows, stepper.session.keyframes, strict=True))
    want = session(model, source).step()
    want.change(prompt="a fox", guidance=5, keyframes=torch.stack(rows))
    assert torch.equal(stepper.step(3).session.latents, want.step(3).latents)


@pytest.mark.parametrize("other", [tfkit.PerFrame(), tfkit.TokenFlow(interval=1)])
def test_another_prompt_after_another_propagation_keeps_what_that_one_drew(stepper, other):
    stepper.step(2)
    stepper.change(propagation=other)
    before = stepper.session.keyframes
    stepper.prompt = "a fox"
    after = stepper.session.keyframes
    assert stepper.session.plan.prompt == "a fox"
    for old, new in zip(before, after, strict=True):
        assert old is new is None or torch.equal(old, new)


def test_keyframes_are_redrawn_by_the_trait_or_the_method(stepper):
    drawn = torch.stack(stepper.step().session.keyframes)
    stepper.seed = 7
    want = FLOW.draw(5, STEPS, 7)
    assert torch.equal(torch.stack(stepper.session.keyframes)[1:], want[1:])
    assert torch.equal(stepper.session.keyframes[0], drawn[0])
    stepper.redraw(8)
    assert stepper.seed == 8 and stepper._state["A"]["rows"][1:] == FLOW.draw(5, 4, 8)[1:].tolist()


def test_at_the_beginning_redrawn_keyframes_are_shown(stepper):
    before = stepper._stops.of(stepper.session)
    stepper.redraw(3)
    after = stepper._stops.of(stepper.session)
    assert before is not after and after.row == FLOW.draw(5, STEPS, 3)[0].tolist()


def test_branches_share_what_is_behind_them(stepper):
    stepper.step(2).branch()
    assert (stepper.branches, stepper.active) == (["A", "B"], "B")
    stepper.prompt = "a fox"
    stepper.step()
    one, other = (stepper._state[name]["path"] for name in "AB")
    assert one == other[:3] and len(other) == 4
    stepper.active = "A"
    assert (stepper.prompt, stepper.position) == ("a dog", 2)
    stepper.together = True
    stepper.step()
    assert [s.position for s in stepper.sessions.values()] == [3, 4]
    with pytest.raises(ValueError, match="there is a branch 'B' already"):
        stepper.branch("B")
    stepper.drop("A")
    assert (stepper.branches, stepper.active, stepper.prompt) == (["B"], "B", "a fox")
    with pytest.raises(ValueError, match=r"'B': expected one of several branches, of \['B'\]"):
        stepper.drop("B")


def test_playing_ends_with_the_last_step(stepper):
    stepper.playing = True
    stepper.step(STEPS - 1)
    assert stepper.playing
    stepper.step()
    assert not stepper.playing
    stepper.playing = True
    assert not stepper.playing


# --- Looking ---


def test_matches_are_the_fields(stepper):
    stepper.step()
    stepper.layer, stepper.probe = LAYER, [4, 17.0, 42.0]
    field, found = stepper.session.fields(LAYER), stepper.matches()
    assert stepper._grids[LAYER] == (4, 4) and stepper.size == (64, 64)
    index = field.index[4, :, 2 * 4 + 1]
    assert found[:, 0].tolist() == [(i % 4 + 0.5) * 16 - 0.5 for i in index.tolist()]
    assert found[:, 1].tolist() == [(i // 4 + 0.5) * 16 - 0.5 for i in index.tolist()]
    want = field.similarity[4, :, 9].float()
    torch.testing.assert_close(found[:, 2], want, atol=1 / 127, rtol=0)
    stepper.probe = []
    with pytest.raises(ValueError, match="there is no probe"):
        stepper.matches()


def test_a_field_is_computed_once(stepper, monkeypatch):
    stepper.step()
    stepper.layer, stepper.probe = LAYER, [0, 1.0, 1.0]
    calls, own = [], Steps.source_tokens
    monkeypatch.setattr(Steps, "source_tokens", lambda *a: [calls.append(a), own(*a)][1])
    stepper.matches()
    stepper.branch().change(prompt="a fox")
    stepper.matches()
    assert len(calls) == 1
    stepper.step().matches()
    assert len(calls) == 2


def test_the_page_is_sent_what_it_asks_for(page, stepper):
    page("step", positions={"A": 0})
    stop = stepper._state["A"]["path"][1]
    ((detail, files),) = page("picture", stop=stop)
    assert (
        detail["picture"] == stop and detail["keyframes"] == stepper.session.keyframes[0].tolist()
    )
    np.testing.assert_allclose(np.sum(detail["weights"], 1), 1)
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(64, 64)] * 5
    ((detail, (index, close)),) = page("field", stop=stop, layer=LAYER)
    held = np.frombuffer(index, "<u2").reshape(5, 3, 16)
    assert (held == stepper.session.fields(LAYER).index.numpy()).all()
    assert len(close) == held.size and len(index) == 2 * held.size
    assert page("picture", stop=999) == [] == page("field", stop=999, layer=LAYER)


def test_a_view_that_is_late_takes_no_step(page, stepper):
    page("step", positions={"A": 0})
    page("step", positions={"A": 0})
    assert stepper.position == 1
    page("back")
    assert stepper.position == 0


def test_what_carries_no_tokens_has_neither(model, source):
    stepper = EditStepper(session(model, source, propagation=tfkit.PerFrame())).step()
    stepper.probe = [0, 1.0, 1.0]
    assert stepper._stops.of(stepper.session).detail() == {"keyframes": None, "weights": None}
    with pytest.raises(ValueError, match=r"no fields: PerFrame"):
        stepper.matches()
    assert stepper.change(prompt="a fox").step().position == 2


# --- What goes wrong ---


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("position", 9, traitlets.TraitError, "position=9: expected 0 to 4 steps"),
        ("guidance", float("nan"), ValueError, "guidance=nan"),
        ("seed", -1, ValueError, "seed=-1"),
        ("active", "Z", traitlets.TraitError, r"active='Z': expected one of \['A'\]"),
        ("layer", "mid", traitlets.TraitError, "layer='mid': expected one of .*mid_block"),
        ("probe", [5, 1.0, 1.0], traitlets.TraitError, r"probe is \[5, .*0 to 4.*64 x 64"),
        ("probe", [1.0], traitlets.TraitError, r"expected \[\] or \[frame, x, y\]"),
    ],
)
def test_a_value_that_is_none_changes_nothing(stepper, name, value, error, message):
    stepper.step(2).back()
    traits = {n: getattr(stepper, n) for n in ("_state", name)}
    with pytest.raises(error, match=message):
        setattr(stepper, name, value)
    assert {n: getattr(stepper, n) for n in traits} == traits
    assert (stepper.position, stepper.session.known) == (1, 2)


def test_errors_are_said_on_the_page(page, stepper, unchecked):
    stepper.playing = True
    page("change", guidance=None)
    assert "guidance=None: expected a finite number" in stepper.message and not stepper.playing
    assert stepper.guidance == 3
    page("dance")
    assert stepper.message == "KeyError: 'dance'"
    page("step", positions={"A": 0})
    assert stepper.message == ""


def overflow(*_):
    raise tfkit.NonFiniteError("NaN in the middle")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stop", "error", "words"),
    [
        (overflow, tfkit.NonFiniteError, "NaN in the middle"),
        (interrupt, KeyboardInterrupt, "Interrupted: the step was not taken."),
    ],
)
def test_a_step_that_fails_was_not_taken(page, stepper, model, source, stop, error, words):
    stepper.step()
    handle = model.unet.mid_block.register_forward_hook(stop)
    try:
        with unchanged(model):
            page("step", positions={"A": 1})
            assert words in stepper.message and (stepper.progress, stepper.position) == ([], 1)
            with pytest.raises(error):
                stepper.position = 3
        assert stepper.position == 1 and stepper.progress == []
    finally:
        handle.remove()
    whole = session(model, source).step(STEPS)
    assert torch.equal(stepper.step(3).session.latents, whole.latents)


# --- Readers without a kernel ---


def test_its_static_twin_is_what_it_shows(stepper):
    def picture():
        bundle = stepper._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert "application/vnd.jupyter.widget-view+json" in data
        return b64decode(data["image/png"])

    before = picture()
    assert Image.open(io.BytesIO(before)).size[0] > 600
    assert picture() == before != (stepper.step() and picture())
    assert repr(stepper) == "EditStepper(5 frames, branches A at 1 of 4)"


# --- Threads that are not the cells' ---


def test_what_comes_in_by_another_thread_is_done_where_cells_run(stepper, cells):
    """JupyterLab's subshells: the model is never in two hands."""

    def page():
        stepper._handle_custom_msg({"do": "step", "with": {"positions": {"A": 0}}}, [])
        stepper.playing = True

    beside = threading.Thread(target=page)
    beside.start()
    beside.join()
    assert stepper.position == 0 and len(cells) == 2
    for action in cells:
        action()
    assert stepper.position == 1 and stepper.playing
