"""Small made-up clips and what tests of video, metrics and plots share."""

import inspect

import torch


def bare(function):
    """The function without the annotation checks that only pytest adds: it refuses by itself."""
    return inspect.unwrap(function)


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
