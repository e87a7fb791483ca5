"""DINO's keys, on a small random ViT, against the layer taken by hand."""

import pytest
import torch
import torch.nn.functional as F
from clips import moving
from transformers import ViTConfig, ViTModel

from tfkit.dino import load_dino
from tfkit.fidelity import structure_distance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
        image_size=32, patch_size=8,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


def test_keys_are_those_of_the_last_layer_with_the_class_tokens_first(folder, capfd):
    dino, frames = load_dino(folder), moving(3, 224, 224)
    assert capfd.readouterr() == ("", "")
    keys = dino(frames, batch=2)
    assert not any(m._forward_hooks for m in dino.model.modules())
    assert keys.shape == (3, 1 + 28 * 28, 24) and dino.name == str(folder)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        states = dino.model(
            (frames - mean) / std, interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states
    state = dino.model.state_dict()
    last = [n for n in state if ".2." in n]
    (weight,) = [n for n in last if n.endswith(("key.weight", "k_proj.weight"))]
    (norm,) = [n for n in last if n.endswith("layernorm_before.weight")]
    bias = norm.removesuffix("weight") + "bias"
    x = F.layer_norm(states[2], (24,), state[norm], state[bias], dino.model.config.layer_norm_eps)
    by_hand = F.linear(x, state[weight], state[weight.removesuffix("weight") + "bias"])
    torch.testing.assert_close(keys, by_hand, atol=1e-5, rtol=1e-4)


def test_frames_of_any_aspect_become_whole_patches(folder):
    dino = load_dino(folder)
    assert dino(moving(1, 32, 48, torch.float64)).shape == (1, 1 + 28 * 42, 24)


def test_it_measures_structure(folder):
    dino, frames = load_dino(folder), moving(2)
    assert structure_distance(dino(frames), dino(frames)) == 0
    assert structure_distance(dino(frames.flip(-2)), dino(frames)) > 1e-6


def test_what_is_no_dino_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot read the DINO of '/nowhere': "):
        load_dino("/nowhere")
    with pytest.raises(FileNotFoundError, match=r"cannot read the DINO of 'facebook/dino-vitb8': "):
        load_dino()  # the tests are offline
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"cannot read the DINO .*safetensors"):
        load_dino(tmp_path)
    with pytest.raises(ValueError, match=r"frames span 0 to 255; expected \[0, 1\]"):
        load_dino(folder)(255 * moving(1))
