"""The only file that touches a model's modules. Everything here is undone on the way out.

Each function returns a context manager that leaves the model as it found it, bit for bit,
whichever way the block is left: return, exception or KeyboardInterrupt. Nothing is copied; what is
recorded lives as long as the caller keeps it.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, Generic, TypeVar

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

T = TypeVar("T")


def self_attention(unet: nn.Module) -> dict[str, Attention]:
    """The self-attention modules (attn1) of a UNet by name, in the order data meets them."""
    found = [(n, m) for n, m in unet.named_modules() if n.endswith("attn1")]
    return dict(sorted(found, key=lambda pair: _place(pair[0])))


def _place(name: str) -> int:
    """Where data meets a module: the encoder, the middle, the decoder."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return order.get(name.split(".")[0], 3)


_SWITCHES = (  # the first one's type, and what peft's layers and FreeU's upsampling blocks have
    (dict, ("scaling", "active_adapters", "merged_adapters", "disable_adapters")),
    (float | int, ("s1", "s2", "b1", "b2")),
)


def switches(model: nn.Module) -> list[str]:
    """What is set on a model's modules besides its weights: strengths of adapters, and FreeU's."""
    return [
        " ".join([name, *(str(getattr(module, part, "")) for part in parts)])
        for name, module in model.named_modules()
        for kind, parts in _SWITCHES
        if isinstance(getattr(module, parts[0], None), kind)
    ]


_GROUPS = {"attn1": "self-attention", "attn2": "cross-attention", "resnets": "residual block"}


def modules(unet: nn.Module, group: str) -> list[str]:
    """Names of all "attn1", "attn2" or "resnets" of a UNet, in the order data meets them."""
    if group == "attn1":
        return list(self_attention(unet))
    pattern = re.compile(r".*\.resnets\.\d+" if group == "resnets" else r".*\.attn2")
    return sorted((n for n, _ in unet.named_modules() if pattern.fullmatch(n)), key=_place)


def match(unet: nn.Module, patterns: str | Iterable[str], group: str = "attn1") -> list[str]:
    """Names of modules of a group that fit names, their beginnings or wildcards ("up_blocks.2.*").

    A beginning ends where a part of the name does: "up_blocks.2.attentions.1" is all that is in it.

    Raises ValueError for a pattern that fits nothing, with the names there are.
    """
    names = modules(unet, group)
    if not isinstance(patterns, Iterable):
        raise ValueError(f"layers={patterns!r}: expected a name, a wildcard or a list of them")
    chosen: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fits = [
            n
            for n in names
            if f"{n}.".startswith(f"{pattern}.") or fnmatch.fnmatchcase(n, str(pattern))
        ]
        if not fits:
            raise ValueError(
                f"layer {pattern!r} fits no {_GROUPS[group]} of this model; expected a name or "
                f"wildcard among: {', '.join(names)}"
            )
        chosen += [n for n in fits if n not in chosen]
    if not chosen:
        raise ValueError(f"layers={patterns!r}: expected at least one of: {', '.join(names)}")
    return chosen


class _Scope(AbstractContextManager[T], Generic[T]):
    """Does something to a model on the way in and undoes it on the way out.

    A class, not a generator: Ctrl-C between a generator's ``yield`` and the block it guards would
    leave its ``finally`` to the garbage collector. ``undo`` must bear being called twice, and after
    half of ``do``. ends_by: an exception that ends the block and goes no further.
    """

    def __init__(
        self,
        do: Callable[[], None],
        undo: Callable[[], None],
        value: T,
        ends_by: type[BaseException] | None = None,
    ):
        self.do, self.undo, self.value, self.ends_by = do, undo, value, ends_by

    def __enter__(self) -> T:
        try:
            self.do()
        except BaseException:
            self.undo()
            raise
        return self.value

    def __exit__(self, kind: type[BaseException] | None = None, *error: object) -> bool | None:
        try:
            self.undo()
        except BaseException:
            self.undo()
            raise
        return kind is not None and kind is self.ends_by


def processor(unet: nn.Module, new: Callable) -> AbstractContextManager[None]:
    """Lets ``new`` compute every self-attention: ``new(attn, hidden_states, ...)``."""
    before = [(module, module.processor) for module in self_attention(unet).values()]

    def do() -> None:
        for module, _ in before:
            module.set_processor(new)

    def undo() -> None:
        for module, old in before:
            module.set_processor(old)

    return _Scope(do, undo, None)


def _forward_hooks(
    pairs: Iterable[tuple[nn.Module, Callable]],
    value: T,
    ends_by: type[BaseException] | None = None,
) -> _Scope[T]:
    """Hooks for the time of a block. They are found again by themselves, not by the handle that
    registering returns: an interrupt just there would lose it."""
    pairs = list(pairs)

    def do() -> None:
        for module, hook in pairs:
            module.register_forward_hook(hook)

    def undo() -> None:
        for module, hook in pairs:
            for key in [k for k, own in module._forward_hooks.items() if own is hook]:
                module._forward_hooks.pop(key, None)

    return _Scope(do, undo, value, ends_by)


def record(
    unet: nn.Module, names: Iterable[str], *, inputs: bool = False
) -> AbstractContextManager[dict[str, Tensor]]:
    """Collects the outputs (or first inputs) of the modules named, as passes go through them.

    Copies, for what comes after a module may write into them, as FreeU does.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            seen[name] = (args[0] if inputs else output).clone()

        return hook

    return _forward_hooks([(_module(unet, name), keep(name)) for name in names], seen)


class _Seen(Exception):
    """Ends a pass from inside; it never leaves the scope that asked for it."""


def until(unet: nn.Module, names: Iterable[str]) -> AbstractContextManager[None]:
    """Ends the pass made inside, and with it the block, when all the modules named have computed.

    What is recorded of them must be recorded by a scope around this one.
    """
    left = set(names)

    def seen(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            left.discard(name)
            if not left:
                raise _Seen

        return hook

    return _forward_hooks([(_module(unet, name), seen(name)) for name in left], None, _Seen)


def rewrite(
    unet: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> AbstractContextManager[None]:
    """Replaces the output of each module named by ``changes[name](output)``.

    Raises ValueError where the model has no such module.
    """

    def hook(change: Callable[[Tensor], Tensor]) -> Callable:
        return lambda module, args, output: change(output)

    pairs = [(_module(unet, name), hook(change)) for name, change in changes.items()]
    return _forward_hooks(pairs, None)


def _module(unet: nn.Module, name: str) -> nn.Module:
    """A module by name. Raises ValueError where it is not there: a method has named it."""
    with suppress(AttributeError):
        return unet.get_submodule(name)
    modules, place = dict(unet.named_modules()), name
    while place not in modules:  # "" is the UNet itself
        place = place.rpartition(".")[0]
    there = ", ".join(child for child, _ in modules[place].named_children()) or "nothing"
    raise ValueError(
        f"this UNet has no {name!r}, which the method rewrites; expected one of its modules "
        f"({place or 'the UNet'} has {there}). Use tfkit.Plain() instead."
    )


def add_residuals(
    unet: nn.Module, residuals: Callable[..., tuple[Iterable[Tensor], Tensor]]
) -> AbstractContextManager[None]:
    """Adds ``residuals(*inputs of the pass)`` = (down, mid) to every pass, as ControlNet does.

    down: one for each skip connection of the encoder; mid: for what leaves the middle block.
    """

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        down, mid = residuals(*args, **kwargs)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return args, kwargs | added

    def do() -> None:
        unet.register_forward_pre_hook(hook, with_kwargs=True)

    def undo() -> None:
        for key in [k for k, own in unet._forward_pre_hooks.items() if own is hook]:
            unet._forward_pre_hooks_with_kwargs.pop(key, None)  # first, or its key would be lost
            unet._forward_pre_hooks.pop(key, None)

    return _Scope(do, undo, None)


def tiles(vae: nn.Module, side: int, factor: int) -> AbstractContextManager[None]:
    """Lets a VAE code tiles of ``side`` x ``side`` latents, which overlap by a quarter and blend.

    side: a multiple of 4, so that tiles meet on whole latents. factor: pixels that a latent spans.
    """
    new = {
        "use_tiling": True,
        "tile_latent_min_size": side,
        "tile_sample_min_size": side * factor,
        "tile_overlap_factor": 0.25,
    }
    before = {name: getattr(vae, name) for name in new}

    def put(values: Mapping[str, object]) -> None:
        for name, value in values.items():
            setattr(vae, name, value)

    return _Scope(lambda: put(new), lambda: put(before), None)


def first_nonfinite(model: nn.Module) -> AbstractContextManager[list[str]]:
    """Lists the layer groups whose outputs hold a NaN or an infinity, the first one first.

    A group is a direct child of the model, or one block of a list ("down_blocks.1").
    """
    found: list[str] = []

    def check(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    groups = []
    for name, child in model.named_children():
        blocks = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        groups += [(f"{name}.{i}".rstrip("."), block) for i, block in blocks]
    return _forward_hooks([(module, check(name)) for name, module in groups], found)
