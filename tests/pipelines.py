"""Small random Stable Diffusion folders in the hub's own layout, the same bytes for the same seed.

Every name that matters (files, weights, blocks, configs) is the hub's; only the widths are small.
The weights are drawn so that the features are lively: attention is neither flat nor one-hot, text
changes the prediction, and the predicted noise has unit variance.
"""

import json
import math
import zlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

WIDTHS = (32, 32, 64, 64)
TEXT_WIDTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# A few whole words, so that the merges are exercised; all else falls back to single letters.
WORDS = ("a", "an", "the", "of", "on", "in", "cat", "dog", "fox", "wolf", "red", "snow", "photo")

BETAS = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
# What stands in scheduler/scheduler_config.json: SD 1.5, SD 2.1, SDXL and its kin, and a fork saved
# anew by PNDMScheduler, which drops clip_sample (DDIMScheduler's default for it is True).
SCHEDULERS = {
    "PNDM": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **BETAS,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
    },
    "DDIM": {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        **BETAS,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "Euler": {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0",
        **BETAS,
        "clip_sample": False,
        "interpolation_type": "linear",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "PNDM-bare": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.27.2",
        **BETAS,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
}


def make_pipeline(
    folder,
    *,
    prediction_type="epsilon",
    variant=None,
    sharded=False,
    scheduler=None,
    safetensors=True,
    family=None,
    vae_factor=8,
    unet_config=None,
    seed=0,
):
    """Write a random Stable Diffusion into `folder` and return it as a Path; about a second.

    prediction_type  "epsilon" or "v_prediction"
    variant          None, or "fp16": then there are *only* *.fp16.* weights, in half precision
    sharded          UNet and VAE in several files with an index
    scheduler        a key of SCHEDULERS; as the hub has it when None: PNDM for 1.x, DDIM for 2.x
    safetensors      False writes the older *.bin files
    family           "1.x" or "2.x" (linear projections, a list of heads, pads with "!");
                     when None, 2.x for v_prediction and 1.x otherwise
    vae_factor       8, or 4 as the menagerie has it
    unet_config      replaces the small UNet's, e.g. sd15_unet_config()
    """
    if sharded and not safetensors:
        raise ValueError("diffusers writes sharded *.bin files, but cannot read them")
    folder = Path(folder)
    family = family or ("2.x" if prediction_type == "v_prediction" else "1.x")
    scheduler = scheduler or ("DDIM" if family == "2.x" else "PNDM")
    unet = make_unet(family=family, config=unet_config, seed=seed)
    vae = make_vae(factor=vae_factor, seed=seed)
    tokenizer = folder / "tokenizer"
    vocabulary = _write_tokenizer(tokenizer, family)
    width = unet.config.cross_attention_dim
    text = make_text_encoder(width=width, vocabulary=vocabulary, family=family, seed=seed)
    if variant == "fp16":
        unet, vae, text = unet.half(), vae.half(), text.half()

    for model, name in ((unet, "unet"), (vae, "vae")):
        size = "1500KB" if name == "unet" else "150KB"
        model.save_pretrained(
            folder / name,
            variant=variant,
            safe_serialization=safetensors,
            **({"max_shard_size": size} if sharded else {}),
        )
    if safetensors and not sharded:
        _use_old_attention_names(next((folder / "vae").glob("*.safetensors")))
    _write_text_encoder(text, folder / "text_encoder", variant, safetensors)

    config = {**SCHEDULERS[scheduler], "prediction_type": prediction_type}
    if family == "1.x" and prediction_type == "epsilon" and scheduler == "PNDM":
        del config["prediction_type"]  # older than the setting itself
    _write_json(folder / "scheduler" / "scheduler_config.json", config)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": config["_diffusers_version"],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", config["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def sd15_unet_config():
    """The full-size UNet of Stable Diffusion 1.5: 860 million weights, 3.4 GB in float32."""
    return {
        **_topology(),
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "norm_num_groups": 32,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }


def small_unet_config(family="1.x"):
    """SD's topology, narrow; attention_head_dim is, as ever in SD, the *number* of heads."""
    config = {
        **_topology(),
        "sample_size": 16,
        "block_out_channels": WIDTHS,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 8,
    }
    if family == "2.x":
        config |= {"attention_head_dim": [2, 2, 4, 4], "use_linear_projection": True}
    return config


def _topology():
    attention = "CrossAttnDownBlock2D"
    return {
        "in_channels": 4,
        "out_channels": 4,
        "center_input_sample": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "down_block_types": (attention, attention, attention, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_eps": 1e-5,
    }


@torch.no_grad()
def make_unet(*, family="1.x", config=None, seed=0):
    """A random UNet whose prediction has about unit variance; eval mode, float32."""
    unet = UNet2DConditionModel(**(config or small_unet_config(family))).eval()
    _enliven(unet, seed)
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 16, 16, generator=random)
    text = torch.randn(2, 77, unet.config.cross_attention_dim, generator=random)
    prediction = unet(latents, 500, encoder_hidden_states=text).sample
    unet.conv_out.weight /= prediction.std()
    unet.conv_out.bias /= prediction.std()
    return unet


@torch.no_grad()
def make_vae(*, factor=8, seed=0):
    """A random VAE; scaled latents have about unit variance, images a deviation of 0.25."""
    levels = {8: 4, 4: 3}[factor]
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, 8, 16, 16)[:levels],
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16 * factor,
        scaling_factor=0.18215,
    ).eval()
    _enliven(vae, seed)
    random = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(2, 3, 16, 16, generator=random) * 2 - 1, scale_factor=4)
    spread = vae.encode(images).latent_dist.mean.std() * vae.config.scaling_factor
    vae.quant_conv.weight[:4] /= spread
    vae.quant_conv.bias[:4] /= spread
    vae.quant_conv.weight[4:] *= 0.01  # the posterior: a little noise, so that sampling shows,
    vae.quant_conv.bias[4:] = -4  # but nearly the same everywhere
    latents = torch.randn(2, 4, 8, 8, generator=random) / vae.config.scaling_factor
    spread = vae.decode(latents).sample.std() / 0.5
    vae.decoder.conv_out.weight /= spread
    vae.decoder.conv_out.bias /= spread
    return vae


def make_text_encoder(*, width=TEXT_WIDTH, vocabulary=600, family="1.x", seed=0):
    """A random two-layer CLIP text encoder with the hub's odd special tokens (eos_token_id 2)."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu" if family == "2.x" else "quick_gelu",
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = CLIPTextModel(config).eval()
    _enliven(model, seed)
    return model


def moving_latents(frames, height=16, width=16, *, seed=0):
    """Latents of a smooth random scene that drifts by one token a frame, with a little noise."""
    random = torch.Generator().manual_seed(seed)
    scene = torch.randn(1, 4, height, width + frames, generator=random)
    scene = F.avg_pool2d(F.pad(scene, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    scene = scene / scene.std()
    clip = torch.cat([scene[..., i : i + width] for i in range(frames)])
    return clip + 0.1 * torch.randn(clip.shape, generator=random)


@torch.no_grad()
def _enliven(model, seed):
    """Draw every weight anew from its own name, so that no order of construction matters."""
    sharper = ("to_q", "to_k", "q_proj", "k_proj")  # else attention would be almost flat
    for name, weight in model.named_parameters():
        random = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        noise = torch.randn(weight.shape, generator=random)
        if weight.ndim > 1:
            gain = 1.5 if any(part in name for part in sharper) else 1.0
            weight.copy_(noise * gain / math.sqrt(weight[0].numel()))
        elif name.endswith("weight"):
            weight.copy_(1 + 0.2 * noise)
        else:
            weight.copy_(0.1 * noise)


def _write_tokenizer(folder, family):
    """A byte-level vocabulary in CLIP's order: letters, final letters, merges, start, end."""
    letters = list(_byte_letters())
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
            parts[:2] = ["".join(pair)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [*dict.fromkeys("".join(pair) for pair in merges), START, END]
    pad = "!" if family == "2.x" else END
    special = {
        name: {"content": text, "lstrip": False, "normalized": True, "rstrip": False}
        | {"single_word": False}
        for name, text in (("bos_token", START), ("eos_token", END), ("unk_token", END))
    }
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", {**special, "pad_token": pad})
    settings = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
    }
    typed = {name: {"__type": "AddedToken", **value} for name, value in special.items()}
    _write_json(folder / "tokenizer_config.json", settings | typed)
    return len(tokens)


def _byte_letters():
    """GPT-2's printable stand-ins for the 256 bytes, in the order CLIP's vocabulary has them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _write_text_encoder(model, folder, variant, safetensors):
    """Under the hub's names: transformers 5 has dropped the "text_model." that they begin with."""
    weights = {
        "text_model." + name.removeprefix("text_model."): weight.contiguous()
        for name, weight in model.state_dict().items()
    }
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # as in files of old
    config = model.config.to_dict()
    config |= {"architectures": ["CLIPTextModel"], "torch_dtype": "float32"}
    config.pop("dtype", None)
    _write_json(folder / "config.json", config)
    suffix = f".{variant}" if variant else ""
    if safetensors:
        save_file(weights, folder / f"model{suffix}.safetensors", metadata={"format": "pt"})
    else:
        torch.save(weights, folder / f"pytorch_model{suffix}.bin")


def _use_old_attention_names(path):
    """Name the VAE's attention weights as SD's files on the hub do; diffusers renames them."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for new, old in names.items():
        for key in [key for key in weights if f"attentions.0.{new}." in key]:
            weights[key.replace(f".{new}.", f".{old}.")] = weights.pop(key)
    save_file(weights, path, metadata={"format": "pt"})


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
