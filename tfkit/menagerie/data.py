"""What the menagerie's models are trained on: frames with captions that leave things open.

A share of the frames are dead-leaves and 1/f images with an empty caption; they carry the
statistics of photographs, so that a user's own video fits too. Memory: 50 kB a frame.
"""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tfkit.menagerie import casting, vocabulary, world

NATURAL = 0.2  # share of dead-leaves and 1/f images


def dead_leaves(rng: np.random.Generator, size: int = casting.SIZE) -> np.ndarray:
    """Occluding discs of power-law radii, softly textured, or 1/f noise: natural statistics."""
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size)))
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    falloff = np.hypot(fx, fy) + 1 / size
    noise = np.fft.irfft2(spectrum / falloff ** rng.uniform(0.9, 1.4), s=(size, size))
    noise = noise / noise.std() * rng.uniform(0.08, 0.2)
    mix = np.eye(3) * 0.4 + 0.6 / 3  # channels of photographs go together
    noise = np.einsum("cd,dhw->chw", mix, noise)
    image = np.full((3, size, size), 0.5) + noise * 1.5
    if rng.random() < 0.75:
        y, x = np.mgrid[:size, :size]
        for _ in range(int(rng.integers(20, 160))):
            radius = min(4 / (1 - rng.random() * 0.97), 70)
            cx, cy = rng.uniform(-10, size + 10, 2)
            inside = np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1)
            grey, tint = rng.uniform(0.05, 0.95), rng.normal(0, 0.1, 3)
            color = (grey + tint)[:, None, None] + noise * rng.uniform(0, 0.8)
            image = image * (1 - inside) + color * inside
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def dataset(work: Path, count: int, first_seed: int = 1_000_000) -> tuple[Tensor, list]:
    """``count`` frames uint8 (n, 3, 128, 128) and their full descriptions, made once and kept.

    Seeds below ``first_seed`` are never trained on: they are for evaluation.
    """
    natural = int(count * NATURAL)
    descriptions = [casting.random_description(first_seed + i) for i in range(count - natural)]
    path = work / f"frames-{count}-{first_seed}.npy"
    if not path.exists():
        frames = np.empty((count, 3, casting.SIZE, casting.SIZE), np.uint8)
        for i, description in enumerate(descriptions):
            scene = casting.stage(description, 1, first_seed + i, start=i % 24)
            frames[i] = (world.render(scene)["frames"][0] * 255).round().byte().numpy()
        for i in range(count - natural, count):
            frames[i] = dead_leaves(np.random.default_rng(first_seed + i))
        np.save(path.with_suffix(".part.npy"), frames)
        path.with_suffix(".part.npy").rename(path)
    return torch.from_numpy(np.load(path, mmap_mode="c")), descriptions


def pick(frames: Tensor, batch: int, device, upto: int | None = None) -> tuple[Tensor, Tensor]:
    """A random batch in [0, 1], half of it mirrored, and its indices."""
    index = torch.randint(upto or len(frames), (batch,))
    images = frames[index].to(device).float() / 255
    mirror = torch.rand(batch, 1, 1, 1, device=device) < 0.5
    return torch.where(mirror, images.flip(-1), images), index


def captions(index: Tensor, descriptions: list, rng: random.Random, keep=(0.45, 1.0)) -> list[str]:
    """What training captions say: a random share of the truth; nothing of natural images."""
    return [
        vocabulary.compose(vocabulary.forget(descriptions[i], rng, rng.uniform(*keep)))
        if i < len(descriptions)
        else ""
        for i in index.tolist()
    ]
