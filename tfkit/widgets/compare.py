"""Clips in sync: under a slider, as an amplified difference, or side by side, frame by frame.

The traits are the truth, of this object and of its views. The page holds every frame as a picture
(`films`: exact where the budget allows, no larger than it shows) and draws, subtracts and plays by
itself, so it goes on without a kernel.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from jaxtyping import Float
from torch import Tensor

from tfkit.codec import DEFAULT_FPS
from tfkit.lettering import lines_of
from tfkit.plots import Sheet
from tfkit.video import Clip, size_of
from tfkit.widgets import films, page
from tfkit.widgets.twin import Twin

VIEWS = ("wipe", "difference", "grid")
SMALL = 8  # points of the titles


class VideoCompare(Twin, anywidget.AnyWidget):
    """Two or more clips of equal length and size, played and stepped as one.

    clips: Clips, Edits or frames (f, 3, h, w), or one mapping of names to them; the names are the
    captions. fps: None takes the first clip's that has one. budget: megabytes (10^6 bytes) that the
    view may take; the pictures are lossless where that fits, and shrunk where they are larger than
    a page shows; `repr` says so, and beside a difference the page does.

    Traits: ``frame``; ``view``, "wipe", "difference" or "grid"; ``left`` and ``right``, names of
    the two compared; ``wipe``, the left one's share of the width; ``gain`` of the difference;
    ``playing``, ``loop``, ``fps``. Raises ValueError for clips that do not fit together,
    traitlets.TraitError for a trait's value that is not there.
    """

    _esm = page.source("page.js", "film.js", "compare.js")
    _css = page.source("compare.css")
    # no echo: of a frame that has already passed, it would set the page back
    frame = traitlets.Int(0, min=0).tag(sync=True, echo_update=False)
    wipe = traitlets.Float(0.5, min=0, max=1).tag(sync=True, echo_update=False)
    view = traitlets.Enum(VIEWS, "wipe").tag(sync=True)
    left = traitlets.Unicode().tag(sync=True)
    right = traitlets.Unicode().tag(sync=True)
    gain = traitlets.Float(4, min=1, max=64).tag(sync=True, echo_update=False)
    playing = traitlets.Bool(False).tag(sync=True)
    loop = traitlets.Bool(True).tag(sync=True)
    fps = traitlets.Float(DEFAULT_FPS, min=0.1, max=240).tag(sync=True)
    _data = traitlets.Dict().tag(sync=True)

    def __init__(self, *clips: Any, fps: float | int | None = None, budget: float | int = 8):
        given = _named(clips)
        if len(given) < 2:
            raise ValueError(f"{len(given)} clips; expected two or more, or a mapping of names")
        self._frames = films.alike(given)
        if fps is None:
            fps = next((c.fps for c in given.values() if isinstance(c, Clip)), DEFAULT_FPS)
        packed = films.pack(list(self._frames.values()), budget * 1e6)
        self._whole = size_of(next(iter(self._frames.values())))
        data = {
            "names": list(given), "size": packed.size, "whole": self._whole, "films": packed.files,
        }  # fmt: skip
        left, right = list(given)[:2]
        self._packed = packed
        super().__init__(
            _data=data | {"error": packed.error}, left=left, right=right, fps=float(fps)
        )

    def __len__(self) -> int:
        return len(self._frames[self.left])

    @property
    def nbytes(self) -> int:
        """What the pictures take, in bytes."""
        return self._packed.nbytes

    def difference(self) -> Float[Tensor, "f 3 h w"]:
        """Absolute difference of the two compared, of the frames as they were given."""
        return (self._frames[self.left] - self._frames[self.right]).abs()

    def save_html(self, path: str | Path) -> Path:
        """Write the view as it stands as one .html, which works offline, from a file."""
        names = ("frame", "wipe", "view", "left", "right", "gain", "loop", "fps", "_data")
        state = {name: getattr(self, name) for name in names} | {"playing": False}
        title = " | ".join(self._frames)
        return page.write(path, state, module=self._esm, style=self._css, title=title)

    def figure(self) -> Sheet:
        """This frame of every clip, and the difference of the two compared."""
        i, (h, w) = self.frame, self._whole
        amplified = (self.difference()[i] * self.gain).clamp(0, 1)
        pictures = [*(clip[i] for clip in self._frames.values()), amplified]
        per = min(4, len(pictures))
        wide, rows = 9 / per, -(-len(pictures) // per)
        titles = [lines_of(name, 0.92 * wide, SMALL) for name in self._frames]
        two = lines_of(f"{self.left} − {self.right}", 0.92 * wide, SMALL)
        titles.append([f"difference × {self.gain:g}", *two])
        high = wide * h / w + 0.45 + 0.14 * max(len(lines) - 2 for lines in titles)
        figure = Sheet((9, rows * high), dpi=100, layout="constrained")
        for k, (lines, picture) in enumerate(zip(titles, pictures, strict=True)):
            axes = figure.add_subplot(rows, per, k + 1)
            axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set_title("\n".join(lines), fontsize=SMALL, parse_math=False)
            axes.set_anchor("S")  # what is left over is the titles'
            axes.set_axis_off()
        return figure

    @traitlets.validate("frame")
    def _one_frame(self, proposal: traitlets.Bunch) -> int:
        if proposal["value"] not in range(len(next(iter(self._frames.values())))):
            raise traitlets.TraitError(
                f"frame={proposal['value']!r}: expected 0 to {len(self) - 1}"
            )
        return proposal["value"]

    @traitlets.validate("left", "right")
    def _one_clip(self, proposal: traitlets.Bunch) -> str:
        if proposal["value"] not in self._frames:
            name = proposal["trait"].name
            raise traitlets.TraitError(
                f"{name}={proposal['value']!r}: expected one of {list(self._frames)}"
            )
        return proposal["value"]

    def __repr__(self) -> str:
        (h, w), (high, wide), error = self._packed.size, self._whole, self._packed.error
        shrunk = "" if (h, w) == (high, wide) else f" of {high}x{wide}"
        exact = f"lossy, {error:.1f} of 255 RMS" if error else "lossless"
        return (
            f"VideoCompare({', '.join(map(repr, self._frames))}: {len(self)} frames, shown at "
            f"{h}x{w}{shrunk}, {exact}, {self.nbytes / 1e6:.1f} MB)"
        )


def _named(clips: tuple) -> dict[str, object]:
    """Clips by name: the mapping's, or their own caption or prompt, or their number."""
    if len(clips) == 1 and isinstance(clips[0], Mapping):
        return {str(name): clip for name, clip in clips[0].items()}
    named = {}
    for i, clip in enumerate(clips, 1):
        name = getattr(clip, "caption", "") or getattr(clip, "prompt", "") or f"clip {i}"
        named[name if name not in named else f"{name} ({i})"] = clip
    return named
