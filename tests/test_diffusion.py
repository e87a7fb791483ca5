"""LatentDiffusion against diffusers' own pipeline, its conversions, its timesteps, its sizes."""

import copy
import dataclasses
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from pipelines import make_pipeline, moving_latents

import tfkit
from tfkit import NonFiniteError, hooks, prompts

SD2_ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def v_model(v_pipeline_folder):
    return tfkit.load(v_pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def pipeline(pipeline_folder):
    pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    pipe.encode_prompt = prompts.room_for(torch.float64)(pipe.encode_prompt)
    return pipe.to(torch.float64)


def rescheduled(model, **config):
    scheduler = DDIMScheduler.from_config(model.scheduler.config, **config)
    return dataclasses.replace(model, scheduler=scheduler)


def poisoned(model, part, name, value=torch.nan):
    """The model with one weight of one part overwritten, in a copy."""
    part_copy = copy.deepcopy(getattr(model, part))
    weight = part_copy.get_parameter(name).data
    weight[(0,) * weight.ndim] = value
    return dataclasses.replace(model, **{part: part_copy})


# --- against diffusers --------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "a red fox on snow", "Ünïcode 🦊, (brackets:1.3)"])
def test_embed_is_the_pipelines(model, pipeline, prompt):
    theirs, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    torch.testing.assert_close(model.embed(prompt), theirs, rtol=0, atol=1e-10)


@torch.no_grad()
def test_encode_and_decode_are_the_pipelines(model, pipeline):
    frames = torch.rand(3, 3, 64, 48, dtype=torch.float64)
    scale = pipeline.vae.config.scaling_factor
    theirs = pipeline.vae.encode(pipeline.image_processor.preprocess(frames)).latent_dist.mean
    ours = model.encode(frames, batch=2)
    torch.testing.assert_close(ours, theirs * scale, rtol=0, atol=1e-10)
    images = pipeline.vae.decode(ours / scale).sample
    expected = pipeline.image_processor.postprocess(images, output_type="pt")
    torch.testing.assert_close(model.decode(ours, batch=2), expected, rtol=0, atol=1e-10)


def test_predict_noise_is_the_raw_unet(model):
    latents, text = moving_latents(3, 8, 8).double(), model.embed("a cat")
    for t in (1, 501, torch.tensor(981)):
        raw = model.unet(latents, t, encoder_hidden_states=text.expand(3, -1, -1)).sample
        torch.testing.assert_close(model.predict_noise(latents, t, text), raw, rtol=0, atol=1e-10)
    texts = torch.cat([text, model.embed("a dog"), text])
    alone = torch.cat([model.predict_noise(latents[i : i + 1], t, texts[i : i + 1])
                       for i in range(3)])  # fmt: skip
    torch.testing.assert_close(model.predict_noise(latents, t, texts), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_predictions_become_noise_as_in_diffusers(v_model, kind):
    """DDIMScheduler.step tells the noise in it by x_prev = sqrt(a') x0 + sqrt(1 - a') noise."""
    model = rescheduled(v_model, prediction_type=kind)
    latents, text = moving_latents(2, 8, 8).double(), model.embed("a cat")
    model.scheduler.set_timesteps(10)
    for t in model.timesteps(10)[::4]:
        raw = model.unet(latents, t, encoder_hidden_states=text.expand(2, -1, -1)).sample
        step = model.scheduler.step(raw, t, latents)
        after = model.alpha(t - 100) if t > 100 else model.alpha(None)
        expected = step.prev_sample - after**0.5 * step.pred_original_sample
        expected = expected / (1 - after) ** 0.5
        ours = model.predict_noise(latents, t, text)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# --- sizes, dtypes, results ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, latents", [((130, 97), (16, 12)), ((97, 130), (12, 16)), ((3, 5), (1, 1))]
)
def test_odd_sizes_are_fitted_and_given_back(model, size, latents):
    frames = torch.rand(2, 3, *size)
    source = tfkit.invert(model, frames, steps=1, progress=False)
    assert source.clean.shape == (2, 4, *latents) and source.size == size
    assert tfkit.reconstruct(model, source, progress=False).shape == frames.shape
    assert model.decode(source.clean, size=size).shape == frames.shape
    assert model.decode(source.clean).shape == (2, 3, *(8 * side for side in latents))


def test_a_vae_of_factor_4_keeps_more(tmp_path):
    model = tfkit.load(make_pipeline(tmp_path, vae_factor=4), device="cpu")
    assert model.factor == 4 and model.sample_size == 64
    latents = model.encode(torch.rand(1, 3, 30, 41))
    assert latents.shape == (1, 4, 8, 10)
    assert model.decode(latents, size=(30, 41)).shape == (1, 3, 30, 41)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_frames_of_any_dtype_and_clips_are_encoded(model, dtype):
    frames = torch.rand(2, 3, 32, 32).to(dtype)
    latents = model.encode(frames)
    assert latents.dtype == torch.float64
    assert torch.equal(model.encode(tfkit.Clip(frames)), latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_stay_in_float32_under_a_half_model(pipeline_folder, dtype):
    model = tfkit.load(pipeline_folder, device="cpu", dtype=dtype)
    source = tfkit.invert(model, torch.rand(1, 3, 64, 64), steps=1, progress=False)
    text = model.embed("a cat")
    assert text.dtype == dtype and source.noise.dtype == torch.float32
    assert model.predict_noise(source.noise, 500, text).dtype == torch.float32
    frames = tfkit.reconstruct(model, source, progress=False)
    assert frames.dtype == torch.float32 and frames.isfinite().all()


def test_results_are_ordinary_tensors(model):
    frames = torch.rand(1, 3, 64, 64, requires_grad=True)
    latents, text = model.encode(frames), model.embed("a cat")
    results = [latents, text, model.predict_noise(latents, 500, text), model.decode(latents)]
    for x in results:
        assert not x.is_inference() and not x.requires_grad
        x.add_(1).requires_grad_().square().sum().backward()


def test_a_prompt_that_is_too_long_says_what_goes_unread(model):
    with pytest.warns(UserWarning, match=r"prompt 'a a .*' is cut; unread: 'cat on snow'"):
        long = model.embed("a " * 75 + "cat on snow")
    assert long.shape == (1, 77, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed("a " * 75)


# --- timesteps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 333, 500, 501, 999])
def test_timesteps_are_the_schedulers(model, steps):
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(steps)
    assert model.timesteps(steps) == tuple(scheduler.timesteps.tolist())
    assert model.scheduler.num_inference_steps is None  # nothing was set on the model's own


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_descends_within_the_training(model, spacing):
    model = rescheduled(model, timestep_spacing=spacing)
    for steps in (*range(1, 999, 13), 999):
        timesteps = model.timesteps(steps)
        assert len(timesteps) == steps and timesteps == tuple(sorted(set(timesteps))[::-1])
        assert timesteps[0] < 1000 and timesteps[-1] >= 0


def test_a_schedule_that_overruns_says_why(model):
    message = (
        r"steps=1000: with 'leading' spacing and an offset of 1 .* timestep would be 1000, but"
    )
    with pytest.raises(ValueError, match=rf"{message} this model knows 0 to 999; use at most 999"):
        model.timesteps(1000)
    assert rescheduled(model, steps_offset=0).timesteps(1000) == tuple(range(999, -1, -1))
    with pytest.raises(ValueError, match=r"would be 1000, but .* use at most 499 steps"):
        rescheduled(model, steps_offset=2).timesteps(500)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "50", None, 1001, 5000])
def test_what_is_no_number_of_steps_is_refused(model, steps):
    with pytest.raises(ValueError, match=r"steps=.*: expected a whole number from 1 to 999"):
        model.timesteps(steps)
    with pytest.raises(ValueError, match=r"steps=.*: expected a whole number from 1 to 1000"):
        rescheduled(model, timestep_spacing="trailing").timesteps(steps)


def test_zero_terminal_snr_is_finite_and_comes_back(v_model):
    """At its last timestep nothing of the signal is left, and noise divides by its root."""
    model = rescheduled(v_model, **SD2_ZERO)
    assert model.scheduler.alphas_cumprod[-1] == 0
    latents = moving_latents(1, 8, 8).double()
    source = tfkit.invert(model, latents, steps=20, fixed_point=3, progress=False)
    assert source.timesteps[0] == 999 and source.noise.isfinite().all()
    frames = tfkit.reconstruct(model, source, progress=False)
    expected = model.decode(latents)
    variance = expected.var()
    assert (frames - expected).square().mean() < 0.1 * variance


# --- NaN ----------------------------------------------------------------------------------------

GROUPS = {
    "conv_in": "conv_in.weight",
    "time_embedding": "time_embedding.linear_1.weight",
    "down_blocks.1": "down_blocks.1.resnets.0.conv1.weight",
    "mid_block": "mid_block.attentions.0.proj_in.bias",
    "up_blocks.2": "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_v.weight",
    "conv_out": "conv_out.bias",
}


@pytest.mark.parametrize("group", GROUPS)
def test_the_first_layer_group_that_overflows_is_named(model, group):
    bad = poisoned(model, "unet", GROUPS[group])
    message = rf"first appears in the UNet's {group} at timestep 501. In torch.float64 that comes"
    with pytest.raises(NonFiniteError, match=message):
        bad.predict_noise(moving_latents(1, 8, 8).double(), 501, model.embed(""))
    assert not any(module._forward_hooks for module in bad.unet.modules())


def test_half_precision_is_told_its_cure(pipeline_folder):
    model = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float16)
    bad = poisoned(model, "unet", "mid_block.attentions.0.proj_in.weight", 6e4)
    bad.unet.get_parameter("mid_block.attentions.0.proj_in.weight").data.fill_(6e4)
    message = r"UNet's mid_block at timestep 7. The model runs in torch.float16, .*torch.float32"
    with pytest.raises(NonFiniteError, match=message):
        bad.predict_noise(moving_latents(1, 8, 8), 7, model.embed(""))


def test_the_vae_the_text_encoder_and_the_latents_are_told_apart(model):
    latents, frames = moving_latents(1, 8, 8).double(), torch.rand(1, 3, 32, 32)
    with pytest.raises(NonFiniteError, match="first appears in the VAE's encoder"):
        poisoned(model, "vae", "encoder.conv_in.weight").encode(frames)
    with pytest.raises(NonFiniteError, match="first appears in the VAE's decoder"):
        poisoned(model, "vae", "decoder.conv_in.weight").decode(latents)
    name = next(n for n, _ in model.text_encoder.named_parameters() if n.endswith("fc1.weight"))
    with pytest.raises(NonFiniteError, match="first appears in the text encoder"):
        poisoned(model, "text_encoder", name).embed("a cat")
    with pytest.raises(NonFiniteError, match="first appears in the latents given to the UNet"):
        model.predict_noise(latents * torch.inf, 5, model.embed(""))


def test_the_watch_sees_nothing_in_a_sound_pass(model):
    with hooks.first_nonfinite(model.unet) as groups:
        model.predict_noise(moving_latents(1, 8, 8).double(), 5, model.embed(""))
    assert groups == []


# --- the fingerprint ----------------------------------------------------------------------------


def test_the_fingerprint_tells_models_apart_and_nothing_else(model, pipeline_folder):
    again = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
    again.unet.to(memory_format=torch.contiguous_format)
    assert again.fingerprint() == model.fingerprint()
    others = [
        poisoned(model, "unet", "conv_in.weight", 1.0),
        poisoned(model, "vae", "decoder.conv_in.weight", 1.0),
        poisoned(model, "text_encoder", next(iter(dict(model.text_encoder.named_parameters())))),
        rescheduled(model, prediction_type="v_prediction"),
        rescheduled(model, beta_end=0.02),
        rescheduled(model, set_alpha_to_one=True),
    ]
    assert len({other.fingerprint() for other in (model, *others)}) == 7


def test_the_fingerprint_sees_freeu(model, pipeline_folder):
    other = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
    other.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    mild = other.fingerprint()
    other.unet.enable_freeu(0.9, 0.2, 1.5, 1.6)
    assert len({model.fingerprint(), mild, other.fingerprint()}) == 3
    other.unet.disable_freeu()
    assert other.fingerprint() == model.fingerprint()


def test_the_fingerprint_sees_what_no_weight_shows(model, pipeline_folder):
    for part, name, value in (("vae", "scaling_factor", 0.5), ("unet", "norm_eps", 1e-3)):
        other = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
        getattr(other, part).register_to_config(**{name: value})
        assert other.fingerprint() != model.fingerprint(), name
