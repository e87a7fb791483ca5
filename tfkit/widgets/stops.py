"""Where sessions stand and have stood, in what a page needs to show it: pictures, weights, fields.

Memory: a session for each stop, which shares its latents and views with the branch; small pictures
of those that were looked at.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.colors import to_rgb
from PIL import Image
from torch import Tensor

from tfkit import overlays
from tfkit.plots import Sheet, contact_sheet
from tfkit.propagation import Carrying
from tfkit.session import EditSession
from tfkit.tracks import Size, token_centers
from tfkit.views import Views
from tfkit.widgets import compact

Arrows = tuple[np.ndarray, np.ndarray]  # a field's index (f, k, n) uint16 and similarity, uint8


@dataclass(eq=False)
class Stop:
    """A session that stands where somebody was, and what was made to be seen of it."""

    number: int
    session: EditSession
    _pictures: list[bytes] = field(default_factory=list)

    @property
    def row(self) -> list[int] | None:
        """The keyframes of the step that led here, at the beginning of the first one."""
        return row_of(self.session, self.session.position)

    def pictures(self) -> list[bytes]:
        """The clean frames that the step headed for, at the beginning the source's: WebP.

        Where that step is forgotten, the latents as they are.
        """
        if not self._pictures:
            self._pictures = compact.pictures(self._seen())
        return self._pictures

    def _seen(self) -> Float[Tensor, "f 3 H W"]:
        session, source = self.session.branch(), self.session.source
        session.views = Views(0)  # the pictures are kept here, and smaller
        if not session.position:
            return session.model.decode(source.clean, size=source.size, batch=session.batch)
        return session.predicted() if session.least < session.position else session.frames()

    def frames(self) -> Float[Tensor, "f 3 h w"]:
        """The pictures, unpacked."""
        images = [Image.open(io.BytesIO(file)).convert("RGB") for file in self.pictures()]
        return torch.from_numpy(np.stack([*map(np.asarray, images)])).permute(0, 3, 1, 2) / 255

    def detail(self) -> dict:
        """Keyframes and weights; None where the propagation has none, or carries no tokens."""
        row = self.row
        carries = row is not None and isinstance(self.session.shown.propagation, Carrying)
        return {"keyframes": row, "weights": self.session.weights().tolist() if carries else None}

    def field(self, layer: str) -> Arrows:
        """The field of the step. Raises ValueError where there is none.

        Similarity s is the byte (s + 1) * 127.5.
        """
        found = self.session.fields(layer)
        close = ((found.similarity.float() + 1) * 127.5).round().clamp(0, 255)
        return found.index.cpu().numpy().astype(np.uint16), close.byte().cpu().numpy()

    def matches(self, layer: str, grid: Size, size: Size, probe: list) -> Float[Tensor, "k 3"]:
        """Where a probe [frame, x, y] is in each keyframe: x, y in pixels, and the similarity."""
        (frame, x, y), (rows, columns), (h, w) = probe, grid, size
        row, column = min(int((y + 0.5) * rows / h), rows - 1), int((x + 0.5) * columns / w)
        place = row * columns + min(column, columns - 1)
        index, similarity = self.field(layer)
        at = token_centers(grid, size)[index[frame, :, place].astype(int)]
        close = torch.from_numpy(similarity[frame, :, place] / 127.5 - 1)
        return torch.cat([at, close.float()[:, None]], 1)


def _carries_alike(one: EditSession, other: EditSession) -> bool:
    """Whether fields and weights of two sessions at the same latents are the same."""
    a, b = one.shown, other.shown
    return (a.propagation, a.method) == (b.propagation, b.method)


class Stops:
    """Every stop by number: one for all branches and moments that it is the same for."""

    def __init__(self) -> None:
        self._numbers = count()
        self._stops: dict[int, Stop] = {}

    def get(self, number: int) -> Stop | None:
        """The stop of a number; None where it is forgotten, or never was."""
        return self._stops.get(number)

    def of(self, session: EditSession, position: int | None = None) -> Stop:
        """Where a session is, or was after so many steps."""
        there = session.branch().goto(session.position if position is None else position).cut()
        row = row_of(there, there.position)
        for stop in self._stops.values():
            same = stop.session.latents is there.latents and stop.row == row
            if same and _carries_alike(stop.session, there):
                return stop
        stop = Stop(next(self._numbers), there)
        return self._stops.setdefault(stop.number, stop)

    def path(self, session: EditSession) -> list[int | None]:
        """The numbers of all stops of a session, those beyond its position too; None: forgotten."""
        kept = range(session.least, session.known + 1)
        return [None] * session.least + [self.of(session, i).number for i in kept]

    def forget_all_but(self, numbers: set[int | None]) -> None:
        """Lets go of the stops that no branch has on its path any more."""
        self._stops = {n: stop for n, stop in self._stops.items() if n in numbers}

    def figure(self, sessions: Mapping[str, EditSession]) -> Sheet:
        """Where sessions are, a row each, keyframes framed."""
        rows = {}
        for name, session in sessions.items():
            stop = self.of(session)
            frames = stop.frames()
            wide = max(2, frames.shape[-1] // 40)
            for i in stop.row or ():
                inner = frames[i, :, wide:-wide, wide:-wide].clone()
                frames[i] = torch.tensor(to_rgb(overlays.MARK))[:, None, None]
                frames[i, :, wide:-wide, wide:-wide] = inner
            label = f"{name}: step {session.position} of {len(session.timesteps)}"
            rows[f"{label}, {session.plan.prompt}"] = frames
        return contact_sheet(rows, columns=12)


def ahead(session: EditSession) -> list[Tensor | None]:
    """The keyframes of every step that the session takes or has taken."""
    return session.keyframes[len(session.source.timesteps) - len(session.timesteps) :]


def row_of(session: EditSession, position: int) -> list[int] | None:
    """The keyframes of the step to ``position``, or of the first; None where there are none."""
    rows = ahead(session)
    row = rows[max(position - 1, 0)] if rows else None
    return None if row is None else row.tolist()


def describe(session: EditSession, path: list[int | None]) -> dict:
    """A session in what JSON knows."""
    rows = [None if row is None else row.tolist() for row in ahead(session)]
    return {
        "path": path, "position": session.position, "timesteps": list(session.timesteps),
        "rows": rows, "prompt": session.plan.prompt, "guidance": session.plan.guidance,
    }  # fmt: skip
