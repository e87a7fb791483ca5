"""The oracle and the pipelines are held against diffusers and against cases known by hand."""

import json
from types import SimpleNamespace

import oracle
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMInverseScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from pipelines import (
    SCHEDULERS,
    make_pipeline,
    make_text_encoder,
    make_unet,
    make_vae,
    moving_latents,
    sd15_unet_config,
)
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

CLASSES = {"PNDM": PNDMScheduler, "DDIM": DDIMScheduler, "Euler": EulerDiscreteScheduler}
CLASSES["PNDM-bare"] = PNDMScheduler


def scheduler(name="DDIM", prediction_type="epsilon"):
    return CLASSES[name].from_config({**SCHEDULERS[name], "prediction_type": prediction_type})


@pytest.fixture(scope="module", params=["1.x", "2.x"])
def unet(request):
    return make_unet(family=request.param).double()


@pytest.fixture(scope="module")
def texts():
    random = torch.Generator().manual_seed(1)
    return [torch.randn(1, 77, 32, generator=random).double() for _ in range(3)]


@pytest.fixture(scope="module")
def latents():
    return moving_latents(3, 8, 8).double()


def difference(a, b):
    return (a - b).abs().max().item()


# ---- DDIM ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
@torch.no_grad()
def test_inversion_is_the_one_of_diffusers(unet, latents, texts, name):
    steps = {"DDIM": 5, "PNDM": 1}.get(name, 3)
    ours = oracle.invert(unet, scheduler(name), latents[:1], texts[0], steps)
    config = scheduler(name).config
    inverse = DDIMInverseScheduler.from_config(config, clip_sample=False)
    inverse.set_timesteps(steps)
    theirs = latents[:1]
    for t in inverse.timesteps:
        noise = unet(theirs, t, encoder_hidden_states=texts[0]).sample
        theirs = inverse.step(noise, t, theirs).prev_sample
        assert difference(ours[int(t)], theirs) < 1e-10
    assert list(ours) == inverse.timesteps.tolist()


class NoiseOfV(torch.nn.Module):
    """A model that predicts noise, made of one that predicts v."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet
        self.alphas = scheduler().alphas_cumprod

    def forward(self, x, t, encoder_hidden_states):
        v = self.unet(x, t, encoder_hidden_states=encoder_hidden_states).sample
        return SimpleNamespace(sample=self.alphas[t].sqrt() * v + (1 - self.alphas[t]).sqrt() * x)


def test_v_prediction_is_a_matter_of_names(unet, latents, texts):
    by_v = oracle.invert(unet, scheduler(prediction_type="v_prediction"), latents, texts[0], 3)
    by_noise = oracle.invert(NoiseOfV(unet), scheduler(), latents, texts[0], 3)
    assert all(difference(by_v[t], by_noise[t]) < 1e-10 for t in by_v)
    start = by_v[max(by_v)]
    _, by_v = oracle.sample(unet, scheduler(prediction_type="v_prediction"), start, texts[0], 3)
    _, by_noise = oracle.sample(NoiseOfV(unet), scheduler(), start, texts[0], 3)
    assert difference(by_v, by_noise) < 1e-10


def test_sampling_v_is_the_one_of_diffusers(unet, latents, texts):
    theirs = latents
    plan = scheduler(prediction_type="v_prediction")
    plan.set_timesteps(3)
    for t in plan.timesteps:
        with torch.no_grad():
            v = unet(theirs, t, encoder_hidden_states=texts[0].expand(3, -1, -1)).sample
        theirs = plan.step(v, t, theirs).prev_sample
    _, ours = oracle.sample(unet, plan, latents, texts[0], 3)
    # Not closer: in float32, sqrt(a) squared and sqrt(1 - a) squared do not add up to one.
    assert difference(ours, theirs) < 1e-5


def test_more_steps_reconstruct_better(unet, latents, texts):
    """With v: a random model's noise, unlike its v, does not settle as the steps shrink."""
    plan, errors = scheduler(prediction_type="v_prediction"), []
    for steps in (3, 18):
        trajectory = oracle.invert(unet, plan, latents[:1], texts[0], steps)
        start = trajectory[max(trajectory)]
        _, clean = oracle.sample(unet, plan, start, texts[0], steps)
        errors.append((clean - latents[:1]).square().mean().item())
    assert errors[1] < 0.5 * errors[0], errors


# ---- attention, fields, weights ------------------------------------------------------------


@torch.no_grad()
def test_attention_loops_are_the_attention_of_diffusers(unet):
    stock = unet.up_blocks[2].attentions[0].transformer_blocks[0].attn1
    x = torch.randn(6, 16, stock.query_dim, dtype=torch.float64)  # 3 branches of 2 frames
    now = oracle.Now(stage="plain")
    ours = oracle.SelfAttention(stock, now, injected=False)
    assert difference(ours(x), stock(x)) < 1e-12
    now.stage = "keyframes"
    result = ours(x)
    assert difference(result[:2], stock(x[:2])) < 1e-12
    for branch in (x[2:4], x[4:6]):
        whole = branch.reshape(1, 32, -1).expand(2, -1, -1)
        expected = stock(branch, encoder_hidden_states=whole)
        result = result[2:]
        assert difference(result[:2], expected) < 1e-12


@torch.no_grad()
def test_injection_takes_queries_and_keys_but_not_values(unet):
    stock = unet.up_blocks[2].attentions[0].transformer_blocks[0].attn1
    x = torch.randn(3, 16, stock.query_dim, dtype=torch.float64)
    now = oracle.Now(stage="plain", inject_attention=True)
    result = oracle.SelfAttention(stock, now, injected=True)(x)
    query, key, value = stock.to_q(x[:1]), stock.to_k(x[:1]), stock.to_v(x)
    for branch in range(3):
        parts = [
            y.reshape(1, 16, stock.heads, -1).transpose(1, 2)
            for y in (query, key, value[branch : branch + 1])
        ]
        expected = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(1, 16, -1)
        assert difference(result[branch], stock.to_out[0](expected)[0]) < 1e-12
    untouched = oracle.SelfAttention(stock, now, injected=False)(x)
    assert difference(untouched, stock(x)) < 1e-12


def test_nearest_is_the_argmax_of_the_cosine():
    query, keys = torch.randn(20, 5).double(), torch.randn(30, 5).double()
    cosine = F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T
    assert oracle.nearest(query, keys) == cosine.argmax(dim=-1).tolist()
    shuffled = torch.randperm(30)
    assert oracle.nearest(3 * keys[shuffled], keys) == shuffled.tolist()


def test_reference_weights_by_hand():
    sources = oracle.reference_sources(7, 3, blend="linear", dtype=torch.float64)
    assert all(sources[s] == [(0, 1.0)] for s in range(3))
    # Middles are 1, 4 and, of the last interval of one frame, 6.
    assert sources[3] == [(1, pytest.approx(2 / 3)), (0, pytest.approx(1 / 3))]
    assert sources[4] == [(1, 1.0), (0, 0.0)]
    assert sources[5] == [(1, pytest.approx(4 / 5)), (0, pytest.approx(1 / 5))]
    assert sources[6] == [(2, 1.0), (1, 0.0)]
    sources = oracle.reference_sources(7, 3)
    assert sources[4][0] == (1, pytest.approx(0.731058578, abs=1e-7))
    assert sources[4][0][1] + sources[4][1][1] == 1


def test_paper_weights_by_hand():
    sources = oracle.paper_sources(8, [1, 5], blend="linear")
    assert sorted(sources) == [0, 2, 3, 4, 6, 7]
    assert sources[0] == [(0, 1.0)] and sources[6] == sources[7] == [(1, 1.0)]
    assert sources[2] == [(1, 0.25), (0, 0.75)]
    assert sources[3] == [(1, 0.5), (0, 0.5)]
    sigmoid = oracle.paper_sources(8, [1, 5])
    assert sigmoid[4][0] == (1, pytest.approx(0.679178699, abs=1e-9))


# ---- the edits -----------------------------------------------------------------------------


@torch.no_grad()
def test_the_patched_unet_alone_changes_nothing(unet, latents, texts):
    copy, now = oracle.patched(unet)
    text = torch.cat(texts)
    ours = copy(latents, 261, encoder_hidden_states=text).sample
    assert difference(ours, unet(latents, 261, encoder_hidden_states=text).sample) < 1e-11
    now.inject_convolution = True
    assert difference(copy(latents, 261, encoder_hidden_states=text).sample, ours) > 1e-3
    assert "SelfAttention" not in repr(unet)


@pytest.mark.parametrize("inject", [True, False])
def test_one_frame_leaves_nothing_to_propagate(unet, latents, texts, inject):
    trajectory = oracle.invert(unet, scheduler(), latents[:1], texts[0], 3)
    settings = {"guidance": 4.0, "inject": inject}
    alone = oracle.edit_per_frame(unet, scheduler(), trajectory, *texts, **settings)
    settings["keyframes"] = [[0]] * 3
    reference = oracle.edit_reference(unet, scheduler(), trajectory, *texts, interval=4, **settings)
    assert difference(reference, alone) < 1e-9
    for field in ("input", "output"):
        paper = oracle.edit_paper(unet, scheduler(), trajectory, *texts, field=field, **settings)
        assert difference(paper, alone) < 1e-9


def test_a_static_video_is_edited_as_its_one_frame(unet, latents, texts):
    still = oracle.invert(unet, scheduler(), latents[:1], texts[0], 2)
    trajectory = {t: x.expand(5, -1, -1, -1) for t, x in still.items()}
    alone = oracle.edit_per_frame(unet, scheduler(), still, *texts, guidance=3.0)
    settings = {"guidance": 3.0, "keyframes": [[1, 2, 4], [0, 3, 4]]}
    reference = oracle.edit_reference(unet, scheduler(), trajectory, *texts, interval=2, **settings)
    paper = oracle.edit_paper(unet, scheduler(), trajectory, *texts, **settings)
    assert difference(reference, alone) < 1e-8
    assert difference(paper, alone) < 1e-8


def test_the_same_prompt_gives_back_the_source(unet, latents, texts):
    """On a trajectory that sampling itself has made, so that nothing is lost in the inversion."""
    source, negative, _ = texts
    trajectory, clean = oracle.sample(unet, scheduler(), latents[:2], source, 4)
    for shares in ({"attention": 1.0, "convolution": 1.0}, {"inject": False}):
        edited = oracle.edit_per_frame(
            unet, scheduler(), trajectory, source, negative, source, guidance=1.0, **shares
        )
        assert difference(edited, clean) < 1e-9


def test_injection_lasts_for_the_whole_part_of_its_share(unet, latents, texts):
    trajectory = oracle.invert(unet, scheduler(), latents[:1], texts[0], 2)

    def edit(**shares):
        return oracle.edit_per_frame(unet, scheduler(), trajectory, *texts, guidance=2.0, **shares)

    without = edit(inject=False)
    assert difference(edit(attention=0.49, convolution=0.49), without) == 0
    assert difference(edit(attention=0.5, convolution=0), without) > 1e-3
    assert difference(edit(attention=0, convolution=0.5), without) > 1e-3


def test_variants_and_switches_differ(unet, latents, texts):
    trajectory = oracle.invert(unet, scheduler(), latents, texts[0], 2)
    settings = {"guidance": 4.0, "keyframes": [[0, 2]] * 2}

    def paper(**switches):
        return oracle.edit_paper(unet, scheduler(), trajectory, *texts, **settings, **switches)

    def reference(**switches):
        return oracle.edit_reference(
            unet, scheduler(), trajectory, *texts, interval=2, **settings, **switches
        )

    results = [
        paper(),
        paper(field="input"),
        reference(),
        reference(inject=False),
        oracle.edit_per_frame(unet, scheduler(), trajectory, *texts, guidance=4.0),
    ]
    for i, one in enumerate(results):
        assert one.isfinite().all()
        assert all(difference(one, other) > 1e-3 for other in results[:i])
    # With one frame between its two keyframes both blends weigh them alike, up to the sigmoid.
    assert difference(paper(blend="linear"), results[0]) > 1e-6
    with pytest.raises(ValueError, match="2 keyframes for 3 intervals"):
        oracle.edit_reference(unet, scheduler(), trajectory, *texts, interval=1, **settings)


# ---- the pipelines -------------------------------------------------------------------------

LAYOUTS = {
    "plain": {},
    "v": {"prediction_type": "v_prediction"},
    "fp16": {"variant": "fp16"},
    "sharded": {"sharded": True},
    "sharded fp16": {"sharded": True, "variant": "fp16"},
    "bin": {"safetensors": False},
    "factor 4": {"vae_factor": 4, "scheduler": "Euler"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_is_a_stable_diffusion(tmp_path, layout):
    options = LAYOUTS[layout]
    folder = make_pipeline(tmp_path / "pipeline", **options)
    variant = options.get("variant")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, variant=variant)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a red Fox; on_snow", num_inference_steps=2, output_type="np").images
    factor = options.get("vae_factor", 8)
    assert images.shape == (1, 16 * factor, 16 * factor, 3)
    assert 0.1 < images.std() < 0.4
    assert pipeline.scheduler.config.prediction_type == options.get("prediction_type", "epsilon")
    # What is loaded is what was made, up to half precision.
    made = make_unet(family="2.x" if layout == "v" else "1.x").state_dict()
    for name, weight in pipeline.unet.state_dict().items():
        assert torch.allclose(weight, made[name], atol=2e-3 if variant else 0)
    made = make_text_encoder(vocabulary=len(pipeline.tokenizer)).state_dict()
    for name, weight in pipeline.text_encoder.state_dict().items():
        assert torch.allclose(weight, made[name], atol=2e-3 if variant else 0)


def test_each_component_loads_by_itself(pipeline_folder):
    for kind, name in (
        (UNet2DConditionModel, "unet"),
        (AutoencoderKL, "vae"),
        (CLIPTextModel, "text_encoder"),
        (CLIPTokenizer, "tokenizer"),
        (PNDMScheduler, "scheduler"),
    ):
        assert kind.from_pretrained(pipeline_folder, subfolder=name)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_have_the_names_of_the_hub(tmp_path, sharded, variant):
    folder = make_pipeline(tmp_path, sharded=sharded, variant=variant)
    names = {path.name for path in (folder / "unet").iterdir()}
    dot = f".{variant}" if variant else ""
    if sharded:
        index = f"diffusion_pytorch_model.safetensors.index{dot}.json"
        content = json.loads((folder / "unet" / index).read_text())
        shards = set(content["weight_map"].values())
        assert len(shards) > 1
        assert names == shards | {"config.json", index}
    else:
        assert names == {"config.json", f"diffusion_pytorch_model{dot}.safetensors"}
    assert (folder / "text_encoder" / f"model{dot}.safetensors").exists()


def test_the_same_seed_writes_the_same_bytes(tmp_path, pipeline_folder):
    again, other = make_pipeline(tmp_path / "again"), make_pipeline(tmp_path / "other", seed=1)
    for path in sorted(p for p in pipeline_folder.rglob("*") if p.is_file()):
        name = path.relative_to(pipeline_folder)
        assert (again / name).read_bytes() == path.read_bytes()
        if path.suffix == ".safetensors":
            assert (other / name).read_bytes() != path.read_bytes()


def test_any_ascii_prompt_is_tokenised(pipeline_folder, v_pipeline_folder):
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    letters = "".join(chr(c) for c in range(33, 127))
    ids = tokenizer(letters).input_ids
    assert ids[0] == start and ids[-1] == end and end not in ids[:-1]
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == letters.lower()
    assert len(tokenizer("a red fox").input_ids) == 5
    padded = tokenizer("cat", padding="max_length", truncation=True, max_length=77).input_ids
    assert padded[2:] == [end] * 75
    tokenizer = CLIPTokenizer.from_pretrained(v_pipeline_folder, subfolder="tokenizer")
    padded = tokenizer("cat", padding="max_length", truncation=True, max_length=77).input_ids
    assert padded[2:] == [end] + [0] * 74 and tokenizer.pad_token == "!"


@torch.no_grad()
def test_features_are_lively(unet, texts):
    latents, seen = moving_latents(2).double(), {}
    for name in ("down_blocks.1.attentions.0", "up_blocks.3.attentions.1"):
        attn = unet.get_submodule(f"{name}.transformer_blocks.0.attn1")
        attn.register_forward_hook(lambda m, i, o, name=name: seen.update({name: (i[0], o)}))
    one, two = (unet(latents, 261, encoder_hidden_states=t.expand(2, -1, -1)) for t in texts[:2])
    assert 0.5 < one.sample.std() < 2
    assert 0.1 < (one.sample - two.sample).std() < 2
    for pair in seen.values():
        for tokens in pair:
            index = oracle.nearest(tokens[1], tokens[0])
            assert len(set(index)) > len(index) / 4  # neither all to one token
            assert (
                sum(i != j for i, j in enumerate(index)) > len(index) / 8
            )  # nor to the same place


@pytest.mark.parametrize("factor", [4, 8])
@torch.no_grad()
def test_the_vae_has_the_usual_spread(factor):
    vae = make_vae(factor=factor)
    posterior = vae.encode(torch.rand(1, 3, 64, 64) * 2 - 1).latent_dist
    assert posterior.mean.shape == (1, 4, 64 // factor, 64 // factor)
    assert 0.2 < 0.18215 * posterior.mean.std() < 3
    assert 0.05 < posterior.std.mean() < 0.5
    images = vae.decode(posterior.mean).sample
    assert images.shape == (1, 3, 64, 64) and 0.1 < images.std() < 2


def test_the_full_size_unet_has_860_million_weights():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sd15_unet_config())
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964


def test_the_wolf_is_a_video(wolf):
    assert wolf.stat().st_size > 10_000
