"""What a step carries from its keyframes to every frame: from where, and how much from each.

Memory: one layer's tokens of the source, and their fields to the keyframes.
"""

from collections.abc import Hashable

import torch
from jaxtyping import Float
from torch import Tensor

from tfkit.correspondence import Field, nearest_neighbors
from tfkit.protocols import Carrying
from tfkit.steps import Steps


def fields(steps: Steps, step: int, layer: str, batch: int) -> Field:
    """The source's fields (f, k, n) from every frame to each of the step's keyframes.

    Raises ValueError for a layer that is not there, without keyframes, and without any step.
    """
    propagation, row = _carrying(steps, step, "fields")
    phi = steps.source_tokens(step, layer, propagation.field_of, batch)
    every, shape = phi.flatten(0, 1), phi.shape[:2]
    found = [nearest_neighbors(every, phi[keyframe]) for keyframe in row]
    return Field(
        torch.stack([one.index.unflatten(0, shape) for one in found], 1),
        torch.stack([one.similarity.unflatten(0, shape) for one in found], 1),
    )


def fields_key(steps: Steps, step: int, layer: str) -> Hashable:
    """What ``fields`` depends on, besides the model and the source. Raises the same errors."""
    propagation, row = _carrying(steps, step, "fields")
    during = steps.plan.method.during  # equal for one and the same method alone
    where = steps.first + step
    return "fields", layer, where, tuple(row.tolist()), propagation.field_of, during


def weights(steps: Steps, step: int) -> Float[Tensor, "f k"]:
    """How much each frame takes from each keyframe of the step; rows add up to 1.

    Raises ValueError without keyframes, and without any step.
    """
    propagation, row = _carrying(steps, step, "weights")
    count = len(steps.source)
    return propagation.neighbors(torch.arange(count), row, count).shares(len(row))


def _carrying(steps: Steps, step: int, what: str) -> tuple[Carrying, Tensor]:
    """The propagation and its keyframes of the step, where it carries tokens."""
    if not steps.timesteps:
        raise ValueError(f"no {what}: {steps.plan.method!r} takes no step at all")
    propagation, row = steps.plan.propagation, steps.rows[steps.first + step]
    if row is None or not isinstance(propagation, Carrying):
        raise ValueError(f"no {what}: {propagation!r} carries no tokens; use tfkit.TokenFlow()")
    return propagation, row
