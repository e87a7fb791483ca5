"""Tokens in few components: of one basis for all frames, and of each frame's own.

Memory: one layer's tokens once more in float32, and their components in float16.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from tfkit.pca import TokenPCA

BASES = ("joint", "frame")  # one basis for all frames, or each frame's own
LEAST = 3  # components: red, green, blue


def count_for(features: Mapping[tuple[int, str], Tensor], most: int, room: float) -> int:
    """How many components of each token fit into ``room`` bytes, in float16 and either basis.

    At most ``most``, a frame's tokens and their width; ValueError for fewer than LEAST.
    """
    places = len(BASES) * sum(x.shape[0] * x.shape[1] for x in features.values())
    sides = [side for tokens in features.values() for side in tokens.shape[1:]]
    count = min([most, int(room // (2 * places)), *sides])
    if count < LEAST:
        raise ValueError(
            f"budget: {room / 1e6:.2f} MB are left for {places} tokens; expected room for "
            f"{LEAST} components of each, {2 * LEAST * places / 1e6:.2f} MB, and tokens of as "
            "many: raise it, or give fewer layers, timesteps or frames"
        )
    return count


def compress(
    tokens: Float[Tensor, "f n d"], width: int
) -> dict[str, tuple[Float16[Tensor, "f n k"], list[float]]]:
    """The first components in each of BASES, and which share of the variance each of them has.

    A component is 0 at its basis' 1st percentile and 1 at the 99th, as `TokenPCA.to_rgb` has it,
    but not cut there. Raises ValueError for NaN and infinity.
    """
    tokens = tokens.detach().float().cpu()
    if not tokens.isfinite().all():
        raise ValueError("tokens hold NaN or infinity; expected finite numbers")
    joint, energy = _in_basis(tokens, width)
    own = [_in_basis(frame[None], width) for frame in tokens]
    mean = torch.tensor([each for _, each in own]).mean(0).tolist()
    return {"joint": (joint, energy), "frame": (torch.cat([x for x, _ in own]), mean)}


def _in_basis(
    tokens: Float[Tensor, "f n d"], width: int
) -> tuple[Float16[Tensor, "f n k"], list[float]]:
    scores = TokenPCA(width).fit(tokens).transform(tokens)
    flat = scores.flatten(0, 1).double()
    low, high = torch.from_numpy(np.percentile(flat.numpy(), [1, 99], axis=0))
    shares = (scores - low) / (high - low).clamp(min=1e-12)
    whole = tokens.flatten(0, 1).double().var(0).sum().clamp(min=1e-12)
    return shares.clamp(-9, 10).half(), (flat.var(0) / whole).tolist()
