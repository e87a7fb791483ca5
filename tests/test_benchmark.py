"""The benchmark: 24 clips that were held out, three prompts each that change one attribute."""

from collections import Counter

import pytest
import torch

from tfkit.menagerie import benchmark
from tfkit.menagerie.casting import complete
from tfkit.menagerie.recipe.data import reserved
from tfkit.menagerie.tasks import FOUR_LEGGED
from tfkit.menagerie.vocabulary import (
    ATTRIBUTES,
    COATS,
    COLORS,
    GROUNDS,
    SPECIES,
    Description,
    parse,
)

TASKS = benchmark()


def attributes(caption):
    scene = parse(caption)
    (look,) = scene.looks
    return {
        "species": look.species, "color": look.color, "coat": look.coat, "ground": scene.ground,
    }  # fmt: skip


def counts(tasks, kind):
    return Counter(attributes(task.caption)[kind] for task in tasks)


def test_there_are_24_clips_of_three_prompts():
    assert len(TASKS) == len({task.seed for task in TASKS}) == 24
    assert len({task.caption for task in TASKS}) == 24
    assert all(len(task.prompts) == len(set(task.prompts)) == 3 for task in TASKS)
    assert benchmark() == TASKS


def test_no_scene_and_no_seed_was_trained_on():
    for task in TASKS:
        assert reserved(parse(task.caption)), task.caption
        assert 500_000 < task.seed < 900_000  # training begins at a million
        # the seed alone is the scene, and nobody wears what no caption says
        assert complete(Description(), task.seed) == parse(task.caption)


def test_every_eight_clips_are_balanced_and_every_four_have_all_coats():
    for eight in (TASKS[:8], TASKS[8:16], TASKS[16:]):
        assert counts(eight, "species") == dict.fromkeys(SPECIES, 1)
        assert counts(eight, "color") == dict.fromkeys(COLORS, 1)
        assert counts(eight, "coat") == dict.fromkeys(COATS, 2)
        assert set(counts(eight, "ground")) == set(GROUNDS)
    for i in range(0, 24, 4):
        assert counts(TASKS[i : i + 4], "coat") == dict.fromkeys(COATS, 1)
        assert len(counts(TASKS[i : i + 4], "ground")) == 4
    assert counts(TASKS, "ground") == dict.fromkeys(GROUNDS, 4)
    for species in SPECIES:  # and no species is always the same in anything
        own = [attributes(t.caption) for t in TASKS if attributes(t.caption)["species"] == species]
        assert all(len({look[kind] for look in own}) == 3 for kind in ("color", "coat", "ground"))


def test_each_prompt_changes_the_one_attribute_it_says():
    for task in TASKS:
        before = attributes(task.caption)
        for change in task.changes:
            after = attributes(change.prompt)
            assert {kind for kind in before if before[kind] != after[kind]} == {change.kind}
            assert (change.before, change.after) == (before[change.kind], after[change.kind])
            if change.kind == "species":
                assert {change.before, change.after} <= set(FOUR_LEGGED)


def test_every_attribute_is_changed_equally_often_and_to_everything():
    changes = [change for task in TASKS for change in task.changes]
    assert Counter(change.kind for change in changes) == dict.fromkeys(ATTRIBUTES, 18)
    for eight in (TASKS[:8], TASKS[8:16], TASKS[16:]):
        assert set(Counter(c.kind for t in eight for c in t.changes).values()) == {6}
    for kind, words in (ATTRIBUTES | {"species": FOUR_LEGGED}).items():
        found = Counter(change.after for change in changes if change.kind == kind)
        assert set(found) == set(words)
        assert max(found.values()) - min(found.values()) <= 2, found


def test_a_clip_is_its_seed_and_its_target_moves_alike():
    task = benchmark(frames=3)[0]
    clip = task.film()
    assert len(clip) == 3 and clip.caption == task.caption and clip.flow is not None
    assert torch.equal(clip.frames[:2], benchmark(frames=2)[0].film().frames)
    coat = next(change for change in task.changes if change.kind != "species")
    target = task.target(coat)
    assert target.caption == coat.prompt
    assert torch.equal(target.parts, clip.parts) and torch.equal(target.mask, clip.mask)
    assert not torch.equal(target.frames, clip.frames)


@pytest.mark.parametrize("i", [0, 2, 5, 9, 13, 16])
def test_no_animal_leaves_the_picture(i):
    mask = TASKS[i].film().mask
    assert mask.flatten(1).float().mean(1).min() > 0.07
    assert not any(edge.any() for edge in (mask[:, 0], mask[:, -1], mask[..., 0], mask[..., -1]))


@pytest.mark.parametrize("frames", [1, 0, 2.5, True])
def test_one_picture_is_no_video(frames, unchecked):
    with pytest.raises(ValueError, match="expected a whole number of at least 2"):
        benchmark(frames)
