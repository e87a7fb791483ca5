"""Films the menagerie: clips whose every pixel's motion, part and label is known.

Two captions filmed with one seed differ in exactly the attributes they name differently: the second
clip is the ground truth of an edit of the first.

Memory: about 60 bytes a pixel and frame while filming.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from tfkit.menagerie import anatomy, scenery
from tfkit.menagerie.casting import SIZE, Actor, Dye, Scene, stage
from tfkit.menagerie.vocabulary import parse
from tfkit.video import Clip

FPS = 10.0


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
    row = v.floor()
    u = u + 0.5 * (row % 2)
    centre = torch.hypot(u - u.floor() - 0.5, v - row - 0.5)
    return torch.sigmoid(4 * sharp * (0.29 - centre))


_FIXED = {
    "dark": (0.13, 0.10, 0.10), "white": (0.97, 0.95, 0.90), "eyewhite": (0.98, 0.97, 0.93),
    "beak": (0.95, 0.66, 0.18), "gold": (0.95, 0.80, 0.30),
}  # fmt: skip


def _paint(part: anatomy.Part, dye: Dye, z, rest, scale: float, edge: Tensor) -> Tensor:
    """Colours (3, m) of points ``z`` of a part; ``edge`` is their depth inside it in pixels."""
    (rotation, origin), (x, y) = rest, z
    rx = rotation.real * x - rotation.imag * y + origin.real
    ry = rotation.imag * x + rotation.real * y + origin.imag
    if part.paint in ("coat", "far"):
        color = dye.base[:, None].expand(3, x.numel())
        if dye.coat != "plain":
            color = torch.lerp(color, dye.mark[:, None], _pattern(dye, rx, ry, scale))
        if part.paint == "far":
            color = color * 0.74
    else:
        dyes = {"mark": dye.mark if dye.coat != "plain" else dye.base * 0.82,
                "pale": torch.lerp(dye.base, torch.tensor([0.98, 0.95, 0.90]), 0.55),
                "accessory": dye.accessory}  # fmt: skip
        color = dyes[part.paint] if part.paint in dyes else torch.tensor(_FIXED[part.paint])
        color = color[:, None].expand(3, x.numel())
    if part.name == "eye":
        return color
    volume = 1.07 - 0.3 * (ry + 0.12).clamp(-0.35, 0.5)  # lit from above
    outline = 0.6 + 0.4 * ((edge + 0.3) / 1.7).clamp(0, 1)
    return (color * (volume * outline)).clamp(0, 1)


class _Placed:
    """An actor's geometry in every frame: the way from the screen to its parts and back."""

    def __init__(self, actor: Actor):
        animal = actor.animal
        self.actor, self.rest = actor, anatomy.rest(animal)
        rotation, origin = anatomy.pose(animal, actor.phase)
        self.rotation, self.origin = rotation.to(torch.complex64), origin.to(torch.complex64)
        lift = animal.foot + animal.flight
        bob = animal.bob * torch.sin(2 * actor.phase) * actor.scale
        self.cx, self.cy = actor.x.float(), (actor.foot_y - lift * actor.scale + bob).float()
        reach = max(
            max(abs(r * p.length + o), abs(o)) + max(p.r1, p.r2)
            for p, (r, o) in zip(animal.parts, self.rest, strict=True)
        )
        self.radius = (1.12 * reach + 0.12) * actor.scale
        self.order = sorted(range(len(animal.parts)), key=lambda k: animal.parts[k].layer)

    def body(self, x: Tensor, y: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Screen points of frames ``frame`` in the body's plane."""
        a = self.actor
        return (x - self.cx[frame]) * (a.facing / a.scale), (y - self.cy[frame]) / a.scale

    def local(self, k, body: tuple[Tensor, Tensor], frame: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the body's plane in the plane of part ``k`` (a number, or one a point)."""
        rotation, origin = self.rotation[frame, k], self.origin[frame, k]
        x, y = body[0] - origin.real, body[1] - origin.imag
        return x * rotation.real + y * rotation.imag, y * rotation.real - x * rotation.imag

    def screen(self, k, z: tuple[Tensor, Tensor], frame: Tensor) -> tuple[Tensor, Tensor]:
        """Points of part planes back on the screen."""
        rotation, origin, a = self.rotation[frame, k], self.origin[frame, k], self.actor
        x = z[0] * rotation.real - z[1] * rotation.imag + origin.real
        y = z[0] * rotation.imag + z[1] * rotation.real + origin.imag
        return x * (a.facing * a.scale) + self.cx[frame], y * a.scale + self.cy[frame]

    def near(self, x: Tensor, y: Tensor, frame: Tensor) -> Tensor:
        """Which points may lie on the animal."""
        return (x - self.cx[frame]) ** 2 + (y - self.cy[frame]) ** 2 < self.radius**2


def render(scene: Scene) -> dict[str, Tensor]:
    """Draws a scene: frames, flow, visible, parts and depth as :class:`tfkit.Clip` holds them."""
    frames = scene.camera.numel()
    f, y, x = torch.meshgrid(
        torch.arange(frames), torch.arange(SIZE), torch.arange(SIZE), indexing="ij"
    )
    fx, fy = x.float(), y.float()
    u = scenery.strip_shift(scene.camera, scene.ground, far=False).float()
    w = scenery.strip_shift(scene.camera, scene.ground, far=True).float()
    ground = scene.ground
    near = (fy - scenery.horizon(ground, fx + u[:, None, None]) + 0.5).clamp(0, 1)
    color = torch.lerp(
        scenery.far_layer(ground, fx + w[:, None, None], fy),
        scenery.near_layer(ground, fx + u[:, None, None], fy),
        near,
    ) * torch.tensor(ground.light).reshape(3, 1, 1, 1)
    color = color.reshape(3, -1)
    light = scenery.mean_light(ground)

    flat = (f.reshape(-1), fx.reshape(-1), fy.reshape(-1))
    top = torch.full((flat[0].numel(),), -1)  # which part is seen, counted over all actors
    owner = torch.full_like(top, -1)  # whose it is
    cast = [_Placed(actor) for actor in scene.actors]
    for number, placed in enumerate(cast):
        index = placed.near(flat[1], flat[2], flat[0]).nonzero().squeeze(1)
        frame = flat[0][index]
        body = placed.body(flat[1][index], flat[2][index], frame)
        actor = placed.actor
        for k in placed.order:
            part = actor.animal.parts[k]
            z = placed.local(k, body, frame)
            d = anatomy.distance(z, part) * actor.scale
            hit = (d < 0.5).nonzero().squeeze(1)
            if not hit.numel():
                continue
            z, d, at = (z[0][hit], z[1][hit]), d[hit], index[hit]
            paint = _paint(part, actor.dye, z, placed.rest[k], actor.scale, -d) * light[:, None]
            color[:, at] = torch.lerp(color[:, at], paint, (0.5 - d).clamp(0, 1))
            top[at] = torch.where(d < 0, k, top[at])
            owner[at] = torch.where(d < 0, number, owner[at])

    shape = (frames, SIZE, SIZE)
    names = [
        torch.tensor([anatomy.PARTS.index(p.name) for p in c.actor.animal.parts]) for c in cast
    ]
    parts = torch.zeros_like(top)
    for number, table in enumerate(names):
        parts = torch.where(owner == number, table[top.clamp(0, len(table) - 1)], parts)
    out = {
        "frames": rearrange(
            color.clamp(0, 1), "c (f h w) -> f c h w", f=frames, h=SIZE
        ).contiguous(),
        "parts": parts.reshape(shape),
        "depth": (owner + 1).reshape(shape),
        "mask": (owner >= 0).reshape(shape),
    }
    if frames > 1:
        out["flow"], out["visible"] = _motion(
            scene, cast, top.reshape(shape), owner.reshape(shape), near
        )
    return out


def _motion(scene, cast, top, owner, near):
    """Where each pixel of frame i is in frame i + 1, and whether it is seen there."""
    frames = top.shape[0]
    f, y, x = torch.meshgrid(
        torch.arange(frames - 1), torch.arange(SIZE), torch.arange(SIZE), indexing="ij"
    )
    f, x, y = f.reshape(-1), x.reshape(-1).float(), y.reshape(-1).float()
    top, owner, near = (t[:-1].reshape(-1) for t in (top, owner, near))
    pan = -scene.camera.diff().float()[f]
    far = near < 0.5
    nx, ny = x + torch.where(far, pan * scenery.PARALLAX, pan), y.clone()
    for number, placed in enumerate(cast):
        at = (owner == number).nonzero().squeeze(1)
        k, frame = top[at], f[at]
        z = placed.local(k, placed.body(x[at], y[at], frame), frame)
        nx[at], ny[at] = placed.screen(k, z, frame + 1)

    inside = (nx >= 0) & (nx <= SIZE - 1) & (ny >= 0) & (ny <= SIZE - 1)
    u = scenery.strip_shift(scene.camera, scene.ground, far=False).float()[f + 1]
    hidden = far & (owner < 0) & (ny > scenery.horizon(scene.ground, nx + u) - 1)
    for number, placed in enumerate(cast):
        at = (placed.near(nx, ny, f + 1) & inside & (owner <= number)).nonzero().squeeze(1)
        frame, body = f[at] + 1, placed.body(nx[at], ny[at], f[at] + 1)
        rank = {k: r for r, k in enumerate(placed.order)}
        ranks = torch.tensor([rank[k] for k in range(len(rank))])
        own = torch.where(owner[at] == number, ranks[top[at].clamp(0, len(rank) - 1)], -1)
        for r, k in enumerate(placed.order):
            part = placed.actor.animal.parts[k]
            d = anatomy.distance(placed.local(k, body, frame), part)
            hidden[at] |= (d * placed.actor.scale < 0.5) & (own < r)
    flow = rearrange(torch.stack([nx - x, ny - y]), "c (f h w) -> f c h w", f=frames - 1, h=SIZE)
    return flow.contiguous(), rearrange(inside & ~hidden, "(f h w) -> f h w", f=frames - 1, h=SIZE)


def film(caption: str = "an animal", *, frames: int = 24, seed: int = 0) -> Clip:
    """Films ``caption``: a clip of ``frames`` 128 x 128 pictures with exact ground truth.

    caption: any order of the words of :mod:`tfkit.menagerie.vocabulary`; what it leaves open is
        drawn from ``seed``. Frames i of two lengths are the same: a longer clip goes on.
    Returns a Clip whose caption is the one given, with flow and visible (f-1), parts, mask, depth.
    Raises ValueError for words outside the vocabulary and for ``frames`` below 1.
    """
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames={frames!r}: expected a whole number of at least 1")
    return Clip(fps=FPS, caption=caption, **render(stage(parse(caption), frames, seed)))
