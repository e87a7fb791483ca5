"""How an evaluation reaches other processes: models by name, read there once; folders in full.

Memory: of each kind of thing the last one read stays in its process.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from tfkit.diffusion import LatentDiffusion
from tfkit.files import weights_there
from tfkit.identity import key_of
from tfkit.libraries import in_a_line
from tfkit.loading import MENAGERIE, load

T = TypeVar("T")

TURN = threading.RLock()  # an edit changes its model's modules for a while: threads take turns
_LOADED: dict[str, tuple[str, Any]] = {}


class Meter:
    """A progress bar that counts edits in its own process, and is silent in any other."""

    def __init__(self, bar: tqdm | None = None):
        self.bar = bar

    def __reduce__(self) -> tuple[type["Meter"], tuple[()]]:
        return Meter, ()

    def tick(self) -> None:
        """One more edit is done."""
        if self.bar is not None:
            self.bar.update()


def findable(given: Any) -> Any:
    """A folder by its absolute path, for another process may work elsewhere; all else as given."""
    if isinstance(given, str | Path) and str(given) != MENAGERIE and Path(given).is_dir():
        return str(Path(given).absolute())
    return given


class Portable:
    """A model that is itself in its own process, and in any other is read there, once.

    A model given as an object travels as its name; the weights found under it must be the same.
    """

    def __init__(self, given: LatentDiffusion | str | Path | Callable[[], LatentDiffusion]):
        if not isinstance(given, LatentDiffusion | str | Path) and not callable(given):
            raise ValueError(
                f"model={given!r}: expected a model, a name or folder that tfkit.load takes, or a "
                "function that loads one"
            )
        self.given, self.expected = findable(given), None

    def __getstate__(self) -> dict:
        if not isinstance(self.given, LatentDiffusion):
            return {"given": self.given, "expected": None}
        model = self.given
        expected = model.fingerprint(), model.dtype, str(model.device)
        return {"given": model.name, "expected": expected}

    def model(self) -> LatentDiffusion:
        """Raises ValueError where the weights are not those of the object given, or not to be had.

        In another process it is on the device that the object given is on.
        """
        if isinstance(self.given, LatentDiffusion):
            return self.given
        if callable(self.given):
            return once("model", self.given)
        if self.expected is None:
            return once("model", load, self.given)
        fingerprint, dtype, device = self.expected
        found = "something else"
        try:
            model = once("model", _load_as, self.given, dtype, device)
        except (FileNotFoundError, ValueError) as error:
            found = in_a_line(error)
        else:
            if model.fingerprint() == fingerprint:
                return model
        raise ValueError(
            f"the model given is called {self.given!r}, and what tfkit.load finds under that name "
            f"in another process is not the same ({found}); give a function that loads it: "
            "model=lambda: ..."
        )


def once(kind: str, read: Callable[..., T], *given: Any) -> T:
    """What ``read`` returns, read once in each process; of each kind the last one stays.

    A folder is read again where other weights lie in it since.
    """
    there = [weights_there(x) for x in given if isinstance(x, str | Path)]
    key = key_of([read, given, there])
    with TURN:
        if _LOADED.get(kind, ("",))[0] != key:
            _LOADED.pop(kind, None)  # before the next needs its place
            _LOADED[kind] = key, read(*given)
        return _LOADED[kind][1]


def _load_as(name: str, dtype: torch.dtype, device: str) -> LatentDiffusion:
    return load(name, dtype=dtype, device=device)
