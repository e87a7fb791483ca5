"""The menagerie's world: its ground truth against its pictures and against an independent oracle.

`python tests/test_world.py` draws tests/reference/ anew: only when the world is meant to change,
for the menagerie's models are trained on it.
"""

import cmath
import colorsys
import functools
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clips import annotations_unchecked, bare
from PIL import Image

from tfkit.menagerie import anatomy, casting, film, species, world
from tfkit.menagerie.vocabulary import (
    ACCESSORIES,
    COATS,
    COLORS,
    GROUNDS,
    SPECIES,
    Description,
    Look,
    change,
    compose,
    parse,
)
from tfkit.metrics import warp

REFERENCE = Path(__file__).parent / "reference"
TRUTH = ("frames", "flow", "visible", "parts", "mask", "depth")
WALKERS = [name for name in SPECIES if not species.build(name).flight]


def inner(labels, radius=1):
    """Pixels whose neighbours all have their own label."""
    x, k = labels[:, None].float(), 2 * radius + 1
    return (F.max_pool2d(x, k, 1, radius) == -F.max_pool2d(-x, k, 1, radius))[:, 0]


def beside(mask):
    """The mask and one pixel around it, which its antialiasing colours."""
    return F.max_pool2d(mask[:, None].float(), 3, 1, 1).bool()


def labels_of(clip):
    """Parts told apart by animal."""
    return clip["parts"] + len(anatomy.PARTS) * clip["depth"]


def landing(flow, points):
    """Where the flow takes pixels (f, y, x), rounded: f + 1, y, x, and which are in the picture."""
    f, y, x = points
    dx, dy = flow[f, :, y, x].T
    x, y = (x + dx).round().long(), (y + dy).round().long()
    inside = (x >= 0) & (x < casting.SIZE) & (y >= 0) & (y < casting.SIZE)
    return (f[inside] + 1, y[inside], x[inside]), inside


def errors(clip, flow, where):
    """Mean colour difference along a flow at pixels that it keeps in the picture."""
    warped, inside = warp(clip["frames"], flow)
    return (warped - clip["frames"][:-1]).abs().mean(1)[where & inside]


@pytest.fixture(scope="module")
def measured():
    """What 200 random clips of 3 frames say of their own ground truth."""
    found = {name: [] for name in ("exact", "zero", "negated", "half a pixel off", "labels")}
    found |= {"clips": [], "hidden": [], "on an animal": []}
    for seed in range(200):
        with annotations_unchecked():  # threefold speed where many clips are drawn
            scene = casting.stage(casting.random_description(seed), 3, seed, start=seed % 24)
            clip = world.render(scene)
        flow, label = clip["flow"], labels_of(clip)
        sure = clip["visible"] & inner(label)[:-1]
        exact = errors(clip, flow, sure)
        found["exact"].append(exact)
        found["clips"].append(exact.mean())
        if seed < 20:
            found["zero"].append(errors(clip, flow * 0, sure))
            found["negated"].append(errors(clip, -flow, sure))
            found["half a pixel off"].append(errors(clip, flow + 0.5, sure))
        there, inside = landing(flow, sure.nonzero(as_tuple=True))
        assert inside.all(), "a visible pixel leaves the picture"
        found["labels"].append(label[there] == label[:-1][sure])
        # Hidden animals: the picture shows something else there. Hidden ground, away from the
        # horizon and from the sides, lies under an animal or its soft edge.
        found["hidden"].append(errors(clip, flow, ~clip["visible"] & clip["mask"][:-1]))
        ground = ~clip["visible"] & ~clip["mask"][:-1]
        level = int(scene.ground.horizon)
        ground[:, level - 10 : level + 10] = False
        ground[:, :, :10] = ground[:, :, -10:] = False
        there, _ = landing(flow, ground.nonzero(as_tuple=True))
        found["on an animal"].append(beside(clip["mask"])[:, 0][there])
        assert torch.equal(clip["mask"], clip["depth"] > 0)
        assert torch.equal(clip["mask"], clip["parts"] > 0)
    return {name: torch.stack(v) if name == "clips" else torch.cat(v) for name, v in found.items()}


def figures(error):
    """Mean, 99th percentile, share above 0.2."""
    top = error.kthvalue(math.ceil(0.99 * error.numel())).values
    return error.mean().item(), top.item(), (error > 0.2).float().mean().item()


def test_flow_finds_the_next_frame(measured):
    mean, top, wild = figures(measured["exact"])
    assert mean < 0.005 and top < 0.06 and wild < 3e-4
    assert measured["clips"].max() < 0.01


@pytest.mark.parametrize("wrong", ["zero", "negated", "half a pixel off"])
def test_a_wrong_flow_is_found_out(measured, wrong):
    mean, top, _ = figures(measured[wrong])
    assert mean > 0.008 and top > 0.09
    assert mean > 4 * measured["exact"].mean()


def test_labels_travel_with_the_flow(measured):
    assert measured["labels"].float().mean() > 0.999


def test_what_is_declared_hidden_is_hidden(measured):
    assert measured["hidden"].mean() > 20 * measured["exact"].mean()
    assert measured["on an animal"].float().mean() > 0.99


def test_masks_of_depth_and_parts_are_one():
    clip = film("three animals", frames=4, seed=5)
    assert torch.equal(clip.mask, clip.depth > 0) and torch.equal(clip.mask, clip.parts > 0)
    assert clip.depth.max() <= 3 and clip.parts.max() < len(anatomy.PARTS)
    assert clip.mask.any() and not clip.mask.all()


# An oracle: the same animals by plain complex numbers, one pixel and one part at a time. A part is
# the union of discs along its length, so a distance to it is a minimum over many discs.


def part_places(actor, i):
    """Of each part in painting order: its index, screen positions of joint and end at frame i."""
    animal, t = actor.animal, actor.phase[i].item()
    placed = []
    for part in animal.parts:
        amplitude, frequency, shift, offset = part.swing
        turn = part.angle + amplitude * (offset + math.sin(frequency * t + shift))
        turn0, at0 = placed[part.parent] if part.parent >= 0 else (0.0, 0j)
        placed.append((turn0 + turn, at0 + part.joint * cmath.rect(1, turn0)))
    height = animal.foot + animal.flight + animal.bob * (1 + math.sin(2 * t))
    middle = complex(actor.x[i].item(), actor.foot_y - height * actor.scale)

    def screen(z):
        return middle + complex(z.real * actor.facing, z.imag) * actor.scale

    order = sorted(range(len(placed)), key=lambda k: (animal.parts[k].layer, k))
    for k in order:
        turn, at = placed[k]
        yield k, screen(at), screen(at + cmath.rect(animal.parts[k].length, turn))


def outline_distance(points, part, a, b, scale):
    """Pixels from complex screen points to a part from a to b: negative inside."""
    share = np.linspace(0, 1, 400)[:, None]
    r = (part.r1 + (part.r2 - part.r1) * share) * scale
    return (abs(points - (a + (b - a) * share)) - r).min(0)


def topmost(scene, i, points, margin=0.0):
    """Index over (actor, part) in painting order of what is on top at points, -1 for the ground."""
    top, number = np.full(points.shape, -1), 0
    for actor in scene.actors:
        for k, a, b in part_places(actor, i):
            d = outline_distance(points, actor.animal.parts[k], a, b, actor.scale)
            top, number = np.where(d < margin, number, top), number + 1
    return top


def move(scene, i, number, points):
    """Where points of a part, by its number, are a frame later: with the part, as it turns."""
    places = [p for actor in scene.actors for p in part_places(actor, i)]
    later = [p for actor in scene.actors for p in part_places(actor, i + 1)]
    owner = [actor for actor in scene.actors for _ in actor.animal.parts][number]
    (_, a, b), (_, a1, b1) = places[number], later[number]
    assert owner.facing in (1, -1)
    return a1 + (points - a) * (b1 - a1) / (b - a)


CROSSINGS = [("a dog and a cat", 3), ("two foxes", 0), ("an elephant and a bird", 7)]


@pytest.mark.parametrize("caption, seed", CROSSINGS)
def test_truth_agrees_with_an_oracle_where_animals_cross(caption, seed):
    frames = 12
    scene = casting.stage(parse(caption), frames, seed)
    clip = world.render(scene)
    overlap = [touching(d) for d in clip["depth"]]
    i = min(max(range(frames), key=lambda i: overlap[i]), frames - 2)
    assert overlap[i] > 0, "the animals do not cross: choose another seed"

    some = torch.Generator().manual_seed(0)
    animal = clip["mask"][i].nonzero()
    y, x = animal[torch.randperm(len(animal), generator=some)[:400]].T
    points = x.numpy() + 1j * y.numpy()
    top = topmost(scene, i, points)
    owners = [(n, p) for n, a in enumerate(scene.actors, 1) for p in part_names(a, i)]
    depth, names = (np.array(v) for v in zip(*owners, strict=True))
    clear = topmost(scene, i, points, 1e-3) == topmost(scene, i, points, -1e-3)
    assert (clip["depth"][i, y, x].numpy() == depth[top])[clear].all()
    label = [anatomy.PARTS[k] for k in clip["parts"][i, y, x]]
    assert (np.array(label) == names[top])[clear].all()

    moved = np.array([move(scene, i, n, p) for n, p in zip(top, points, strict=True)])
    flow = clip["flow"][i, :, y, x].numpy()
    np.testing.assert_allclose(flow[0] + 1j * flow[1], moved - points, atol=2e-3)

    seen = clip["visible"][i, y, x].numpy()
    inside = (abs(moved - 63.5 - 63.5j).real <= 63.5) & (moved.imag >= 0) & (moved.imag <= 127)
    inside &= (moved.real >= 0) & (moved.real <= 127)
    exactly = topmost(scene, i + 1, moved)
    # Covered, or so close to what is in front that its soft edge colours the place too.
    nearly = topmost(scene, i + 1, moved, margin=world.SOFT)
    assert (exactly == top)[seen].all()
    assert (nearly > top)[~seen & inside].all()
    assert 0.02 < (~seen).mean() < 0.9


def part_names(actor, i):
    return [actor.animal.parts[k].name for k, _, _ in part_places(actor, i)]


def touching(depth):
    """How many pixels of one animal have another's as their neighbour."""
    a, b = depth[:, :-1], depth[:, 1:]
    return ((a != b) & (a > 0) & (b > 0)).sum().item()


def test_distance_is_that_of_the_discs_along_a_part():
    rng = np.random.default_rng(0)
    for _ in range(50):
        length, r1, r2 = rng.uniform(0.002, 0.5), *rng.uniform(0.01, 0.3, 2)
        part = anatomy.Part("body", -1, 0j, 0.0, length, r1, r2)
        x, y = rng.uniform(-0.5, 1, 50), rng.uniform(-0.6, 0.6, 50)
        expected = outline_distance(x + 1j * y, part, 0, length, 1.0)
        got = anatomy.distance(torch.tensor(x), torch.tensor(y), part).numpy()
        outside = expected > 0  # inside, the nearest disc is not the nearest outline
        np.testing.assert_allclose(got[outside], expected[outside], atol=1e-4)
        assert (got[expected < -1e-4] < 0).all()


def test_one_animal_passes_before_the_other():
    clip = film("two foxes", frames=12, seed=0)
    alone = [film_without(clip, number) for number in (1, 2)]
    far, near = alone[1], alone[0]  # each alone, the other taken away
    both = far["mask"] & near["mask"]
    assert both.sum() > 200, "the animals do not cross: choose another seed"
    assert (clip.depth[both] == 2).all()
    torch.testing.assert_close(clip.parts[both], near["parts"][both])
    hides = both[1:] & ~both[:-1]
    assert hides.any() and not clip.visible.all()


def film_without(clip, number):
    """The clip's scene without its animal of this depth."""
    scene = casting.stage(parse(clip.caption), len(clip), 0)
    actors = tuple(a for n, a in enumerate(scene.actors, 1) if n != number)
    return world.render(casting.Scene(actors, scene.ground, scene.camera))


def test_the_nearer_stands_lower():
    for seed in range(20):
        feet = [a.foot_y for a in casting.stage(parse("three animals"), 1, seed).actors]
        assert feet == sorted(feet)


def test_same_seed_same_clip_on_any_number_of_threads():
    threads = torch.get_num_threads()
    one = film("a fox and two birds at night", frames=9, seed=4)
    try:
        torch.set_num_threads(3)
        other = film("a fox and two birds at night", frames=9, seed=4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for name in TRUTH:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert not torch.equal(one.frames, film(one.caption, frames=9, seed=5).frames)


def test_global_dtype_does_not_matter():
    before = film("a horse wearing a hat", frames=2, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        after = film("a horse wearing a hat", frames=2, seed=1)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(after.frames, before.frames)
    assert after.frames.dtype == torch.float32


def reference_clips():
    """Eight clips of two frames that between them show every species, coat, colour and ground."""
    rows = zip(SPECIES, COLORS, COATS * 2, itertools.cycle(GROUNDS), strict=False)
    for i, (name, color, coat, ground) in enumerate(rows):
        look = Look(name, color, coat, (*ACCESSORIES, None)[i % 4])
        yield film(compose(Description(((look, 1 + i % 3),), ground)), frames=2, seed=40 + i)


def reference_pictures():
    frames, parts, flows = zip(
        *((c.frames[1], c.parts[1] + 16 * c.depth[1], c.flow[0]) for c in reference_clips()),
        strict=True,
    )
    sheet = lambda rows: torch.cat([torch.cat(rows[:4], -1), torch.cat(rows[4:], -1)], -2)  # noqa: E731
    return (
        (sheet(frames) * 255).round().byte().permute(1, 2, 0).numpy(),
        sheet(parts).byte().numpy(),
        # 0.1 pixel a step, so that a small change of motion is one too
        (sheet(flows) * 10 + 128).round().clamp(0, 255).byte().numpy(),
    )


NAMES = ("frames.png", "parts.png", "flow-x.png", "flow-y.png")


def test_the_world_has_not_drifted():
    frames, parts, flow = reference_pictures()
    kept = [np.array(Image.open(REFERENCE / name)).astype(int) for name in NAMES]
    hint = "the world looks different from the one its models were trained on"
    difference = abs(frames.astype(int) - kept[0])
    assert difference.max() <= 2 and (difference > 0).mean() < 1e-3, hint
    assert (parts != kept[1]).mean() < 1e-4, hint
    for axis in (0, 1):
        assert (abs(flow[axis].astype(int) - kept[2 + axis]) > 1).mean() < 1e-4, hint


@pytest.mark.parametrize("caption", ["an animal", "two fish and a bird by the sea"])
def test_a_longer_clip_goes_on_where_a_shorter_one_ends(caption):
    short, long = film(caption, frames=8, seed=3), film(caption, frames=24, seed=3)
    for name in TRUTH:
        kept = getattr(short, name)
        assert torch.equal(kept, getattr(long, name)[: len(kept)]), name


def test_chunks_do_not_show(monkeypatch):
    clip = film("two dogs and a fish", frames=7, seed=6)
    monkeypatch.setattr(world, "CHUNK", 3)
    again = film("two dogs and a fish", frames=7, seed=6)
    for name in TRUTH:
        assert torch.equal(getattr(clip, name), getattr(again, name)), name


def test_a_scene_can_start_later():
    description = parse("two rabbits")
    whole = world.render(casting.stage(description, 6, 2))
    part = world.render(casting.stage(description, 2, 2, start=4))
    for name in ("frames", "parts", "mask", "depth"):
        assert torch.equal(part[name], whole[name][4:]), name


def test_one_frame_has_no_flow():
    clip = film("a cat", frames=1, seed=0)
    assert clip.flow is None and clip.visible is None and clip.frames.shape == (1, 3, 128, 128)


def test_animals_leave_and_come_back():
    scene = casting.stage(parse("three animals"), 1000, 1)
    x = torch.stack([a.x for a in scene.actors])
    assert (x >= -80).all() and (x < casting.SIZE + 80).all()
    leaps = [(a, i) for a in scene.actors for i in (a.x.diff().abs() > 80).nonzero().flatten()]
    assert leaps, "nobody leaves: choose another seed"
    actor, i = leaps[0]
    cut = slice(int(i), int(i) + 2)
    alone = casting.Actor(**{**vars(actor), "x": actor.x[cut], "phase": actor.phase[cut]})
    clip = world.render(casting.Scene((alone,), scene.ground, scene.camera[cut]))
    assert not clip["mask"].any(), "an animal vanishes or appears within the picture"


def test_bad_numbers_of_frames(unchecked):
    for frames in (0, -1, 2.0, True, "8", None):
        with pytest.raises(ValueError, match="frames="):
            bare(film)("a cat", frames=frames)
    assert len(bare(film)("a cat", frames=np.int64(2))) == 2


# What a caption changes, and what it does not


def pair(caption, **attributes):
    description = casting.complete(parse(caption), 11)
    return [
        film(compose(d), frames=3, seed=11)
        for d in (description, change(description, **attributes))
    ]


@pytest.mark.parametrize("attributes", [{"color": "blue"}, {"coat": "checkered"}])
@pytest.mark.parametrize("caption", ["a plain red cat on grass", "two spotted green fish on sand"])
def test_colour_and_coat_change_nothing_else(caption, attributes):
    before, after = pair(caption, **attributes)
    for name in TRUTH[1:]:
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    changed = (before.frames - after.frames).abs().amax(1, keepdim=True)
    assert (changed[~beside(before.mask)] == 0).all()
    assert (changed[before.mask[:, None]] > 0.05).float().mean() > 0.15


@pytest.mark.parametrize("ground", ["night", "sea", "autumn"])
def test_the_ground_leaves_the_animals_alone(ground):
    before, after = pair("a striped dog and a bird on grass", ground=ground)
    for name in ("parts", "mask", "depth"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    on = before.mask[:-1]
    assert torch.equal(before.flow.movedim(1, -1)[on], after.flow.movedim(1, -1)[on])
    assert torch.equal(before.visible[on], after.visible[on])
    far = ~beside(before.mask)[:, 0]
    assert (before.frames - after.frames).abs().mean(1)[far].mean() > 0.05
    if ground != "night":  # where the light is another
        inside = inner(before.parts, 2) & before.mask
        assert torch.equal(
            before.frames.movedim(1, -1)[inside], after.frames.movedim(1, -1)[inside]
        )


def test_an_accessory_adds_only_itself():
    description = Description(((Look("dog", "red", "plain"), 1),), "snow")
    seed = next(s for s in range(99) if "accessory" not in named_parts(description, s))
    bare_headed, dressed = (
        film(compose(d), frames=2, seed=seed)
        for d in (description, change(description, accessory="hat"))
    )
    hat = dressed.parts == anatomy.PARTS.index("accessory")
    assert hat.any()
    assert torch.equal(bare_headed.parts[~hat], dressed.parts[~hat])


def named_parts(description, seed):
    return {p.name for a in casting.stage(description, 1, seed).actors for p in a.animal.parts}


def test_another_species_keeps_its_colours_and_ground():
    for seed in range(10):
        cat, fish = (casting.stage(parse(f"a {name}"), 2, seed) for name in ("cat", "fish"))
        for name in ("base", "mark", "accessory"):
            assert torch.equal(getattr(cat.actors[0].dye, name), getattr(fish.actors[0].dye, name))
        assert cat.actors[0].dye.coat == fish.actors[0].dye.coat
        assert cat.actors[0].foot_y == fish.actors[0].foot_y
        assert torch.equal(cat.ground.lattice, fish.ground.lattice)
        assert cat.ground.name == fish.ground.name


@functools.cache
def leaders(caption):
    """The first animal, and the ground, of 60 seeds."""
    with annotations_unchecked():
        scenes = [casting.stage(parse(caption), 1, seed) for seed in range(60)]
    return [scene.actors[0] for scene in scenes], [scene.ground for scene in scenes]


def test_what_is_left_open_varies():
    actors, grounds = leaders("an animal")
    drawn = [actor.look for actor in actors]
    assert {look.species for look in drawn} == set(SPECIES)
    assert {look.color for look in drawn} == set(COLORS)
    assert {look.coat for look in drawn} == set(COATS)
    worn = [look.accessory for look in drawn]
    assert set(worn) == {None, *ACCESSORIES} and 0.1 < np.mean([w is not None for w in worn]) < 0.5
    assert {ground.name for ground in grounds} == set(GROUNDS)
    for field in ("horizon", "tint", "light", "phase", "sun"):
        assert len({getattr(ground, field) for ground in grounds}) == 60, field
    for field in ("period", "shift", "lean"):
        assert len({getattr(actor.dye, field) for actor in actors}) == 60, field


@pytest.mark.parametrize("color", COLORS)
def test_a_named_colour_varies_within_its_name(color):
    shades = [actor.dye.base.tolist() for actor in leaders(f"a {color} cat")[0]]
    assert len({tuple(shade) for shade in shades}) > 50
    hsv = np.array([colorsys.rgb_to_hsv(*shade) for shade in shades])
    if color == "white":
        assert hsv[:, 1].max() < 0.1 and hsv[:, 2].min() > 0.9
    elif color == "black":
        assert hsv[:, 2].max() < 0.25
    else:
        hue, spread, _, _ = casting._HSV[color]
        off = (hsv[:, 0] - hue + 0.5) % 1 - 0.5
        assert abs(off).max() <= spread + 1e-5 and off.std() > spread / 10
        assert hsv[:, 1].min() > 0.4 and hsv[:, 2].min() > 0.4


def test_names_of_colours_do_not_overlap():
    hues = sorted(v[:2] for name, v in casting._HSV.items() if name not in ("white", "black"))
    for (a, spread_a), (b, spread_b) in itertools.pairwise([*hues, (hues[0][0] + 1, hues[0][1])]):
        assert a + spread_a < b - spread_b


def test_a_named_colour_is_seen():
    def mean(color):
        clip = film(f"a plain {color} elephant on grass", frames=1, seed=2)
        body = inner(clip.parts, 2) & (clip.parts == anatomy.PARTS.index("body"))
        return clip.frames.movedim(1, -1)[body].mean(0)

    red, green, blue = (mean(color) for color in ("red", "green", "blue"))
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2
    assert mean("white").min() > 0.65 and mean("black").max() < 0.35


def test_a_herd_is_of_one_look():
    for seed in range(10):
        mates = casting.stage(parse("three animals"), 1, seed).actors
        assert len({mate.look for mate in mates}) == 1
        assert len({tuple(mate.dye.base.tolist()) for mate in mates}) == 1
        assert len({mate.dye.shift for mate in mates}) == 3  # but no pattern is another's
        assert len({mate.foot_y for mate in mates}) == 3


def test_complete_tells_what_stage_casts():
    for seed in range(30):
        whole = casting.complete(parse("two animals and a cat"), seed)
        cast = casting.stage(parse("two animals and a cat"), 1, seed)
        assert sorted(map(repr, whole.looks)) == sorted(repr(a.look) for a in cast.actors)
        assert whole.ground == cast.ground.name
        again = casting.stage(whole, 1, seed)
        assert [a.look for a in again.actors] == [a.look for a in cast.actors]


# Anatomy and gait


@pytest.mark.parametrize("accessory", [None, *ACCESSORIES])
@pytest.mark.parametrize("name", SPECIES)
def test_animals_are_well_built(name, accessory):
    animal = species.build(name, accessory)
    for i, part in enumerate(animal.parts):
        assert part.name in anatomy.PARTS and part.name != "ground"
        assert -1 <= part.parent < i or (i > 0 and part.parent < i)
    assert {"body", "eye", "tail"} <= {part.name for part in animal.parts}
    assert ("accessory" in {part.name for part in animal.parts}) == (accessory is not None)
    still = anatomy.Animal(
        tuple(anatomy.Part(**{**vars(p), "swing": (0.0, 1.0, 0.0, 0.0)}) for p in animal.parts),
        0.0, 0.0, 0.0,
    )  # fmt: skip
    rotation, origin = anatomy.pose(still, torch.zeros(1, dtype=torch.float64))
    for k, (turn, at) in enumerate(anatomy.rest(animal)):
        assert rotation[0, k].item() == pytest.approx(turn)
        assert origin[0, k].item() == pytest.approx(at)


@pytest.mark.parametrize("name", WALKERS)
def test_feet_stand_while_the_body_passes(name):
    animal = species.build(name)
    turns, step = 720, 2 * math.pi / 720
    rotation, origin = anatomy.pose(animal, torch.arange(turns, dtype=torch.float64) * step)
    for k, part in enumerate(animal.parts):
        above = animal.parts[animal.parts[part.parent].parent] if part.parent > 0 else None
        if not (above and part.name == above.name and part.name.endswith("leg")):
            continue  # only the third piece of a leg is a foot
        foot = origin[:, k] + rotation[:, k] * part.length / 2
        speed = (foot.real.roll(-1) - foot.real.roll(1)) / (2 * step) + animal.stride
        stands = speed.abs() < 0.35 * animal.stride  # over the ground
        assert stands.double().mean() > 0.15
        assert foot.imag[stands].mean() > foot.imag.mean(), "it stands in the air"
        assert foot.real.diff().abs().max() > 0, "it never moves"


if __name__ == "__main__":
    frames, parts, flow = reference_pictures()
    for name, picture in zip(NAMES, (frames, parts, *flow), strict=True):
        Image.fromarray(picture).save(REFERENCE / name, optimize=True)
    sys.stdout.write(f"drew {', '.join(NAMES)} in {REFERENCE}\n")
