"""Tokens as colours, to be played with: which components, how strong, in whose basis, over time.

The traits are the truth, of this object and of its views. The page colours and cuts by itself, from
a few components of every token in float16, so that it outlives the kernel; the methods here compute
the same from the same bytes. Memory: these, and one layer's tokens once more while they are made.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from tfkit import overlays
from tfkit.diffusion import LatentDiffusion
from tfkit.plots import Sheet
from tfkit.settings import check_whole
from tfkit.tokens import Kind, Noised, extract_features
from tfkit.tracks import grid_of, read_at
from tfkit.trajectory import Trajectory
from tfkit.video import Clip, as_frames, size_of
from tfkit.widgets import compact, page, traits
from tfkit.widgets.bases import BASES, LEAST, compress, count_for
from tfkit.widgets.twin import Twin


class PCAExplorer(Twin, anywidget.AnyWidget):
    """A clip's frames in the colours of their tokens' components, and slices over time.

    clip: a Clip or frames (f, 3, h, w). features: {(timestep, layer): (f, n, d)}, every timestep
    of every layer, as `tokens.extract_features` returns. most: components of each, at most; as many
    are kept as fit into ``budget`` megabytes (10^6 bytes), 3 or more.
    basis: "joint", of all frames, or "frame", each frame's own, in which colours flicker.
    components: which three are red, green and blue, from 0; strength of each: 1 as
    `TokenPCA.to_rgb`, 0 flat, negative turned round. opacity: of the colours on the frames. line:
    [x, y, x, y] in pixels, which the slices are along. probe: [frame, share of the line], or [].
    Raises ValueError where these do not fit together, traitlets.TraitError for a trait's value
    that is none.
    """

    _esm = page.source("tokens.js", "page.js", "view.js", "components.js")
    _css = page.source("view.css", "components.css")
    layer = traitlets.Unicode().tag(sync=True)
    timestep = traitlets.Int().tag(sync=True)
    basis = traitlets.Enum(BASES, "joint").tag(sync=True)
    components: "traitlets.List[Any]" = traitlets.List([0, 1, 2]).tag(sync=True, echo_update=False)
    strength: "traitlets.List[Any]" = traitlets.List([1.0, 1.0, 1.0]).tag(
        sync=True, echo_update=False
    )
    opacity = traitlets.Float(0.85, min=0, max=1).tag(sync=True)
    line: "traitlets.List[Any]" = traitlets.List().tag(sync=True, echo_update=False)
    probe: "traitlets.List[Any]" = traitlets.List().tag(sync=True, echo_update=False)
    _data = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        clip: Clip | Tensor,
        features: Mapping[tuple[int, str], Tensor],
        *,
        most: int = 8,
        budget: float | int = 8,
    ):
        check_whole("most", most, LEAST)
        self._frames = as_frames(clip).detach().float().cpu()
        self.size = h, w = size_of(self._frames)
        grids = compact.grids_of(features, len(self._frames), self.size)
        data: dict[str, Any] = {
            "size": self.size,
            "frames": compact.pictures(self._frames),
            "tokens": [],
        }
        room = budget * 1e6 - compact.count_bytes(data)
        self.count = count_for(features, most, room)
        self._shares: dict[tuple, Tensor] = {}
        self._kept: dict[tuple, float] = {}
        for (t, name), tokens in features.items():
            held: dict[str, Any] = {
                "timestep": t,
                "layer": name,
                "grid": grids[name],
                "width": self.count,
            }
            for basis, (shares, energy) in compress(tokens, self.count).items():
                self._shares[t, name, basis] = shares
                held |= {basis: shares.numpy().tobytes(), f"{basis}_energy": energy}
            self._kept[t, name] = sum(held["joint_energy"])
            data["tokens"].append(held)
        t, name = next(iter(features))
        middle = [0.0, float(h // 2), float(w - 1), float(h // 2)]
        super().__init__(_data=data, layer=name, timestep=t, line=middle)

    @classmethod
    def of(
        cls,
        model: LatentDiffusion,
        source: Trajectory | Noised,
        clip: Clip | Tensor | None = None,
        *,
        timesteps: Iterable[int],
        layers: str | Iterable[str],
        kind: Kind = "output",
        **options: Any,
    ) -> "PCAExplorer":
        """Of the features of a video; without its clip, over what its latents decode to."""
        features = extract_features(model, source, timesteps=timesteps, layers=layers, kind=kind)
        size = getattr(source, "size", None)
        frames = model.decode(source.clean, size=size) if clip is None else clip
        return cls(frames, features, **options)

    @property
    def nbytes(self) -> int:
        """What the view takes: components and pictures, in bytes."""
        return compact.count_bytes(self._data)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the layer's tokens."""
        return grid_of(self._shares[self.timestep, self.layer, "joint"], self.size)

    def colors(self, basis: str | None = None) -> Float[Tensor, "f n 3"]:
        """The tokens' colours as they are shown, in [0, 1]; in another basis if asked for."""
        shares = self._shares[self.timestep, self.layer, basis or self.basis].float()
        chosen, strength = shares[..., self.components], torch.tensor(self.strength)
        return (0.5 + strength.float() * (chosen - 0.5)).clamp(0, 1)

    def slices(self) -> dict[str, Float[Tensor, "3 f l"]]:
        """What is along the line in each frame: of "film", and of the colours in either basis.

        The line runs right, a pixel a column, and time runs down. Colours are the nearest token's.
        """
        points, (h, w), (rows, columns) = self._points(), self.size, self.grid
        pixels = self._frames.flatten(2).transpose(1, 2)
        film = torch.stack([read_at(frame, points, (h, w), (h, w)) for frame in pixels])
        column = ((points[:, 0] + 0.5) * columns / w).long().clamp(0, columns - 1)
        row = ((points[:, 1] + 0.5) * rows / h).long().clamp(0, rows - 1)
        cut = {basis: self.colors(basis)[:, row * columns + column] for basis in BASES}
        return {name: value.permute(2, 0, 1) for name, value in {"film": film, **cut}.items()}

    def flicker(self) -> dict[str, float]:
        """How much each slice changes from frame to frame: mean of the absolute difference."""
        cuts = self.slices().items()
        if len(self._frames) == 1:
            return dict.fromkeys(self.slices(), 0.0)
        return {name: cut.diff(dim=1).abs().mean().item() for name, cut in cuts}

    def save_html(self, path: str | Path) -> Path:
        """Write the view as it stands as one .html, which works offline, from a file."""
        names = ("layer", "timestep", "basis", "components", "strength", "opacity", "line", "probe")
        state = {name: getattr(self, name) for name in (*names, "_data")}
        title = f"Principal components of {len(self._frames)} frames"
        return page.write(path, state, module=self._esm, style=self._css, title=title)

    def figure(self, columns: int = 6) -> Sheet:
        """The view as it stands: ``columns`` frames at most, and the slices."""
        f, (h, w) = len(self._frames), self.size
        some = torch.linspace(0, f - 1, min(columns, f)).round().int().tolist()
        colors = overlays.token_images(self.colors(), self.size)
        shown = torch.lerp(self._frames, colors, self.opacity)
        tall, (x, y, to_x, to_y) = 9 / len(some) * h / w, self.line
        figure = Sheet((9, tall + 2.6), dpi=100, layout="constrained")
        grid = figure.add_gridspec(2, 3 * len(some), height_ratios=[tall, 2.2])
        for k, i in enumerate(some):
            axes = figure.add_subplot(grid[0, 3 * k : 3 * k + 3])
            axes.imshow(shown[i].permute(1, 2, 0).numpy())
            axes.plot([x, to_x], [y, to_y], color=overlays.MARK, linewidth=1.5)
            axes.set_title(f"frame {i}", fontsize=9)
            axes.set_axis_off()
        flicker, words = self.flicker(), {"joint": "joint basis", "frame": "each frame's basis"}
        for k, (name, cut) in enumerate(self.slices().items()):
            axes = figure.add_subplot(grid[1, k * len(some) : (k + 1) * len(some)])
            axes.imshow(cut.permute(1, 2, 0).numpy(), aspect="auto", interpolation="nearest")
            title = f"{words.get(name, name)}: {flicker[name]:.3f} a frame"
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[], xlabel="along the line →")
        return figure

    def _points(self) -> Float[Tensor, "l 2"]:
        """The places along the line, about a pixel apart."""
        x, y, to_x, to_y = self.line
        share = torch.linspace(0, 1, round(math.hypot(to_x - x, to_y - y)) + 1)[:, None]
        start, end = (
            torch.tensor([point], dtype=torch.float32) for point in ((x, y), (to_x, to_y))
        )
        return start + share * (end - start)

    @traitlets.validate("layer", "timestep")
    def _there(self, proposal: traitlets.Bunch) -> str | int:
        place = int(proposal["trait"].name == "layer")
        return traits.known(proposal, sorted({key[place] for key in self._kept}))

    @traitlets.validate("components")
    def _three(self, proposal: traitlets.Bunch) -> list:
        value, count = proposal["value"], self.count
        good = len(value) == 3 and all(v in range(count) for v in value)
        return traits.expect(good, "components", value, f"three of 0 to {count - 1}")

    @traitlets.validate("strength")
    def _moderate(self, proposal: traitlets.Bunch) -> list:
        value = proposal["value"]
        good = traits.are_numbers(value, 3) and all(-2 <= v <= 2 for v in value)
        return traits.expect(good, "strength", value, "three from -2 to 2")

    @traitlets.validate("line")
    def _within(self, proposal: traitlets.Bunch) -> list:
        value, (h, w) = proposal["value"], self.size
        good = traits.are_numbers(value, 4) and math.dist(value[:2], value[2:]) >= 1
        good = good and all(0 <= v < side for v, side in zip(value, (w, h, w, h), strict=True))
        wanted = f"[x, y, x, y] in {w} x {h}, ends a pixel or more apart"
        return traits.expect(good, "line", value, wanted)

    @traitlets.validate("probe")
    def _one_place(self, proposal: traitlets.Bunch) -> list:
        value, f = proposal["value"], len(self._frames)
        good = traits.are_numbers(value, 2) and value[0] in range(f) and 0 <= value[1] <= 1
        wanted = f"[] or [frame to {f - 1}, 0 to 1]"
        return traits.expect(good or not value, "probe", value, wanted)

    def __repr__(self) -> str:
        (h, w), kept = self.size, min(self._kept.values())
        layers, timesteps = (len({key[i] for key in self._kept}) for i in (1, 0))
        return (
            f"PCAExplorer({len(self._frames)} frames of {h}x{w}, {layers} layers x {timesteps} "
            f"timesteps, {self.count} components ({kept:.1%} of the variance), "
            f"{self.nbytes / 1e6:.1f} MB)"
        )
