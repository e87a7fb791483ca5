"""A small random Stable Diffusion XL folder in the hub's own layout, beside pipelines.py's."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from pipelines import (
    SCHEDULERS,
    _enliven,
    _write_json,
    _write_text_encoder,
    _write_tokenizer,
    make_text_encoder,
    make_vae,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

WIDTH, WIDTH_2, POOLED, TIME = 32, 40, 24, 8


def make_xl(folder, *, variant=None, seed=0):
    """Writes it into `folder` and returns it as a Path."""
    folder = Path(folder)
    vocabulary = _write_tokenizer(folder / "tokenizer", "1.x")
    assert _write_tokenizer(folder / "tokenizer_2", "2.x") == vocabulary  # it pads with "!"
    first = make_text_encoder(width=WIDTH, vocabulary=vocabulary, family="1.x", seed=seed)
    second, unet = _second(vocabulary, seed), make_xl_unet(seed=seed)
    vae = make_vae(seed=seed)
    if variant == "fp16":
        first, second, unet, vae = first.half(), second.half(), unet.half(), vae.half()
    _write_text_encoder(first, folder / "text_encoder", variant, True)
    second.save_pretrained(folder / "text_encoder_2", variant=variant)
    unet.save_pretrained(folder / "unet", variant=variant)
    vae.save_pretrained(folder / "vae", variant=variant)
    config = {**SCHEDULERS["Euler"], "prediction_type": "epsilon"}
    _write_json(folder / "scheduler" / "scheduler_config.json", config)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.19.0",
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    return folder


def _second(vocabulary, seed):
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=WIDTH_2, intermediate_size=2 * WIDTH_2,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77,
        hidden_act="gelu", projection_dim=POOLED, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    _enliven(model, seed)
    return model


@torch.no_grad()
def make_xl_unet(*, seed=0):
    """XL's topology: no attention at the outermost level, then blocks of 2 and of 3 (there: 10)."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[2, 4, 8],
        use_linear_projection=True,
        norm_num_groups=8,
        cross_attention_dim=WIDTH + WIDTH_2,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME,
        projection_class_embeddings_input_dim=POOLED + 6 * TIME,
    ).eval()
    _enliven(unet, seed)
    g = torch.Generator().manual_seed(seed)
    added = {"text_embeds": torch.randn(2, POOLED, generator=g), "time_ids": torch.ones(2, 6)}
    text = torch.randn(2, 77, WIDTH + WIDTH_2, generator=g)
    out = unet(
        torch.randn(2, 4, 16, 16, generator=g), 500, encoder_hidden_states=text,
        added_cond_kwargs=added,
    ).sample  # fmt: skip
    unet.conv_out.weight /= out.std()
    unet.conv_out.bias /= out.std()
    return unet
