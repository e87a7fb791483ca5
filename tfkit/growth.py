"""How time, memory and quality grow: with keyframes, resolution, frames and passes.

Ratios within one run, like the rest of the benchmark; memory is the peak of a process of its own.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean as mean

import torch
from torch.autograd.profiler import profile

from tfkit.ascent import Predictor
from tfkit.diffusion import LatentDiffusion
from tfkit.inversion import invert, reconstruct
from tfkit.keyframes import seams
from tfkit.live import Live
from tfkit.loading import load
from tfkit.memory import peak_memory
from tfkit.menagerie import film
from tfkit.metrics import psnr, warp_error
from tfkit.propagation import TokenFlow
from tfkit.session import EditSession
from tfkit.timing import Row, seconds
from tfkit.video import Clip, resize, size_of
from tfkit.video_file import open_video
from tfkit.writing import write_video

CAPTION, PROMPT = "a striped orange fox on grass", "a fox at night"


def keyframes(model: LatentDiffusion, frames: int = 16) -> Iterator[Row]:
    """An edit step and the number of keyframes, which attend to each other."""
    clip = film(CAPTION, frames=frames)
    for interval in (8, 4, 2):
        count = -(-frames // interval)
        yield from _step(model, clip, TokenFlow(interval), f"{count} keyframes of {frames} frames")


def resolution(model: LatentDiffusion, frames: int = 4) -> Iterator[Row]:
    """An edit step and the size of the frames."""
    clip = film(CAPTION, frames=frames)
    for side in (64, 128, 192):
        sized = Clip(resize(clip, side), clip.fps, clip.caption)
        yield from _step(model, sized, TokenFlow(4), f"{side} pixels, {frames} frames")


def _step(model: LatentDiffusion, clip: Clip, way: TokenFlow, name: str) -> Iterator[Row]:
    source = invert(model, clip, clip.caption, steps=1, progress=False)
    x, text = source.noise, model.embed(clip.caption)

    def plain() -> None:
        model.predict_noise(x, source.timesteps[0], text)

    def step() -> None:
        source.cache.clear()
        EditSession(model, source, PROMPT, propagation=way).step()

    than = "a plain pass over all frames"
    took = seconds(step)
    yield Row(f"an edit step, {name}", took, took / seconds(plain), than)
    most, base = _most(step), _most(plain)
    yield Row("    its tensors at the peak", most / 2**20, most / base, than, "MiB")


def _most(work: Callable[[], object]) -> int:
    """Bytes of the tensors that a call holds at the most."""
    with Live() as live:
        work()
    return live.peak


Plans = Sequence[tuple[int, int, Predictor]]  # steps, fixed-point refinements of each, predictor
PLANS: Plans = (
    (500, 0, "next"), (50, 0, "next"), (12, 3, "next"), (50, 0, "extrapolated"),
    (20, 0, "extrapolated"),
)  # fmt: skip


def passes(model: LatentDiffusion, frames: int = 1, plans: Plans = PLANS) -> Iterator[Row]:
    """What is left of a video after inversion and reconstruction, by passes of inverting."""
    clip = film(CAPTION, frames=frames)
    coded = psnr(model.decode(model.encode(clip), size=size_of(clip.frames)), clip)
    yield Row("PSNR of the VAE alone", coded, unit="dB")
    for steps, fixed_point, predictor in plans:
        source = invert(
            model, clip, CAPTION, steps=steps, fixed_point=fixed_point, predictor=predictor,
            progress=False,
        )  # fmt: skip
        back = psnr(reconstruct(model, source, progress=False), clip)
        cost = steps * (1 + fixed_point)
        name = f"{cost} passes: {steps} steps, {fixed_point} refinements each, {predictor}"
        yield Row(name, back, unit="dB")


def meeting(
    model: LatentDiffusion, frames: int = 28, steps: int = 3, window: int = 12
) -> Iterator[Row]:
    """A long edit, whose keyframes go in blocks: colours along the motion where blocks meet."""
    clip = film(CAPTION, frames=frames)
    source = invert(model, clip, clip.caption, steps=steps, progress=False)
    way = TokenFlow(2, keyframes="fixed", window=window)
    at = seams(way.draw(frames, 1, 0)[0], frames, window)
    for name, chosen in (
        (f"{window} keyframes", way),
        ("all keyframes", replace(way, window=None)),
    ):
        session = EditSession(model, source, PROMPT, propagation=chosen).run(progress=False)
        errors = warp_error(
            session.frames(), clip.truth("flow"), clip.truth("visible"), per_pair=True
        )
        there, elsewhere = errors[at].nanmean().item(), errors[~at].nanmean().item()
        yield Row(f"warp error where blocks meet, {name} seen", 1e3 * there, there / elsewhere,
                  "elsewhere", "e-3")  # fmt: skip


KINDS = {
    "convolutions": ("convolution", "conv"),
    "attention": ("attention", "softmax"),
    "nearest neighbours (products and maxima)": ("bmm", "max"),
    "linear layers": ("addmm", "mm", "linear"),
    "normalisation and activations": ("norm", "silu", "gelu"),
    "carrying tokens": ("gather", "index"),
}


def shares(model: LatentDiffusion, frames: int = 16) -> Iterator[Row]:
    """Where the time of a first edit step goes, on a CPU."""
    if model.device.type != "cpu":  # the CPU's time of each operation says nothing of a GPU's
        return
    clip = film(CAPTION, frames=frames)
    source = invert(model, clip, clip.caption, steps=1, progress=False)
    session = EditSession(model, source, PROMPT, propagation=TokenFlow(8))
    session.branch().step()  # once unmeasured: the first call of each kernel is slow
    source.cache.clear()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it writes to stderr, even unused
    with profile(use_kineto=False) as record:
        session.step()
    spent = dict.fromkeys(KINDS, 0.0)
    spent["the rest"] = 0.0
    for event in record.key_averages():
        name = event.key.lower()
        kind = next((k for k, words in KINDS.items() if any(w in name for w in words)), "the rest")
        spent[kind] += event.self_cpu_time_total / 1e6
    whole = sum(spent.values())
    for kind, took in sorted(spent.items(), key=lambda pair: -pair[1]):
        yield Row(kind, took, took / whole, "the step")


def lengths(
    model: LatentDiffusion, few: int = 10, some: int = 100, many: int = 1000, side: int = 80
) -> Iterator[Row]:
    """From file to file, frames of 80 pixels, one step each way: seconds a frame, and peak memory.

    On the CPU, which tells the memory of each process, on one thread each. Edits of ``some`` frames
    go one after the other beside the one of ``many``: a machine that is slow for a minute, as
    shared ones are, is so for both.
    """
    if sys.platform == "win32":  # which does not tell a process its peak
        return
    clip = film(CAPTION, frames=50)
    small = resize(clip, side)
    there_and_back = torch.cat([torch.arange(50), torch.arange(48, 0, -1)]).tolist()
    with tempfile.TemporaryDirectory() as folder:
        movies = {count: Path(folder) / f"{count}.mp4" for count in (few, some, many)}
        for count, movie in movies.items():
            order = islice(cycle(there_and_back), count)
            write_video(movie, (small[i : i + 1] for i in order), clip.fps)
        first = _alone(model.name, movies[few])
        yield Row(f"{few} frames, each", first[0] / few)
        yield Row(f"{few} frames, peak", first[1] / 2**20, unit="MiB")
        with ThreadPoolExecutor(1) as beside:
            long = beside.submit(_alone, model.name, movies[many])
            short = [_alone(model.name, movies[some])]
            while not long.done():
                short.append(_alone(model.name, movies[some]))
        took, peak = (mean(figures) for figures in zip(*short, strict=True))
        for count, (spent, most) in ((some, (took, peak)), (many, long.result())):
            each = spent / count
            yield Row(f"{count} frames, each", each, each / (took / some), f"a frame of {some}")
            yield Row(f"{count} frames, peak", most / 2**20, most / peak,
                      f"the memory of {some}", "MiB")  # fmt: skip


def _alone(name: str, movie: Path) -> tuple[float, int]:
    """:func:`_file_to_file` in a process of its own, whose peak is of nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_file_to_file, name, movie).result()


def _file_to_file(name: str, movie: Path) -> tuple[float, int]:
    """Seconds it takes to edit a movie on one thread, and the process's peak memory in bytes."""
    torch.set_num_threads(1)
    model, start = load(name, device="cpu"), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=movie.parent) as place:
        source = invert(
            model, open_video(movie), CAPTION, steps=1, folder=Path(place) / "source",
            progress=False,
        )  # fmt: skip
        session = EditSession(model, source, PROMPT, propagation=TokenFlow(8))
        session.run(folder=Path(place) / "edit", progress=False)
        write_video(Path(place) / "edited.mp4", session.stream(), 8)
    return time.perf_counter() - start, peak_memory()


PARTS = (keyframes, resolution, passes, shares, lengths, meeting)
