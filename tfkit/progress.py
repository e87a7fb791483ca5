"""Progress bars that move within a step: of a long video, one step takes minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

# called with a step, moves the bar there; returns what to call with the number of frames done
Begin = Callable[[int], Callable[[int], None]]


@contextmanager
def stepping(label: str, steps: int, taken: int, frames: int, *, show: bool) -> Iterator[Begin]:
    """A progress bar over ``steps``, of which ``taken`` are done, each of ``frames`` frames.

    ``begin(step)`` moves it to a step and returns a function: called after each pass with the
    number of frames in it, it moves the bar within the step.
    """
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.4g}/{total} [{elapsed}<{remaining}{postfix}]"
    with tqdm(
        total=steps, initial=taken, desc=label, disable=not show, bar_format=form, unit="step"
    ) as bar:

        def begin(step: int) -> Callable[[int], None]:
            done = [0]
            bar.update(step - bar.n)

            def tick(count: int) -> None:
                done[0] += count
                # a keyframe may go twice, and a step is over when it is over
                bar.update(step + min(done[0] / frames, 0.99) - bar.n)

            return tick

        yield begin
