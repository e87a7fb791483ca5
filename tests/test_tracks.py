"""Tracks, labels and places: found again where they were put, and against the menagerie's truth."""

import pytest
import torch
from clips import bare

from tfkit import metrics, tracks
from tfkit.measured_source import follow_tokens
from tfkit.menagerie import film
from tfkit.tracks import follow_flow, grid_of, locate, propagate_labels, token_centers, track_points


def shifted(frames=4, rows=8, columns=12, width=16, step=1):
    """Tokens of a random picture that moves right by ``step`` tokens a frame: (f, n, d)."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(rows, columns + step * frames, width, generator=g)
    views = [base[:, step * (frames - i) :][:, :columns] for i in range(frames)]
    return torch.stack(views).reshape(frames, rows * columns, width)


@pytest.mark.parametrize(
    ("n", "size", "grid"),
    [(1024, (128, 128), (32, 32)), (96, (64, 96), (8, 12)), (96, (96, 64), (12, 8)),
     (60 * 107, (480, 854), (60, 107)), (1, (5, 5), (1, 1))],
)  # fmt: skip
def test_the_grid_has_the_pictures_aspect(n, size, grid):
    assert grid_of(torch.zeros(2, n, 3), size) == grid


def test_tokens_that_fit_no_grid_are_refused():
    with pytest.raises(ValueError, match=r"97 tokens lie on no grid .* 64 x 96"):
        grid_of(torch.zeros(1, 97, 3), (64, 96))


def test_centers_lie_between_the_pixels_a_token_covers():
    centers = token_centers((2, 3), (8, 12))
    assert centers.tolist() == [
        [1.5, 1.5],
        [5.5, 1.5],
        [9.5, 1.5],
        [1.5, 5.5],
        [5.5, 5.5],
        [9.5, 5.5],
    ]


def test_points_are_followed_through_a_moving_picture():
    tokens, size = shifted(), (32, 48)
    points = token_centers((8, 12), size)[[13, 40, 66]]
    found, best = track_points(tokens, points, size, window=None)
    for i in range(4):
        torch.testing.assert_close(found[i], points + torch.tensor([4.0 * i, 0.0]))
    torch.testing.assert_close(best, torch.ones(4, 3))
    backwards, _ = track_points(tokens, found[3], size, start=3, window=None)
    torch.testing.assert_close(backwards[0], points)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_stands_still_stands_still_in_half_precision(dtype):
    """Pixels beyond 256 are more than that precision tells apart."""
    tokens = shifted(step=0, rows=45, columns=80).to(dtype)
    found = follow_tokens(tokens, (720, 1280))
    assert (found - found[0]).abs().max() < 0.1


def test_a_track_starts_where_it_was_asked_for():
    """Between tokens too, where the nearest token to a mixture may be far away."""
    points = torch.tensor([[21.0, 9.0], [30.2, 17.7]])
    found, alike = track_points(shifted(), points, (32, 48), start=1)
    torch.testing.assert_close(found[1], points)
    assert alike[1].eq(1).all() and alike[0].lt(1).all()


def test_a_soft_argmax_is_finer_than_a_token():
    """The peak of a smooth bump lies between tokens: the mean finds it, the best token cannot."""
    grid, size = (16, 16), (64, 64)
    centers, true = token_centers(grid, size), torch.tensor([[30.3, 26.4]])
    scores = torch.exp(-((centers - true) ** 2).sum(1) / 60)[None]
    coarse = (locate(scores, grid, size) - true).norm()
    fine = (locate(scores, grid, size, window=5, temperature=0.15) - true).norm()
    assert coarse > 1 and fine < 0.25


def test_a_far_twin_does_not_pull_the_soft_argmax():
    scores = torch.zeros(1, 100)
    scores[0, 11], scores[0, 88] = 1.0, 0.99
    at = locate(scores, (10, 10), (40, 40), window=3, temperature=0.01)
    assert (at - token_centers((10, 10), (40, 40))[11]).norm() < 0.1
    with pytest.raises(ValueError, match="window=0"):
        locate(scores, (10, 10), (40, 40), window=0)


def test_labels_travel_with_the_tokens():
    tokens = shifted()
    labels = torch.zeros(32, 48, dtype=torch.int64)
    labels[8:16, 8:20], labels[20:28, 24:32] = 3, 7
    carried = propagate_labels(tokens, labels, neighbors=1)
    assert carried.shape == (4, 32, 48) and torch.equal(carried[0], labels)
    truth = torch.stack([labels.roll(4 * i, 1) for i in range(4)])
    scores = metrics.iou(carried, truth)
    assert set(scores) == {0, 3, 7} and min(scores.values()) > 0.85  # its corners are rounded


def test_the_flow_of_a_clip_carries_its_own_parts():
    clip = film("a striped red dog on grass", frames=6, seed=3)
    y, x = clip.mask[0].nonzero()[::7].T
    places, seen = follow_flow(torch.stack([x, y], 1).float(), clip.flow, clip.visible)
    assert places.shape == (6, len(x), 2) and seen[0].all() and seen[-1].float().mean() > 0.5
    ex, ey = places[-1, seen[-1]].round().long().T
    same = clip.parts[-1, ey, ex] == clip.parts[0, y[seen[-1]], x[seen[-1]]]
    assert same.float().mean() > 0.9  # all but those on an edge


def test_a_track_adds_up_its_steps_and_remembers_being_lost():
    flow = torch.zeros(3, 2, 8, 8)
    flow[:, 0], flow[1, 1] = 1.0, -2.0
    visible = torch.ones(3, 8, 8, dtype=torch.bool)
    visible[1, 5, 3] = False
    points = torch.tensor([[1.0, 4.0], [2.0, 5.0], [6.0, 4.0]])
    places, seen = follow_flow(points, flow, visible)
    torch.testing.assert_close(places[-1], points.double() + torch.tensor([3.0, -2.0]).double())
    assert seen[-1].tolist() == [True, False, False]  # the last has left the picture
    assert seen[1].tolist() == [True, True, True]


@pytest.mark.parametrize("points", [[[1, 2]], torch.zeros(2), torch.zeros(2, 3)])
def test_points_that_are_none_are_refused(points):
    with pytest.raises(ValueError, match=r"points: .*; expected a tensor \(m, 2\) of pixels"):
        bare(track_points)(shifted(), points, (64, 96))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bare(track_points)(torch.zeros(5, 4), torch.zeros(1, 2), (8, 8)), r"\(f, n, d\)"),
        (lambda: track_points(torch.zeros(2, 4, 3), torch.zeros(1, 2), (8, 8), start=2), "0 to 1"),
        (lambda: propagate_labels(torch.zeros(2, 4, 3), torch.zeros(8, 8).long(), neighbors=9),
         "neighbors=9.*1 to 4"),
        (lambda: bare(follow_flow)(torch.zeros(1, 2), torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)),
         r"\(s, 2, h, w\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_true_tracks_find_most_of_a_clip_in_its_own_pixels():
    """RGB patches of 12 pixels, four frames on: far better than chance, far from perfect."""
    clip = film("a spotted yellow cat on sand", frames=5, seed=1)
    patches = torch.nn.functional.unfold(clip.frames, 12, padding=4, stride=4).transpose(1, 2)
    points = token_centers((32, 32), (128, 128))
    places, seen = follow_flow(points, clip.flow, clip.visible)
    x, y = points.long().T
    good = seen[-1] & clip.mask[0, y, x]
    found, _ = tracks.track_points(patches, points[good], (128, 128))
    assert metrics.pck(found[-1], places[-1, good], 0.05 * 128) > 0.3  # chance: 0.01
