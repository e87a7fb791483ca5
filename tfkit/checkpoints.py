"""Edits that survive a kill: every step in a folder, as a file that is whole or not there.

A folder holds `edit.json` (what the edit is computed from) and one `step0001.safetensors` for each
step taken, of latents and predicted noise. At most the step that was being taken is lost.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tfkit.files import claimed, load_tensors, save_tensors
from tfkit.identity import key_of
from tfkit.source_cache import SourceCache
from tfkit.steps import Steps
from tfkit.trajectory import digest


@dataclass(frozen=True)
class StepFiles:
    """The steps in a folder, by how many were taken with each.

    cache: of the source, which gives way to them where the disk is full.
    """

    folder: Path
    cache: SourceCache

    def get(self, taken: int) -> dict[str, Tensor] | None:
        """Latents and noise after so many steps, or None. ValueError where the file is damaged."""
        file = self._file(taken)
        if not file.exists():
            return None
        try:
            values = load_tensors(file)
            return {name: values[name] for name in ("latents", "noise")}
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{error}; delete it and edit again with the same folder: the steps before are kept"
            ) from None

    def put(self, taken: int, latents: Tensor, noise: Tensor) -> None:
        """Writes them. Raises OSError where the folder cannot be written."""
        values = {"latents": latents, "noise": noise}
        self.cache.giving_way(lambda: save_tensors(self._file(taken), values))

    def _file(self, taken: int) -> Path:
        return self.folder / f"step{taken:04d}.safetensors"


@contextmanager
def step_files(folder: str | Path, steps: Steps, begun: Tensor) -> Iterator[StepFiles]:
    """The folder as the place of the edit that takes ``steps`` from latents ``begun``.

    Raises ValueError for a folder that belongs to another edit or is in use, OSError where it
    cannot be written.
    """
    cache, origin = steps.source.cache, _origin(steps, begun)
    with ExitStack() as held:
        place = cache.giving_way(
            lambda: held.enter_context(claimed(folder, "edit", origin, _NAMES))
        )
        yield StepFiles(place, cache)


_NAMES = {
    "video": "video, or of this one inverted anew (an inversion in a folder of its own, "
    "tfkit.invert(..., folder=...), stays the same)"
}


def _origin(steps: Steps, begun: Tensor) -> dict[str, Any]:
    """What an edit is computed from; two with the same origin are the same."""
    plan, source, model = steps.plan, steps.source, steps.model
    return {
        "video": " ".join(map(digest, (source.clean, source.noise, begun))),
        "conditions": {name: digest(values) for name, values in source.conditions.items()},
        "model": model.fingerprint(),
        "dtype": str(model.dtype),
        "source prompt": source.prompt,
        "prompt": plan.prompt,
        "negative prompt": plan.negative_prompt,
        "guidance": float(plan.guidance),
        "method": _words(plan.method),
        "method of the same words": key_of(plan.method),
        "propagation": _words(plan.propagation),
        "propagation of the same words": key_of(plan.propagation),
        "timesteps": list(steps.timesteps),
        "keyframes": [None if row is None else row.tolist() for row in steps.rows],
    }


def _words(setting: object) -> str:
    """What a setting says of itself, without addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(setting))
