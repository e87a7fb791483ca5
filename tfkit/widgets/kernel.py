"""Where cells run: there goes what a page asks for, whichever thread its messages come in by.

JupyterLab hands the messages of widgets to a thread beside the one of the cells (kernel subshells,
ipykernel 7). A model must not be in two hands at once, so whatever runs one waits for the cell's
end, and is interrupted as a cell is.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def where_cells_run(action: Callable[[], object]) -> None:
    """Calls ``action`` at once where cells run; from another thread's message, as soon as there."""
    if threading.current_thread() is threading.main_thread():
        action()
        return
    from ipykernel.kernelbase import Kernel  # only a kernel has such threads

    if Kernel.initialized():
        Kernel.instance().io_loop.add_callback(action)
    else:
        action()


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets Jupyter's interrupt raise KeyboardInterrupt here, where no cell is running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def obey(actions: Mapping[str, Callable], content: Mapping[str, Any]) -> str:
    """Does what a page asks for, ``{"do": name, "with": words}``; what went wrong, or ""."""
    try:
        with interruptible():
            actions[content["do"]](**content.get("with", {}))
        return ""
    except KeyboardInterrupt:
        wanted = content["do"]
        return f"Interrupted: {'the step was not taken' if wanted == 'step' else f'no {wanted}'}."
    except (ValueError, ArithmeticError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # memory, a driver: whatever it is, the page must say so
        return f"{type(error).__name__}: {error}"
