"""Tokens and their colours."""

import pytest
import torch

import tfkit
from tfkit import hooks

LAYERS = "up_blocks.2.*"


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu")


@pytest.fixture(scope="module")
def source(model):
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return tfkit.invert(model, x, "a cat", steps=2, progress=False)


def test_tokens_are_what_attn1_returns(model, source):
    t = source.timesteps[0]
    tokens = tfkit.extract_tokens(model, source, timestep=t, layers=LAYERS)
    assert list(tokens) == [
        n for n in hooks.self_attention(model.unet) if n.startswith("up_blocks.2.")
    ]
    name = list(tokens)[1]
    seen = []
    module = model.unet.get_submodule(name)
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    model.predict_noise(source.at(t), t, model.embed("a cat"))
    handle.remove()
    assert torch.equal(tokens[name], seen[0])


def test_any_batch_gives_the_same_tokens_in_one_pass_each(model, source):
    settings = {"timestep": source.timesteps[0], "layers": LAYERS}
    passes = []
    handle = model.unet.register_forward_hook(lambda *_: passes.append(1))
    whole = tfkit.extract_tokens(model, source, **settings)
    one = tfkit.extract_tokens(model, source, batch=1, **settings)
    handle.remove()
    assert len(passes) == 1 + 3
    for name, value in whole.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5)


def test_tokens_can_be_written_to(model, source):
    tokens = tfkit.extract_tokens(model, source, timestep=source.timesteps[0], layers=LAYERS)
    next(iter(tokens.values())).add_(1)


def test_unknown_layers_and_timesteps_are_named(model, source):
    with pytest.raises(ValueError, match=r"'up_blocks\.9\.\*' fits no self-attention.*mid_block"):
        tfkit.extract_tokens(model, source, timestep=source.timesteps[0], layers="up_blocks.9.*")
    with pytest.raises(ValueError, match=r"timestep 7 is not.*nearest one is 1"):
        tfkit.extract_tokens(model, source, timestep=7, layers=LAYERS)


def test_pca_is_one_basis_with_stable_signs():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 50, 6, generator=g) * torch.tensor([9.0, 5, 3, 1, 1, 1])
    pca = tfkit.TokenPCA(components=2).fit(tokens)
    scores = pca.transform(tokens)
    assert scores.shape == (4, 50, 2)
    centred = (tokens - tokens.mean((0, 1))).reshape(-1, 6)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(scores.reshape(-1, 2).abs(), (u * s)[:, :2].abs(), atol=1e-3)
    flipped = tfkit.TokenPCA(components=2).fit(tokens.flip(0))
    assert torch.allclose(flipped.transform(tokens), scores, atol=1e-4)
    rgb = pca.to_rgb(tokens)
    assert rgb.min() == 0 and rgb.max() == 1


def test_pca_takes_layers_by_name_and_refuses_mixed_widths():
    tokens = {"a": torch.randn(2, 30, 5), "b": torch.randn(2, 10, 5)}
    rgb = tfkit.TokenPCA().fit(tokens).to_rgb(tokens)
    assert {name: value.shape for name, value in rgb.items()} == {"a": (2, 30, 3), "b": (2, 10, 3)}
    with pytest.raises(ValueError, match=r"widths \[4, 5\]"):
        tfkit.TokenPCA().fit({"a": torch.randn(9, 5), "b": torch.randn(9, 4)})
    with pytest.raises(ValueError, match="call fit"):
        tfkit.TokenPCA().transform(tokens)
    with pytest.raises(ValueError, match="at least 3"):
        tfkit.TokenPCA().fit(torch.randn(2, 5))
