"""The recipe, on a budget of seconds: it runs, resumes, and leaves a folder others can load."""

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPModel

import tfkit
from tfkit.conditions import canny
from tfkit.menagerie import anatomy, vocabulary
from tfkit.menagerie.folder import write_tokenizer
from tfkit.menagerie.recipe import unet
from tfkit.menagerie.recipe.data import (
    captions,
    dataset,
    dead_leaves,
    edges,
    part_labels,
    pick,
)
from tfkit.menagerie.recipe.loop import Run, spent
from tfkit.menagerie.training import main

IMAGES = ["--images", "30", "--size", "64", "--batch", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    for stage in ("clip", "vae", "unet", "controlnet"):
        main([stage, "--minutes", "0.02", "--work", str(work), "--out", str(out), *IMAGES])
    return work, out


def test_every_stage_leaves_a_folder_that_loads(trained):
    _, out = trained
    model = tfkit.load(out, device="cpu")
    frames = torch.rand(1, 3, 128, 128)
    assert model.encode(frames).shape == (1, 4, 32, 32)
    pipe = StableDiffusionPipeline.from_pretrained(out)
    image = pipe("a red dog", num_inference_steps=1, height=128, width=128, output_type="np")
    assert np.isfinite(image.images).all()


def test_the_controlnet_works_in_plain_diffusers(trained):
    _, out = trained
    control = ControlNetModel.from_pretrained(out / "controlnet")
    parts = StableDiffusionPipeline.from_pretrained(out).components
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=control)
    edges = torch.zeros(1, 3, 128, 128)
    options = {"num_inference_steps": 2, "height": 128, "width": 128, "output_type": "np"}
    image = pipe("a red dog", image=edges, generator=torch.manual_seed(0), **options).images
    assert image.shape == (1, 128, 128, 3) and np.isfinite(image).all()


def test_the_vision_tower_goes_on_alone(trained, tmp_path):
    _, out = trained
    again = tmp_path / "out"
    shutil.copytree(out, again)
    before = CLIPModel.from_pretrained(again / "clip").state_dict()
    more = ["clip", "--resume", "--vision-only", "--minutes", "0.01"]
    main([*more, "--work", str(tmp_path), "--out", str(again), *IMAGES])
    after = CLIPModel.from_pretrained(again / "clip").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("vision_model", "visual_pro")) for name in changed)
    parts = part_labels(tmp_path, 30)
    assert parts.shape == (24, 64, 64) and 1 < len(parts.unique()) <= len(anatomy.PARTS)


def test_a_new_machine_goes_on_from_the_weights(trained, tmp_path):
    """Without the state, but with what was exported: the counts go on and the weights are those."""
    _, out = trained
    ledger = json.loads((out / "training.json").read_text())
    assert set(ledger) == {"clip", "vae", "unet", "controlnet"}
    assert all({"minutes", "steps", "samples", "device"} <= set(row) for row in ledger.values())
    args = SimpleNamespace(work=tmp_path, out=out, resume=True, device="cpu")
    model = UNet2DConditionModel(**unet.unet_config())
    run = Run("unet", model, args, rate=1e-4)
    assert run.step == ledger["unet"]["steps"] and run.samples == ledger["unet"]["samples"]
    kept = UNet2DConditionModel.from_pretrained(out / "unet").float().state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name])


def test_latents_are_those_of_the_frame_and_of_its_mirror_image(trained, tmp_path):
    _, out = trained
    model = tfkit.load(out, device="cpu")
    frames = torch.randint(256, (5, 3, 128, 128), dtype=torch.uint8)
    kept = unet.Latents(model.vae, frames, 128, tmp_path / "latents.npy")
    index, mirrored = torch.tensor([3, 1, 3]), torch.tensor([0, 1, 1])
    got = kept(index, mirrored)
    own = frames[index].float() / 255
    own[1:] = own[1:].flip(-1)
    torch.testing.assert_close(got, model.encode(own), rtol=2e-3, atol=2e-3)
    again = unet.Latents(model.vae, frames, 128, tmp_path / "latents.npy")
    again._encode = None  # from the file, or not at all
    assert torch.equal(again(index, mirrored), got)


def test_a_file_of_latents_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Its zeros, before they are not numbers, would be taken for latents."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    arguments = AutoencoderKL(), frames, 8, tmp_path / "latents.npy"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np.memmap, "__setitem__", killed)
        unet.Latents(*arguments)
    assert not list(tmp_path.iterdir())
    assert unet.Latents(*arguments).kept.isnan().all()


def test_training_goes_on_where_it_stopped(trained):
    work, out = trained
    before = spent(work / "unet.safetensors")
    main(["unet", "--minutes", "0.01", "--work", str(work), "--out", str(out), "--resume", *IMAGES])
    after = spent(work / "unet.safetensors")
    assert after["steps"] > before["steps"] and after["minutes"] > before["minutes"]
    assert after["samples"] - before["samples"] == 4 * (after["steps"] - before["steps"])
    assert not list(work.glob("*.part"))


def test_interrupted_training_loses_nothing(tmp_path):
    args = SimpleNamespace(work=tmp_path, out=tmp_path / "out", resume=True, device="cpu")
    args.out.mkdir()
    model, exported = torch.nn.Linear(2, 1), []

    def run(steps):
        run, left = Run("unet", model, args, rate=1e-4), iter(range(steps))

        def loss_of():
            if next(left, None) is None:
                raise KeyboardInterrupt
            return run.model(torch.rand(3, 2)).square().mean(), 3

        with pytest.raises(KeyboardInterrupt):
            run.train(600.0, loss_of, lambda average: {"seen": 1.0}, exported.append)
        return spent(run.path)

    assert {"steps": 4, "samples": 12, "seen": 1.0}.items() <= run(4).items()
    assert {"steps": 6, "samples": 18}.items() <= run(2).items()
    assert len(exported) == 2 and json.loads((args.out / "training.json").read_text())["unet"]


def test_the_ledger_names_every_device(tmp_path, monkeypatch):
    args = SimpleNamespace(work=tmp_path, out=tmp_path / "out", resume=True, device="cpu")
    args.out.mkdir()
    for device in ("2 CPU threads", "NVIDIA H100", "2 CPU threads"):
        monkeypatch.setattr(Run, "_device", lambda self, device=device: device)
        Run("unet", torch.nn.Linear(2, 1), args, rate=1e-4).save()
    ledger = json.loads((args.out / "training.json").read_text())
    assert ledger["unet"]["device"] == "2 CPU threads, NVIDIA H100"


def test_captions_of_a_batch_are_those_of_its_frames(trained):
    """Or empty, in a tenth; latents are those of the frames, mirrored or not."""
    work, out = trained
    args = SimpleNamespace(work=work, out=out, images=30, size=64, batch=400, device="cpu")
    studio = unet.Studio(args)
    batch = studio.batch()
    empty = studio.tokens[-1, 0]
    blank = (batch.tokens == empty).all(1)
    scenes = batch.index < len(studio.descriptions)
    assert blank[~scenes].all() and 0.03 < blank[scenes].float().mean() < 0.2
    for i, tokens in zip(batch.index[scenes & ~blank], batch.tokens[scenes & ~blank], strict=True):
        assert (studio.tokens[i] == tokens).all(1).any()
    assert len({tuple(row.tolist()) for row in studio.tokens[0]}) > 2  # said in several ways
    latents = studio.latents(batch.index, batch.mirrored)
    assert torch.equal(latents, batch.latents)


def test_edges_are_those_of_the_frames(tmp_path):
    frames, _ = dataset(tmp_path, 12)
    found = edges(tmp_path, 12)
    assert torch.equal(found.float(), canny(frames.float() / 255)[:, :1])
    assert 0.01 < found.float().mean() < 0.5
    assert torch.equal(edges(tmp_path, 12), found)  # from the file


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


@pytest.mark.parametrize("survives", range(2))
def test_a_state_that_cannot_be_written_leaves_the_last_one_whole(tmp_path, full_disk, survives):
    """The state, counts and all, and the ledger: the disk is full after so many of the two."""
    args = SimpleNamespace(work=tmp_path, out=tmp_path / "out", resume=False, device="cpu")
    run = Run("unet", torch.nn.Linear(2, 2), args, rate=1e-4)
    run.save()
    run.step = 7
    full_disk(survives + 1)
    with pytest.raises(OSError, match="No space left"):
        run.save()
    args.resume = True
    again = Run("unet", torch.nn.Linear(2, 2), args, rate=1e-4)
    assert again.step == (7 if survives else 0)
    for name, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert not [path for path in tmp_path.rglob("*") if "new-" in path.name]
