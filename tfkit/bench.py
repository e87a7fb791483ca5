"""How fast: ratios of two timings in one run, so that they mean the same on any machine.

`python -m tfkit bench` prints the table. Medians by torch.utils.benchmark; about 10 minutes.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from tfkit import full_size, growth, hooks
from tfkit.correspondence import nearest_neighbors
from tfkit.diffusion import LatentDiffusion
from tfkit.editing import edit
from tfkit.inversion import invert, reconstruct
from tfkit.loading import load
from tfkit.menagerie import film
from tfkit.pca import TokenPCA
from tfkit.preparation import Preparation
from tfkit.propagation import ExtendedAttention, PerFrame, TokenFlow
from tfkit.session import EditSession
from tfkit.swapping import rebuild
from tfkit.timing import Row, seconds
from tfkit.tokens import extract_features, extract_tokens, noised
from tfkit.trajectory import Trajectory


def features(model: LatentDiffusion) -> Iterator[Row]:
    """Reading tokens, and what is made of them, against the passes that give them."""
    clip = film("a striped orange fox on grass", frames=8)
    source = noised(model, clip, clip.caption)
    x, text = source.at(261), model.embed(clip.caption)
    passes = seconds(lambda: model.predict_noise(x, 261, text))
    yield Row("a UNet pass over 8 frames", passes)
    reading = seconds(lambda: extract_tokens(model, source, timestep=261, layers="*"))
    yield Row("tokens of all self-attention layers, 8 frames", reading, reading / passes, "a pass")

    query, keys = torch.randn(2, 4096, 320).unbind()
    product = seconds(lambda: query @ keys.T)
    yield Row("the product of 4096 x 320 and 320 x 4096", product)
    nearest = seconds(lambda: nearest_neighbors(query, keys))
    yield Row("nearest neighbours of 4096 x 4096 x 320", nearest, nearest / product, "the product")

    long = noised(model, clip.frames.repeat(5, 1, 1, 1))
    layers = [name for name in hooks.self_attention(model.unet) if ".1.attn" not in name]
    layers = layers[:: max(1, len(layers) // 5)][:5]
    found = extract_features(model, long, timesteps=(41, 241, 441, 641, 841), layers=layers)
    basis = seconds(lambda: [TokenPCA().fit(tokens).to_rgb(tokens) for tokens in found.values()])
    yield Row("PCA of 40 frames x 5 layers x 5 timesteps, as colours", basis, basis / (25 * passes),
              "its 25 passes over 8 frames")  # fmt: skip


def editing(model: LatentDiffusion, frames: int = 8, steps: int = 2) -> Iterator[Row]:
    """Inverting, rebuilding and editing, against plain passes over all frames."""
    clip = film("a striped orange fox on grass", frames=frames)
    quiet: dict[str, Any] = {"progress": False}
    source = invert(model, clip, clip.caption, steps=steps, **quiet)
    x, text = source.noise, model.embed(clip.caption)
    passes = steps * seconds(lambda: model.predict_noise(x, 501, text))
    of = f"{steps} plain passes over all frames"
    yield Row(f"{of} ({frames})", passes)
    jobs: dict[str, Callable[[], object]] = {
        "invert": lambda: invert(model, source.clean, clip.caption, steps=steps, **quiet),
        "reconstruct": lambda: reconstruct(model, source, **quiet),
        "rebuild from one frame": lambda: rebuild(model, source, **quiet),
    }
    ways = (PerFrame(), ExtendedAttention(), TokenFlow(interval=4))
    for way in ways:
        name = f"edit: Plug-and-Play, {type(way).__name__}"
        jobs[name] = partial(edit, model, source, "a fox at night", propagation=way, **quiet)
    for name, job in jobs.items():
        took = seconds(job)
        yield Row(name, took, took / passes, of)


def further(model: LatentDiffusion, frames: int = 16, steps: int = 4) -> Iterator[Row]:
    """The first edit of a video, and one that finds what the first kept of the source.

    In passes of as many frames as the plain ones have.
    """
    clip = film("a striped orange fox on grass", frames=frames)
    source = invert(model, clip, clip.caption, steps=steps, progress=False)
    x, text, way = source.noise, model.embed(clip.caption), TokenFlow(interval=8)
    passes = steps * seconds(lambda: model.predict_noise(x, 501, text))
    of = f"{steps} plain passes over all frames"
    yield Row(f"{of} ({frames})", passes)

    def session() -> EditSession:
        return EditSession(model, source, "a fox at night", propagation=way, batch=frames)

    def prepared() -> None:
        source.cache.clear()
        session().prepare()

    def first() -> None:
        source.cache.clear()
        session().step(steps)

    def inverted(**settings: Any) -> Trajectory:
        return invert(
            model, source.clean, clip.caption, steps=steps, predictor="extrapolated",
            progress=False, **settings,
        )  # fmt: skip

    jobs: dict[str, Callable[[], object]] = {
        "invert": inverted,
        "invert, and prepare for edits with TokenFlow on the way": lambda: inverted(
            prepare=Preparation(propagation=way)
        ),
        "prepare a video that is inverted": prepared,
        "its first edit, interval 8, not decoded": first,
        "a further edit, or the first of a prepared video": lambda: session().step(steps),
    }
    for name, job in jobs.items():
        took = seconds(job)
        yield Row(name, took, took / passes, of)


def whole(model: LatentDiffusion, frames: int = 8, steps: int = 50) -> Iterator[Row]:
    """From a video to its edit, prepared while it is inverted: plain passes over all frames."""
    clip = film("a striped orange fox on grass", frames=frames)
    clean, text, way = model.encode(clip), model.embed(clip.caption), TokenFlow(interval=8)

    def plain() -> float:
        return seconds(lambda: model.predict_noise(clean, 501, text))

    before, at = plain(), [time.perf_counter()]
    clean = model.encode(clip)
    at.append(time.perf_counter())
    source = invert(
        model, clean, clip.caption, steps=steps, predictor="extrapolated", progress=False,
        prepare=Preparation(propagation=way),
    )  # fmt: skip
    at.append(time.perf_counter())
    session = EditSession(model, source, "a fox at night", propagation=way).step(steps)
    at.append(time.perf_counter())
    session.frames()
    at.append(time.perf_counter())
    one = (before + plain()) / 2
    yield Row(f"a plain pass over all frames ({frames}), before and after", one)
    names = (
        "encode", f"invert in {steps} steps, and prepare", f"edit in {steps} steps, interval 8",
        "decode",
    )  # fmt: skip
    for name, (start, end) in zip(names, pairwise(at), strict=True):
        yield Row(name, end - start, (end - start) / one, "a plain pass")
    yield Row("from video to edited video", at[-1] - at[0], (at[-1] - at[0]) / one, "a plain pass")


def run() -> None:
    """Prints every comparison as it is made."""
    model = load()
    print(f"{model.device}, {model.dtype}, {torch.get_num_threads()} threads; medians")
    for part in (features, editing, further, whole, *growth.PARTS, full_size.on_gpu):
        print(f"\n{(part.__doc__ or '').splitlines()[0]}")
        for row in part(model):
            print(row, flush=True)
    if model.device.type != "cuda":
        print("none: there is no GPU here")
