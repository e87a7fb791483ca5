"""Whether a model can edit what another one inverted: their kin, not their equality.

A fine-tune, a LoRA, merged or not, a learned word and another precision leave a model of the same
kin, and editing with it is a use like any other. Other latents, another kind of noise prediction or
another UNet is a mistake. Memory: some hundred bits of each model.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from tfkit.diffusion import LatentDiffusion
from tfkit.spots import spots

_SHAPE = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
_SPACE = ("latent_channels", "scaling_factor")
_NOISE = (
    "prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end",
    "rescale_betas_zero_snr",
)  # fmt: skip
_CONVOLUTION = re.compile(r"(encoder\.)?(conv_in|.*\.resnets\.\d+\.conv[12])\.weight")
_EACH = 8  # signs of a convolution
_STRANGE = 0.25  # of the signs: half of them differ by chance, few after training on


@dataclass(frozen=True)
class Lineage:
    """What a model's kin have in common.

    facts: its configuration, as far as latents and their noise depend on it. unet, vae: signs of
    some weights, as hexadecimal digits: rounding leaves them, further training nearly all of them,
    and adapters of attention have no part in them.
    """

    facts: dict[str, Any]
    unet: str
    vae: str

    def difference(self, other: "Lineage") -> str | None:
        """Why two are no kin, the other's part first; None where they are."""
        for name, here in self.facts.items():
            there = other.facts.get(name, here)
            if there != here:
                return f"{name} is {there!r} there and {here!r} here"
        for name, here, there in (("UNet", self.unet, other.unet), ("VAE", self.vae, other.vae)):
            differing = (int(here or "0", 16) ^ int(there or "0", 16)).bit_count()
            if len(here) != len(there) or differing > _STRANGE * 4 * len(here):
                return f"the weights of the {name} there are no kin of those here"
        return None


@torch.no_grad()
def lineage_of(model: LatentDiffusion) -> Lineage:
    """The lineage of a model; milliseconds."""
    facts: dict[str, Any] = {}
    for part, names in ((model.unet, _SHAPE), (model.vae, _SPACE), (model.scheduler, _NOISE)):
        facts |= {name: part.config.get(name) for name in names}
    facts = json.loads(json.dumps(facts))  # tuples and lists are one
    return Lineage(facts, _signs(model.unet), _signs(model.vae))


def lineage_from(values: dict[str, Any] | None) -> Lineage | None:
    """A lineage that was kept; None where none was."""
    return None if values is None else Lineage(**values)


def _signs(part: ModelMixin) -> str:
    signs = torch.cat([torch.zeros(0, dtype=torch.bool, device=part.device), *_some(part)])
    digits = "".join(str(int(sign)) for sign in signs.tolist())
    return f"{int(digits, 2):0{len(digits) // 4}x}" if digits else ""


def _some(part: ModelMixin) -> Iterable[Tensor]:
    for name, value in part.state_dict().items():
        if _CONVOLUTION.fullmatch(name.replace(".base_layer", "")):  # as peft names what it adapts
            yield spots(value, _EACH).signbit()
