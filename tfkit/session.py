"""The edit, a step at a time: forward, back, changed from here on, branched.

Memory: latents and predicted noise of every step taken, which is what makes going back free (run()
forgets them as it goes); what was looked at, within the budget of ``views``; and what the source's
cache may hold, which makes the next edit of the same video cheaper.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tfkit import carried
from tfkit.checkpoints import step_files
from tfkit.comparing import Comparison, differences, distances, meeting
from tfkit.correspondence import Field
from tfkit.diffusion import LatentDiffusion
from tfkit.history import History
from tfkit.inversion import check_fits
from tfkit.keyframes import Indices
from tfkit.methods import Method, PlugAndPlay
from tfkit.metrics import psnr
from tfkit.passes import Plan, StepPasses
from tfkit.planning import plan_steps
from tfkit.progress import Begin, stepping
from tfkit.propagation import Propagation, TokenFlow
from tfkit.sampling import ddim_step, without_noise
from tfkit.settings import check_whole
from tfkit.steps import Steps
from tfkit.trajectory import Trajectory
from tfkit.views import Views, same


class EditSession:
    """An edit that can be stepped through.

    Its settings are those of :func:`tfkit.edit`, which is a session run to its end. views: the
    frames and fields that were looked at, of its branches too; looking again computes nothing.
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
        self.model, self.source, self.batch, self.views = model, source, batch, Views()
        plan = Plan(prompt, negative_prompt, guidance, method, propagation)
        self._steps = plan_steps(model, source, plan, keyframes, seed)
        self._past = _begun(self._steps)

    # Where it stands

    def __repr__(self) -> str:
        plan, taken = self.plan, f"{self.position} of {len(self.timesteps)} steps taken"
        return (
            f"EditSession({taken}, prompt {plan.prompt!r}, {plan.method!r}, {plan.propagation!r})"
        )

    @property
    def position(self) -> int:
        """How many steps are taken."""
        return self._past.position

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
        return self._past.known

    @property
    def latents(self) -> Float[Tensor, "f c h w"]:
        """Those of every frame after the last step taken, or those it began from."""
        return self._past.latents

    @property
    def noise(self) -> Float[Tensor, "f c h w"]:
        """The noise predicted in the last step taken. ValueError before the first."""
        return self._past.noise

    @property
    def keyframes(self) -> list[Int[Tensor, " k"] | None]:
        """The keyframes at each of the source's timesteps; None where the propagation has none."""
        return list(self._steps.rows)

    @property
    def last(self) -> int:
        """The step that ``fields`` and ``weights`` show: the last one taken, else the first."""
        return max(self.position - 1, 0)

    @torch.no_grad()
    def frames(self) -> Float[Tensor, "f 3 H W"]:
        """The latents as they are, decoded."""
        x = self.latents
        return self._decoded(("frames", same(x)), lambda: x)

    def stream(self, *, progress: bool = False) -> Iterator[Float[Tensor, "n 3 H W"]]:
        """The same in chunks of ``batch`` frames, decoded as they are taken: for long videos."""
        chunks = self.latents.split(self.batch)
        for chunk in tqdm(chunks, desc="decode", disable=not progress):
            yield self.model.decode(chunk, size=self.source.size, batch=self.batch)

    @torch.no_grad()
    def predicted(self) -> Float[Tensor, "f 3 H W"]:
        """The clean frames that the last step taken headed for. ValueError before the first."""
        noise, before, t = self.noise, self._past.before, self.timesteps[self.last]
        key = ("predicted", same(before), same(noise), t)
        return self._decoded(key, lambda: without_noise(before, noise, self.model.alpha(t)))

    def _decoded(self, key: Hashable, latents: Callable[[], Tensor]) -> Tensor:
        def look() -> tuple[Tensor]:
            return (self.model.decode(latents(), size=self.source.size, batch=self.batch),)

        return self.views.get(self.latents, key, look)[0]

    def fields(self, layer: str) -> Field:
        """The source's fields (f, k, n) from every frame to each of the step's keyframes.

        Raises ValueError for a layer that is not there, without keyframes, and without any step.
        """
        steps, step = self._steps, self.last

        def look() -> tuple[Tensor, Tensor]:
            field = carried.fields(steps, step, layer, self.batch)
            return field.index, field.similarity

        key = carried.fields_key(steps, step, layer)
        return Field(*self.views.get(self.latents, key, look))

    def weights(self) -> Float[Tensor, "f k"]:
        """How much each frame takes from each keyframe of the step; rows add up to 1."""
        return carried.weights(self._steps, self.last)

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
                self._take(begin(self.position))
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
        self._past = self._past.taken(latents.to(self.latents), noise.to(self.latents))
        return self

    def back(self, count: int = 1) -> "EditSession":
        """Goes back, to the beginning at the most. Returns itself. ValueError where it forgot."""
        check_whole("count", count, least=0)
        self._past = self._past.back(count)
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
                    self._take(tick)
                    if files:
                        files.put(self.position, self.latents, self.noise)
                self.forget()
            begin(steps)
        return self

    def forget(self) -> "EditSession":
        """Frees what lies behind the last step, so that it cannot go back there. Returns itself."""
        self._past = self._past.forgotten()
        return self

    def _take(self, tick: Callable[[int], object]) -> None:
        """The step from the present position, computed unless it is known; all of it or nothing."""
        if self.position < self.known:
            self._past = self._past.on()
            return
        model, step = self.model, self.position
        t, x = self.timesteps[step], self.latents
        noise, self.batch = self._steps.predict(step, x, self.batch, tick)
        after = self.timesteps[step + 1] if step + 1 < len(self.timesteps) else None
        latents = ddim_step(x, noise, model.alpha(t), model.alpha(after))
        self._past = self._past.taken(latents, noise)

    @torch.no_grad()
    def prepare(self, *, progress: bool = False) -> "EditSession":
        """Reads of the source what the steps to come will need, and takes none. Returns itself.

        It lies in ``source.cache`` then, and serves every edit with the same keyframes, whatever
        its prompt. :class:`tfkit.Preparation` reads it while inverting. Raises ValueError where
        nothing can be read of the source alone.
        """
        self.batch = self._steps.read_source(self.batch, start=self.known, progress=progress)
        return self

    def passes(self) -> StepPasses:
        """The passes of the next step, and what is known of its source."""
        return self._steps.passes(self.position, self.latents)

    # Changing what comes

    def change(
        self, *, keyframes: Indices | None = None, seed: int | None = None, **settings: Any
    ) -> "EditSession":
        """From here on with other settings: prompt, negative_prompt, guidance, method, propagation.

        Steps beyond are forgotten. Keyframes stay unless they are given, drawn anew from a seed,
        or another propagation draws its own. Returns itself. Raises ValueError, and changes
        nothing, for settings that are not there or do not fit.
        """
        known = {*Plan.__dataclass_fields__}
        if settings.keys() - known:
            name = min(settings.keys() - known)
            raise ValueError(f"{name!r} is no setting; expected some of {', '.join(sorted(known))}")
        plan, taken = replace(self.plan, **settings), self.position
        steps = plan_steps(
            self.model, self.source, plan, keyframes, seed, before=self._steps, taken=taken
        )
        self._past = self._past.cut() if taken else _begun(steps)
        self._steps = steps
        return self

    def redraw(self, seed: int) -> "EditSession":
        """Other keyframes from here on. Returns itself."""
        return self.change(seed=seed)

    def branch(self) -> "EditSession":
        """Another session that stands where this one does; what is behind both is shared."""
        return copy(self)

    def compare(self, other: "EditSession", *, position: int | None = None) -> Comparison:
        """How this session and another of the same source differ; neither moves, no UNet runs.

        position: at which their frames, all decoded, are compared; by default where the one that
        is behind stands. Raises ValueError for another source, and for a position that one of them
        has not been at or has forgotten.
        """
        if other.source is not self.source:
            raise ValueError(
                f"a session of another source, {other.source!r}, beside one of {self.source!r}: "
                "expected two of the same Trajectory object"
            )
        if position is not None:
            check_whole("position", position, least=0)
        ahead = self._steps.first - other._steps.first
        at = meeting(self._past, other._past, ahead, position)
        mine, theirs = self.branch().goto(at), other.branch().goto(at + ahead)
        return Comparison(
            settings=differences(self._steps, other._steps),
            shared=self._past.shared(other._past),
            apart=distances(self._past, other._past, ahead),
            position=at,
            psnr=psnr(mine.frames(), theirs.frames().to(self.latents.device), per_frame=True),
        )


def _begun(steps: Steps) -> History:
    """What there is before the first of these steps."""
    t = steps.timesteps[0] if steps.timesteps else None
    latents = steps.plan.method.begin(steps.model, steps.source, t)
    return History((latents.to(steps.model.device, steps.model.precision),))
