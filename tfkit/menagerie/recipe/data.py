"""What the menagerie's models are trained on: frames with captions that leave things open.

A share of the frames are dead-leaves and 1/f images with an empty caption; they carry the
statistics of photographs, so that a user's own video fits too. Memory: 50 kB a frame.
"""

import itertools
import random
import zlib
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from tfkit.atomic import replacing
from tfkit.conditions import canny
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


def reserved(description: vocabulary.Description) -> bool:
    """Whether a scene is for evaluation: it has one of a tenth of all looks on one ground."""
    ground = description.ground
    texts = (f"{x.coat} {x.color} {x.species} {ground}" for x in description.looks)
    return any(zlib.crc32(text.encode()) % 10 == 0 for text in texts)


def scenes(
    count: int, first_seed: int, *, evaluation: bool
) -> list[tuple[int, vocabulary.Description]]:
    """``count`` seeds and what they show: all of it reserved for evaluation, or none of it."""
    cast = ((seed, casting.random_description(seed)) for seed in itertools.count(first_seed))
    return list(itertools.islice((s for s in cast if reserved(s[1]) == evaluation), count))


def dataset(work: Path, count: int, *, evaluation: bool = False) -> tuple[Tensor, list]:
    """``count`` frames uint8 (n, 3, 128, 128) and their full descriptions, made once and kept.

    Neither the seeds nor the scenes of what is for ``evaluation`` are ever trained on.
    """
    first_seed, natural = (500_000 if evaluation else 1_000_000), int(count * NATURAL)
    chosen = scenes(count - natural, first_seed, evaluation=evaluation)
    path = work / f"{'held-out' if evaluation else 'frames'}-{count}.npy"
    if not path.exists():
        jobs = [delayed(_still)(description, seed) for seed, description in chosen]
        jobs += [delayed(_natural)(first_seed + i) for i in range(natural)]
        shape = (count, 3, casting.SIZE, casting.SIZE)
        drawn = Parallel(n_jobs=-1, batch_size=64, return_as="generator")(jobs)
        with replacing(path) as part:
            frames = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
            for i, frame in enumerate(drawn):
                frames[i] = frame
            frames.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c")), [d for _, d in chosen]


def part_labels(work: Path, count: int) -> Tensor:
    """Which part each pixel of the scenes among :func:`dataset`'s frames shows: uint8 (n, 64, 64).

    Made once and kept, for training alone.
    """
    chosen = scenes(count - int(count * NATURAL), 1_000_000, evaluation=False)
    path = work / f"parts-{count}.npy"
    if not path.exists():
        jobs = [delayed(_parts)(description, seed) for seed, description in chosen]
        labels = np.stack(Parallel(n_jobs=-1, batch_size=64)(jobs))
        with replacing(path) as part:
            np.save(part, labels)
    return torch.from_numpy(np.load(path))


def edges(work: Path, count: int) -> Tensor:
    """Canny edges of :func:`dataset`'s frames: uint8 (n, 1, 128, 128), 1 on an edge.

    Made once and kept.
    """
    frames, _ = dataset(work, count)
    path = work / f"edges-{count}.npy"
    if not path.exists():
        found = Parallel(n_jobs=-1)(delayed(_edges)(some) for some in frames.split(512))
        with replacing(path) as part:
            np.save(part, np.concatenate(found))
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def held_out(args) -> tuple[Tensor, list]:
    """Frames and descriptions that no stage trains on."""
    return dataset(args.work, min(640, args.images), evaluation=True)


def _still(description: vocabulary.Description, seed: int) -> np.ndarray:
    """One frame of the scene, somewhere in its first 24."""
    return (_film(description, seed)["frames"][0] * 255).round().byte().numpy()


def _parts(description: vocabulary.Description, seed: int) -> np.ndarray:
    """The parts that same frame shows, at every second pixel."""
    return _film(description, seed)["parts"][0, ::2, ::2].byte().numpy()


def _edges(frames: Tensor) -> np.ndarray:
    return canny(frames.float() / 255)[:, :1].byte().numpy()


def _film(description: vocabulary.Description, seed: int) -> dict[str, Tensor]:
    return world.render(casting.stage(description, 1, seed, start=seed % 24))


def _natural(seed: int) -> np.ndarray:
    return dead_leaves(np.random.default_rng(seed))


def pick(frames: Tensor, batch: int, device, upto: int | None = None) -> tuple[Tensor, Tensor]:
    """A random batch in [0, 1], half of it mirrored, and its indices."""
    index = torch.randint(upto or len(frames), (batch,))
    return mirror(frames[index].to(device).float() / 255), index


def mirror(images: Tensor) -> Tensor:
    """The same pictures (n, c, h, w), half of them mirrored."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flipped, images.flip(-1), images)


def captions(index: Tensor, descriptions: list, rng: random.Random, keep=(0.45, 1.0)) -> list[str]:
    """What training captions say: a random share of the truth; nothing of natural images."""
    return [
        vocabulary.reword(
            vocabulary.compose(vocabulary.forget(descriptions[i], rng, rng.uniform(*keep))), rng
        )
        if i < len(descriptions)
        else ""
        for i in index.tolist()
    ]
