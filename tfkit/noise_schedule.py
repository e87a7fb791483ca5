"""What a noise schedule says: timesteps, shares of signal, and the noise in any prediction."""

from diffusers import DDIMScheduler
from torch import Tensor

from tfkit.settings import is_whole


def timesteps(schedule: DDIMScheduler, steps: int) -> tuple[int, ...]:
    """The DDIM timesteps, descending, of so many steps, in the schedule's own spacing.

    Raises ValueError where that spacing overruns the timesteps the model was trained on.
    """
    trained = schedule.config.num_train_timesteps
    if not is_whole(steps) or not 1 <= steps <= trained:
        most = _most(schedule, trained)
        raise ValueError(f"steps={steps!r}: expected a whole number from 1 to {most}")
    spaced = _spaced(schedule, int(steps))
    if spaced[0] >= trained:
        raise ValueError(
            f"steps={steps}: with {schedule.config.timestep_spacing!r} spacing and an offset "
            f"of {schedule.config.steps_offset} the first timestep would be {spaced[0]}, "
            f"but this model knows 0 to {trained - 1}; use at most {_most(schedule, steps)} steps"
        )
    return spaced


def _spaced(schedule: DDIMScheduler, steps: int) -> tuple[int, ...]:
    schedule = DDIMScheduler.from_config(schedule.config)
    schedule.set_timesteps(steps)
    # Trailing spacing adds a timestep of -1 where its rounding goes wrong (61 steps, say).
    return tuple(int(t) for t in schedule.timesteps if t >= 0)


def _most(schedule: DDIMScheduler, steps: int) -> int:
    """The most steps, up to so many, whose timesteps the model was all trained on."""
    trained = schedule.config.num_train_timesteps
    return next((n for n in range(steps, 0, -1) if _spaced(schedule, n)[0] < trained), 0)


def alpha(schedule: DDIMScheduler, t: int | None) -> Tensor:
    """Share of signal (the cumulative product of alphas) at ``t``; None: the clean end.

    In float32 under any model, as diffusers has it. At zero terminal SNR it is not quite 0,
    for noise predictions are divided by its root.
    """
    a = schedule.final_alpha_cumprod if t is None else schedule.alphas_cumprod[t]
    return a.clamp(min=2.0**-24)


def as_noise(schedule: DDIMScheduler, out: Tensor, x: Tensor, t: int) -> Tensor:
    """The noise in ``x`` at ``t`` by a prediction of noise, v or the clean sample.

    (Salimans & Ho 2022, appendix D.)
    """
    a, kind = alpha(schedule, t), schedule.config.prediction_type
    if kind == "v_prediction":
        return a**0.5 * out + (1 - a) ** 0.5 * x
    if kind == "sample":
        return (x - a**0.5 * out) / (1 - a) ** 0.5
    return out
