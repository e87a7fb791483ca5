"""DINO's view of a picture's structure, for the structure distance as Splice defined it.

An optional extra: its weights (343 MB for the default) are fetched from the hub when asked for, or
read from a folder. Memory: the model and one batch at 224 pixels or a little more.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, ViTModel

from tfkit import hooks
from tfkit.checks import check_frames
from tfkit.identity import key_of
from tfkit.libraries import explained, quietly
from tfkit.video import Clip

SPLICE = "facebook/dino-vitb8"  # what Splice and PIE-Bench measure with
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
# "encoder.layer.11.attention.attention.key" in transformers 4, "layers.11.attention.k_proj" in 5
_KEY = re.compile(r"(.*\blayers?\.(\d+)\..*\b(?:key|k_proj))\.weight")


@dataclass(frozen=True, eq=False)
class DINO:
    """A self-supervised vision transformer (Caron et al., ICCV 2021) as a reader of structure."""

    model: PreTrainedModel
    name: str
    side: int = 224  # the shorter one, as Splice has it

    def fingerprint(self) -> str:
        """A digest of its weights and of the size it sees pictures at."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return key_of([self.model.state_dict(), self.side])

    @torch.no_grad()
    def __call__(self, frames: Tensor | Clip, *, batch: int = 8) -> Float[Tensor, "f n d"]:
        """Keys of the last layer, the class token's first, (f, 1 + n, d): what Splice compares.

        frames (f, 3, h, w) in [0, 1], resized so that the shorter side is 224 and both are whole
        patches. (Tumanyan et al., CVPR 2022.) Raises ValueError for frames of other ranges.
        """
        frames, key = check_frames(frames), _last_key(self.model)
        patch, (h, w) = self.model.config.patch_size, frames.shape[-2:]
        size = [max(1, round(x * self.side / min(h, w) / patch)) * patch for x in (h, w)]
        found = []
        for chunk in frames.split(batch):
            pixels = chunk.to(self.model.device).float()
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            mean, std = (torch.tensor(v).to(pixels)[:, None, None] for v in (_MEAN, _STD))
            with hooks.record(self.model, [key]) as seen:
                self.model(pixel_values=(pixels - mean) / std, interpolate_pos_encoding=True)
            found.append(seen[key])
        return torch.cat(found)


def load_dino(name: str | Path = SPLICE, *, device: str | torch.device = "cpu") -> DINO:
    """A DINO by hub id or folder (a ViT in transformers' layout, safetensors only), in float32.

    For `structure_distance(dino(edit), dino(source))` of tfkit.fidelity. Raises FileNotFoundError
    where there is none (offline, for one) and ValueError where it is no ViT.
    """
    with explained("DINO", name), quietly():
        model = ViTModel.from_pretrained(name, use_safetensors=True, add_pooling_layer=False)
        if not any(map(_KEY.fullmatch, model.state_dict())):
            raise ValueError("it has no layers with keys; expected a ViT such as " + SPLICE)
    return DINO(model.float().to(device).eval().requires_grad_(False), str(name))


def _last_key(model: PreTrainedModel) -> str:
    """The name of the last layer's key projection."""
    found = filter(None, map(_KEY.fullmatch, model.state_dict()))
    return max(found, key=lambda name: int(name[2]))[1]
