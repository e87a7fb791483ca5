"""The menagerie's model folder: its tokenizer and the files Stable Diffusion's layout wants."""

import copy
import json
from itertools import pairwise
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from tfkit.menagerie import vocabulary

TEXT_LENGTH = 24  # tokens in a caption, with its two ends


def _bytes_to_unicode() -> list[str]:
    """CLIP's alphabet: one printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = [b for b in range(256) if b not in plain]
    names = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(extra)}
    return [names[b] for b in (*plain, *extra)]


def _merge(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word by the merges known so far."""
    tokens = [*word[:-1], word[-1] + "</w>"]
    while len(tokens) > 1:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(tokens))]
        rank, i = min(pairs)
        if rank == len(ranks):
            break
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
    return tokens


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes a CLIP tokenizer in which each word of the vocabulary is one token.

    Unknown words fall apart into characters, so any text at all can be read.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in vocabulary.words():
        while len(tokens := _merge(word, ranks)) > 1:
            ranks[tokens[0], tokens[1]] = len(ranks)
    alphabet = _bytes_to_unicode()
    names = [*alphabet, *(c + "</w>" for c in alphabet), *dict.fromkeys(a + b for a, b in ranks)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    merges = "\n".join(f"{a} {b}" for a, b in ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": TEXT_LENGTH, "do_lower_case": True,
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "errors": "replace",
        "add_prefix_space": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def save_text_encoder(model: CLIPTextModel, folder: Path) -> None:
    """Saves a text encoder under the names the hub has, which transformers 4 and 5 both read.

    transformers 5 alone would leave the prefix "text_model." out of a newly built model's.
    """
    save_half(model, folder)
    path = folder / "model.safetensors"
    prefix, state = "text_model.", load_file(path)
    named = {prefix + name.removeprefix(prefix): value for name, value in state.items()}
    save_file(named, path, metadata={"format": "pt"})


def save_half(model: CLIPModel | CLIPTextModel, folder: Path) -> None:
    """Saves a transformers model in float16 that loads in float32, as diffusers loads the rest."""
    copy.deepcopy(model).half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("dtype", None)
    path.write_text(json.dumps(config | {"torch_dtype": "float32"}, indent=2) + "\n")


def text_config(tokenizer: CLIPTokenizer) -> dict:
    """A text tower of the width that the UNet's cross-attention reads."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 192,
        "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 64,
        "max_position_embeddings": TEXT_LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "quick_gelu",
    }  # fmt: skip


def vision_config() -> dict:
    """A small vision transformer: 64 patches of 8 x 8."""
    return {
        "image_size": 64, "patch_size": 8, "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 5, "num_attention_heads": 8, "projection_dim": 64,
        "hidden_act": "quick_gelu",
    }  # fmt: skip


def write_index(folder: Path) -> None:
    """model_index.json: the rest of the hub's layout."""
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.0",
        "feature_extractor": [None, None], "image_encoder": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_processor(folder: Path) -> None:
    """The CLIP's image processor: what transformers does to a picture before the vision tower."""
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True,
        "resample": 4,  # a box: means of pixels, see tfkit.clip.pixels
        "size": {"height": 64, "width": 64}, "do_center_crop": False, "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
