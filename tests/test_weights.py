"""The weights that are shipped: whole, small, and good for something."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

import tfkit
from tfkit import metrics
from tfkit.clip import load_clip
from tfkit.loading import WEIGHTS
from tfkit.menagerie.vocabulary import COLORS


@pytest.fixture(scope="module")
def model():
    return tfkit.load(device="cpu")


def test_they_are_safetensors_and_small():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    assert sum(p.stat().st_size for p in files) < 40e6


def test_plain_diffusers_and_transformers_load_them(model):
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    x, text = torch.randn(1, 4, 32, 32), model.embed("a red dog on snow")
    with torch.no_grad():
        velocity = pipe.unet(x, 500, encoder_hidden_states=text).sample
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    alpha = pipe.scheduler.alphas_cumprod[500]
    theirs = alpha.sqrt() * velocity + (1 - alpha).sqrt() * x
    torch.testing.assert_close(model.predict_noise(x, 500, text), theirs, rtol=1e-3, atol=1e-4)
    assert CLIPModel.from_pretrained(WEIGHTS / "clip").config.projection_dim == 64


def test_the_vae_keeps_a_clip(model):
    clip = tfkit.menagerie.film("a striped red dog on grass", frames=4, seed=7)
    assert metrics.psnr(model.decode(model.encode(clip.frames)), clip.frames) > 22


def test_the_unet_knows_noise_from_its_world(model):
    """Better than guessing zero noise, by far, on clips of seeds that were never trained on."""
    clip = tfkit.menagerie.film("a plain blue cat on sand", frames=4, seed=11)
    x = model.encode(clip.frames)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    a = model.alpha(400)
    noisy = a**0.5 * x + (1 - a) ** 0.5 * noise
    error = (model.predict_noise(noisy, 400, model.embed(clip.caption)) - noise).square().mean()
    assert error < 0.25


def test_the_clip_reads_colors():
    judge, right = load_clip(), 0
    for seed, color in enumerate(COLORS):
        frame = tfkit.menagerie.film(
            f"a plain {color} elephant on sand", frames=1, seed=seed
        ).frames
        scores = [judge.text_alignment(frame, f"a plain {c} elephant on sand") for c in COLORS]
        right += scores.index(max(scores)) == COLORS.index(color)
    assert right >= 6
