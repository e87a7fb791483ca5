"""Out of memory: half the batch, and on; the result is the same."""

import os
import platform
import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import moving_latents

import tfkit
from tfkit import autoencoder, demo
from tfkit.live import Live
from tfkit.memory import fitting, is_out_of_memory, peak_memory
from tfkit.metrics import psnr
from tfkit.swapping import rebuild

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


def test_a_real_failure_is_known_and_others_are_not():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(failed.value) and is_out_of_memory(torch.cuda.OutOfMemoryError())
    for said in (
        "could not create a primitive",  # oneDNN
        "CUDA error: out of memory",  # an AcceleratorError
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 9.00 GB)",
        "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory",  # Windows
    ):
        assert is_out_of_memory(RuntimeError(said))
        assert not is_out_of_memory(ValueError(said))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.skipif(sys.platform == "win32", reason="which does not tell a process its peak")
def test_the_peak_is_the_processs_own_and_not_of_the_one_that_began_it():
    held = torch.ones(2**28)  # a GiB
    code = "from tfkit.memory import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < 0.9 * held.nbytes < 0.9 * peak_memory()


FAULTS = """
import resource
import torch
import tfkit
from tfkit.memory import keep_freed

model = tfkit.load(device="cpu")
x, text = torch.randn(16, 4, 32, 32), model.embed("a fox")
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model.predict_noise(x, 501, text)
print(keep_freed(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.parametrize("theirs", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_what_a_layer_frees_is_not_fetched_from_the_system_again(theirs):
    # dask's workers leave it set here
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=env | theirs
    )
    kept, faults = done.stdout.split()
    assert kept == str(not theirs)
    assert (int(faults) < 1_000) if kept == "True" else (int(faults) > 10_000)


def test_it_halves_until_it_fits_and_says_so():
    tried = []

    def work(batch):
        tried.append(batch)
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return "done"

    with pytest.warns(UserWarning, match="out of memory: going on with batch=2"):
        assert fitting(work, 11) == ("done", 2)
    assert tried == [11, 5, 2]


def test_other_errors_are_raised_as_they_are():
    def work(batch):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fitting(work, 8)


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.cuda.OutOfMemoryError("CUDA: 9 GiB\nat a place"), "'CUDA: 9 GiB'"),
        (RuntimeError("can't allocate memory"), '"can\'t allocate memory"'),
        (MemoryError(), "'MemoryError'"),
    ],
)
def test_what_halving_does_not_cure_is_said_once_with_what_was_tried(error, said):
    def work(batch):
        raise error

    def nested(batch):
        tried.append(batch)
        return fitting(work, 2 * batch, name="tile", least=2)

    with pytest.raises(MemoryError) as failed:
        fitting(work, 5)
    assert str(failed.value).startswith(f"out of memory even with batch=1: {said}. tfkit.preflight")
    assert "window" in str(failed.value) and failed.value.__cause__ is error
    tried = []
    with pytest.raises(MemoryError) as failed:
        fitting(nested, 4)
    assert tried == [4, 2, 1] and failed.value.__cause__ is error
    assert str(failed.value).startswith(f"out of memory even with tile=2: {said}. tfkit.preflight")
    assert str(failed.value).count("out of memory") == 1


def test_an_edit_that_no_batch_makes_fit_says_what_would(model):
    source = tfkit.invert(model, moving_latents(2, 8, 8).double(), "a cat", steps=1, **QUIET)
    handle = small(model.unet, 0)
    try:
        with (
            pytest.raises(MemoryError, match=r"even with batch=1: 'CUDA out of memory'\. tfkit\."),
            pytest.warns(UserWarning, match="going on with batch=1"),
        ):
            tfkit.edit(model, source, "a dog", batch=2, **QUIET)
    finally:
        handle.remove()


def small(module, most):
    """Lets a module fail like a GPU that is full, above so many in a batch."""

    def hook(module, args, kwargs):
        if len(args[0]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize(
    ("way", "most"),
    [
        (tfkit.PerFrame(), 3), (tfkit.TokenFlow(interval=4), 2),
        (tfkit.TokenFlow(interval=4, variant="reference"), 2),
        (tfkit.TokenFlow(interval=2, window=3), 3), (tfkit.ExtendedAttention(interval=4), 3),
        (tfkit.ExtendedAttention(interval=1, window=4), 3), (tfkit.ExtendedAttention(), 8),
        (tfkit.FirstFrame(), 3),
    ],
    ids=repr,
)  # fmt: skip
def test_a_small_memory_inverts_and_edits_all_the_same(model, way, most):
    """Room for so many frames in the UNet; keyframes, which go together, a branch at a time."""
    latents = moving_latents(8, 8, 8).double()

    def work():
        source = tfkit.invert(model, latents, "a cat", steps=2, **QUIET)
        edit = tfkit.edit(model, source, "a dog", propagation=way, **QUIET)
        t = source.timesteps[0]
        tokens = tfkit.extract_tokens(model, source, timestep=t, layers="mid_block.*")
        drawn = tfkit.generate(model, ["a cat"] * 4, steps=1, **QUIET)
        back, coded = tfkit.reconstruct(model, source, **QUIET), model.encode(edit.frames)
        return edit.latents, edit.frames, coded, *tokens.values(), drawn, back

    expected = work()
    parts = (model.unet, most), (model.vae.encoder, 1), (model.vae.decoder, 2)
    handles = [small(module, most) for module, most in parts]
    try:
        found = work()
    finally:
        for handle in handles:
            handle.remove()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("prepares", [False, True])
def test_what_did_not_fit_holds_no_memory_when_half_of_it_is_tried(model, monkeypatch, prepares):
    made, held = [], []

    def attention(way, *given):
        held.append([old() for old in made if old() is not None])
        new = of(way, *given)
        made.append(weakref.ref(new))
        return new

    of = tfkit.TokenFlow.attention
    monkeypatch.setattr(tfkit.TokenFlow, "attention", attention)
    source = tfkit.invert(model, moving_latents(8, 8, 8).double(), "a cat", steps=1, **QUIET)
    session = tfkit.EditSession(model, source, "a dog", propagation=tfkit.TokenFlow(interval=4))
    handle = small(model.unet, 3)
    try:
        session.prepare(progress=False) if prepares else session.step()
    finally:
        handle.remove()
    assert len(made) > 2 and held == [[]] * len(made)  # for batches of 8, 4, 2 ...


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_small_memory_rebuilds_all_the_same(model):
    source = tfkit.invert(model, moving_latents(8, 8, 8).double(), "a cat", steps=2, **QUIET)
    expected = rebuild(model, source, **QUIET)
    handle = small(model.unet, 6)
    try:
        torch.testing.assert_close(rebuild(model, source, **QUIET), expected, rtol=0, atol=1e-9)
    finally:
        handle.remove()


def narrow(module, most):
    """Lets a module fail like a GPU that is full, above so many values a side."""

    def hook(module, args):
        if max(args[0].shape[-2:]) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    return module.register_forward_pre_hook(hook)


@pytest.fixture(scope="module")
def large():
    """The menagerie, frames larger than it was trained on, and their latents."""
    model = tfkit.load()
    frames = tfkit.video.resize(tfkit.menagerie.film("a red fox on snow", frames=2).frames, 320)
    return model, frames, model.encode(frames)


@pytest.mark.parametrize("room, tile", [(64, 32), (32, 32)])
def test_a_frame_that_is_too_large_for_the_vae_goes_in_tiles(large, room, tile):
    model, frames, latents = large
    narrow_decoder = narrow(model.vae.decoder, room)
    narrow_encoder = narrow(model.vae.encoder, room * model.factor)
    try:
        with pytest.warns(UserWarning, match=rf"out of memory: .*{tile}"):
            coded = model.encode(frames)
        with pytest.warns(UserWarning, match="which changes colours a little"):
            shown = model.decode(latents, size=(300, 310))
    finally:
        narrow_decoder.remove()
        narrow_encoder.remove()
    assert coded.shape == latents.shape and shown.shape == (2, 3, 300, 310)
    assert (coded - latents).std() < 0.25 * latents.std()
    assert psnr(shown, model.decode(latents, size=(300, 310))) > 18
    assert not model.vae.use_tiling
    torch.testing.assert_close(model.encode(frames), latents)  # whole again


def test_no_more_is_coded_at_once_than_there_is_room_for(large, monkeypatch):
    """Linux ends a process that takes too much, and raises nothing: it must not come to that."""
    model, frames, latents = large
    one, whole = autoencoder.activations(model.vae, *latents.shape[-2:]), model.decode(latents)
    for work in (lambda: model.encode(frames[:1]), lambda: model.decode(latents[:1])):
        with torch.no_grad(), Live() as live:
            work()
        assert 0.6 < live.peak / one < 1 / autoencoder.SHARE
    room, seen = one / autoencoder.SHARE + 9, []
    monkeypatch.setattr(autoencoder, "available_memory", lambda device: room)
    handle = model.vae.decoder.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape)
    )
    try:
        torch.testing.assert_close(model.decode(latents), whole)
        assert [len(shape) for shape in seen] == [4, 4] and {shape[0] for shape in seen} == {1}
        room = one / autoencoder.SHARE - 9
        seen.clear()
        with pytest.warns(
            UserWarning, match="MiB of .* free: coding frames in tiles of 32 x 32 la"
        ):
            shown = model.decode(latents)
        assert max(max(shape[-2:]) for shape in seen) == 32 and psnr(shown, whole) > 18
    finally:
        handle.remove()


def test_a_small_frame_is_never_cut(model):
    handle = narrow(model.vae.decoder, 4)
    try:
        with (
            pytest.raises(MemoryError, match="even with batch=1"),
            pytest.warns(UserWarning, match="batch="),
        ):
            model.decode(moving_latents(2, 8, 8))
    finally:
        handle.remove()


@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 7), interval=st.integers(1, 8), batch=st.integers(1, 8),
       variant=st.sampled_from(["paper", "reference"]), further=st.booleans())  # fmt: skip
def test_any_batch_gives_the_same_edit(model, frames, interval, batch, variant, further):
    """Chunked is unchunked, and a further edit is a first one, whatever the numbers."""
    way = tfkit.TokenFlow(interval=interval, variant=variant)
    latents = moving_latents(frames, 8, 8).double()
    source = tfkit.invert(model, latents, "a cat", steps=2, batch=batch, **QUIET)
    whole = tfkit.invert(model, latents, "a cat", steps=2, batch=8, **QUIET)
    settings = {"propagation": way, "seed": frames, **QUIET}
    expected = tfkit.edit(model, whole, "a dog", batch=8, **settings)
    if further:
        tfkit.edit(model, source, "a bird", batch=batch, **settings)
    made = tfkit.edit(model, source, "a dog", batch=batch, **settings)
    torch.testing.assert_close(made.latents, expected.latents, rtol=0, atol=1e-8)


def test_the_demo_says_its_peak_where_the_system_knows_it(monkeypatch):
    monkeypatch.setattr(demo, "peak_memory", lambda: 3 * 2**29)
    assert demo.memory() == "; peak memory 1.50 GiB"

    def missing():
        raise ImportError("No module named 'resource'")

    monkeypatch.setattr(demo, "peak_memory", missing)
    assert demo.memory() == ""
