"""The edit, a step at a time: forward, back, changed from here on, branched.

Memory: latents and predicted noise of every step taken, which is what makes going back free (run()
forgets them as it goes); and what the source's cache may hold, which makes the next edit of the
same video cheaper.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tfkit.checkpoints import step_files
from tfkit.correspondence import Field, nearest_neighbors
from tfkit.diffusion import LatentDiffusion
from tfkit.inversion import check_fits
from tfkit.keyframes import Indices, check_keyframes
from tfkit.methods import Method, PlugAndPlay
from tfkit.passes import Plan, StepPasses
from tfkit.progress import Begin, stepping
from tfkit.propagation import Carrying, Propagation, TokenFlow
from tfkit.sampling import ddim_step
from tfkit.settings import check_whole
from tfkit.steps import Steps, source_key_of
from tfkit.trajectory import Trajectory


class EditSession:
    """An edit that can be stepped through.

    Its settings are those of :func:`tfkit.edit`, which is a session run to its end. ``position`` is
    the number of steps taken; ``latents`` belong to it.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        source: Trajectory,
        prompt: str,
        *,
        negative_prompt: str = "",
        guidance: float | int = 7.5,
        method: Method = PlugAndPlay(),
        propagation: Propagation = TokenFlow(),
        keyframes: Indices | None = None,
        seed: int = 0,
        batch: int = 8,
    ) -> None:
        check_fits(model, source)
        check_whole("batch", batch)
        self.model, self.source, self.batch = model, source, batch
        # None: forgotten
        self._latents: list[Tensor | None] = []  # before each step taken, and after the last
        self._noise: list[Tensor | None] = []  # predicted in each step taken
        self._rows: list[Tensor | None] = []  # keyframes at each of the source's timesteps
        self._steps: Steps
        self.position = 0
        self._use(Plan(prompt, negative_prompt, guidance, method, propagation), keyframes, seed)

    def _use(self, plan: Plan, keyframes: Indices | None, seed: int) -> None:
        """Takes up a plan from the present position on; nothing changes where it does not fit."""
        check_whole("seed", seed, least=0)
        frames, steps = len(self.source), len(self.source.timesteps)
        if keyframes is None:
            rows = plan.propagation.draw(frames, steps, seed)
        else:
            rows = check_keyframes(keyframes, frames, steps)
            plan.propagation.check(rows, frames)
        prepared = plan.method.prepare(self.model, self.source)
        text = [self.model.embed(text) for text in _texts(plan, self.source)]
        first = self._steps.first if self.position else plan.method.first_step(steps)
        if not self.position:
            timesteps = self.source.timesteps[first:]
            begun = plan.method.begin(self.model, self.source, timesteps[0] if timesteps else None)
            self._latents = [begun.to(self.model.device, self.model.precision)]
        drawn, taken = [None] * steps if rows is None else list(rows), first + self.position
        self._rows = self._rows[:taken] + drawn[len(self._rows[:taken]) :]
        self._steps = Steps(
            self.model, self.source, plan, prepared, torch.cat(text), first, self._rows,
            source_key_of(self.model, plan, rows, prepared),
        )  # fmt: skip
        self._latents = self._latents[: self.position + 1]
        self._noise = self._noise[: self.position]

    # Where it stands

    def __repr__(self) -> str:
        plan, taken = self.plan, f"{self.position} of {len(self.timesteps)} steps taken"
        return (
            f"EditSession({taken}, prompt {plan.prompt!r}, {plan.method!r}, {plan.propagation!r})"
        )

    @property
    def noise(self) -> Float[Tensor, "f c h w"]:
        """The noise predicted in the last step taken. ValueError before the first."""
        if not self.position:
            raise ValueError("nothing is predicted before the first step; call step()")
        return _kept(self._noise, self.position - 1)

    @property
    def plan(self) -> Plan:
        """What the steps to come are taken with."""
        return self._steps.plan

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timestep of each step of the edit, descending."""
        return self._steps.timesteps

    @property
    def known(self) -> int:
        """How many steps it holds: those beyond ``position`` too, which it went back from."""
        return len(self._noise)

    @property
    def latents(self) -> Float[Tensor, "f c h w"]:
        """Those of every frame after the last step taken, or those it began from."""
        return _kept(self._latents, self.position)

    @property
    def keyframes(self) -> list[Int[Tensor, " k"] | None]:
        """The keyframes at each of the source's timesteps; None where the propagation has none."""
        return list(self._rows)

    @property
    def last(self) -> int:
        """The step that ``fields`` and ``weights`` show: the last one taken, else the first."""
        return max(self.position - 1, 0)

    @torch.no_grad()
    def frames(self) -> Float[Tensor, "f 3 H W"]:
        """The latents as they are, decoded."""
        return self.model.decode(self.latents, size=self.source.size, batch=self.batch)

    def stream(self, *, progress: bool = False) -> Iterator[Float[Tensor, "n 3 H W"]]:
        """The same in chunks of ``batch`` frames, decoded as they are taken: for long videos."""
        chunks = self.latents.split(self.batch)
        for chunk in tqdm(chunks, desc="decode", disable=not progress):
            yield self.model.decode(chunk, size=self.source.size, batch=self.batch)

    @torch.no_grad()
    def predicted(self) -> Float[Tensor, "f 3 H W"]:
        """The clean frames that the last step taken headed for. ValueError before the first."""
        noise, step = self.noise, self.position - 1
        alpha = self.model.alpha(self.timesteps[step])
        clean = (_kept(self._latents, step) - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        return self.model.decode(clean, size=self.source.size, batch=self.batch)

    def fields(self, layer: str) -> Field:
        """The source's fields (f, k, n) from every frame to each of the step's keyframes.

        Raises ValueError for a layer that is not there, without keyframes, and without any step.
        """
        propagation, row = self._carrying("fields")
        phi = self._steps.source_tokens(self.last, layer, propagation.field_of, self.batch)
        query = phi[:, None].expand(-1, len(row), -1, -1)
        return nearest_neighbors(query, phi[row][None].expand_as(query))

    def weights(self) -> Float[Tensor, "f k"]:
        """How much each frame takes from each keyframe of the step; rows add up to 1."""
        propagation, row = self._carrying("weights")
        count = len(self.source)
        return propagation.neighbors(torch.arange(count), row, count).shares(len(row))

    def _carrying(self, what: str) -> tuple[Carrying, Tensor]:
        """The propagation and its keyframes of the step, where it carries tokens."""
        if not self.timesteps:
            raise ValueError(f"no {what}: {self.plan.method!r} takes no step at all")
        propagation = self.plan.propagation
        row = self._rows[self._steps.first + self.last]
        if row is None or not isinstance(propagation, Carrying):
            raise ValueError(f"no {what}: {propagation!r} carries no tokens; use tfkit.TokenFlow()")
        return propagation, row

    # Moving

    @torch.no_grad()
    def step(self, count: int = 1, *, progress: bool = False) -> "EditSession":
        """Takes ``count`` steps, fewer at the end; those taken before cost nothing. Returns itself.

        Raises NonFiniteError where the model overflows; the session stays at the step before.
        """
        check_whole("count", count, least=0)
        end = min(self.position + count, len(self.timesteps))
        with self._bar(progress, end) as begin:
            while self.position < end:
                tick = begin(self.position)
                if self.position == self.known:
                    self._take(tick)
                self.position += 1
            begin(end)
        return self

    def _bar(self, show: bool, end: int) -> AbstractContextManager[Begin]:
        return stepping("edit", end, self.position, len(self.source), show=show)

    def restore(self, latents: Tensor, noise: Tensor) -> "EditSession":
        """Takes the next step as it was taken before: what it led to, and the noise predicted in
        it, both (f, c, h, w). Steps beyond are forgotten. Returns itself.

        Raises ValueError for other shapes, values that are not finite, and at the end.
        """
        if self.position == len(self.timesteps):
            raise ValueError(f"all {self.position} steps are taken; expected to restore one before")
        for name, values in (("latents", latents), ("noise", noise)):
            if values.shape != self.latents.shape or not torch.isfinite(values).all():
                raise ValueError(
                    f"{name} of shape {tuple(values.shape)}: expected {tuple(self.latents.shape)}, "
                    "all finite"
                )
        there = self.position + 1
        self._noise = [*self._noise[: self.position], noise.to(self.latents)]
        self._latents = [*self._latents[:there], latents.to(self.latents)]
        self.position = there
        return self

    def back(self, count: int = 1) -> "EditSession":
        """Goes back, to the beginning at the most. Returns itself. ValueError where it forgot."""
        check_whole("count", count, least=0)
        position = max(self.position - count, 0)
        if self._latents[position] is None:
            least = next(i for i, x in enumerate(self._latents) if x is not None)
            raise ValueError(
                f"position {position} is forgotten: expected {least} or more, for "
                "run() and forget() free what lies behind; step() keeps it"
            )
        self.position = position
        return self

    def goto(self, position: int, *, progress: bool = False) -> "EditSession":
        """Goes to where ``position`` steps are taken, forward or back. Returns itself."""
        check_whole("position", position, least=0)
        if position > len(self.timesteps):
            raise ValueError(f"position={position}: expected 0 to {len(self.timesteps)} steps")
        if position < self.position:
            return self.back(self.position - position)
        return self.step(position - self.position, progress=progress)

    @torch.no_grad()
    def run(self, *, folder: str | Path | None = None, progress: bool = True) -> "EditSession":
        """Takes all steps that are left and forgets those behind, so that memory does not grow.

        folder: where each step is kept; a run that was killed goes on there, from where this
        session stands. Returns itself. Raises ValueError for a folder that belongs to another edit,
        is in use or damaged, OSError where it cannot be written; what it holds stays there.
        """
        with ExitStack() as held:
            steps, files = len(self.timesteps), None
            if folder is not None:
                files = held.enter_context(step_files(folder, self._steps, self.latents))
            begin = held.enter_context(self._bar(progress, steps))
            while self.position < steps:
                tick, kept = begin(self.position), files and files.get(self.position + 1)
                if kept:
                    self.restore(**kept)
                else:
                    if self.position == self.known:
                        self._take(tick)
                    self.position += 1
                    if files:
                        files.put(self.position, self.latents, self.noise)
                self.forget()
            begin(steps)
        return self

    def forget(self) -> "EditSession":
        """Frees what lies behind the last step, so that it cannot go back there. Returns itself."""
        kept = max(self.position - 1, 0)
        self._latents[:kept] = [None] * kept
        self._noise[:kept] = [None] * kept
        return self

    def _take(self, tick: Callable[[int], object]) -> None:
        """Computes the step from the present position; all of it or nothing is kept."""
        model, step = self.model, self.position
        t, x = self.timesteps[step], self.latents
        noise, self.batch = self._steps.predict(step, x, self.batch, tick)
        after = self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None
        latents = ddim_step(x, noise, model.alpha(t), model.alpha(after))
        self._noise, self._latents = [*self._noise, noise], [*self._latents, latents]

    @torch.no_grad()
    def prepare(self, *, progress: bool = False) -> "EditSession":
        """Reads of the source what the steps to come will need, and takes none. Returns itself.

        It lies in ``source.cache`` then, and serves every edit with the same keyframes, whatever
        its prompt. Raises ValueError where nothing can be read of the source alone.
        """
        self.batch = self._steps.read_source(
            self.position, self.latents, self.batch, progress=progress
        )
        return self

    def passes(self) -> StepPasses:
        """The passes of the next step, and what is known of its source."""
        return self._steps.passes(self.position, self.latents)

    # Changing what comes

    def change(
        self, *, keyframes: Indices | None = None, seed: int = 0, **settings: Any
    ) -> "EditSession":
        """From here on with other settings: prompt, negative_prompt, guidance, method, propagation.

        Steps beyond are forgotten; keyframes are drawn anew or given. Returns itself. Raises
        ValueError, and changes nothing, for settings that are not there or do not fit.
        """
        known = {*Plan.__dataclass_fields__}
        if settings.keys() - known:
            name = min(settings.keys() - known)
            raise ValueError(f"{name!r} is no setting; expected some of {', '.join(sorted(known))}")
        self._use(replace(self.plan, **settings), keyframes, seed)
        return self

    def redraw(self, seed: int) -> "EditSession":
        """Other keyframes from here on. Returns itself."""
        return self.change(seed=seed)

    def branch(self) -> "EditSession":
        """Another session that stands where this one does; what is behind both is shared."""
        twin = object.__new__(EditSession)
        twin.__dict__.update(self.__dict__)
        twin._latents, twin._noise, twin._rows = map(list, (self._latents, self._noise, self._rows))
        return twin


def _kept(values: list[Tensor | None], at: int) -> Tensor:
    """What is there at the session's own step: only what lies behind it is ever forgotten."""
    value = values[at]
    assert value is not None
    return value


def _texts(plan: Plan, source: Trajectory) -> list[str]:
    texts = [source.prompt] * plan.reads_source + [plan.negative_prompt] * (plan.guidance != 1)
    return [*texts, plan.prompt]
