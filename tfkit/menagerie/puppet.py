"""Animals on the screen: where each part is in every frame, and what it is painted with."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from tfkit.menagerie import anatomy
from tfkit.menagerie.casting import Actor, Dye

_FIXED = {
    "dark": (0.13, 0.10, 0.10), "white": (0.97, 0.95, 0.90), "eyewhite": (0.98, 0.97, 0.93),
    "beak": (0.95, 0.66, 0.18), "gold": (0.95, 0.80, 0.30),
}  # fmt: skip


BODY, NEAR_LEGS = 3, 4  # layers
INK = 0.6  # of the colour that an outline is drawn in


@dataclass(frozen=True)
class Piece:
    """One part of one animal in every frame: the way from the screen to its own plane and back."""

    part: anatomy.Part
    actor: int  # whose it is, counted from the farthest
    dye: Dye
    scale: float  # pixels a body unit
    facing: int  # 1 to the right
    rest: tuple[complex, complex]  # rotation and origin at rest, in the plane of the body
    rotation: Complex[Tensor, " f"]  # and in each frame
    origin: Complex[Tensor, " f"]
    x: Float[Tensor, " f"]  # of the body on the screen
    y: Float[Tensor, " f"]

    @property
    def reach(self) -> float:
        """Pixels from the part's middle that it may colour."""
        return (self.part.length / 2 + max(self.part.r1, self.part.r2)) * self.scale + 1

    def inwards(self, x: Tensor, y: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Screen points of frames ``frame`` (all of shapes that broadcast) in the part's plane."""
        rotation, origin = self.rotation[frame], self.origin[frame]
        x = (x - self.x[frame]) * (self.facing / self.scale) - origin.real
        y = (y - self.y[frame]) / self.scale - origin.imag
        return x * rotation.real + y * rotation.imag, y * rotation.real - x * rotation.imag

    def outwards(self, x: Tensor, y: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the part's plane on the screen of frames ``frame``."""
        rotation, origin = self.rotation[frame], self.origin[frame]
        x, y = (
            x * rotation.real - y * rotation.imag + origin.real,
            x * rotation.imag + y * rotation.real + origin.imag,
        )
        return x * (self.facing * self.scale) + self.x[frame], y * self.scale + self.y[frame]

    def _middle(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        half = torch.tensor(self.part.length / 2, dtype=torch.float32)
        return self.outwards(half, torch.zeros_like(half), frame)

    def window(
        self, frames: Int[Tensor, " f"], size: int
    ) -> tuple[Int[Tensor, "f 1 side"], Int[Tensor, "f side 1"]]:
        """Columns and rows of the square of pixels about the part, moved into the picture."""
        side = min(size, 8 * math.ceil((2 * self.reach + 2) / 8))
        x, y = (
            (v.floor().long() - side // 2 + 1).clamp(0, size - side)[:, None] + torch.arange(side)
            for v in self._middle(frames)
        )
        return x[:, None, :], y[:, :, None]

    def near(self, x: Tensor, y: Tensor, frame: Tensor) -> Bool[Tensor, "*n"]:
        """Which screen points may lie on the part; all others do not."""
        mx, my = self._middle(frame)
        return (x - mx) ** 2 + (y - my) ** 2 < self.reach**2


def pieces(actors: Sequence[Actor]) -> list[Piece]:
    """All parts of all actors in painting order, from the farthest to the nearest."""
    found = []
    for number, actor in enumerate(actors):
        animal = actor.animal
        rotation, origin = (v.to(torch.complex64) for v in anatomy.pose(animal, actor.phase))
        lift = (animal.foot + animal.flight) * actor.scale
        bob = -animal.bob * (1 + torch.sin(2 * actor.phase)) * actor.scale
        x, y = actor.x.float(), (actor.foot_y - lift + bob).float()
        rest = anatomy.rest(animal)
        for k in sorted(range(len(animal.parts)), key=lambda k: animal.parts[k].layer):
            found.append(
                Piece(animal.parts[k], number, actor.dye, actor.scale, actor.facing, rest[k],
                      rotation[:, k], origin[:, k], x, y)
            )  # fmt: skip
    return found


def _pattern(dye: Dye, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Share of the marking colour in [0, 1] at coordinates of the animal at rest."""
    sharp = dye.period * scale * 0.55  # so that an edge is about a pixel and a half wide
    u, v = x / dye.period + dye.shift.real, y / dye.period + dye.shift.imag
    if dye.coat == "striped":
        bend = 0.22 * torch.sin(v * 2.3)
        return torch.sigmoid(sharp * (torch.sin(2 * math.pi * (u + dye.lean * v + bend)) - 0.15))
    if dye.coat == "checkered":
        product = torch.sin(math.pi * 1.35 * u) * torch.sin(math.pi * 1.35 * v)
        return torch.sigmoid(2.2 * sharp * product)
    row = v.floor()  # spotted
    u = u + 0.5 * (row % 2)
    centre = torch.hypot(u - u.floor() - 0.5, v - row - 0.5)
    return torch.sigmoid(4 * sharp * (0.29 - centre))


def _pigment(name: str, dye: Dye) -> Float[Tensor, " 3"]:
    """The one colour of parts that show no pattern."""
    if name == "mark":
        return dye.base * 0.82 if dye.coat == "plain" else dye.mark
    if name == "pale":
        return torch.lerp(dye.base, dye.base.new_tensor((0.98, 0.95, 0.90)), 0.55)
    return dye.accessory if name == "accessory" else dye.base.new_tensor(_FIXED[name])


def skins(cast: Sequence[Piece]) -> Iterator[list[tuple[int, Piece]]]:
    """Pieces, numbered from 1, in groups that share one outline: each layer of an actor is one, but
    its body and near legs together.

    At a joint the colour of one piece covers the outline of the other, as if skin grew over it.
    """

    def whose(item: tuple[int, Piece]) -> tuple[int, int]:
        layer = item[1].part.layer
        return item[1].actor, BODY if layer == NEAR_LEGS else layer

    for _, skin in groupby(enumerate(cast, 1), whose):
        yield list(skin)


def paint(piece: Piece, x: Float[Tensor, "*n"], y: Float[Tensor, "*n"]) -> Float[Tensor, "3 *n"]:
    """Colours of points of a part's plane."""
    part, dye, plain = piece.part, piece.dye, (3, *[1] * x.ndim)
    rotation, origin = piece.rest
    rest_x = rotation.real * x - rotation.imag * y + origin.real
    rest_y = rotation.imag * x + rotation.real * y + origin.imag
    if part.paint not in ("coat", "far"):
        color = _pigment(part.paint, dye).reshape(plain)
    elif dye.coat == "plain":
        color = dye.base.reshape(plain)
    else:
        share = _pattern(dye, rest_x, rest_y, piece.scale)
        color = torch.lerp(dye.base.reshape(plain), dye.mark.reshape(plain), share)
    if part.paint == "far":
        color = color * 0.74
    if part.name == "eye":
        return color.expand(3, *x.shape)
    volume = 1.07 - 0.3 * (rest_y + 0.12).clamp(-0.35, 0.5)  # lit from above
    return (color * volume).clamp(0, 1)
