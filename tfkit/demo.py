"""The demonstration behind `make demo`: one clip, edited frame by frame and with TokenFlow."""

import os
import sys
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tfkit import metrics, plots
from tfkit.clip import load_clip
from tfkit.editing import edit
from tfkit.inversion import invert
from tfkit.loading import load
from tfkit.memory import peak_memory
from tfkit.menagerie import film
from tfkit.methods import PlugAndPlay
from tfkit.propagation import PerFrame, TokenFlow
from tfkit.video import Clip
from tfkit.writing import check_output, write_video

T = TypeVar("T")

CAPTION, PROMPT, SEED = "a plain orange fox on grass", "a fox at night", 2
FRAMES, STEPS, GUIDANCE = 16, 20, 4.0
ROW = 84  # of the x-t slices: through the fox's body
METHOD = PlugAndPlay(attention=0.8, convolution=1.0)  # the weights are young: hold on to the source


@dataclass(frozen=True, eq=False)
class Quickstart:
    """What the demonstration made: the clip, the videos by name, and seconds by task."""

    clip: Clip
    videos: dict[str, Tensor]
    seconds: dict[str, float]

    def table(self) -> str:
        """Measured along the clip's exact flow: a plain-text table, one row a video."""
        clip, judge = self.clip, load_clip()
        motion = clip.truth("flow"), clip.truth("visible")
        rows = [("", "warp error x1e-3", "colour spread x1e-2", "CLIP: prompt", "seconds")]
        for name, video in self.videos.items():
            rows.append(
                (
                    name,
                    f"{1e3 * metrics.warp_error(video, *motion):.2f}",
                    f"{1e2 * metrics.color_spread(video, clip.truth('mask')):.2f}",
                    f"{judge.text_alignment(video, PROMPT):.3f}",
                    f"{self.seconds[name]:.1f}" if name in self.seconds else "",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = []
        for name, *cells in rows:
            right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *right]))
        return "\n".join(lines)


def quickstart(*, frames: int = FRAMES, steps: int = STEPS, progress: bool = True) -> Quickstart:
    """Films a clip of the menagerie, inverts it and edits it per frame and with TokenFlow."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[..., T], *args: Any, **settings: Any) -> T:
        start = time.perf_counter()
        result = work(model, *args, progress=progress, **settings)
        seconds[name] = time.perf_counter() - start
        return result

    model, clip = load(), film(CAPTION, frames=frames, seed=SEED)
    source = timed("source", invert, clip.frames, CAPTION, steps=steps)
    videos = {"source": clip.frames}
    for name, propagation in (("per frame", PerFrame()), ("TokenFlow", TokenFlow(interval=4))):
        videos[name] = timed(
            name, edit, source, PROMPT, guidance=GUIDANCE, method=METHOD, propagation=propagation
        ).frames
    return Quickstart(clip, videos, seconds)


def memory() -> str:
    """The most memory this process has held, in words; nothing where the system does not say."""
    try:
        return f"; peak memory {peak_memory() / 2**30:.2f} GiB"
    except ImportError:  # Windows
        return ""


def run(folder: Path) -> None:
    """Runs the demonstration, writes quickstart.mp4, .gif and .png, prints the table."""
    check_output(folder / "quickstart.mp4")
    made = quickstart()
    scanned = plots.with_slices(made.videos, row=ROW)
    paths = [
        write_video(folder / name, plots.side_by_side(scanned, zoom=zoom), made.clip.fps)
        for name, zoom in (("quickstart.mp4", 2), ("quickstart.gif", 1))
    ]
    paths.append(plots.save(plots.contact_sheet(made.videos), folder / "quickstart.png"))
    print(f'\n{FRAMES} frames of "{CAPTION}", edited to "{PROMPT}" in {STEPS} steps')
    print(made.table())
    print(f"seconds of the source: its inversion{memory()}")
    print(f"wrote {', '.join(map(str, paths))}")
    _show(paths[-1])


def _show(picture: Path) -> None:
    """Opens the picture where somebody is looking: at a terminal with a screen behind it."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    screen = sys.platform == "darwin" or any(os.environ.get(name) for name in screens)
    if sys.stdout.isatty() and screen:
        webbrowser.open(picture.resolve().as_uri())
