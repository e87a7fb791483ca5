"""The steps that an edit has taken, and where it stands among them.

Memory: latents and predicted noise of each step, those that are forgotten excepted; histories that
come of one another share them.
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mark:
    """One step, which is no other. by: what it was taken with."""

    by: object


@dataclass(frozen=True, eq=False)
class History:
    """What each step began from and predicted; ``position`` counts those taken and not gone back.

    states: the latents before each step, and after the last; noises: predicted in each. None: it
    is forgotten. marks: of each step, by which it is known in other histories, forgotten too.
    Moving makes another history, so whoever is interrupted still has the old one.
    """

    states: tuple[Tensor | None, ...]
    noises: tuple[Tensor | None, ...] = ()
    position: int = 0
    marks: tuple["Mark", ...] = ()

    @property
    def known(self) -> int:
        """How many steps there are: those beyond ``position`` too, which it went back from."""
        return len(self.noises)

    @property
    def least(self) -> int:
        """The first position that is not forgotten."""
        return next(i for i, x in enumerate(self.states) if x is not None)

    @property
    def latents(self) -> Float[Tensor, "f c h w"]:
        """Those at ``position``."""
        return self._kept(self.states[self.position])

    @property
    def before(self) -> Float[Tensor, "f c h w"]:
        """Those that the last step taken began from. ValueError where they are forgotten."""
        return self._kept(self.states[self.position - 1])

    @property
    def noise(self) -> Float[Tensor, "f c h w"]:
        """The noise predicted in the last step taken. ValueError before the first, or forgotten."""
        if not self.position:
            raise ValueError("nothing is predicted before the first step; call step()")
        return self._kept(self.noises[self.position - 1])

    def shared(self, other: "History") -> int:
        """How many steps are the very same in both, forgotten or not."""
        return sum(a is b for a, b in zip(self.marks, other.marks, strict=False))

    def taken(self, latents: Tensor, noise: Tensor, by: object) -> "History":
        """A step on: what it led to, the noise predicted in it, and what it was taken with.

        Others beyond are forgotten.
        """
        here = self.cut()
        states, noises = (*here.states, latents), (*here.noises, noise)
        return History(states, noises, self.position + 1, (*here.marks, Mark(by)))

    def cut(self) -> "History":
        """Without the steps beyond ``position``."""
        return self._until(self.position)

    def only(self, by: object) -> "History":
        """Of the steps beyond ``position``, those that were taken with the same, until another."""
        at = self.position
        while at < self.known and self.marks[at].by is by:
            at += 1
        return self._until(at)

    def _until(self, at: int) -> "History":
        return History(self.states[: at + 1], self.noises[:at], self.position, self.marks[:at])

    def on(self) -> "History":
        """A step on that is known."""
        return replace(self, position=self.position + 1)

    def back(self, count: int) -> "History":
        """So many steps back, to the beginning at the most. ValueError where that is forgotten."""
        position = max(self.position - count, 0)
        if position < self.least:
            raise ValueError(
                f"position {position} is forgotten: expected {self.least} or more, for "
                "run() and forget() free what lies behind; step() keeps it"
            )
        return replace(self, position=position)

    def forgotten(self) -> "History":
        """Without what lies behind the last step."""
        gone = max(self.position - 1, 0)
        states, noises = ((None,) * gone + values[gone:] for values in (self.states, self.noises))
        return replace(self, states=states, noises=noises)

    def _kept(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError(
                f"the step to position {self.position} is forgotten: run() and forget() free what "
                "lies behind; step() keeps it"
            )
        return value
