"""How well pictures and words agree, by a CLIP: the menagerie's own, or any other by id or folder.

Memory: the CLIP and one batch of pictures at its own small size.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from tfkit.checks import check_frames
from tfkit.identity import key_of
from tfkit.libraries import explained, quietly
from tfkit.loading import MENAGERIE
from tfkit.video import Clip

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # what every CLIP's pictures are normalised by
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class CLIP:
    """An image and a text tower that share a space.

    cut: how it takes pictures, see :func:`pixels`.
    """

    model: CLIPModel
    tokenizer: CLIPTokenizer
    name: str
    cut: bool = True

    def fingerprint(self) -> str:
        """A digest of its weights and of how it takes pictures."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return key_of([self.model.state_dict(), self.cut])

    @torch.no_grad()
    def embed_frames(self, frames: Tensor | Clip, *, batch: int = 32) -> Float[Tensor, "f d"]:
        """Unit embeddings of frames (f, 3, h, w) in [0, 1]; ValueError for others."""
        frames, model = check_frames(frames), self.model
        size, images = model.config.vision_config.image_size, []
        for chunk in frames.split(batch):
            shown = pixels(chunk.to(model.device).float(), size, cut=self.cut)
            seen = model.vision_model(pixel_values=shown)
            images.append(F.normalize(model.visual_projection(seen.pooler_output), dim=-1))
        return torch.cat(images)

    @torch.no_grad()
    def embed_prompt(self, prompt: str) -> Float[Tensor, " d"]:
        """The unit embedding of a prompt, cut where too long; ValueError for anything else."""
        _check_prompt(prompt)
        model = self.model
        tokens = self.tokenizer(
            prompt, padding="max_length", truncation=True, return_tensors="pt",
            max_length=model.config.text_config.max_position_embeddings,
        )  # fmt: skip
        text = model.text_model(input_ids=tokens.input_ids.to(model.device)).pooler_output
        return F.normalize(model.text_projection(text)[0], dim=-1)

    def embed(
        self, frames: Tensor | Clip, prompt: str, *, batch: int = 32
    ) -> tuple[Float[Tensor, "f d"], Float[Tensor, " d"]]:
        """Both: of frames (f, 3, h, w) in [0, 1] and of a prompt, cut where too long.

        Raises ValueError for frames of another shape or range.
        """
        _check_prompt(prompt)
        return self.embed_frames(frames, batch=batch), self.embed_prompt(prompt)

    def text_alignment(self, frames: Tensor | Clip, prompt: str) -> float:
        """CLIP-T: mean cosine similarity between the frames and the prompt.

        The paper's CLIP score, its edit fidelity (Geyer et al., ICLR 2024, section 5.2).
        """
        images, text = self.embed(frames, prompt)
        return alignment(images, text)

    def frame_consistency(
        self, frames: Tensor | Clip, pairs: Literal["consecutive", "all"] = "consecutive"
    ) -> float:
        """CLIP-F: mean cosine similarity between frames, of a pair at a time.

        pairs: "consecutive", each frame and the next (Gen-1: Esser et al., ICCV 2023;
        FateZero's Tem-Con), or "all" pairs of different frames (Tune-A-Video: Wu et al., ICCV
        2023), which also sees slow drift. Raises ValueError for one frame.
        """
        return consistency(self.embed_frames(frames), pairs)

    def directional(
        self, edit: Tensor | Clip, source: Tensor | Clip, prompt: str, source_prompt: str
    ) -> float:
        """Directional CLIP: do the frames change the way the words do? From -1 to 1.

        The mean over the frames of cos(E(edit_i) - E(source_i), E(prompt) - E(source_prompt)), 0
        for a frame that the CLIP sees no change in. One minus StyleGAN-NADA's loss (Gal et al.,
        SIGGRAPH 2022, "directional CLIP loss"), as InstructPix2Pix measures (Brooks et al., CVPR
        2023). Raises ValueError for unequal numbers of frames and prompts the CLIP cannot tell
        apart.
        """
        return direction(
            *(self.embed_frames(frames) for frames in (edit, source)),
            *(self.embed_prompt(text) for text in (prompt, source_prompt)),
        )

    def success(self, edit: Tensor | Clip, prompt: str, source_prompt: str) -> float:
        """Success CLIP: the share of frames closer to the prompt than to the source's prompt.

        FateZero's frame accuracy, "Fram-Acc" (Qi et al., ICCV 2023); a tie is none.
        """
        images = self.embed_frames(edit)
        return accuracy(images, self.embed_prompt(prompt), self.embed_prompt(source_prompt))


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise ValueError(f"prompt={prompt!r}: expected a string")


# The same of unit embeddings, for who measures several at once. In float64.


def alignment(images: Float[Tensor, "f d"], text: Float[Tensor, " d"]) -> float:
    """Mean cosine similarity between unit embeddings of frames and of a prompt."""
    return (images.double() @ text.double()).mean().item()


def consistency(images: Float[Tensor, "f d"], pairs: Literal["consecutive", "all"]) -> float:
    """Mean cosine similarity between the unit embeddings of frames: see `frame_consistency`."""
    if pairs not in ("consecutive", "all"):
        raise ValueError(f"pairs={pairs!r}; expected 'consecutive' or 'all'")
    if len(images) < 2:
        raise ValueError(f"{len(images)} frame; consistency needs two at least")
    images = images.double()
    if pairs == "consecutive":
        return (images[1:] * images[:-1]).sum(-1).mean().item()
    first, second = torch.triu_indices(len(images), len(images), 1, device=images.device)
    return (images @ images.T)[first, second].mean().item()


def told_apart(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> bool:
    """Whether two prompts' embeddings differ by more than rounding."""
    return bool((a.double() - b.double()).norm() >= 1e-6)


def direction(
    edit: Float[Tensor, "f d"],
    source: Float[Tensor, "f d"],
    prompt: Float[Tensor, " d"],
    source_prompt: Float[Tensor, " d"],
) -> float:
    """Mean cosine of the change of the frames and that of the words: see `directional`."""
    if edit.shape != source.shape:
        raise ValueError(
            f"{len(edit)} frames of the edit, {len(source)} of its source; expected as many"
        )
    words = prompt.double() - source_prompt.double()
    if not told_apart(prompt, source_prompt):
        raise ValueError("the two prompts have one embedding; expected words of different meaning")
    changes = edit.double() - source.double()
    # of float32 embeddings, differences below 1e-6 are rounding and point anywhere
    changes = torch.where(changes.norm(dim=-1, keepdim=True) < 1e-6, 0.0, changes)
    return F.cosine_similarity(changes, words[None], dim=-1, eps=1e-300).mean().item()


def accuracy(
    images: Float[Tensor, "f d"], prompt: Float[Tensor, " d"], source_prompt: Float[Tensor, " d"]
) -> float:
    """Share of frames closer to the one prompt than to the other: see `success`."""
    target, before = (images.double() @ text.double() for text in (prompt, source_prompt))
    return (target > before).double().mean().item()


def pixels(
    frames: Float[Tensor, "f 3 h w"], size: int, *, cut: bool = False
) -> Float[Tensor, "f 3 size size"]:
    """Frames in [0, 1] as a CLIP takes them: ``size`` pixels square, normalised.

    The menagerie's sees the whole picture, each of its pixels a mean of the frame's. cut: as
    OpenAI's and its kin were trained, and transformers' CLIPImageProcessor has it: the shorter
    side becomes ``size`` (bicubic), and the middle of the longer one is seen.
    """
    if cut:
        h, w = (size * side // min(frames.shape[-2:]) for side in frames.shape[-2:])
        frames = F.interpolate(frames, size=(h, w), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (h - size) // 2, (w - size) // 2
        frames = frames[..., top : top + size, left : left + size]
    else:
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
    return CLIP(model.float().eval().requires_grad_(False), tokenizer, str(name), cut=not own)
