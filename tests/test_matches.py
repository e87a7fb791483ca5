"""Correspondences of the source, and whether an edit's tokens agree along them."""

import math

import numpy as np
import pytest
import torch
from clips import bare
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit import matches
from tfkit.matches import Matches, matches_by_field, matches_by_flow, token_consistency
from tfkit.menagerie import film


def shifted(frames=4, rows=4, columns=6, width=16, seed=0):
    """Tokens of a random picture that moves right by one token a frame: (f, n, d)."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns + frames, width, generator=g)
    views = [base[:, frames - i :][:, :columns] for i in range(frames)]
    return torch.stack(views).reshape(frames, rows * columns, width)


def flow_of(dx, dy, steps=3, h=32, w=48):
    flow = torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(steps, 2, h, w)
    return flow, torch.ones(steps, h, w, dtype=torch.bool)


def test_flow_of_a_token_a_frame_leads_to_the_next_token():
    found = matches_by_flow(*flow_of(8, 0), (4, 6))
    assert found.pairs.tolist() == [[0, 1], [1, 2], [2, 3]]
    place = torch.arange(24).reshape(4, 6)
    assert found.valid[0].reshape(4, 6)[:, :5].all()
    assert not found.valid[0].reshape(4, 6)[:, 5].any()  # it left the picture
    assert (found.index[0].reshape(4, 6)[:, :5] == place[:, 1:]).all()
    up = matches_by_flow(*flow_of(0, -8), (4, 6))
    assert (up.index[2].reshape(4, 6)[1:] == place[:-1]).all() and not up.valid[2, :6].any()


@pytest.mark.parametrize(("dx", "moved"), [(0, 0), (3.9, 0), (-3.9, 0), (4.1, 1), (-4.1, -1)])
def test_a_token_becomes_the_one_that_covers_where_its_centre_comes_to(dx, moved):
    found = matches_by_flow(*flow_of(dx, 0), (4, 6))
    assert found.index[0, 8] == 8 + moved


def test_what_is_hidden_is_not_known():
    flow, visible = flow_of(0, 0)
    visible[1, 12, 20] = False  # the pixel next to the centre of token (1, 2)
    found = matches_by_flow(flow, visible, (4, 6))
    assert (~found.valid).nonzero().tolist() == [[1, 8]]
    assert repr(found) == "Matches(3 pairs of frames by flow, 99% known)"


def test_a_field_finds_the_shift_and_the_true_flow_agrees():
    tokens = shifted()
    field, flow = matches_by_field(tokens), matches_by_flow(*flow_of(8, 0), (4, 6))
    assert field.pairs.tolist() == flow.pairs.tolist()
    assert (field.index == flow.index)[flow.valid].all() and field.valid[flow.valid].all()
    assert field.how == "mutual field" and matches_by_field(tokens, mutual=False).valid.all()


def test_tokens_that_move_along_are_consistent_and_those_that_stay_are_not():
    tokens, found = shifted(), matches_by_flow(*flow_of(8, 0), (4, 6))
    assert token_consistency(tokens, found) == pytest.approx(1, abs=1e-6)
    assert token_consistency(5 * tokens, found) == pytest.approx(1, abs=1e-6)
    assert abs(token_consistency(tokens[:1].expand(4, -1, -1), found)) < 0.2
    flicker = tokens * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1)
    assert token_consistency(flicker, found) == pytest.approx(-1, abs=1e-6)


def test_token_consistency_is_its_definition_in_loops():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 7, 3, generator=g)
    pairs = torch.tensor([[0, 1], [4, 2], [3, 3], [1, 0]])
    index = torch.randint(7, (4, 7), generator=g)
    valid = torch.rand(4, 7, generator=g) > 0.4
    valid[3] = False
    found, x = Matches(pairs, index, valid, "hand"), tokens.double().numpy()
    expected = []
    for k, (i, j) in enumerate(pairs[:3].tolist()):
        cosines = []
        for p in range(7):
            if valid[k, p]:
                u, v = x[i, p], x[j, index[k, p]]
                cosines.append(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
        expected.append(np.mean(cosines))
    each = token_consistency(tokens, found, per_pair=True)
    assert np.allclose(each[:3], expected, atol=1e-12) and each[3].isnan()
    assert token_consistency(tokens, found) == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_common_token_hides_what_centering_shows():
    tokens, found = shifted(), matches_by_flow(*flow_of(8, 0), (4, 6))
    stays = tokens[:1].expand(4, -1, -1) + 100.0
    assert token_consistency(stays, found) > 0.999
    assert token_consistency(stays, found, centered=True) < 0.3
    moves = (tokens.double() - tokens.double().mean((0, 1))) + 100.0
    assert token_consistency(moves, found, centered=True) == pytest.approx(1, abs=1e-6)
    apart = stays.double() - stays.double().mean((0, 1))
    expected = token_consistency(apart, found)
    assert token_consistency(stays, found, centered=True) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype(dtype):
    tokens = shifted().to(dtype)
    assert token_consistency(tokens, matches_by_field(tokens)) == pytest.approx(1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(1, 9), st.integers(0, 10**6))
def test_own_place_in_a_still_video_is_one_and_nothing_exceeds_it(f, n, seed):
    tokens = torch.randn(1, n, 4, generator=torch.Generator().manual_seed(seed)).expand(f, -1, -1)
    found = matches_by_field(tokens)
    assert token_consistency(tokens, found) == pytest.approx(1, abs=1e-6)
    other = torch.randn(f, n, 4, generator=torch.Generator().manual_seed(seed + 1))
    assert -1 - 1e-9 <= token_consistency(other, found) <= 1 + 1e-9


def test_any_pairs_of_frames_can_be_asked_for():
    tokens = shifted()
    found = matches_by_field(tokens, [(0, 3), (2, 0)])
    assert found.pairs.tolist() == [[0, 3], [2, 0]]
    moved = found.index[0].reshape(4, 6)[:, :3] - torch.arange(24).reshape(4, 6)[:, :3]
    assert (moved == 3).all()
    assert token_consistency(tokens, found, per_pair=True).shape == (2,)


def test_the_menageries_colours_agree_along_its_true_flow():
    clip = film("a red cat walking on grass", frames=4)
    found = matches_by_flow(clip.flow, clip.visible, (128, 128))
    colours = clip.frames.flatten(2).transpose(1, 2) - 0.5  # pixels as tokens
    along = token_consistency(colours, found)
    still = matches_by_flow(0 * clip.flow, clip.visible, (128, 128))
    assert along > token_consistency(colours, still) and along > 0.9


TOKENS, FOUND = shifted(), matches_by_flow(*flow_of(8, 0), (4, 6))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("matches_by_field", (TOKENS[0],), r"tokens: \(24, 16\); expected \(f, n, d\)"),
        ("matches_by_field", (None,), r"tokens: NoneType; expected"),
        ("matches_by_field", (TOKENS[:1],), r"0 pairs of 1 frames; expected some"),
        ("matches_by_field", (TOKENS, [(0, 4)]), r"pairs span 0 to 4; expected frames from 0 to 3"),
        ("matches_by_field", (TOKENS, [(0, 1, 2)]), r"1 pairs of 4 frames; .*\(before, after\)"),
        ("matches_by_flow", (*flow_of(1, 0), (0, 6)), r"grid=\(0, 6\): expected"),
        ("matches_by_flow", (*flow_of(1, 0), (64, 6)), r"within pictures of 32 x 48"),
        ("matches_by_flow", (flow_of(1, 0)[0], FOUND.valid, (4, 6)), r"visible \(3, 24\); expec"),
        ("token_consistency", (TOKENS[:, :23], FOUND), r"tokens are \(4, 23, 16\), the matches of"),
        ("token_consistency", (TOKENS[:3], FOUND), r"pairs span 0 to 3; expected frames from 0 to"),
        (
            "token_consistency",
            (TOKENS, Matches(FOUND.pairs, FOUND.index, FOUND.valid & False, "flow")),
            r"no match is known in any of the 3 pairs",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        bare(getattr(matches, name))(*arguments)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (torch.empty(0, 2, dtype=torch.long), "0 pairs of 4 frames; expected some"),
        ([], "0 pairs of 4 frames; expected some"),
        ([[0.9, 1.9]], "pairs of torch.float32; expected whole numbers"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        bare(matches_by_field)(shifted(), pairs)


def test_tokens_of_nan_are_refused():
    tokens = shifted()
    found = matches_by_field(tokens)
    tokens[1, 2] = math.nan
    for call in (matches_by_field, lambda x: token_consistency(x, found)):
        with pytest.raises(ValueError, match="tokens hold NaN or infinity"):
            call(tokens)
