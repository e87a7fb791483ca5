"""The figures of the model card, measured through tfkit's public face.

Scenes are those no stage trains on. Each function takes the bench and returns {figure: value};
``MEASURES`` has them all. About twenty minutes on two cores.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean as mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import tfkit
from tfkit import hooks, metrics, tracks
from tfkit.clip import CLIP
from tfkit.diffusion import LatentDiffusion
from tfkit.menagerie import casting, vocabulary, world
from tfkit.menagerie.recipe.clip import choices
from tfkit.menagerie.recipe.data import dead_leaves, scenes
from tfkit.menagerie.vocabulary import attribute
from tfkit.methods import Method
from tfkit.protocols import Propagation
from tfkit.sampling import generate, with_noise
from tfkit.tokens import Kind
from tfkit.video import Clip

FIRST_SEED = 900_000  # far from those of training and of its reports
KINDS = tuple(vocabulary.ATTRIBUTES)


@dataclass(frozen=True, eq=False)
class Bench:
    """What is measured: a model and its judge, on ``count`` held-out scenes of one animal."""

    model: LatentDiffusion
    judge: CLIP
    count: int
    video: Path | None = None  # a real one

    @cached_property
    def scenes(self) -> list[tuple[int, vocabulary.Description]]:
        found = scenes(8 * self.count, FIRST_SEED, evaluation=True)
        return [(seed, d) for seed, d in found if len(d.looks) == 1][: self.count]

    def clip(self, i: int, frames: int) -> Clip:
        seed, description = self.scenes[i]
        made = world.render(casting.stage(description, frames, seed))
        return Clip(fps=world.FPS, caption=vocabulary.compose(description), **made)

    def real(self) -> Tensor | None:
        if self.video is None:
            return None
        return tfkit.read_video(self.video, frames=8, size=self.model.sample_size).frames

    def reads(self, frames: Tensor, description: vocabulary.Description, kind: str) -> str:
        """The word of its attribute that the judge finds best of all for the frames."""
        scores = [self.judge.text_alignment(frames, text) for text in choices(description, kind)]
        return vocabulary.ATTRIBUTES[kind][int(np.argmax(scores))]

    def right(self, frames: Tensor, description: vocabulary.Description) -> dict[str, bool]:
        return {k: self.reads(frames, description, k) == attribute(description, k) for k in KINDS}


def judge(bench: Bench) -> dict[str, float]:
    """Filmed frames whose attributes the judge reads right, among all captions of each."""
    found = [bench.right(bench.clip(i, 1).frames, d) for i, (_, d) in enumerate(bench.scenes)]
    return {f"CLIP reads {kind} of filmed frames": mean(f[kind] for f in found) for kind in KINDS}


def round_trip(bench: Bench) -> dict[str, float]:
    """PSNR of encoding and decoding, in dB."""
    model = bench.model
    frames = torch.cat([bench.clip(i, 1).frames for i in range(bench.count)])
    leaves = [dead_leaves(np.random.default_rng(FIRST_SEED + i)) for i in range(bench.count)]
    natural = torch.from_numpy(np.stack(leaves)).float() / 255
    figures = {}
    for name, x in (("menagerie", frames), ("dead leaves", natural), ("real video", bench.real())):
        if x is not None:
            figures[f"VAE round trip, {name}, dB"] = metrics.psnr(model.decode(model.encode(x)), x)
    return figures


def inversion(bench: Bench, steps: int = 50) -> dict[str, float]:
    """PSNR of DDIM inversion and reconstruction, in dB."""
    psnr = []
    for i in range(min(4, bench.count)):
        clip = bench.clip(i, 4)
        source = tfkit.invert(bench.model, clip, clip.caption, steps=steps, progress=False)
        psnr.append(metrics.psnr(tfkit.reconstruct(bench.model, source, progress=False), clip))
    figures = {f"inversion, {steps} steps, source prompt, dB": mean(psnr)}
    real = bench.real()
    if real is not None:
        source = tfkit.invert(bench.model, real, "", steps=steps, progress=False)
        again = tfkit.reconstruct(bench.model, source, progress=False)
        figures[f"inversion, {steps} steps, real video, no prompt, dB"] = metrics.psnr(again, real)
    return figures


def samples(bench: Bench) -> dict[str, float]:
    """Samples (25 steps, guidance 4) whose attributes the judge reads as the prompt has them."""
    texts = [vocabulary.compose(d) for _, d in bench.scenes]
    images = generate(bench.model, texts, steps=25, guidance=4.0, progress=False)
    pairs = zip(images.split(1), bench.scenes, strict=True)
    found = [bench.right(image, description) for image, (_, description) in pairs]
    return {f"samples show {kind}": mean(f[kind] for f in found) for kind in KINDS}


def edits(bench: Bench, steps: int = 25) -> dict[str, float]:
    """Plug-and-Play edits of one attribute: it changes as asked, and the others stay."""
    changed: dict[str, list[bool]] = {k: [] for k in ("color", "coat", "ground")}
    kept, model = [], bench.model
    for i, (seed, description) in enumerate(bench.scenes[: max(1, bench.count // 3)]):
        clip = bench.clip(i, 1)
        source = tfkit.invert(model, clip, clip.caption, steps=steps, progress=False)
        for kind, hits in changed.items():
            words = [w for w in vocabulary.ATTRIBUTES[kind] if w != attribute(description, kind)]
            target = vocabulary.change(description, **{kind: words[seed % len(words)]})
            made = tfkit.edit(
                model, source, vocabulary.compose(target),
                propagation=tfkit.PerFrame(), progress=False,
            )  # fmt: skip
            right = bench.right(made.frames, target)
            hits.append(right.pop(kind))
            kept.append(mean(right.values()))
    figures = {f"edit changes {kind}": mean(hits) for kind, hits in changed.items()}
    return figures | {"edit keeps the others": mean(kept)}


def correspondence(
    bench: Bench, ahead: int = 4, timesteps: tuple[int, ...] = (261, 501)
) -> dict[str, float]:
    """PCK@0.05 of nearest neighbours four frames on, at points of the animal four pixels apart.

    By self-attention's outputs, the paper's choice, and by its inputs, that of the authors' code.
    """
    found: dict[str, list[float]] = {}
    kinds: tuple[Kind, ...] = ("output", "input")
    layers = [f"up_blocks.{b}.attentions.{a}.*" for b in (1, 2, 3) for a in (0, 1, 2)]
    for i in range(min(8, bench.count)):
        clip = bench.clip(i, ahead + 1)
        side = clip.frames.shape[-1]
        points = tracks.token_centers((side // 4, side // 4), (side, side))
        places, seen = tracks.follow_flow(points, clip.truth("flow"), clip.truth("visible"))
        x, y = points.long().T
        good = seen[-1] & clip.truth("mask")[0, y, x]
        if good.sum() < 10:
            continue
        source = tfkit.invert(bench.model, clip, clip.caption, steps=50, progress=False)
        features: dict[str, Tensor] = {}
        for kind, t in product(kinds, timesteps):
            told = tfkit.extract_tokens(bench.model, source, timestep=t, layers=layers, kind=kind)
            features |= {f"{name.split('.transf')[0]}, {kind}, {t}": x for name, x in told.items()}
        for width in (4, 12, 20):
            patches = F.unfold(clip.frames, width, padding=(width - 4) // 2, stride=4)
            features[f"RGB patches of {width}"] = patches.transpose(1, 2)
        for name, values in features.items():
            ends, _ = tracks.track_points(values[[0, -1]], points[good], (side, side))
            score = metrics.pck(ends[-1], places[-1, good], 0.05 * side)
            found.setdefault(name, []).append(score)
    scores = {f"PCK@0.05, {name}": mean(rates) for name, rates in found.items()}
    groups = (*kinds, "RGB")
    best = [max((n for n in scores if group in n), key=scores.__getitem__) for group in groups]
    return {name: scores[name] for name in best}


def phenomenon(bench: Bench, frames: int = 8, steps: int = 20) -> dict[str, float]:
    """Edits that leave the colour open: flicker with TokenFlow and jointly over that per frame."""
    ways: dict[str, Propagation] = {
        "per frame": tfkit.PerFrame(),
        "jointly": tfkit.ExtendedAttention(),
        "TokenFlow": tfkit.TokenFlow(interval=4),
    }
    methods: dict[str, Method] = {"PnP": tfkit.PlugAndPlay(), "SDEdit": tfkit.SDEdit(0.7)}
    rows: dict[str, list[float]] = {}
    for i, (_, description) in enumerate(bench.scenes[: max(1, bench.count // 8)]):
        clip = bench.clip(i, frames)
        motion = clip.truth("flow"), clip.truth("visible")
        open_look = vocabulary.change(description, color=None, accessory=None)
        prompt = vocabulary.compose(vocabulary.change(open_look, coat="striped", ground="snow"))
        source = tfkit.invert(bench.model, clip, clip.caption, steps=steps, progress=False)
        for method, how in methods.items():
            for way, propagation in ways.items():
                made = tfkit.edit(
                    bench.model, source, prompt, method=how, propagation=propagation, progress=False
                )
                error = metrics.warp_error(made.frames, *motion)
                spread = metrics.color_spread(made.frames, clip.truth("mask"))
                rows.setdefault(f"{method}, {way}, warp error x1e-3", []).append(1e3 * error)
                rows.setdefault(f"{method}, {way}, colour spread x1e-2", []).append(1e2 * spread)
    figures = {name: mean(values) for name, values in rows.items()}
    for method in methods:
        for figure in ("warp error x1e-3", "colour spread x1e-2"):
            alone = figures[f"{method}, per frame, {figure}"]
            for way in ("jointly", "TokenFlow"):
                share = figures[f"{method}, {way}, {figure}"] / alone
                figures[f"{method}, {way} over per frame, {figure.rpartition(' ')[0]}"] = share
    return figures


def self_attention(bench: Bench) -> dict[str, float]:
    """Noise-prediction error with attn1 silenced over the error as it is; the least of ten."""
    model, ratios = bench.model, []

    def silent(attn, hidden_states, *args, **kwargs):
        return torch.zeros_like(hidden_states)

    clips = [bench.clip(i, 1) for i in range(min(16, bench.count))]
    x = model.encode(torch.cat([clip.frames for clip in clips]))
    text = torch.cat([model.embed(clip.caption) for clip in clips])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    for t in range(50, 1000, 100):
        alpha = model.alpha(t).to(x)
        noisy = with_noise(x, noise, alpha)
        whole = (model.predict_noise(noisy, t, text) - noise).square().mean()
        with hooks.processor(model.unet, silent):
            without = (model.predict_noise(noisy, t, text) - noise).square().mean()
        ratios.append((without / whole).item())
    return {"attn1 silenced over as it is, least": min(ratios), "and most": max(ratios)}


def speed(bench: Bench) -> dict[str, float]:
    """Seconds to invert 16 frames and to edit them with TokenFlow, 20 steps each."""
    clip, start = bench.clip(0, 16), time.perf_counter()
    source = tfkit.invert(bench.model, clip, clip.caption, steps=20, progress=False)
    tfkit.edit(bench.model, source, "a dog on snow", progress=False)
    return {"invert and edit 16 frames, 20 steps, s": time.perf_counter() - start}


MEASURES: tuple[Callable[[Bench], dict[str, float]], ...] = (
    judge, round_trip, inversion, samples, edits, correspondence, phenomenon, self_attention, speed
)  # fmt: skip
