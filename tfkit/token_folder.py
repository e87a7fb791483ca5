"""Tokens in a folder: a file a timestep, whole or not there, mapped when they are read.

A folder holds `tokens.json` (what they are computed from) and one `t0981.safetensors` for each
timestep, of every layer's tokens in float16. Memory: what is read, a layer at a time.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tfkit.files import load_tensors, save_tensors


class TokenFolder(Mapping[tuple[int, str], Tensor]):
    """Tokens by (timestep, layer) in a folder.

    A file's checksum is verified once, when it is first read. Reading raises ValueError where it is
    lost, cut or altered.
    """

    def __init__(self, path: Path, timesteps: Iterable[int], names: Iterable[str]):
        self.path, self.timesteps, self.names = path, tuple(timesteps), tuple(names)
        self._sound: set[int] = set()  # the timesteps whose files are verified

    def file(self, t: int) -> Path:
        return self.path / f"t{t:04d}.safetensors"

    def put(self, t: int, tokens: Mapping[str, Tensor]) -> None:
        """Writes a timestep's. Raises OSError where the folder cannot be written."""
        save_tensors(self.file(t), {name: value.half() for name, value in tokens.items()})

    def holds(self, t: int) -> bool:
        """Whether a timestep is there, undamaged."""
        try:
            self._verify(t)
        except ValueError:
            return False
        return True

    def _verify(self, t: int) -> None:
        if t not in self._sound:
            missing = set(self.names) - load_tensors(self.file(t)).keys()
            if missing:
                raise ValueError(f"{self.file(t)} is damaged (it lacks {min(missing)})")
            self._sound.add(t)

    def __getitem__(self, key: tuple[int, str]) -> Tensor:
        t, name = key
        if t not in self.timesteps or name not in self.names:
            raise KeyError(key)
        try:
            self._verify(t)
            with safe_open(self.file(t), "pt") as file:
                return file.get_tensor(name)
        except (ValueError, OSError, SafetensorError) as error:
            raise ValueError(
                f"{error}; extract the features again with the same folder: the other timesteps "
                "are kept"
            ) from None

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return ((t, name) for t in self.timesteps for name in self.names)

    def __len__(self) -> int:
        return len(self.timesteps) * len(self.names)
