"""The only file that touches a model's modules. Everything here is undone on the way out.

Each function is a context manager that restores the model as it was, bit for bit, whichever way
the block is left: return, exception or KeyboardInterrupt. Nothing is copied; what is recorded
lives as long as the caller keeps it.
"""

import contextlib
import fnmatch
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn


def self_attention(unet: nn.Module) -> dict[str, nn.Module]:
    """The self-attention modules (attn1) of a UNet by name, in the order data meets them."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = [(n, m) for n, m in unet.named_modules() if n.endswith("attn1")]
    return dict(sorted(found, key=lambda pair: order.get(pair[0].split(".")[0], 3)))


def match(unet: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """Names of self-attention modules that fit names or wildcards ("up_blocks.2.*").

    Raises ValueError for a pattern that fits nothing, with the names there are.
    """
    names = list(self_attention(unet))
    chosen: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fits = [n for n in names if n == pattern or fnmatch.fnmatchcase(n, pattern)]
        if not fits:
            raise ValueError(
                f"layer {pattern!r} fits no self-attention of this model; expected a name or "
                f"wildcard among: {', '.join(names)}"
            )
        chosen += [n for n in fits if n not in chosen]
    return chosen


@contextlib.contextmanager
def processor(unet: nn.Module, new: Callable) -> Iterator[None]:
    """Lets ``new`` compute every self-attention: ``new(attn, hidden_states, ...)``."""
    modules = list(self_attention(unet).values())
    before = [module.processor for module in modules]
    try:
        for module in modules:
            module.set_processor(new)
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            module.set_processor(old)


@contextlib.contextmanager
def _forward_hooks(pairs: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    handles: list = []
    try:
        for module, hook in pairs:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def record(unet: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of the modules named, by name, as passes go through them."""
    seen: dict[str, Tensor] = {}

    def keep(name):
        return lambda module, args, output: seen.__setitem__(name, output)

    pairs = [(unet.get_submodule(name), keep(name)) for name in names]
    with _forward_hooks(pairs):
        yield seen


@contextlib.contextmanager
def rewrite(
    unet: nn.Module, names: Iterable[str], change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replaces the output of each module named by ``change(output)``.

    Raises ValueError where the model has no such module.
    """
    modules = dict(unet.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(
            f"this UNet has no {missing[0]!r}, which the method rewrites; expected Stable "
            "Diffusion's topology (four up blocks of three layers). Use tfkit.Plain() instead."
        )
    hooks = [(modules[name], lambda module, args, output: change(output)) for name in names]
    with _forward_hooks(hooks):
        yield


@contextlib.contextmanager
def first_nonfinite(model: nn.Module) -> Iterator[list[str]]:
    """Lists the layer groups whose outputs hold a NaN or an infinity, the first one first."""
    found: list[str] = []

    def check(name):
        def hook(module, args, output):
            output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    groups = []
    for name, child in model.named_children():
        children = list(child) if isinstance(child, nn.ModuleList) else None
        groups += (
            [(f"{name}.{i}", c) for i, c in enumerate(children)] if children else [(name, child)]
        )
    with _forward_hooks((module, check(name)) for name, module in groups):
        yield found
