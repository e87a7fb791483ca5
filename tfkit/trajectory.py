"""The latents of a video at every noise level, in memory or in a folder that survives a kill.

A folder holds `trajectory.json` (what it belongs to), `clean.safetensors`, one
`t0981.safetensors` for each timestep, and `conditions.safetensors` where it was inverted under any.
Every file appears whole or not at all; latents are memory-mapped, so reading one level of a long
video costs that level.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from numbers import Real
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tfkit.files import as_bytes, claimed, load_tensors, read_manifest, save_tensors
from tfkit.lineage import Lineage, lineage_from
from tfkit.source_cache import SourceCache

CLEAN = -1  # the key of the latents before any noise
_KIND = "trajectory"
_LINEAGE = "lineage"
_CONDITIONS = "conditions.safetensors"
_CACHE = "cache"
_LEVEL = re.compile(r"clean|t(\d{4})")


@dataclass(frozen=True)
class Origin:
    """What a trajectory was computed from; two with the same origin are the same."""

    video: str  # digest of the frames or latents
    shape: tuple[int, ...]  # of these: (f, 3, h, w) or (f, 4, h, w)
    model: str  # digest of the weights
    dtype: str
    prompt: str
    timesteps: tuple[int, ...]  # descending
    fixed_point: int
    conditions: str = ""  # digest of what it was inverted under; empty: of nothing
    predictor: str = "next"  # what a step's noise is at first: see tfkit.invert

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the frames, None for latents."""
        return (self.shape[2], self.shape[3]) if self.shape[1] == 3 else None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A video's DDIM inversion: its latents at each timestep.

    timesteps: descending. prompt: what it was inverted with. size: (height, width) of the frames
    it came from, or None for latents. `.at(t)` and `.clean` are (f, 4, h, w). conditions: what it
    was inverted under, "depth" (f, 1, h, w) in [-1, 1] and "control" (f, 3, H, W) in [0, 1]. cache:
    the source's features that earlier edits read, for later ones; where you write into its levels,
    or change what the UNet computes by hooks of your own, call ``source.cache.clear()``. model: the
    lineage of the model it was inverted with, so that no other is taken for it; None where that is
    not known.
    """

    timesteps: tuple[int, ...]
    prompt: str
    size: tuple[int, int] | None
    latents: Mapping[int, Tensor]
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    cache: SourceCache = field(default_factory=SourceCache)
    model: Lineage | None = None

    def at(self, t: int | Tensor) -> Float[Tensor, "f c h w"]:
        """Latents at timestep ``t``. Raises ValueError for a timestep it does not pass."""
        return self._level(self.timestep(t))

    def timestep(self, t: int | Tensor) -> int:
        """One of its timesteps, as Python's own. Raises ValueError for one it does not pass."""
        asked = t.item() if isinstance(t, Tensor) else t
        if isinstance(asked, bool) or asked not in self.timesteps:
            near = ""
            if isinstance(asked, Real):
                nearest = min(self.timesteps, key=lambda own: abs(own - asked))
                near = f"; the nearest one is {nearest}"
            raise ValueError(
                f"timestep {asked!r} is not on this trajectory of {len(self.timesteps)} "
                f"steps{near} (see .timesteps)"
            )
        return int(asked)

    @property
    def clean(self) -> Float[Tensor, "f c h w"]:
        """The latents the inversion started from."""
        return self._level(CLEAN)

    def _level(self, t: int) -> Tensor:
        try:
            return self.latents[t]
        except KeyError:
            name = "the clean level" if t == CLEAN else f"the level of timestep {t}"
            place = getattr(self.latents, "path", None)
            raise ValueError(
                f"{name} is missing{f' in {place}' if place else ''}; call tfkit.invert again, "
                "with the same folder if it had one: the levels below it are kept"
            ) from None

    @property
    def noise(self) -> Float[Tensor, "f c h w"]:
        """The noisiest latents: where sampling starts."""
        return self.at(self.timesteps[0])

    def depth_of(self, frames: Tensor, branches: int = 1) -> Float[Tensor, "b 1 h w"] | None:
        """The depth of frames (n,), once for each branch; None where it has no depth."""
        depth = self.conditions.get("depth")
        if depth is None:
            return None
        return depth[frames.to(depth.device)].repeat(branches, 1, 1, 1)

    def part(self, t: int, frames: Tensor) -> "Trajectory":
        """Some of its frames (n,), at timestep ``t`` alone."""
        level = self.at(t)
        some = {t: level[frames.to(level.device)]}
        kept = {k: v[frames.to(v.device)] for k, v in self.conditions.items()}
        return Trajectory((t,), self.prompt, self.size, some, kept, model=self.model)

    @cached_property
    def shape(self) -> torch.Size:
        """That of its latents at any timestep: (f, c, h, w)."""
        part = CLEAN not in self.latents and len(self.timesteps) == 1  # see part()
        return (self.at(self.timesteps[0]) if part else self.clean).shape

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        f, _, h, w = self.shape
        steps = len(self.timesteps)
        return f"Trajectory({f} frames of {h} x {w} latents, {steps} steps, {self.prompt!r})"


def digest(parts: Tensor | Iterable[Tensor]) -> str:
    """A short digest of a tensor's values, whole or in parts along its first dimension."""
    total = hashlib.sha256()
    for values in [parts] if isinstance(parts, Tensor) else parts:
        total.update(as_bytes(values.detach().cpu().contiguous()))
    return total.hexdigest()[:16]


class Folder(Mapping):
    """Latents by timestep in a folder; assigning to a timestep writes its file, whole or not at
    all. Reading maps the file: a change made to the tensor never reaches it.

    cache: what edits have read of the video, beside its levels, and gives way to them.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.path = Path(path).absolute()  # wherever the process goes from here
        self.device = device
        self.cache = SourceCache(self.path / _CACHE)

    def _file(self, t: int) -> Path:
        return self.path / ("clean.safetensors" if t == CLEAN else f"t{t:04d}.safetensors")

    def __getitem__(self, t: int) -> Tensor:
        if t not in self:
            raise KeyError(t)
        try:
            return load_tensors(self._file(t), self.device)["latents"]
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{error}; delete it and call tfkit.invert again with the same folder: the levels "
                "below it are kept"
            ) from None

    def __setitem__(self, t: int, latents: Tensor) -> None:
        self.cache.giving_way(lambda: save_tensors(self._file(t), {"latents": latents}))

    def __contains__(self, t: object) -> bool:
        return isinstance(t, int) and self._file(t).is_file()

    def __iter__(self) -> Iterator[int]:
        found = (_LEVEL.fullmatch(file.stem) for file in self.path.glob("*.safetensors"))
        return iter([int(name[1] or CLEAN) for name in found if name])

    def __len__(self) -> int:
        return len(list(iter(self)))


@contextmanager
def claim(
    path: str | Path, origin: Origin, lineage: Lineage, device: torch.device | str
) -> Iterator[Folder]:
    """The folder as ``origin``'s own for the time of a block: see :func:`tfkit.files.claimed`."""
    beside = {_LINEAGE: asdict(lineage)}
    with claimed(path, _KIND, asdict(origin), _NAMES, beside, _UNSAID) as place:
        yield Folder(place, device)


def open_trajectory(path: str | Path, *, device: torch.device | str = "cpu") -> Trajectory:
    """Opens a finished trajectory folder without its model or video; nothing is read yet.

    Raises FileNotFoundError where there is none and ValueError where it is unfinished.
    """
    path = Path(path).expanduser()
    if not (path / f"{_KIND}.json").exists():
        raise FileNotFoundError(f"{path} holds no trajectory ({_KIND}.json is missing)")
    (origin, model), levels = _manifest(path), Folder(path, device)
    missing = {CLEAN, *origin.timesteps} - set(levels)
    if missing:
        raise ValueError(
            f"{path} is unfinished: {len(missing)} of {len(origin.timesteps) + 1} levels are "
            "missing; call tfkit.invert with the same video, prompt and folder to go on"
        )
    kept = read_conditions(path, device) if origin.conditions else {}
    return Trajectory(
        origin.timesteps, origin.prompt, origin.size, levels, kept, levels.cache, model
    )


def write_conditions(path: str | Path, conditions: Mapping[str, Tensor]) -> None:
    """Keeps what a trajectory is inverted under in its folder, unless it is there already."""
    file = Path(path).expanduser() / _CONDITIONS
    with suppress(ValueError):
        if load_tensors(file).keys() == conditions.keys():
            return
    save_tensors(file, conditions)


def read_conditions(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """What :func:`write_conditions` kept. Raises ValueError where the file is lost or damaged."""
    try:
        return load_tensors(path / _CONDITIONS, device)
    except ValueError as error:
        raise ValueError(
            f"{error}; call tfkit.invert again with the same video, conditions and folder"
        ) from None


_NAMES = {
    "fixed_point": "fixed-point setting",
    "timesteps": "schedule",
    "shape": "size",
    "conditions": "condition",
}
_UNSAID = {"predictor": "next"}  # by folders that are older than the setting


def _manifest(path: Path) -> tuple[Origin, Lineage | None]:
    names = {one.name for one in fields(Origin)} - {*_UNSAID}
    values = read_manifest(path, _KIND, names, _UNSAID | {_LINEAGE: None})
    model = lineage_from(values.pop(_LINEAGE))
    origin = Origin(**values | {name: tuple(values[name]) for name in ("shape", "timesteps")})
    return origin, model
