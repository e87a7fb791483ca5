"""What an edit keeps, against plain loops, scipy and cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
from clips import bare, moving
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit import fidelity
from tfkit.fidelity import (
    background_psnr,
    background_ssim,
    motion_fidelity,
    ssim,
    structure_distance,
)
from tfkit.menagerie import film
from tfkit.tracks import follow_flow, token_centers
from tfkit.video import Clip


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kernel():
    weight = [[math.exp(-(x * x + y * y) / 4.5) for x in range(-5, 6)] for y in range(-5, 6)]
    return np.array(weight) / np.sum(weight)


def slow_ssim(a, b):
    """The map of one picture (3, h, w), window by window, as Wang et al. write it."""
    weight, (_, h, w) = kernel(), a.shape
    out = np.zeros((3, h - 10, w - 10))
    for c in range(3):
        for y in range(h - 10):
            for x in range(w - 10):
                p, q = (v[c, y : y + 11, x : x + 11].numpy() for v in (a, b))
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                vpq = (weight * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * vpq + 9e-4)
                out[c, y, x] = top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
    return out.mean(0)


# SSIM


def test_ssim_is_its_definition_window_by_window():
    a, b = noise(2, 3, 14, 16), noise(2, 3, 14, 16, seed=1)
    expected = [slow_ssim(x, y) for x, y in zip(a, b, strict=True)]
    assert np.allclose(fidelity.ssim_map(a[0], b[0]), expected[0], atol=1e-12)
    assert np.allclose(ssim(a, b, per_frame=True), [e.mean() for e in expected], atol=1e-12)
    assert ssim(Clip(a), b) == pytest.approx(np.mean(expected), abs=1e-12)


def test_ssim_is_what_scipys_filters_give():
    correlate = pytest.importorskip("scipy.ndimage").correlate
    a, b = noise(3, 40, 50), (noise(3, 40, 50) + 0.2 * noise(3, 40, 50, seed=1)) / 1.2
    maps = []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        m = [correlate(v, kernel())[5:-5, 5:-5] for v in (x, y, x * x, y * y, x * y)]
        sx, sy, sxy = m[2] - m[0] ** 2, m[3] - m[1] ** 2, m[4] - m[0] * m[1]
        top = (2 * m[0] * m[1] + 1e-4) * (2 * sxy + 9e-4)
        maps.append(top / ((m[0] ** 2 + m[1] ** 2 + 1e-4) * (sx + sy + 9e-4)))
    assert np.allclose(fidelity.ssim_map(a, b), np.mean(maps, axis=0), atol=1e-10)


def test_ssim_of_plain_grey_is_its_luminance_term():
    a, b = torch.full((1, 3, 11, 11), 0.5), torch.full((1, 3, 11, 11), 0.75)
    assert ssim(a, b) == pytest.approx((2 * 0.375 + 1e-4) / (0.25 + 0.5625 + 1e-4), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_ssim_is_symmetric_at_most_one_and_one_for_equal_frames(seed, share):
    a, b = noise(1, 3, 12, 13, seed=seed), noise(1, 3, 12, 13, seed=seed + 1)
    b = share * a + (1 - share) * b
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert -1 <= ssim(a, b) <= 1 + 1e-12 and ssim(a, a) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_dtype_is_measured_in_float64(dtype):
    a, b = noise(2, 3, 16, 16).to(dtype), noise(2, 3, 16, 16, seed=1).to(dtype)
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    assert ssim(a, b) == ssim(a.double(), b.double())
    assert background_psnr(a, b, mask) == background_psnr(a.double(), b.double(), mask)


# Background


def test_background_psnr_is_numpys_over_what_the_mask_leaves():
    a, b = noise(3, 3, 8, 9), noise(3, 3, 8, 9, seed=1)
    mask = noise(3, 8, 9, seed=2) > 0.5
    squares = ((a - b) ** 2).movedim(1, -1)[~mask].numpy()
    assert background_psnr(a, b, mask) == pytest.approx(-10 * np.log10(squares.mean()), rel=1e-12)


def test_the_foreground_does_not_count_and_the_background_alone_does():
    clip = film("a red cat on grass", frames=3)
    edit = torch.where(clip.mask[:, None], 1 - clip.frames, clip.frames)
    assert background_psnr(edit, clip, clip.mask) == math.inf
    assert background_ssim(edit, clip, clip.mask) == pytest.approx(1, abs=1e-12)
    assert ssim(edit, clip) < 0.999
    shifted = (clip.frames.double() * 0.8 + 0.1).clamp(0, 1)
    outside = (shifted - clip.frames.double()).square().mean(1)[~clip.mask].mean()
    expected = -10 * outside.log10().item()
    assert background_psnr(shifted, clip, clip.mask) == pytest.approx(expected, rel=1e-9)


def test_background_ssim_takes_the_windows_that_never_touch_the_mask():
    a, b = noise(2, 3, 30, 32), noise(2, 3, 30, 32, seed=1)
    mask = torch.zeros(2, 30, 32, dtype=torch.bool)
    mask[0, 3, 4] = mask[1, 20:, 25:] = True
    kept = []
    for x, y, m in zip(a, b, mask, strict=True):
        full = fidelity.ssim_map(x, y)
        kept += [
            full[i, j].item()
            for i in range(20)
            for j in range(22)
            if not m[i : i + 11, j : j + 11].any()
        ]
    assert len(kept) < 2 * 20 * 22
    assert background_ssim(a, b, mask) == pytest.approx(np.mean(kept), abs=1e-12)


# Structure


def test_structure_distance_is_its_definition_in_numpy(monkeypatch):
    edit, source = noise(3, 7, 5) - 0.5, noise(3, 7, 4, seed=1) - 0.5
    expected = []
    for a, b in zip(edit.numpy(), source.numpy(), strict=True):
        total = 0
        for p in range(7):
            for q in range(7):
                s, t = (x[p] @ x[q] / np.linalg.norm(x[p]) / np.linalg.norm(x[q]) for x in (a, b))
                total += (s - t) ** 2
        expected.append(total / 49)
    assert np.allclose(structure_distance(edit, source, per_frame=True), expected, rtol=1e-10)
    monkeypatch.setattr(fidelity, "BLOCK", 15)  # two rows at a time
    assert structure_distance(edit, source) == pytest.approx(np.mean(expected), rel=1e-10)


def test_structure_does_not_know_appearance():
    tokens = noise(2, 9, 6, dtype=torch.float32) - 0.5
    turn, _ = torch.linalg.qr(torch.randn(6, 6))
    assert structure_distance(tokens, tokens) == 0
    assert structure_distance(3 * tokens @ turn, tokens) < 1e-12
    assert structure_distance(tokens.flip(1), tokens) > 1e-2


def test_all_alike_against_all_different_is_the_share_of_pairs():
    source, edit = torch.eye(4)[None], torch.ones(1, 4, 3)
    assert structure_distance(edit, source) == pytest.approx(12 / 16, abs=1e-12)


# Motion


def slow_fidelity(edit, source, still=0.0):
    def correlation(p, q):
        total = 0
        for u, v in zip(np.diff(p, axis=0), np.diff(q, axis=0), strict=True):
            lu, lv = np.linalg.norm(u), np.linalg.norm(v)
            if lu > still and lv > still:
                total += u @ v / lu / lv
            elif lu <= still and lv <= still:
                total += 1
        return total / (len(p) - 1)

    both = np.array(
        [[correlation(p, q) for q in source.transpose(1, 0, 2)] for p in edit.transpose(1, 0, 2)]
    )
    return (both.max(1).mean() + both.max(0).mean()) / 2


@pytest.mark.parametrize("still", [0, 0.4])
def test_motion_fidelity_is_its_definition_in_loops(still, monkeypatch):
    monkeypatch.setattr(fidelity, "BLOCK", 16)  # a few tracks at a time
    edit, source = noise(5, 9, 2), noise(5, 6, 2, seed=1)
    found = motion_fidelity(edit, source, still=still)
    assert found == pytest.approx(slow_fidelity(edit.numpy(), source.numpy(), still), abs=1e-12)


def test_motion_is_compared_by_direction_alone():
    steps = torch.arange(5.0)[:, None, None]
    right = torch.cat([steps, 0 * steps], -1)
    down, still = right.flip(-1), 0 * right
    assert motion_fidelity(right, right) == pytest.approx(1)
    assert motion_fidelity(3 * right + 7, right) == pytest.approx(1)
    assert motion_fidelity(-right, right) == pytest.approx(-1)
    assert motion_fidelity(down, right) == motion_fidelity(still, right) == 0
    assert motion_fidelity(still, still) == 1
    # the edit found half of the source's motion: 1 one way, a half the other
    assert motion_fidelity(right, torch.cat([right, down], 1)) == pytest.approx(0.75)


def test_steps_that_are_not_seen_do_not_count():
    source, seen = torch.zeros(4, 1, 2), torch.ones(4, 1, dtype=torch.bool)
    source[:, 0, 0] = torch.arange(4)
    edit = source.clone()
    edit[3] = -5  # lost in the last frame
    seen[3] = False
    assert motion_fidelity(edit, source) < 0.7
    assert motion_fidelity(edit, source, edit_visible=seen) == pytest.approx(1)
    assert motion_fidelity(source, edit, source_visible=seen) == pytest.approx(1)
    edit = source.clone()
    edit[1] += 5  # lost in between: neither the step there nor the one back counts
    seen[:] = torch.tensor([True, False, True, True])[:, None]
    assert motion_fidelity(edit, source) < 0.7
    assert motion_fidelity(edit, source, edit_visible=seen) == pytest.approx(1)
    with pytest.raises(ValueError, match="no two tracks are visible in the same step"):
        motion_fidelity(edit, source, edit_visible=seen & False)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_motion_fidelity_is_symmetric_and_within_one(f, m, k, seed):
    a, b = noise(f, m, 2, seed=seed), noise(f, k, 2, seed=seed + 1)
    value = motion_fidelity(a, b)
    assert value == pytest.approx(motion_fidelity(b, a), abs=1e-12) and -1 <= value <= 1 + 1e-12
    assert motion_fidelity(a, a) == pytest.approx(1, abs=1e-12)


def test_aligned_tracks_are_compared_one_to_one():
    edit, source = noise(5, 6, 2), noise(5, 6, 2, seed=1)
    each = [motion_fidelity(edit[:, i : i + 1], source[:, i : i + 1]) for i in range(6)]
    value = motion_fidelity(edit, source, aligned=True)
    assert value == pytest.approx(np.mean(each), abs=1e-12) and value < motion_fidelity(
        edit, source
    )
    with pytest.raises(ValueError, match=r"6 tracks of the edit, 5 of its source; aligned"):
        motion_fidelity(edit, source[:, :5], aligned=True)


def test_the_menageries_truth_moves_as_itself_and_not_otherwise():
    clip = film("a red cat walking on grass", frames=6)
    points = token_centers((8, 8), (128, 128)).double()
    tracks, seen = follow_flow(points, clip.flow, clip.visible)
    both = {"edit_visible": seen, "source_visible": seen}
    assert motion_fidelity(tracks, tracks, **both) == pytest.approx(1, abs=1e-9)
    assert motion_fidelity(tracks.flip(-1), tracks, **both) < 0.8
    backwards = 2 * tracks[:1] - tracks
    assert motion_fidelity(backwards, tracks, aligned=True, **both) == pytest.approx(-1, abs=1e-9)


# Refused

FRAMES, MASK = moving(2, 16, 20), torch.zeros(2, 16, 20, dtype=torch.bool)
TOKENS, TRACKS = torch.rand(2, 9, 4), torch.rand(3, 5, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ssim", (FRAMES, FRAMES[:1]), r"a is \(2, 3, 16, 20\) but b is \(1, 3, 16, 20\)"),
        ("ssim", (FRAMES[..., :9], FRAMES[..., :9]), r"\(2, 3, 16, 9\); SSIM needs 11 x 11"),
        ("background_psnr", (FRAMES, FRAMES, MASK.float()), r"mask is torch.float32 \(2, 16, 20\)"),
        ("background_psnr", (FRAMES, FRAMES, MASK[:1]), r"mask is torch.bool \(1, 16, 20\); frame"),
        ("background_psnr", (FRAMES, FRAMES, None), r"mask is None; frames"),
        ("background_psnr", (FRAMES, FRAMES, ~MASK), r"the mask covers all of the 2 frames"),
        ("background_ssim", (FRAMES, FRAMES, ~MASK), r"leaves no window of 11 x 11 pixels free"),
        ("background_ssim", (FRAMES, FRAMES[:1], MASK), r"edit is \(2, .* but source is \(1, 3"),
        ("structure_distance", (TOKENS, TOKENS[:, :8]), r"edit is \(2, 9, 4\), source \(2, 8, 4\)"),
        ("structure_distance", (TOKENS[0], TOKENS), r"edit is \(9, 4\); expected tokens"),
        ("structure_distance", (TOKENS, None), r"source is NoneType; expected tokens"),
        ("structure_distance", (TOKENS, TOKENS * math.nan), r"source holds NaN or infinity"),
        ("motion_fidelity", (TRACKS, TRACKS[:2]), r"edit is \(3, 5, 2\), source \(2, 5, 2\)"),
        ("motion_fidelity", (TRACKS[:1], TRACKS[:1]), r"over the same frames, two at least"),
        ("motion_fidelity", (TOKENS, TOKENS), r"expected tracks \(f, m, 2\)"),
        ("motion_fidelity", (TRACKS, TRACKS * math.nan), r"tracks hold NaN or infinity where they"),
    ],
)
def test_what_cannot_be_compared_is_refused(name, arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        bare(getattr(fidelity, name))(*arguments)


def test_settings_of_motion_are_checked():
    with pytest.raises(ValueError, match=r"still=-1: expected pixels, 0 or more"):
        motion_fidelity(TRACKS, TRACKS, still=-1)
    with pytest.raises(ValueError, match=r"visible is torch.bool \(2, 5\); tracks \(3, 5, 2\) nee"):
        bare(motion_fidelity)(TRACKS, TRACKS, edit_visible=torch.ones(2, 5, dtype=torch.bool))
