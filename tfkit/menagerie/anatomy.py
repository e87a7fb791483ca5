"""What an animal of the menagerie is made of, and how it moves.

An animal is a tree of rigid parts, each one uneven capsule (a disc of radius ``r1`` swept to a
disc of radius ``r2``), turning about a joint. Rigid parts are what makes the ground truth exact:
a point keeps its place in its part, so its motion is known wherever it goes. Planes are complex
numbers, x forward and y down, in units of about one body length.
"""

import cmath
import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

PARTS = (
    "ground", "body", "head", "ear", "eye", "muzzle", "neck", "tail",
    "front leg", "hind leg", "wing", "fin", "accessory",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One rigid part, turning about its joint as its gait swings it."""

    name: str  # one of PARTS
    parent: int  # index of the part it hangs on, -1 for the animal itself
    joint: complex  # where, in the parent's own plane
    angle: float  # rest angle relative to the parent, radians, clockwise on screen
    length: float
    r1: float
    r2: float
    paint: str = "coat"  # or "far" (the coat in shade) or one of the names in world.py
    layer: int = 0  # painted from the lowest to the highest
    swing: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 0.0)
    # (amplitude, frequency, phase, offset): amplitude (offset + sin(frequency t + phase)) is added
    # to the angle


@dataclass(frozen=True)
class Animal:
    """A species: its parts, each after the one it hangs on, and what its gait needs to know."""

    parts: tuple[Part, ...]
    foot: float  # height of the hips over the ground
    stride: float  # ground covered per radian of gait phase
    bob: float  # vertical movement of the body
    flight: float = 0.0  # how far over the ground it stays


def pose(
    animal: Animal, phase: Float[Tensor, " f"]
) -> tuple[Complex[Tensor, "f p"], Complex[Tensor, "f p"]]:
    """Rotation and origin of every part at the gait phases given: z_body = rot * z_part + origin.

    phase: radians (f,) -> two complex tensors (f, parts) of twice its precision.
    """
    rotations: list[Tensor] = []
    origins: list[Tensor] = []
    for part in animal.parts:
        amplitude, frequency, shift, offset = part.swing
        angle = part.angle + amplitude * (offset + torch.sin(frequency * phase + shift))
        rotation = torch.polar(torch.ones_like(angle), angle)
        if part.parent < 0:
            origin = torch.full_like(rotation, part.joint)
        else:
            rotation = rotation * rotations[part.parent]
            origin = origins[part.parent] + rotations[part.parent] * part.joint
        rotations.append(rotation)
        origins.append(origin)
    return torch.stack(rotations, 1), torch.stack(origins, 1)


def rest(animal: Animal) -> list[tuple[complex, complex]]:
    """Rotation and origin of every part when nothing swings: where the coat's pattern is laid."""
    placed: list[tuple[complex, complex]] = []
    for part in animal.parts:
        rotation, origin = cmath.rect(1.0, part.angle), part.joint
        if part.parent >= 0:
            above, at = placed[part.parent]
            rotation, origin = rotation * above, at + above * part.joint
        placed.append((rotation, origin))
    return placed


def distance(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], part: Part) -> Float[Tensor, "*n"]:
    """Signed distance of points to the part's outline, negative inside, in its own plane."""
    y = y.abs()
    h, r1, r2 = part.length, part.r1, part.r2
    if abs(r1 - r2) >= h:  # one disc holds the other
        centre = 0.0 if r1 >= r2 else h
        return torch.hypot(x - centre, y) - max(r1, r2)
    slope = (r1 - r2) / h
    rise = math.sqrt(1 - slope * slope)
    along = x * rise - y * slope  # which of the three regions: first disc, side, second disc
    side = y * rise + x * slope - r1
    near, far = torch.hypot(x, y) - r1, torch.hypot(x - h, y) - r2
    return torch.where(along < 0, near, torch.where(along > rise * h, far, side))
