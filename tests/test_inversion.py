"""DDIM both ways against diffusers and the oracle, and what the refinement is worth."""

import dataclasses

import oracle
import pytest
import torch
from clips import bare
from diffusers import DDIMInverseScheduler
from pipelines import moving_latents

import tfkit
from tfkit import NonFiniteError
from tfkit.sampling import ddim_step


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def v_model(v_pipeline_folder):
    return tfkit.load(v_pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def calm_model(pipeline_folder):
    """One that predicts little noise: a random epsilon model as it is would not settle."""
    model = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)
    model.unet.conv_out.weight.mul_(0.1)
    model.unet.conv_out.bias.mul_(0.1)
    return model


@pytest.fixture(scope="module")
def latents():
    return moving_latents(3, 8, 8).double()


def invert(model, video, prompt="a cat", steps=3, **options):
    return tfkit.invert(model, video, prompt, steps=steps, progress=False, **options)


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- against others -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_inversion_is_diffusers(model, latents, steps):
    source = invert(model, latents, steps=steps)
    scheduler = DDIMInverseScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(steps)
    assert source.timesteps == tuple(scheduler.timesteps.tolist()[::-1])
    text, theirs = model.embed("a cat").expand(3, -1, -1), latents
    for t in scheduler.timesteps:
        noise = model.unet(theirs, t, encoder_hidden_states=text).sample
        theirs = scheduler.step(noise, t, theirs).prev_sample
        close(source.at(t), theirs)


@pytest.mark.parametrize("which", ["model", "v_model"])
def test_inversion_and_its_way_back_are_the_oracles(which, latents, request):
    model = request.getfixturevalue(which)
    source, text = invert(model, latents), model.embed("a cat")
    theirs = oracle.invert(model.unet, model.scheduler, latents, text, 3)
    assert list(theirs) == list(source.timesteps[::-1])
    for t in source.timesteps:
        close(source.at(t), theirs[t])
    _, clean = oracle.sample(model.unet, model.scheduler, source.noise, text, 3)
    close(tfkit.reconstruct(model, source, progress=False), model.decode(clean), 1e-8)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_way_back_takes_the_same_levels_in_any_spacing(v_model, latents, spacing):
    """With the noise given, back is the exact inverse, whatever the spacing."""
    scheduler = type(v_model.scheduler).from_config(
        v_model.scheduler.config, timestep_spacing=spacing
    )
    model = dataclasses.replace(v_model, scheduler=scheduler)
    source = invert(model, latents[:1], steps=7, fixed_point=8)
    frames = tfkit.reconstruct(model, source, progress=False)
    close(frames, model.decode(latents[:1]), 0.02)


def test_a_step_and_its_inverse_cancel():
    x, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    low, high = torch.tensor(0.9).double(), torch.tensor(0.2).double()
    there = ddim_step(x, noise, low, high)
    close(ddim_step(there, noise, high, low), x, 1e-12)
    close(ddim_step(x, noise, low, low), x, 1e-12)


# --- how well the video survives ----------------------------------------------------------------


def psnr(model, source, latents):
    frames = tfkit.reconstruct(model, source, progress=False)
    return -10 * torch.log10((frames - model.decode(latents)).square().mean()).item()


def test_more_steps_reconstruct_better(v_model, latents):
    few, many = (psnr(v_model, invert(v_model, latents[:1], steps=n), latents[:1]) for n in (3, 18))
    assert many > few + 6 and many > 25


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("which", ["calm_model", "v_model"])
def test_refinement_reconstructs_better_at_equal_steps(which, seed, request):
    model, latents = request.getfixturevalue(which), moving_latents(1, 8, 8, seed=seed).double()
    none, one, three = (
        psnr(model, invert(model, latents, steps=6, fixed_point=n), latents) for n in (0, 1, 3)
    )
    assert one > none + 2 and three > one + 4, (none, one, three)


def test_refinement_solves_for_the_noise_at_the_point_it_leads_to(v_model, latents):
    source = invert(v_model, latents[:1], steps=5, fixed_point=24)
    text, (high, low) = v_model.embed("a cat"), source.timesteps[-2:]
    noise = v_model.predict_noise(source.at(high), high, text)
    expected = ddim_step(source.at(low), noise, v_model.alpha(low), v_model.alpha(high))
    close(source.at(high), expected, 1e-4)


# --- what changes it and what does not ----------------------------------------------------------


def test_the_prompt_matters(model, latents):
    cat, again, dog = (invert(model, latents, p).noise for p in ("a cat", "a cat", "a red dog"))
    assert torch.equal(cat, again) and (cat - dog).abs().max() > 0.01


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_does_not_matter(model, latents, batch):
    source, whole = invert(model, latents, batch=batch, fixed_point=1), invert(
        model, latents, fixed_point=1
    )  # fmt: skip
    close(source.noise, whole.noise)
    frames = (tfkit.reconstruct(model, source, batch=b, progress=False) for b in (batch, 16))
    close(*frames)


def test_a_clip_its_frames_and_their_latents_are_one_video(model):
    clip = tfkit.Clip(torch.rand(2, 3, 50, 62), caption="not the prompt")
    by_clip, by_frames = invert(model, clip), invert(model, clip.frames)
    by_latents = invert(model, model.encode(clip.frames))
    assert torch.equal(by_clip.noise, by_frames.noise) and by_clip.prompt == "a cat"
    close(by_latents.noise, by_clip.noise, 1e-9)
    assert by_clip.size == (50, 62) and by_latents.size is None
    assert tfkit.reconstruct(model, by_clip, progress=False).shape == (2, 3, 50, 62)
    assert tfkit.reconstruct(model, by_latents, progress=False).shape == (2, 3, 48, 64)


def test_what_is_given_stays_and_what_comes_is_ordinary(model, latents):
    given = latents[:1].clone().requires_grad_()
    source = invert(model, given)
    assert torch.equal(given, latents[:1]) and torch.equal(source.clean, latents[:1])
    frames = tfkit.reconstruct(model, source, progress=False)
    for x in (frames, *map(source.at, source.timesteps), source.clean):
        assert not x.is_inference() and not x.requires_grad
        x.add_(1).requires_grad_().square().sum().backward()
    assert torch.equal(given, latents[:1])


def test_a_trajectory_describes_itself(model, latents):
    source = invert(model, latents)
    assert repr(source) == "Trajectory(3 frames of 8 x 8 latents, 3 steps, 'a cat')"
    assert len(source) == 3 and source.noise is source.at(source.timesteps[0])
    assert torch.equal(source.at(torch.tensor(1)), source.at(1))


def test_the_bar_is_shown_and_can_be_silenced(model, latents, capfd):
    source = tfkit.invert(model, latents[:1], steps=2)
    tfkit.reconstruct(model, source)
    shown = capfd.readouterr().err
    assert "invert" in shown and "reconstruct" in shown and "2/2" in shown
    tfkit.reconstruct(model, invert(model, latents[:1], steps=2), progress=False)
    assert capfd.readouterr() == ("", "")


# --- refusals -----------------------------------------------------------------------------------


def test_a_trajectory_of_another_schedule_is_refused(model, latents):
    scheduler = type(model.scheduler).from_config(model.scheduler.config, steps_offset=0)
    other = dataclasses.replace(model, scheduler=scheduler)
    source = invert(model, latents[:1], steps=2)
    message = r"timesteps start with \(501, 1\), this model's with \(500, 0\): .*invert with this"
    with pytest.raises(ValueError, match=message):
        tfkit.reconstruct(other, source, progress=False)


def test_an_overflow_is_laid_at_its_step_timestep_and_group(model, latents):
    source = invert(model, latents[:1], steps=4)

    def clock(module, args, kwargs):
        now[0] = args[1]

    now = [None]
    handles = [
        model.unet.down_blocks[2].register_forward_hook(
            lambda m, i, o: (o[0] * (torch.nan if now[0] == 501 else 1), o[1])
        ),
        model.unet.register_forward_pre_hook(clock, with_kwargs=True),
    ]
    message = (
        "a NaN or infinity first appears in the UNet's down_blocks.2 at timestep 501. In torch"
    )
    try:
        with pytest.raises(NonFiniteError, match=f"step 3 of 4: {message}"):
            invert(model, latents[:1], steps=4)
        with pytest.raises(NonFiniteError, match=f"step 2 of 4: {message}"):
            tfkit.reconstruct(model, source, progress=False)
    finally:
        for handle in handles:
            handle.remove()


# Pictures from noise


def test_generate_is_ddim_with_guidance_from_the_seeds_noise(model):
    prompts = ["a cat", "a dog", "a bird"]
    settings = {"steps": 3, "guidance": 4, "progress": False, "size": (32, 48)}
    whole = tfkit.generate(model, prompts, seed=5, **settings)
    parts = tfkit.generate(model, prompts, seed=5, batch=2, **settings)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-4)
    assert whole.shape == (3, 3, 32, 48) and whole.min() >= 0 and whole.max() <= 1
    shape = (3, 4, 32 // model.factor, 48 // model.factor)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(model.dtype)
    timesteps = model.timesteps(3)
    for i, t in enumerate(timesteps):
        noise = []
        for latent, prompt in zip(x.split(1), prompts, strict=True):
            empty, full = (model.predict_noise(latent, t, model.embed(p)) for p in ("", prompt))
            noise.append(empty + 4 * (full - empty))
        after = timesteps[i + 1] if i + 1 < len(timesteps) else None
        x = ddim_step(x, torch.cat(noise), model.alpha(t), model.alpha(after))
    torch.testing.assert_close(model.decode(x), whole, rtol=0, atol=1e-4)


def test_generate_takes_one_prompt_and_any_size_the_models_own_by_default(model):
    one = tfkit.generate(model, "a cat", steps=1, progress=False)
    assert one.shape == (1, 3, model.sample_size, model.sample_size)
    odd = tfkit.generate(model, "a cat", steps=1, size=(31, 47), progress=False)
    assert odd.shape == (1, 3, 31, 47)  # whatever the latents' grid
    with pytest.raises(ValueError, match="prompts is empty"):
        tfkit.generate(model, [])
    with pytest.raises(ValueError, match="seed=-1"):
        tfkit.generate(model, "a cat", seed=-1)
    assert tfkit.generate(model, "a cat", steps=1, size=32, progress=False).shape[-2:] == (32, 32)
    with pytest.raises(ValueError, match=r"size=\(0, 64\); expected a positive integer"):
        tfkit.generate(model, "a cat", size=(0, 64))


@pytest.mark.parametrize("guidance", ["x", None, float("nan"), True, -1])
def test_guidance_that_is_no_number_is_refused(model, unchecked, guidance):
    expected = r"guidance=.*: expected a finite number from 0 on; 7\.5 is usual"
    with pytest.raises(ValueError, match=expected):
        bare(tfkit.generate)(model, "a cat", steps=1, guidance=guidance)
