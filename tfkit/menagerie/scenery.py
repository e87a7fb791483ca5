"""The grounds of the menagerie: a far layer (sky, hills) and a near one the animals walk on.

Each layer is a picture on an endless strip, so panning the camera moves it rigidly and its optical
flow is known. Detail is kept coarser than about three pixels: what is finer would alias under a
camera that moves by fractions of a pixel.
"""

import math
import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Channels = tuple[float, float, float] | Float[Tensor, "3 *n"]
PARALLAX = 0.35  # how much slower the far layer passes
_SWELL = 3.6  # pixels that the horizon rises and falls at the most


@dataclass(frozen=True)
class Ground:
    """What a scene's ground looks like: one draw of all its caption leaves open."""

    name: str
    horizon: float  # pixels from the top
    tint: tuple[float, float, float]  # the ground's own shade
    light: tuple[float, float, float]  # colour of the light over everything
    phase: float  # where on the strip the scene lies
    sun: tuple[float, float]  # sun or moon, in pixels
    lattice: Float[Tensor, "64 64"]  # values in [0, 1] that all noise is read from


def random_ground(name: str, rng: random.Random) -> Ground:
    """Draws light, tint, horizon and texture; the same numbers whatever ``name`` is."""
    horizon = rng.uniform(52, 72)
    r, g, b = (1 + rng.uniform(-0.09, 0.07) for _ in range(3))
    warmth, brightness = rng.uniform(-0.07, 0.09), rng.uniform(0.86, 1.05)
    red, green, blue = (brightness * (1 + k * warmth) for k in (1.0, 0.15, -1.0))
    phase, sun = rng.uniform(0, 4000), (rng.uniform(18, 110), rng.uniform(14, 32))
    lattice = torch.tensor([rng.random() for _ in range(4096)], dtype=torch.float32)
    return Ground(name, horizon, (r, g, b), (red, green, blue), phase, sun, lattice.reshape(64, 64))


def noise(
    lattice: Float[Tensor, "64 64"], u: Float[Tensor, "*n"], v: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Value noise in [0, 1], period 64, smooth between the lattice's points."""
    u0, v0 = u.floor(), v.floor()
    fu, fv = u - u0, v - v0
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    iu, iv = u0.long() & 63, v0.long() & 63
    ju, jv = (iu + 1) & 63, (iv + 1) & 63
    flat = lattice.reshape(-1)
    top = torch.lerp(flat[iv * 64 + iu], flat[iv * 64 + ju], fu)
    bottom = torch.lerp(flat[jv * 64 + iu], flat[jv * 64 + ju], fu)
    return torch.lerp(top, bottom, fv)


def _ramp(x: Tensor) -> Tensor:
    """From 0 to 1 as x does, and level on either side."""
    return x.clamp(0, 1)


def _mix(a: Channels, b: Channels, share: Float[Tensor, "*n"]) -> Float[Tensor, "3 *n"]:
    """Colours ``a`` and ``b`` (triples, or stacked channels), ``share`` of it ``b``."""
    return torch.stack([a[c] * (1 - share) + b[c] * share for c in range(3)])


def horizon(ground: Ground, u: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Height of the near layer's upper edge at strip coordinate ``u``, in pixels."""
    swell = 0.35 if ground.name == "sea" else 2.2
    return ground.horizon + swell * (torch.sin(u * 0.045) + 0.6 * torch.sin(u * 0.11 + 1.3))


_SKIES = {
    "grass": ((0.46, 0.70, 0.93), (0.82, 0.92, 0.97)),
    "sand": ((0.52, 0.74, 0.90), (0.97, 0.91, 0.80)),
    "snow": ((0.66, 0.76, 0.88), (0.93, 0.94, 0.97)),
    "night": ((0.07, 0.09, 0.24), (0.19, 0.23, 0.44)),
    "sea": ((0.40, 0.68, 0.88), (0.90, 0.93, 0.92)),
    "autumn": ((0.76, 0.80, 0.82), (0.97, 0.88, 0.74)),
}
_HILLS = {
    "grass": ((0.42, 0.62, 0.47), 15, 0.9),
    "sand": ((0.86, 0.70, 0.52), 11, 0.6),
    "snow": ((0.74, 0.81, 0.90), 20, 1.6),
    "night": ((0.12, 0.16, 0.30), 14, 0.9),
    "sea": ((0.55, 0.70, 0.78), 6, 0.5),
    "autumn": ((0.72, 0.45, 0.30), 17, 1.3),
}


def far_layer(
    ground: Ground, u: Float[Tensor, "*n"], v: Float[Tensor, "*n"]
) -> Float[Tensor, "3 *n"]:
    """Sky, sun or moon, clouds or stars, and hills, at strip coordinates in pixels."""
    top, bottom = _SKIES[ground.name]
    sky = _mix(top, bottom, _ramp(v / ground.horizon))
    sx, sy = ground.sun
    middle = (u - ground.phase * PARALLAX - sx + 400) % 800 - 400  # one sun every 800 pixels
    sun = torch.hypot(middle, v - sy)
    if ground.name == "night":
        cell_u, cell_v = (u / 9).floor(), (v / 9).floor()
        value = ground.lattice.reshape(-1)[(cell_v.long() & 63) * 64 + (cell_u.long() & 63)]
        off_u, off_v = (value * 7.31) % 1 - 0.5, (value * 13.7) % 1 - 0.5
        star = torch.hypot(u / 9 - cell_u - 0.5 - 0.5 * off_u, v / 9 - cell_v - 0.5 - 0.5 * off_v)
        sky = _mix(sky, (1.0, 0.97, 0.85), _ramp(1.5 - 9 * star) * (value > 0.62) * 0.9)
        crescent = _ramp(8.5 - sun) * (1 - _ramp(7.5 - torch.hypot(middle - 4, v - sy + 2)))
        sky = _mix(sky, (0.98, 0.95, 0.80), crescent)
    else:
        glow = _ramp(1.4 - sun / 16) * 0.35 + _ramp(9.0 - sun) * 0.65
        sky = _mix(sky, (1.0, 0.96, 0.80), glow)
        puff = (
            noise(ground.lattice, u / 21, v / 9) * 0.65 + noise(ground.lattice, u / 9, v / 5) * 0.35
        )
        sky = _mix(sky, (1.0, 1.0, 1.0), _ramp((puff - 0.56) * 5) * 0.75)
    color, height, rough = _HILLS[ground.name]
    ridge = ground.horizon - height * (
        0.35 + 0.65 * noise(ground.lattice, u / 31, torch.full_like(u, 3.5))
    ) - rough * 2.5 * noise(ground.lattice, u / 7, torch.full_like(u, 9.5))  # fmt: skip
    shade = 0.92 + 0.16 * noise(ground.lattice, u / 13, v / 8)
    return torch.lerp(sky, torch.stack([shade * c for c in color]), _ramp(v - ridge + 0.5))


def near_layer(
    ground: Ground, u: Float[Tensor, "*n"], v: Float[Tensor, "*n"]
) -> Float[Tensor, "3 *n"]:
    """The ground itself, deeper in colour towards the viewer, at strip coordinates in pixels."""
    grid, depth = ground.lattice, _ramp((v - ground.horizon) / (128 - ground.horizon))
    broad = noise(grid, u / 27, v / 11)
    if ground.name == "grass":
        plane = _mix((0.49, 0.71, 0.34), (0.27, 0.53, 0.22), _ramp(0.75 * depth + 0.35 * broad))
        blades = noise(grid, u / 3.2, v / 9.0)
        plane = plane * (0.86 + 0.3 * blades)
        flower = noise(grid, (u + 0.6 * v) / 5.2 + 17, (v - 0.6 * u) / 5.2 + 5)
        plane = _mix(plane, (0.98, 0.93, 0.66), _ramp((flower - 0.80) * 7))
    elif ground.name == "sand":
        plane = _mix((0.95, 0.84, 0.62), (0.84, 0.67, 0.43), _ramp(0.75 * depth + 0.3 * broad))
        bend = 5 * noise(grid, u / 19, v / 19)
        ripple = torch.sin((v + bend) * 0.75 + u * 0.06)
        plane = plane * (1.0 + 0.055 * ripple)
    elif ground.name == "snow":
        plane = _mix((0.95, 0.97, 1.0), (0.80, 0.87, 0.96), _ramp(0.55 * depth + 0.5 * broad - 0.1))
        drift = noise(grid, (u + 2.4 * v) / 13, (v - 0.1 * u) / 5)
        plane = plane * (0.96 + 0.07 * drift)
    elif ground.name == "night":
        plane = _mix((0.17, 0.24, 0.40), (0.10, 0.15, 0.28), _ramp(0.8 * depth + 0.3 * broad))
        plane = plane * (0.85 + 0.35 * noise(grid, (u + 0.5 * v) / 5.0, (v - 0.2 * u) / 7.0))
    elif ground.name == "sea":
        plane = _mix((0.25, 0.58, 0.75), (0.07, 0.34, 0.58), _ramp(0.8 * depth + 0.3 * broad))
        bend = 6 * noise(grid, u / 23, v / 15)
        wave = torch.sin((v + bend) * 0.5 + 0.4 * torch.sin(u * 0.05))
        plane = plane * (1.0 + 0.10 * wave)
        foam = _ramp((wave - 0.72) * 3.5) * _ramp((noise(grid, u / 8, v / 5) - 0.42) * 4)
        plane = _mix(plane, (0.94, 0.98, 1.0), foam * 0.8)
    else:  # autumn
        plane = _mix((0.74, 0.56, 0.32), (0.52, 0.34, 0.20), _ramp(0.75 * depth + 0.3 * broad))
        s, t = u + 0.7 * v, v - 0.7 * u  # aslant, so that the lattice does not show
        leaf, kind = noise(grid, s / 4.4, t / 3.7), noise(grid, s / 7.3 + 31, t / 7.3 + 7)
        fallen = _mix((0.86, 0.42, 0.14), (0.93, 0.72, 0.22), _ramp((kind - 0.35) * 3))
        plane = torch.lerp(plane, fallen, _ramp((leaf - 0.56) * 6))
    return plane * torch.tensor(ground.tint, dtype=u.dtype).reshape(3, *[1] * u.ndim)


def animal_light(ground: Ground) -> Float[Tensor, " 3"]:
    """What the light does to an animal's colours; dim and blue at night."""
    light = torch.tensor(ground.light, dtype=torch.float32)
    return light * light.new_tensor((0.86, 0.90, 1.06)) if ground.name == "night" else light


def strip_shift(camera: Float[Tensor, " f"], ground: Ground, far: bool) -> Float[Tensor, " f"]:
    """Strip coordinate of the picture's left edge for camera positions in pixels."""
    return ((camera + math.floor(ground.phase)) * (PARALLAX if far else 1.0)).float()


def picture(
    ground: Ground, camera: Float[Tensor, " f"], size: int
) -> tuple[Float[Tensor, "3 f size size"], Bool[Tensor, "f size size"]]:
    """The ground in its light for camera positions in pixels, and where it is the far layer."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = y.float().expand(len(camera), -1, -1)
    u, w = (strip_shift(camera, ground, far)[:, None, None] + x for far in (False, True))
    near = _ramp(y - horizon(ground, u) + 0.5)
    # Each layer is drawn only in the rows where some of it shows.
    top, bottom = (int(ground.horizon + reach) for reach in (-_SWELL - 1, _SWELL + 2))
    color = torch.zeros(3, *near.shape, dtype=torch.float32)
    color[..., :bottom, :] = far_layer(ground, w[:, :bottom], y[:, :bottom])
    below = near_layer(ground, u[:, top:], y[:, top:])
    color[..., top:, :] = torch.lerp(color[..., top:, :], below, near[:, top:])
    light = torch.tensor(ground.light, dtype=torch.float32).reshape(3, 1, 1, 1)
    return color * light, near < 0.5
