"""A latent diffusion model as five functions: encode, decode, embed, predict_noise, timesteps.

The menagerie and Stable Diffusion 1.x, 2.x (depth too) and XL go through the same code. Weights are
read from safetensors only and never changed. Memory: the model, and one batch of activations.
"""

import hashlib
import json
import warnings
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tfkit import autoencoder, hooks, noise_schedule, prompts
from tfkit.checks import check_frames, check_latents
from tfkit.overflow import HALF, NonFiniteError, overflowed
from tfkit.settings import check_whole
from tfkit.spots import digest_spots
from tfkit.video import Clip

__all__ = ["LatentDiffusion", "NonFiniteError", "check_depth", "check_model"]

# What a configuration sets that no weight shows. Named, since diffusers' releases add their own.
_SILENT = ("scaling_factor", "attention_head_dim", "num_attention_heads", "norm_num_groups",
           "norm_eps", "act_fn", "flip_sin_to_cos", "freq_shift")  # fmt: skip


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A VAE, a text encoder, a UNet and its noise schedule, with what is done with them.

    Stable Diffusion XL has a second text encoder and tokenizer; others have None there.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    name: str = ""
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.unet.parameters()) / 1e6
        return (
            f"LatentDiffusion({self.name!r}, UNet of {size:.1f} M parameters, "
            f"{self.sample_size} px, {self.dtype} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def factor(self) -> int:
        """How many pixels a latent spans."""
        return autoencoder.factor_of(self.vae)

    @property
    def sample_size(self) -> int:
        """The side, in pixels, of the images the model was trained on."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def takes_depth(self) -> bool:
        """Whether the UNet reads a depth map beside the latents, as Stable Diffusion 2 depth."""
        return self.unet.config.in_channels == self.vae.config.latent_channels + 1

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the latents of frames of so many pixels."""
        return max(1, round(height / self.factor)), max(1, round(width / self.factor))

    @property
    def precision(self) -> torch.dtype:
        """What latents are kept in between steps: float32 under a half-precision model."""
        return torch.float32 if self.dtype in HALF else self.dtype

    def encode(self, frames: Tensor | Clip, *, batch: int = 16) -> Float[Tensor, "f c h w"]:
        """Latents (f, 4, h/factor, w/factor) of frames (f, 3, h, w) in [0, 1]: posterior means.

        Sides that are no multiple of ``factor`` are resized to the nearest one; ``batch`` frames
        at a time. Raises ValueError for another shape, for values outside [0, 1] and for NaN;
        NonFiniteError where the VAE overflows.
        """
        frames = check_frames(frames)
        batch = check_whole("batch", batch)
        grid = self.grid(*frames.shape[-2:])
        return autoencoder.encode(self.vae, frames, grid, batch).to(self.precision)

    def decode(
        self, latents: Tensor, *, size: tuple[int, int] | None = None, batch: int = 16
    ) -> Float[Tensor, "f 3 h w"]:
        """Frames in [0, 1] of latents (f, 4, h, w), resized to ``size`` (height, width) if given.

        Raises ValueError for another shape and for NaN, NonFiniteError where the VAE overflows.
        """
        check_latents(latents)
        batch = check_whole("batch", batch)
        return autoencoder.decode(self.vae, latents, size, batch).to(self.precision)

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "1 l d"]:
        """The text encoder's last hidden states. Warns where the prompt is longer than it reads.

        SDXL: both encoders' last but one, (1, 77, d), and their pooled embedding as one more row.
        Raises ValueError for anything but a text, NonFiniteError where the encoder overflows.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"prompt={prompt!r}: expected a string; for none the empty one, ''")
        ids, unread = prompts.token_ids(self.tokenizer, prompt)
        if unread:
            warnings.warn(f"prompt {prompt!r} is cut; unread: {unread!r}", stacklevel=3)
        if self.text_encoder_2 is None:
            states = prompts.encode_one(self.text_encoder, ids)
        else:
            ids_2, _ = prompts.token_ids(self.tokenizer_2, prompt)
            states = prompts.encode_two(self.text_encoder, self.text_encoder_2, ids, ids_2)
        states = states.to(self.dtype)
        if not torch.isfinite(states).all():
            raise overflowed("the text encoder", self.dtype)
        return states

    @torch.no_grad()
    def predict_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        t: int | Tensor,
        text: Float[Tensor, "_ l d"],
        *,
        depth: Tensor | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The noise (epsilon) the UNet sees in ``latents`` at timestep ``t``.

        text: (1, l, d) for all, or (b, l, d). depth: (1 or b, 1, h, w) in [-1, 1], for a model that
        reads it. Models that predict v or the clean sample are converted at ``t`` (Salimans & Ho
        2022, appendix D). SDXL is told that nothing is cropped and the picture is whole: its size
        in pixels twice. Raises ValueError for a timestep, text or depth that does not fit,
        NonFiniteError with the layer group that overflowed first.
        """
        t, trained = int(t), self.scheduler.config.num_train_timesteps
        if not 0 <= t < trained:
            raise ValueError(f"t={t}: expected a timestep from 0 to {trained - 1}")
        if len(text) not in (1, len(latents)):
            raise ValueError(
                f"text {tuple(text.shape)}: expected (1, l, d), or one row for each of the "
                f"{len(latents)} latents"
            )
        x = latents.to(self.device, self.dtype, memory_format=torch.channels_last)
        text = text.to(x).expand(len(x), -1, -1)
        seen, conditions = self._with_depth(x, depth), self._conditions(x, text)
        out = self.unet(seen, t, **conditions).sample
        if not torch.isfinite(out).all():
            where = f"{self._first_nonfinite(seen, t, conditions)} at timestep {t}"
            raise overflowed(where, self.dtype)
        out, x = out.to(latents.dtype), latents.to(self.device)
        return noise_schedule.as_noise(self.scheduler, out, x, t)

    def _with_depth(self, x: Tensor, depth: Tensor | None) -> Tensor:
        """The latents with their depth as a fifth channel, where the model reads one."""
        check_depth(self, depth)
        if depth is None:
            return x
        if depth.ndim != 4 or depth.shape[1:] != (1, *x.shape[2:]) or len(depth) not in (1, len(x)):
            raise ValueError(
                f"depth {tuple(depth.shape)}: expected (1 or {len(x)}, 1, {x.shape[2]}, "
                f"{x.shape[3]}), as tfkit.conditions.latent_depth makes it"
            )
        return torch.cat([x, depth.to(x).expand(len(x), -1, -1, -1)], 1)

    def _conditions(self, x: Tensor, text: Tensor) -> dict:
        """What the UNet is given beside latents and timestep."""
        if self.text_encoder_2 is None:
            return {"encoder_hidden_states": text}
        states, pooled = prompts.split(text, self.text_encoder_2.config.projection_dim)
        h, w = (side * self.factor for side in x.shape[-2:])
        ids = x.new_tensor([h, w, 0, 0, h, w]).expand(len(x), -1)  # original, crop, target size
        added = {"text_embeds": pooled, "time_ids": ids}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}

    def _first_nonfinite(self, x: Tensor, t: int, conditions: dict) -> str:
        """Runs the pass again, watched: what was the first to overflow."""
        if not torch.isfinite(x).all():
            return "the latents given to the UNet"
        with hooks.first_nonfinite(self.unet) as groups:
            self.unet(x, t, **conditions)
        return f"the UNet's {groups[0]}" if groups else "the UNet"

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The DDIM timesteps, descending, of a schedule of ``steps``, in the model's own spacing.

        Raises ValueError where that spacing overruns the timesteps the model was trained on.
        """
        return noise_schedule.timesteps(self.scheduler, steps)

    def alpha(self, t: int | None) -> Tensor:
        """Share of signal (the cumulative product of alphas) at ``t``; None: the clean end.

        In float32 under any model, as diffusers has it. At zero terminal SNR it is not quite 0,
        for noise predictions are divided by its root.
        """
        return noise_schedule.alpha(self.scheduler, t)

    def fingerprint(self) -> str:
        """A short digest of what a latent depends on: weights (64 of each tensor), what is
        set besides them (the VAE's scale, the width of heads, FreeU, strengths of adapters that are
        not merged), words that were added to the tokenizer, and the schedule."""
        digest = hashlib.sha256(self.scheduler.config.prediction_type.encode())
        values = [self.scheduler.alphas_cumprod, self.scheduler.final_alpha_cumprod[None]]
        for tokenizer in filter(None, (self.tokenizer, self.tokenizer_2)):
            words = tokenizer.get_added_vocab().items()
            own = {*tokenizer.all_special_tokens}
            digest.update(
                "".join(f"{word} {i}" for word, i in sorted(words) if word not in own).encode()
            )
        for part in filter(None, (self.unet, self.vae, self.text_encoder, self.text_encoder_2)):
            values += part.state_dict().values()
            silent = json.dumps([getattr(part.config, name, None) for name in _SILENT])
            digest.update("".join([silent, *hooks.switches(part)]).encode())
        digest.update(digest_spots(values))
        return digest.hexdigest()[:16]


def check_model(model: object) -> None:
    """Raises ValueError for anything but a model, with what makes one of it."""
    if isinstance(model, LatentDiffusion):
        return
    pipeline = hasattr(model, "unet") and hasattr(model, "vae")
    makes = "tfkit.from_pipeline(pipeline) makes one" if pipeline else "tfkit.load() returns one"
    given = repr(model) if model is None or isinstance(model, str) else f"a {type(model).__name__}"
    raise ValueError(f"model is {given}; expected a LatentDiffusion: {makes}")


def check_depth(model: LatentDiffusion, depth: Tensor | None) -> None:
    """Raises ValueError unless there is a depth exactly where the model reads one."""
    if model.takes_depth and depth is None:
        raise ValueError(
            f"{model.name!r} reads a depth map for every frame, and none is given; invert with "
            "tfkit.invert(model, clip, prompt, depth=depth), depth (f, h, w), larger is nearer"
        )
    if depth is not None and not model.takes_depth:
        raise ValueError(
            f"depth is given, but {model.name!r} reads none (its UNet takes "
            f"{model.unet.config.in_channels} channels); leave it out, or load a depth model"
        )
