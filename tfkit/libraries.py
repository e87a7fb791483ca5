"""What other libraries say while they read files: without their noise, and errors in one line."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import transformers


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars, a line for each file, and word of renamed options."""
    logs = (transformers.utils.logging, diffusers.utils.logging)
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log in shown:
            log.enable_progress_bar()


@contextlib.contextmanager
def explained(part: str, folder: str | Path) -> Iterator[None]:
    """Says in one line which part of which folder cannot be read, whatever a library raises."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"cannot read the {part} of {str(folder)!r}: {in_a_line(error)}") from error


def in_a_line(error: BaseException) -> str:
    """What an error says, or what it is called."""
    return " ".join(str(error).split()) or type(error).__name__
