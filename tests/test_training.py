"""The recipe, on a budget of seconds: it runs, resumes, and leaves a folder others can load."""

import json
import random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import tfkit
from tfkit.menagerie import vocabulary
from tfkit.menagerie.folder import write_tokenizer
from tfkit.menagerie.recipe.data import captions, dataset, dead_leaves, pick
from tfkit.menagerie.training import main

IMAGES = ["--images", "30", "--size", "64", "--batch", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    main(["all", "--minutes", "0.02", "--work", str(work), "--out", str(out), *IMAGES])
    return work, out


def test_every_stage_leaves_a_folder_that_loads(trained):
    _, out = trained
    model = tfkit.load(out, device="cpu")
    frames = torch.rand(1, 3, 128, 128)
    assert model.encode(frames).shape == (1, 4, 32, 32)
    pipe = StableDiffusionPipeline.from_pretrained(out)
    image = pipe("a red dog", num_inference_steps=1, height=128, width=128, output_type="np")
    assert np.isfinite(image.images).all()


def test_training_goes_on_where_it_stopped(trained):
    work, out = trained
    before = json.loads((work / "unet.json").read_text())
    main(["unet", "--minutes", "0.01", "--work", str(work), "--out", str(out), "--resume", *IMAGES])
    after = json.loads((work / "unet.json").read_text())
    assert after["steps"] > before["steps"] and after["minutes"] > before["minutes"]
    assert after["samples"] - before["samples"] == 4 * (after["steps"] - before["steps"])
    assert not list(work.glob("*.part"))


def test_natural_images_have_no_caption_and_animals_say_no_untruth(tmp_path):
    frames, descriptions = dataset(tmp_path, 20)
    assert frames.shape == (20, 3, 128, 128) and len(descriptions) == 16
    texts = captions(torch.arange(20), descriptions, random.Random(0))
    assert texts[16:] == [""] * 4
    for text, truth in zip(texts, descriptions, strict=False):
        said = vocabulary.parse(text)
        for (look, _), (whole, _) in zip(said.groups, truth.groups, strict=True):
            for kind in ("species", "color", "coat", "accessory"):
                assert getattr(look, kind) in (None, getattr(whole, kind))
        assert said.ground in (None, truth.ground)
    batch, index = pick(frames, 6, "cpu")
    for image, i in zip(batch, index, strict=True):
        own = frames[i].float() / 255
        assert torch.equal(image, own) or torch.equal(image, own.flip(-1))


def test_dead_leaves_have_the_spectrum_of_photographs():
    """Power falls about as 1 / f^2: between 1 / f and 1 / f^3.5 from 4 to 32 cycles."""
    power = 0
    for seed in range(12):
        grey = dead_leaves(np.random.default_rng(seed)).mean(0) / 255
        power = power + np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    f = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None]) * 128
    rings = [power[(f >= r) & (f < r + 1)].mean() for r in (4, 32)]
    slope = np.log(rings[0] / rings[1]) / np.log(32 / 4)
    assert 1 < slope < 3.5


def test_each_word_is_one_token_and_other_words_are_letters(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    words = [
        *vocabulary.SPECIES,
        *vocabulary.COLORS,
        *vocabulary.COATS,
        *vocabulary.GROUNDS,
        "foxes",
    ]
    ids = [tokenizer(word).input_ids for word in words]
    assert all(len(i) == 3 for i in ids)
    assert len({i[1] for i in ids}) == len(words)
    assert len(tokenizer("a zyx").input_ids) == 2 + 1 + 3
