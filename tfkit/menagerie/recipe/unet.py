"""Stage 3, the UNet: it sees one frame at a time and takes its noise away.

It predicts the velocity ("v"), as Stable Diffusion 2.1 does: so small a network that predicts the
noise itself is off in colour where noise is nearly all there is. A tenth of the captions is empty,
for guidance.
"""

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tfkit.atomic import replacing
from tfkit.menagerie import vocabulary
from tfkit.menagerie.folder import write_index
from tfkit.menagerie.recipe.clip import tokenize
from tfkit.menagerie.recipe.data import captions, dataset
from tfkit.menagerie.recipe.loop import Run, save_grid
from tfkit.sampling import with_noise


def unet_config() -> dict:
    return {
        "sample_size": 32, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [48, 80, 112, 128], "norm_num_groups": 16,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 64, "attention_head_dim": 4,
    }  # fmt: skip


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule, and 2.1's prediction."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip


VERSIONS = 8  # captions of a frame, each of which leaves other things open


@dataclass(frozen=True, eq=False)
class Batch:
    """Frames by their indices (b,), mirrored where 1, with their latents and captions' tokens."""

    index: Tensor
    mirrored: Tensor
    latents: Tensor
    tokens: Tensor


class Studio:
    """What the frozen stages give the later ones: noisy latents with their captions.

    On a GPU all of it lies there, so that a step waits for nothing: 16 kB a frame.
    """

    def __init__(self, args):
        out, self.args = args.out, args
        self.tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        text = CLIPTextModel.from_pretrained(out / "text_encoder")
        self.text = text.float().to(args.device).eval()
        self.vae = AutoencoderKL.from_pretrained(out / "vae").float().to(args.device).eval()
        self.frames, self.descriptions = dataset(args.work, args.images)
        kept = args.work / f"latents-{args.size}-{len(self.frames)}.npy"
        self.latents = Latents(self.vae, self.frames, args.size, kept)
        if args.device.startswith("cuda"):
            self.latents.fill()
        self.alphas = scheduler().alphas_cumprod.to(args.device)
        self.tokens = self._captions()

    def _captions(self) -> Tensor:
        """Token ids (n, VERSIONS, length) of captions of each frame, and at n of empty ones."""
        rng, every = random.Random(), torch.arange(len(self.frames))
        texts = captions(every.repeat_interleave(VERSIONS), self.descriptions, rng)
        texts += [""] * VERSIONS
        tokens = tokenize(self.tokenizer, texts, self.args.device)["input_ids"]
        return tokens.reshape(len(self.frames) + 1, VERSIONS, -1)

    def batch(self) -> Batch:
        """Random frames with captions, a tenth of them empty."""
        many, device = (self.args.batch,), self.args.device
        index = torch.randint(len(self.frames), many, device=device)
        mirrored = torch.randint(2, many, device=device)
        told = torch.where(torch.rand(many, device=device) > 0.1, index, len(self.frames))
        tokens = self.tokens[told, torch.randint(VERSIONS, many, device=device)]
        return Batch(index, mirrored, self.latents(index, mirrored), tokens)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        return self.text(**tokenize(self.tokenizer, texts, self.args.device))[0]

    def loss(self, predict, batch: Batch) -> Tensor:
        """Mean error of ``predict(noisy, t, text)`` as a velocity (Salimans and Ho, 2022).

        As an error of the clean latents its weight is SNR + 1, at most 6: the last traces of noise
        are many steps' work and little to see.
        """
        x = batch.latents
        with torch.no_grad():
            text = self.text(input_ids=batch.tokens)[0]
        t = torch.randint(1000, (len(x),), device=x.device)
        alpha = self.alphas[t][:, None, None, None]
        noise = torch.randn_like(x)
        noisy = with_noise(x, noise, alpha).contiguous(memory_format=torch.channels_last)
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x
        error = ((predict(noisy, t, text) - velocity) ** 2).mean((1, 2, 3))
        weight = (6 * (1 - alpha.flatten())).clamp(max=1)  # SNR + 1 = 1 / (1 - alpha)
        return (error * weight).mean()


class Latents:
    """Latents of all frames and their mirror images, each computed when first asked for and kept.

    In float16, where what is not known yet is not a number: a file, or on a GPU its memory.
    """

    def __init__(self, vae: AutoencoderKL, frames: Tensor, size: int, path: Path):
        self.vae, self.frames, self.size, self.full = vae, frames, size, False
        shape = (2, len(frames), 4, size // 4, size // 4)
        if vae.device.type == "cuda":
            self.kept = torch.full(shape, torch.nan, dtype=torch.float16, device=vae.device)
            return
        if not path.exists():
            with replacing(path) as new:  # killed on the way, zeros would pass for latents
                np.lib.format.open_memmap(new, "w+", np.float16, shape)[:] = np.nan
        self.kept = torch.from_numpy(np.lib.format.open_memmap(path, "r+"))

    def fill(self):
        """Computes all, so that nothing is looked up any more."""
        for index in torch.arange(len(self.frames)).split(512):
            for side in (0, 1):
                self.kept[side, index] = self._encode(index, torch.full_like(index, side))
        self.full = True

    def __call__(self, index: Tensor, mirrored: Tensor) -> Tensor:
        """Those (b, 4, h, w) of frames ``index``, mirrored where 1; float32, where the VAE is."""
        if not self.full:
            new = self.kept[mirrored, index, 0, 0, 0].isnan()
            if new.any():
                self.kept[mirrored[new], index[new]] = self._encode(index[new], mirrored[new])
        return self.kept[mirrored, index].float()

    @torch.no_grad()
    def _encode(self, index: Tensor, mirrored: Tensor) -> Tensor:
        images = self.frames[index.cpu()].to(self.vae.device).float() / 255
        flip = mirrored.to(images.device)[:, None, None, None] == 1
        images = torch.where(flip, images.flip(-1), images)
        if self.size != images.shape[-1]:
            images = F.interpolate(images, size=(self.size, self.size), mode="area")
        images = images.contiguous(memory_format=torch.channels_last)
        latents = self.vae.encode(images * 2 - 1).latent_dist.mean
        return (latents * self.vae.config.scaling_factor).half()


def prompts() -> list[str]:
    """24 captions that between them name every species, colour, coat and ground."""
    names, colors = vocabulary.SPECIES, vocabulary.COLORS
    coats, grounds = vocabulary.COATS, vocabulary.GROUNDS
    texts = []
    for i in range(24):
        row = i // len(names)  # each row another colour and coat for a species
        look = vocabulary.Look(names[i % 8], colors[(i + 3 * row + 1) % 8], coats[(i + row) % 4])
        texts.append(vocabulary.compose(vocabulary.Description(((look, 1),), grounds[i % 6])))
    return texts


def denoiser(unet: UNet2DConditionModel):
    """The UNet as a function of noisy latents, timestep and text states."""
    return lambda noisy, t, text: unet(noisy, t, encoder_hidden_states=text).sample


def train(args):
    """Trains on latents of frames of ``args.size`` pixels."""
    model = UNet2DConditionModel(**unet_config()).to(args.device, memory_format=torch.channels_last)
    run = Run("unet", model, args, rate=args.rate or 6e-4, ema=0.999)
    predict = denoiser(torch.compile(model) if args.device.startswith("cuda") else model)
    studio = Studio(args)

    def loss_of():
        batch = studio.batch()
        return studio.loss(predict, batch), len(batch.index)

    def report(average):
        images = sample(denoiser(average), studio, prompts(), args.size // 4)
        save_grid(images, args.work / "unet.png")
        return {}

    def export(average):
        copy.deepcopy(average).half().save_pretrained(args.out / "unet")
        scheduler().save_pretrained(args.out / "scheduler")
        write_index(args.out)

    run.train(args.minutes, loss_of, report, export)


@torch.no_grad()
def sample(predict, studio: Studio, texts, size: int, steps=25, guidance=4.0, seed=0) -> Tensor:
    """Frames (n, 3, h, w) sampled from ``texts`` with DDIM and guidance."""
    steps_of, vae = scheduler(), studio.vae
    steps_of.set_timesteps(steps)
    states = studio.embed([""] * len(texts) + texts)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(texts), 4, size, size, generator=generator).to(vae.device)
    for t in steps_of.timesteps:
        empty, full = predict(torch.cat([x, x]), t, states).chunk(2)
        x = steps_of.step(empty + guidance * (full - empty), t, x).prev_sample
    return (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
