"""Hover a point of one frame and see, in all frames at once, what is similar to it.

The traits are the truth, of this object and of its views: setting ``probe``, ``layer``,
``timestep``, ``pins``, ``contrast`` or ``opacity`` moves the page, and the mouse sets them. The
page computes by itself (``tokens.js``) on tokens made small (`compact`), so it follows the mouse
and outlives the kernel; the methods here compute the same from the same bytes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from tfkit import correspondence, overlays
from tfkit.plots import Sheet
from tfkit.tracks import Size, grid_of, read_at, token_centers, track_points
from tfkit.video import Clip, as_frames, size_of
from tfkit.widgets import compact, page, traits
from tfkit.widgets.twin import Twin

SHARE = 0.25  # of the budget, at most, is the truth's


class CorrespondenceExplorer(Twin, anywidget.AnyWidget):
    """A clip's frames, and on each the similarity of its tokens to the one under the mouse.

    clip: a Clip or frames (f, 3, h, w). features: {(timestep, layer): (f, n, d)}, every timestep
    of every layer, as `tokens.extract_features` returns. budget: megabytes (10^6 bytes) that the
    view may take; tokens keep as many dimensions as fit, float16. truth: show where points truly
    are (None: where the clip carries flow and visibility). probe: [frame, x, y], in pixels, 0 at
    the centre of the first one; pins: points like it, whose tracks are drawn. contrast: the share
    of places that are darkest; opacity: of the heat maps.
    Raises ValueError where these do not fit together, traitlets.TraitError for a trait's value
    that is not there.
    """

    _esm = page.source("tokens.js", "page.js", "view.js", "explorer.js")
    _css = page.source("view.css", "explorer.css")
    probe: "traitlets.List[Any]" = traitlets.List().tag(sync=True, echo_update=False)
    layer = traitlets.Unicode().tag(sync=True)
    timestep = traitlets.Int().tag(sync=True)
    pins: "traitlets.List[Any]" = traitlets.List().tag(sync=True, echo_update=False)
    contrast = traitlets.Float(0.5, min=0, max=0.98).tag(sync=True)
    opacity = traitlets.Float(0.7, min=0, max=1).tag(sync=True)
    _data = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        clip: Clip | Tensor,
        features: Mapping[tuple[int, str], Tensor],
        *,
        budget: float | int = 8,
        truth: bool | None = None,
    ):
        self._frames = as_frames(clip).detach().float().cpu()
        self.size = size_of(self._frames)
        known = isinstance(clip, Clip) and clip.flow is not None and clip.visible is not None
        if truth and not known:
            raise ValueError("truth=True, but the clip carries no flow and visible; leave it None")
        grids = compact.grids_of(features, len(self._frames), self.size)
        data: dict[str, Any] = {
            "size": self.size,
            "frames": compact.pictures(self._frames),
            "truth": None,
        }
        self._places: tuple[Size, Tensor] | None = None
        if isinstance(clip, Clip) and known and truth is not False:
            grid = compact.truth_grid(len(self._frames), self.size, SHARE * budget * 1e6)
            flow, visible = clip.truth("flow").cpu(), clip.truth("visible").cpu()
            packed = compact.pack_places(compact.true_places(flow, visible, grid), self.size)
            self._places = grid, compact.unpack_places(packed, self.size)
            data["truth"] = {"grid": grid, "places": packed.numpy().tobytes()}
        width = compact.width_for(features, budget * 1e6 - compact.count_bytes(data))
        self._tokens: dict[tuple[int, str], Tensor] = {}
        self._kept: dict[tuple[int, str], float] = {}
        data["tokens"] = []
        for (t, name), tokens in features.items():
            small, self._kept[t, name] = compact.reduce_tokens(tokens, width)
            self._tokens[t, name] = small
            values = {"width": small.shape[-1], "values": small.numpy().tobytes()}
            data["tokens"].append({"timestep": t, "layer": name, "grid": grids[name], **values})
        t, name = next(iter(features))
        super().__init__(_data=data, layer=name, timestep=t, probe=_start(clip, self.size))

    @property
    def nbytes(self) -> int:
        """What the view takes: tokens, pictures and truth, in bytes."""
        return compact.count_bytes(self._data)

    @property
    def tokens(self) -> Float[Tensor, "f n k"]:
        """The tokens shown, as the page has them: reduced, of unit length, float32."""
        return self._tokens[self.timestep, self.layer].float()

    def similarity(self) -> Float[Tensor, "f n"]:
        """Cosine similarity of every token of every frame with the probe."""
        frame, point = self.probe[0], torch.tensor([self.probe[1:]], dtype=torch.float32)
        grid = grid_of(self.tokens, self.size)
        query = read_at(self.tokens[frame], point, grid, self.size)
        return correspondence.similarity(query, self.tokens.flatten(0, 1)).view(
            len(self.tokens), -1
        )

    def matches(self) -> Float[Tensor, "f 2"]:
        """The place (x, y) in every frame that is most similar to the probe, in pixels."""
        return self._tracks([self.probe])[:, 0]

    def tracks(self) -> Float[Tensor, "f m 2"]:
        """The places in every frame that are most similar to the pins, in pixels."""
        return self._tracks(self.pins)

    def truth(self) -> Float[Tensor, "f 2"] | None:
        """Where the probe's point truly is in every frame, NaN where hidden; None if unknown."""
        if self._places is None:
            return None
        ((rows, columns), places), (h, w), (frame, x, y) = self._places, self.size, self.probe
        row = min(rows - 1, max(0, int((y + 0.5) * rows / h)))
        cell = row * columns + min(columns - 1, max(0, int((x + 0.5) * columns / w)))
        point = torch.tensor([x, y], dtype=torch.float32)
        found = places[frame, cell] + point - token_centers((rows, columns), (h, w))[cell]
        found[frame] = point
        return found

    def save_html(self, path: str | Path) -> Path:
        """Write the view as it stands as one .html, which works offline, from a file."""
        names = ("probe", "layer", "timestep", "pins", "contrast", "opacity", "_data")
        state = {name: getattr(self, name) for name in names}
        title = f"Correspondences of {len(self._frames)} frames"
        return page.write(path, state, module=self._esm, style=self._css, title=title)

    def figure(self, columns: int = 8) -> Sheet:
        """The view as it stands, of ``columns`` frames at most: the probe's and others, evenly."""
        f, own = len(self._frames), self.probe[0]
        some = torch.linspace(0, f - 1, min(columns, f)).round().int().tolist()
        some[min(range(len(some)), key=lambda k: abs(some[k] - own))] = own
        scores = self.similarity()
        low = scores.quantile(self.contrast).item()
        heat = overlays.similarity_colors(scores, self.size, low)
        shown = torch.lerp(self._frames, heat, self.opacity)
        per = min(4, len(some))
        rows, (h, w) = -(-len(some) // per), self.size
        figure = Sheet((9, rows * (9 / per * h / w + 0.25)), dpi=100, layout="constrained")
        matches, truth = self.matches(), self.truth()
        for k, i in enumerate(some):
            axes = figure.add_subplot(rows, per, k + 1)
            axes.imshow(shown[i].permute(1, 2, 0).numpy())
            axes.set_title(f"frame {i}" + (": probe" if i == own else ""), fontsize=9)
            axes.set_axis_off()
            if i == own:
                _mark(axes, self.probe[1:], "o", "white")
                continue
            _mark(axes, matches[i], "x", "white")
            if truth is not None:
                _mark(axes, truth[i], "D", overlays.MARK)
        return figure

    @traitlets.validate("probe")
    def _one_point(self, proposal: traitlets.Bunch) -> list:
        return self._checked(proposal["value"], "probe")

    @traitlets.validate("pins")
    def _points(self, proposal: traitlets.Bunch) -> list:
        return [self._checked(pin, "a pin") for pin in proposal["value"]]

    @traitlets.validate("layer", "timestep")
    def _there(self, proposal: traitlets.Bunch) -> str | int:
        place = int(proposal["trait"].name == "layer")
        return traits.known(proposal, sorted({key[place] for key in self._tokens}))

    def _checked(self, point: Any, name: str) -> list:
        return traits.point(name, point, len(self._frames), self.size)

    def _tracks(self, points: list[list]) -> Float[Tensor, "f m 2"]:
        found = torch.empty(len(self._frames), len(points), 2)
        for k, (frame, x, y) in enumerate(points):
            at = torch.tensor([[x, y]], dtype=torch.float32)
            found[:, k] = track_points(self.tokens, at, self.size, start=frame)[0][:, 0]
        return found

    def __repr__(self) -> str:
        (h, w), widths = self.size, {item["width"] for item in self._data["tokens"]}
        layers, timesteps = (len({key[i] for key in self._tokens}) for i in (1, 0))
        return (
            f"CorrespondenceExplorer({len(self._frames)} frames of {h}x{w}, {layers} layers x "
            f"{timesteps} timesteps, {max(widths)} dimensions ({min(self._kept.values()):.1%} of "
            f"the energy), {self.nbytes / 1e6:.1f} MB)"
        )


def _start(clip: Clip | Tensor, size: Size) -> list:
    """Where to begin: on the first frame's foreground if it is known, else in the middle."""
    h, w = size
    if isinstance(clip, Clip) and clip.mask is not None and clip.mask[0].any():
        there = clip.mask[0].nonzero().float().flip(1)
        middle = there.mean(0)
        return [0, *there[(there - middle).norm(dim=1).argmin()].tolist()]
    return [0, (w - 1) / 2, (h - 1) / 2]


def _mark(axes: Axes, place: Iterable, shape: str, color: str) -> None:
    outline = [Stroke(linewidth=4, foreground="black"), Normal()]
    x, y = (float(v) for v in place)
    axes.plot(x, y, shape, markersize=8, markerfacecolor="none", markeredgecolor=color,
              markeredgewidth=2, path_effects=outline)  # fmt: skip
