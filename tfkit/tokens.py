"""What a UNet holds of each frame, place by place: its features as tokens.

Features are named by what they are ("output" of self-attention, its "input", "query", "key" or
"value", "cross"-attention's output, "residual" blocks) and read at any layers and timesteps, from a
trajectory (inverted latents) or from latents with noise put on (Tang et al., DIFT, NeurIPS 2023).
One pass for each timestep; memory: the tokens asked for, (f, n, d) each, and one batch; with
`folder` one timestep and the rest mapped from disk.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tfkit import hooks
from tfkit.checks import check_latents
from tfkit.conditions import latent_depth
from tfkit.diffusion import LatentDiffusion, check_model
from tfkit.files import claimed
from tfkit.inversion import check_kin
from tfkit.memory import fitting
from tfkit.sampling import with_noise
from tfkit.settings import check_choice, check_seed, check_whole, is_whole
from tfkit.token_folder import TokenFolder
from tfkit.trajectory import Trajectory, digest
from tfkit.video import Clip, size_of

Kind = Literal["output", "input", "query", "key", "value", "cross", "residual"]
KINDS = get_args(Kind)
_PART = {"query": ".to_q", "key": ".to_k", "value": ".to_v"}


@dataclass(frozen=True, eq=False)
class Noised:
    """Clean latents that are given noise at any timestep, instead of an inversion.

    ensemble: how many draws of noise features are averaged over (DIFT, section 4.1: 8 there).
    """

    clean: Float[Tensor, "f c h w"]
    prompt: str
    alphas: Float[Tensor, " t"]
    ensemble: int
    seed: int
    depth: Float[Tensor, "f 1 h w"] | None = None

    def at(self, t: int | Tensor) -> Float[Tensor, "m c h w"]:
        """sqrt(alpha) clean + sqrt(1 - alpha) noise, (ensemble * f, ...): draws one after another.

        A draw is one noise for all frames, so that what differs between them is the frames.
        """
        t = self.timestep(t)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.ensemble, 1, *self.clean.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.clean)
        draws = with_noise(self.clean, noise, self.alphas[t].to(self.clean))
        return rearrange(draws, "e f c h w -> (e f) c h w")

    def timestep(self, t: int | Tensor) -> int:
        """A timestep of the schedule, as Python's own. Raises ValueError for what is none."""
        return check_timestep(t.item() if isinstance(t, Tensor) else t, self.alphas)

    def depth_of(self, rows: Tensor) -> Float[Tensor, "b 1 h w"] | None:
        """The depth of some rows of :meth:`at`; None where it has no depth."""
        return None if self.depth is None else self.depth[rows.cpu() % len(self.clean)]


@torch.no_grad()
def noised(
    model: LatentDiffusion,
    frames_or_latents: Tensor | Clip,
    prompt: str = "",
    *,
    ensemble: int = 1,
    seed: int = 0,
    depth: Tensor | None = None,
) -> Noised:
    """Frames (f, 3, h, w) or latents (f, 4, h, w), ready for features at any timestep.

    Nothing is inverted. depth: (f, h, w), for a model that reads it.
    Raises ValueError for other shapes and for an ensemble below 1.
    """
    check_model(model)
    check_whole("ensemble", ensemble)
    seed = check_seed(seed)
    given = frames_or_latents.frames if isinstance(frames_or_latents, Clip) else frames_or_latents
    if isinstance(given, Tensor) and given.ndim == 4 and given.shape[1] == 3:
        given = model.encode(given)
    check_latents(given)
    clean = given.to(model.device, model.precision)
    depth = latent_depth(model, depth, len(clean), size_of(clean))
    return Noised(clean, prompt, model.scheduler.alphas_cumprod, ensemble, seed, depth)


@torch.no_grad()
def extract_features(
    model: LatentDiffusion,
    source: Trajectory | Noised,
    *,
    timesteps: Iterable[int],
    layers: str | Iterable[str],
    kind: Kind = "output",
    folder: str | Path | None = None,
    batch: int = 16,
) -> Mapping[tuple[int, str], Tensor]:
    """Tokens {(timestep, layer): (f, n, d)} at several timesteps, one pass over each.

    layers: module names or wildcards ("up_blocks.2.*"), of self-attention or, for the kinds
    "cross" and "residual", of cross-attention and residual blocks. n = height * width there, row by
    row. folder: write each timestep there as it comes, float16, and map it when read; what it holds
    already is not computed again.
    Raises ValueError for kinds, layers or timesteps that are not there, naming those that are, for
    a trajectory of another model, and for a folder that belongs to something else or is in use;
    OSError where it cannot be written.
    """
    check_model(model)
    check_choice("kind", kind, KINDS)
    batch = check_whole("batch", batch)
    if not isinstance(source, Trajectory | Noised):
        raise ValueError(
            f"source is a {type(source).__name__}; expected a Trajectory, as tfkit.invert returns, "
            "or what tfkit.tokens.noised makes of frames"
        )
    if isinstance(source, Trajectory):
        check_kin(model, source)
    names = hooks.match(model.unet, layers, modules_of(kind))
    if not isinstance(timesteps, Iterable):
        raise ValueError(f"timesteps={timesteps!r}: expected a list of timesteps, [{timesteps!r}]")
    timesteps = [source.timestep(t) for t in timesteps]
    text, tokens = model.embed(source.prompt), dict[tuple[int, str], Tensor]()

    def of(t: int) -> dict[str, Tensor]:
        nonlocal batch
        found, batch = fitting(partial(read_tokens, model, source, t, text, names, kind), batch)
        return found

    if folder is None:
        for t in timesteps:
            tokens |= {(t, name): value for name, value in of(t).items()}
        return tokens
    with claimed(folder, "tokens", _origin(model, source, names, kind), _NAMES) as place:
        kept = TokenFolder(place, timesteps, names)
        for t in timesteps:
            if not kept.holds(t):
                kept.put(t, of(t))
        return kept


_NAMES = {"layers": "set of layers"}


def _origin(
    model: LatentDiffusion, source: Trajectory | Noised, names: list[str], kind: Kind
) -> dict[str, Any]:
    """What tokens in a folder are computed from; two with the same origin are the same."""
    if isinstance(source, Noised):
        latents, depth = source.clean, source.depth
        noise = f"{source.ensemble} draws of seed {source.seed}"
    else:  # the noisiest latents depend on all that is below them
        latents, depth = source.noise, source.conditions.get("depth")
        noise = f"inverted in {len(source.timesteps)} steps"
    parts = [latents] if depth is None else [latents, depth]
    return {
        "video": " ".join(digest(part) for part in parts), "noise": noise,
        "prompt": source.prompt, "model": model.fingerprint(), "dtype": str(model.dtype),
        "kind": kind, "layers": names,
    }  # fmt: skip


def check_timestep(t: object, alphas: Tensor) -> int:
    """The same as Python's own; raises ValueError unless ``t`` is a timestep of a schedule."""
    if not is_whole(t) or not 0 <= t < len(alphas):
        raise ValueError(f"timestep {t!r}: expected 0 to {len(alphas) - 1}")
    return int(t)


def modules_of(kind: Kind) -> str:
    """What hooks call the modules whose features are of this kind."""
    return {"cross": "attn2", "residual": "resnets"}.get(kind, "attn1")


def read_tokens(
    model: LatentDiffusion,
    source: Trajectory | Noised,
    t: int,
    text: Tensor,
    names: Iterable[str],
    kind: Kind,
    batch: int,
) -> dict[str, Tensor]:
    """Tokens {layer: (f, n, d)} at one timestep: each frame once through the UNet, in ``batch``.

    An ensemble's draws are averaged. names: of modules, text: the prompt's embedding.
    """
    latents, ensemble = source.at(t), getattr(source, "ensemble", 1)
    recorded = {name: name + _PART.get(kind, "") for name in names}
    chunks: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in torch.arange(len(latents)).split(batch):
        given, depth = latents[rows], source.depth_of(rows)
        record = hooks.record(model.unet, recorded.values(), inputs=kind == "input")
        with record as seen, hooks.until(model.unet, recorded.values()):
            model.predict_noise(given, t, text, depth=depth)
        if not all(torch.isfinite(value).all() for value in seen.values()):
            model.predict_noise(given, t, text, depth=depth)  # to its end, to tell what overflowed
        for name, where in recorded.items():
            value = seen[where]
            chunks[name].append(value.flatten(2).transpose(1, 2) if kind == "residual" else value)
    whole = {name: torch.cat(parts) for name, parts in chunks.items()}
    if ensemble > 1:
        whole = {n: v.unflatten(0, (ensemble, -1)).mean(0) for n, v in whole.items()}
    return whole


def extract_tokens(
    model: LatentDiffusion,
    source: Trajectory | Noised,
    *,
    timestep: int,
    layers: str | Iterable[str],
    kind: Kind = "output",
    batch: int = 16,
) -> dict[str, Tensor]:
    """Tokens {layer: (f, n, d)} at one timestep: by default attn1's output, TokenFlow's own.

    See :func:`extract_features` for ``layers``, ``kind`` and the errors.
    """
    found = extract_features(
        model, source, timesteps=[timestep], layers=layers, kind=kind, batch=batch
    )
    return {name: tokens for (_, name), tokens in found.items()}


@dataclass(frozen=True)
class Layer:
    """One self-attention layer: its name, its place (h, w), tokens and their width."""

    name: str
    size: tuple[int, int]
    width: int
    heads: int

    @property
    def tokens(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def label(self) -> str:
        """The name in short: "down 0.1" is down_blocks.0.attentions.1, "mid" the middle's."""
        numbers = [part for part in self.name.split(".") if part.isdigit()]
        middle, block = self.name.startswith("mid"), numbers.pop()
        place = ".".join(numbers[1:] if middle else numbers)
        kind = self.name.split("_")[0]
        several = f"/{block}" if block != "0" else ""
        return kind + several if middle else f"{kind} {place}{several}"


class LayerTable(tuple[Layer, ...]):
    """The self-attention layers of a model, printed as a table."""

    def __repr__(self) -> str:
        wide = max(len(layer.name) for layer in self)
        rows = [f"{'layer'.ljust(wide)}    size  tokens  width  heads"]
        rows += [
            f"{x.name.ljust(wide)}  {x.size[0]:>2} x {x.size[1]:<2} {x.tokens:>6} {x.width:>6} "
            f"{x.heads:>6}"
            for x in self
        ]
        return "\n".join(rows)


def layer_table(model: LatentDiffusion, size: tuple[int, int] | None = None) -> LayerTable:
    """Every self-attention layer in the order data meets them, for frames of (h, w) pixels.

    size: by default the model's own; ValueError for what is none. The names serve as ``layers`` of
    :func:`extract_tokens`.
    """
    if size is not None and (not isinstance(size, tuple | list) or len(size) != 2):
        raise ValueError(f"size={size!r}: expected (height, width) in pixels")
    h, w = model.grid(*(size or (model.sample_size, model.sample_size)))
    deepest = len(model.unet.config.block_out_channels) - 1
    rows = []
    for name, module in hooks.self_attention(model.unet).items():
        block, index = name.split(".")[:2]
        i = int(index) if index.isdigit() else 0
        level = {"down_blocks": i, "up_blocks": deepest - i}.get(block, deepest)
        place = -(-h // 2**level), -(-w // 2**level)
        rows.append(Layer(name, place, module.to_q.in_features, module.heads))
    return LayerTable(rows)
