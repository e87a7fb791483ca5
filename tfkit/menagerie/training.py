"""Trains the menagerie's Stable Diffusion from nothing: a CLIP, a VAE, a UNet, in this order.

    python -m tfkit.menagerie.training [clip|vae|unet|all] --minutes 30 --resume

Every stage minds the clock, writes its state (resumable) and pictures to ``--work`` and what it
has learned, as fp16 safetensors in Stable Diffusion's own folder layout, to ``--out``. The data
are single frames of the world with captions that leave things open, and, so that a user's own
video fits too, dead-leaves and 1/f images with an empty caption. One model on any device; memory
is that of one batch and the frames, 50 kB each.
"""

import argparse
import copy
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from tfkit.clip import pixels
from tfkit.menagerie import casting, vocabulary
from tfkit.menagerie.data import captions, dataset, pick
from tfkit.menagerie.folder import (
    WEIGHTS,
    save_half,
    save_text_encoder,
    text_config,
    vision_config,
    write_index,
    write_tokenizer,
)
from tfkit.menagerie.loop import Run, save_grid


def tokenize(tokenizer, texts: list[str], device) -> dict[str, Tensor]:
    out = tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    )  # fmt: skip
    return {"input_ids": out.input_ids.to(device)}


def held_out(args):
    """Frames and descriptions that no stage trains on."""
    return dataset(args.work, min(640, args.images), first_seed=500_000)


def train_clip(args):
    """Stage 1: frames and captions find each other; equal captions count as one."""
    tokenizer = write_tokenizer(args.out / "tokenizer")
    config = CLIPConfig(
        text_config=text_config(tokenizer), vision_config=vision_config(), projection_dim=64
    )
    model = CLIPModel(config).to(args.device)
    frames, descriptions = dataset(args.work, args.images)
    held, held_descriptions = held_out(args)
    rng, size = random.Random(0), vision_config()["image_size"]
    run = Run("clip", model, args, rate=1e-3, ema=0.995)

    def loss_of():
        images, index = pick(frames, 128, args.device, len(descriptions))
        texts = captions(index, descriptions, rng, keep=(0.7, 1.3))
        out = model(**tokenize(tokenizer, texts, args.device), pixel_values=pixels(images, size))
        same = torch.tensor([[a == b for b in texts] for a in texts], device=args.device).float()
        target = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        return loss / 2, len(texts)

    def report(average):
        rates = read_rates(average, tokenizer, held, held_descriptions, size, args.device)
        return {f"reads {kind}": rate for kind, rate in rates.items()}

    run.train(args.minutes, loss_of, report=report)
    save_half(run.average, args.out / "clip")
    write_tokenizer(args.out / "clip")
    text = CLIPTextModel(run.average.config.text_config)
    tower = {k: v for k, v in run.average.state_dict().items() if k.startswith("text_model.")}
    own = text.state_dict()
    prefix = "" if next(iter(own)).startswith("text_model.") else "text_model."
    text.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tower.items()})
    save_text_encoder(text, args.out / "text_encoder")


@torch.no_grad()
def read_rates(model, tokenizer, held, descriptions, size, device) -> dict[str, float]:
    """How often each attribute of single animals is read right, among all captions of it."""
    single = [i for i, d in enumerate(descriptions) if len(d.looks) == 1][:256]
    images = held[single].to(device).float() / 255
    rates = {}
    for kind, words in vocabulary.ATTRIBUTES.items():
        truth = [_attribute(descriptions[i], kind) for i in single]
        texts = [
            vocabulary.compose(vocabulary.change(descriptions[i], **{kind: word}))
            for i in single
            for word in words
        ]
        out = model(**tokenize(tokenizer, texts, device), pixel_values=pixels(images, size))
        t = rearrange(out.text_embeds, "(n w) d -> n w d", w=len(words))
        guess = torch.einsum("nd,nwd->nw", out.image_embeds, t).argmax(1).cpu()
        right = [words[g] == word for g, word in zip(guess.tolist(), truth, strict=True)]
        rates[kind] = sum(right) / len(right)
    return rates


def _attribute(description: vocabulary.Description, kind: str) -> str:
    look = description.looks[0]
    return description.ground if kind == "ground" else getattr(look, kind)


def vae_config() -> dict:
    return {
        "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [24, 48, 64], "layers_per_block": 1, "norm_num_groups": 8,
        "sample_size": casting.SIZE,
    }  # fmt: skip


def train_vae(args):
    """Stage 2: crops in and out of four channels at a quarter of the size."""
    model = AutoencoderKL(**vae_config()).to(args.device, memory_format=torch.channels_last)
    frames, _ = dataset(args.work, args.images)
    held, _ = held_out(args)
    run = Run("vae", model, args, rate=2e-3)

    def loss_of():
        images, _ = pick(frames, 8, args.device)
        y, x = (int(torch.randint(casting.SIZE - 64 + 1, ())) for _ in range(2))
        images = images[..., y : y + 64, x : x + 64]
        if torch.rand(()) < 0.5:  # the world has little magenta and cyan; a VAE needs every hue
            images = images[:, torch.randperm(3)]
        images = images.contiguous(memory_format=torch.channels_last)
        target = images * 2 - 1
        posterior = model.encode(target).latent_dist
        out = model.decode(posterior.sample()).sample
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
        return {"menagerie dB": db[:24].mean().item(), "natural dB": db[24:].mean().item(),
                "std": latents.std().item()}  # fmt: skip

    run.train(args.minutes, loss_of, report=report)
    vae = run.average
    for stale in args.work.glob("latents-*.safetensors"):  # another VAE's
        stale.unlink()
    with torch.no_grad():
        std = vae.encode(held[:128].to(args.device).float() / 127.5 - 1).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / std.item(), 5), force_upcast=False)
    vae.half().save_pretrained(args.out / "vae")


def unet_config() -> dict:
    return {
        "sample_size": 32, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [48, 80, 112, 128], "norm_num_groups": 16,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 64, "attention_head_dim": 4,
    }  # fmt: skip


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


@torch.no_grad()
def latents_of(vae, frames: Tensor, size: int, device, path: Path) -> Tensor:
    """Latents (2, n, 4, ...) of all frames and their mirror images, computed once."""
    if not path.exists():
        out = []
        for mirror in (False, True):
            for batch in frames.split(64):
                images = batch.to(device).float() / 255
                images = images.flip(-1) if mirror else images
                if size != casting.SIZE:
                    images = F.interpolate(images, size=(size, size), mode="area")
                latents = vae.encode(images * 2 - 1).latent_dist.mean
                out.append((latents * vae.config.scaling_factor).half().cpu())
        both = rearrange(torch.cat(out), "(m n) c h w -> m n c h w", m=2)
        save_file({"latents": both.contiguous()}, path)
    return load_file(path)["latents"]


def train_unet(args):
    """Stage 3: predicts the noise in one frame at a time; a tenth of the captions is empty."""
    tokenizer = CLIPTokenizer.from_pretrained(args.out / "tokenizer")
    text = CLIPTextModel.from_pretrained(args.out / "text_encoder").float().to(args.device).eval()
    vae = AutoencoderKL.from_pretrained(args.out / "vae").float().to(args.device).eval()
    frames, descriptions = dataset(args.work, args.images)
    kept = args.work / f"latents-{args.size}-{len(frames)}.safetensors"
    latents = latents_of(vae, frames, args.size, args.device, kept)
    model = UNet2DConditionModel(**unet_config()).to(args.device, memory_format=torch.channels_last)
    noise_schedule = scheduler()
    alphas = noise_schedule.alphas_cumprod.to(args.device)
    rng = random.Random()
    run = Run("unet", model, args, rate=args.rate, ema=0.9995)

    def loss_of():
        index = torch.randint(len(frames), (args.batch,))
        x = latents[torch.randint(2, (args.batch,)), index].float().to(args.device)
        texts = [c if rng.random() > 0.1 else "" for c in captions(index, descriptions, rng)]
        with torch.no_grad():
            states = text(**tokenize(tokenizer, texts, args.device))[0]
        t = torch.randint(1000, (args.batch,), device=args.device)
        a = alphas[t][:, None, None, None]
        noise = torch.randn_like(x)
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        out = model(noisy, t, encoder_hidden_states=states).sample
        error = ((out - noise) ** 2).mean((1, 2, 3))
        snr = (a / (1 - a)).flatten()
        return (error * (5 / snr).clamp(max=1)).mean(), args.batch  # min-SNR weighting, gamma 5

    def report(average):
        scenes = [
            vocabulary.Description(((vocabulary.Look(name, color, coat), 1),), ground)
            for name, color, coat, ground in zip(
                vocabulary.SPECIES * 2, vocabulary.COLORS[::-1] * 2, vocabulary.COATS * 4,
                vocabulary.GROUNDS * 3, strict=False,
            )
        ]  # fmt: skip
        texts = [vocabulary.compose(scene) for scene in scenes]
        images = sample(average, vae, text, tokenizer, texts, args.size // 4)
        save_grid(images, args.work / "unet.png")
        return {}

    def export():
        copy.deepcopy(run.average).half().save_pretrained(args.out / "unet")
        noise_schedule.save_pretrained(args.out / "scheduler")
        write_index(args.out)

    run.train(args.minutes, loss_of, report=lambda average: (report(average), export())[0])


@torch.no_grad()
def sample(unet, vae, text, tokenizer, texts, size, steps=25, guidance=4.0, seed=0) -> Tensor:
    """Frames (n, 3, h, w) sampled from ``texts`` with DDIM and guidance."""
    device, steps_of = unet.device, scheduler()
    steps_of.set_timesteps(steps)
    states = text(**tokenize(tokenizer, [""] * len(texts) + texts, device))[0]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(texts), 4, size, size, generator=generator).to(device)
    for t in steps_of.timesteps:
        empty, full = unet(torch.cat([x, x]), t, encoder_hidden_states=states).sample.chunk(2)
        x = steps_of.step(empty + guidance * (full - empty), t, x).prev_sample
    return (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", nargs="?", default="all", choices=["clip", "vae", "unet", "all"])
    parser.add_argument("--minutes", type=float, default=30, help="for this stage, or for each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --work")
    parser.add_argument("--work", type=Path, default=Path("runs/menagerie"), help="state, pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--size", type=int, default=casting.SIZE, help="of frames, for the unet")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=6e-4)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stages = {"clip": train_clip, "vae": train_vae, "unet": train_unet}
    for name in stages if args.stage == "all" else [args.stage]:
        stages[name](args)


if __name__ == "__main__":
    main()
