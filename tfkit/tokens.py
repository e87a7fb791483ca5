"""Self-attention tokens of a UNet: what it holds of each frame, place by place.

One pass for each timestep; memory: the tokens asked for, (f, n, d) each, and one batch.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from tfkit import hooks
from tfkit.diffusion import LatentDiffusion
from tfkit.trajectory import Trajectory


@torch.no_grad()
def extract_tokens(
    model: LatentDiffusion,
    source: Trajectory,
    *,
    timestep: int,
    layers: str | Iterable[str],
    batch: int = 16,
) -> dict[str, Tensor]:
    """attn1's output tokens (f, n, d) of each layer, in one pass over a level of a trajectory.

    timestep: one of ``source.timesteps``. layers: module names or wildcards ("up_blocks.2.*").
    Returns {layer: tokens} with n = (height / stride) * (width / stride), row by row.
    Raises ValueError for layers or timesteps that are not there, naming those that are.
    """
    names = hooks.match(model.unet, layers)
    latents, text = source.at(timestep), model.embed(source.prompt)
    chunks: dict[str, list[Tensor]] = {name: [] for name in names}
    for chunk in latents.split(batch):
        with hooks.record(model.unet, names) as seen:
            model.predict_noise(chunk, timestep, text)
        for name in names:
            chunks[name].append(seen[name].clone())
    return {name: torch.cat(parts) for name, parts in chunks.items()}
