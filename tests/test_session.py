"""The step-through session: the same edit, any way one walks through it."""

import copy
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from pipelines import moving_latents
from unchanged import unchanged

import tfkit
from tfkit import metrics
from tfkit.keyframes import paper_neighbors
from tfkit.views import Views

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
    """How many times the UNet runs, and the decoder."""

    def __init__(self, model):
        self.model, self.passes, self.decoded = model, 0, 0

    def __enter__(self):
        parts = {"passes": self.model.unet, "decoded": self.model.vae.decoder}
        self.handles = [
            part.register_forward_pre_hook(lambda *_, name=name: self._count(name))
            for name, part in parts.items()
        ]
        return self

    def _count(self, name):
        setattr(self, name, getattr(self, name) + 1)

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


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


def test_what_a_method_made_of_the_video_serves_other_settings(model, source):
    made = []

    @dataclass(frozen=True)
    class Preparing(tfkit.Plain):
        def prepare(self, model, source):
            made.append(source)

    walk = session(model, source, method=Preparing())
    walk.step().change(prompt="a blue fox").change(guidance=3).redraw(1)
    assert len(made) == 1
    walk.change(method=Preparing())
    assert len(made) == 2


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


def test_weights_are_of_the_step_that_was_taken(model, source):
    walk = session(model, source).step()
    weights, field = walk.weights(), walk.fields(LAYER)
    walk.change(propagation=tfkit.TokenFlow(interval=2, blend="linear"), keyframes=walk.keyframes)
    assert torch.equal(walk.weights(), weights)
    assert not torch.equal(walk.step().weights(), weights)
    other = session(model, source, propagation=tfkit.TokenFlow(interval=4, variant="reference"))
    weights = other.step().weights()
    other.change(propagation=tfkit.TokenFlow(interval=1, variant="reference"))
    assert torch.equal(other.weights(), weights)
    assert torch.equal(other.back().weights(), weights)  # of the step that is known
    walk.back().change(propagation=tfkit.PerFrame())
    assert torch.equal(walk.fields(LAYER).index, field.index)


def test_nothing_of_another_propagation_is_left_where_no_step_is_taken(model, source):
    walk = session(model, source, propagation=tfkit.PerFrame(), method=tfkit.SDEdit(0.5))
    walk.change(propagation=tfkit.TokenFlow(interval=2))
    fresh = session(model, source, method=tfkit.SDEdit(0.5))
    assert [row.tolist() for row in walk.keyframes] == [row.tolist() for row in fresh.keyframes]


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


# --- looked at again ----------------------------------------------------------------------------


def look(walk):
    """All there is to be seen where a session stands."""
    field = walk.fields(LAYER)
    return walk.frames(), walk.predicted(), field.index, field.similarity


def unseen(walk):
    """The same session, of which nothing was looked at."""
    other = walk.branch()
    other.views = Views()
    return other


def test_looking_back_computes_nothing(model, source):
    walk = session(model, source)
    seen = {i: look(walk.step()) for i in range(1, STEPS + 1)}
    twin = walk.branch()
    with Counted(model) as count:
        for i in (3, 1, 4, 2):
            for each in (walk, twin):
                assert all(map(torch.equal, look(each.goto(i)), seen[i]))
    assert (count.passes, count.decoded) == (0, 0)
    with Counted(model) as count:
        look(unseen(walk))
    assert count.passes and count.decoded == 2  # what is counted is there to be counted


def test_what_is_seen_is_the_callers_own(model, source):
    walk = session(model, source).step()
    seen = look(unseen(walk))
    for _ in range(2):  # what was computed, and what was kept
        for x in look(walk):
            x.zero_()
    assert all(map(torch.equal, look(walk), seen))


CHANGES = {
    "prompt": lambda walk: walk.change(prompt="a blue fox").step(),
    "redrawn": lambda walk: walk.redraw(7).step(),
    "method": lambda walk: walk.change(method=tfkit.SDEdit(1)).step(),
    "features": lambda walk: walk.change(
        propagation=tfkit.TokenFlow(interval=2, variant="reference")
    ).step(),
    "restored": lambda walk: walk.restore(-walk.latents, walk.noise),
    "noise": lambda walk: walk.restore(walk.branch().step().latents, -walk.noise),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_seen_is_stale(model, source, change):
    walk = session(model, source).step(3)
    for i in (1, 2, 3):
        look(walk.goto(i))
    CHANGES[change](walk.goto(1))
    for _ in range(2):
        assert all(map(torch.equal, look(walk), look(unseen(walk))))
        walk.back()
    walk.fields(LAYER)  # at the beginning they are of the step to come
    walk.redraw(9)
    fresh = unseen(walk).fields(LAYER)
    assert torch.equal(walk.fields(LAYER).index, fresh.index)


def test_the_latents_it_begins_from_are_its_own(model, source):
    before = source.noise.clone()
    tfkit.EditSession(model, source, "a dog").latents.zero_()
    assert torch.equal(source.noise, before)


def test_latents_written_into_are_seen(model, source):
    walk = session(model, source).step()
    before = walk.frames()
    walk.latents.mul_(0.5)
    assert not torch.equal(walk.frames(), before)
    assert torch.equal(walk.frames(), unseen(walk).frames())


def test_branches_with_the_same_keyframes_share_fields(model, source):
    walk = session(model, source).step(2)
    twin = walk.branch().change(prompt="a blue fox")
    walk.step().fields(LAYER)
    with Counted(model) as count:
        twin.step()
        taken = count.passes
        twin.fields(LAYER)
        assert count.passes == taken
        walk.step().fields(LAYER)
        twin.change(method=tfkit.Plain()).step()
        taken = count.passes
        twin.fields(LAYER)  # of another method, which may read other tokens
        assert count.passes > taken


def test_views_go_with_the_steps_they_are_of(model, source):
    walk = session(model, source).step()
    for _ in range(2):
        look(walk.step())
    look(walk.back())
    held, twin = walk.views.nbytes, walk.branch()
    walk.change(prompt="a blue fox")
    assert walk.views.nbytes == held  # the branch can go there
    twin.change(prompt="a red fox")
    assert walk.views.nbytes == held / 2
    twin.forget().step(2)
    assert twin.forget() and walk.views.nbytes == held / 2
    walk.run(progress=False)
    assert walk.views.nbytes == 0


def test_views_hold_no_more_than_their_budget(model, source):
    walk = session(model, source).step(STEPS)
    one = walk.frames().nbytes
    walk.views.budget = 2 * one
    for i in (3, 4, 2):  # 3 was seen least recently, then 4
        walk.goto(i).frames()
        assert walk.views.nbytes <= 2 * one
    with Counted(model) as count:
        walk.goto(4).frames()
        assert count.decoded == 0
        walk.goto(3).frames()
        assert count.decoded == 1
        walk.goto(4).frames()
        assert count.decoded == 1
    assert walk.views.nbytes == 2 * one and re.match(r"Views\(\d MiB of \d\)", repr(walk.views))
    walk.views.budget = one - 1
    walk.fields(LAYER)
    held = walk.views.nbytes
    assert walk.goto(1).frames().nbytes == one and 0 < held == walk.views.nbytes < one


def test_an_edit_and_a_stream_keep_no_view(model, source, monkeypatch):
    kept = []
    monkeypatch.setattr(Views, "get", lambda *a: kept.append(a))
    whole(model, source)
    list(session(model, source).run(progress=False).stream())
    assert not kept


def test_a_copy_in_another_process_begins_unseen(model, source):
    walk = session(model, source).step()
    walk.frames()
    twin = copy.deepcopy(walk)
    assert twin.views.nbytes == 0 < walk.views.nbytes
    assert torch.equal(twin.frames(), walk.frames())


# --- compared -----------------------------------------------------------------------------------


def test_branches_are_compared_from_where_they_part(model, source):
    walk = session(model, source).step(2)
    twin = walk.branch().change(prompt="a blue fox", guidance=5).redraw(7)
    walk.step(2), twin.step(2)
    with Counted(model) as count:
        found = walk.compare(twin)
    assert count.passes == 0 and (walk.position, twin.position) == (4, 4)
    assert found.settings.keys() == {"prompt", "guidance", "keyframes"}
    assert found.settings["prompt"] == ("a dog", "a blue fox")
    assert found.settings["guidance"] == (3, 5)
    assert torch.equal(torch.stack(found.settings["keyframes"][1]), torch.stack(twin.keyframes))
    assert (found.shared, found.position) == (2, 4)
    assert list(found.apart) == [0, 1, 2, 3, 4] and not any(found.apart[i] for i in range(3))
    far = (walk.latents - twin.latents).square().mean().sqrt().item()
    assert found.apart[4] == pytest.approx(far) and found.apart[3] > 0
    assert torch.equal(found.psnr, metrics.psnr(walk.frames(), twin.frames(), per_frame=True))
    other = twin.compare(walk)
    assert other.settings["prompt"] == ("a blue fox", "a dog") and other.apart == found.apart
    before = walk.branch()
    assert walk.back(3).change(prompt="a red fox").step(2).compare(before).shared == 1


def test_a_comparison_reads_at_a_glance(model, source):
    walk = session(model, source).step(2)
    twin = walk.branch().change(prompt="a blue fox", keyframes=[0, 3])
    found = walk.step(2).compare(twin.step(2))
    rows = walk.keyframes
    many = sum(row.tolist() != [0, 3] for row in rows[2:])
    first = next(row.tolist() for row in rows[2:] if row.tolist() != [0, 3])
    worst, best = found.psnr.argmin().item(), found.psnr.argmax().item()
    assert str(found).splitlines() == [
        "Comparison at position 4, 2 steps shared; mine | theirs",
        "  prompt     'a dog' | 'a blue fox'",
        f"  keyframes  {first} | [0, 3], in {many} of 4 steps",
        f"  latents    RMS 0 at 2, {found.apart[3]:.2g} at 3, {found.apart[4]:.2g} at 4",
        f"  frames     PSNR {found.psnr[worst]:.1f} dB (frame {worst}) to "
        f"{found.psnr[best]:.1f} dB (frame {best})",
    ]
    same = walk.compare(walk.branch())
    assert not same.settings and same.shared == 4 and (same.psnr == math.inf).all()
    assert str(same).splitlines()[1:] == ["  latents  RMS 0 at 4", "  frames   equal"]


def test_precisions_differ_too(model, source, pipeline_folder):
    other = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
    if model.dtype == other.dtype:
        other = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)
    found = session(model, source).step().compare(session(other, source).step())
    assert found.settings["dtype"] == (model.dtype, other.dtype)


def test_frames_are_compared_where_both_stand_or_at_a_position(model, source):
    walk = session(model, source).step(3)
    twin = session(model, source, guidance=5).step(1)
    found = walk.compare(twin)
    assert (found.position, found.shared, list(found.apart)) == (1, 0, [0, 1])
    mine = walk.branch().goto(1).frames()
    assert torch.equal(found.psnr, metrics.psnr(mine, twin.frames(), per_frame=True))
    assert (walk.compare(twin, position=0).psnr == math.inf).all()
    for wrong in (2, 4):
        with pytest.raises(ValueError, match=f"position={wrong}: expected 0 to 1, where both"):
            walk.compare(twin, position=wrong)
    with pytest.raises(ValueError, match="position=-1"):
        walk.compare(twin, position=-1)


def test_sessions_that_begin_apart_are_compared_at_one_timestep(model, source):
    late = session(model, source, method=tfkit.SDEdit(0.5)).step(2)
    walk = session(model, source).step()
    message = "1 and 2 steps are taken, begun 2 steps apart"
    with pytest.raises(ValueError, match=message):
        walk.compare(late)
    with pytest.raises(ValueError, match="2 and 1 steps are taken, begun 2 steps apart"):
        late.compare(walk)
    found = walk.step(3).compare(late)
    assert list(found.apart) == [2, 3, 4] and (found.position, found.shared) == (4, 0)
    assert found.settings["method"] == (tfkit.PlugAndPlay(), tfkit.SDEdit(0.5))
    assert list(late.compare(walk).apart.values()) == list(found.apart.values())
    assert late.compare(walk).position == 2


def test_sessions_that_forgot_know_where_they_parted(model, source):
    walk = session(model, source).step(2)
    twin = walk.branch().change(prompt="a blue fox").run(progress=False)
    found = walk.run(progress=False).compare(twin)
    assert found.shared == 2 and list(found.apart) == [3, 4]
    with pytest.raises(ValueError, match="position 1 is forgotten: expected 3 or more"):
        walk.compare(twin, position=1)


def test_another_source_is_not_compared(model, source):
    other = tfkit.invert(model, moving_latents(3, 8, 8).double(), steps=STEPS, progress=False)
    with pytest.raises(ValueError, match=r"another source, Trajectory\(3 frames.*\(5 frames"):
        session(model, source).compare(session(model, other))


@dataclass(frozen=True, eq=False)
class Held(tfkit.Plain):
    """A method with a picture, which knows no equality of its own."""

    picture: torch.Tensor


def test_settings_that_do_the_same_do_not_differ(model, source):
    walk = session(model, source, method=Held(torch.zeros(2)))
    twin = session(model, source, method=Held(torch.zeros(2)), guidance=3.0)
    assert not walk.compare(twin).settings
    twin.change(method=Held(torch.ones(2)))
    assert walk.compare(twin).settings.keys() == {"method"}


def test_numbers_of_numpy_are_as_good_as_pythons(model, source, unchecked):
    """Sweeps are made of them: np.linspace for guidance, np.arange for seeds and batches."""
    plain = session(model, source, guidance=2.5, seed=3, batch=2).run(progress=False)
    given = {"guidance": np.float32(2.5), "seed": np.int64(3), "batch": np.int32(2)}
    numpy = session(model, source, **given).run(progress=False)
    assert torch.equal(plain.latents, numpy.latents)
    fresh = [tfkit.SDEdit(0.5, noise="fresh", seed=seed) for seed in (4, np.int64(4))]
    one, other = (session(model, source, method=method, guidance=np.float64(1)) for method in fresh)
    assert torch.equal(one.latents, other.latents)
    for guidance in (10**400, np.float64("nan"), True):
        with pytest.raises(ValueError, match="expected a finite number"):
            session(model, source, guidance=guidance)
    with pytest.raises(ValueError, match=r"expected less than 2\*\*63"):
        session(model, source, seed=2**70)


def test_keyframes_are_the_sessions_own(model, source):
    given = torch.tensor([0, 2])
    walk = session(model, source, propagation=tfkit.TokenFlow(2), keyframes=given)
    given[:] = torch.tensor([1, 3])
    walk.keyframes[0].fill_(0)
    assert [row.tolist() for row in walk.keyframes] == [[0, 2]] * STEPS


def test_all_that_can_be_changed_is_named(model, source):
    with pytest.raises(ValueError, match=r"'foo' is no setting.*keyframes, .*, seed"):
        session(model, source).change(foo=1)


def test_the_prompt_that_is_none_is_named(model, source, unchecked):
    for name in ("prompt", "negative_prompt"):
        with pytest.raises(ValueError, match=f"^{name}=None: expected a string"):
            session(model, source).change(**{name: None})


class Hasty(tfkit.Plain):
    def first_step(self, steps):
        return steps + 1


class Short(tfkit.Plain):
    def begin(self, model, source, t):
        return source.at(t)[:-1]


@pytest.mark.parametrize(
    ("method", "message"),
    [(Hasty(), "begins at step 5; expected 0 to 4"), (Short(), r"begins from latents \(4, 4, ")],
)
def test_a_method_that_begins_nowhere_is_told(model, source, method, message):
    with pytest.raises(ValueError, match=message):
        session(model, source, method=method)
