"""Films the menagerie: clips whose every pixel's motion, part and label is known.

Two captions filmed with one seed differ in exactly the attributes they name differently: the second
clip is the ground truth of an edit of the first.

All parts of all animals lie in one order, from the farthest to the nearest, and are numbered in it
from 1 (0 is the ground). Which number is seen at a pixel says whose motion it has; it is hidden
where a larger number covers the place it moves to.

Memory: 1.4 MB a frame while filming, 0.6 MB a frame kept; only a few frames are drawn at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tfkit.memory import available_memory
from tfkit.menagerie import anatomy, scenery
from tfkit.menagerie.casting import SIZE, Scene, stage
from tfkit.menagerie.puppet import INK, Piece, paint, pieces, skins
from tfkit.menagerie.vocabulary import parse
from tfkit.settings import check_whole
from tfkit.video import Clip

FPS = 10.0
CHUNK = 8  # frames drawn at once: few enough for a processor's cache
FRAME = 1_400_000  # bytes that a frame takes while it is filmed
LINE = 1.7  # pixels of an outline's width
SOFT = 0.5  # pixels on either side of a part's outline over which its colour fades


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations this small gain nothing from several threads, and where those share the work
    depends on their number: with one, clips are the same to the last bit on any number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def render(scene: Scene) -> dict[str, Tensor]:
    """Draws a scene: frames, flow, visible, parts, mask and depth as :class:`tfkit.Clip` has them.

    Flow and visible are missing where there is one frame only.
    """
    count, cast = scene.camera.numel(), pieces(scene.actors)
    part = torch.tensor([0, *(anatomy.PARTS.index(piece.part.name) for piece in cast)])
    depth = torch.tensor([0, *(piece.actor + 1 for piece in cast)])
    made = []
    for start in range(0, count, CHUNK):
        frames = torch.arange(start, min(start + CHUNK, count))
        color, seen, far = _draw(scene, cast, frames)
        chunk = {"frames": color, "parts": part[seen], "depth": depth[seen], "mask": seen > 0}
        pairs = frames[: count - 1 - start]
        if len(pairs):
            n = len(pairs)
            chunk["flow"], chunk["visible"] = _motion(scene, cast, pairs, seen[:n], far[:n])
        made.append(chunk)
    return {name: torch.cat([c.pop(name) for c in made if name in c]) for name in tuple(made[0])}


def _draw(
    scene: Scene, cast: list[Piece], frames: Int[Tensor, " f"]
) -> tuple[Float[Tensor, "f 3 h w"], Int[Tensor, "f h w"], Bool[Tensor, "f h w"]]:
    """Colours of some frames, which piece each pixel shows, and which are the far ground's."""
    color, far = scenery.picture(scene.ground, scene.camera[frames], SIZE)
    light = scenery.animal_light(scene.ground).reshape(3, 1, 1, 1)
    seen = torch.zeros(far.shape, dtype=torch.int64)
    row = torch.arange(len(frames))[:, None, None]
    for skin in skins(cast):
        fills = []
        for number, piece in skin:  # all outlines, then all that is within them
            x, y = piece.window(frames, SIZE)
            z = piece.inwards(x.float(), y.float(), frames[:, None, None])
            d = anatomy.distance(*z, piece.part) * piece.scale
            at, fill = (slice(None), row, y, x), paint(piece, *z) * light
            ink = fill if piece.part.name == "eye" else fill * INK
            color[at] = torch.lerp(color[at], ink, (SOFT - d).clamp(0, 1))
            seen[at[1:]] = torch.where(d < 0, number, seen[at[1:]])
            fills.append((at, fill, ((0.3 - d) / LINE).clamp(0, 1)))
        for at, fill, share in fills:
            color[at] = torch.lerp(color[at], fill, share)
    return rearrange(color.clamp(0, 1), "c f h w -> f c h w"), seen, far


def _motion(
    scene: Scene,
    cast: list[Piece],
    frames: Int[Tensor, " f"],
    seen: Int[Tensor, "f h w"],
    far: Bool[Tensor, "f h w"],
) -> tuple[Float[Tensor, "f 2 h w"], Bool[Tensor, "f h w"]]:
    """Where each pixel of some frames is in the frame after, and whether it is seen there."""
    axis = torch.arange(SIZE).float()
    y, x = (v.expand_as(far) for v in torch.meshgrid(axis, axis, indexing="ij"))
    pan = (scene.camera[frames] - scene.camera[frames + 1]).float()[:, None, None]
    nx, ny = x + torch.where(far, pan * scenery.PARALLAX, pan), y.clone()
    for number, piece in enumerate(cast, 1):
        at = (seen == number).nonzero(as_tuple=True)
        frame = frames[at[0]]
        nx[at], ny[at] = piece.outwards(*piece.inwards(x[at], y[at], frame), frame + 1)

    inside = (nx >= 0) & (nx <= SIZE - 1) & (ny >= 0) & (ny <= SIZE - 1)
    after = frames[:, None, None] + 1
    u = nx + scenery.strip_shift(scene.camera, scene.ground, far=False)[after]
    hidden = far & (seen == 0) & (ny > scenery.horizon(scene.ground, u) - 1)
    for number, piece in enumerate(cast, 1):
        at = (inside & (seen < number) & piece.near(nx, ny, after)).nonzero(as_tuple=True)
        z = piece.inwards(nx[at], ny[at], frames[at[0]] + 1)
        hidden[at] |= anatomy.distance(*z, piece.part) * piece.scale < SOFT
    return torch.stack([nx - x, ny - y], 1), inside & ~hidden


def film(caption: str = "an animal", *, frames: int = 24, seed: int = 0) -> Clip:
    """Films ``caption``: a clip of ``frames`` 128 x 128 pictures with exact ground truth.

    caption: any order of the words of :mod:`tfkit.menagerie.vocabulary`; what it leaves open is
    drawn from ``seed``. A longer clip goes on where a shorter one ends.
    Returns a Clip whose caption is the one given, with flow and visible (f-1, None for one frame),
    parts (numbers into ``anatomy.PARTS``), mask and depth.
    Raises ValueError for words outside the vocabulary, for ``frames`` below 1, and for more of them
    than the memory that is free can hold.
    """
    check_whole("frames", frames)
    free = available_memory(torch.device("cpu"))
    if frames * FRAME > free:
        raise ValueError(
            f"frames={frames}: filming them takes about {frames * FRAME / 2**30:,.0f} GiB of "
            f"memory, and {free / 2**30:,.1f} are free: expected at most {free // FRAME}"
        )
    return Clip(fps=FPS, caption=caption, **render(stage(parse(caption), frames, seed)))
