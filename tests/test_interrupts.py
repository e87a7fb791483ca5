"""Ctrl-C and errors anywhere in an edit: the model is as before, and the same edit comes out."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from pipelines import moving_latents
from torch.nn.modules.module import register_module_forward_hook
from unchanged import unchanged

import tfkit
from tfkit import NonFiniteError

METHODS = {
    "pnp": tfkit.PlugAndPlay(attention=0.5, convolution=1.0),
    "sdedit": tfkit.SDEdit(0.5),
    "plain": tfkit.Plain(),
}
PROPAGATIONS = {
    "paper": tfkit.TokenFlow(interval=2),
    "reference": tfkit.TokenFlow(interval=2, variant="reference"),
    "joint": tfkit.ExtendedAttention(),
    "per frame": tfkit.PerFrame(),
}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def source(model):
    return tfkit.invert(model, moving_latents(3, 4, 4), "a cat", steps=2, progress=False)


def edit(model, source, method="pnp", propagation="paper", **options):
    chosen = {"method": METHODS[method], "propagation": PROPAGATIONS[propagation]}
    source.cache.clear()  # or a further edit would take fewer passes than the first
    return tfkit.edit(model, source, "a dog", progress=False, **chosen, **options)


@contextmanager
def stopped_after(calls, error=KeyboardInterrupt):
    """Raises as the given number of modules, of whichever model, has been called; counts them."""
    count = [0]

    def stop(module, arguments, output):
        count[0] += 1
        if count[0] == calls:
            raise error("stop")

    handle = register_module_forward_hook(stop)
    try:
        yield count
    finally:
        handle.remove()


# --- wherever it is stopped -----------------------------------------------------------------------


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_edit_leaves_no_trace(model, source, method, propagation):
    """Stopped early, midway and late, by Ctrl-C and by an error."""
    with unchanged(model), stopped_after(-1) as total:
        expected = edit(model, source, method, propagation)
    for share, error in ((0.13, KeyboardInterrupt), (0.37, RuntimeError), (0.8, KeyboardInterrupt)):
        calls = 1 + round(share * (total[0] - 1))
        with unchanged(model), stopped_after(calls, error), pytest.raises(error):
            edit(model, source, method, propagation)
    with unchanged(model):
        again = edit(model, source, method, propagation)
    assert torch.equal(again.latents, expected.latents)
    assert torch.equal(again.frames, expected.frames)


def test_many_depths_of_one_pass(model, source):
    """Modules here and there in the keyframes' and the frames' first pass, with injection."""
    expected = edit(model, source).latents
    with stopped_after(-1) as total:
        edit(model, source)
    with unchanged(model):
        for calls in (1, 2, *range(5, total[0] // 2, 107)):
            with stopped_after(calls), suppress(KeyboardInterrupt):
                edit(model, source)
                pytest.fail("was not stopped")
    assert torch.equal(edit(model, source).latents, expected)


def test_other_work_leaves_no_trace_either(model, source):
    layer = "up_blocks.1.attentions.1.transformer_blocks.0.attn1"
    work = {
        "invert": lambda: tfkit.invert(model, moving_latents(2, 8, 8), steps=1, progress=False),
        "reconstruct": lambda: tfkit.reconstruct(model, source, progress=False),
        "tokens": lambda: tfkit.extract_tokens(model, source, timestep=501, layers=layer),
        "frames": lambda: model.decode(model.encode(torch.rand(1, 3, 32, 32))),
    }
    for run in work.values():
        with unchanged(model):
            run()
        with unchanged(model), stopped_after(70), pytest.raises(KeyboardInterrupt):
            run()


def test_an_error_between_the_passes_leaves_no_trace(model, source, monkeypatch):
    """The keyframes' memory is full, the frames' pass has yet to come: the loop itself fails."""

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfkit.propagation, "paper_neighbors", fail)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        edit(model, source)


# --- a real Ctrl-C --------------------------------------------------------------------------------

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[1])
import torch, tfkit
from pipelines import moving_latents
from unchanged import unchanged
model = tfkit.load(sys.argv[2], device="cpu", dtype=torch.float32)
source = tfkit.invert(model, moving_latents(3, 8, 8), "a cat", steps=4, progress=False)
few = tfkit.invert(model, moving_latents(3, 8, 8), "a cat", steps=1, progress=False)
def edit(source):
    flow = tfkit.TokenFlow(2)
    return tfkit.edit(model, source, "a dog", propagation=flow, progress=False).latents
expected, kept = edit(few), []
for i in range(4):
    try:
        with unchanged(model):
            print("go", flush=True)
            while True:
                edit(source)
    except KeyboardInterrupt as error:
        kept.append(error)  # as a notebook keeps the last traceback, and all frames with it
        print("stopped", flush=True)
print("same" if torch.equal(edit(few), expected) else "different", flush=True)
"""


def test_a_real_ctrl_c_and_the_same_model_again(pipeline_folder):
    here = os.path.dirname(__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, here, str(pipeline_folder)], cwd=os.path.dirname(here),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    timer = threading.Timer(240, process.kill)  # an answer that never comes is a failure
    timer.start()
    for i in range(4):
        assert process.stdout.readline() == "go\n", process.communicate()
        time.sleep(0.05 + 0.2 * i)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n", process.communicate()
    output, errors = process.communicate()
    timer.cancel()
    assert output == "same\n" and process.returncode == 0, errors


# --- NaN ----------------------------------------------------------------------------------------


def poisoned(model, part, name):
    sick = copy.deepcopy(getattr(model, part))
    weight = sick.get_parameter(name).data
    weight[(0,) * weight.ndim] = torch.nan
    return dataclasses.replace(model, **{part: sick})


@pytest.mark.parametrize("propagation", PROPAGATIONS)
@pytest.mark.parametrize(
    "group, name",
    [
        ("down_blocks.1", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v.weight"),
        ("up_blocks.2", "up_blocks.2.attentions.0.transformer_blocks.0.attn1.to_v.weight"),
    ],
)
def test_an_overflow_in_an_edit_is_laid_at_step_and_group(model, source, propagation, group, name):
    sick = poisoned(model, "unet", name)
    message = (
        rf"^step 1 of 2: a NaN or infinity first appears in the UNet's {group} at timestep 501\. "
        r"In torch.float32 that comes from the weights or the latents: check that the model's files"
    )
    with unchanged(sick), pytest.raises(NonFiniteError, match=message):
        edit(sick, source, propagation=propagation)


def test_an_overflow_elsewhere_is_laid_there(model, source):
    sick = poisoned(model, "vae", "decoder.conv_in.weight")
    with unchanged(sick), pytest.raises(NonFiniteError, match="appears in the VAE's decoder"):
        edit(sick, source, "sdedit", "per frame")
    with pytest.raises(NonFiniteError, match="appears in the VAE's decoder"):
        tfkit.reconstruct(sick, source, progress=False)
    sick = poisoned(model, "vae", "encoder.conv_in.weight")
    with pytest.raises(NonFiniteError, match="appears in the VAE's encoder"):
        tfkit.invert(sick, torch.rand(1, 3, 32, 32), steps=1, progress=False)
    name = next(n for n, _ in model.text_encoder.named_parameters() if n.endswith("fc1.weight"))
    sick = poisoned(model, "text_encoder", name)
    with unchanged(sick), pytest.raises(NonFiniteError, match="appears in the text encoder"):
        edit(sick, source)
