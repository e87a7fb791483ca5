"""The menagerie: a world with ground truth, and a Stable Diffusion trained on it."""

from tfkit.menagerie.tasks import benchmark
from tfkit.menagerie.world import film

__all__ = ["benchmark", "film"]
