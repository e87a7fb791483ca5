"""The edit, a step at a time: forward, back, changed from here on, branched.

Memory: latents and predicted noise of every step taken, which is what makes going back free (run()
forgets them as it goes); what was looked at; and what the source's cache may hold, which makes the
next edit of the same video cheaper.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfkit.checkpoints import StepFiles, step_files
from tfkit.comparing import Comparison, differences, distances, meeting
from tfkit.diffusion import LatentDiffusion
from tfkit.edit_state import EditState, begun
from tfkit.inversion import check_fits
from tfkit.keyframes import Indices
from tfkit.methods import Method, PlugAndPlay
from tfkit.metrics import psnr
from tfkit.passes import Plan
from tfkit.planning import plan_steps
from tfkit.progress import Begin, stepping
from tfkit.propagation import Propagation, TokenFlow
from tfkit.sampling import ddim_step
from tfkit.settings import check_whole
from tfkit.trajectory import Trajectory


class EditSession(EditState):
    """An edit that can be stepped through.

    Its settings and errors are those of :func:`tfkit.edit`, which is a session run to its end.
    views: the frames and fields that were looked at, of its branches too; looking again computes
    nothing.
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
        batch = check_whole("batch", batch)
        plan = Plan(prompt, negative_prompt, guidance, method, propagation)
        super().__init__(plan_steps(model, source, plan, keyframes, seed), batch)

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
        latents, noise = latents.to(self.latents), noise.to(self.latents)
        self._past = self._past.taken(latents, noise, by=self._steps)
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
        session stands. If it fails, the session stands there again and has forgotten nothing. Steps
        that were taken with other settings are not reused, as a folder holds one edit with one set
        of settings. Where no step is left the folder is not looked at. Returns
        itself. Raises ValueError for a folder that belongs to another edit, is in use or damaged,
        OSError where it cannot be written; what it holds stays there.
        """
        if folder is None or self.position == len(self.timesteps):
            return self._run(None, progress)
        with step_files(folder, self._steps, self.latents) as files:
            before = self._past
            try:
                self._past = before.only(self._steps)
                return self._run(files, progress)
            except BaseException:
                self._past = before
                raise

    def _run(self, files: StepFiles | None, progress: bool) -> "EditSession":
        steps = len(self.timesteps)
        with self._bar(progress, steps) as begin:
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

    def cut(self) -> "EditSession":
        """Forgets the steps beyond, which it went back from. Returns itself."""
        self._past = self._past.cut()
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
        self._past = self._past.taken(latents, noise, by=self._steps)

    @torch.no_grad()
    def prepare(self, *, progress: bool = False) -> "EditSession":
        """Reads of the source what the steps to come will need, and takes none. Returns itself.

        It lies in ``source.cache`` then, and serves every edit with the same keyframes, whatever
        its prompt. :class:`tfkit.Preparation` reads it while inverting. Raises ValueError where
        nothing can be read of the source alone.
        """
        self.batch = self._steps.read_source(self.batch, start=self.known, progress=progress)
        return self

    # Changing what comes

    def change(
        self, *, keyframes: Indices | None = None, seed: int | None = None, **settings: Any
    ) -> "EditSession":
        """From here on with other settings: prompt, negative_prompt, guidance, method, propagation.

        Steps beyond are forgotten, and taken anew with the keyframes that were drawn last, unless
        others are given, drawn from a seed, or another propagation draws its own. Returns itself.
        Raises ValueError, and changes nothing, for settings that are not there or do not fit, and
        for a seed where no keyframes are drawn.
        """
        known = {*Plan.__dataclass_fields__}
        if settings.keys() - known:
            name, there = min(settings.keys() - known), sorted({"keyframes", "seed", *known})
            raise ValueError(f"{name!r} is no setting; expected some of {', '.join(there)}")
        plan, taken = replace(self.plan, **settings), self.position
        steps = plan_steps(
            self.model, self.source, plan, keyframes, seed, before=self._steps, taken=taken
        )
        if seed is not None and steps.drawn[-1] is None:
            raise ValueError(
                f"seed={seed}: {plan.propagation!r} draws no keyframes; expected a propagation "
                "that does, such as tfkit.TokenFlow()"
            )
        begins_alike = plan.method == self.plan.method  # only a method says where from
        self._past = self._past.cut() if taken or begins_alike else begun(steps)
        self._steps = steps
        return self

    def redraw(self, seed: int) -> "EditSession":
        """Other keyframes from here on, as ``change(seed=...)`` draws them. Returns itself."""
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
