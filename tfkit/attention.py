"""The self-attention processors: extended over keyframes, and propagated from them.

A batch is [branch 1 frames | branch 2 frames | ...]; where the source is among the branches it is
the first. Attention matrices are never held: scaled_dot_product_attention throughout. Frames that
attend to each other cannot go one after the other, but branches can: see :class:`Branches`. Memory:
for each layer, the keyframes' source tokens and outputs, until the step ends, and the fields of one
batch of frames.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from tfkit.correspondence import nearest_neighbors
from tfkit.keyframes import Neighbors

Keys = tuple[Tensor, Tensor]  # keys and values in the edited branches: (b, f, n, d) each
NONE = torch.arange(0)


def project(attn: Attention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b, n, d) of tokens (b, n, d)."""
    return attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)


def attend(attn: Attention, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b n d"]:
    """Attention of q over k and v, heads and output projection included."""
    q, k, v = (rearrange(x, "b n (h e) -> b h n e", h=attn.heads) for x in (q, k, v))
    out = rearrange(_softmax_attention(q, k, v), "b h n e -> b n (h e)")
    for layer in attn.to_out:
        out = layer(out)
    return out / attn.rescale_output_factor


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "b h n e"]:
    """softmax(q k^T / sqrt e) v. On a CPU narrow heads are filled up to whole registers with zeros,
    which changes no value: heads of 12, the menagerie's, take a tenth less time as heads of 16."""
    width = q.shape[-1]
    spare = -width % 8 if q.device.type == "cpu" and width < 32 else 0
    if not spare:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (F.pad(x, (0, spare)) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)[..., :width]


def extended(
    attn: Attention, tokens: Tensor, branches: int, source: bool
) -> Float[Tensor, "b n d"]:
    """Self-attention over all frames of a branch at once; the source's frames stay alone.

    softmax(Q_i [K_1 .. K_k]^T / sqrt d) [V_1 .. V_k]  (TokenFlow, eq. 3). All queries of a branch
    share one list of keys, so they are one long sequence and nothing is copied.
    """
    return extended_over(attn, tokens, branches, source)[0]


def extended_over(
    attn: Attention,
    tokens: Tensor,
    branches: int,
    source: bool,
    *,
    beside: Keys | None = None,
    own: bool = True,
) -> tuple[Float[Tensor, "b n d"], Keys | None]:
    """:func:`extended`, over the keys and values of other frames as well.

    beside: those keys and values, of the edited branches. own=False: attention is over these alone,
    and not over the frames' own. Returns the tokens, and the frames' own keys and values (None
    where there is no branch but the source).
    """
    q, k, v = project(attn, tokens)
    frames = len(tokens) // branches
    alone = frames if source else 0
    outs, keys = [], None
    if alone:
        outs.append(attend(attn, q[:alone], k[:alone], v[:alone]))
    if branches > int(source):
        q, k, v = (rearrange(x[alone:], "(b f) n d -> b f n d", f=frames) for x in (q, k, v))
        keys = k, v
        seen = join_keys(beside, keys if own else None)
        assert seen is not None, "own=False goes with keys beside"
        q, k, v = (rearrange(x, "b f n d -> b (f n) d") for x in (q, *seen))
        outs.append(rearrange(attend(attn, q, k, v), "b (f n) d -> (b f) n d", f=frames))
    return torch.cat(outs), keys


def join_keys(first: Keys | None, second: Keys | None, dim: int = 1) -> Keys | None:
    """The keys and values of both, along frames or (dim=0) branches; None counts as none."""
    if first is None or second is None:
        return first or second
    k, v = (torch.cat(both, dim) for both in zip(first, second, strict=True))
    return k, v


def some_keys(keys: Keys | None, positions: Int[Tensor, " c"]) -> Keys | None:
    """The keys and values of some of the frames; None where they are none."""
    if keys is None or not len(positions):
        return None
    k, v = (x[:, positions.to(x.device)] for x in keys)
    return k, v


@dataclass(frozen=True, eq=False)
class KeyTokens:
    """What is kept of the keyframes in a layer, for the other frames of the step.

    source: the source's tokens (k, n, d), which fields lead to. outputs: what is carried along the
    fields (branches, k, n, d). keys: keys and values in the edited branches; None where no later
    keyframe attends to these.
    """

    source: Tensor
    outputs: Tensor
    keys: Keys | None = None

    def at(self, positions: Int[Tensor, " c"]) -> "KeyTokens":
        """What is kept of some of them, by position."""
        at = positions.to(self.source.device)
        return KeyTokens(self.source[at], self.outputs[:, at], some_keys(self.keys, at))

    def then(self, more: "KeyTokens") -> "KeyTokens":
        """These, and others after them."""
        source = torch.cat([self.source, more.source])
        outputs = torch.cat([self.outputs, more.outputs], 1)
        return KeyTokens(source, outputs, join_keys(self.keys, more.keys))

    def beside(self, more: "KeyTokens") -> "KeyTokens":
        """The same frames' in these branches, and in those that come after."""
        outputs = torch.cat([self.outputs, more.outputs])
        return KeyTokens(self.source, outputs, join_keys(self.keys, more.keys, dim=0))


@dataclass(eq=False)
class Branches:
    """The branches of a step, and which of them are in a pass.

    source: whether the first one is the source's. turn: the only one of a pass, counted from 0;
    they go in this order. None: all are in it.
    """

    branches: int
    source: bool = True
    turn: int | None = field(default=None, init=False)

    @property
    def there(self) -> tuple[int, bool]:
        """How many branches the pass has, and whether the first of them is the source's."""
        return (self.branches, self.source) if self.turn is None else (1, self.turn < self.source)

    @property
    def complete(self) -> bool:
        """Whether all branches have gone with this pass."""
        return self.turn is None or self.turn == self.branches - 1

    def keys_there(self, keys: Keys | None) -> Keys | None:
        """Of keys and values of all edited branches those of the branches in the pass."""
        if keys is None or self.turn is None:
            return keys
        k, v = (x[self.turn - self.source :][:1] for x in keys)
        return None if self.turn < self.source else (k, v)


@dataclass(eq=False)
class JointAttention(Branches):
    """A processor: every self-attention extended over all frames of the batch."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return extended(attn, hidden_states, *self.there)


@dataclass(eq=False)
class KeyframeAttention(Branches):
    """A processor with two modes: the keyframes attend to each other, and the others to them.

    recall: False in the keyframes' pass, True in that of the others. context: which of the
    keyframes that went before stay, by position; keyframes attend to these as well. kept: of each
    layer the keyframes' keys and values, until the step ends.
    """

    recall: bool = False
    context: Tensor = NONE
    kept: dict[nn.Module, Keys | None] = field(default_factory=dict)
    _begun: dict[nn.Module, Keys | None] = field(default_factory=dict)  # of branches that have gone

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        before = self.kept.get(attn)
        if self.recall:
            return extended_over(attn, hidden_states, *self.there, beside=before, own=False)[0]
        before = some_keys(before, self.context)
        out, keys = extended_over(attn, hidden_states, *self.there, beside=self.keys_there(before))
        if self.turn:
            keys = join_keys(self._begun.pop(attn), keys, dim=0)
        if self.complete:
            self.kept[attn] = join_keys(before, keys)
        else:
            self._begun[attn] = keys
        return out


@dataclass(eq=False)
class FlowAttention(Branches):
    """A processor with three modes, one for each kind of pass of a step.

    "keyframes": all branches of keyframes, which attend to each other and to those before them that
    ``context`` names by position; the tokens of all these are kept.
    "source": the source's frames alone; of each layer it finds the fields to the keyframes.
    "edited": the other branches of the same frames; the keyframes' tokens are carried along the
    fields, and no attention is computed.
    on: tokens the field is computed from, attn1's "output" or "input". live: whether the source
    branch is propagated as well (the authors' code) or left as it is (the paper). in_blocks:
    whether keyframes to come will attend to those of the pass.
    """

    on: str = "output"
    live: bool = False
    mode: str = "keyframes"
    context: Tensor = NONE
    in_blocks: bool = False
    neighbors: Neighbors | None = None  # of the frames of the pass
    fields: dict[nn.Module, Tensor] = field(default_factory=dict)  # by layer, see find_fields
    kept: dict[nn.Module, KeyTokens] = field(default_factory=dict)
    _begun: dict[nn.Module, KeyTokens] = field(default_factory=dict)  # of branches that have gone

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        if self.mode == "keyframes":
            return self._keyframes(attn, hidden_states)
        if self.mode == "source":
            return self._source(attn, hidden_states)
        assert self.neighbors is not None, "of the pass, and set before it"
        out = carry(self.kept[attn].outputs[1:], self.fields[attn], self.neighbors)
        return rearrange(out, "b f n d -> (b f) n d")

    def _keyframes(self, attn: Attention, tokens: Tensor) -> Tensor:
        before = self.kept[attn].at(self.context) if len(self.context) else None
        beside = self.keys_there(before.keys) if before is not None else None
        branches, source = self.there
        out, keys = extended_over(attn, tokens, branches, source, beside=beside)
        outputs = rearrange(out, "(b k) n d -> b k n d", b=branches)
        phi = outputs[0] if self.on == "output" else tokens[: outputs.shape[1]]
        own = KeyTokens(phi, outputs, keys if self.in_blocks else None)
        if self.turn:
            own = self._begun.pop(attn).beside(own)
        if self.complete:
            self.kept[attn] = own if before is None else before.then(own)
        else:
            self._begun[attn] = own
        return out

    def _source(self, attn: Attention, tokens: Tensor) -> Tensor:
        assert self.neighbors is not None, "of the pass, and set before it"
        key, alone = self.kept[attn], tokens
        if self.on == "output" or not self.live:
            alone = attend(attn, *project(attn, tokens))
        phi = alone if self.on == "output" else tokens
        self.fields[attn] = find_fields(phi, key.source, self.neighbors)
        return carry(key.outputs[:1], self.fields[attn], self.neighbors)[0] if self.live else alone


def field_dtype(tokens: int) -> torch.dtype:
    """The integers that fields into so many tokens are kept as."""
    return torch.int16 if tokens <= torch.iinfo(torch.int16).max else torch.int32


def find_fields(
    phi: Float[Tensor, "f n d"], keys: Float[Tensor, "k m d"], near: Neighbors
) -> Int[Tensor, "f 2 n"]:
    """Of every token of a frame its nearest in the first and in the second keyframe it takes from.

    Integers as small as the tokens' number allows; zeros where there is no second keyframe.
    """
    small = field_dtype(keys.shape[1])
    out = torch.zeros(len(phi), 2, phi.shape[1], dtype=small, device=phi.device)
    out[:, 0] = nearest_neighbors(phi, keys[near.first]).index.to(small)
    if len(rows := near.rows):
        second = nearest_neighbors(phi[rows], keys[near.second[rows]])
        out[rows, 1] = second.index.to(small)
    return out


def carry(
    outputs: Float[Tensor, "b k m d"], fields: Int[Tensor, "f 2 n"], near: Neighbors
) -> Float[Tensor, "b f n d"]:
    """The keyframes' tokens at the places that the frames' fields point to, blended (eq. 5).

    w * T_first[gamma_first] + (1 - w) * T_second[gamma_second]; only blended frames pay for two.
    """
    tokens, m = outputs.flatten(1, 2), outputs.shape[2]  # all keyframes' in one row
    out = tokens[:, near.first[:, None] * m + fields[:, 0].long()]
    if len(rows := near.rows):
        w = near.weight[rows, None, None].to(out.dtype)
        second = tokens[:, near.second[rows, None] * m + fields[rows, 1].long()]
        out[:, rows] = second.lerp(out[:, rows], w)
    return out
