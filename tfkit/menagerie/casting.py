"""Casts a scene: which animals, what they look like and where they go.

All randomness comes from the seed alone and is drawn in one order whatever the caption says, so
two captions staged with one seed differ in exactly the attributes they name differently.
"""

import colorsys
import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tfkit.menagerie import anatomy, scenery, species
from tfkit.menagerie.vocabulary import (
    ACCESSORIES,
    COATS,
    COLORS,
    GROUNDS,
    SPECIES,
    Description,
    Look,
)

SIZE = 128

_HSV = {  # hue, its spread, saturation range, value range
    "red": (0.995, 0.018, (0.74, 0.90), (0.72, 0.93)),
    "orange": (0.075, 0.013, (0.80, 0.95), (0.90, 1.00)),
    "yellow": (0.145, 0.012, (0.66, 0.88), (0.92, 1.00)),
    "green": (0.37, 0.045, (0.55, 0.80), (0.48, 0.74)),
    "blue": (0.60, 0.030, (0.58, 0.85), (0.58, 0.90)),
    "purple": (0.775, 0.028, (0.45, 0.70), (0.50, 0.78)),
    "white": (0.10, 0.100, (0.00, 0.06), (0.93, 1.00)),
    "black": (0.65, 0.300, (0.05, 0.25), (0.13, 0.22)),
}


@dataclass(frozen=True)
class Dye:
    """The colours of one animal, and how its pattern lies."""

    base: Float[Tensor, " 3"]
    mark: Float[Tensor, " 3"]
    accessory: Float[Tensor, " 3"]
    coat: str
    period: float  # of the pattern, in body units
    shift: complex
    lean: float


@dataclass(frozen=True)
class Actor:
    """One animal in a scene: what it is, what it looks like, where it goes."""

    look: Look
    animal: anatomy.Animal
    dye: Dye
    scale: float  # pixels a body unit
    facing: int  # 1 to the right
    foot_y: float  # screen height of the ground under it
    x: Float[Tensor, " f"]  # screen position of its middle
    phase: Float[Tensor, " f"]  # of its gait, radians


@dataclass(frozen=True)
class Scene:
    """Everything a clip is drawn from."""

    actors: tuple[Actor, ...]  # from the farthest to the nearest
    ground: scenery.Ground
    camera: Float[Tensor, " f"]  # pixels


def _color(rgb: tuple[float, float, float]) -> Float[Tensor, " 3"]:
    return torch.tensor(rgb, dtype=torch.float32)


def _rgb(color: str, rng: random.Random) -> Float[Tensor, " 3"]:
    hue, spread, saturation, value = _HSV[color]
    h, s, v = rng.gauss(0, 0.5), rng.uniform(*saturation), rng.uniform(*value)
    h = max(-1.0, min(1.0, h))
    return _color(colorsys.hsv_to_rgb((hue + spread * h) % 1, s, v))


def _dye(look: Look, rng: random.Random) -> Dye:
    assert look.color is not None and look.coat is not None, "drawn by _complete"
    base = _rgb(look.color, rng)
    pale = rng.random() < 0.35
    strength = rng.uniform(0.36, 0.5)
    if look.color == "white":
        mark = _color((0.60, 0.58, 0.58)) * (1 + 0.4 * (strength - 0.43))
    elif look.color == "black":
        mark = torch.lerp(base, _color((0.98, 0.94, 0.86)), 0.32 + 0.3 * (strength - 0.43))
    elif pale:
        mark = torch.lerp(base, _color((0.98, 0.94, 0.86)), 0.78 + 0.3 * (strength - 0.43))
    else:
        mark = base * strength
    accessory = _rgb(rng.choice(COLORS), rng)
    shift = complex(rng.uniform(0, 1), rng.uniform(0, 1))
    return Dye(
        base, mark, accessory, look.coat, rng.uniform(0.21, 0.31), shift, rng.uniform(-0.3, 0.3)
    )


def _complete(look: Look, rng: random.Random) -> Look:
    """The look with what it leaves open drawn.

    Everything is drawn, used or not: so the numbers that follow do not depend on the caption.
    """
    drawn = Look(rng.choice(SPECIES), rng.choice(COLORS), rng.choice(COATS))
    if rng.random() < 0.3:
        drawn = replace(drawn, accessory=rng.choice(ACCESSORIES))
    return Look(
        look.species or drawn.species,
        look.color or drawn.color,
        look.coat or drawn.coat,
        look.accessory or drawn.accessory,
    )


def stage(description: Description, frames: int, seed: int, start: int = 0) -> Scene:
    """Casts the actors and sets their paths; all a caption leaves open comes from ``seed``.

    The scene is that of frames ``start`` to ``start + frames - 1`` of an endless clip.
    """
    rng = random.Random(f"scene {seed}")
    drawn = rng.choice(GROUNDS)
    ground = scenery.random_ground(description.ground or drawn, rng)
    time = torch.arange(start, start + frames, dtype=torch.float64)
    sway = rng.uniform(3, 9) * torch.sin(time * rng.uniform(0.08, 0.16) + rng.uniform(0, 6.28))
    x0, leader_facing = SIZE / 2 + rng.uniform(-12, 12), rng.choice((1, -1))
    looks, herd = description.looks, description.herds
    actors: list[Actor] = []
    for i, look in enumerate(looks):
        own, group = random.Random(f"actor {seed} {i}"), random.Random(f"look {seed} {herd[i]}")
        look = _complete(look, group)
        dye = _dye(look, group)
        dye = replace(dye, shift=dye.shift + complex(own.random(), own.random()) * (i > 0))
        assert look.species is not None, "drawn by _complete"
        animal = species.build(look.species, look.accessory)
        near = own.uniform(0, 1)  # how near to the camera: lower in the picture and larger
        foot_y = ground.horizon + 16 + near * (108 - ground.horizon - 4) + 4
        scale = (51 + 14 * near) * (1.0 if len(looks) == 1 else 0.84) * own.uniform(0.92, 1.08)
        facing = leader_facing if i == 0 or own.random() < 0.55 else -leader_facing
        rate = own.uniform(0.26, 0.36)
        phase = rate * time + own.uniform(0, 6.28)
        speed = facing * rate * animal.stride * scale
        side = own.uniform(20, 40) * own.choice((1, -1))
        if i == 0:  # the camera goes with the first, not quite in step
            leader, camera, x = speed, speed * time - sway, x0 + sway
        else:  # the others are beside it at frame 8, and who leaves comes back on the other side
            x = x0 + side + (speed - leader) * (time - 8) + sway
            x = (x + 80) % (SIZE + 160) - 80
        actors.append(Actor(look, animal, dye, scale, facing, foot_y, x, phase))
    return Scene(tuple(sorted(actors, key=lambda a: a.foot_y)), ground, camera)


def complete(description: Description, seed: int) -> Description:
    """The whole truth about the scene of ``seed``: the description with nothing left open."""
    drawn = random.Random(f"scene {seed}").choice(GROUNDS)
    ground = description.ground or drawn
    groups = tuple(
        (_complete(look, random.Random(f"look {seed} {i}")), count)
        for i, (look, count) in enumerate(description.groups)
    )
    return Description(groups, ground)


def random_description(seed: int) -> Description:
    """A random cast for training and evaluation: mostly one animal, some herds, some pairs."""
    rng = random.Random(f"cast {seed}")
    roll = rng.random()
    sizes = (1,) if roll < 0.6 else (2,) if roll < 0.75 else (3,) if roll < 0.82 else (1, 1)
    return complete(Description(tuple((Look(), n) for n in sizes), None), seed)
