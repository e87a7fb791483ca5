"""How well pictures and words agree, by a CLIP: the menagerie's own, or any other by id or folder.

Memory: the CLIP and one batch of pictures at its own small size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from tfkit.diffusion import check_frames
from tfkit.loading import MENAGERIE, explained, quietly
from tfkit.video import Clip

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # what every CLIP's pictures are normalised by
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class CLIP:
    """An image and a text tower that share a space."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    name: str

    @torch.no_grad()
    def embed(
        self, frames: Tensor | Clip, prompt: str, *, batch: int = 32
    ) -> tuple[Float[Tensor, "f d"], Float[Tensor, " d"]]:
        """Unit embeddings of frames (f, 3, h, w) in [0, 1] and of a prompt, cut where too long.

        Raises ValueError for frames of another shape or range.
        """
        frames = check_frames(frames)
        if not isinstance(prompt, str):
            raise ValueError(f"prompt={prompt!r}: expected a string")
        model, device = self.model, self.model.device
        tokens = self.tokenizer(
            prompt, padding="max_length", truncation=True, return_tensors="pt",
            max_length=model.config.text_config.max_position_embeddings,
        )  # fmt: skip
        text = model.text_model(input_ids=tokens.input_ids.to(device)).pooler_output
        size = model.config.vision_config.image_size
        images = []
        for chunk in frames.split(batch):
            seen = model.vision_model(pixel_values=pixels(chunk.to(device).float(), size))
            images.append(F.normalize(model.visual_projection(seen.pooler_output), dim=-1))
        return torch.cat(images), F.normalize(model.text_projection(text)[0], dim=-1)

    def text_alignment(self, frames: Tensor | Clip, prompt: str) -> float:
        """Mean cosine similarity between the frames and the prompt (the paper's CLIP score)."""
        images, text = self.embed(frames, prompt)
        return (images @ text).mean().item()


def pixels(frames: Float[Tensor, "f 3 h w"], size: int) -> Float[Tensor, "f 3 size size"]:
    """Frames in [0, 1] as a CLIP takes them: ``size`` pixels square, normalised."""
    frames = F.interpolate(frames, size=(size, size), mode="area")
    mean, std = (torch.tensor(v).to(frames)[:, None, None] for v in (_MEAN, _STD))
    return (frames - mean) / std


def load_clip(name: str | Path = MENAGERIE) -> CLIP:
    """The menagerie's CLIP, or another by hub id or folder (safetensors only), in float32.

    Raises FileNotFoundError where there is none, ValueError where it cannot be read.
    """
    own = str(name) == MENAGERIE
    folder = Path(__file__).parent / "menagerie" / "weights" / "clip" if own else name
    with explained("CLIP", folder), quietly():
        model = CLIPModel.from_pretrained(folder, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    return CLIP(model.float().eval().requires_grad_(False), tokenizer, str(name))
