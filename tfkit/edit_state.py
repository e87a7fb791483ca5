"""An edit where it stands: what there is to see at a step, without taking one.

Memory: what was looked at, within the budget of ``views``.
"""

from collections.abc import Callable, Hashable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tfkit import carried
from tfkit.correspondence import Field
from tfkit.history import History
from tfkit.passes import Plan, StepPasses
from tfkit.sampling import without_noise
from tfkit.steps import Steps
from tfkit.views import Views, same


def begun(steps: Steps) -> History:
    """What there is before the first of these steps."""
    t, method = steps.timesteps[0] if steps.timesteps else None, steps.plan.method
    latents = method.begin(steps.model, steps.source, t)
    if latents.shape != steps.source.shape:
        raise ValueError(
            f"{method!r} begins from latents {tuple(latents.shape)}; expected "
            f"{tuple(steps.source.shape)}, the source's"
        )
    return History((latents.to(steps.model.device, steps.model.precision),))


class EditState:
    """What an edit shows at the step it stands at; :class:`tfkit.EditSession` moves it."""

    def __init__(self, steps: Steps, batch: int) -> None:
        self.model, self.source, self.batch, self.views = steps.model, steps.source, batch, Views()
        self._steps, self._past = steps, begun(steps)

    def __repr__(self) -> str:
        plan, taken = self.plan, f"{self.position} of {len(self.timesteps)} steps taken"
        return (
            f"{type(self).__name__}({taken}, prompt {plan.prompt!r}, {plan.method!r}, "
            f"{plan.propagation!r})"
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
    def least(self) -> int:
        """The first position that it can go back to: 0 unless it forgot what lies behind."""
        return self._past.least

    @property
    def latents(self) -> Float[Tensor, "f c h w"]:
        """Those of every frame after the last step taken, or those it began from.

        Its own, which branches share: clone them before you write into them.
        """
        return self._past.latents

    @property
    def noise(self) -> Float[Tensor, "f c h w"]:
        """The noise predicted in the last step taken, as own as ``latents``.

        Raises ValueError before the first.
        """
        return self._past.noise

    @property
    def keyframes(self) -> list[Int[Tensor, " k"] | None]:
        """The keyframes at each of the source's timesteps; None where the propagation has none."""
        return [None if row is None else row.clone() for row in self._steps.rows]

    @property
    def last(self) -> int:
        """The step that ``fields`` and ``weights`` show: the last one taken, else the first."""
        return max(self.position - 1, 0)

    @property
    def shown(self) -> Plan:
        """What that step was taken with, or will be."""
        return self._shown.plan

    @property
    def _shown(self) -> Steps:
        """Those that the last step was one of: not the present ones, where settings changed."""
        steps = self._past.marks[self.last].by if self._past.marks else self._steps
        assert isinstance(steps, Steps)
        return steps

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
        steps, step = self._shown, self.last

        def look() -> tuple[Tensor, Tensor]:
            field = carried.fields(steps, step, layer, self.batch)
            return field.index, field.similarity

        key = carried.fields_key(steps, step, layer)
        return Field(*self.views.get(self.latents, key, look))

    def weights(self) -> Float[Tensor, "f k"]:
        """How much each frame takes from each keyframe of the step; rows add up to 1."""
        return carried.weights(self._shown, self.last)

    def passes(self) -> StepPasses:
        """The passes of the next step, and what is known of its source."""
        return self._steps.passes(self.position, self.latents)
