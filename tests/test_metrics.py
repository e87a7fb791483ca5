"""Metrics against numpy, and against clips whose motion is known because they were made with it."""

import math

import numpy as np
import pytest
import torch
from clips import bare, moving

from tfkit import metrics
from tfkit.metrics import color_spread, estimate_flow, psnr, resize_flow, warp, warp_error
from tfkit.video import Clip, resize


def textured(h=64, w=96, seed=0):
    """A picture with detail at several scales, (3, h, w)."""
    noise = torch.Generator().manual_seed(seed)
    layers = [
        resize(torch.rand(1, 3, h // s, w // s, generator=noise), (h, w)) for s in (2, 4, 8, 16)
    ]
    return torch.cat(layers).mean(0)


def sliding(dx, dy, f=4, h=64, w=96, dtype=torch.float32):
    """Windows of a textured picture, so that everything moves by whole pixels (dx, dy) a frame."""
    m = 4 * max(abs(dx), abs(dy), 1)
    picture = textured(h + 2 * m, w + 2 * m).to(dtype)
    frames = [picture[:, m - i * dy :, m - i * dx :][:, :h, :w] for i in range(f)]
    flow = torch.tensor([dx, dy], dtype=dtype).view(1, 2, 1, 1).expand(f - 1, 2, h, w)
    return torch.stack(frames), flow, torch.ones(f - 1, h, w, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_psnr_is_numpys(dtype):
    torch.manual_seed(0)
    a, b = torch.rand(2, 5, 3, 8, 9).to(dtype)
    x, y = a.double().numpy(), b.double().numpy()
    assert psnr(a, b) == pytest.approx(-10 * np.log10(np.mean((x - y) ** 2)))
    each = psnr(Clip(a), b, per_frame=True)
    assert np.allclose(each, -10 * np.log10(np.mean((x - y) ** 2, axis=(1, 2, 3))))


def test_psnr_of_equal_frames_is_infinite_and_of_a_tenth_twenty():
    a = moving(3)
    assert psnr(a, a) == math.inf
    assert psnr(a, torch.cat([a[:2], a[2:] + 0.1]), per_frame=True).tolist() == pytest.approx(
        [math.inf, math.inf, 20], abs=1e-4
    )


@pytest.mark.parametrize("dx, dy", [(3, 0), (0, -2), (-1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warping_by_whole_pixels_is_exact(dx, dy, dtype):
    frames, flow, _ = sliding(dx, dy, dtype=dtype)
    warped, inside = warp(frames, flow)
    assert warped.dtype == dtype and warped.shape == (3, 3, 64, 96)
    assert inside.sum() == 3 * (64 - abs(dy)) * (96 - abs(dx))
    difference = (warped - frames[:-1]).abs().amax(1)
    assert difference[inside].max() < 1e-6 < difference[~inside].max()


def test_half_a_pixel_is_the_mean_of_two():
    frames = textured(16, 16).expand(2, -1, -1, -1)
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0] = 0.5
    warped, inside = warp(frames, flow)
    expected = (frames[0, ..., :-1] + frames[0, ..., 1:]) / 2
    assert torch.allclose(warped[0, ..., :-1], expected, atol=1e-6)
    assert inside[..., :-1].all() and not inside[..., -1].any()


def test_the_right_flow_gives_no_error_and_a_wrong_one_more():
    frames, flow, visible = sliding(2, 1)
    right, less, none = (warp_error(frames, flow * s, visible) for s in (1, 0.5, 0))
    assert right < 1e-12 < 1e-3 < less < none


def test_warp_error_is_its_definition_in_numpy():
    torch.manual_seed(0)
    frames = torch.rand(3, 3, 5, 7, dtype=torch.float64)
    flow = torch.randint(-2, 3, (2, 2, 5, 7)).double()
    visible = torch.rand(2, 5, 7) > 0.4
    pairs = []
    for i in range(2):
        squares = []
        for y in range(5):
            for x in range(7):
                to_x, to_y = int(x + flow[i, 0, y, x]), int(y + flow[i, 1, y, x])
                if visible[i, y, x] and 0 <= to_x < 7 and 0 <= to_y < 5:
                    change = frames[i, :, y, x] - frames[i + 1, :, to_y, to_x]
                    squares.append(np.mean(change.numpy() ** 2))
        pairs.append(np.mean(squares))
    assert warp_error(frames, flow, visible) == pytest.approx(np.mean(pairs), rel=1e-12)
    each = warp_error(frames, flow, visible, per_pair=True)
    assert each.tolist() == pytest.approx(pairs, rel=1e-12)


def test_hidden_points_do_not_count():
    frames, flow, visible = sliding(0, 0)
    frames = frames.clone()
    frames[1, :, 10:20, 10:20] = 0
    changed = warp_error(frames, flow, visible)
    visible = visible.clone()
    visible[:2, 10:20, 10:20] = False
    assert warp_error(frames, flow, visible) < 1e-20 < changed
    visible[1:] = False  # a pair in which nothing is visible is left out
    assert warp_error(frames, flow, visible) < 1e-20
    each = warp_error(frames, flow, visible, per_pair=True)
    assert each[0] < 1e-20 and each[1:].isnan().all() and len(each) == len(flow)


def test_flicker_is_measured_in_squared_intensity():
    frames = torch.full((4, 3, 16, 16), 0.5)
    frames[1::2] += 0.1
    still, visible = torch.zeros(3, 2, 16, 16), torch.ones(3, 16, 16, dtype=torch.bool)
    assert warp_error(Clip(frames), still, visible) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("dx, dy", [(3, 0), (-2, 1)])
@pytest.mark.parametrize("preset", ["medium", "fast"])
def test_estimated_flow_finds_a_known_shift(dx, dy, preset):
    frames, flow, _ = sliding(dx, dy)
    found, visible = estimate_flow(frames, preset)
    assert found.dtype == torch.float32 and found.shape == flow.shape
    away = (found - flow).square().sum(1).sqrt()
    assert away[visible].mean() < 0.3 and visible.float().mean() > 0.8
    assert warp_error(frames, found, visible) < 0.1 * warp_error(frames, 0 * flow, visible)


def test_what_a_moving_square_covers_is_not_visible():
    frames = textured(96, 96, seed=1).expand(2, -1, -1, -1).clone()
    square = textured(40, 40, seed=2) * 0.6 + 0.4
    for i, x in enumerate((20, 28)):
        frames[i, :, 30:70, x : x + 40] = square
    _, visible = estimate_flow(frames)
    covered = visible[0, 34:66, 61:67].float().mean()  # ground the square moves over
    assert covered < 0.5
    assert visible[0, 34:66, 26:54].float().mean() > 0.9  # the square itself
    assert visible[0, :24].float().mean() > 0.9  # ground far away


def test_the_flow_of_a_source_measures_an_edit_of_another_size():
    frames, flow, visible = sliding(4, 2, h=64, w=96)
    smaller, seen = resize_flow(flow, visible, (32, 48))
    assert torch.allclose(smaller, flow[..., :32, :48] / 2) and seen.all()
    edit = resize(frames, (32, 48))
    # bicubic shrinking does not commute with the border exactly
    assert warp_error(edit, smaller, seen) < 1e-3 * warp_error(edit, 0 * smaller, seen)
    visible = visible.clone()
    visible[:, 11, 21] = False
    _, seen = resize_flow(flow, visible, (32, 48))
    assert not seen[:, 5, 10].any() and seen.float().mean() > 0.99
    wide, _ = resize_flow(flow.double(), visible, (64, 192))
    assert wide.dtype == torch.float64 and wide[0, :, 0, 0].tolist() == [8, 2]


def test_color_spread_is_the_root_of_the_mean_variance():
    frames = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64)
    frames[1::2, 0, 2:4, 2:4] = 0.7  # red, under the mask, 0.1 either side of its mean
    frames[:, :, 6] = torch.rand(4, 3, 8, dtype=torch.float64)  # not under it
    mask = torch.zeros(4, 8, 8, dtype=torch.bool)
    mask[:, 2:4, 2:4] = True
    assert color_spread(frames, mask) == pytest.approx(math.sqrt(0.1**2 / 3))
    mask[1::2] = False  # frames without the animal are left out
    assert color_spread(frames, mask) == 0


FRAMES = moving(3, 16, 20)
FLOW, VISIBLE = torch.zeros(2, 2, 16, 20), torch.ones(2, 16, 20, dtype=torch.bool)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("psnr", (FRAMES, FRAMES[:2]), r"a is \(3, 3, 16, 20\) but b is \(2, 3, 16, 20\)"),
        ("psnr", (FRAMES, FRAMES[0]), r"b has shape \(3, 16, 20\); expected \(f, 3, h, w\)"),
        ("warp", (FRAMES, FLOW[:1]), r"flow is \(1, 2, 16, 20\); frames .* need \(2, 2, 16, 20\)"),
        ("warp", (FRAMES, None), r"flow is NoneType; frames"),
        ("warp", (FRAMES[:1], FLOW[:0]), r"at least one pair"),
        ("warp_error", (FRAMES[..., :8, :10], FLOW, VISIBLE), r"need \(2, 2, 8, 10\).*resize_flow"),
        ("warp_error", (FRAMES, FLOW, VISIBLE[:1]), r"visible is torch.bool \(1, 16, 20\); the fl"),
        ("warp_error", (FRAMES, FLOW, VISIBLE.float()), r"visible is torch.float32"),
        ("warp_error", (FRAMES, FLOW, None), r"visible is None"),
        ("psnr", (FRAMES, FRAMES * torch.nan), r"hold NaN or infinity"),
        ("warp_error", (FRAMES * torch.nan, FLOW, VISIBLE), r"frames hold NaN or infinity"),
        ("warp_error", (FRAMES, FLOW * torch.nan, VISIBLE), r"flow holds NaN or infinity"),
        ("resize_flow", (FLOW, VISIBLE, 32), r"size=32; expected \(h, w\)"),
        ("warp_error", (FRAMES, FLOW, ~VISIBLE), r"no point is visible in any of the 2 pairs"),
        ("warp_error", (FRAMES, FLOW + 99, VISIBLE), r"no point is visible"),
        ("estimate_flow", (FRAMES, "slow"), r"preset='slow'; expected one of ultrafast, fast, m"),
        ("estimate_flow", (FRAMES[:1],), r"flow needs two frames of 16 x 16 at least"),
        ("estimate_flow", (FRAMES[..., :8, :8],), r"flow needs two frames of 16 x 16 at least"),
        ("color_spread", (FRAMES, VISIBLE), r"mask is torch.bool \(2, 16, 20\); frames of"),
        ("color_spread", (FRAMES, FRAMES[:, 0] > 2), r"the mask covers nothing in any of the 3"),
        ("resize_flow", (FLOW, VISIBLE, (0, 8)), r"size=\(0, 8\); expected"),
        (
            "resize_flow",
            (FLOW[0], VISIBLE, (8, 8)),
            r"flow is \(2, 16, 20\), visible \(2, 16, 20\)",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        bare(getattr(metrics, name))(*arguments)


# Correspondences


def test_pck_counts_points_within_reach():
    truth = torch.zeros(4, 2)
    found = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 5.1], [9.0, 0.0]])
    assert metrics.pck(found, truth, 5.0) == bare(metrics.pck)(found, truth, torch.tensor(5)) == 0.5
    with pytest.raises(ValueError, match=r"found is \(4, 2\), truth \(3, 2\)"):
        bare(metrics.pck)(found, truth[:3], 5.0)


@pytest.mark.parametrize("points", [[[1, 2]], torch.zeros(1, 2).numpy(), "points"])
def test_points_of_pck_are_tensors(points):
    with pytest.raises(ValueError, match=r"found is a \w+; expected a tensor \(n, 2\)"):
        bare(metrics.pck)(points, torch.zeros(1, 2), 1)


def test_pck_per_image_weighs_every_image_alike():
    many, one = torch.zeros(9, 2), torch.zeros(1, 2)
    found, truth = [many, one + 3], [many, one]
    assert metrics.pck(found, truth, 1) == pytest.approx(0.9)
    assert metrics.pck(found, truth, 1, per="image") == 0.5
    assert metrics.pck(found, truth, [1, 5], per="image") == 1.0  # a threshold for each image


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 1, "per": "frame"}, "per='frame'; expected 'point' or 'image'"),
        ({"reach": [1, 2, 3]}, "2 images of found points, 2 of true ones and 3 thresholds"),
        ({"reach": []}, "and 0 thresholds; expected as many"),
        ({"reach": -1}, "reach=-1: expected a number of at least 0, pixels"),
        ({"reach": [1, float("nan")]}, "reach=nan: expected a number"),
        ({"reach": True}, "reach=True: expected a number"),
    ],
)
def test_pck_of_images_says_what_does_not_match(settings, message):
    points = [torch.zeros(2, 2)] * 2
    with pytest.raises(ValueError, match=message):
        bare(metrics.pck)(points, points, **settings)


def test_the_reach_of_pck_is_a_share_of_the_image_or_of_the_box():
    mask = torch.zeros(64, 96, dtype=torch.bool)
    assert metrics.pck_reach(0.05, (64, 96)) == pytest.approx(4.8)
    with pytest.raises(ValueError, match="mask is empty"):
        metrics.pck_reach(0.1, mask)
    mask[10:20, 30:70] = True
    assert metrics.pck_reach(0.1, mask) == pytest.approx(4.0)
    with pytest.raises(ValueError, match=r"alpha=-0\.1: expected a number of at least 0, share"):
        metrics.pck_reach(-0.1, mask)
    with pytest.raises(ValueError, match=r"of is torch\.float32; expected a mask"):
        bare(metrics.pck_reach)(0.1, mask.float())


def test_end_point_error_is_a_mean_distance():
    found = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert metrics.end_point_error(found, torch.zeros(2, 2)) == 3.0


def test_iou_of_each_true_label():
    truth = torch.tensor([[0, 0, 1, 1, 2]])
    found = torch.tensor([[0, 1, 1, 1, 3]])
    assert metrics.iou(found, truth) == {0: 0.5, 1: pytest.approx(2 / 3), 2: 0.0}
    with pytest.raises(ValueError, match=r"found is \(1, 4\), truth \(1, 5\)"):
        bare(metrics.iou)(found[:, :4], truth)


# Flow there and back


@pytest.mark.parametrize(("apart", "seen"), [(0.7, True), (0.72, False)])
def test_a_flow_is_trusted_where_the_way_back_misses_by_little(apart, seen):
    forward, backward = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    backward[1] = apart  # 0.49 and 0.5184, of at most 0.5 and 0.01 of its own square
    assert (metrics.trusted(forward, backward) == seen).all()


def test_a_long_way_may_miss_by_more_and_out_of_the_picture_is_not_seen():
    forward, backward = torch.zeros(2, 32, 64), torch.zeros(2, 32, 64)
    forward[0], backward[0] = 20, -18  # 4, of at most 0.01 (400 + 324) + 0.5
    found = metrics.trusted(forward, backward)
    assert found[:, :44].all() and not found[:, 44:].any()
    backward[0] = -17  # 9, of at most 7.39
    assert not metrics.trusted(forward, backward).any()
