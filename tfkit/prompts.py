"""Prompts to what a UNet reads: the states of one text encoder, or of SDXL's two.

A text is one tensor (1, l, d), so that texts are concatenated, repeated and kept as tensors are.
SDXL's pooled embedding, which its UNet takes beside the states, is one more row at the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def token_ids(tokenizer: CLIPTokenizer, prompt: str) -> tuple[Tensor, str]:
    """Token ids (1, l), and the end of the prompt that is beyond them: "" where nothing is.

    A learned embedding of several vectors counts as that many tokens, as diffusers has it. Raises
    ValueError for what is no text in Unicode, as bytes in another encoding come from a terminal,
    and for the zeros of a binary file.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"prompt={prompt!r} is no Unicode ({error.reason}); expected UTF-8"
        ) from None
    if "\0" in prompt:
        raise ValueError(f"prompt={prompt!r} holds zero bytes; expected words")
    prompt = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
    length = tokenizer.model_max_length
    ids = tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
    unread = tokenizer.decode(whole[length - 1 : -1]) if len(whole) > length else ""
    return ids, unread


def encode_one(encoder: CLIPTextModel, ids: Tensor) -> Float[Tensor, "1 l d"]:
    """The last hidden states, as Stable Diffusion 1.x and 2.x read them."""
    with room_for(encoder.dtype):
        return encoder(ids.to(encoder.device))[0]


def encode_two(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, ids: Tensor, ids_2: Tensor
) -> Float[Tensor, "1 m d"]:
    """The last but one hidden states of both, side by side, and a row of the second's pooled one.

    (Podell et al. 2023, section 2.1.) The row is filled up with zeros.
    """
    with room_for(first.dtype):
        states = first(ids.to(first.device), output_hidden_states=True).hidden_states[-2]
        out = second(ids_2.to(second.device), output_hidden_states=True)
    states = torch.cat([states, out.hidden_states[-2]], -1)
    pooled = F.pad(out.text_embeds, (0, states.shape[-1] - out.text_embeds.shape[-1]))
    return torch.cat([states, pooled[:, None]], 1)


def split(
    text: Float[Tensor, "b m d"], width: int
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b {width}"]]:
    """States and pooled embeddings of what :func:`encode_two` returns."""
    return text[:, :-1], text[:, -1, :width]


@contextmanager
def room_for(dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default dtype to float64 for a float64 encoder, as long as the block lasts.

    transformers before 5.0 makes the causal mask in the default dtype and fills it with the lowest
    number of the encoder's: that of float64 overflows float32.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype if dtype == torch.float64 else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
