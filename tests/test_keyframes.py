"""Keyframes and weights: pure functions of indices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit.keyframes import (
    check_keyframes,
    draw_keyframes,
    key_blocks,
    paper_neighbors,
    reference_neighbors,
    seams,
)

FRAMES, INTERVALS = st.integers(1, 60), st.integers(1, 20)


@settings(deadline=None)
@given(frames=FRAMES, interval=INTERVALS, steps=st.integers(1, 6), fixed=st.booleans())
def test_one_keyframe_in_each_interval(frames, interval, steps, fixed):
    rows = draw_keyframes(frames, interval, steps, fixed=fixed)
    assert rows.shape == (steps, -(-frames // interval))
    assert torch.equal(rows // interval, torch.arange(rows.shape[1]).expand_as(rows))
    assert rows.max() < frames
    assert torch.equal(check_keyframes(rows, frames, steps), rows)


def test_random_keyframes_change_with_the_step_and_the_seed_and_reach_every_frame():
    rows = draw_keyframes(16, 8, 200)
    assert len(rows.unique(dim=0)) > 30
    assert set(rows.flatten().tolist()) == set(range(16))
    assert torch.equal(rows, draw_keyframes(16, 8, 200))
    assert not torch.equal(rows, draw_keyframes(16, 8, 200, seed=1))


def test_fixed_keyframes_are_the_middles():
    assert draw_keyframes(19, 8, 2, fixed=True).tolist() == [[4, 12, 17]] * 2


@settings(deadline=None)
@given(frames=FRAMES, interval=INTERVALS)
def test_the_paper_takes_the_keyframes_on_either_side(frames, interval):
    keyframes = draw_keyframes(frames, interval, 1)[0]
    near = paper_neighbors(torch.arange(frames), keyframes)
    for i in range(frames):
        before = [k for k in keyframes.tolist() if k <= i]
        after = [k for k in keyframes.tolist() if k >= i]
        first, second = keyframes[near.first[i]].item(), keyframes[near.second[i]].item()
        assert first == (after[0] if after else before[-1])
        assert second == (before[-1] if before else after[0])
        assert near.blended[i] == (first != second)
        assert near.blended[i] or near.weight[i] == 1


def test_paper_weights_follow_the_distances():
    keyframes, frames = torch.tensor([0, 8]), torch.tensor([2, 4, 7])
    linear = paper_neighbors(frames, keyframes, "linear").weight
    assert torch.allclose(linear, torch.tensor([0.25, 0.5, 0.875], dtype=torch.float64))
    assert torch.allclose(paper_neighbors(frames, keyframes).weight, linear.sigmoid())


def test_the_reference_takes_its_own_and_the_previous_and_never_the_next():
    near = reference_neighbors(torch.arange(10), 10, 4, "linear")
    assert near.first.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert near.second.tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert near.blended.tolist() == [False] * 4 + [True] * 6
    # frame 4: own middle 6 is 2 away, the previous one, 2, is 2 away
    # frame 9: the short interval's middle is 8 + 1, the previous one 6
    assert torch.allclose(near.weight[[4, 6, 9]], torch.tensor([0.5, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("keyframes", "message"),
    [
        ([[0.5, 1.0]], "whole numbers"),
        (torch.zeros(2, 2, 2, dtype=torch.long), "whole numbers"),
        ([[0, 4], [1, 5]], "for 2 steps, but the edit takes 3"),
        ([0, 12], "span 0 to 12.*0 to 11"),
        ([-1, 4], "span -1 to 4"),
        ([4, 4], r"\[4, 4\].*none twice"),
        ([8, 4], r"\[8, 4\].*ascending"),
        ([], "whole numbers"),
    ],
)
def test_bad_keyframes(keyframes, message):
    with pytest.raises(ValueError, match=message):
        check_keyframes(keyframes, 12, 3)


# Windows


@settings(deadline=None)
@given(count=st.integers(1, 70), window=st.integers(3, 20))
def test_every_keyframe_goes_once_and_sees_a_window_at_most(count, window):
    blocks = key_blocks(count, window)
    gone = torch.cat([block.own for block in blocks])
    assert sorted(gone.tolist()) == list(range(count))
    assert max(len(block.held) for block in blocks) <= window
    held = torch.arange(0)
    for block in blocks:
        assert torch.equal(block.held, torch.cat([held[block.context], block.own]))
        held = block.held
        before = gone[: (gone == block.own[-1]).nonzero()[0, 0] + 1]
        assert set(range(block.until)) <= set(before.tolist())
    assert blocks[-1].until == count


@settings(deadline=None)
@given(count=st.integers(1, 40), window=st.sampled_from([3, 4, 7, 16]), interval=st.integers(1, 5))
def test_the_keyframes_a_frame_takes_from_are_at_hand_when_it_goes(count, window, interval):
    frames = count * interval
    row = draw_keyframes(frames, interval, 1, seed=count)[0]
    every = torch.arange(frames)
    for near in (paper_neighbors(every, row), reference_neighbors(every, frames, interval)):
        needs, done = torch.maximum(near.first, near.second), 0
        for block in key_blocks(count, window):
            ready = int((needs < block.until).sum())
            for name in ("first", "second"):
                wanted = getattr(near, name)[done:ready]
                local = getattr(near.among(block.held), name)[done:ready]
                assert torch.equal(block.held[local], wanted)
            done = ready
        assert done == frames


@pytest.mark.parametrize("window", [None, 5, 16])
def test_few_keyframes_go_together(window):
    (block,) = key_blocks(5, window)
    assert torch.equal(block.own, torch.arange(5)) and not len(block.context)


def test_many_keyframes_see_anchors_and_the_block_before():
    blocks = key_blocks(20, 8)
    assert blocks[0].own.tolist() == [0, 19]  # a quarter of the window
    assert blocks[1].own.tolist() == [1, 2, 3]
    assert blocks[3].own.tolist() == [7, 8, 9]
    assert blocks[3].held.tolist() == [0, 19, 4, 5, 6, 7, 8, 9]


@given(count=st.integers(1, 40), window=st.integers(3, 12), interval=st.integers(1, 5))
def test_seams_lie_where_frames_of_one_keyframe_give_way_to_the_next_blocks(
    count, window, interval
):
    frames = count * interval
    row = draw_keyframes(frames, interval, 1, seed=count)[0]
    of_block = torch.zeros(count, dtype=torch.long)  # the block before which a keyframe has gone
    for block in key_blocks(count, window):
        of_block += torch.arange(count) >= block.until
    pairs = torch.arange(frames - 1)
    left = torch.searchsorted(row, pairs, right=True) - 1
    inside = (left >= 0) & (left < count - 1)
    left = left.clamp(0, max(count - 2, 0))
    expected = inside & (of_block[left] != of_block[(left + 1).clamp(max=count - 1)])
    assert torch.equal(seams(row, frames, window), expected)
    assert not seams(row, frames, None).any()
