"""What a page needs to follow a point by itself, in few bytes: tokens, true places, pictures.

Memory: of one layer's tokens float32 once more; of true places the tracks of one frame's pixels.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Float32, UInt8
from torch import Tensor

from tfkit.codec import encoded
from tfkit.tracks import Size, follow_flow, grid_of, token_centers
from tfkit.video import Clip, as_frames, resize, size_of, to_uint8

LEAST = 8  # dimensions; with fewer, what is similar is mostly chance
HIDDEN = 255  # in packed places; 0 to 254 go from the first to the last pixel


def grids_of(features: object, f: int, size: Size) -> dict[str, Size]:
    """The grid of each layer; ValueError where features do not fit the frames or one another."""
    if not isinstance(features, Mapping) or not features:
        raise ValueError(
            f"features is {features!r:.60}; expected {{(timestep, layer): tokens (f, n, d)}}, as "
            "tfkit.tokens.extract_features returns"
        )
    for key, tokens in features.items():
        if not isinstance(key, tuple) or len(key) != 2:
            raise ValueError(f"features has the key {key!r}; expected (timestep, layer)")
        if tokens.ndim != 3 or len(tokens) != f:
            raise ValueError(
                f"features[{key}] is {tuple(tokens.shape)}; expected (f, n, d) of the clip's {f} "
                "frames (take as many frames of both: clip[:f])"
            )
    timesteps, layers = ({key[i] for key in features} for i in (0, 1))
    missing = [(t, name) for name in layers for t in timesteps if (t, name) not in features]
    if missing:
        raise ValueError(f"features lack {missing[0]}; expected every timestep of every layer")
    return {name: grid_of(tokens, size) for (_, name), tokens in features.items()}


def width_for(features: Mapping, room: float) -> int:
    """The most dimensions, in float16, that fit into ``room`` bytes; at least LEAST."""
    places = sum(tokens.shape[0] * tokens.shape[1] for tokens in features.values())
    widest = max(tokens.shape[-1] for tokens in features.values())
    width = min(widest, int(room // (2 * places)))
    if width < min(LEAST, widest):
        raise ValueError(
            f"budget: {room / 1e6:.2f} MB are left for {places} tokens, {width} dimensions each; "
            f"expected {LEAST} or more: raise it, or give fewer layers, timesteps or frames"
        )
    return width


def count_bytes(value: object) -> int:
    """The bytes of all bytes in nested lists and dicts."""
    if isinstance(value, (dict, list)):
        return sum(map(count_bytes, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, bytes) else 0


def reduce_tokens(
    tokens: Float[Tensor, "f n d"], width: int
) -> tuple[Float16[Tensor, "f n k"], float]:
    """Tokens of unit length in their ``width`` strongest directions, and the energy these hold.

    No mean is taken off, unlike in `pca`: cosines are angles at the origin. With ``width`` >= d all
    of them stay as they were but for float16. Energy: the share of the squares, in [0, 1].
    """
    tiny = torch.finfo(torch.float32).tiny
    unit = F.normalize(tokens.detach().float().cpu(), dim=-1, eps=tiny)
    if not unit.isfinite().all():
        raise ValueError("tokens hold NaN or infinity; expected finite numbers")
    moment = sum(frame.T @ frame for frame in unit).double()
    values, axes = torch.linalg.eigh(moment)  # ascending
    strongest = axes[:, -width:].flip(1).float()
    kept = (values[-width:].sum() / values.sum().clamp(min=1e-12)).item()
    return F.normalize(unit @ strongest, dim=-1, eps=tiny).half(), min(kept, 1.0)


@torch.no_grad()
def true_places(
    flow: Float[Tensor, "s 2 h w"], visible: Bool[Tensor, "s h w"], grid: Size
) -> Float32[Tensor, "f n f 2"]:
    """Where what is at each of a grid's centres is in every other frame: pixels, NaN where hidden.

    Forwards the flow is followed. Backwards it is inverted: of all pixels of the earlier frame, the
    one that arrives nearest, within a pixel. What was hidden once stays so, either way.
    """
    size, f = size_of(flow), len(flow) + 1
    centers, pixels = token_centers(grid, size), token_centers(size, size)
    places = torch.full((f, len(centers), f, 2), math.nan)
    for i in range(f):
        there, seen = follow_flow(centers, flow[i:], visible[i:])
        there = there.masked_fill(~seen[..., None], math.nan)
        places[i, :, i:] = there.transpose(0, 1).float()
        there, seen = follow_flow(pixels, flow[i:], visible[i:])
        for j in range(i + 1, f):
            places[j, :, i] = _origins(pixels, there[j - i].float(), seen[j - i], centers, size)
    return places


def _origins(
    pixels: Tensor, there: Tensor, seen: Tensor, centers: Tensor, size: Size
) -> Float32[Tensor, "n 2"]:
    """Which of the pixels that are now ``there`` has come to each centre, (n, 2) or NaN."""
    h, w = size
    arrived = torch.full((h, w), -1)
    x, y = there[seen].round().long().T
    arrived[y, x] = seen.nonzero()[:, 0]
    steps = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    near = centers.round().long()[:, None] + steps  # (n, 9, 2)
    who = arrived[near[..., 1].clamp(0, h - 1), near[..., 0].clamp(0, w - 1)]
    left = centers[:, None] - there[who]  # what remains to the centre
    best = left.norm(dim=-1).masked_fill(who < 0, math.inf).argmin(1, keepdim=True)
    left = left.take_along_dim(best[..., None], 1)[:, 0]
    who = who.gather(1, best)[:, 0]
    origins = pixels[who] + left  # a neighbourhood moves as one, below a pixel
    return origins.masked_fill(((who < 0) | (left.norm(dim=-1) > 1))[:, None], math.nan)


def pack_places(places: Float[Tensor, "*n 2"], size: Size) -> UInt8[Tensor, "*n 2"]:
    """Places in one byte a coordinate: within 1/508 of the picture's side; NaN is HIDDEN."""
    packed = places / _sides(size) * 254
    return packed.round().clamp(0, 254).nan_to_num(HIDDEN).byte()


def unpack_places(packed: UInt8[Tensor, "*n 2"], size: Size) -> Float32[Tensor, "*n 2"]:
    """The places that `pack_places` packed."""
    places = packed.float() / 254 * _sides(size)
    return places.masked_fill((packed == HIDDEN).any(-1, keepdim=True), math.nan)


def truth_grid(frames: int, size: Size, budget: float) -> Size:
    """The finest grid whose packed true places take at most ``budget`` bytes: (rows, columns)."""
    h, w = size
    rows = min(h / 2, math.sqrt(budget / (2 * frames**2) * h / w))
    return max(1, int(rows)), max(1, int(rows * w / h))


def pictures(frames: Clip | Tensor, longest: int = 256) -> list[bytes]:
    """Frames as WebP files, made smaller where a side is above ``longest`` pixels."""
    frames = as_frames(frames)
    h, w = frames.shape[-2:]
    shrink = min(1.0, longest / max(h, w))
    small = resize(frames.float(), (max(1, round(h * shrink)), max(1, round(w * shrink))))
    return [encoded(pixels, "WEBP", quality=92) for pixels in to_uint8(small)]


def _sides(size: Size) -> Tensor:
    return torch.tensor([max(1, size[1] - 1), max(1, size[0] - 1)], dtype=torch.float32)
