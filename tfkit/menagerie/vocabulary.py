"""The language of the menagerie: which words a caption may hold, and what they leave open.

A caption names some attributes of a scene and is silent on the rest. :func:`parse` reads it in
any word order; :func:`compose` writes one, the way training captions are written.
"""

import random
import re
from dataclasses import dataclass, replace

SPECIES = ("cat", "dog", "fox", "horse", "rabbit", "elephant", "bird", "fish")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
COATS = ("plain", "striped", "spotted", "checkered")
GROUNDS = ("grass", "sand", "snow", "night", "sea", "autumn")
ACCESSORIES = ("hat", "scarf", "collar")
ATTRIBUTES = {"species": SPECIES, "color": COLORS, "coat": COATS, "ground": GROUNDS}
MOST_ANIMALS = 3

_PHRASES = {
    "grass": "on grass",
    "sand": "on sand",
    "snow": "on snow",
    "night": "at night",
    "sea": "by the sea",
    "autumn": "in autumn",
}
_PLURALS = {"foxes": "fox", "fish": "fish", "animals": "animal"} | {
    f"{name}s": name for name in SPECIES if name not in ("fox", "fish")
}
_KINDS = {  # attribute words and what they say
    word: kind for kind, words in {**ATTRIBUTES, "accessory": ACCESSORIES}.items() for word in words
}
_NOUNS = {**{name: name for name in (*SPECIES, "animal")}, **_PLURALS}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "1": 1, "2": 2, "3": 3}
_NUMBER_WORDS = {2: "two", 3: "three"}
_SYNONYMS = {
    "meadow": "grass", "lawn": "grass", "field": "grass",
    "beach": "sand", "desert": "sand", "sandy": "sand",
    "winter": "snow", "snowy": "snow",
    "moonlight": "night", "dark": "night",
    "ocean": "sea", "water": "sea", "seaside": "sea", "shore": "sea",
    "fall": "autumn", "leaves": "autumn", "autumnal": "autumn",
    "kitten": "cat", "puppy": "dog", "pony": "horse", "bunny": "rabbit",
    "kittens": "cats", "puppies": "dogs", "ponies": "horses", "bunnies": "rabbits",
    "stripes": "striped", "stripy": "striped", "spots": "spotted", "dots": "spotted",
    "dotted": "spotted", "checks": "checkered", "chequered": "checkered", "checked": "checkered",
    "violet": "purple",
}  # fmt: skip
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "the of on in at by with wearing its is over under through across near photo picture image "
        "walking running swimming flying standing small little cute big large and",
    )
)


@dataclass(frozen=True)
class Look:
    """What a caption says of one animal; None is left open."""

    species: str | None = None
    color: str | None = None
    coat: str | None = None
    accessory: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene: (look, how many of it) groups and the ground."""

    groups: tuple[tuple[Look, int], ...] = ((Look(), 1),)
    ground: str | None = None

    @property
    def looks(self) -> tuple[Look, ...]:
        """One look for each animal, herd mates repeated."""
        return tuple(look for look, count in self.groups for _ in range(count))

    @property
    def herds(self) -> tuple[int, ...]:
        """For each animal, the number of its group."""
        return tuple(i for i, (_, count) in enumerate(self.groups) for _ in range(count))


def known_words() -> str:
    """The vocabulary, as the text that error messages end with."""
    return (
        f"animals: {', '.join(SPECIES)} (or 'animal'); colors: {', '.join(COLORS)}; "
        f"coats: {', '.join(COATS)}; grounds: {', '.join(GROUNDS)}; "
        f"accessories: {', '.join(ACCESSORIES)}; numbers: one, two, three"
    )


def words() -> list[str]:
    """Every word that a caption may hold, synonyms and fillers too, in alphabetical order."""
    return sorted({*_NOUNS, *_NUMBERS, *_FILLERS, *_KINDS, *_SYNONYMS})


def _words_of(caption: str) -> list[str]:
    """Its words and commas, synonyms replaced; digits and foreign letters make words too."""
    words = re.findall(r"[^\W_]+|,", caption.lower())
    return [_SYNONYMS.get(word, word) for word in words]


def unknown_words(caption: str) -> list[str]:
    """The words of a caption that are outside the vocabulary, sorted."""
    return sorted({*_words_of(caption)} - {*words(), ","})


def _agree(caption: str, kind: str, before: str | None, word: str) -> str:
    """``word``; ValueError where another ``kind`` has been named for the same animal or scene."""
    if before in (None, word):
        return word
    one = "scene" if kind == "ground" else "animal"
    raise ValueError(
        f"caption {caption!r} gives one {one} the {kind} {before!r} and the {kind} {word!r}; "
        f"name one{', or join two animals with and' if one == 'animal' else ''}."
    )


def _say(caption: str, look: Look, said: dict[str, str]) -> Look:
    """The look with the attributes ``said`` of it by kind; empties ``said``."""
    new = {kind: _agree(caption, kind, getattr(look, kind), word) for kind, word in said.items()}
    said.clear()
    return replace(look, **new)


def parse(caption: str) -> Description:
    """Reads a caption in any word order: ``"dog striped snow"`` as well as whole sentences.

    An attribute belongs to the next animal named, or to the last one where none follows before
    an "and" or a comma; after an article or a number always to the next. Raises ValueError for
    words outside the vocabulary (naming them, and the words that are known), for contradictions
    and for more than three animals.
    """
    if not isinstance(caption, str):
        raise ValueError(f"caption={caption!r}: expected text, such as 'a striped cat on snow'")
    unknown = unknown_words(caption)
    if unknown:
        raise ValueError(
            f"caption {caption!r} has words the menagerie does not know: {', '.join(unknown)}. "
            f"It knows {known_words()}."
        )

    groups: list[tuple[Look, int]] = []
    said: dict[str, str] = {}  # attributes whose animal is not known yet
    ground, number = None, None
    for word in _words_of(caption):
        if word in _NOUNS:
            species = None if _NOUNS[word] == "animal" else _NOUNS[word]
            least = 2 if word in _PLURALS and word != "fish" else 1
            groups.append((_say(caption, Look(species), said), max(number or 1, least)))
            number = None
        elif word in _NUMBERS:
            number = _NUMBERS[word]
        elif word in ("and", ",") and groups and number is None:
            groups[-1] = (_say(caption, groups[-1][0], said), groups[-1][1])
        elif word in GROUNDS:
            ground = _agree(caption, "ground", ground, word)
        elif word in _KINDS:
            kind = _KINDS[word]
            said[kind] = _agree(caption, kind, said.get(kind), word)
        if word in (*GROUNDS, *ACCESSORIES) and number == 1:
            number = None  # the article was theirs: "a dog wearing a hat"
    look, count = groups.pop() if groups else (Look(), number or 1)
    groups.append((_say(caption, look, said), count))
    count = sum(count for _, count in groups)
    if count > MOST_ANIMALS:
        raise ValueError(
            f"caption {caption!r} asks for {count} animals; a clip holds one to {MOST_ANIMALS}."
        )
    return Description(tuple(groups), ground)


def phrase(look: Look, count: int = 1) -> str:
    """``"two striped red dogs wearing a hat"``."""
    noun = look.species or "animal"
    if count > 1 and noun != "fish":
        noun = "foxes" if noun == "fox" else f"{noun}s"
    words = [word for word in (look.coat, look.color, noun) if word]
    article = "an" if words[0][0] in "aeio" else "a"
    text = " ".join([_NUMBER_WORDS.get(count, article), *words])
    return f"{text} wearing a {look.accessory}" if look.accessory else text


def compose(description: Description) -> str:
    """The caption that says exactly what ``description`` holds."""
    text = " and ".join(phrase(look, count) for look, count in description.groups)
    return f"{text} {_PHRASES[description.ground]}" if description.ground else text


def change(description: Description, **attributes: str | None) -> Description:
    """The description with attributes of its first animals, or the ground, replaced."""
    ground = attributes.pop("ground", description.ground)
    (look, count), *others = description.groups
    return Description(((replace(look, **attributes), count), *others), ground)


def attribute(description: Description, kind: str) -> str | None:
    """What the description says of its ground or of its first animal; None is left open."""
    return description.ground if kind == "ground" else getattr(description.looks[0], kind)


def _some(value: str | None, share: float, rng: random.Random) -> str | None:
    """The value in this share of cases, else None."""
    return value if rng.random() < share else None


def forget(description: Description, rng: random.Random, keep: float = 0.65) -> Description:
    """Leaves each attribute open with probability ``1 - keep``: how training captions are made.

    The species and the ground are kept more often, an accessory half as often. One caption in
    twelve loses everything, down to "an animal".
    """
    if rng.random() < 1 / 12:
        keep = 0.0
    groups = tuple(
        (
            Look(
                _some(look.species, keep * 1.35, rng),
                _some(look.color, keep, rng),
                _some(look.coat, keep, rng),
                _some(look.accessory, keep * 0.5, rng),
            ),
            count,
        )
        for look, count in description.groups
    )
    return Description(groups, _some(description.ground, keep * 1.2, rng))


_OTHER_WORDS = {
    word: [other for other, known in _SYNONYMS.items() if known == word]
    for word in set(_SYNONYMS.values())
}


def reword(caption: str, rng: random.Random, share: float = 0.1) -> str:
    """The caption with this share of its words replaced by synonyms, so that a model meets them."""
    return " ".join(
        rng.choice(_OTHER_WORDS[word]) if word in _OTHER_WORDS and rng.random() < share else word
        for word in caption.split()
    )
