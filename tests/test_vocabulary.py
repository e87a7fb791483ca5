"""Captions: what is understood, what is written, and what is refused with which words."""

import itertools
import random

import pytest
from clips import bare
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit.menagerie import casting
from tfkit.menagerie.vocabulary import (
    ACCESSORIES,
    ATTRIBUTES,
    COATS,
    COLORS,
    GROUNDS,
    SPECIES,
    Description,
    Look,
    change,
    compose,
    forget,
    parse,
    phrase,
    unknown_words,
)


def choice(words):
    return st.sampled_from((None, *words))


# Plain values: the objects are made in the tests, for the annotation checks draw random numbers
# of their own, which hypothesis does not want inside strategies.
LOOKS = st.tuples(choice(SPECIES), choice(COLORS), choice(COATS), choice(ACCESSORIES))
GROUPS = st.lists(st.tuples(LOOKS, st.integers(1, 3)), min_size=1, max_size=3).filter(
    lambda groups: sum(count for _, count in groups) <= 3
)


def describe(groups, ground):
    return Description(tuple((Look(*look), count) for look, count in groups), ground)


def one(species=None, color=None, coat=None, accessory=None, *, ground=None, count=1):
    return Description(((Look(species, color, coat, accessory), count),), ground)


@settings(deadline=None, max_examples=200)
@given(GROUPS, choice(GROUNDS))
def test_what_is_composed_is_parsed_back(groups, ground):
    description = describe(groups, ground)
    assert parse(compose(description)) == description


def test_captions_of_one_animal_are_parsed_back():
    every = itertools.product(*((None, *words) for words in (SPECIES, COLORS, COATS, GROUNDS)))
    for species, color, coat, ground in random.Random(0).sample(list(every), 500):
        description = one(species, color, coat, ground=ground)
        assert parse(compose(description)) == description


@pytest.mark.parametrize(
    "caption, description",
    [
        ("dog striped snow", one("dog", coat="striped", ground="snow")),
        ("a striped dog on snow", one("dog", coat="striped", ground="snow")),
        ("Snow, striped DOG!", one("dog", coat="striped", ground="snow")),
        ("on snow, a dog, red and striped", one("dog", "red", "striped", ground="snow")),
        ("the dog is red", one("dog", "red")),
        ("a dog with stripes at the beach", one("dog", coat="striped", ground="sand")),
        ("a chequered kitten in winter", one("cat", coat="checkered", ground="snow")),
        ("violet bunny by the ocean", one("rabbit", "purple", ground="sea")),
        ("a small cute puppy in a field", one("dog", ground="grass")),
        ("an elephant wearing a hat", one("elephant", accessory="hat")),
        ("hat elephant", one("elephant", accessory="hat")),
        ("", Description()),
        ("an animal", Description()),
        ("red", one(color="red")),
        ("on snow", one(ground="snow")),
        ("two", one(count=2)),
        ("dogs", one("dog", count=2)),
        ("three foxes", one("fox", count=3)),
        ("fish", one("fish")),
        ("two fish", one("fish", count=2)),
        ("a photo of dogs", one("dog", count=2)),
        ("two animals at night", one(count=2, ground="night")),
        (
            "a cat and a dog",
            Description(((Look("cat"), 1), (Look("dog"), 1))),
        ),
        (
            "a red cat, a blue dog and a plain fox in autumn leaves",
            Description(
                ((Look("cat", "red"), 1), (Look("dog", "blue"), 1), (Look("fox", coat="plain"), 1)),
                "autumn",
            ),
        ),
        (
            "a cat and a red, striped dog",
            Description(((Look("cat"), 1), (Look("dog", "red", "striped"), 1))),
        ),
        (
            "two spotted dogs wearing a hat and a cat",
            Description(((Look("dog", coat="spotted", accessory="hat"), 2), (Look("cat"), 1))),
        ),
        (
            "a dog with a scarf and cats",
            Description(((Look("dog", accessory="scarf"), 1), (Look("cat"), 2))),
        ),
    ],
)
def test_captions_are_understood(caption, description):
    assert parse(caption) == description


def test_word_order_is_free():
    words = ("a", "red", "spotted", "horse", "hat", "sand")
    understood = {parse(" ".join(order)) for order in itertools.permutations(words)}
    assert understood == {one("horse", "red", "spotted", "hat", ground="sand")}


@pytest.mark.parametrize(
    "caption, unknown",
    [
        ("a red dragon on snow", ["dragon"]),
        ("a wizard and a dragon", ["dragon", "wizard"]),
        ("4 cats", ["4"]),
        ("ein Hund, größer", ["ein", "größer", "hund"]),
        ("un chat 猫", ["chat", "un", "猫"]),
    ],
)
def test_unknown_words_are_named_with_the_known_ones(caption, unknown):
    assert unknown_words(caption) == unknown
    with pytest.raises(ValueError, match=", ".join(unknown)) as error:
        parse(caption)
    for word in (*SPECIES, *COLORS, *COATS, *GROUNDS, *ACCESSORIES, "animal", "two", "three"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "caption, said",
    [
        ("a red blue dog", "color 'red' and the color 'blue'"),
        ("a red dog, blue", "color 'red' and the color 'blue'"),
        ("a striped and spotted dog", "coat 'striped' and the coat 'spotted'"),
        ("a dog wearing a hat and scarf", "accessory 'hat' and the accessory 'scarf'"),
        ("a dog on snow on grass", "ground 'snow' and the ground 'grass'"),
        ("two dogs and two cats", "asks for 4 animals"),
        ("three dogs and a cat", "asks for 4 animals"),
    ],
)
def test_contradictions_are_refused(caption, said):
    with pytest.raises(ValueError) as error:
        parse(caption)
    assert said in str(error.value) and repr(caption) in str(error.value)


def test_what_is_said_twice_is_no_contradiction():
    assert parse("a red red dog on a snowy winter snow") == one("dog", "red", ground="snow")


def test_a_caption_is_text(unchecked):
    with pytest.raises(ValueError, match="caption=None"):
        bare(parse)(None)


@pytest.mark.parametrize(
    "look, count, text",
    [
        (Look(), 1, "an animal"),
        (Look("elephant"), 1, "an elephant"),
        (Look("fox", "orange"), 2, "two orange foxes"),
        (Look("fish"), 3, "three fish"),
        (Look("dog", "orange"), 1, "an orange dog"),
        (Look("cat", "red", "striped", "hat"), 1, "a striped red cat wearing a hat"),
    ],
)
def test_phrases(look, count, text):
    assert phrase(look, count) == text


def test_every_ground_has_its_phrase():
    said = {compose(one(ground=ground)) for ground in GROUNDS}
    assert len(said) == len(GROUNDS)
    assert "an animal at night" in said and "an animal by the sea" in said


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_change_replaces_one_attribute(kind):
    before = parse("a striped red cat wearing a hat and two blue dogs on grass")
    word = ATTRIBUTES[kind][-1]
    after = change(before, **{kind: word})
    assert (after.ground if kind == "ground" else getattr(after.groups[0][0], kind)) == word
    assert after.groups[1] == before.groups[1]
    kept = change(after, **{kind: getattr(before.groups[0][0], kind, "grass")})
    assert kept == before


@settings(deadline=None, max_examples=200)
@given(GROUPS, choice(GROUNDS), st.integers(0, 1000), st.floats(0, 1))
def test_forget_only_removes(groups, ground, seed, keep):
    description = describe(groups, ground)
    left = forget(description, random.Random(seed), keep)
    assert left.ground in (None, description.ground)
    assert [count for _, count in left.groups] == [count for _, count in description.groups]
    for (after, _), (before, _) in zip(left.groups, description.groups, strict=True):
        for kind in ("species", "color", "coat", "accessory"):
            assert getattr(after, kind) in (None, getattr(before, kind))


def test_forget_leaves_as_much_as_it_should():
    full, rng = parse("a striped red cat wearing a hat on snow"), random.Random(0)
    left = [forget(full, rng, 0.65) for _ in range(2000)]

    def share(kind):
        return sum(getattr(d.groups[0][0], kind) is not None for d in left) / len(left)

    some = 11 / 12  # the rest lose everything
    assert share("color") == pytest.approx(0.65 * some, abs=0.04)
    assert share("coat") == pytest.approx(0.65 * some, abs=0.04)
    assert share("species") == pytest.approx(0.65 * 1.35 * some, abs=0.04)
    assert share("accessory") == pytest.approx(0.65 * 0.5 * some, abs=0.04)
    assert sum(d == Description() for d in left) > 2000 / 12 * 0.8


def test_training_captions_have_not_drifted():
    """What the models were trained to understand, in the order it is drawn."""
    rng = random.Random(5)
    drawn = [casting.random_description(seed) for seed in range(6)]
    assert [compose(d) for d in drawn] == FULL
    assert [compose(forget(d, rng)) for d in drawn] == FORGOTTEN


FULL = [
    "a plain orange dog wearing a collar and a striped green dog on grass",
    "a spotted yellow bird on snow",
    "a spotted white dog wearing a collar on sand",
    "a spotted purple cat and a striped yellow cat on snow",
    "three spotted yellow horses on snow",
    "a spotted purple horse and a spotted yellow elephant at night",
]
FORGOTTEN = [
    "a dog and a striped green animal on grass",
    "a spotted yellow bird on snow",
    "an animal",
    "a spotted purple cat and a striped yellow cat",
    "three yellow animals",
    "a spotted animal and a spotted yellow elephant at night",
]
