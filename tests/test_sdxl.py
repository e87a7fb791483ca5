"""Stable Diffusion XL: as diffusers computes it, inverted, looked into and edited."""

import json
import shutil
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from clips import moving
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionXLPipeline
from pipelines import _enliven, moving_latents
from unchanged import unchanged
from xl import POOLED, make_xl

import tfkit
from tfkit import prompts
from tfkit.methods import Moment, injected, injection
from tfkit.sampling import ddim_step, sample
from tfkit.tokens import layer_table
from tfkit.trajectory import CLEAN, Trajectory

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def model(folder):
    return tfkit.load(folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def pipe(folder):
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.encode_prompt = prompts.room_for(torch.float64)(pipe.encode_prompt)
    return pipe.to(torch.float64)


@pytest.fixture(scope="module")
def source(model):
    return tfkit.invert(model, moving_latents(3, 8, 12).double(), "a cat", steps=3, **QUIET)


def by_hand(pipe, x, t, prompt):
    """diffusers' own text and added conditions: whole pictures of 64 x 96 pixels."""
    states, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    height, width = 8 * x.shape[2], 8 * x.shape[3]
    ids = pipe._get_add_time_ids(
        (height, width), (0, 0), (height, width), dtype=x.dtype, text_encoder_projection_dim=POOLED
    )
    added = {"text_embeds": pooled.expand(len(x), -1), "time_ids": ids.expand(len(x), -1)}
    states = states.expand(len(x), -1, -1)
    return pipe.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample


@torch.no_grad()
def test_text_and_noise_are_diffusers_own(model, pipe):
    x = moving_latents(3, 8, 12).double()
    for prompt in ("a red cat on snow", "", "a " * 100):
        with pytest.warns(UserWarning, match="is cut") if len(prompt) > 99 else nullcontext():
            text = model.embed(prompt)
        states, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        torch.testing.assert_close(text[:, :-1], states, rtol=0, atol=1e-10)
        torch.testing.assert_close(text[:, -1, :POOLED], pooled, rtol=0, atol=1e-10)
        for t in (1, 981):
            theirs = by_hand(pipe, x, t, prompt)
            torch.testing.assert_close(model.predict_noise(x, t, text), theirs, rtol=0, atol=1e-9)


@torch.no_grad()
def test_sampling_is_the_pipelines_own_with_a_ddim_schedule(model, pipe):
    schedule = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    own = StableDiffusionXLPipeline(**{**pipe.components, "scheduler": schedule},
                                    add_watermarker=False)  # fmt: skip
    own.set_progress_bar_config(disable=True)
    own.encode_prompt = pipe.encode_prompt
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = own(
        "a cat", negative_prompt="a dog", num_inference_steps=3, guidance_scale=5.0, height=64,
        width=64, latents=x.double(), output_type="pt",
    ).images  # fmt: skip
    ours = tfkit.generate(
        model, "a cat", steps=3, guidance=5.0, negative_prompt="a dog", size=(64, 64), **QUIET
    )
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-6)


@torch.no_grad()
def test_it_inverts_and_reconstructs_as_diffusers_would(model, pipe):
    frames = moving(2, 64, 64).double()
    with unchanged(model):
        source = tfkit.invert(model, frames, "a cat", steps=3, batch=1, **QUIET)
        back = tfkit.reconstruct(model, source, **QUIET)
    x, before = source.clean, None
    for t in source.timesteps[::-1]:
        x = ddim_step(x, by_hand(pipe, x, t, "a cat"), model.alpha(before), model.alpha(t))
        before = t
        torch.testing.assert_close(source.at(t), x, rtol=0, atol=1e-9)
    for t, after in pairwise((*source.timesteps, None)):
        x = ddim_step(x, by_hand(pipe, x, t, "a cat"), model.alpha(t), model.alpha(after))
    torch.testing.assert_close(back, model.decode(x), rtol=0, atol=1e-8)


def test_every_layer_has_its_place_and_its_tokens(model, source):
    table = layer_table(model, (64, 96))
    assert [layer.name.split(".attentions.")[0] for layer in table[:4]] == ["down_blocks.1"] * 4
    assert len(table) == 2 * 2 + 2 * 3 + 3 + 3 * 3 + 3 * 2  # several blocks in each attention
    assert [layer.name[-25:] for layer in table[4:7]] == [
        f"transformer_blocks.{i}.attn1"[-25:] for i in range(3)
    ]
    t = source.timesteps[1]
    tokens = tfkit.extract_tokens(model, source, timestep=t, layers="*")
    assert list(tokens) == [layer.name for layer in table]
    for layer in table:
        assert tokens[layer.name].shape == (3, layer.tokens, layer.width)
    sizes = {layer.name[:11]: layer.size for layer in table}
    assert sizes == {"down_blocks": (2, 3), "mid_block.a": (2, 3), "up_blocks.0": (2, 3),
                     "up_blocks.1": (4, 6)}  # fmt: skip


@pytest.mark.parametrize("propagation", [tfkit.TokenFlow(2), tfkit.PerFrame()])
def test_it_edits_with_plug_and_play(model, source, propagation):
    with unchanged(model):
        made = tfkit.edit(model, source, "a red dog", propagation=propagation, **QUIET)
    plain = tfkit.edit(
        model, source, "a red dog", method=tfkit.Plain(), propagation=propagation, **QUIET
    )
    assert torch.isfinite(made.latents).all()
    assert not torch.allclose(made.latents, plain.latents, atol=1e-3)


def test_plug_and_play_injects_at_the_same_share_of_the_resolution(model, pipeline_folder):
    convolution, projections = injected(model.unet)
    assert convolution == "up_blocks.0.resnets.1.conv2"
    layers = {name.rsplit(".", 1)[0] for name in projections}
    assert len(layers) == 2 * 3 + 3 * 2
    assert not any(name.startswith("up_blocks.0.attentions.0.") for name in layers)
    method = tfkit.PlugAndPlay()
    prepared = method.prepare(model, Trajectory((), "", None, {}))
    now = Moment(model, 0, 10, torch.arange(2), 3, prepared)
    assert method.injects(now) == [convolution, *projections]
    with injection(method, now):
        pass
    other = tfkit.load(pipeline_folder, device="cpu")  # Stable Diffusion 1.x: the paper's own
    convolution, projections = injected(other.unet)
    assert convolution == "up_blocks.1.resnets.1.conv2" and len(projections) == 2 * 8


def test_a_full_injection_without_guidance_returns_the_source(model):
    timesteps, levels, text = model.timesteps(3), {}, model.embed("a cat")

    def noise_of(step, t, x):
        levels[t] = x
        return model.predict_noise(x, t, text)

    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    levels[CLEAN] = sample(model, start, timesteps, noise_of, **QUIET)
    source = Trajectory(timesteps, "a cat", None, levels)
    edit = tfkit.edit(model, source, "a cat", guidance=1, method=tfkit.PlugAndPlay(1, 1),
                      propagation=tfkit.PerFrame(), **QUIET)  # fmt: skip
    torch.testing.assert_close(edit.latents, source.clean, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_controlnet_is_given_the_added_conditions(model, pipe, source):
    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    _enliven(net, 0)
    condition = (torch.rand(3, 3, 64, 96) > 0.9).double()
    edit = tfkit.edit(model, source, "a dog", guidance=1, propagation=tfkit.PerFrame(),
                      method=tfkit.ControlNet(condition, net), **QUIET)  # fmt: skip
    assert torch.isfinite(edit.latents).all()


# --- loading ------------------------------------------------------------------------------------


def test_half_precision_and_its_variant(tmp_path):
    model = tfkit.load(make_xl(tmp_path, variant="fp16"), device="cpu", dtype=torch.bfloat16)
    assert model.text_encoder_2.dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    text = model.embed("a cat")
    noise = model.predict_noise(moving_latents(1, 8, 8), 500, text)
    assert noise.dtype == torch.float32 and torch.isfinite(noise).all()


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_a_missing_second_part_is_named(folder, tmp_path, part):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / part)
    with pytest.raises(FileNotFoundError, match=rf"has no folder '{part}'; expected Stable Diff"):
        tfkit.load(copy, device="cpu")


def test_the_second_encoder_belongs_to_the_fingerprint(folder, tmp_path, model):
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = make_xl(tmp_path / "other", seed=1)
    same = tfkit.load(copy, device="cpu", dtype=torch.float64).fingerprint()
    shutil.rmtree(copy / "text_encoder_2")
    shutil.copytree(other / "text_encoder_2", copy / "text_encoder_2")
    changed = tfkit.load(copy, device="cpu", dtype=torch.float64).fingerprint()
    assert same == model.fingerprint() != changed
    assert json.loads((copy / "model_index.json").read_text())["text_encoder_2"]
