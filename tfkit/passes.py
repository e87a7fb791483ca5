"""One denoising step: the UNet passes it is made of, with the source branch and without.

Branches of a batch: [source | negative | prompt], each of all frames of the pass. The source is
there where the method or the propagation reads it, the negative one unless guidance is 1.
Memory: one batch of activations, and the source's features where it goes alone.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tfkit import hooks
from tfkit.attention import Branches, FlowAttention
from tfkit.diffusion import LatentDiffusion
from tfkit.methods import Branch, Method, Moment, injection
from tfkit.protocols import Propagation
from tfkit.settings import check_guidance, settle
from tfkit.source_cache import Features, KeptStep, StepWriter
from tfkit.trajectory import Trajectory


@dataclass(frozen=True)
class Plan:
    """The settings that the steps of an edit are taken with. Raises ValueError for bad ones."""

    prompt: str
    negative_prompt: str
    guidance: float | int
    method: Method
    propagation: Propagation

    def __post_init__(self) -> None:
        settle(self, guidance=check_guidance(self.guidance))
        for name in ("prompt", "negative_prompt"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name}={value!r}: expected a string; for none the empty one, ''")
        for name, kind in (("method", Method), ("propagation", Propagation)):
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, kind):
                raise ValueError(
                    f"{name}={value!r}: expected an object such as tfkit.PlugAndPlay() for the "
                    "method, tfkit.TokenFlow() for the propagation"
                )

    @property
    def reads_source(self) -> bool:
        """Whether the source is one of the branches."""
        return self.method.reads_source or self.propagation.reads_source

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What goes through the UNet in a step, in this order."""
        edited: tuple[Branch, ...] = ("prompt",) if self.guidance == 1 else ("negative", "prompt")
        return ("source", *edited) if self.reads_source else edited


EVERY, SOURCE, EDITED = slice(None), slice(1), slice(1, None)  # of the branches


@dataclass(eq=False)
class StepPasses:
    """The passes of one step, which a propagation makes in the order and over the frames it wants.

    Called, it makes a pass with all branches; :meth:`in_turn` makes the same with one in each, and
    :meth:`read_source` and :meth:`edited` make it in two. prepared: what the method made of the
    video. text: embeddings (branches, l, d). step: counted from the trajectory's first. x: the
    latents (f, c, h, w) before it. known: what earlier edits read of the source in this step, or
    None. keeps: takes what is read now, or None. tick: is told how many frames are done, pass by
    pass.
    """

    model: LatentDiffusion
    source: Trajectory
    plan: Plan
    prepared: Any
    text: Tensor
    step: int
    x: Tensor
    known: KeptStep | None = None
    keeps: StepWriter | None = None
    tick: Callable[[int], object] = lambda done: None

    def __call__(self, frames: Tensor) -> Float[Tensor, "n c h w"]:
        """The guided noise of frames (n,), whose source is in the batch if it is read at all."""
        edited = self.x[frames.to(self.x.device)]
        if not self.plan.reads_source:
            return self._guided(edited, frames, EVERY)
        return self._guided(edited, frames, EVERY, own=self._own(frames))

    def in_turn(self, frames: Tensor, attention: Branches) -> Float[Tensor, "n c h w"]:
        """The same, a branch after the other: what is injected goes from the source's to others."""
        edited, features, out = self.x[frames.to(self.x.device)], None, []
        try:
            for turn, branch in enumerate(self.plan.branches):
                attention.turn = turn
                if branch == "source":
                    features = self._read(frames, self.injected())
                else:
                    out.append(self._predict(edited, frames, slice(turn, turn + 1), features))
        finally:
            attention.turn = None
        self.tick(len(frames))
        return self._mixed(out)

    def read_source(self, frames: Tensor, attention: FlowAttention) -> Features:
        """The source's pass over frames (n,): the fields, and the features the method injects.

        Where an earlier edit has read them, they are taken from what it kept, and no pass is made.
        """
        layers, found = hooks.self_attention(self.model.unet), None
        if self.known is not None:
            with suppress(ValueError, KeyError):  # forgotten since, by another process, or damaged
                found = self.known.of(frames)
        if found is None:
            features = self._read(frames, self._carried())
            fields = {name: attention.fields[layer] for name, layer in layers.items()}
            found = {"frames": frames.cpu()} | features | fields
            if self.keeps is not None:
                self.keeps.add(found)
        attention.fields = {layer: found[name].to(self.x.device) for name, layer in layers.items()}
        return found

    def _read(self, frames: Tensor, names: list[str]) -> dict[str, Tensor]:
        """The source's features by name. The pass ends with the last of them and of attention."""
        unet = self.model.unet
        layers = list(hooks.self_attention(unet))
        recorded = hooks.record(unet, [*names, layers[-1]])
        with recorded as seen, hooks.until(unet, [*names, *layers]):
            self._predict(self._own(frames), frames, SOURCE)
        if not torch.isfinite(seen[layers[-1]]).all():  # a whole pass tells where it overflowed
            self._predict(self._own(frames), frames, SOURCE)
        return {name: seen[name] for name in names}

    def edited(self, frames: Tensor, features: Features) -> Float[Tensor, "n c h w"]:
        """The guided noise of frames by what was read of their source, without its branch."""
        edited = self.x[frames.to(self.x.device)]
        return self._guided(edited, frames, EDITED, features=features)

    @cached_property
    def _at(self) -> Tensor:
        """The source's latents at the timestep of the step."""
        return self.source.at(self.source.timesteps[self.step])

    def _own(self, frames: Tensor) -> Tensor:
        """The source's latents of some frames."""
        return self._at[frames.to(self._at.device)].to(self.x)

    def _guided(
        self,
        edited: Tensor,
        frames: Tensor,
        of: slice,
        own: Tensor | None = None,
        features: Features | None = None,
    ) -> Tensor:
        edits = len(self.plan.branches[of]) - (own is not None)
        latents = torch.cat([*([] if own is None else [own]), *[edited] * edits])
        out = self._predict(latents, frames, of, features).split(len(frames))
        self.tick(len(frames))
        return self._mixed(out)

    def _mixed(self, out: Sequence[Tensor]) -> Tensor:
        """The guided noise, of that of the branches."""
        if self.plan.guidance == 1:
            return out[-1]
        return out[-2] + self.plan.guidance * (out[-1] - out[-2])

    def _predict(
        self,
        latents: Tensor,
        frames: Tensor,
        of: slice,
        features: Features | None = None,
    ) -> Tensor:
        method, now, t = (
            self.plan.method,
            self._moment(frames, of),
            self.source.timesteps[self.step],
        )
        with ExitStack() as scopes:
            scopes.enter_context(injection(method, now, features))
            scopes.enter_context(method.during(now))
            return self.model.predict_noise(
                latents, t, self.text[of].repeat_interleave(len(frames), 0),
                depth=self.source.depth_of(frames, now.branches),
            )  # fmt: skip

    def _moment(self, frames: Tensor, of: slice) -> Moment:
        """The pass as the method is told of it, which counts the steps of the whole trajectory."""
        whole, there = len(self.source.timesteps), self.plan.branches[of]
        return Moment(self.model, self.step, whole, frames, len(there), self.prepared, there)

    def needed(self) -> set[str]:
        """The features that a step reads of its source."""
        return {"frames", *self._carried(), *hooks.self_attention(self.model.unet)}

    def injected(self) -> list[str]:
        """The modules that the method injects into."""
        return self.plan.method.injects(self._moment(torch.arange(0), SOURCE))

    def _carried(self) -> list[str]:
        """Of these, those that count where tokens are carried, and no attention is computed."""
        return [name for name in self.injected() if ".attn1." not in name]


class SourcePasses(StepPasses):
    """The same with the source's branch alone: what an edit reads of it, without any edit."""

    def __call__(self, frames: Tensor) -> Tensor:
        self._predict(self._own(frames), frames, SOURCE)
        return torch.zeros_like(self._own(frames))

    def in_turn(self, frames: Tensor, attention: Branches) -> Tensor:
        return self(frames)  # there is but one

    def edited(self, frames: Tensor, features: Features) -> Tensor:
        return torch.zeros_like(self._own(frames))


class InvertingPasses(SourcePasses):
    """The source's branch alone and to its end: its noise, which inversion steps by, as well."""

    def __call__(self, frames: Tensor) -> Tensor:
        return self._whole(frames)

    def edited(self, frames: Tensor, features: Features) -> Tensor:
        return self._noise

    def _read(self, frames: Tensor, names: list[str]) -> dict[str, Tensor]:
        with hooks.record(self.model.unet, names) as seen:
            self._noise = self._whole(frames)
        return seen

    def _whole(self, frames: Tensor) -> Tensor:
        noise = self._predict(self._own(frames), frames, SOURCE)
        self.tick(len(frames))
        return noise
