"""The processors: against the model's own attention, and against what they must not see."""

import pytest
import torch

import tfkit
from tfkit import hooks
from tfkit.attention import (
    FlowAttention,
    JointAttention,
    KeyframeAttention,
    _softmax_attention,
    carry,
    extended,
    find_fields,
)
from tfkit.keyframes import Neighbors, key_blocks, paper_neighbors


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def layer(model):
    return hooks.self_attention(model.unet)["up_blocks.3.attentions.0.transformer_blocks.0.attn1"]


def tokens_for(layer, batch, n=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, layer.to_q.in_features, generator=g, dtype=torch.float64)


def test_one_frame_is_the_stock_processor(layer):
    tokens = tokens_for(layer, 3)
    with torch.no_grad():
        ours, stock = extended(layer, tokens, 3, True), layer(tokens)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-12)


def test_one_frame_is_the_stock_model(model):
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, 8, 8, generator=g, dtype=torch.float64), model.embed("a cat")
    with hooks.processor(model.unet, JointAttention(branches=1, source=False)):
        ours = model.predict_noise(x, 500, text)
    torch.testing.assert_close(ours, model.predict_noise(x, 500, text), rtol=0, atol=1e-10)


def test_the_source_stays_alone_and_the_branches_apart(layer):
    tokens = tokens_for(layer, 3 * 4)
    with torch.no_grad():
        out = extended(layer, tokens, 3, True)
        torch.testing.assert_close(out[:4], layer(tokens[:4]), rtol=0, atol=1e-12)
        changed = tokens.clone()
        changed[8:] += 1  # the last branch
        again = extended(layer, changed, 3, True)
    assert torch.equal(again[:8], out[:8]) and not torch.allclose(again[8:], out[8:])


@pytest.mark.parametrize("width", [3, 8, 12, 40])
def test_heads_of_any_width_attend_by_their_own(width):
    dice = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, width, generator=dice, dtype=torch.float64)
    want = torch.softmax(q @ k.transpose(-1, -2) / width**0.5, -1) @ v
    torch.testing.assert_close(_softmax_attention(q, k, v), want, rtol=0, atol=1e-12)


def test_extension_is_softmax_over_all_frames_keys(layer):
    tokens = tokens_for(layer, 3)
    with torch.no_grad():
        out = extended(layer, tokens, 1, False)
        q, k, v = layer.to_q(tokens[1]), layer.to_k(tokens), layer.to_v(tokens)
        width = q.shape[-1] // layer.heads
        heads = []
        for h in range(layer.heads):
            at = slice(h * width, (h + 1) * width)
            scores = q[:, at] @ k[..., at].reshape(-1, width).T / width**0.5
            heads.append(scores.softmax(-1) @ v[..., at].reshape(-1, width))
        expected = layer.to_out[0](torch.cat(heads, -1))
    torch.testing.assert_close(out[1], expected, rtol=0, atol=1e-12)


def test_a_keyframe_carried_to_itself_keeps_its_tokens():
    phi = torch.randn(2, 16, 8)
    outputs = torch.randn(3, 2, 16, 8)
    near = paper_neighbors(torch.tensor([0, 5]), torch.tensor([0, 5]))
    assert torch.equal(carry(outputs, find_fields(phi, phi, near), near), outputs)


def test_blending_weighs_the_two_carried_frames():
    phi = torch.randn(1, 16, 8)
    outputs = torch.stack([torch.zeros(16, 8), torch.ones(16, 8)])[None]
    near = Neighbors(*(torch.tensor([v]) for v in (1, 0, 0.75, True)))
    fields = find_fields(phi, phi.repeat(2, 1, 1), near)
    assert torch.allclose(carry(outputs, fields, near), torch.tensor(0.75))


def test_fields_are_as_small_as_their_tokens_allow():
    near = paper_neighbors(torch.tensor([0]), torch.tensor([0]))
    small, large = (
        find_fields(torch.ones(1, 2, 1), torch.ones(1, n, 1), near) for n in (2**15 - 1, 2**15)
    )
    assert (small.dtype, large.dtype) == (torch.int16, torch.int32)


@pytest.mark.parametrize(("on", "live", "queries"), [("output", False, 3), ("input", True, 0)])
def test_frames_need_no_queries_but_the_sources_own(layer, on, live, queries):
    """The point of propagation: no attention is computed in the edited branches."""
    flow = FlowAttention(3, on=on, live=live)
    flow(layer, tokens_for(layer, 3 * 2))
    seen = []
    handle = layer.to_q.register_forward_hook(lambda m, a, out: seen.append(len(out)))
    flow.neighbors = paper_neighbors(torch.tensor([1, 2, 3]), torch.tensor([0, 4]))
    flow.mode = "source"
    flow(layer, tokens_for(layer, 3, seed=1))
    assert sum(seen) == queries
    flow.mode = "edited"
    out = flow(layer, tokens_for(layer, 2 * 3, seed=1))
    handle.remove()
    assert sum(seen) == queries and len(out) == 6


# Many keyframes: windows and anchors


def masked(layer, tokens, blocks):
    """Attention over all keyframes at once, with a mask of what each may see: by another way."""
    count, n, _ = tokens.shape
    mask = torch.zeros(count, count, dtype=torch.bool)
    for block in blocks:
        mask[block.own[:, None], block.held] = True
    mask = mask.repeat_interleave(n, 0).repeat_interleave(n, 1)
    bias = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, -torch.inf)
    return layer(tokens.reshape(1, count * n, -1), attention_mask=bias[None]).view_as(tokens)


@pytest.mark.parametrize("kind", ["flow", "joint"])
def test_blocks_see_their_window_and_nothing_else(layer, kind):
    count, blocks = 11, key_blocks(11, 6)
    assert len(blocks) == 6
    branches = [tokens_for(layer, count, seed=i) for i in range(3)]
    attention = FlowAttention(3, in_blocks=True) if kind == "flow" else KeyframeAttention(3, True)
    outs = [torch.zeros_like(branch) for branch in branches]
    with torch.no_grad():
        for block in blocks:
            attention.context = block.context
            parts = attention(layer, torch.cat([x[block.own] for x in branches])).chunk(3)
            for out, part in zip(outs, parts, strict=True):
                out[block.own] = part
            if kind == "flow":
                kept = attention.kept[layer]
                assert len(kept.source) == len(block.held) <= 6
                for branch, out in zip(kept.outputs, outs, strict=True):
                    torch.testing.assert_close(branch, out[block.held], rtol=0, atol=0)
        torch.testing.assert_close(outs[0], layer(branches[0]), rtol=0, atol=1e-12)
        for out, branch in zip(outs[1:], branches[1:], strict=True):
            torch.testing.assert_close(out, masked(layer, branch, blocks), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("way", "options"),
    [
        (tfkit.TokenFlow, {"interval": 2}),
        (tfkit.TokenFlow, {"interval": 1, "variant": "reference"}),
        (tfkit.ExtendedAttention, {"interval": 2}),
    ],
)
def test_a_window_is_exact_for_few_and_the_same_in_any_batch(model, way, options):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, 8, 8, generator=g, dtype=torch.float64)
    source = tfkit.invert(model, x, "a cat", steps=2, progress=False)

    def edited(window, batch):
        how = way(window=window, **options)
        return tfkit.edit(model, source, "a dog", propagation=how, batch=batch, progress=False)

    every, wide, narrow, parts, whole = (
        edited(*how).latents for how in [(None, 8), (9, 8), (4, 8), (4, 1), (4, 64)]
    )
    torch.testing.assert_close(every, wide, rtol=0, atol=0)
    torch.testing.assert_close(narrow, parts, rtol=0, atol=1e-9)
    torch.testing.assert_close(narrow, whole, rtol=0, atol=1e-9)
    assert not torch.allclose(every, narrow)
    source.cache.clear()
    torch.testing.assert_close(edited(4, 8).latents, narrow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [0, 2, True])
def test_a_window_is_a_whole_number(window):
    with pytest.raises(ValueError, match=f"window={window!r}"):
        tfkit.TokenFlow(window=window)
    with pytest.raises(ValueError, match=f"window={window!r}"):
        tfkit.ExtendedAttention(window=window)


# Joint attention to keyframes


def test_other_frames_attend_to_the_keyframes_and_not_to_themselves(layer):
    keys, others = tokens_for(layer, 3 * 2), tokens_for(layer, 3 * 4, seed=1)
    attention = KeyframeAttention(branches=3, source=True)
    with torch.no_grad():
        torch.testing.assert_close(attention(layer, keys), extended(layer, keys, 3, True))
        attention.recall = True
        out = attention(layer, others)
        torch.testing.assert_close(out[:4], layer(others[:4]), rtol=0, atol=1e-12)
        for branch in (1, 2):
            both = keys[2 * branch : 2 * branch + 2].reshape(1, -1, keys.shape[-1])
            for i in range(4):
                frame = others[4 * branch + i : 4 * branch + i + 1]
                crossed = layer(frame, encoder_hidden_states=both)
                torch.testing.assert_close(out[4 * branch + i], crossed[0], rtol=0, atol=1e-12)


def test_with_every_frame_a_keyframe_it_is_joint_attention(model):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 8, 8, generator=g, dtype=torch.float64)
    source = tfkit.invert(model, x, "a cat", steps=2, progress=False)
    joint, keyed, sparse, parts = (
        tfkit.edit(model, source, "a dog", propagation=way, batch=b, progress=False).latents
        for way, b in [
            (tfkit.ExtendedAttention(), 8), (tfkit.ExtendedAttention(interval=1), 8),
            (tfkit.ExtendedAttention(interval=3), 8), (tfkit.ExtendedAttention(interval=3), 1),
        ]
    )  # fmt: skip
    torch.testing.assert_close(joint, keyed, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse, parts, rtol=0, atol=1e-9)
    assert not torch.allclose(joint, sparse)


# Cross-frame attention


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_first_frame_is_edited_as_if_alone_in_any_batch(model, frames):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(frames, 4, 8, 8, generator=g, dtype=torch.float64)
    source = tfkit.invert(model, x, "a cat", steps=2, progress=False)
    settings = {"method": tfkit.PlugAndPlay(), "progress": False}
    whole, parts = (
        tfkit.edit(model, source, "a dog", propagation=tfkit.FirstFrame(), batch=b, **settings)
        for b in (8, 2)
    )
    torch.testing.assert_close(whole.latents, parts.latents, rtol=0, atol=1e-9)
    alone = tfkit.edit(model, source, "a dog", propagation=tfkit.PerFrame(), **settings)
    torch.testing.assert_close(whole.latents[:1], alone.latents[:1], rtol=0, atol=1e-9)
    if frames > 1:
        assert not torch.allclose(whole.latents[1:], alone.latents[1:])
        keyed = tfkit.edit(
            model, source, "a dog", propagation=tfkit.ExtendedAttention(interval=frames),
            keyframes=[0], **settings,
        )  # fmt: skip
        torch.testing.assert_close(whole.latents, keyed.latents, rtol=0, atol=1e-9)
