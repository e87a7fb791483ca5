"""Prepared while inverted: what edits will read of a video, out of inversion's own passes.

A source's features at a level come from the UNet's pass over the level at its own timestep. Where
inversion steps by the noise of that very pass (``predictor="extrapolated"``), it is made once for
both.
Memory: what the source's cache may hold, and one batch of activations.
"""

from dataclasses import dataclass

from tfkit.diffusion import LatentDiffusion
from tfkit.keyframes import Indices
from tfkit.methods import Method, PlugAndPlay
from tfkit.passes import Plan
from tfkit.planning import keyframe_rows, plan_steps
from tfkit.propagation import TokenFlow
from tfkit.protocols import Carrying, Propagation
from tfkit.settings import check_whole
from tfkit.source_cache import BUDGET
from tfkit.steps import Steps
from tfkit.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Preparation:
    """The edits a video is prepared for while it is inverted: ``tfkit.invert(..., prepare=...)``.

    method, propagation, keyframes and seed as in :func:`tfkit.edit`; the prompt does not matter.
    Edits that have these find the source's features in ``source.cache`` and pay for none of its
    passes; others read their own at first use. Methods that inject less, as SDEdit and Plain do,
    find what they need in what Plug-and-Play needs. The edit is that of a video not prepared but
    for rounding, as with another batch of :func:`tfkit.edit`. budget: bytes of it that are kept
    (``source.cache.budget``).
    Raises ValueError for a propagation that carries no tokens, and for settings out of range.
    """

    method: Method = PlugAndPlay()
    propagation: Propagation = TokenFlow()
    keyframes: Indices | None = None
    seed: int = 0
    budget: int = BUDGET

    def __post_init__(self) -> None:
        check_whole("budget", self.budget, least=0)
        self._plan("")
        if not isinstance(self.propagation, Carrying):
            raise ValueError(
                f"propagation={self.propagation!r}: there is nothing to prepare for it, since it "
                "carries no tokens; expected tfkit.TokenFlow()"
            )

    def check(self, frames: int, steps: int) -> None:
        """Raises ValueError unless keyframes and seed fit a clip inverted in so many steps."""
        keyframe_rows(self.propagation, self.keyframes, self.seed, frames, steps)

    def reader(self, model: LatentDiffusion, source: Trajectory) -> Steps:
        """The steps of such an edit, which read the source. ValueError where they do not fit it."""
        steps = plan_steps(model, source, self._plan(source.prompt), self.keyframes, self.seed)
        steps.check_preparable()
        source.cache.budget = self.budget
        return steps

    def _plan(self, prompt: str) -> Plan:
        return Plan(prompt, "", 1, self.method, self.propagation)
