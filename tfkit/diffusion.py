"""A latent diffusion model as five functions: encode, decode, embed, predict_noise, timesteps.

The menagerie and Stable Diffusion 1.x and 2.x go through the same code. Weights are read from
safetensors only and never changed. Memory: the model, and one batch of activations.
"""

import hashlib
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tfkit import hooks

HALF = (torch.float16, torch.bfloat16)


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity appeared inside a model; the message says where, why and what to do."""


@dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A VAE, a text encoder, a UNet and its noise schedule, with what is done with them."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    name: str = ""

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
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def sample_size(self) -> int:
        """The side, in pixels, of the images the model was trained on."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def precision(self) -> torch.dtype:
        """What latents are kept in between steps: float32 under a half-precision model."""
        return torch.float32 if self.dtype in HALF else self.dtype

    @torch.no_grad()
    def encode(self, frames: Tensor, *, batch: int = 16) -> Float[Tensor, "f c h w"]:
        """Latents (f, 4, h/factor, w/factor) of frames (f, 3, h, w) in [0, 1]: posterior means.

        Sides that are no multiple of ``factor`` are resized to the nearest one. Raises ValueError
        for another shape, for values outside [0, 1] and for NaN.
        """
        check_frames(frames)
        size = tuple(max(1, round(side / self.factor)) * self.factor for side in frames.shape[-2:])
        out = []
        for chunk in frames.split(batch):
            chunk = chunk.to(self.device, self.vae.dtype)
            if chunk.shape[-2:] != size:
                chunk = _resize(chunk, size)
            with torch.inference_mode():
                latents = self.vae.encode(chunk * 2 - 1).latent_dist.mean
            out.append(latents * self.vae.config.scaling_factor)
        latents = torch.cat(out).to(self.precision)
        if not torch.isfinite(latents).all():
            raise NonFiniteError(_why("the VAE's encoder", self.vae.dtype))
        return latents

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, size: tuple[int, int] | None = None, batch: int = 16
    ) -> Float[Tensor, "f 3 h w"]:
        """Frames in [0, 1] of latents (f, 4, h, w), resized to ``size`` (height, width) if given.

        Raises NonFiniteError where the VAE overflows.
        """
        out = []
        for chunk in latents.split(batch):
            chunk = chunk.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
            with torch.inference_mode():
                frames = self.vae.decode(chunk).sample
            frames = frames / 2 + 0.5
            if not torch.isfinite(frames).all():
                raise NonFiniteError(_why("the VAE's decoder", self.vae.dtype))
            out.append(_resize(frames, size) if size and frames.shape[-2:] != size else frames)
        return torch.cat(out).clamp(0, 1).to(self.precision)

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "1 l d"]:
        """The text encoder's last hidden states. Warns where the prompt is longer than it reads."""
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {prompt!r}: expected a string")
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        whole = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(whole) > length:
            lost = self.tokenizer.decode(whole[length - 1 : -1])
            warnings.warn(f"prompt {prompt!r} is cut; unread: {lost!r}", stacklevel=2)
        with torch.inference_mode():
            states = self.text_encoder(ids.to(self.device))[0]
        return states.clone().to(self.dtype)

    @torch.no_grad()
    def predict_noise(
        self, latents: Float[Tensor, "b c h w"], t: int | Tensor, text: Float[Tensor, "_ l d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise (epsilon) the UNet sees in ``latents`` at timestep ``t``.

        text: (1, l, d) for all, or (b, l, d). Models that predict v or the clean sample are
        converted at ``t``. Raises NonFiniteError with the layer group that overflowed first.
        """
        t = int(t)
        x = latents.to(self.device, self.dtype, memory_format=torch.channels_last)
        text = text.to(x).expand(len(x), -1, -1)
        out = self._unet(x, t, text)
        if not torch.isfinite(out).all():
            with hooks.first_nonfinite(self.unet) as groups:
                self._unet(x, t, text)
            where = groups[0] if groups else "the input"
            raise NonFiniteError(_why(f"the UNet's {where} at timestep {t}", self.dtype))
        out, x = out.to(latents.dtype), latents.to(self.device)
        a = self.alpha(t)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return a**0.5 * out + (1 - a) ** 0.5 * x
        if kind == "sample":
            return (x - a**0.5 * out) / (1 - a) ** 0.5
        return out.clone()

    def _unet(self, x: Tensor, t: int, text: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.unet(x, t, encoder_hidden_states=text).sample

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The DDIM timesteps, descending, of a schedule of ``steps``.

        Raises ValueError where the model's own spacing overruns its training timesteps.
        """
        trained = self.scheduler.config.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= trained:
            raise ValueError(f"steps={steps!r}: expected a whole number from 1 to {trained - 1}")
        schedule = DDIMScheduler.from_config(self.scheduler.config)
        schedule.set_timesteps(steps)
        timesteps = tuple(int(t) for t in schedule.timesteps)
        if timesteps[0] >= trained or len(set(timesteps)) < steps:
            raise ValueError(
                f"steps={steps}: with {schedule.config.timestep_spacing!r} spacing and an offset "
                f"of {schedule.config.steps_offset} the first timestep would be {timesteps[0]}, "
                f"but this model knows 0 to {trained - 1}; use at most {trained - 1} steps"
            )
        return timesteps

    def alpha(self, t: int | None) -> Tensor:
        """Share of signal (the cumulative product of alphas) at ``t``; None: the clean end."""
        schedule = self.scheduler
        a = schedule.final_alpha_cumprod if t is None else schedule.alphas_cumprod[int(t)]
        return a.clamp(min=2.0**-24)  # zero-terminal-SNR schedules would divide by zero

    def fingerprint(self) -> str:
        """A short digest of the UNet's and text encoder's weights, from a sample of each tensor."""
        digest = hashlib.sha256()
        for part in (self.unet, self.text_encoder):
            for key, value in part.state_dict().items():
                flat = value.flatten()
                some = flat[:: max(1, flat.numel() // 64)][:64].double().cpu()
                digest.update(f"{key} {tuple(value.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()[:16]


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def _why(where: str, dtype: torch.dtype) -> str:
    if dtype in HALF:
        return (
            f"a NaN or infinity first appears in {where}. The model runs in {dtype}, whose range "
            "attention and VAE can overflow; load it with dtype=torch.float32."
        )
    return (
        f"a NaN or infinity first appears in {where}. In {dtype} that comes from the weights or "
        "the latents: check that the model's files are whole and the frames finite."
    )


def check_frames(frames: Tensor) -> None:
    """Raises ValueError unless ``frames`` are (f, 3, h, w), finite and in [0, 1]."""
    if (
        not isinstance(frames, Tensor)
        or frames.ndim != 4
        or frames.shape[1] != 3
        or not len(frames)
    ):
        shape = tuple(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
        raise ValueError(f"frames {shape}: expected a tensor (frames, 3, height, width)")
    if not frames.is_floating_point():
        raise ValueError(
            f"frames of {frames.dtype}: expected floats in [0, 1]; divide bytes by 255"
        )
    if not torch.isfinite(frames).all():
        raise ValueError("frames hold NaN or infinity: expected finite values in [0, 1]")
    low, high = frames.min().item(), frames.max().item()
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"frames span {low:.3g} to {high:.3g}: expected [0, 1]")
