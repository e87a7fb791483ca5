"""Which model may edit what another one inverted."""

import dataclasses
import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from pipelines import make_pipeline, moving_latents

import tfkit
from tfkit.lineage import lineage_of

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu")


@pytest.fixture(scope="module")
def source(model):
    return tfkit.invert(model, moving_latents(2, 8, 8), "a cat", steps=2, **QUIET)


def copied(model):
    unet = UNet2DConditionModel.from_config(model.unet.config)
    unet.load_state_dict(model.unet.state_dict())
    return dataclasses.replace(model, unet=unet.eval().requires_grad_(False))


def trained_on(model):
    made = copied(model)
    torch.manual_seed(0)
    for weight in made.unet.parameters():
        weight.add_(0.05 * weight.std() * torch.randn_like(weight) if weight.numel() > 1 else 0)
    return made


def adapted(model):
    """With a LoRA of attention and of convolutions that is not merged."""
    peft, made = pytest.importorskip("peft"), copied(model)
    made.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"]))
    return made


def precise(model):
    return tfkit.load(model.name, device="cpu", dtype=torch.float64)


@pytest.mark.parametrize("kin", [trained_on, adapted, precise])
def test_kin_may_edit_what_a_model_inverted(model, source, kin):
    made = kin(model)
    assert made.fingerprint() != model.fingerprint() or kin is precise
    assert lineage_of(made).difference(source.model) is None
    tfkit.EditSession(made, source, "a dog")


def other_weights(model):
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_config(model.unet.config)
    return dataclasses.replace(model, unet=unet.eval().requires_grad_(False))


def other_prediction(model):
    scheduler = type(model.scheduler).from_config(
        model.scheduler.config, prediction_type="v_prediction"
    )
    return dataclasses.replace(model, scheduler=scheduler)


def other_width(model):
    """As Stable Diffusion 2 reads another text encoder than 1.5, on the same schedule."""
    config = dict(model.unet.config) | {"cross_attention_dim": 48}
    return dataclasses.replace(model, unet=UNet2DConditionModel.from_config(config))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (other_weights, "the weights of the UNet there are no kin"),
        (other_prediction, "prediction_type is 'epsilon' there and 'v_prediction' here"),
        (other_width, r"cross_attention_dim is \d+ there and 48 here"),
    ],
)
def test_another_model_is_refused_and_told_why(model, source, other, why):
    made = other(model)
    message = rf"inverted with another model than .*: {why}.*model=None"
    for work in (
        lambda: tfkit.reconstruct(made, source, **QUIET),
        lambda: tfkit.EditSession(made, source, "a dog"),
    ):
        with pytest.raises(ValueError, match=message):
            work()
    if other is other_prediction:
        tfkit.EditSession(made, dataclasses.replace(source, model=None), "a dog")


def test_a_folder_knows_its_model_and_an_older_one_does_not(model, source, tmp_path):
    settings = {"steps": 2, "folder": tmp_path, **QUIET}
    tfkit.invert(model, source.clean, "a cat", **settings)
    assert tfkit.open_trajectory(tmp_path).model == source.model == lineage_of(model)
    manifest = tmp_path / "trajectory.json"
    values = json.loads(manifest.read_text())
    del values["lineage"], values["crc32"]
    manifest.write_text(json.dumps(values))
    opened = tfkit.open_trajectory(tmp_path)
    assert opened.model is None
    tfkit.EditSession(model, opened, "a dog")
    assert tfkit.invert(model, source.clean, "a cat", **settings).model == source.model


def test_half_precision_keeps_the_signs(tmp_path):
    folder = make_pipeline(tmp_path)
    whole, half = (tfkit.load(folder, device="cpu", dtype=x) for x in (None, torch.bfloat16))
    assert lineage_of(whole) == lineage_of(half)
