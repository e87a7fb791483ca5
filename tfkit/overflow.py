"""What is said where a NaN or an infinity appears inside a model: where, why, and what to do."""

import torch

HALF = (torch.float16, torch.bfloat16)


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity appeared inside a model; the message says where, why and what to do."""


def overflowed(where: str, dtype: torch.dtype) -> NonFiniteError:
    """The error to raise where a NaN or an infinity first appears in a model of this dtype."""
    if dtype in HALF:
        return NonFiniteError(
            f"a NaN or infinity first appears in {where}. The model runs in {dtype}, whose range "
            "attention and VAE can overflow; load it with dtype=torch.float32."
        )
    return NonFiniteError(
        f"a NaN or infinity first appears in {where}. In {dtype} that comes from the weights or "
        "the latents: check that the model's files are whole and the frames finite."
    )
