"""From a plan to its steps: keyframes drawn or taken, the method prepared, the text embedded.

Memory: the texts' embeddings, and what the method makes of the video.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from tfkit.diffusion import LatentDiffusion
from tfkit.keyframes import Indices, check_keyframes
from tfkit.passes import Plan
from tfkit.protocols import Propagation
from tfkit.settings import check_seed, check_whole
from tfkit.steps import Steps, source_key_of
from tfkit.trajectory import Trajectory


def plan_steps(
    model: LatentDiffusion,
    source: Trajectory,
    plan: Plan,
    keyframes: Indices | None,
    seed: int | None,
    *,
    before: Steps | None = None,
    taken: int = 0,
) -> Steps:
    """The steps of a plan, whose keyframes are given or drawn from ``seed``.

    before: the steps of another plan, the first ``taken`` of which keep their keyframes; where
    neither keyframes nor a seed are given, all do that have the same propagation, and another
    propagation draws from the same seed.
    Raises ValueError for what does not fit the source, the model or one another.
    """
    steps = len(source.timesteps)
    as_before = seed is None and keyframes is None
    if seed is None:
        seed = 0 if before is None else before.seed
    if as_before and before is not None and before.plan.propagation == plan.propagation:
        drawn = before.drawn
    else:
        rows = keyframe_rows(plan.propagation, keyframes, seed, len(source), steps)
        drawn = [None] * steps if rows is None else list(rows)
    ready = before is not None and before.plan.method is plan.method
    prepared = before.prepared if before and ready else plan.method.prepare(model, source)
    text = torch.cat([model.embed(text) for text in _texts(plan, source)])
    first = before.first if before is not None and taken else plan.method.first_step(steps)
    check_whole("first_step", first, least=0)
    if first > steps:
        raise ValueError(
            f"{plan.method!r} begins at step {first}; expected 0 to {steps}, where it takes none"
        )
    kept = before.rows[: first + taken] if before is not None and taken else []
    every = [*kept, *drawn[len(kept) :]]
    key = source_key_of(model, source, plan, every, prepared)
    return Steps(model, source, plan, prepared, text, first, every, drawn, seed, key)


def keyframe_rows(
    propagation: Propagation, keyframes: Indices | None, seed: int, frames: int, steps: int
) -> Int[Tensor, "steps k"] | None:
    """The keyframes of each step: given, or drawn from ``seed``; None where there are none.

    Raises ValueError for keyframes that do not fit the clip or the propagation.
    """
    seed = check_seed(seed)
    if keyframes is None:
        return propagation.draw(frames, steps, seed)
    rows = check_keyframes(keyframes, frames, steps)
    propagation.check(rows, frames)
    return rows


def _texts(plan: Plan, source: Trajectory) -> list[str]:
    texts = [source.prompt] * plan.reads_source + [plan.negative_prompt] * (plan.guidance != 1)
    return [*texts, plan.prompt]
