"""TokenFlow and Plug-and-Play as plain loops: the oracle that tfkit is tested against.

Written from the equations, not for speed: attention head by head with the whole matrix, fields
token by token, blends frame by frame, all in float64 on a copy of the UNet. It knows nothing of
tfkit. Batches are always [source | negative | prompt], each of them the same frames.

Only alphas_cumprod, and so its square roots, stay in float32: that is how DDIMScheduler.step
computes, and what the authors' code does.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
from diffusers import DDIMScheduler
from torch import nn

# Plug-and-Play overwrites queries and keys in these blocks, and the output of this one convolution.
INJECTED_ATTENTION = {1: (1, 2), 2: (0, 1, 2), 3: (0, 1, 2)}  # up block: its attentions


# ---- noise and DDIM ------------------------------------------------------------------


def ddim(scheduler, steps):
    """This config's DDIM scheduler, set to `steps`; it steps with noise, never with v."""
    config = getattr(scheduler, "config", scheduler)
    result = DDIMScheduler.from_config(config, clip_sample=False, prediction_type="epsilon")
    result.set_timesteps(steps)
    return result


def predict_noise(unet, scheduler, latents, t, text):
    """The predicted noise of (f, 4, h, w) latents; text is (1 or f, l, d).

    A v-prediction becomes eps = sqrt(a_t) v + sqrt(1 - a_t) x, at the timestep the model is told.
    """
    text = text.double().expand(len(latents), -1, -1)
    output = unet(latents, int(t), encoder_hidden_states=text).sample
    config = getattr(scheduler, "config", scheduler)
    if config.get("prediction_type", "epsilon") == "v_prediction":
        alpha = ddim(scheduler, 1).alphas_cumprod[int(t)]
        output = alpha**0.5 * output + (1 - alpha) ** 0.5 * latents
    return output


@torch.no_grad()
def invert(unet, scheduler, latents, text, steps):
    """DDIM inversion: {t: latents at level t}, from the lowest timestep up to the highest.

    Each step leads from level t_prev to t with the noise that the model predicts when told t on
    the latents of level t_prev; below the lowest timestep stands final_alpha_cumprod.
    """
    unet = copy.deepcopy(unet).double()
    latents = latents.double()
    schedule = ddim(scheduler, steps)
    previous = schedule.final_alpha_cumprod
    trajectory = {}
    for t in sorted(int(t) for t in schedule.timesteps):
        alpha = schedule.alphas_cumprod[t]
        noise = predict_noise(unet, scheduler, latents, t, text)
        clean = (latents - (1 - previous) ** 0.5 * noise) / previous**0.5
        latents = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        trajectory[t] = latents
        previous = alpha
    return trajectory


@torch.no_grad()
def sample(unet, scheduler, latents, text, steps):
    """DDIM sampling from the highest timestep: ({t: latents at level t}, the clean latents)."""
    unet = copy.deepcopy(unet).double()
    latents = latents.double()
    schedule = ddim(scheduler, steps)
    trajectory = {}
    for t in schedule.timesteps.tolist():
        trajectory[t] = latents
        noise = predict_noise(unet, scheduler, latents, t, text)
        latents = schedule.step(noise, t, latents).prev_sample
    return trajectory, latents


# ---- attention, fields, weights ------------------------------------------------------


def attend(query, key, value, heads):
    """Softmax attention of one frame: query (n, d), key and value (m, d) -> (n, d)."""
    size = query.shape[-1] // heads
    result = torch.zeros_like(query)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        result[:, part] = scores.softmax(dim=-1) @ value[:, part]
    return result


def nearest(query, keys):
    """For each token of query (n, d), the index of the most cosine-similar of keys (m, d)."""
    index = []
    lengths = keys.norm(dim=-1)
    for token in query:
        similarity = (keys @ token) / (lengths * token.norm())
        index.append(int(similarity.argmax()))
    return index


def blend_weight(near, far, blend, dtype=torch.float64):
    """Weight of a keyframe `near` frames away when the other one is `far` frames away."""
    w = torch.tensor([far], dtype=dtype) / (near + far)
    return float(w.sigmoid() if blend == "sigmoid" else w)


def reference_sources(count, interval, blend="sigmoid", dtype=torch.float32):
    """{frame: [(keyframe's place, weight), ...]}: its own interval's keyframe and the previous one.

    Distances are taken as if each keyframe sat in the middle of its interval.
    """
    sources = {}
    for s in range(count):
        i = s // interval
        length = min(interval, count - i * interval)
        own = i * interval + length // 2
        previous = (i - 1) * interval + interval // 2
        if i == 0:
            sources[s] = [(0, 1.0)]
        else:
            w = blend_weight(abs(s - own), abs(s - previous), blend, dtype)
            sources[s] = [(i, w), (i - 1, 1 - w)]
    return sources


def paper_sources(count, keyframes, blend="sigmoid"):
    """The same for all frames but the keyframes: the keyframes around each, at true distances."""
    sources = {}
    for s in range(count):
        before = [k for k in keyframes if k < s]
        after = [k for k in keyframes if k > s]
        if s in keyframes:
            continue
        if not before:
            sources[s] = [(0, 1.0)]
        elif not after:
            sources[s] = [(len(keyframes) - 1, 1.0)]
        else:
            left, right = max(before), min(after)
            w = blend_weight(right - s, s - left, blend)
            sources[s] = [(keyframes.index(right), w), (keyframes.index(left), 1 - w)]
    return sources


# ---- the patched UNet ----------------------------------------------------------------


@dataclass
class Now:
    """What the patched layers must know during one call of the UNet."""

    stage: str = "plain"  # "plain", "keyframes", or the frame pass "reference" or "paper"
    inject_attention: bool = False
    inject_convolution: bool = False
    sources: dict = field(default_factory=dict)  # frame -> [(keyframe's place, weight), ...]
    frames: list = field(default_factory=list)
    tokens: str = "input"  # which source tokens make the field: attn1's "input" or "output"


class SelfAttention(nn.Module):
    """Stands in for one attn1; between passes it remembers its tokens of the keyframes."""

    def __init__(self, original, now, injected):
        super().__init__()
        self.original, self.now, self.injected = original, now, injected

    def forward(self, x, encoder_hidden_states=None, attention_mask=None, **kwargs):
        x = x.reshape(3, -1, *x.shape[1:])  # branch, frame, token, channel
        if self.now.stage == "plain":
            result = self.attention(x, extended=False)
        elif self.now.stage == "keyframes":
            result = self.attention(x, extended=True)
            self.keyframe_input, self.keyframe_output = x, result
        elif self.now.stage == "reference":
            result = self.propagated(x, query=x[0])
        elif self.now.stage == "paper":
            source = self.attention(x[:1], extended=False)[0]
            query = source if self.now.tokens == "output" else x[0]
            result = self.propagated(x, query=query)
            result[0] = source  # never altered
        return result.flatten(0, 1)

    def attention(self, x, extended):
        """Every frame attends to itself or, extended and edited, to all frames of its branch."""
        attn = self.original
        query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        if self.injected and self.now.inject_attention:
            for branch in range(1, len(x)):
                query[branch], key[branch] = query[0], key[0]
        result = torch.zeros_like(query)
        for branch in range(len(x)):
            for frame in range(x.shape[1]):
                seen = range(x.shape[1]) if extended and branch > 0 else [frame]
                keys = torch.cat([key[branch, other] for other in seen])
                values = torch.cat([value[branch, other] for other in seen])
                result[branch, frame] = attend(query[branch, frame], keys, values, attn.heads)
        return attn.to_out[0](result)

    def propagated(self, x, query):
        """The keyframes' outputs, gathered along the fields of the source branch and blended."""
        known = self.keyframe_output if self.now.tokens == "output" else self.keyframe_input
        result = torch.zeros_like(x)
        for place, frame in enumerate(self.now.frames):
            for keyframe, weight in self.now.sources[frame]:
                index = nearest(query[place], known[0, keyframe])
                for branch in range(3):
                    gathered = self.keyframe_output[branch, keyframe][index]
                    result[branch, place] += weight * gathered
        return result


class Convolution(nn.Module):
    """Stands in for up_blocks[1].resnets[1].conv2; its output goes to the residual sum."""

    def __init__(self, original, now):
        super().__init__()
        self.original, self.now = original, now

    def forward(self, x):
        source, negative, prompt = self.original(x).chunk(3)
        if self.now.inject_convolution:
            negative, prompt = source, source
        return torch.cat([source, negative, prompt])


def patched(unet):
    """A float64 copy of the UNet with every attn1 and the one convolution replaced, and its Now."""
    unet, now = copy.deepcopy(unet).double(), Now()
    injected = [
        unet.up_blocks[up].attentions[i].transformer_blocks[0]
        for up, places in INJECTED_ATTENTION.items()
        for i in places
    ]
    blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    for block in blocks:
        is_injected = any(block is other for other in injected)
        block.attn1 = SelfAttention(block.attn1, now, is_injected)
    resnet = unet.up_blocks[1].resnets[1]
    resnet.conv2 = Convolution(resnet.conv2, now)
    return unet, now


# ---- the edits -----------------------------------------------------------------------


def edit_reference(
    unet,
    scheduler,
    trajectory,
    source_text,
    negative_text,
    prompt_text,
    *,
    keyframes,
    interval,
    guidance,
    attention=0.5,
    convolution=0.8,
    inject=True,
    blend="sigmoid",
    weight_dtype=torch.float32,
):
    """TokenFlow as the authors' code has it: the edited latents (f, 4, h, w).

    trajectory is {t: latents}; the texts are (1, l, d); keyframes (steps, k) has one frame for each
    interval. Every frame goes through the frame pass; the keyframe pass only fills the memory.
    The authors divide integers, so their weights are float32 even in a float64 model: 1e-6 in the
    result, hence weight_dtype.
    """

    def noise(step, predict, now):
        chosen = [int(k) for k in keyframes[step]]
        count = len(trajectory[max(trajectory)])
        starts = range(0, count, interval)
        if len(chosen) != len(starts):
            raise ValueError(f"{len(chosen)} keyframes for {len(starts)} intervals")
        now.tokens = "input"
        now.sources = reference_sources(count, interval, blend, weight_dtype)
        predict(chosen, stage="keyframes")
        parts = []
        for start in starts:
            frames = range(start, min(start + interval, count))
            parts.append(predict(frames, stage="reference"))
        return torch.cat(parts)

    texts = (source_text, negative_text, prompt_text)
    settings = (guidance, attention, convolution, inject)
    return _denoise(unet, scheduler, trajectory, texts, settings, noise)


def edit_paper(
    unet,
    scheduler,
    trajectory,
    source_text,
    negative_text,
    prompt_text,
    *,
    keyframes,
    guidance,
    attention=0.5,
    convolution=0.8,
    inject=True,
    blend="sigmoid",
    field="output",
):
    """TokenFlow as the paper describes it: the edited latents (f, 4, h, w).

    The source branch is never propagated, a keyframe keeps its own tokens and noise, and the other
    frames blend the two keyframes around them (at the ends: take the only one). With all frames as
    keyframes this is joint attention without propagation.
    """

    def noise(step, predict, now):
        chosen = sorted({int(k) for k in keyframes[step]})
        count = len(trajectory[max(trajectory)])
        now.tokens = field
        now.sources = paper_sources(count, chosen, blend)
        result = dict(zip(chosen, predict(chosen, stage="keyframes"), strict=True))
        rest = list(now.sources)
        if rest:
            result |= zip(rest, predict(rest, stage="paper"), strict=True)
        return torch.stack([result[s] for s in range(count)])

    texts = (source_text, negative_text, prompt_text)
    settings = (guidance, attention, convolution, inject)
    return _denoise(unet, scheduler, trajectory, texts, settings, noise)


def edit_per_frame(
    unet,
    scheduler,
    trajectory,
    source_text,
    negative_text,
    prompt_text,
    *,
    guidance,
    attention=0.5,
    convolution=0.8,
    inject=True,
):
    """Plug-and-Play on every frame alone: the edited latents (f, 4, h, w)."""

    def noise(step, predict, now):
        frames = range(len(trajectory[max(trajectory)]))
        return torch.cat([predict([s], stage="plain") for s in frames])

    texts = (source_text, negative_text, prompt_text)
    settings = (guidance, attention, convolution, inject)
    return _denoise(unet, scheduler, trajectory, texts, settings, noise)


@torch.no_grad()
def _denoise(unet, scheduler, trajectory, texts, settings, noise):
    """The loop that all edits share; noise(step, predict, now) -> (f, 4, h, w) is what differs.

    predict(frames, stage) is the guided noise of these frames in one call of the patched UNet.
    """
    unet, now = patched(unet)
    guidance, attention, convolution, inject = settings
    steps = len(trajectory)
    schedule = ddim(scheduler, steps)
    latents = trajectory[max(trajectory)].double()
    for step, t in enumerate(schedule.timesteps.tolist()):
        now.inject_attention = inject and step < int(steps * attention)
        now.inject_convolution = inject and step < int(steps * convolution)

        def predict(frames, stage, t=t, latents=latents):
            now.stage, now.frames = stage, list(frames)
            source = trajectory[t].double()[now.frames]
            batch = torch.cat([source, latents[now.frames], latents[now.frames]])
            text = [text.double().expand(len(now.frames), -1, -1) for text in texts]
            eps = predict_noise(unet, scheduler, batch, t, torch.cat(text))
            _, negative, prompt = eps.chunk(3)
            return negative + guidance * (prompt - negative)

        latents = schedule.step(noise(step, predict, now), t, latents).prev_sample
    return latents
