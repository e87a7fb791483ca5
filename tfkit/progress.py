"""Progress bars that move within a step: of a long video, one step takes minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

# told a step, it moves there and gives what is told of frames that are done
Begin = Callable[[int], Callable[[int], None]]


@contextmanager
def stepping(label: str, steps: int, taken: int, frames: int, *, show: bool) -> Iterator[Begin]:
    """A bar over steps. ``begin(step)`` moves it there and returns a function to be told how many
    frames of that step are done, pass by pass."""
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
