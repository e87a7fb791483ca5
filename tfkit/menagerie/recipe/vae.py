"""Stage 2, the VAE: crops in and out of four channels at a quarter of the size."""

import copy

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tfkit.menagerie import casting
from tfkit.menagerie.recipe.data import dataset, held_out, pick
from tfkit.menagerie.recipe.loop import Run, save_grid


def vae_config() -> dict:
    return {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [24, 48, 64], "layers_per_block": 1, "norm_num_groups": 8,
        "sample_size": casting.SIZE,
    }  # fmt: skip


GRAIN = 0.2  # noise on the latents, in shares of their own deviation, at the most


def train(args):
    """Trains on crops of 64 pixels.

    The decoder gets latents with some noise on them: a UNet's, and an inversion's, are never quite
    right either, and where tiny differences carried detail they would turn into grain.
    """
    model = AutoencoderKL(**vae_config()).to(args.device, memory_format=torch.channels_last)
    frames, _ = dataset(args.work, args.images)
    held, _ = held_out(args)
    run = Run("vae", model, args, rate=args.rate or 2e-3)

    def loss_of():
        images, _ = pick(frames, 8, args.device)
        y, x = (int(torch.randint(casting.SIZE - 64 + 1, ())) for _ in range(2))
        images = images[..., y : y + 64, x : x + 64]
        if torch.rand(()) < 0.5:  # the world has little magenta and cyan; a VAE needs every hue
            images = images[:, torch.randperm(3)]
        images = images.contiguous(memory_format=torch.channels_last)
        target = images * 2 - 1
        posterior = model.encode(target).latent_dist
        latents = posterior.sample()
        grain = GRAIN * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        grain = grain * latents.std((1, 2, 3), keepdim=True)  # no reward for size
        out = model.decode(latents + grain * torch.randn_like(latents)).sample
        error = out - target
        edges = sum((error.diff(dim=d) ** 2).mean() for d in (-1, -2))  # keeps outlines sharp
        kl = posterior.kl().mean() / target[0].numel()
        color = (F.avg_pool2d(error, 8) ** 2).mean()  # four channels would rather drop a hue
        detail = (error**2).mean() * 4 + error.abs().mean() + edges
        return detail + 20 * color + 1e-4 * kl, len(images)

    @torch.no_grad()
    def report(average):
        images = torch.cat([held[:24], held[-24:]]).to(args.device).float() / 255
        latents = average.encode(images * 2 - 1).latent_dist.mean
        out = (average.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        error = ((out - images) ** 2).mean((1, 2, 3))
        save_grid(torch.cat([images[:8], out[:8], images[-8:], out[-8:]]), args.work / "vae.png")
        db = -10 * error.log10()
        noisy = latents + 0.1 * latents.std() * torch.randn_like(latents)
        grainy = (average.decode(noisy).sample / 2 + 0.5).clamp(0, 1)
        loss = ((grainy - images) ** 2).mean((1, 2, 3))
        return {"menagerie dB": db[:24].mean().item(), "natural dB": db[24:].mean().item(),
                "menagerie dB with noise": -10 * loss[:24].log10().mean().item(),
                "std": latents.std().item()}  # fmt: skip

    def export(average):
        with torch.no_grad():
            frames = held[:128].to(args.device).float() / 127.5 - 1
            std = average.encode(frames).latent_dist.mean.std()
        vae = copy.deepcopy(average)
        vae.register_to_config(scaling_factor=round(1 / std.item(), 5), force_upcast=False)
        vae.half().save_pretrained(args.out / "vae")
        for stale in args.work.glob("latents-*.npy"):  # another VAE's
            stale.unlink()

    run.train(args.minutes, loss_of, report, export)
