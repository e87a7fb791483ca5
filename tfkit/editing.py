"""The edit: one denoising loop, whatever the method and the propagation.

Branches of a batch: [source | negative | prompt], each of all frames of the pass. The source is
there where the method or the propagation reads it, the negative one unless guidance is 1.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tfkit import hooks
from tfkit.diffusion import LatentDiffusion, check_whole
from tfkit.inversion import check_fits, sample
from tfkit.keyframes import check_keyframes
from tfkit.methods import Method, PlugAndPlay
from tfkit.propagation import Propagation, TokenFlow
from tfkit.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Edit:
    """An edited video: latents (f, 4, h, w), frames (f, 3, H, W) at the source's own size.

    keyframes: (steps, k) of each step taken, or None where the propagation has none.
    """

    latents: Float[Tensor, "f c h w"]
    frames: Float[Tensor, "f 3 H W"]
    keyframes: Int[Tensor, "steps k"] | None
    prompt: str

    def __repr__(self) -> str:
        f, _, h, w = self.frames.shape
        return f"Edit({f} frames of {h} x {w}, prompt {self.prompt!r})"


@torch.no_grad()
def edit(
    model: LatentDiffusion,
    source: Trajectory,
    prompt: str,
    *,
    negative_prompt: str = "",
    guidance: float | int = 7.5,
    method: Method = PlugAndPlay(),
    propagation: Propagation = TokenFlow(),
    keyframes=None,
    seed: int = 0,
    batch: int = 8,
    progress: bool = True,
) -> Edit:
    """Edits the video behind ``source`` towards ``prompt``, in as many steps as its trajectory.

    guidance: classifier-free guidance scale; 1 leaves the negative prompt out. keyframes:
    (steps, k) or (k,) frame indices to use instead of drawing. seed: of the drawing. batch: frames
    in a pass, times up to three branches; it changes speed and memory, not the result.
    Raises ValueError for settings out of range or that do not fit the model or the clip, and
    NonFiniteError where the model overflows. The model is left exactly as it was.
    """
    check_fits(model, source)
    frames, steps = len(source), len(source.timesteps)
    number = isinstance(guidance, int | float) and not isinstance(guidance, bool)
    if not number or not math.isfinite(guidance):
        raise ValueError(f"guidance={guidance!r}: expected a finite number; 7.5 is usual")
    check_whole("batch", batch)
    check_whole("seed", seed, least=0)
    for name, value, kind in (
        ("method", method, Method),
        ("propagation", propagation, Propagation),
    ):
        if isinstance(value, type) or not isinstance(value, kind):
            raise ValueError(
                f"{name}={value!r}: expected an object such as tfkit.PlugAndPlay() for the method, "
                "tfkit.TokenFlow() for the propagation"
            )
    if keyframes is None:
        rows = propagation.draw(frames, steps, seed)
    else:
        rows = check_keyframes(keyframes, frames, steps)
        propagation.check(rows, frames)

    reads_source = method.reads_source or propagation.reads_source
    texts = [source.prompt] * reads_source + [negative_prompt] * (guidance != 1) + [prompt]
    states = torch.cat([model.embed(text) for text in texts])
    attention = propagation.attention(len(texts), reads_source)
    first = method.first_step(steps)

    def noise_of(step: int, t: int, x: Tensor) -> Tensor:
        at = source.at(t) if reads_source else None

        def run(index: Tensor) -> Tensor:
            edited = x[index.to(x.device)]
            own = [at[index.to(at.device)].to(edited)] if reads_source else []
            latents = torch.cat(own + [edited] * (len(texts) - reads_source))
            text = states.repeat_interleave(len(index), 0)
            with method.during(model, first + step, steps, len(index)):
                out = model.predict_noise(latents, t, text).chunk(len(texts))
            return out[-1] if guidance == 1 else out[-2] + guidance * (out[-1] - out[-2])

        row = None if rows is None else rows[first + step]
        return propagation.predict(run, attention, frames, row, batch)

    timesteps = source.timesteps[first:]
    x = method.begin(model, source, timesteps[0] if timesteps else None)
    x = x.to(model.device, model.precision)
    own = attention is None  # the model's own self-attention
    with nullcontext() if own else hooks.processor(model.unet, attention):
        x = sample(model, x, timesteps, noise_of, label="edit", progress=progress)
    return Edit(x, model.decode(x, size=source.size, batch=batch), rows, prompt)
