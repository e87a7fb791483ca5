"""LoRA, textual inversion and whole pipelines: what diffusers' own loaders make of them."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from pipelines import moving_latents
from safetensors.torch import save_file
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version
from unchanged import unchanged
from xl import make_xl

import tfkit
from tfkit import adapters, hooks, prompts

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    folder = make_xl(tmp_path_factory.mktemp("xl"))
    return tfkit.load(folder, device="cpu", dtype=torch.float64)


def pipeline(folder):
    """diffusers' own, with nothing of tfkit in it but room for float64."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.encode_prompt = prompts.room_for(torch.float64)(pipe.encode_prompt)
    return pipe.to(torch.float64)


def make_lora(model, folder, kind=StableDiffusionPipeline):
    """A random LoRA of the attention of UNet and text encoder, as diffusers' training saves it."""
    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError as error:  # the newest transformers may ask for a peft that is yet to come
        pytest.skip(f"transformers {transformers.__version__}: {error}")
    unet, text = copy.deepcopy(model.unet).float(), copy.deepcopy(model.text_encoder).float()
    g = torch.Generator().manual_seed(0)
    layers = {}
    for name, part, targets in (("unet", unet, ["to_q", "to_v"]), ("text", text, ["q_proj"])):
        part.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets))
        state = peft.get_peft_model_state_dict(part)
        layers[name] = {k: torch.randn(v.shape, generator=g) / 4 for k, v in state.items()}
    kind.save_lora_weights(folder, layers["unet"], layers["text"])
    return folder


@pytest.fixture(scope="module")
def lora(model, tmp_path_factory):
    return make_lora(model, tmp_path_factory.mktemp("lora"))


@torch.no_grad()
def test_a_lora_is_what_diffusers_makes_of_it(model, lora, pipeline_folder):
    with unchanged(model):
        made = tfkit.load_lora(model, lora, scale=0.5)
    pipe = pipeline(pipeline_folder)
    pipe.load_lora_weights(lora, weight_name="pytorch_lora_weights.safetensors")
    pipe.set_adapters(pipe.get_list_adapters()["unet"], 0.5)
    text = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
    torch.testing.assert_close(made.embed("a cat"), text, rtol=0, atol=1e-6)
    x = moving_latents(2, 8, 8).double()
    theirs = pipe.unet(x, 501, encoder_hidden_states=text.expand(2, -1, -1)).sample
    ours = made.predict_noise(x, 501, text)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, model.predict_noise(x, 501, text), atol=1e-2)
    assert not torch.allclose(made.embed("a cat"), model.embed("a cat"), atol=1e-2)
    assert list(hooks.self_attention(made.unet)) == list(hooks.self_attention(model.unet))
    assert not any("lora" in name for name in made.unet.state_dict())
    assert made.vae is model.vae and made.dtype == torch.float64
    assert made.name.endswith("+ pytorch_lora_weights")


def test_a_schedule_that_diffusers_would_correct_stays(model, lora):
    own = replace(model, scheduler=copy.deepcopy(model.scheduler))
    own.scheduler.register_to_config(steps_offset=0)
    before = own.timesteps(10)
    made = tfkit.load_lora(own, lora)
    assert own.timesteps(10) == made.timesteps(10) == before


def test_a_model_with_a_lora_edits(model, lora):
    made = tfkit.load_lora(model, lora / "pytorch_lora_weights.safetensors")
    source = tfkit.invert(made, moving_latents(3, 8, 8).double(), steps=2, progress=False)
    edit = tfkit.edit(made, source, "a dog", propagation=tfkit.TokenFlow(2), progress=False)
    assert torch.isfinite(edit.latents).all() and made.fingerprint() != model.fingerprint()


@torch.no_grad()
def test_a_lora_of_xl(xl, tmp_path):
    lora = make_lora(xl, tmp_path, StableDiffusionXLPipeline)
    with unchanged(xl):
        made = tfkit.load_lora(xl, lora)
    assert made.text_encoder_2 is not None
    x, text = moving_latents(1, 8, 8).double(), xl.embed("a cat")
    assert not torch.allclose(made.predict_noise(x, 5, text), xl.predict_noise(x, 5, text))


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 3])
def test_a_learned_word_is_what_diffusers_makes_of_it(model, tmp_path, pipeline_folder, vectors):
    learned = torch.randn(vectors, 32, generator=torch.Generator().manual_seed(0))
    save_file({"<toy>": learned}, tmp_path / "learned_embeds.safetensors")
    with unchanged(model):
        made = tfkit.load_embedding(model, tmp_path)
    pipe = pipeline(pipeline_folder)
    pipe.load_textual_inversion(str(tmp_path))
    for prompt in ("a red <toy> on snow", "a cat"):
        theirs = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        torch.testing.assert_close(made.embed(prompt), theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(made.embed("a cat"), model.embed("a cat"), rtol=0, atol=1e-12)
    assert not torch.allclose(made.embed("<toy>"), model.embed("<toy>"), atol=1e-2)
    assert made.unet is model.unet and "<toy>" not in model.tokenizer.get_vocab()
    other = tfkit.load_embedding(model, tmp_path, token="<thing>")
    assert torch.equal(other.embed("a <thing>"), made.embed("a <toy>"))
    assert other.fingerprint() != made.fingerprint()  # for the same prompts mean another thing


@torch.no_grad()
def test_a_learned_word_of_xl(xl, tmp_path):
    g = torch.Generator().manual_seed(0)
    state = {"clip_l": torch.randn(2, 32, generator=g), "clip_g": torch.randn(2, 40, generator=g)}
    file = tmp_path / "toy.safetensors"
    save_file(state, file)
    with unchanged(xl):
        made = tfkit.load_embedding(xl, file, token="<toy>")
    assert not torch.allclose(made.embed("a <toy>"), xl.embed("a <toy>"), atol=1e-2)
    torch.testing.assert_close(made.embed("a cat"), xl.embed("a cat"), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"clip_g, clip_l and token=None; expected clip_l and cli"):
        tfkit.load_embedding(xl, file)


@torch.no_grad()
def test_any_pipeline_is_a_model(model, xl, pipeline_folder):
    pipe = pipeline(pipeline_folder)
    made = tfkit.from_pipeline(pipe)
    assert made.unet is pipe.unet and made.fingerprint() == model.fingerprint()
    assert made.timesteps(50) == model.timesteps(50)
    x, text = moving_latents(1, 8, 8).double(), made.embed("a cat")
    noise = model.predict_noise(x, 5, model.embed("a cat"))
    torch.testing.assert_close(made.predict_noise(x, 5, text), noise, rtol=0, atol=1e-12)
    half = tfkit.from_pipeline(pipe.to(torch.bfloat16), name="mine")
    assert half.vae.dtype == torch.float32 and half.name == "mine"
    assert pipe.vae.dtype == torch.bfloat16
    again = tfkit.from_pipeline(StableDiffusionXLPipeline.from_pretrained(xl.name))
    assert again.embed("a cat").shape == xl.embed("a cat").shape
    del pipe.vae
    pipe.vae = None
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline has no vae; expected a diffus"):
        tfkit.from_pipeline(pipe)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("load", [tfkit.load_lora, tfkit.load_embedding])
def test_what_is_refused(model, load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'/no/lora.safetensors' does not exist; expected"):
        load(model, "/no/lora.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no model 'some/body': there is no such folder"):
        load(model, "some/body")
    with pytest.raises(FileNotFoundError, match=r"no model 'some/LoRA-slider.sunglasses': there"):
        load(model, "some/LoRA-slider.sunglasses")
    with pytest.raises(ValueError, match=r"weights=5: expected a .safetensors file, a folder or"):
        load(model, 5)
    with pytest.raises(FileNotFoundError, match=r"holds no .safetensors file; expected one of"):
        load(model, tmp_path)
    (tmp_path / "learned.bin").write_bytes(b"pickled")
    for place in (tmp_path, tmp_path / "learned.bin"):
        with pytest.raises(ValueError, match=r"learned.bin.* is pickled and could run code: refu"):
            load(model, place)
    (tmp_path / "a.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"a.safetensors' is damaged .*; download it again"):
        load(model, tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"another")
    with pytest.raises(FileNotFoundError, match=r"(a|b)\.safetensors, .*; expected one of them or"):
        load(model, tmp_path)


def test_what_fits_nothing_is_refused(model, tmp_path):
    file = tmp_path / "odd.safetensors"
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 32),
               "unet.nowhere.lora_B.weight": torch.zeros(32, 2)}, file)  # fmt: skip
    with unchanged(model), pytest.raises(ValueError, match=r"cannot read the LoRA of .*odd"):
        tfkit.load_lora(model, file)
    save_file({"<toy>": torch.zeros(1, 7)}, file)
    with unchanged(model), pytest.raises(ValueError, match=r"cannot read the embedding of .*odd"):
        tfkit.load_embedding(model, file)
    save_file({"cat</w>": torch.zeros(1, 32)}, file)
    with unchanged(model), pytest.raises(ValueError, match=r"cannot read the embedding of"):
        tfkit.load_embedding(model, file)


def test_without_peft_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs peft .* pip install 'tfkit\[adapters\]'"):
        tfkit.load_lora(model, "any")


def test_a_pipeline_that_reads_more_than_latents_is_refused(pipeline_folder):
    pipe = pipeline(pipeline_folder)
    pipe.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match=r"no Stable Diffusion.*its UNet takes 9 channels"):
        tfkit.from_pipeline(pipe)
