"""The edit: a session run to its end, whatever the method and the propagation."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tfkit.diffusion import LatentDiffusion
from tfkit.keyframes import Indices
from tfkit.methods import Method, PlugAndPlay
from tfkit.propagation import TokenFlow
from tfkit.protocols import Propagation
from tfkit.session import EditSession
from tfkit.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Edit:
    """An edited video: latents (f, 4, h, w), frames (f, 3, H, W) in [0, 1].

    frames are of the source's own size. keyframes: (steps, k) at each of the source's timesteps,
    also those that SDEdit leaves out; None where the propagation has none. prompt: what it was
    edited towards.
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
    keyframes: Indices | None = None,
    seed: int = 0,
    batch: int = 8,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Edit:
    """Edits the video behind ``source`` towards ``prompt``, in as many steps as its trajectory.

    guidance: classifier-free guidance scale; 1 leaves the negative prompt out. keyframes:
    (steps, k) or (k,) frame indices to use instead of drawing. seed: of the drawing. batch: frames
    in a pass, times up to three branches; it changes speed and memory, and the result by no more
    than rounding, which decides between tokens that are equally near (16 frames of the menagerie,
    10 steps, float32: by 3e-5 on average, 0.11 in one pixel). folder: where each step is kept; a
    run that was killed goes on there.
    Of the source, what TokenFlow and the method read is kept (``source.cache``, within its budget),
    so another edit with the same keyframes takes 2 passes a frame and 1 a keyframe in place of 3 a
    frame: 0.71 of them at an interval of 8. All frames come back at once; for long videos, take an
    EditSession: ``run`` it and ``stream`` the frames to a file.
    Raises ValueError for settings out of range or that do not fit the model or the clip and for a
    folder that belongs to something else; NonFiniteError where the model overflows, MemoryError
    where memory runs out even with batch=1. The model is left exactly as it was.
    """
    session = EditSession(
        model, source, prompt, negative_prompt=negative_prompt, guidance=guidance, method=method,
        propagation=propagation, keyframes=keyframes, seed=seed, batch=batch,
    )  # fmt: skip
    session.run(folder=folder, progress=progress)
    rows = [row for row in session.keyframes if row is not None]  # of all steps, or of none
    drawn = torch.stack(rows) if rows else None
    frames = model.decode(session.latents, size=source.size, batch=session.batch)  # no view kept
    return Edit(session.latents, frames, drawn, prompt)
