"""Tokens and their colours."""

import copy
import dataclasses
import json

import pytest
import torch
from clips import bare

import tfkit
from tfkit import hooks
from tfkit.files import claimed
from tfkit.pca import TokenPCA, foreground
from tfkit.token_folder import TokenFolder
from tfkit.tokens import Layer, extract_features, layer_table, noised

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


def test_a_trajectory_of_another_model_has_no_tokens_here(model, source):
    other = copy.deepcopy(model.unet)
    for weight in other.parameters():
        torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(1))
    stranger, t = dataclasses.replace(model, unet=other), source.timesteps[0]
    with pytest.raises(ValueError, match="source was inverted with another model"):
        tfkit.extract_tokens(stranger, source, timestep=t, layers=LAYERS)
    meant = dataclasses.replace(source, model=None)
    assert tfkit.extract_tokens(stranger, meant, timestep=t, layers=LAYERS)


def test_any_batch_gives_the_same_tokens_in_one_pass_each(model, source):
    settings = {"timestep": source.timesteps[0], "layers": LAYERS}
    passes = []
    handle = model.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    whole = tfkit.extract_tokens(model, source, **settings)
    one = tfkit.extract_tokens(model, source, batch=1, **settings)
    handle.remove()
    assert len(passes) == 1 + 3
    for name, value in whole.items():
        torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5)


def test_tokens_can_be_written_to(model, source):
    tokens = tfkit.extract_tokens(model, source, timestep=source.timesteps[0], layers=LAYERS)
    next(iter(tokens.values())).add_(1)


def test_a_name_may_be_the_beginning_of_one(model, source):
    t = source.timesteps[0]
    block = "up_blocks.1.attentions.2"
    found = tfkit.extract_tokens(model, source, timestep=t, layers=block)
    assert list(found) == [f"{block}.transformer_blocks.0.attn1"]
    with pytest.raises(ValueError, match=r"'up_blocks\.1\.attention' fits no self-attention"):
        tfkit.extract_tokens(model, source, timestep=t, layers="up_blocks.1.attention")
    with pytest.raises(ValueError, match=r"timesteps=334: expected a list of timesteps, \[334\]"):
        bare(extract_features)(model, source, timesteps=334, layers=block)
    with pytest.raises(ValueError, match=r"size=128: expected \(height, width\)"):
        bare(layer_table)(model, 128)
    with pytest.raises(ValueError, match="tokens: a ndarray; expected a tensor"):
        bare(TokenPCA.fit)(TokenPCA(), torch.zeros(9, 4).numpy())


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


# Every kind of feature


@pytest.mark.parametrize(
    ("kind", "module"),
    [("query", "attn1.to_q"), ("key", "attn1.to_k"), ("value", "attn1.to_v"), ("cross", "attn2")],
)
def test_each_kind_is_what_its_module_returns(model, source, kind, module):
    t = source.timesteps[0]
    tokens = tfkit.extract_tokens(model, source, timestep=t, layers=LAYERS, kind=kind)
    name = list(tokens)[1]
    assert name.endswith("attn2" if kind == "cross" else "attn1")
    block = name.rsplit(".", 1)[0]
    seen = []
    part = model.unet.get_submodule(f"{block}.{module}")
    handle = part.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    model.predict_noise(source.at(t), t, model.embed("a cat"))
    handle.remove()
    assert torch.equal(tokens[name], seen[0])


def test_inputs_and_residual_blocks(model, source):
    t, settings = source.timesteps[0], {"timestep": source.timesteps[0]}
    inputs = tfkit.extract_tokens(model, source, layers=LAYERS, kind="input", **settings)
    name = next(iter(inputs))
    queries = tfkit.extract_tokens(model, source, layers=LAYERS, kind="query", **settings)
    with torch.no_grad():
        torch.testing.assert_close(model.unet.get_submodule(name).to_q(inputs[name]), queries[name])
    blocks = tfkit.extract_tokens(
        model, source, layers="up_blocks.1.*", kind="residual", **settings
    )
    assert list(blocks) == [f"up_blocks.1.resnets.{i}" for i in range(3)]
    seen = []
    handle = (
        model.unet.up_blocks[1].resnets[1].register_forward_hook(lambda m, a, out: seen.append(out))
    )
    model.predict_noise(source.at(t), t, model.embed("a cat"))
    handle.remove()
    f, c, h, w = seen[0].shape
    tokens = blocks["up_blocks.1.resnets.1"]
    assert tokens.shape == (f, h * w, c)
    assert torch.equal(tokens[2, w + 1], seen[0][2, :, 1, 1])


def test_several_timesteps_take_one_pass_each_in_memory_or_in_a_folder(model, source, tmp_path):
    passes = []
    handle = model.unet.register_forward_pre_hook(lambda *_: passes.append(1))
    settings = {"timesteps": source.timesteps, "layers": ["mid_block.*", LAYERS]}
    tokens = extract_features(model, source, **settings)
    handle.remove()
    assert len(passes) == len(source.timesteps) == 2
    kept = extract_features(model, source, folder=tmp_path / "tokens", **settings)
    assert list(kept) == list(tokens) and len(kept) == len(tokens) > 4
    for (t, name), value in tokens.items():
        assert kept[t, name].dtype == torch.float16
        torch.testing.assert_close(kept[t, name].float(), value, rtol=2e-3, atol=2e-3)
        one = tfkit.extract_tokens(model, source, timestep=t, layers=name)
        assert torch.equal(one[name], value)
    files = [f"t{t:04d}.safetensors" for t in source.timesteps]
    names = sorted(p.name for p in (tmp_path / "tokens").iterdir())
    assert names == sorted([*files, "tokens.json"])
    with pytest.raises(KeyError):
        kept[3, name]
    settings["timesteps"] = [float(source.timesteps[0]), torch.tensor(source.timesteps[1])]
    for folder in (None, tmp_path / "tokens"):
        again = bare(extract_features)(model, source, folder=folder, **settings)
        assert list(again) == list(tokens)
    with pytest.raises(ValueError, match="timestep 3 is not on this trajectory"):
        extract_features(model, source, folder=tmp_path / "no", **settings | {"timesteps": [3]})
    assert not (tmp_path / "no").exists()


@pytest.fixture
def extract(model, source, tmp_path):
    """Tokens in a folder, and how many passes they took."""

    def extract(**settings):
        passes = []
        handle = model.unet.register_forward_pre_hook(lambda *_: passes.append(1))
        settings = {"timesteps": source.timesteps, "layers": "mid_block.*"} | settings
        try:
            kept = extract_features(model, settings.pop("source", source), folder=tmp_path / "x",
                                    **settings)  # fmt: skip
        finally:
            handle.remove()
        return kept, len(passes)

    return extract


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_file_is_told_and_extracted_again(extract, source, how):
    kept, passes = extract()
    assert passes == 2 and extract()[1] == 0
    first = next(iter(kept))
    expected, file = kept[first].clone(), kept.file(first[0])
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    if how == "gone":
        file.unlink()
    fresh = TokenFolder(kept.path, kept.timesteps, kept.names)
    with pytest.raises(ValueError, match=r"t\d+.safetensors is (damaged|lost).*extract the feat"):
        fresh[first]
    again, passes = extract()
    assert passes == 1 and torch.equal(again[first], expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": LAYERS}, "another set of layers"),
        ({"kind": "input"}, "another kind: 'output' there, 'input' asked for"),
        ({"source": "noised"}, "another video"),
    ],
)
def test_a_folder_of_other_tokens_is_refused(extract, model, source, change, named):
    extract()
    if "source" in change:
        change = {"source": noised(model, source.clean, "a cat")}
    with pytest.raises(ValueError, match=rf"holds the tokens of {named}"):
        extract(**change)
    assert extract()[1] == 0


def test_a_folder_of_other_things_and_one_in_use_are_refused(extract, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "t0001.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no tokens"):
        extract()
    (tmp_path / "x" / "t0001.safetensors").unlink()
    kept, _ = extract()
    origin = json.loads((kept.path / "tokens.json").read_text())
    del origin["crc32"]  # the manifest's own
    with (
        claimed(kept.path, "tokens", origin),
        pytest.raises(ValueError, match="is in use: another process"),
    ):
        extract()


def test_tokens_on_a_full_disk_go_on_where_it_filled_up(extract, full_disk):
    full_disk(3)  # the manifest, a timestep, and then
    with pytest.raises(OSError, match="No space left"):
        extract()
    assert extract()[1] == 1


def test_noised_latents_have_the_noise_of_their_timestep(model):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    one = noised(model, x, "a cat", seed=3)
    a = model.alpha(400)
    noise = (one.at(400) - a.sqrt() * x) / (1 - a).sqrt()
    torch.testing.assert_close(noise[0], noise[1])  # one noise for all frames
    assert abs(noise[0].std() - 1) < 0.2
    assert torch.equal(noised(model, x, "a cat", seed=3).at(400), one.at(400))
    with pytest.raises(ValueError, match="timestep 1000: expected 0 to 999"):
        one.at(1000)
    with pytest.raises(ValueError, match="ensemble=0"):
        noised(model, x, ensemble=0)


def test_an_ensemble_averages_the_features_of_its_draws(model):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    source = noised(model, x, "a cat", ensemble=3)
    settings = {"timestep": 300, "layers": "mid_block.*"}
    (mean,) = tfkit.extract_tokens(model, source, **settings).values()
    assert mean.shape[0] == 2
    draws = []
    with torch.no_grad():
        for part in source.at(300).split(2):
            with hooks.record(model.unet, hooks.match(model.unet, "mid_block.*")) as seen:
                model.predict_noise(part, 300, model.embed("a cat"))
            draws += seen.values()
    torch.testing.assert_close(mean, torch.stack(draws).mean(0), rtol=1e-4, atol=1e-5)


def test_kinds_that_are_not_there_are_named(model, source):
    settings = {"timesteps": source.timesteps[:1], "layers": LAYERS}
    with pytest.raises(ValueError, match=r"kind='keys': expected one of 'output'.*'residual'"):
        bare(extract_features)(model, source, kind="keys", **settings)
    with pytest.raises(ValueError, match=r"fits no residual block.*up_blocks\.2\.resnets\.0"):
        extract_features(model, source, timesteps=source.timesteps[:1], layers="x", kind="residual")


def test_the_table_of_layers_has_the_true_shapes(model, source):
    table = layer_table(model, (64, 64))
    tokens = tfkit.extract_tokens(model, source, timestep=source.timesteps[0], layers="*")
    assert [layer.name for layer in table] == list(tokens)
    scale = (64 // model.factor / 8) ** 2  # the trajectory's latents are 8 x 8
    for layer in table:
        assert layer.width == tokens[layer.name].shape[2]
        assert layer.tokens == tokens[layer.name].shape[1] * scale
    odd = 8 * model.factor - 1  # frames of this size are coded to 8 x 8 latents too
    assert list(layer_table(model, (odd, odd))) == list(layer_table(model, (odd + 1, odd + 1)))
    labels = [layer.label for layer in table]
    assert len(set(labels)) == len(labels) and "mid" in labels and "up 1.0" in labels
    printed = repr(table).splitlines()
    assert len(printed) == len(table) + 1 and printed[0].split() == [
        "layer", "size", "tokens", "width", "heads"
    ]  # fmt: skip


# PCA of what does not fit, and foreground


def test_an_incremental_basis_spans_the_same_space(tmp_path):
    g = torch.Generator().manual_seed(0)
    scale = torch.tensor([9.0, 6, 4, 0.5, 0.5, 0.5])
    tokens = {t: torch.randn(3, 200, 6, generator=g) * scale for t in (1, 21, 41)}
    whole, parts = TokenPCA().fit(tokens), TokenPCA().fit(tokens, incremental=True)
    for t, value in tokens.items():
        torch.testing.assert_close(
            parts.transform(tokens)[t], whole.transform(value), rtol=0, atol=0.35
        )
        assert (parts.to_rgb(value) - whole.to_rgb(value)).abs().mean() < 0.02


@pytest.mark.parametrize("incremental", [False, True])
def test_a_far_mean_does_not_drown_the_basis(incremental):
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 500, 32, generator=random) * torch.logspace(0.5, -1, 32)
    near, far = (
        TokenPCA().fit({"a": x[:2], "b": x[2:]}, incremental=incremental).transform(x)
        for x in (tokens, tokens + 300)
    )
    for one, other in zip(near.flatten(0, 1).T, far.flatten(0, 1).T, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.9999


def test_colours_do_not_flip_when_a_frame_is_added():
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(5, 300, 8, generator=g) * torch.linspace(5, 0.5, 8)
    few, all_of_them = TokenPCA().fit(tokens[:4]), TokenPCA().fit(tokens)
    correlation = (few.transform(tokens) * all_of_them.transform(tokens)).sum((0, 1))
    assert (correlation > 0).all()


def test_the_first_component_finds_what_stands_out():
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(3, 12, 16, dtype=torch.bool)
    for i in range(3):
        truth[i, 4:9, 3 + i : 9 + i] = True
    ground, thing = torch.randn(2, 10, generator=g)
    tokens = torch.where(truth[..., None], thing, ground)
    tokens = tokens + 0.2 * torch.randn(tokens.shape, generator=g)
    found = foreground(tokens.flatten(1, 2), (48, 64))
    assert torch.equal(found, truth.flatten(1))
    assert torch.equal(foreground(-tokens.flatten(1, 2), (48, 64)), found)


def test_a_layers_short_name_says_which_of_several_blocks():
    one = "up_blocks.0.attentions.2.transformer_blocks.{}.attn1"
    assert Layer(one.format(0), (4, 4), 8, 1).label == "up 0.2"
    assert Layer(one.format(9), (4, 4), 8, 1).label == "up 0.2/9"
    assert Layer("mid_block.attentions.0.transformer_blocks.3.attn1", (4, 4), 8, 1).label == "mid/3"


def test_no_pass_goes_further_than_the_last_layer_that_is_read(model, source):
    met = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: met.append(name))
        for name, part in (("mid", model.unet.mid_block), ("end", model.unet.conv_out))
    ]
    t = source.timesteps[0]
    tfkit.extract_tokens(model, source, timestep=t, layers="mid_block.*")
    assert met == []  # the middle block goes on after its attention
    tfkit.extract_tokens(model, source, timestep=t, layers="up_blocks.1.*")
    assert met == ["mid"]
    for handle in handles:
        handle.remove()


def test_an_overflow_on_the_way_is_laid_at_its_group(model, source):
    sick = {"down_blocks.1": lambda out: (out[0] * torch.nan, out[1])}
    with (
        hooks.rewrite(model.unet, sick),
        pytest.raises(tfkit.NonFiniteError, match=r"the UNet's down_blocks\.1"),
    ):
        tfkit.extract_tokens(model, source, timestep=source.timesteps[0], layers="mid_block.*")


def test_features_are_those_that_left_the_module_whatever_comes_after(model, source):
    """FreeU writes into what the blocks of the decoder are given."""
    other = copy.deepcopy(model)
    other.unet.enable_freeu(0.9, 0.2, 1.5, 1.6)
    name, seen, t = "up_blocks.0.resnets.1", [], source.timesteps[0]
    part = other.unet.get_submodule(name)
    handle = part.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    found = tfkit.extract_tokens(other, source, timestep=t, layers=name, kind="residual")[name]
    handle.remove()
    assert torch.equal(found, torch.cat(seen).flatten(2).transpose(1, 2))
