"""TokenFlow along the true motion: whose tokens are carried where."""

from dataclasses import replace

import pytest
import torch
from pipelines import moving_latents

import tfkit
from tfkit import attention, invert, truth
from tfkit.menagerie import film
from tfkit.tracks import follow_flow, grid_of, token_centers
from tfkit.truth import TrueFlow, true_field


def panned(x, frames=3, size=16):
    """A clip in which everything moves ``x`` pixels to the right from frame to frame."""
    flow = torch.zeros(frames - 1, 2, size, size)
    flow[:, 0] = x
    visible = torch.ones(frames - 1, size, size, dtype=torch.bool)
    return tfkit.Clip(torch.zeros(frames, 3, size, size), flow=flow, visible=visible)


@pytest.mark.parametrize(("frame", "keyframe"), [(0, 1), (1, 0), (0, 2), (2, 0), (1, 1)])
def test_a_pan_by_whole_tokens_leads_to_the_token_beside(frame, keyframe):
    found = true_field(panned(4), frame, keyframe, (4, 4)).reshape(4, 4)
    column = torch.arange(4) + keyframe - frame
    expected = torch.where((column >= 0) & (column < 4), column, -1)
    for row in range(4):
        assert torch.equal(found[row], torch.where(expected < 0, -1, expected + 4 * row))


@pytest.mark.parametrize("keyframe", [0, 1])
def test_a_pan_by_less_than_half_a_token_leads_nowhere_else(keyframe):
    assert torch.equal(true_field(panned(1), 1 - keyframe, keyframe, (4, 4)), torch.arange(16))


def test_what_is_hidden_on_the_way_is_unknown():
    clip = panned(0)
    clip.visible[0, :8] = False
    for pair in ((0, 2), (2, 0)):
        found = true_field(clip, *pair, (4, 4))
        assert (found[:8] == -1).all() and torch.equal(found[8:], torch.arange(8, 16))


def test_it_finds_the_part_of_the_animal_that_is_meant():
    clip = film("a plain red horse on snow", frames=4, seed=3)
    parts = clip.parts[:, 2::4, 2::4].flatten(1)  # near the tokens' centres
    for frame, keyframe in ((0, 3), (3, 0)):
        found = true_field(clip, frame, keyframe, (32, 32))
        animal = (found >= 0) & (parts[frame] > 0)
        alike = parts[keyframe][found[animal]] == parts[frame][animal]
        assert animal.sum() > 30 and alike.double().mean() > 0.8


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


def test_an_edit_carries_along_it_and_else_as_ever(model, monkeypatch):
    source = tfkit.invert(model, moving_latents(3, 8, 8).double(), steps=2, progress=False)
    clip, seen = panned(0, size=64), []

    def carry(outputs, fields, near):
        seen.append(fields[near.weight > 0, 0])
        return attention_carry(outputs, fields, near)

    attention_carry = attention.carry
    monkeypatch.setattr(attention, "carry", carry)
    settings = {"guidance": 3, "keyframes": [1], "progress": False}
    true = tfkit.edit(model, source, "a dog", propagation=TrueFlow(3, clip=clip), **settings)
    assert seen and all(
        torch.equal(fields.long(), torch.arange(fields.shape[1]).expand_as(fields))
        for fields in seen
    )
    assert grid_of(torch.zeros(1, 64, 2), (64, 64)) == (8, 8)  # the finest of these
    own = tfkit.edit(model, source, "a dog", propagation=tfkit.TokenFlow(3), **settings)
    assert not torch.allclose(true.latents, own.latents)
    blind = replace(clip, visible=torch.zeros_like(clip.visible))
    same = tfkit.edit(model, source, "a dog", propagation=TrueFlow(3, clip=blind), **settings)
    assert torch.equal(same.latents, own.latents)


def test_a_clip_of_another_length_is_refused(model):
    source = tfkit.invert(model, moving_latents(3, 8, 8).double(), steps=2, progress=False)
    for keyframes in (None, [1]):
        with pytest.raises(ValueError, match="clip has 2 frames; expected the one that is edited"):
            way = TrueFlow(3, clip=panned(0, size=64)[:2])
            tfkit.edit(model, source, "a dog", propagation=way, keyframes=keyframes)


def test_what_has_no_known_motion_is_refused():
    still = tfkit.Clip(torch.zeros(2, 3, 16, 16))
    for wrong in ({}, {"clip": still}):
        with pytest.raises(ValueError, match="expected a filmed clip"):
            TrueFlow(4, **wrong)
    with pytest.raises(ValueError, match="whose flow and visibility are known"):
        TrueFlow(4, clip=replace(panned(0), visible=None))
    with pytest.raises(ValueError, match="the clip knows no flow"):
        true_field(still, 0, 1, (4, 4))
    for name, value in (("variant", "reference"), ("window", 6)):
        with pytest.raises(ValueError, match=f"{name}={value!r}: expected"):
            TrueFlow(4, clip=panned(0), **{name: value})


def test_the_nearest_arrival_says_where_a_token_came_from():
    clip, grid = film("a striped fox on snow", frames=3, seed=4), (16, 16)
    (h, w), field = clip.frames.shape[-2:], true_field(clip, 2, 0, grid)
    places, seen = follow_flow(token_centers((h, w), (h, w)), clip.flow[:2], clip.visible[:2])
    best = {}
    for pixel in seen[-1].nonzero().flatten().tolist():
        (x, y), cell = places[-1][pixel].tolist(), (h // grid[0], w // grid[1])
        token = int((y + 0.5) // cell[0]), int((x + 0.5) // cell[1])
        centre = [(at + 0.5) * side - 0.5 for at, side in zip(token, cell, strict=True)]
        apart = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        came = pixel // w // cell[0] * grid[1] + pixel % w // cell[1]
        near = best.setdefault(token[0] * grid[1] + token[1], (apart, came))
        if apart < near[0]:
            best[token[0] * grid[1] + token[1]] = apart, came
    assert len(best) > 200
    assert field.tolist() == [best.get(token, (0, -1))[1] for token in range(256)]


def test_a_field_is_looked_up_once_for_all_steps(model, monkeypatch):
    source, found = invert(model, moving_latents(3, 8, 8).double(), steps=3, progress=False), []
    real = truth.true_field
    monkeypatch.setattr(truth, "true_field", lambda *of: (found.append(of[1:]), real(*of))[1])
    way = TrueFlow(3, clip=panned(0, size=64))
    tfkit.edit(model, source, "a dog", propagation=way, keyframes=[1], progress=False)
    assert found and len(found) == len(set(found))


def test_along_another_clip_it_is_another(model):
    source = invert(model, moving_latents(3, 8, 8).double(), steps=2, progress=False)
    way = TrueFlow(3, clip=panned(0, size=64))
    assert way == way and way != TrueFlow(3, clip=panned(0, size=64))
    session = tfkit.EditSession(model, source, "a dog", propagation=way)
    with pytest.raises(ValueError, match="clip has 2 frames"):
        session.change(propagation=TrueFlow(3, clip=panned(0, size=64)[:2]))
