"""What an edit costs before it is begun: seconds and bytes, from one pass of each kind.

What a pass takes is measured and counted by live.py, on this machine.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor
from tqdm.auto import tqdm

from tfkit import hooks
from tfkit.attention import FlowAttention, JointAttention, KeyframeAttention, field_dtype
from tfkit.autoencoder import SHARE
from tfkit.control import Controlled, ControlNet
from tfkit.diffusion import LatentDiffusion
from tfkit.keyframes import key_blocks
from tfkit.live import Pass, measured
from tfkit.methods import Method, Moment, Plain, PlugAndPlay
from tfkit.passes import Plan
from tfkit.planning import plan_steps
from tfkit.protocols import LEAST_WINDOW, Carrying, Windowed
from tfkit.trajectory import CLEAN, Trajectory

MEASURED = 2 * 64**2  # latents that are measured together: some frames, or a large one alone
JOINT = JointAttention | KeyframeAttention | FlowAttention


@dataclass(frozen=True)
class Cost:
    """What an edit by ``plan`` of a clip inverted in so many steps is made of.

    keyframes: of a step, None where there are none. unet, encode, decode: a frame's share. branch:
    the same of a pass of the edit, a ControlNet's share with it; beside: bytes of its weights.
    light: of one that tokens are carried to, which computes no self-attention.
    attending: seconds of a frame's attention to another, in all layers and edited branches. kept:
    bytes that a keyframe's tokens take. handed: bytes of a frame's source that are injected into
    the other branches, where these go in turn. read: bytes that are kept of a carried frame's
    source, in all steps. latent: bytes of a frame's latents, picture: of its pixels.
    """

    plan: Plan
    frames: int
    steps: int
    keyframes: int | None
    unet: Pass
    branch: Pass
    light: Pass
    beside: int
    encode: Pass
    decode: Pass
    attending: float
    kept: int
    handed: int
    read: int
    latent: int
    picture: int

    @property
    def branches(self) -> int:
        """Branches of a step: the prompt's, the negative one and the source's."""
        return len(self.plan.branches)

    @property
    def joint(self) -> int:
        """Frames that attend to each other: keyframes, or all where there are none."""
        attention = self.plan.propagation.attention(2, True)
        if self.keyframes is not None:
            return self.keyframes * isinstance(attention, JOINT)
        return self.frames * isinstance(attention, JointAttention)

    @property
    def seen(self) -> int:
        """How many of these each attends to."""
        way = self.plan.propagation
        window = way.window if self.keyframes is not None and isinstance(way, Windowed) else None
        return min(self.joint, window or self.joint)

    @property
    def others(self) -> int:
        """Frames that go in passes of their own: those not joint, or all where all are carried."""
        way = self.plan.propagation
        return self.frames - self.joint * (not isinstance(way, Carrying) or not way.alters_source)

    @property
    def carried(self) -> int:
        """Of these, frames that tokens are carried to: all of them or none."""
        return self.others * isinstance(self.plan.propagation, Carrying)

    def inversion(self, refined: int = 0) -> float:
        """Seconds. refined: how often each step is, by fixed point."""
        return self.frames * (self.encode.seconds + self.steps * (1 + refined) * self.unet.seconds)

    def passes(self, *, prepared: bool = False) -> int:
        """Frames that go through the UNet in a step. prepared: the source was read before."""
        return self.branches * (self.joint + self.others) - prepared * self.carried

    def edit(self, *, prepared: bool = False) -> float:
        """Seconds, decoded. prepared: the source was read before."""
        attending = (self.joint if self.carried else self.frames) * self.seen * self.attending
        light = self.carried * (self.branches - 1)  # all but the source's
        whole = self.passes(prepared=prepared) - light
        step = whole * self.branch.seconds + light * self.light.seconds + attending
        taken = self.steps - self.plan.method.first_step(self.steps)
        return taken * step + self.frames * self.decode.seconds

    @property
    def source(self) -> int:
        """Bytes that keeping all that edits read of the source takes, at the most.

        Beside the values names and numbers: of a step some 4.3 KiB in files, and 50 bytes a frame.
        """
        if not self.carried * self.read:
            return 0
        return self.carried * self.read + self.steps * (5000 + 64 * self.frames)

    def memory(self, batch: int, free: int, *, folder: bool, pictures: bool, budget: int) -> int:
        """Bytes at the peak where so many are free, within which the autoencoder keeps.

        It takes a frame at least: to cut one into tiles costs quality. folder: the trajectory is
        kept in one. pictures: all frames are held, before and after. budget: bytes of what is read
        of the source that are held too.
        """
        together = max(len(block.own) for block in key_blocks(self.joint, self.seen))
        apart = min(batch, self.others) * (self.branches - (self.carried > 0))  # its source before
        joint = together * self.branches * self.branch.bytes
        if together > batch:  # a branch after the other
            joint = together * (self.branch.bytes + self.handed)
        kept = max(self.seen, 1) * self.kept  # of the first frame too, where all attend to it
        passes = max(joint, apart * self.branch.bytes) + kept + self.beside
        levels = (3 if folder else self.steps + 3) * self.frames * self.latent
        held = levels + min(self.source, budget) + pictures * 2 * self.frames * self.picture
        one = max(self.encode.bytes, self.decode.bytes)
        coding = one * min(batch, self.frames, max(int(SHARE * (free - held)) // one, 1))
        return max(passes, coding) + held

    def narrower(self) -> Iterator["Cost"]:
        """The same where each attends to half as many keyframes, a quarter, as far as it can."""
        way, seen = self.plan.propagation, self.seen
        if self.keyframes is None or not isinstance(way, Windowed) or not is_dataclass(way):
            return
        with suppress(ValueError):  # of one that takes no other window
            while seen > LEAST_WINDOW:
                seen = max(seen // 2, LEAST_WINDOW)
                yield replace(self, plan=replace(self.plan, propagation=replace(way, window=seen)))


def cost_of(
    model: LatentDiffusion,
    shape: tuple[int, ...],
    plan: Plan,
    steps: int,
    *,
    progress: bool = False,
) -> Cost:
    """Measures a pass of each kind for frames of ``shape`` (f, 3, h, w)."""
    f, _, height, width = shape
    h, w = model.grid(height, width)
    some = max(min(MEASURED // (h * w), f, 8), 1)
    x = torch.zeros(some, 4, h, w, device=model.device, dtype=model.precision)
    picture = torch.zeros(some, 3, height, width)
    text, t = model.embed(plan.prompt).expand(some, -1, -1), model.timesteps(1)[0]
    depth = x[:, :1] if model.takes_depth else None

    def noise() -> Tensor:
        return model.predict_noise(x, t, text, depth=depth)

    def step() -> Tensor:
        with plan.method.during(
            Moment(model, 0, steps, torch.arange(some), 1, control, ("prompt",))
        ):
            return noise()

    def lightly() -> Tensor:
        with hooks.processor(model.unet, lambda attn, tokens, *_, **__: tokens):
            return step()

    control = _control(model, x, plan.method)
    layers = hooks.self_attention(model.unet)
    needs, handed = _source_needs(model, x[:1].expand(f, -1, -1, -1), plan, steps)
    with hooks.record(model.unet, [*{*layers, *handed}.union(*needs)]) as seen_by:
        noise()
    tokens = {name: seen_by[name] for name in layers}
    rows, attention = plan.propagation.draw(f, 1, 0), plan.propagation.attention(2, True)
    works: dict[Any, tuple[Callable[[], object], int]] = {
        "unet": (noise, some),
        "encode": (lambda: model.encode(picture), some),
        "decode": (lambda: model.decode(x), some),
    }
    if type(plan.method).during is not Plain.during:
        works["branch"] = step, some
    if isinstance(plan.propagation, Carrying):
        works["light"] = lightly, some
    alike = {name: (layers[name].heads, y.shape[1:]) for name, y in tokens.items()}
    works |= {alike[name]: (_attending(layers[name], y), 4) for name, y in tokens.items()}
    each = tqdm(works.items(), desc="measure", disable=not progress)
    cost = {of: measured(work, frames) for of, (work, frames) in each}
    edited, size = 1 + (plan.guidance != 1), torch.finfo(model.dtype).bits // 8
    # of a keyframe keys and values of each edited branch; where tokens are carried, the output of
    # each as well, and output and tokens of the source
    whole = {KeyframeAttention: 2 * edited, FlowAttention: 3 * edited + 2}.get(type(attention), 0)
    return Cost(
        plan, frames=f, steps=steps, keyframes=None if rows is None else rows.shape[1],
        unet=cost["unet"], branch=cost.get("branch", cost["unet"]),
        light=cost.get("light", cost["unet"]),
        beside=0 if control is None else sum(x.nbytes for x in control.net.parameters()),
        encode=cost["encode"], decode=cost["decode"],
        attending=edited * sum(cost[of].seconds for of in alike.values()),
        kept=sum(x[0].numel() for x in tokens.values()) * size * whole,
        handed=sum(seen_by[name][0].nbytes for name in handed),
        read=sum(_kept(seen_by[name], name in layers) for step in needs for name in step),
        latent=x[0].numel() * x.element_size(), picture=picture[0].numel() * 4,
    )  # fmt: skip


def _source_needs(
    model: LatentDiffusion, x: Tensor, plan: Plan, steps: int
) -> tuple[list[set[str]], list[str]]:
    """The modules of which an edit of latents ``x`` keeps what it reads, in each step it takes, and
    those that the first step injects into.

    Both empty where a method of one's own looks at the video first, which is not here.
    """
    count = steps - plan.method.first_step(steps)
    if isinstance(plan.method, ControlNet):  # it injects nothing, and takes long to prepare
        plan = replace(plan, method=Plain())
    if type(plan.method).prepare not in (Plain.prepare, PlugAndPlay.prepare):
        return [], []
    timesteps = model.timesteps(steps)
    conditions = {"depth": x[:, :1]} if model.takes_depth else {}
    still = Trajectory(timesteps, "", None, dict.fromkeys((CLEAN, *timesteps), x), conditions)
    taken = plan_steps(model, still, plan, None, 0)
    each = [taken.passes(i, x[:0]) for i in range(len(taken.timesteps))][-count:] if count else []
    handed = each[0].injected() if each else []
    if taken.source_key is None:
        return [], handed
    return [step.needed() - {"frames"} for step in each], handed


def _control(model: LatentDiffusion, x: Tensor, method: Method) -> Controlled | None:
    """The ControlNet of a method that is one, with a blank condition for latents ``x``."""
    if not isinstance(method, ControlNet):
        return None
    blank = replace(method, condition=torch.zeros(1, 3, 8, 8))
    return method.bind(model, blank.see(model, x))


def _kept(output: Tensor, carries: bool) -> int:
    """Bytes that are kept of a frame of a module's output: fields where it carries tokens."""
    one = output[0]
    return 2 * len(one) * field_dtype(len(one)).itemsize if carries else one.nbytes


def _attending(layer: Attention, tokens: Tensor) -> Callable[[], Tensor]:
    """The attention of one frame in a layer to four frames' tokens (4, n, d)."""
    n, d = tokens.shape[1:]
    shape = 1, layer.heads, n, d // layer.heads

    def attend() -> Tensor:
        q = tokens.new_zeros(shape)
        k = q.repeat(1, 1, 4, 1)
        return F.scaled_dot_product_attention(q, k, k)

    return attend
