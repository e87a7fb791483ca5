"""Editing methods: what they inject, when, and that they know nothing of consistency."""

import numpy as np
import pytest
import torch
from clips import bare

import tfkit
from tfkit import hooks
from tfkit.attention import extended
from tfkit.identity import key_of
from tfkit.methods import Moment, from_source, injection
from tfkit.sampling import sample
from tfkit.trajectory import CLEAN, Trajectory


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "said", "meant"),
    [
        (tfkit.SDEdit, {"start": 1}, {"start": 1.0}),
        (tfkit.SDEdit, {"start": np.float32(0.5), "seed": np.int64(3)}, {"start": 0.5, "seed": 3}),
        (tfkit.PlugAndPlay, {"attention": np.float64(0.5), "convolution": 0}, {"convolution": 0.0}),
        (tfkit.ControlNet, {"scale": np.float32(2), "until": 1}, {"scale": 2, "until": 1.0}),
        (tfkit.TokenFlow, {"interval": np.int64(2)}, {"interval": 2}),
        (tfkit.TokenFlow, {"window": np.int32(4)}, {"window": 4}),
        (tfkit.ExtendedAttention, {"interval": np.int64(2)}, {"interval": 2}),
    ],
)
def test_settings_are_the_same_in_other_numbers(kind, said, meant):
    """So that an edit goes on where it was stopped, however its settings were computed."""
    said, meant = bare(kind)(**said), kind(**meant)
    assert repr(said) == repr(meant)
    assert key_of(said) == key_of(meant)


def rewritten(model, method, step, steps=10):
    before = {n: len(m._forward_hooks) for n, m in model.unet.named_modules()}
    prepared = method.prepare(model, Trajectory((), "", None, {}))
    with injection(method, Moment(model, step, steps, torch.arange(2), 3, prepared)):
        return {n for n, m in model.unet.named_modules() if len(m._forward_hooks) > before[n]}


def test_what_injects_and_does_not_read_the_source_is_refused(model):
    """What it injected would be the negative prompt's features."""

    class Mine(tfkit.Plain):
        def injects(self, now):
            return ["mid_block.resnets.1"]

    source = tfkit.invert(model, torch.randn(2, 4, 8, 8).double(), steps=1, progress=False)
    for guidance in (1, 4):
        with pytest.raises(ValueError, match=r"source's 'mid_block\.resnets\.1', and its reads"):
            tfkit.edit(model, source, "a dog", method=Mine(), guidance=guidance,
                       propagation=tfkit.PerFrame(), progress=False)  # fmt: skip


def test_injection_ends_with_its_share_of_the_steps(model):
    method = tfkit.PlugAndPlay(attention=0.5, convolution=0.8)
    conv = "up_blocks.1.resnets.1.conv2"
    counts = [len(rewritten(model, method, step) - {conv}) for step in range(10)]
    assert counts[:5] == [16] * 5 and counts[5:] == [0] * 5  # q and k of eight layers
    assert [conv in rewritten(model, method, step) for step in range(10)] == [True] * 8 + [
        False
    ] * 2


def test_attention_is_injected_in_decoder_layers_4_to_11(model):
    names = rewritten(model, tfkit.PlugAndPlay(), 0)
    layers = sorted({name[:24] for name in names if "attn1" in name})
    expected = [(1, 1), (1, 2), *((block, i) for block in (2, 3) for i in range(3))]
    assert layers == [f"up_blocks.{block}.attentions.{i}" for block, i in expected]


def test_every_branch_gets_the_source_and_a_lone_source_stays():
    features = torch.randn(6, 3, 4)
    out = from_source(features, frames=2)
    assert all(torch.equal(out[2 * b : 2 * b + 2], features[:2]) for b in range(3))
    assert torch.equal(from_source(features, frames=6), features)


def test_full_injection_without_guidance_changes_nothing(model):
    """Where the edited branch sees what the source sees, injecting the source is no change."""
    g, timesteps, levels = torch.Generator().manual_seed(0), model.timesteps(4), {}
    text = model.embed("a cat")

    def noise_of(step, t, x):
        levels[t] = x
        return model.predict_noise(x, t, text)

    start = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64)
    levels[CLEAN] = sample(model, start, timesteps, noise_of, progress=False)
    source = Trajectory(timesteps, "a cat", None, levels)
    late = [tfkit.SDEdit(start) for start in (0, 0.25, 0.5, 0.75, 1)]  # from the level itself
    for method in (tfkit.Plain(), tfkit.PlugAndPlay(1, 1), *late):
        edit = tfkit.edit(model, source, "a cat", guidance=1, propagation=tfkit.PerFrame(),
                          method=method, progress=False)  # fmt: skip
        torch.testing.assert_close(edit.latents, source.clean, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("start", "steps", "taken"),
    [
        (0, 4, 0),
        (0.25, 4, 1),
        (0.5, 4, 2),
        (1, 4, 4),
        (0.5, 3, 2),
        (0.5, 5, 3),
        (0.4, 3, 1),
        (0.29, 50, 15),
    ],
)
def test_sdedit_takes_its_share_of_the_steps(model, start, steps, taken):
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    source = tfkit.invert(model, x, steps=steps, progress=False)
    passes = []
    handle = model.unet.register_forward_hook(lambda *_: passes.append(1))
    edit = tfkit.edit(model, source, "a dog", method=tfkit.SDEdit(start),
                      propagation=tfkit.PerFrame(), progress=False)  # fmt: skip
    handle.remove()
    assert len(passes) == taken
    assert torch.equal(edit.latents, x) == (taken == 0)


def test_a_model_without_a_decoder_to_inject_into_says_so():
    with pytest.raises(ValueError, match=r"no 'up_blocks\.1\.resnets\.1\.conv2'.*Plain"):
        hooks.rewrite(torch.nn.Linear(1, 1), {"up_blocks.1.resnets.1.conv2": lambda x: x})


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True, float("nan")])
def test_shares_out_of_range(share, unchecked):
    for make in (lambda: tfkit.PlugAndPlay(attention=share), lambda: tfkit.PlugAndPlay(0.5, share),
                 lambda: tfkit.SDEdit(share)):  # fmt: skip
        with pytest.raises(ValueError, match="expected a share of the steps"):
            make()


def test_fresh_noise_is_one_draw_for_all_frames_at_the_first_timestep(model):
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source = tfkit.invert(model, x, steps=4, progress=False)
    method = tfkit.SDEdit(0.5, noise="fresh", seed=5)
    t = source.timesteps[method.first_step(4)]
    begun = method.begin(model, source, t)
    a = model.alpha(t).double()
    noise = (begun - a.sqrt() * x) / (1 - a).sqrt()
    torch.testing.assert_close(noise[0], noise[2])
    want = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    torch.testing.assert_close(noise[:1], want)
    own = tfkit.SDEdit(0.5).begin(model, source, t)
    assert torch.equal(own, source.at(t))
    settings = {"propagation": tfkit.PerFrame(), "progress": False}
    fresh = tfkit.edit(model, source, "a dog", method=method, **settings)
    other = tfkit.edit(model, source, "a dog", method=tfkit.SDEdit(0.5), **settings)
    assert not torch.allclose(fresh.latents, other.latents)
    torch.set_default_dtype(torch.float64)  # which draws other numbers
    try:
        again = tfkit.edit(model, source, "a dog", method=method, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(again.latents, fresh.latents)
    nothing = tfkit.edit(model, source, "a dog", method=tfkit.SDEdit(0, noise="fresh"), **settings)
    assert torch.equal(nothing.latents, x)


def test_sdedit_knows_two_kinds_of_noise(unchecked):
    with pytest.raises(ValueError, match="noise='white': expected one of 'inverted', 'fresh'"):
        tfkit.SDEdit(0.5, noise="white")


class Louder(tfkit.Plain):
    """Half as much again of what the prompt says, in its own branch alone."""

    def during(self, now):
        def louder(out):
            branches = dict(zip(now.which, out.split(len(now.frames)), strict=True))
            if "prompt" in branches:
                branches["prompt"] = 1.5 * branches["prompt"]
            return torch.cat([*branches.values()])

        return hooks.rewrite(now.model.unet, {"mid_block.resnets.0": louder})

    def marks_source(self, prepared):
        return ""


@pytest.fixture(scope="module")
def short(model):
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tfkit.invert(model, x, "a cat", steps=2, progress=False)


@pytest.mark.parametrize("guidance", [1, 4])
@pytest.mark.parametrize(
    "way", [tfkit.ExtendedAttention(), tfkit.TokenFlow(1), tfkit.TokenFlow(3)], ids=repr
)
def test_a_method_is_told_which_branches_are_in_a_pass(model, short, way, guidance):
    settings = {"propagation": way, "guidance": guidance, "progress": False}
    whole, parts, plain = (
        tfkit.edit(model, short, "a dog", method=method, batch=batch, **settings).latents
        for method, batch in [(Louder(), 8), (Louder(), 1), (tfkit.Plain(), 8)]
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)
    assert not torch.allclose(whole, plain)


def test_a_processor_of_ones_own_gets_all_branches_however_many_frames(model, short):
    class Own(tfkit.ExtendedAttention):
        def attention(self, branches, source):
            def processor(attn, hidden_states, *args, **kwargs):
                return extended(attn, hidden_states, branches, source)

            return processor

    whole, parts, known = (
        tfkit.edit(model, short, "a dog", propagation=way, batch=batch, progress=False).latents
        for way, batch in [(Own(), 8), (Own(), 1), (tfkit.ExtendedAttention(), 1)]
    )
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)
    torch.testing.assert_close(whole, known, rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [8, 1])
def test_a_module_that_is_not_there_is_named_however_the_pass_goes(model, short, batch):
    class Lost(tfkit.Plain):
        reads_source = True

        def injects(self, now):
            return ["up_blocks.9.nothing"]

    with pytest.raises(ValueError, match=r"this UNet has no 'up_blocks\.9\.nothing'"):
        tfkit.edit(model, short, "a dog", method=Lost(), propagation=tfkit.TokenFlow(1),
                   batch=batch, progress=False)  # fmt: skip
