"""The benchmark: clips of the menagerie that no model was trained on, and what to make of each.

24 scenes of one animal, drawn from their seeds alone; neither the seeds nor the scenes (a look on a
ground) are in the recipe's training data, and in 24 frames no animal leaves the picture. In every
eight clips each species and each color is met once and each coat twice, in every four all coats on
four grounds: so `benchmark()[:8]` is a small benchmark, and `[:4]` a smaller one.

Each clip comes with three prompts, each its caption with one attribute changed: of 72, 18 change
the color, 18 the coat, 18 the ground and 18 the species, from one animal on four legs to another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tfkit.menagerie.casting import complete
from tfkit.menagerie.vocabulary import ATTRIBUTES, Description, attribute, change, compose
from tfkit.menagerie.world import film
from tfkit.settings import check_whole
from tfkit.video import Clip

SEEDS = (
    700857, 704735, 700077, 702470, 700623, 701621, 701439, 708543,
    700677, 704169, 703197, 706446, 700330, 703377, 701580, 703623,
    703019, 700690, 704052, 704247, 700098, 701293, 704762, 702923,
)  # fmt: skip
FOUR_LEGGED = ("cat", "dog", "fox", "horse", "rabbit", "elephant")
_FIRST_STEP = {"species": 1, "color": 3, "coat": 1, "ground": 1}  # a colour's neighbours are alike


@dataclass(frozen=True)
class Change:
    """A prompt that says of a scene what its caption says, but for one attribute.

    kind: "color", "coat", "ground" or "species"; before and after: its two words.
    """

    prompt: str
    kind: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.before} → {self.after}"


@dataclass(frozen=True)
class Task:
    """A clip of the menagerie, named by caption and seed, and the changes asked of it."""

    caption: str
    seed: int
    changes: tuple[Change, ...] = field(repr=False)
    frames: int = 24

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(change.prompt for change in self.changes)

    def film(self) -> Clip:
        """The clip that is to be edited, with its ground truth."""
        return film(self.caption, frames=self.frames, seed=self.seed)

    def target(self, change: Change) -> Clip:
        """The perfect edit: the same scene filmed with ``change`` and nothing else changed."""
        return film(change.prompt, frames=self.frames, seed=self.seed)


def benchmark(frames: int = 24) -> tuple[Task, ...]:
    """24 clips of ``frames`` 128 x 128 pictures, three prompts each; nothing is filmed yet.

    The first 4, 8, 12, ... are balanced among themselves. A clip of fewer frames is the beginning
    of a longer one. Raises ValueError for ``frames`` below 2: one picture is no video.

    >>> task = tfkit.menagerie.benchmark(frames=16)[0]
    >>> task.caption, task.prompts
    ('a striped orange fox on snow', ('a striped orange horse on snow', ...))
    >>> clip, perfect = task.film(), task.target(task.changes[0])
    """
    check_whole("frames", frames, least=2)
    scenes = [complete(Description(), seed) for seed in SEEDS]
    return tuple(
        Task(compose(scene), seed, tuple(_changes(scene, i // 8)), frames)
        for i, (seed, scene) in enumerate(zip(SEEDS, scenes, strict=True))
    )


def _changes(scene: Description, eight: int) -> Iterator[Change]:
    """Three changes of a scene, each to a word further on in the vocabulary's list.

    eight: which eight of the clips it is in, from 0: each goes one word further than the last.
    Birds and fish keep their species, for no other has their shape; each animal on four legs keeps
    its color, its coat or its ground, another of them in each eight.
    """
    (look,), kinds = scene.looks, ["color", "coat", "ground"]
    if look.species in FOUR_LEGGED:
        del kinds[(FOUR_LEGGED.index(look.species) + eight + 1) % 3]
        kinds.insert(0, "species")
    for kind in kinds:
        words = FOUR_LEGGED if kind == "species" else ATTRIBUTES[kind]
        before = attribute(scene, kind)
        assert before is not None, "complete() leaves nothing open"
        after = words[(words.index(before) + _FIRST_STEP[kind] + eight) % len(words)]
        yield Change(compose(change(scene, **{kind: after})), kind, before, after)
