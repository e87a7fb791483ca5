"""Values as pictures: colours mean what they say, in the place they belong to."""

import pytest
import torch
from clips import moving

from tfkit import overlays


def test_flow_is_drawn_by_direction_and_length():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0, 0, 0], flow[0, 0, 0, 1], flow[0, 0, 0, 2] = 4.0, -4.0, 2.0
    colors = overlays.flow_colors(flow)
    assert colors.shape == (1, 3, 4, 4) and (colors[..., 1:, :] == 1).all()  # stands still: white
    right, left, slow = colors[0, :, 0, 0], colors[0, :, 0, 1], colors[0, :, 0, 2]
    torch.testing.assert_close(right, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(left, torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(slow, torch.tensor([1.0, 0.5, 0.5]))
    torch.testing.assert_close(overlays.flow_colors(flow, reach=8.0)[0, :, 0, 0], slow)


def test_labels_have_a_colour_each_outlines_and_frames_shine_through():
    labels = torch.tensor([0, 1, 2, 12]).repeat_interleave(4).expand(1, 3, 16)
    colors = overlays.label_colors(labels)
    inside = colors[0, :, 0, 2::4]
    assert len(torch.unique(inside, dim=1).T) == 4
    torch.testing.assert_close(colors[0, :, 0, 4], 0.25 * inside[:, 1])  # where 1 begins
    under = torch.ones(1, 3, 3, 16)
    through = overlays.label_colors(labels, under)[0, :, 0, 2::4]
    torch.testing.assert_close(through, 0.65 * inside + 0.35)


def test_label_colours_differ_in_lightness_where_they_are_neighbours():
    labels = torch.arange(16).repeat_interleave(4).expand(1, 3, 64)
    grey = overlays.label_colors(labels)[0, :, 0, 2::4].mean(0)
    assert (grey[1:] - grey[:-1]).abs().min() > 0.1


def test_what_the_next_frame_hides_is_marked():
    frames, visible = moving(3), torch.ones(2, 32, 48, dtype=torch.bool)
    visible[1, 4, 5] = False
    shown = overlays.hide(frames, visible)
    assert shown.shape == (2, 3, 32, 48)
    torch.testing.assert_close(shown[1, :, 4, 5], torch.tensor([213, 94, 0]) / 255)
    torch.testing.assert_close(shown[0], 0.35 * frames[0] + 0.65)


def test_tokens_are_drawn_where_they_lie():
    colors = torch.rand(2, 6, 3)
    image = overlays.token_images(colors, (8, 12))
    assert image.shape == (2, 3, 8, 12)
    assert torch.equal(image[1, :, 5, 9], colors[1, 5]) and torch.equal(
        image[0, :, 1, 6], colors[0, 1]
    )


def test_similarity_is_dark_where_unlike_and_yellow_where_like():
    scores = torch.tensor([[0.0, 0.0, 0.5, 1.0, 0.0, 0.0]])
    image = overlays.similarity_colors(scores, (8, 12), low=0)
    assert image.shape == (1, 3, 8, 12)
    lightness = image.mean(1)[0]
    assert lightness[1, 9] < lightness[1, 10] or lightness[5, 1] > lightness[1, 10]
    torch.testing.assert_close(
        image[0, :, 5, 1], torch.tensor([0.993, 0.906, 0.144]), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(
        image[0, :, 1, 1], torch.tensor([0.267, 0.005, 0.329]), atol=2e-3, rtol=0
    )


def test_differences_are_white_where_equal_red_where_lighter():
    a, b = torch.full((1, 3, 2, 3), 0.5), torch.full((1, 3, 2, 3), 0.5)
    a[..., 1], a[..., 2] = 0.9, 0.1
    same, lighter, darker = overlays.difference_colors(a, b)[0, :, 0].T
    assert same.min() > 0.95
    assert lighter[0] > lighter[2] + 0.3 and darker[2] > darker[0] + 0.3
    with pytest.raises(ValueError, match="expected one shape"):
        overlays.difference_colors(a, b[..., :2])


def test_any_precision_is_drawn():
    frames, flow = torch.rand(3, 3, 8, 8), torch.randn(2, 2, 8, 8)
    near = {"rtol": 0, "atol": 0.05}
    for dtype in (torch.bfloat16, torch.float64):
        drawn = overlays.flow_colors(flow.to(dtype).requires_grad_(), reach=4.0)
        torch.testing.assert_close(drawn, overlays.flow_colors(flow, reach=4.0), **near)
        drawn = overlays.difference_colors(frames.to(dtype), frames)
        torch.testing.assert_close(drawn, torch.full_like(drawn, drawn[0, 0, 0, 0].item()), **near)


def test_points_are_where_they_are_and_hidden_ones_are_not():
    frames = torch.full((2, 3, 20, 30), 0.5)
    places = torch.tensor([[[5.0, 6.0], [20.0, 12.0]], [[7.0, 6.0], [20.0, 12.0]]])
    seen = torch.tensor([[True, True], [True, False]])
    image = overlays.mark_points(frames, places, seen, zoom=3)
    assert image.shape == (2, 3, 60, 90)
    marked = (image - 128 / 255).abs().amax(1) > 0.1
    y, x = marked[1].nonzero().double().mean(0)  # enlarged, the centre of (7, 6) is (22, 19)
    assert abs(y - 19) < 0.3 and abs(x - 22) < 0.3
    assert marked[0, 37, 61] and not marked[1, 37, 61]
    with_trail = overlays.mark_points(frames, places, seen, zoom=3, trail=1)
    assert not torch.equal(with_trail[1], image[1]) and torch.equal(with_trail[0], image[0])
    with pytest.raises(ValueError, match="places are of 1 frames, the frames are 2"):
        overlays.mark_points(frames, places[:1])


def test_change_along_the_motion_is_black_where_nothing_flickers():
    frames = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    frames[1] = frames[0].roll(2, -1)  # all moves two pixels to the right
    frames[1, :, 3, 7] = 1 - frames[1, :, 3, 7]
    flow = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 12)
    seen = torch.ones(1, 8, 12, dtype=torch.bool)
    seen[:, 5] = False
    bright = overlays.change_colors(frames, flow, seen)[0].sum(0) > 0.1
    assert bright.nonzero().tolist() == [[3, 5]]


def test_a_crop_holds_the_mask_in_all_frames():
    frames, mask = torch.rand(2, 3, 20, 30), torch.zeros(2, 20, 30, dtype=torch.bool)
    mask[0, 3:6, 10:12] = mask[1, 15, 25] = True
    assert torch.equal(overlays.crop_around(frames, mask, 2), frames[:, :, 1:18, 8:28])
    assert overlays.crop_around(frames, mask, 50).shape == frames.shape
    large = frames.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(overlays.crop_around(large, mask, 2), large[:, :, 3:54, 24:84])
    with pytest.raises(ValueError, match="the mask is empty"):
        overlays.crop_around(frames, mask & False)


def test_a_map_needs_a_range():
    with pytest.raises(ValueError, match=r"low=1\.0, high=1\.0"):
        overlays.map_colors(torch.zeros(1, 2, 2), 1.0, 1.0)
