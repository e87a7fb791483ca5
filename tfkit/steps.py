"""The steps of a plan: what each predicts, what it reads of the source, and what is kept of that.

Memory: what a step's passes take; what is read of the source goes to its cache.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tfkit import hooks
from tfkit.diffusion import LatentDiffusion
from tfkit.memory import fitting
from tfkit.methods import Moment
from tfkit.passes import InvertingPasses, Plan, SourcePasses, StepPasses
from tfkit.protocols import Carrying
from tfkit.sampling import at_step
from tfkit.source_cache import StepWriter
from tfkit.spots import digest_spots
from tfkit.tokens import Kind, modules_of, read_tokens
from tfkit.trajectory import Trajectory, digest


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of an edit: the source's, from the first one that the method takes.

    prepared: what the method made of the video. text: embeddings (branches, l, d). first: which of
    the trajectory's steps is step 0 here. rows: keyframes at each of the trajectory's timesteps,
    or None. drawn: those this plan drew for all of them; steps that were taken before it kept
    theirs. seed: what they are drawn from where they are not given. source_key: a digest of what
    the source's features depend on (:func:`source_key_of`); None where that is not known, and
    nothing is kept.
    """

    model: LatentDiffusion
    source: Trajectory
    plan: Plan
    prepared: Any
    text: Tensor
    first: int
    rows: list[Tensor | None]
    drawn: list[Tensor | None]
    seed: int
    source_key: str | None

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timestep of each step, descending."""
        return self.source.timesteps[self.first :]

    def predict(
        self, step: int, x: Tensor, batch: int, tick: Callable[[int], object] = lambda done: None
    ) -> tuple[Float[Tensor, "f c h w"], int]:
        """The noise of every frame at latents ``x``, and the batch that fitted into memory.

        tick: is told how many frames are done, pass by pass. Raises NonFiniteError where the
        model overflows, MemoryError where memory runs out even with batch=1.
        """

        def predict(batch: int) -> Tensor:
            # a new one for each batch: what one that did not fit has kept goes with it
            attention = self.plan.propagation.attention(len(self.text), self.plan.reads_source)
            own = attention is None  # the model's own self-attention
            passes = self.passes(step, x)
            passes.tick = tick
            with nullcontext() if own else hooks.processor(self.model.unet, attention):
                noise = self._run(passes, attention, step, batch)
            self._keep(passes, len(self.timesteps) - step)
            return noise

        with at_step(step, len(self.timesteps)):
            return fitting(predict, batch)

    def read_source(self, batch: int, *, start: int = 0, progress: bool) -> int:
        """Reads of the source what the steps from ``start`` on lack, as far as there is room for.

        Returns the batch that fitted into memory. Raises ValueError where nothing can be read of
        the source alone.
        """
        self.check_preparable()
        count = len(self.timesteps)
        for step in tqdm(range(start, count), desc="prepare", disable=not progress):
            first = self._of_source(step, SourcePasses)
            if first.known is not None:
                continue
            if first.keeps is None:
                break

            def read(batch: int, step: int = step) -> StepPasses:
                attention = self.plan.propagation.attention(1, True)
                passes = self._of_source(step, SourcePasses)
                with hooks.processor(self.model.unet, attention):
                    self._run(passes, attention, step, batch)
                return passes

            with at_step(step, count):
                passes, batch = fitting(read, batch)
            if not self._keep(passes, count - step):
                break
        return batch

    def check_preparable(self) -> None:
        """Raises ValueError where nothing can be read of the source alone."""
        if self.source_key is None:
            raise ValueError(
                f"nothing to prepare for {self.plan.method!r} with {self.plan.propagation!r}: "
                "expected tfkit.TokenFlow(), a method whose effect on the source is known, and a "
                "model without unmerged adapters"
            )

    def source_noise(
        self, t: int, marks: str | None, batch: int, tick: Callable[[int], object]
    ) -> Float[Tensor, "f c h w"] | None:
        """The noise of the source's latents at a timestep, from the passes that an edit would read
        them by; what they read is kept.

        None where the passes differ from the plain ones of an inversion under ``marks``: of a
        propagation that alters the source, of another ControlNet; where no step is at ``t``; and
        where nothing may be kept.
        """
        way = self.plan.propagation
        plain = isinstance(way, Carrying) and not way.alters_source
        if t not in self.timesteps or not plain or self.marks != marks or not self._room:
            return None
        step, attention = self.timesteps.index(t), way.attention(1, True)
        passes = self._of_source(step, InvertingPasses)
        passes.known, passes.tick = None, tick  # what is known has no noise
        with hooks.processor(self.model.unet, attention):
            noise = self._run(passes, attention, step, batch)
        self._keep(passes, step + 1)
        return noise

    @cached_property
    def marks(self) -> str | None:
        """What the method does to the source's branch, in its own words."""
        return self.plan.method.marks_source(self.prepared)

    @property
    def _room(self) -> bool:
        """Whether anything of the source may be kept."""
        return self.source.cache.budget > 0

    def _of_source(self, step: int, kind: type[StepPasses]) -> StepPasses:
        """The passes of a step over the source alone."""
        shape, model = self.source.shape, self.model
        none = torch.empty(0, *shape[1:], device=model.device, dtype=model.precision)
        return self.passes(step, none, kind)

    def passes(self, step: int, x: Tensor, kind: type[StepPasses] = StepPasses) -> StepPasses:
        """The passes of a step from latents ``x``, and what is known of its source."""
        passes = kind(
            self.model, self.source, self.plan, self.prepared, self.text, self.first + step, x
        )
        if self.source_key is not None and not _autocast(self.model.device):
            cache, where = self.source.cache, (self.source_key, self.timesteps[step])
            known = cache.get(*where)
            if known is not None and passes.needed() <= known.names:
                passes.known = known
            elif self._room:
                passes.keeps = StepWriter(cache, *where)
        return passes

    def source_tokens(
        self, step: int, layer: str, kind: Kind, batch: int
    ) -> Float[Tensor, "f n d"]:
        """The source's tokens of one layer in a step, as the plan's method leaves them.

        Raises ValueError for a layer that is not there, and for a name that fits several.
        """
        model, source, t = self.model, self.source, self.timesteps[step]
        names = hooks.match(model.unet, layer, modules_of(kind))
        if len(names) != 1:
            raise ValueError(f"layer={layer!r}: expected one layer, it fits {', '.join(names)}")
        every, text = torch.arange(len(source)), model.embed(source.prompt)
        level = source.part(t, every)

        def read(batch: int) -> Tensor:
            parts: list[Tensor] = []
            for frames in every.split(batch):
                whole, some = len(source.timesteps), level.part(t, frames)
                now = Moment(model, self.first + step, whole, frames, 1, self.prepared, ("source",))
                with self.plan.method.during(now):
                    parts += read_tokens(model, some, t, text, names, kind, batch).values()
            return torch.cat(parts)

        return fitting(read, batch)[0]

    def _run(self, passes: StepPasses, attention: Any, step: int, batch: int) -> Tensor:
        """The noise of every frame."""
        row = self.rows[self.first + step]
        return self.plan.propagation.predict(passes, attention, len(self.source), row, batch)

    def _keep(self, passes: StepPasses, left: int) -> bool:
        """Keeps what was read of the source in a step, for edits to come, while there is room.

        left: steps that are yet to be kept, with this one. Returns whether it is kept now.
        """
        writer, cache = passes.keeps, self.source.cache
        if writer is None:
            return False
        kept = writer.finish()  # steps differ: a method injects into some of them alone
        whole = cache.sizes().get(writer.key, 0) + (left - kept) * writer.bytes
        if whole > cache.budget and writer.key not in cache.warned:
            cache.warned.add(writer.key)
            warnings.warn(
                f"keeping what the steps read of the source takes {whole / 2**20:,.1f} MiB and "
                f"the budget is {cache.budget / 2**20:,.1f}: further edits of this video will "
                f"compute the rest again. To keep all of it: source.cache.budget = {whole}",
                stacklevel=2,
            )
        return kept


def _autocast(device: torch.device) -> bool:
    """Whether passes run in another precision than the model's: what they read is kept for none."""
    return torch.is_autocast_enabled(device.type)


def source_key_of(
    model: LatentDiffusion,
    source: Trajectory,
    plan: Plan,
    rows: Sequence[Tensor | None],
    prepared: Any,
) -> str | None:
    """A digest of all that the source's features depend on besides the trajectory's levels.

    None where the propagation carries no tokens, or where something cannot be told: what an
    unknown method does to the source, and how strong adapters are that are not merged.
    """
    way = plan.propagation
    fields = way.fields_key(rows) if isinstance(way, Carrying) else None
    marks = plan.method.marks_source(prepared)
    adapted = any("lora_" in name for name in model.unet.state_dict())
    if fields is None or marks is None or adapted:
        return None
    depth = source.conditions.get("depth")
    clean = digest_spots([source.clean]).hex()  # dataclasses.replace keeps the cache of a source
    read = f"{source.prompt!r} {clean} {None if depth is None else digest(depth)}"
    parts = f"{fields} {marks} {model.fingerprint()} {model.dtype} {read}"
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
