"""The step-through session: the same edit, any way one walks through it."""

import re
from dataclasses import replace

import pytest
import torch
from pipelines import moving_latents
from unchanged import unchanged

import tfkit
from tfkit.keyframes import paper_neighbors

STEPS, LAYER = 4, "up_blocks.2.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def source(model):
    latents = moving_latents(5, 8, 8).double()
    return tfkit.invert(model, latents, "a cat", steps=STEPS, progress=False)


def session(model, source, **settings):
    settings = {"propagation": tfkit.TokenFlow(interval=2), "guidance": 3} | settings
    return tfkit.EditSession(model, source, "a dog", **settings)


class Counted:
    """How many times the UNet runs."""

    def __init__(self, model):
        self.model, self.passes = model, 0

    def __enter__(self):
        self.handle = self.model.unet.register_forward_hook(self._count)
        return self

    def _count(self, *_):
        self.passes += 1

    def __exit__(self, *error):
        self.handle.remove()


def whole(model, source, **settings):
    settings = {"propagation": tfkit.TokenFlow(interval=2), "guidance": 3} | settings
    return tfkit.edit(model, source, "a dog", progress=False, **settings)


def test_the_bar_moves_within_a_step(model, source, capsys):
    """Of a long video one step takes minutes."""
    session(model, source, batch=1).step(2, progress=True)
    counts = [float(n) for n in re.findall(r"\| ([\d.]+)/2 ", capsys.readouterr().err)]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 2
    assert len(set(counts)) > 3  # tqdm draws ten times a second at the most


def test_a_session_run_to_its_end_is_the_edit(model, source):
    walk, edit = session(model, source), whole(model, source)
    with unchanged(model):
        for i in range(STEPS):
            assert walk.position == i
            walk.step()
    assert torch.equal(walk.latents, edit.latents)
    assert torch.equal(torch.stack(walk.keyframes), edit.keyframes)
    assert torch.equal(walk.frames(), edit.frames)
    assert walk.step().position == STEPS  # the end stays the end


def test_going_back_and_forth_recomputes_nothing(model, source):
    walk = session(model, source).step(3)
    with Counted(model) as count:
        before = walk.latents
        assert walk.back(2).position == 1 and walk.step().position == 2
        assert walk.goto(0).position == 0 and torch.equal(walk.goto(3).latents, before)
        assert walk.back(99).position == 0
    assert count.passes == 0
    assert torch.equal(walk.goto(STEPS).latents, whole(model, source).latents)


def test_a_change_holds_from_here_on(model, source):
    walk = session(model, source).step(2)
    kept = walk.latents
    walk.change(prompt="a blue fox", guidance=5)
    assert torch.equal(walk.latents, kept) and walk.plan.prompt == "a blue fox"
    walk.step(2)
    assert not torch.allclose(walk.latents, whole(model, source).latents)
    # the same as a session that was that way all along, from the same latents
    other = session(model, source, guidance=5)
    other.change(prompt="a blue fox")
    other._past = replace(walk._past, position=2).cut()
    assert torch.equal(other.step(2).latents, walk.latents)


def test_changed_back_it_is_the_edit_again(model, source):
    walk = session(model, source).step(2).change(prompt="a blue fox").step()
    walk.back().change(prompt="a dog")
    assert torch.equal(walk.step(2).latents, whole(model, source).latents)


def test_another_method_from_the_beginning_begins_anew(model, source):
    walk = session(model, source).change(method=tfkit.SDEdit(0.5), propagation=tfkit.PerFrame())
    assert len(walk.timesteps) == 2
    edit = whole(model, source, method=tfkit.SDEdit(0.5), propagation=tfkit.PerFrame())
    assert torch.equal(walk.step(2).latents, edit.latents) and edit.keyframes is None


def test_redrawn_keyframes_are_those_of_the_seed(model, source):
    walk = session(model, source).step()
    first = walk.keyframes
    walk.redraw(7)
    drawn = tfkit.TokenFlow(interval=2).draw(5, STEPS, 7)
    assert torch.equal(walk.keyframes[0], first[0])
    assert torch.equal(torch.stack(walk.keyframes[1:]), drawn[1:])
    given = [[0, 3], [1, 2], [0, 4], [2, 3]]
    walk.change(keyframes=given)
    assert [row.tolist() for row in walk.keyframes[1:]] == given[1:]


def test_gone_back_before_another_propagation_its_keyframes_hold_from_there(model, source):
    walk = session(model, source, propagation=tfkit.PerFrame(), seed=3).step(2)
    walk.change(propagation=tfkit.TokenFlow(interval=2)).back(2).change(prompt="a blue fox")
    drawn = tfkit.TokenFlow(interval=2).draw(5, STEPS, 3)
    assert torch.equal(torch.stack(walk.keyframes), drawn)
    walk.step(2)


@pytest.mark.parametrize("way", ["seed", "given", "redrawn"])
def test_another_prompt_keeps_the_keyframes(model, source, way):
    """So that what the prompt does can be told from what other keyframes do."""
    given = [[0, 3], [1, 2], [0, 4], [2, 3]]
    begun = {"seed": {"seed": 5}, "given": {"keyframes": given}, "redrawn": {}}
    walk = session(model, source, **begun[way])
    if way == "redrawn":
        walk.step().redraw(7)
    before = torch.stack(walk.keyframes)
    for settings in ({"prompt": "a blue fox"}, {"guidance": 3}, {"method": tfkit.SDEdit(0.75)}):
        walk.change(**settings)
        assert torch.equal(torch.stack(walk.keyframes), before)
    walk.change(propagation=tfkit.TokenFlow(interval=2, variant="reference"))
    seed = {"seed": 5, "given": 0, "redrawn": 7}[way]
    ahead = walk.position
    drawn = tfkit.TokenFlow(interval=2).draw(5, STEPS, seed)
    assert torch.equal(torch.stack(walk.keyframes[ahead + 1 :]), drawn[ahead + 1 :])


def test_what_a_redrawn_session_reads_is_of_its_own_keyframes(model, source):
    """Gone back before the redrawing, it stands at keyframes of another seed."""
    alone = whole(model, source, seed=7).latents
    source.cache.clear()
    walk = session(model, source).step(2).redraw(7)
    walk.back(2).prepare()
    noise = walk.branch().step().noise
    walk.restore(walk.latents, noise).prepare()
    again = whole(model, source, seed=7).latents
    torch.testing.assert_close(again, alone, rtol=0, atol=1e-9)


def test_branches_part_and_share_what_lies_behind(model, source):
    walk = session(model, source).step(2)
    twin = walk.branch()
    twin.change(prompt="a blue fox").step(2)
    assert walk.position == 2 and walk.plan.prompt == "a dog"
    assert twin._past.states[1] is walk._past.states[1]
    walk.step(2)
    assert torch.equal(walk.latents, whole(model, source).latents)
    assert not torch.allclose(walk.latents, twin.latents)


def test_predicted_frames_become_the_edit(model, source):
    walk = session(model, source)
    with pytest.raises(ValueError, match="before the first step"):
        walk.predicted()
    walk.step(STEPS)
    assert walk.predicted().shape == walk.frames().shape
    x, noise = walk._past.before, walk.noise
    a = model.alpha(source.timesteps[-1]).double()
    clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
    torch.testing.assert_close(walk.predicted(), model.decode(clean))


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_weights_add_up_and_fields_point_at_keyframes(model, source, variant):
    walk = session(model, source, propagation=tfkit.TokenFlow(interval=2, variant=variant)).step()
    row, weights = walk.keyframes[0], walk.weights()
    assert weights.shape == (5, len(row))
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
    field = walk.fields(LAYER)
    tokens = tfkit.extract_tokens(
        model, source, timestep=source.timesteps[0], layers=LAYER,
        kind="output" if variant == "paper" else "input",
    )[LAYER]  # fmt: skip
    assert field.index.shape == (5, len(row), tokens.shape[1])
    own = tfkit.nearest_neighbors(tokens[4], tokens[row[1]])
    assert torch.equal(field.index[4, 1], own.index)
    if variant == "paper":
        near = paper_neighbors(torch.arange(5), row)
        for i in range(5):
            assert weights[i, near.first[i]] >= near.weight[i] - 1e-12


def test_without_a_step_there_is_nothing_to_look_at(model, source):
    none = session(model, source, method=tfkit.SDEdit(0)).step()
    assert none.position == 0 and torch.equal(none.latents, source.clean)
    for look in (none.weights, lambda: none.fields(LAYER), none.predicted):
        with pytest.raises(ValueError, match=r"takes no step at all|before the first step"):
            look()


def test_a_session_says_where_it_stands(model, source):
    walk = session(model, source, propagation=tfkit.FirstFrame()).step(3).back()
    walk.change(prompt="a blue fox")
    said = f"EditSession(2 of {STEPS} steps taken, prompt 'a blue fox', {walk.plan.method!r}, "
    assert repr(walk) == said + "FirstFrame())"


def test_what_carries_no_tokens_has_no_fields(model, source):
    walk = session(model, source, propagation=tfkit.PerFrame())
    with pytest.raises(ValueError, match=r"no fields: PerFrame.*TokenFlow"):
        walk.fields(LAYER)
    with pytest.raises(ValueError, match="expected one layer, it fits"):
        session(model, source).fields("up_blocks.2.*")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidence": 3}, "'guidence' is no setting; expected some of guidance"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"keyframes": [9]}, "frame indices from 0 to 4"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_bad_change_changes_nothing(model, source, settings, message):
    walk = session(model, source).step(2)
    plan, rows = walk.plan, walk.keyframes
    with pytest.raises(ValueError, match=message):
        walk.change(**settings)
    assert walk.plan is plan and walk.known == 2
    assert all(torch.equal(a, b) for a, b in zip(rows, walk.keyframes, strict=True))
    with pytest.raises(ValueError, match="position=9: expected 0 to 4"):
        walk.goto(9)


def test_an_interrupted_step_was_not_taken(model, source):
    walk = session(model, source).step()

    def stop(*_):
        raise KeyboardInterrupt

    handle = model.unet.mid_block.register_forward_hook(stop)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        walk.step()
    handle.remove()
    assert walk.position == 1
    assert torch.equal(walk.step(3).latents, whole(model, source).latents)


# --- taken up again -----------------------------------------------------------------------------


def test_a_step_restored_is_the_step_taken(model, source):
    walk, twin = session(model, source).step(2), session(model, source)
    for position in (1, 2):
        walk.goto(position)
        twin.restore(walk.latents, walk.noise)
    assert twin.position == 2 and torch.equal(twin.predicted(), walk.predicted())
    with Counted(model) as nothing:
        twin.back(2).step(2)
    assert not nothing.passes
    assert torch.equal(twin.step().latents, walk.step().latents)


def test_what_is_no_step_is_not_restored(model, source):
    walk = session(model, source)
    noise = torch.zeros_like(walk.latents)
    with pytest.raises(ValueError, match=r"latents of shape \(4, 4, 8, 8\): expected \(5, 4, 8, 8"):
        walk.restore(noise[:4], noise)
    with pytest.raises(ValueError, match=r"noise of shape .* all finite"):
        walk.restore(noise, noise * torch.nan)
    assert walk.position == 0
    with pytest.raises(ValueError, match="nothing is predicted before the first step"):
        _ = walk.noise
    with pytest.raises(ValueError, match="all 4 steps are taken"):
        walk.step(STEPS).restore(noise, noise)
