"""A latent diffusion model as five functions: encode, decode, embed, predict_noise, timesteps.

The menagerie and Stable Diffusion 1.x and 2.x go through the same code. Weights are read from
safetensors only and never changed. Memory: the model, and one batch of activations.
"""

import hashlib
import warnings
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tfkit import hooks
from tfkit.video import Clip, as_frames

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
    def encode(self, frames: Tensor | Clip, *, batch: int = 16) -> Float[Tensor, "f c h w"]:
        """Latents (f, 4, h/factor, w/factor) of frames (f, 3, h, w) in [0, 1]: posterior means.

        Sides that are no multiple of ``factor`` are resized to the nearest one; ``batch`` frames
        at a time. Raises ValueError for another shape, for values outside [0, 1] and for NaN;
        NonFiniteError where the VAE overflows.
        """
        frames = check_frames(frames)
        check_whole("batch", batch)
        size = tuple(max(1, round(side / self.factor)) * self.factor for side in frames.shape[-2:])
        out = []
        for chunk in frames.split(batch):
            chunk = _resize(chunk.to(self.device, self.vae.dtype), size)
            latents = self.vae.encode(chunk * 2 - 1).latent_dist.mean
            if not torch.isfinite(latents).all():
                raise NonFiniteError(_why("the VAE's encoder", self.vae.dtype))
            out.append(latents * self.vae.config.scaling_factor)
        return torch.cat(out).to(self.precision)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, size: tuple[int, int] | None = None, batch: int = 16
    ) -> Float[Tensor, "f 3 h w"]:
        """Frames in [0, 1] of latents (f, 4, h, w), resized to ``size`` (height, width) if given.

        Raises ValueError for another shape and for NaN, NonFiniteError where the VAE overflows.
        """
        check_latents(latents)
        check_whole("batch", batch)
        out = []
        for chunk in latents.split(batch):
            chunk = chunk.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
            frames = self.vae.decode(chunk).sample / 2 + 0.5
            if not torch.isfinite(frames).all():
                raise NonFiniteError(_why("the VAE's decoder", self.vae.dtype))
            out.append(_resize(frames, size or frames.shape[-2:]).clamp(0, 1))
        return torch.cat(out).to(self.precision)

    @torch.no_grad()
    def embed(self, prompt: str) -> Float[Tensor, "1 l d"]:
        """The text encoder's last hidden states. Warns where the prompt is longer than it reads.

        Raises ValueError for anything but a string, NonFiniteError where the encoder overflows.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"prompt={prompt!r}: expected a string")
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        whole = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(whole) > length:
            lost = self.tokenizer.decode(whole[length - 1 : -1])
            warnings.warn(f"prompt {prompt!r} is cut; unread: {lost!r}", stacklevel=3)
        states = self.text_encoder(ids.to(self.device))[0].to(self.dtype)
        if not torch.isfinite(states).all():
            raise NonFiniteError(_why("the text encoder", self.dtype))
        return states

    @torch.no_grad()
    def predict_noise(
        self, latents: Float[Tensor, "b c h w"], t: int | Tensor, text: Float[Tensor, "_ l d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise (epsilon) the UNet sees in ``latents`` at timestep ``t``.

        text: (1, l, d) for all, or (b, l, d). Models that predict v or the clean sample are
        converted at ``t`` (Salimans & Ho 2022, appendix D). Raises ValueError for a timestep or a
        text that does not fit, NonFiniteError with the layer group that overflowed first.
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
        out = self.unet(x, t, encoder_hidden_states=text).sample
        if not torch.isfinite(out).all():
            raise NonFiniteError(_why(f"{self._first_nonfinite(x, t, text)} at timestep {t}",
                                      self.dtype))  # fmt: skip
        out, x, a = out.to(latents.dtype), latents.to(self.device), self.alpha(t)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return a**0.5 * out + (1 - a) ** 0.5 * x
        if kind == "sample":
            return (x - a**0.5 * out) / (1 - a) ** 0.5
        return out

    def _first_nonfinite(self, x: Tensor, t: int, text: Tensor) -> str:
        """Runs the pass again, watched: what was the first to overflow."""
        if not torch.isfinite(x).all():
            return "the latents given to the UNet"
        with hooks.first_nonfinite(self.unet) as groups:
            self.unet(x, t, encoder_hidden_states=text)
        return f"the UNet's {groups[0]}" if groups else "the UNet"

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The DDIM timesteps, descending, of a schedule of ``steps``, in the model's own spacing.

        Raises ValueError where that spacing overruns the timesteps the model was trained on.
        """
        trained = self.scheduler.config.num_train_timesteps
        if not is_whole(steps) or not 1 <= steps <= trained:
            raise ValueError(f"steps={steps!r}: expected a whole number from 1 to {trained - 1}")
        schedule = DDIMScheduler.from_config(self.scheduler.config)
        schedule.set_timesteps(int(steps))
        # Trailing spacing adds a timestep of -1 where its rounding goes wrong (61 steps, say).
        timesteps = tuple(int(t) for t in schedule.timesteps if t >= 0)
        if timesteps[0] >= trained:
            raise ValueError(
                f"steps={steps}: with {schedule.config.timestep_spacing!r} spacing and an offset "
                f"of {schedule.config.steps_offset} the first timestep would be {timesteps[0]}, "
                f"but this model knows 0 to {trained - 1}; use at most {trained - 1} steps"
            )
        return timesteps

    def alpha(self, t: int | None) -> Tensor:
        """Share of signal (the cumulative product of alphas) at ``t``; None: the clean end.

        In float32 under any model, as diffusers has it. At zero terminal SNR it is not quite 0,
        for noise predictions are divided by its root.
        """
        schedule = self.scheduler
        a = schedule.final_alpha_cumprod if t is None else schedule.alphas_cumprod[t]
        return a.clamp(min=2.0**-24)

    def fingerprint(self) -> str:
        """A short digest of what a latent depends on: weights (64 of each tensor) and schedule."""
        digest = hashlib.sha256(self.scheduler.config.prediction_type.encode())
        values = [self.scheduler.alphas_cumprod, self.scheduler.final_alpha_cumprod[None]]
        for part in (self.unet, self.vae, self.text_encoder):
            values += part.state_dict().values()
        for value in values:
            value = torch.atleast_1d(value)
            places = torch.linspace(0, value.numel() - 1, 64, dtype=torch.float64).long()
            some = value[torch.unravel_index(places.to(value.device), value.shape)]
            digest.update(f"{tuple(value.shape)}".encode() + some.double().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if frames.shape[-2:] == tuple(size):
        return frames
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


def check_frames(frames: Tensor | Clip) -> Float[Tensor, "f 3 h w"]:
    """The frames of a clip or tensor; ValueError unless (f, 3, h, w), finite and in [0, 1]."""
    frames = as_frames(frames)
    if not torch.isfinite(frames).all():
        raise ValueError("frames hold NaN or infinity; expected finite values in [0, 1]")
    low, high = (x.item() for x in frames.aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"frames span {low:.3g} to {high:.3g}; expected [0, 1]")
    return frames


def check_latents(latents: Tensor) -> None:
    """Raises ValueError unless ``latents`` are floats (f, 4, h, w), finite, one frame or more."""
    if not isinstance(latents, Tensor):
        raise ValueError(f"latents: a {type(latents).__name__}; expected a tensor (f, 4, h, w)")
    if latents.ndim != 4 or latents.shape[1] != 4 or 0 in latents.shape:
        raise ValueError(f"latents of shape {tuple(latents.shape)}; expected (f, 4, h, w)")
    if not latents.is_floating_point():
        raise ValueError(f"latents of {latents.dtype}; expected floats")
    if not torch.isfinite(latents).all():
        raise ValueError("latents hold NaN or infinity; expected finite values")


def is_whole(value) -> bool:
    """Whether a value counts something: an integer of Python's or numpy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value, least: int = 1) -> None:
    """Raises ValueError unless ``value`` is a whole number of at least ``least``."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
