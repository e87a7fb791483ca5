"""When memory runs out: half the batch, and on. How much there is, and the most that was held."""

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

CGROUP = Path("/sys/fs/cgroup")  # a container's limits
# What is said where memory runs out, in small letters: by torch, on Windows, by cuBLAS and cuDNN,
# by GPUs of others, by oneDNN.
_SAID = ("can't allocate memory", "not enough memory", "alloc_failed", "out of memory",
         "could not create a primitive")  # fmt: skip

# Of what is freed so much is kept, and no block above the second, as far as glibc goes by itself.
KEPT, LARGE = 2**28, 2**25

T = TypeVar("T")


class OutOfMemory(MemoryError):
    """Memory ran out; the message says what was tried, what torch said and what to do."""


def fitting(
    work: Callable[[int], T], batch: int, *, name: str = "batch", least: int = 1
) -> tuple[T, int]:
    """Calls ``work(batch)``, with half the batch each time that memory runs out.

    Returns its result, and the batch that fitted. name: what messages call the batch. least: the
    smallest one tried. Warns of each halving; raises OutOfMemory, a MemoryError, where even the
    least is too much.
    """
    while True:
        try:
            return work(batch), batch
        except (RuntimeError, MemoryError) as error:
            last = batch // 2 < least
            if not is_out_of_memory(error) or (last and isinstance(error, OutOfMemory)):
                raise
            if last:
                raise told(error, f" even with {name}={batch}") from error
        # here the error is gone, and with it the tensors that its traceback held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch = batch // 2
        warnings.warn(f"out of memory: going on with {name}={batch}", stacklevel=2)


def told(error: BaseException, tried: str = "") -> OutOfMemory:
    """A failed allocation, said with what was tried and what to do, unless it says so already."""
    if isinstance(error, OutOfMemory):
        return error
    said = str(error).partition("\n")[0] or type(error).__name__
    return OutOfMemory(
        f"out of memory{tried}: {said!r}. tfkit.preflight (--check) says what fits; smaller frames "
        "(--size), fewer (--frames) or a smaller window of the propagation (--window) take less"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or (a RuntimeError like others) on the CPU."""
    known = (MemoryError, torch.cuda.OutOfMemoryError)
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, known) or any(words in said for words in _SAID)


@cache
def keep_freed() -> bool:
    """Lets glibc keep up to ``KEPT`` bytes that were freed, for the next layer to take again.

    By itself it gives what a layer frees back to the system, which hands it out anew page by page:
    40,000 faults in a pass over 16 frames of 256 pixels, a tenth of its time. Returns whether it
    is so: not where the user has set malloc's own variables, nor with another C library.
    """
    theirs = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in theirs):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h; the one unsets the other
    return bool(libc.mallopt(trim, KEPT) and libc.mallopt(mmap, LARGE))


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken: of the GPU, or of what the system or its container leaves."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit, used, stat = (
            (CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat")
        )
        if limit.strip() != "max":
            parts = dict(line.split() for line in stat.splitlines())
            files = sum(int(parts.get(f"{name}_file", 0)) for name in ("active", "inactive"))
            free.append(int(limit) - int(used) + files)  # pages of files give way
    except (OSError, ValueError):
        pass  # not Linux, or no limit
    return max(0, min(free, default=2**63 - 1))


def peak_memory() -> int:
    """Bytes that this process has held at the most. Raises ImportError on Windows."""
    import resource  # which Windows has not

    with suppress(OSError):  # Linux: what is asked for below counts the process that began this one
        status = Path("/proc/self/status").read_text()
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
