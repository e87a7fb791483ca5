"""Shared set-up: property tests without a deadline, a full disk, a few small pipelines."""

import checked  # noqa: F401  isort: skip  (before anything that imports tfkit)
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import jaxtyping
import pytest
import torch

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("tfkit", deadline=None)
hypothesis.settings.load_profile("tfkit")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def unchecked():
    """Annotations go unchecked in this test: a user's mistake meets the function's own message."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def full_disk(monkeypatch):
    """A function: the disk is full for the n-th file, counted from now, that is flushed to it."""

    def arrange(n):
        left, fsync = [n], os.fsync

        def flush(file):
            if not stat.S_ISDIR(os.fstat(file).st_mode):  # of folders it is their names
                left[0] -= 1
                if not left[0]:
                    raise OSError(28, "No space left on device")
            fsync(file)

        monkeypatch.setattr(os, "fsync", flush)

    return arrange


@pytest.fixture
def small_disk(monkeypatch):
    """A function: a folder has room for so many bytes, which counts where a file is flushed."""

    def arrange(folder, room):
        fsync = os.fsync

        def flush(file):
            if sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()) > room:
                raise OSError(28, "No space left on device")
            fsync(file)

        monkeypatch.setattr(os, "fsync", flush)

    return arrange


@pytest.fixture(scope="session")
def device():
    """Where models run: TFKIT_TEST_DEVICE, else a GPU if there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(os.environ.get("TFKIT_TEST_DEVICE", default))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A small random Stable Diffusion 1.x that predicts noise; read only."""
    from pipelines import make_pipeline  # diffusers takes seconds to import: only where needed

    return make_pipeline(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="session")
def v_pipeline_folder(tmp_path_factory):
    """A small random Stable Diffusion 2.x that predicts v; read only."""
    from pipelines import make_pipeline

    folder = tmp_path_factory.mktemp("pipelines") / "v"
    return make_pipeline(folder, prediction_type="v_prediction")


@pytest.fixture(scope="session")
def wolf():
    """The authors' test video, where this checkout has it beside itself."""
    path = REPOSITORY.parent / "shared" / "data" / "wolf.mp4"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture
def cells(monkeypatch):
    """A kernel's cells: what other threads ask to be done there, waiting in a list."""
    import ipykernel.ipkernel  # noqa: F401  before the name is another's

    waiting = []
    loop = SimpleNamespace(add_callback=waiting.append)
    running = SimpleNamespace(io_loop=loop)
    # The name alone: a widget's comm would take no other kernel than a real one (ipykernel 6).
    there = SimpleNamespace(initialized=lambda: True, instance=lambda: running)
    monkeypatch.setattr("ipykernel.kernelbase.Kernel", there)
    return waiting
