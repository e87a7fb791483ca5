"""The species of the menagerie, each built of parts, and what they can wear.

Lengths are in units of about one body length, angles in radians; four-legged animals are one
builder with a row of measures each.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

from tfkit.menagerie.anatomy import Animal, Part

DOWN = math.pi / 2


class _Parts(list[Part]):
    """The parts of an animal so far."""

    def add(self, *args, **kwargs) -> int:
        """Appends the Part of these arguments; its index."""
        self.append(Part(*args, **kwargs))
        return len(self) - 1

    def first(self, *names: str) -> tuple[int, Part]:
        """Index and part of the first of these names that the animal has."""
        return next((i, p) for name in names for i, p in enumerate(self) if p.name == name)


def _leg(b: _Parts, name, hip, length, r, phase, near, sway, foot="coat", knee=0.55):
    """Two segments and a foot: the upper swings, the lower folds while the foot travels forward."""
    paint, layer = ("coat", 4) if near else ("far", 0)
    half = length / 2
    upper = b.add(name, 0, hip, DOWN, half, r * 1.25, r, paint, layer, (sway, 1.0, phase, 0.0))
    foot_paint = foot if near or foot != "coat" else paint
    lower = b.add(
        name, upper, half + 0j, 0.0, half, r, r * 0.85, paint, layer, (knee, 1.0, phase - DOWN, 1.0)
    )
    b.add(name, lower, half + 0j, -0.55 * DOWN, r * 0.7, r * 0.95, r * 0.8, foot_paint, layer)


def _quadruped(
    *, length, hip, chest, leg, leg_r, neck, neck_angle, neck_r, skull, muzzle, ear, tail,
    rise=0.03, foot="coat", sway=0.42, bob=0.012, extras=None,
) -> Animal:  # fmt: skip
    """Builds a four-legged animal.

    hip, chest: radii of the body's ends. skull: (length, r, angle). muzzle: (length, r1, r2, radius
    of the nose), none of length 0. ear: (kind, length, width, angle). tail: (radii along it,
    length, angle, curl, paint of its tip). sway: of the legs. extras: adds (parts, body, neck,
    head).
    """
    b = _Parts()
    body = b.add("body", -1, complex(-length / 2, 0), -rise, length, hip, chest, "coat", 3,
                 (0.015, 2.0, 0.6, 0.0))  # fmt: skip
    drop = 0.45  # legs leave the body a little under its axis
    for near in (False, True):
        shift = 0.0 if near else math.pi
        _leg(b, "hind leg", complex(0.02, hip * drop), leg, leg_r, shift + DOWN, near, sway, foot)
        _leg(b, "front leg", complex(length, chest * drop), leg, leg_r, shift, near, sway, foot,
             knee=0.4)  # fmt: skip
    n = b.add("neck", body, complex(length * 0.98, -chest * 0.35), -neck_angle, neck, neck_r * 1.25,
              neck_r, "coat", 3, (0.05, 2.0, 0.0, 0.0))  # fmt: skip
    skull_length, skull_r, nose_angle = skull
    head = b.add("head", n, complex(neck, 0), neck_angle + nose_angle, skull_length, skull_r,
                 skull_r * 0.86, "coat", 6, (0.06, 2.0, 0.9, 0.0))  # fmt: skip
    m_length, m_r1, m_r2, nose = muzzle
    if m_length:
        m = b.add("muzzle", head, complex(skull_length + skull_r * 0.35, skull_r * 0.28), 0.05,
                  m_length, m_r1, m_r2, "pale" if nose else "coat", 7)  # fmt: skip
        if nose:
            b.add("muzzle", m, complex(m_length + m_r2 * 0.55, -m_r2 * 0.45), 0.0, 0.01, nose, nose,
                  "dark", 8)  # fmt: skip
    _ears(b, head, skull_r, *ear)
    b.add("eye", head, complex(skull_length + skull_r * 0.3, -skull_r * 0.22), 0.0, 0.002, 0.045,
          0.045, "eyewhite", 9)  # fmt: skip
    b.add("eye", head, complex(skull_length + skull_r * 0.38, -skull_r * 0.22), 0.0, 0.002, 0.028,
          0.028, "dark", 10)  # fmt: skip
    _tail(b, body, hip, *tail)
    if extras:
        extras(b, body, n, head)
    foot_height = leg + max(hip, chest) * drop * 0.9 + leg_r
    return Animal(tuple(b), foot_height, leg * sway, bob)


def _ears(b, head, r, kind, length, width, angle):
    if kind == "point":
        for layer, shift in ((5, 0.55), (8, -0.35)):
            b.add("ear", head, complex(r * shift, -r * 0.62), -DOWN + angle, length, width,
                  0.012, "far" if layer == 5 else "coat", layer, (0.05, 2.0, 0.0, 0.0))  # fmt: skip
    elif kind == "flop":
        b.add("ear", head, complex(-r * 0.35, -r * 0.62), DOWN + angle, length, width * 0.7, width,
              "mark", 8, (0.14, 2.0, 0.5, 0.0))  # fmt: skip
    else:  # "fan": the elephant's
        b.add("ear", head, complex(r * 0.6, -r * 0.3), -DOWN * 0.75, length * 0.5, width * 0.65,
              width * 0.6, "far", 5, (0.10, 1.0, 0.3, 0.0))  # fmt: skip
        b.add("ear", head, complex(-r * 0.15, -r * 0.15), DOWN + angle, length, width, width * 0.7,
              "far", 8, (0.10, 1.0, 0.3, 0.0))  # fmt: skip


def _tail(b, body, hip, radii, length, angle, curl, tip):
    parent, joint, turn = body, complex(-hip * 0.75, -hip * 0.35), math.pi + angle
    length /= len(radii) - 1
    for i, (r1, r2) in enumerate(pairwise(radii)):
        paint = tip if i == len(radii) - 2 else "coat"
        parent = b.add("tail", parent, joint, turn, length, r1, r2, paint, 2,
                       (0.13 + 0.05 * i, 1.0, -0.7 * i, 0.0))  # fmt: skip
        joint, turn = complex(length, 0), curl


def _horse_hair(b, body, neck, head):
    b.add("neck", neck, complex(0.02, -0.12), 0.0, 0.44, 0.075, 0.06, "mark", 2)
    b.add("head", head, complex(-0.04, -0.09), 0.2, 0.12, 0.05, 0.03, "mark", 9)


def _trunk(b, body, neck, head):
    parent, joint, angle = head, complex(0.2, 0.1), 0.95
    for i in range(3):
        parent = b.add("muzzle", parent, joint, angle, 0.17, 0.105 - 0.022 * i, 0.083 - 0.022 * i,
                       "coat", 7, (0.12, 1.0, -0.8 * i, 0.0))  # fmt: skip
        joint, angle = 0.17 + 0j, 0.22 - 0.45 * (i == 1)
    b.add("muzzle", head, complex(0.17, 0.17), 0.55, 0.17, 0.032, 0.012, "white", 6)  # the tusk


def _bird() -> Animal:
    b = _Parts()
    body = b.add("body", -1, complex(-0.26, 0.02), -0.12, 0.42, 0.12, 0.2, "coat", 3)
    for spread, layer in ((0.2, 1), (-0.05, 2), (-0.3, 2)):
        b.add("tail", body, complex(-0.05, 0), math.pi + spread, 0.34, 0.05, 0.06, "mark", layer,
              (0.06, 2.0, 0.0, 0.0))  # fmt: skip
    head = b.add("head", body, complex(0.56, -0.14), 0.1, 0.05, 0.155, 0.145, "coat", 6)
    b.add("muzzle", head, complex(0.15, 0.02), 0.1, 0.16, 0.06, 0.012, "beak", 5)
    b.add("eye", head, complex(0.09, -0.05), 0.0, 0.002, 0.045, 0.045, "eyewhite", 9)
    b.add("eye", head, complex(0.10, -0.05), 0.0, 0.002, 0.028, 0.028, "dark", 10)
    for near in (False, True):
        paint, layer = ("coat", 7) if near else ("far", 0)
        joint = complex(0.3, -0.08 if near else -0.14)
        inner = b.add("wing", body, joint, -DOWN - 0.55, 0.34, 0.13, 0.12, paint, layer,
                      (0.75, 1.0, 0.0, 0.35))  # fmt: skip
        b.add("wing", inner, 0.32 + 0j, -0.35, 0.34, 0.115, 0.035, "mark" if near else "far",
              layer, (0.45, 1.0, -0.9, 0.0))  # fmt: skip
    for x in (0.1, 0.2):
        b.add("hind leg", body, complex(x, 0.14), math.pi - 0.5, 0.14, 0.025, 0.018, "beak", 2,
              (0.08, 1.0, 0.4, 0.0))  # fmt: skip
    return Animal(tuple(b), 0.5, 0.16, 0.05, flight=0.3)


def _fish() -> Animal:
    """Its body points backwards, from the head: y is up in the planes of its parts."""
    b = _Parts()
    body = b.add("body", -1, complex(0.12, 0), math.pi, 0.4, 0.3, 0.1, "coat", 3,
                 (0.05, 1.0, 0.0, 0.0))  # fmt: skip
    root = b.add("tail", body, 0.38 + 0j, 0.0, 0.12, 0.1, 0.06, "coat", 3,
                 (0.22, 1.0, -0.8, 0.0))  # fmt: skip
    for turn in (-0.75, 0.75):
        b.add("fin", root, 0.1 + 0j, turn, 0.26, 0.05, 0.085, "mark", 2, (0.2, 1.0, -1.5, 0.0))
    for x, y, angle, length in ((-0.08, 0.26, 0.75, 0.2), (0.08, 0.22, 0.6, 0.18)):
        b.add("fin", body, complex(x, y), angle, length, 0.08, 0.03, "mark", 2,
              (0.08, 1.0, -0.4, 0.0))  # fmt: skip
    b.add("fin", body, complex(0.16, -0.2), -0.9, 0.16, 0.06, 0.025, "mark", 2)
    b.add("fin", body, complex(0.06, -0.06), -0.55, 0.2, 0.05, 0.075, "mark", 7,
          (0.45, 1.0, 0.5, 0.0))  # fmt: skip
    b.add("muzzle", body, complex(-0.29, -0.06), math.pi, 0.015, 0.045, 0.045, "pale", 6)
    b.add("eye", body, complex(-0.15, 0.1), 0.0, 0.002, 0.062, 0.062, "eyewhite", 9)
    b.add("eye", body, complex(-0.165, 0.1), 0.0, 0.002, 0.036, 0.036, "dark", 10)
    return Animal(tuple(b), 0.42, 0.13, 0.035, flight=0.3)


_SPECIES: dict[str, Callable[[], Animal]] = {
    "cat": partial(
        _quadruped,
        length=0.56, hip=0.17, chest=0.165, leg=0.34, leg_r=0.062, neck=0.1, neck_angle=0.9,
        neck_r=0.12, skull=(0.07, 0.19, 0.0), muzzle=(0.03, 0.075, 0.07, 0.024),
        ear=("point", 0.19, 0.075, -0.1),
        tail=((0.06, 0.055, 0.05, 0.045, 0.04), 0.66, 0.75, 0.33, "mark"),
    ),
    "dog": partial(
        _quadruped,
        length=0.6, hip=0.17, chest=0.2, leg=0.42, leg_r=0.072, neck=0.2, neck_angle=0.95,
        neck_r=0.125, skull=(0.07, 0.165, 0.0), muzzle=(0.15, 0.09, 0.075, 0.042),
        ear=("flop", 0.2, 0.085, 0.25), tail=((0.06, 0.05, 0.035), 0.32, 0.85, 0.3, "coat"),
    ),
    "fox": partial(
        _quadruped,
        length=0.58, hip=0.145, chest=0.15, leg=0.36, leg_r=0.05, neck=0.16, neck_angle=0.75,
        neck_r=0.11, skull=(0.05, 0.15, 0.1), muzzle=(0.2, 0.085, 0.03, 0.032),
        ear=("point", 0.24, 0.08, -0.15),
        tail=((0.055, 0.105, 0.125, 0.02), 0.62, -0.25, 0.16, "white"),
        foot="dark",
    ),
    "horse": partial(
        _quadruped,
        length=0.68, hip=0.19, chest=0.2, leg=0.58, leg_r=0.062, neck=0.42, neck_angle=0.95,
        neck_r=0.115, skull=(0.16, 0.115, 0.6), muzzle=(0.08, 0.085, 0.075, 0.0),
        ear=("point", 0.11, 0.04, 0.25),
        tail=((0.045, 0.075, 0.08, 0.015), 0.6, -0.75, -0.25, "mark"),
        foot="dark", bob=0.02, extras=_horse_hair,
    ),
    "rabbit": partial(
        _quadruped,
        length=0.34, hip=0.23, chest=0.165, leg=0.2, leg_r=0.06, neck=0.1, neck_angle=0.8,
        neck_r=0.11, skull=(0.05, 0.155, 0.0), muzzle=(0.02, 0.07, 0.065, 0.024),
        ear=("point", 0.42, 0.062, -0.25), tail=((0.1, 0.1), 0.03, 0.4, 0.0, "white"),
        sway=0.6, bob=0.05,
    ),
    "elephant": partial(
        _quadruped,
        length=0.58, hip=0.31, chest=0.3, leg=0.4, leg_r=0.115, neck=0.1, neck_angle=0.55,
        neck_r=0.2, skull=(0.08, 0.225, 0.15), muzzle=(0.0, 0.0, 0.0, 0.0),
        ear=("fan", 0.16, 0.2, 0.35), tail=((0.035, 0.025, 0.045), 0.36, -0.95, -0.15, "dark"),
        sway=0.3, extras=_trunk,
    ),
    "bird": _bird,
    "fish": _fish,
}  # fmt: skip


def build(species: str, accessory: str | None = None) -> Animal:
    """The animal of that name, wearing the accessory (more parts, in a colour of their own)."""
    animal = _SPECIES[species]()
    if accessory is None:
        return animal
    parts = _Parts(animal.parts)
    {"hat": _hat, "scarf": _scarf, "collar": _collar}[accessory](parts)
    return replace(animal, parts=tuple(parts))


def _hat(parts: _Parts) -> None:
    head, on = parts.first("head", "body")
    if on.name == "head":
        top, up, width = complex(on.length * 0.5, -on.r1 * 0.78), -DOWN, on.r1 * 0.95
    else:  # the fish is all head
        top, up, width = complex(-0.02, on.r1 * 0.8), DOWN, 0.16
    parts.add("accessory", head, top, up, 0.2, width * 0.62, width * 0.5, "accessory", 12)
    parts.add("accessory", head, top - width, 0.0, 2 * width, 0.035, 0.035, "accessory", 11)


def _band(parts: _Parts, thick: float) -> tuple[int, float]:
    """Adds a band around the neck; its index and half its length."""
    neck, on = parts.first("neck", "head", "body")
    if on.name == "neck":
        half = on.r2 * 1.12
        at, turn = complex(on.length * 0.45, -half), DOWN
    elif on.name == "head":  # the bird wears it under its head
        at, turn, half = complex(-0.1, -0.09), DOWN + 0.35, 0.12
    else:  # the fish behind its gills
        at, turn, half = complex(0.06, -0.24), DOWN, 0.24
    return parts.add("accessory", neck, at, turn, 2 * half, thick, thick, "accessory", 5), half


def _scarf(parts: _Parts) -> None:
    band, half = _band(parts, 0.06)
    parts.add("accessory", band, complex(half * 0.5, 0), 0.9, 0.26, 0.05, 0.06, "accessory", 8,
              (0.25, 2.0, 0.0, 0.0))  # its end flutters  # fmt: skip


def _collar(parts: _Parts) -> None:
    band, half = _band(parts, 0.032)
    parts.add("accessory", band, complex(2 * half, 0), 0.0, 0.02, 0.042, 0.042, "gold", 8)
