"""The self-attention processors: extended over keyframes, and propagated from them.

A batch is [branch 1 frames | branch 2 frames | ...]; where the source is among the branches it is
the first. Attention matrices are never held: scaled_dot_product_attention throughout. Memory: for
each layer, the keyframes' source tokens and outputs, until the next step replaces them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tfkit.correspondence import follow, nearest_neighbors
from tfkit.keyframes import Neighbors

Keys = tuple[Tensor, Tensor]  # keys and values, of one list for each branch: (b, m, d) each


def project(attn: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b, n, d) of tokens (b, n, d)."""
    return attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)


def attend(attn: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b n d"]:
    """Attention of q over k and v, heads and output projection included."""
    q, k, v = (rearrange(x, "b n (h e) -> b h n e", h=attn.heads) for x in (q, k, v))
    out = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")
    for layer in attn.to_out:
        out = layer(out)
    return out / attn.rescale_output_factor


def extended(
    attn: nn.Module, tokens: Tensor, branches: int, source: bool
) -> Float[Tensor, "b n d"]:
    """Self-attention over all frames of a branch at once; the source's frames stay alone.

    softmax(Q_i [K_1 .. K_k]^T / sqrt d) [V_1 .. V_k]  (TokenFlow, eq. 3). All queries of a branch
    share one list of keys, so they are one long sequence and nothing is copied.
    """
    return extended_over(attn, tokens, branches, source)[0]


def extended_over(
    attn: nn.Module, tokens: Tensor, branches: int, source: bool, keys: Keys | None = None
) -> tuple[Float[Tensor, "b n d"], Keys | None]:
    """The same over ``keys``, the keys and values (b, m, d) of other frames, where they are given.

    Returns those attended to as well; None where no branch but the source is there.
    """
    q, k, v = project(attn, tokens)
    frames = len(tokens) // branches
    alone = frames if source else 0
    outs = []
    if alone:
        outs.append(attend(attn, q[:alone], k[:alone], v[:alone]))
    if branches > int(source):
        q, k, v = (rearrange(x[alone:], "(b f) n d -> b (f n) d", f=frames) for x in (q, k, v))
        keys = (k, v) if keys is None else keys
        outs.append(rearrange(attend(attn, q, *keys), "b (f n) d -> (b f) n d", f=frames))
    return torch.cat(outs), keys


@dataclass(frozen=True, eq=False)
class KeyTokens:
    """What a layer keeps of the keyframes: source tokens (k, n, d), outputs (branches, k, n, d)."""

    source: Tensor
    outputs: Tensor


@dataclass(eq=False)
class JointAttention:
    """A processor: every self-attention extended over all frames of the batch."""

    branches: int
    source: bool

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        return extended(attn, hidden_states, self.branches, self.source)


@dataclass(eq=False)
class KeyframeAttention:
    """A processor with two modes: the keyframes attend to each other, and the others to them.

    Of each layer it holds the keyframes' keys and values until the next step replaces them.
    """

    branches: int
    source: bool
    recall: bool = False  # False: the keyframes' pass
    kept: dict[nn.Module, Keys | None] = field(default_factory=dict)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        keys = self.kept[attn] if self.recall else None
        out, self.kept[attn] = extended_over(attn, hidden_states, self.branches, self.source, keys)
        return out


@dataclass(eq=False)
class FirstAttention:
    """A processor: in the edited branches every frame attends to the batch's first one alone."""

    branches: int
    source: bool

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        q, k, v = project(attn, hidden_states)
        frames = len(hidden_states) // self.branches
        first = torch.arange(self.branches, device=k.device).repeat_interleave(frames) * frames
        if self.source:
            first[:frames] = torch.arange(frames, device=k.device)  # the source sees itself
        return attend(attn, q, k[first], v[first])


@dataclass(eq=False)
class FlowAttention:
    """A processor with two modes: the keyframes' pass remembers, the frames' pass propagates.

    on: tokens the field is computed from, attn1's "output" or "input". live: whether the source
    branch is propagated with the others (the authors' code) or left as it is (the paper).
    """

    branches: int
    on: str
    live: bool
    neighbors: Neighbors | None = None  # None: the keyframes' pass
    kept: dict[nn.Module, KeyTokens] = field(default_factory=dict)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        if self.neighbors is None:
            return self._keyframes(attn, hidden_states)
        return self._frames(attn, hidden_states, self.neighbors)

    def _keyframes(self, attn, tokens: Tensor) -> Tensor:
        out = extended(attn, tokens, self.branches, source=True)
        k = len(tokens) // self.branches
        phi = out[:k] if self.on == "output" else tokens[:k]
        outputs = rearrange(out, "(b k) n d -> b k n d", k=k)
        self.kept[attn] = KeyTokens(phi, outputs if self.live else outputs[1:])
        return out

    def _frames(self, attn, tokens: Tensor, near: Neighbors) -> Tensor:
        key, source = self.kept[attn], tokens[: len(tokens) // self.branches]
        alone = None
        if self.on == "output" or not self.live:
            alone = attend(attn, *project(attn, source))
        phi = alone if self.on == "output" else source
        out = propagate(phi, key, near)
        out = rearrange(out, "b f n d -> (b f) n d")
        return out if self.live else torch.cat([alone, out])


def propagate(
    phi: Float[Tensor, "f n d"], key: KeyTokens, near: Neighbors
) -> Float[Tensor, "b f n d"]:
    """Carries the keyframes' tokens to frames along their nearest-neighbour fields (eq. 5).

    w * T_first[gamma_first] + (1 - w) * T_second[gamma_second]; only blended frames pay for two.
    """

    def carried(which: Tensor, rows: Tensor | slice) -> Tensor:
        index = nearest_neighbors(phi[rows], key.source[which]).index  # (f, n)
        return follow(key.outputs[:, which], index)

    out = carried(near.first, slice(None))
    if near.blended.any():
        rows = near.blended.nonzero().squeeze(1)
        w = near.weight[rows, None, None].to(out.dtype)
        out[:, rows] = w * out[:, rows] + (1 - w) * carried(near.second[rows], rows)
    return out
