"""What reads frames for a metric: a model's tokens, and what results call such a reader.

Memory: that of :func:`tfkit.extract_tokens`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tfkit import hooks
from tfkit.diffusion import LatentDiffusion
from tfkit.loading import MENAGERIE
from tfkit.tokens import Kind, check_timestep, extract_tokens, modules_of, noised
from tfkit.video import Clip

Reader = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TokenReader:
    """Reads any frames' tokens with one layer of one model at one timestep, noise put on.

    Called with frames (f, 3, h, w) it returns (f, n, d); the same noise for source and edit.
    Raises ValueError for a layer or timestep that is not there and for several layers.
    """

    model: LatentDiffusion
    layer: str
    timestep: int
    kind: Kind = "output"
    seed: int = 0

    def __post_init__(self) -> None:
        found = hooks.match(self.model.unet, self.layer, modules_of(self.kind))
        if len(found) != 1:
            fits = ", ".join(found)
            raise ValueError(f"layer={self.layer!r}: expected one layer, it fits {fits}")
        check_timestep(self.timestep, self.model.scheduler.alphas_cumprod)

    @property
    def name(self) -> str:
        """Model, layer, kind and timestep: what its tokens must share to be compared."""
        kind = "" if self.kind == "output" else f" {self.kind}"
        noise = f", noise {self.seed}" if self.seed else ""
        return f"{name_of(self.model)} {self.layer}{kind} at t = {self.timestep}{noise}"

    def __call__(self, frames: Tensor | Clip) -> Tensor:
        source = noised(self.model, frames, seed=self.seed)
        found = extract_tokens(
            self.model, source, timestep=self.timestep, layers=self.layer, kind=self.kind
        )
        return next(iter(found.values()))


def name_of(reader: object) -> str:
    """What results call a model, a CLIP or a reader: its name, and of which weights.

    The menagerie's are tfkit's own and have a name alone.
    """
    own = getattr(reader, "name", None) or getattr(reader, "__name__", None)
    name, weights = str(own or type(reader).__name__), getattr(reader, "fingerprint", None)
    return f"{name} {weights()[:8]}" if callable(weights) and name != MENAGERIE else name
