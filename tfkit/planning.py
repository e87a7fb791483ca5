"""From a plan to its steps: keyframes drawn or taken, the method prepared, the text embedded.

Memory: the texts' embeddings, and what the method makes of the video.
"""

import torch

from tfkit.diffusion import LatentDiffusion
from tfkit.keyframes import Indices, check_keyframes
from tfkit.passes import Plan
from tfkit.settings import check_whole
from tfkit.steps import Steps, source_key_of
from tfkit.trajectory import Trajectory


def plan_steps(
    model: LatentDiffusion,
    source: Trajectory,
    plan: Plan,
    keyframes: Indices | None,
    seed: int,
    *,
    before: Steps | None = None,
    taken: int = 0,
) -> Steps:
    """The steps of a plan, whose keyframes are given or drawn from ``seed``.

    before: the steps of another plan, the first ``taken`` of which keep their keyframes.
    Raises ValueError for what does not fit the source, the model or one another.
    """
    check_whole("seed", seed, least=0)
    frames, steps = len(source), len(source.timesteps)
    if keyframes is None:
        rows = plan.propagation.draw(frames, steps, seed)
    else:
        rows = check_keyframes(keyframes, frames, steps)
        plan.propagation.check(rows, frames)
    prepared = plan.method.prepare(model, source)
    text = torch.cat([model.embed(text) for text in _texts(plan, source)])
    first = before.first if before is not None and taken else plan.method.first_step(steps)
    kept = before.rows[: first + taken] if before is not None else []
    drawn = [None] * steps if rows is None else list(rows)
    key = source_key_of(model, plan, rows, prepared)
    every = [*kept, *drawn[len(kept) :]]
    return Steps(model, source, plan, prepared, text, first, every, key)


def _texts(plan: Plan, source: Trajectory) -> list[str]:
    texts = [source.prompt] * plan.reads_source + [plan.negative_prompt] * (plan.guidance != 1)
    return [*texts, plan.prompt]
