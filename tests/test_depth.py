"""Depth models (Stable Diffusion 2 depth): a fifth channel, from the clip to the edit."""

import math

import pytest
import torch
from diffusers import StableDiffusionDepth2ImgPipeline, UNet2DConditionModel
from pipelines import _enliven, make_pipeline, moving_latents, small_unet_config
from unchanged import unchanged

import tfkit
from tfkit.conditions import latent_depth
from tfkit.sampling import ddim_step
from tfkit.swapping import rebuild
from tfkit.tokens import noised

QUIET = {"progress": False}
LAYER = "up_blocks.1.attentions.1.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The hub's stable-diffusion-2-depth, small: a 2.x whose UNet takes five channels."""
    folder = make_pipeline(tmp_path_factory.mktemp("depth"), family="2.x")
    unet = UNet2DConditionModel(**{**small_unet_config("2.x"), "in_channels": 5}).eval()
    _enliven(unet, 0)
    unet.save_pretrained(folder / "unet")
    (folder / "depth_estimator").mkdir()  # there on the hub, and not read
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return tfkit.load(folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def depth():
    """Three frames at another size than the clip's 64 x 96, in some unit of MiDaS's."""
    return 300 * torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def source(model, depth):
    latents = moving_latents(3, 8, 12).double()
    return tfkit.invert(model, latents, "a cat", steps=3, depth=depth, batch=2, **QUIET)


@pytest.fixture(scope="module")
def theirs(model, depth):
    """The depth map as StableDiffusionDepth2ImgPipeline prepares it."""
    pipe = object.__new__(StableDiffusionDepth2ImgPipeline)
    pipe.__dict__["vae_scale_factor"] = model.factor
    return pipe.prepare_depth_map(
        torch.zeros(3, 3, 64, 96), depth, 3, False, torch.float64, torch.device("cpu")
    )


def by_hand(model, x, t, prompt, depth):
    text = model.embed(prompt).expand(len(x), -1, -1)
    return model.unet(torch.cat([x, depth], 1), t, encoder_hidden_states=text).sample


@torch.no_grad()
def test_depth_is_prepared_as_diffusers_does(model, depth, theirs):
    for given in (depth.double(), depth.double()[:, None]):
        ours = latent_depth(model, given, 3, (8, 12))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert ours.amin((1, 2, 3)).tolist() == [-1] * 3 and ours.amax((1, 2, 3)).tolist() == [1] * 3
    flat = latent_depth(model, torch.ones(2, 64, 96), 2, (8, 12))
    assert torch.equal(flat, torch.zeros(2, 1, 8, 12, dtype=torch.float64))


@torch.no_grad()
def test_inversion_and_reconstruction_are_a_plain_loop(model, source, theirs, tmp_path):
    x, before = moving_latents(3, 8, 12).double(), None
    for t in source.timesteps[::-1]:
        noise = by_hand(model, x, t, "a cat", theirs)
        x, before = ddim_step(x, noise, model.alpha(before), model.alpha(t)), t
        torch.testing.assert_close(source.at(t), x, rtol=0, atol=1e-9)
    for t, after in zip(source.timesteps, (*source.timesteps[1:], None), strict=True):
        noise = by_hand(model, x, t, "a cat", theirs)
        x = ddim_step(x, noise, model.alpha(t), model.alpha(after))
    with unchanged(model):
        back = tfkit.reconstruct(model, source, batch=2, **QUIET)
    torch.testing.assert_close(back, model.decode(x), rtol=0, atol=1e-8)


@torch.no_grad()
def test_a_per_frame_edit_is_a_plain_loop(model, source, theirs):
    x = source.noise
    for i, t in enumerate(source.timesteps):
        without, with_text = (by_hand(model, x, t, text, theirs) for text in ("", "a dog"))
        after = source.timesteps[i + 1] if i < 2 else None
        noise = without + 4 * (with_text - without)
        x = ddim_step(x, noise, model.alpha(t), model.alpha(after))
    with unchanged(model):
        edit = tfkit.edit(
            model, source, "a dog", guidance=4, method=tfkit.Plain(),
            propagation=tfkit.PerFrame(), batch=2, **QUIET,
        )  # fmt: skip
    torch.testing.assert_close(edit.latents, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("propagation", [tfkit.TokenFlow(2), tfkit.ExtendedAttention()])
def test_it_edits_with_plug_and_play(model, source, propagation):
    with unchanged(model):
        edit = tfkit.edit(model, source, "a dog", propagation=propagation, batch=2, **QUIET)
    assert torch.isfinite(edit.latents).all()


@torch.no_grad()
def test_what_an_edit_costs_is_told_beforehand(model, source):
    report = tfkit.preflight(model, source, "a dog", steps=3)
    assert report.seconds[1] > 0 and report.memory > 0


def test_tokens_and_rebuilding_see_it_too(model, source, theirs):
    t, seen = source.timesteps[0], []
    handle = model.unet.get_submodule(LAYER).register_forward_hook(
        lambda module, args, out: seen.append(out)
    )
    by_hand(model, source.at(t), t, "a cat", theirs)
    handle.remove()
    tokens = tfkit.extract_tokens(model, source, timestep=t, layers=LAYER, batch=2)
    torch.testing.assert_close(tokens[LAYER], seen[0], rtol=0, atol=1e-9)
    alone = tfkit.reconstruct(model, source, **QUIET)
    rebuilt = rebuild(model, source, layers="*", timesteps=[], batch=2, **QUIET)
    torch.testing.assert_close(rebuilt, alone, rtol=0, atol=1e-8)


def test_noised_latents_take_it_for_every_draw(model, depth):
    latents = moving_latents(3, 8, 12).double()
    two = noised(model, latents, "a cat", ensemble=2, depth=depth)
    tokens = tfkit.extract_tokens(model, two, timestep=300, layers=LAYER, batch=2)
    assert tokens[LAYER].shape[0] == 3
    flat = noised(model, latents, "a cat", ensemble=2, depth=torch.ones(3, 4, 4))
    other = tfkit.extract_tokens(model, flat, timestep=300, layers=LAYER, batch=2)
    assert not torch.allclose(tokens[LAYER], other[LAYER], atol=1e-3)


def test_a_folder_keeps_it(model, depth, source, tmp_path):
    latents, options = moving_latents(3, 8, 12).double(), {"steps": 3, "folder": tmp_path, **QUIET}
    kept = tfkit.invert(model, latents, "a cat", depth=depth, **options)
    opened = tfkit.open_trajectory(tmp_path)
    assert torch.equal(opened.conditions["depth"], source.conditions["depth"])
    again = tfkit.reconstruct(model, opened, **QUIET)
    assert torch.equal(again, tfkit.reconstruct(model, kept, **QUIET))
    with pytest.raises(ValueError, match=r"holds the trajectory of another condition"):
        tfkit.invert(model, latents, "a cat", depth=depth.flip(0), **options)
    (tmp_path / "conditions.safetensors").unlink()
    with pytest.raises(ValueError, match=r"conditions.safetensors is lost .*invert again"):
        tfkit.open_trajectory(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_mistakes(model, source, depth, pipeline_folder, tmp_path):
    x, plain = moving_latents(3, 8, 12).double(), tfkit.load(pipeline_folder, device="cpu")
    folder = tmp_path / "new"
    with pytest.raises(ValueError, match=r"reads a depth map for every frame, and none is given"):
        tfkit.invert(model, x, steps=2, folder=folder, **QUIET)
    with pytest.raises(ValueError, match=r"depth is given, but .* reads none .* 4 channels"):
        tfkit.invert(plain, x, steps=2, depth=depth, folder=folder, **QUIET)
    assert not folder.exists()
    for bad, message in (
        (depth[:2], r"depth \(2, 40, 60\): expected .* one for each of 3 frames"),
        (depth * math.nan, r"depth holds NaN"),
        (depth.numpy(), r"depth: a ndarray; expected a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            tfkit.invert(model, x, steps=2, depth=bad, **QUIET)
    without = tfkit.invert(plain, x.float(), steps=3, **QUIET)
    for use in (tfkit.reconstruct, lambda *a, **k: tfkit.edit(*a, "a dog", **k)):
        with pytest.raises(ValueError, match=r"reads a depth map .* tfkit.invert\(model, clip"):
            use(model, without, **QUIET)
        with pytest.raises(ValueError, match=r"depth is given, but"):
            use(plain, source, **QUIET)
    with pytest.raises(ValueError, match=r"depth \(1, 1, 4, 4\): expected \(1 or 3, 1, 8, 12\)"):
        model.predict_noise(x, 5, model.embed(""), depth=torch.ones(1, 1, 4, 4))
