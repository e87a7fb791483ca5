"""The way up: level after level of a trajectory, by predictor and corrector.

Sampling's step takes the noise at the point it comes from, which inverting is yet to find. The
predictor guesses it from the levels below; the corrector, a fixed-point iteration, takes it at the
point that the guess leads to.
Memory: the latents of one level and the noise of two, and one batch of activations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from tfkit.diffusion import LatentDiffusion
from tfkit.memory import fitting
from tfkit.progress import stepping
from tfkit.sampling import at_step, ddim_step
from tfkit.trajectory import CLEAN, Folder

Predict = Callable[[int, Tensor, Tensor], Tensor]  # (t, latents, frames) -> noise
Tick = Callable[[int], object]  # is told how many frames are done
Predictor = Literal["next", "extrapolated"]
Level = tuple[int, Tensor]  # its timestep, and the noise in it


@runtime_checkable
class SourceReader(Protocol):
    """Reads of a source what edits will need of it, as the steps of an edit do."""

    def source_noise(self, t: int, marks: str | None, batch: int, tick: Tick) -> Tensor | None:
        """The noise (f, c, h, w) of the source at a timestep, from the passes that read it.

        None where an edit needs nothing of that timestep, or other passes than an inversion's
        under ``marks`` (of :meth:`tfkit.methods.Method.marks_source`).
        """
        ...

    def read_source(self, batch: int, *, progress: bool) -> int:
        """Reads what is still lacking; returns the batch that fitted into memory."""
        ...


@dataclass(frozen=True, eq=False)
class Ascent:
    """The way from the clean latents to the noise. marks: of what is inverted under."""

    model: LatentDiffusion
    predict: Predict
    fixed_point: int
    predictor: Predictor
    reader: SourceReader | None
    marks: str | None

    def climb(
        self,
        levels: dict[int, Tensor] | Folder,
        timesteps: tuple[int, ...],
        batch: int,
        progress: bool,
    ) -> int:
        """Computes the levels that a trajectory lacks, upwards from the highest that is there.

        Returns the batch that fitted into memory.
        """
        upwards = timesteps[::-1]
        first = next((i for i, t in enumerate(upwards) if t not in levels), len(upwards))
        x = levels[upwards[first - 1] if first else CLEAN]
        lower: Level | None = None
        with stepping("invert", len(upwards), first, len(x), show=progress) as begin:
            if self.predictor == "extrapolated" and 2 <= first < len(upwards):  # it goes on
                t = upwards[first - 2]
                again = partial(self._noise, levels[t], t, t, lambda done: None)
                noise, batch = fitting(again, batch)
                lower = t, noise
            for i in range(first, len(upwards)):
                t, before, tick = upwards[i], upwards[i - 1] if i else None, begin(i)
                up = partial(self._level, x, before, t, lower, tick)
                with at_step(i, len(upwards)):
                    (x, noise), batch = fitting(up, batch)
                levels[t] = x
                if self.predictor == "extrapolated" and before is not None:
                    lower = before, noise
            begin(len(upwards))
        return batch

    @torch.no_grad()
    def _level(
        self, x: Tensor, before: int | None, t: int, lower: Level | None, tick: Tick, batch: int
    ) -> tuple[Tensor, Tensor]:
        """All frames one step towards the noise, from level ``before`` (None: clean) to ``t``.

        lower: the level below ``before``, to extrapolate from. Returns latents, and the model's
        noise that the step began with.
        """
        a_from, a_to, parts = self.model.alpha(before), self.model.alpha(t), []
        noise = guess = self._noise(x, before, t, tick, batch)
        if before is not None and lower is not None:
            guess = noise + (t - before) / (before - lower[0]) * (noise - lower[1])
        for frames in torch.arange(len(x), device=x.device).split(batch):
            here = x[frames]
            there = ddim_step(here, guess[frames], a_from, a_to)
            for _ in range(self.fixed_point):
                there = ddim_step(here, self.predict(t, there, frames), a_from, a_to)
            parts.append(there)
        return torch.cat(parts), noise

    @torch.no_grad()
    def _noise(self, x: Tensor, before: int | None, t: int, tick: Tick, batch: int) -> Tensor:
        """The model's noise at latents ``x``, at the timestep that the predictor takes."""
        if self.predictor == "next" or before is None:  # the clean level has no timestep
            return self._model_noise(x, t, batch, tick)
        noise = None
        if self.reader is not None:
            noise = self.reader.source_noise(before, self.marks, batch, tick)
        return self._model_noise(x, before, batch, tick) if noise is None else noise.to(x)

    @torch.no_grad()
    def _model_noise(self, x: Tensor, t: int, batch: int, tick: Tick = lambda done: None) -> Tensor:
        """The model's noise of all frames at a timestep."""
        parts = []
        for frames in torch.arange(len(x), device=x.device).split(batch):
            parts.append(self.predict(t, x[frames], frames))
            tick(len(frames))
        return torch.cat(parts)
