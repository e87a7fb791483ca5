"""The latents of a video at every noise level, in memory or in a folder that survives a kill.

A folder holds `trajectory.json` (what it belongs to), `clean.safetensors` and one
`t0981.safetensors` for each timestep. Every file appears whole or not at all; latents are
memory-mapped, so reading one level of a long video costs that level.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

CLEAN = -1  # the key of the latents before any noise
_MANIFEST = "trajectory.json"


@dataclass(frozen=True)
class Origin:
    """What a trajectory was computed from; two with the same origin are the same."""

    video: str  # digest of the frames or latents
    model: str  # digest of the weights
    prompt: str
    timesteps: tuple[int, ...]  # descending
    fixed_point: int
    shape: tuple[int, ...]  # of the latents
    dtype: str


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A video's DDIM inversion: its latents at each timestep.

    timesteps: descending. prompt: what it was inverted with. size: (height, width) of the frames
    it came from, or None for latents. `.at(t)` and `.clean` are (f, 4, h, w).
    """

    timesteps: tuple[int, ...]
    prompt: str
    size: tuple[int, int] | None
    latents: Mapping[int, Tensor]

    def at(self, t: int) -> Float[Tensor, "f c h w"]:
        """Latents at timestep ``t``. Raises ValueError for a timestep it does not pass."""
        if int(t) not in self.timesteps:
            near = min(self.timesteps, key=lambda own: abs(own - int(t)))
            raise ValueError(
                f"timestep {int(t)} is not on this trajectory of {len(self.timesteps)} steps; the "
                f"nearest one is {near} (see .timesteps)"
            )
        return self.latents[int(t)]

    @property
    def clean(self) -> Float[Tensor, "f c h w"]:
        """The latents the inversion started from."""
        return self.latents[CLEAN]

    @property
    def noise(self) -> Float[Tensor, "f c h w"]:
        """The noisiest latents: where sampling starts."""
        return self.at(self.timesteps[0])

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        f, _, h, w = self.clean.shape
        steps = len(self.timesteps)
        return f"Trajectory({f} frames of {h} x {w} latents, {steps} steps, {self.prompt!r})"


def digest(values: Tensor) -> str:
    """A short digest of a tensor's values."""
    array = values.detach().cpu().contiguous()
    return hashlib.sha256(array.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Folder(Mapping):
    """Latents by timestep in a folder; :meth:`put` adds one."""

    def __init__(self, path: str | Path, device: torch.device | str = "cpu"):
        self.path, self.device = Path(path), device

    def _file(self, t: int) -> Path:
        return self.path / ("clean.safetensors" if t == CLEAN else f"t{t:04d}.safetensors")

    def __getitem__(self, t: int) -> Tensor:
        file = self._file(t)
        if not file.exists():
            raise KeyError(t)
        try:
            with safe_open(file, "pt", device="cpu") as content:
                return content.get_tensor("latents").to(self.device)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete it and invert again with the same folder: "
                "what is whole is kept"
            ) from None

    def put(self, t: int, latents: Tensor) -> None:
        write_atomically(self._file(t), save({"latents": latents.detach().cpu().contiguous()}))

    def __iter__(self):
        names = [f.stem for f in self.path.glob("*.safetensors")]
        return iter(CLEAN if name == "clean" else int(name[1:]) for name in names)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def open(self, origin: Origin, size: tuple[int, int] | None) -> None:
        """Makes the folder ``origin``'s own, or checks that it is already.

        Raises ValueError where it belongs to another video, prompt, model or schedule.
        """
        mine = json.loads(json.dumps({**asdict(origin), "size": size}))
        manifest = self.path / _MANIFEST
        if manifest.exists():
            theirs = _manifest(self.path)
            for key, value in mine.items():
                if theirs.get(key) != value:
                    raise ValueError(
                        f"{self.path} holds the trajectory of another {_NAMES.get(key, key)}: "
                        f"{_short(theirs.get(key))} there, {_short(value)} asked for. "
                        "Give another folder, or delete this one."
                    )
            return
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; expected a folder for the trajectory")
        if self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty and holds no trajectory; give an empty or a new folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(manifest, json.dumps(mine, indent=1).encode())


_NAMES = {"fixed_point": "fixed-point setting", "timesteps": "schedule", "shape": "size"}


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _manifest(path: Path) -> dict:
    try:
        return json.loads((path / _MANIFEST).read_text())
    except ValueError:
        raise ValueError(f"{path / _MANIFEST} is damaged; delete the folder") from None


def open_trajectory(path: str | Path, *, device: torch.device | str = "cpu") -> Trajectory:
    """Opens a finished trajectory folder without its model or video; nothing is read yet.

    Raises FileNotFoundError where there is none and ValueError where it is unfinished.
    """
    path = Path(path)
    if not (path / _MANIFEST).exists():
        raise FileNotFoundError(f"{path} holds no trajectory ({_MANIFEST} is missing)")
    about = _manifest(path)
    store = Folder(path, device)
    missing = {CLEAN, *about["timesteps"]} - set(store)
    if missing:
        raise ValueError(
            f"{path} is unfinished: {len(missing)} of {len(about['timesteps']) + 1} levels are "
            "missing; call tfkit.invert with the same video, prompt and folder to go on"
        )
    size = tuple(about["size"]) if about["size"] else None
    return Trajectory(tuple(about["timesteps"]), about["prompt"], size, store)
