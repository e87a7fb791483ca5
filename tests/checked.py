"""What comes before tfkit is imported, in whichever conftest.py is first: annotations are checked.

And no network, and threads that fit xdist.
"""

import os

# Before anything of Hugging Face is imported: a test must never reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# Each xdist worker takes its share of the cores; processes that tests start inherit it.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // WORKERS)))

import jaxtyping  # noqa: E402

# Every annotated shape and type of what is imported from here on is checked at run time.
jaxtyping.install_import_hook("tfkit", "beartype.beartype")
