"""Small made-up clips and what tests of video, metrics and plots share."""

import functools
import inspect
from contextlib import contextmanager

import jaxtyping
import torch


@contextmanager
def annotations_unchecked():
    """Without the checks of annotations that only pytest adds."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def bare(function):
    """The function as it is outside pytest: it and what it calls refuse by themselves."""
    inner = inspect.unwrap(function)

    @functools.wraps(inner)
    def call(*args, **options):
        with annotations_unchecked():
            return inner(*args, **options)

    return call


def moving(f=6, h=32, w=48, dtype=torch.float32):
    """A smooth, coloured pattern that drifts to the right by a pixel a frame."""
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    frames = [
        torch.stack([0.5 + 0.5 * torch.sin(6.3 * (x - i / w)), y, 0.5 + 0.4 * torch.cos(6.3 * y)])
        for i in range(f)
    ]
    return torch.stack(frames).to(dtype)


def decibels(a, b):
    return -10 * torch.log10((a.double() - b.double()).square().mean()).item()
