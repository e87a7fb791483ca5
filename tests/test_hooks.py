"""Hooks: what they name, record and replace, and that nothing of them stays, whatever happens."""

import dis
import functools
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from pipelines import moving_latents
from torch import nn
from unchanged import identity, unchanged

import tfkit
from tfkit import hooks


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)


def run(model):
    return model.predict_noise(moving_latents(1, 8, 8), 501, model.embed("a cat"))


# --- names --------------------------------------------------------------------------------------


def test_self_attention_comes_in_the_order_of_the_data(model):
    names, met = list(hooks.self_attention(model.unet)), []
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: met.append(name))
        for name, module in hooks.self_attention(model.unet).items()
    ]
    run(model)
    for handle in handles:
        handle.remove()
    assert names == met and len(names) == 16


def test_layers_go_by_name_or_wildcard(model):
    names = list(hooks.self_attention(model.unet))
    assert hooks.match(model.unet, names[3]) == [names[3]]
    assert hooks.match(model.unet, "up_blocks.*") == names[7:]
    assert hooks.match(model.unet, ["mid_*", names[0], "mid_*"]) == [names[6], names[0]]
    with pytest.raises(ValueError, match=r"layer 'up_blocks\.9\.\*' fits no self-attention of th"):
        hooks.match(model.unet, ["mid_*", "up_blocks.9.*"])
    with pytest.raises(ValueError, match=r"layers=\[\]: expected at least one of: down_blocks"):
        hooks.match(model.unet, [])


# --- what they do -------------------------------------------------------------------------------


def test_a_processor_computes_every_self_attention_and_nothing_else(model):
    expected, called = run(model), []

    def own(attn, hidden_states, **arguments):
        called.append(attn)
        return AttnProcessor2_0()(attn, hidden_states, **arguments)

    with unchanged(model), hooks.processor(model.unet, own):
        assert torch.equal(run(model), expected)
    assert called == list(hooks.self_attention(model.unet).values())


def test_record_and_rewrite(model):
    expected, names = run(model), ["mid_block", "up_blocks.2.resnets.0"]
    with unchanged(model), hooks.record(model.unet, names) as seen:
        run(model)
    assert sorted(seen) == names
    with unchanged(model), hooks.rewrite(model.unet, {"mid_block": lambda x: 0 * x}):
        with hooks.record(model.unet, ["mid_block"]) as zeros:
            other = run(model)
        assert not zeros["mid_block"].any() and not torch.equal(other, expected)
    assert torch.equal(run(model), expected)


def test_a_pass_ends_when_all_that_is_asked_for_has_computed(model):
    names, went_on = ["up_blocks.1.resnets.1", "mid_block"], []
    expected = run(model)
    with hooks.record(model.unet, names) as whole:
        run(model)
    with unchanged(model), hooks.record(model.unet, [*names, "up_blocks.1"]) as seen:
        with hooks.until(model.unet, names):
            run(model)
            went_on.append(True)
        assert not went_on and sorted(seen) == sorted(names)
    assert all(torch.equal(seen[name], whole[name]) for name in names)
    with unchanged(model), pytest.raises(KeyError), hooks.until(model.unet, names):
        raise KeyError
    assert torch.equal(run(model), expected)


def test_residuals_are_added_to_every_pass(model):
    noise, given = run(model), []
    down, mid = [torch.zeros(1)] * 12, torch.zeros(1)

    def residuals(sample, timestep, *, encoder_hidden_states):
        given.append((tuple(sample.shape), timestep, len(encoder_hidden_states)))
        return down, mid

    with unchanged(model), hooks.add_residuals(model.unet, residuals):
        assert torch.equal(run(model), noise)
        mid = mid + 1
        assert not torch.allclose(run(model), noise, atol=1e-3)
        mid, down[0] = 0 * mid, down[0] + 1
        assert not torch.allclose(run(model), noise, atol=1e-3)
    assert given == [((1, 4, 8, 8), 501, 1)] * 3 and torch.equal(run(model), noise)


def test_a_module_that_is_not_there_is_refused_before_anything_is_done(model):
    names = ["mid_block", "up_blocks.7.resnets.0"]
    message = (
        r"has no 'up_blocks\.7\.resnets\.0', which the method rewrites; expected one of its "
        r"modules \(up_blocks has 0, 1, 2, 3\)\. Use tfkit\.Plain"
    )
    with unchanged(model), pytest.raises(ValueError, match=message):
        hooks.rewrite(model.unet, dict.fromkeys(names, lambda x: x))
    with pytest.raises(ValueError, match=r"no 'attn'.*\(the UNet has conv_in, .*up_blocks"):
        hooks.rewrite(model.unet, {"attn": lambda x: x})


class Bounded(nn.Module):
    """A user's own processor with weights, as LoRA's used to be."""

    def __init__(self, width):
        super().__init__()
        self.lora = nn.Linear(width, width, bias=False)

    def forward(self, attn, hidden_states, *arguments, **named):
        return AttnProcessor2_0()(attn, hidden_states) + self.lora(hidden_states)


def test_a_users_processors_and_hooks_come_back(pipeline_folder):
    model = tfkit.load(pipeline_folder, device="cpu")
    layers = list(hooks.self_attention(model.unet).values())
    layers[0].set_processor(Bounded(layers[0].query_dim))
    layers[5].set_processor(Bounded(layers[5].query_dim))
    seen = []
    layers[0].register_forward_hook(lambda m, i, o: seen.append(1))
    expected = run(model)
    with unchanged(model):
        with (
            hooks.processor(model.unet, AttnProcessor2_0()),
            hooks.record(model.unet, ["mid_block"]),
        ):
            assert not torch.equal(run(model), expected)
        assert torch.equal(run(model), expected)
    assert len(seen) == 3 and "processor.lora.weight" in layers[0].state_dict()


def test_an_edit_leaves_a_users_processors_alone(pipeline_folder):
    model = tfkit.load(pipeline_folder, device="cpu")
    layer = list(hooks.self_attention(model.unet).values())[2]
    layer.set_processor(Bounded(layer.query_dim))
    source = tfkit.invert(model, moving_latents(2, 8, 8), steps=1, progress=False)
    with unchanged(model):
        tfkit.edit(model, source, "a dog", progress=False)


# --- interrupts while a context is entered or left ------------------------------------------------


class Small(nn.Module):
    """As little as the hooks can be put on: entering and leaving takes a few hundred bytecodes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.block = nn.ModuleDict({"attn1": Attention(4, heads=1, dim_head=4)})
        self.other = nn.ModuleDict({"attn1": Attention(4, heads=1, dim_head=4)})
        self.other["attn1"].set_processor(Bounded(4))


CONTEXTS = {
    "processor": lambda small: hooks.processor(small, AttnProcessor2_0()),
    "record": lambda small: hooks.record(small, ["first", "second"]),
    "rewrite": lambda small: hooks.rewrite(
        small, dict.fromkeys(["first", "second"], torch.zeros_like)
    ),
    "add_residuals": lambda small: hooks.add_residuals(small, lambda *inputs: ([], None)),
    "first_nonfinite": hooks.first_nonfinite,
    "until": lambda small: hooks.until(small, ["first", "second"]),
}


@functools.cache
def after_calls(code):
    """The offsets of the instructions that follow a call."""
    steps = list(dis.get_instructions(code))
    return {b.offset for a, b in pairwise(steps) if a.opname.startswith("CALL")}


# Only these: the annotation checks around them would be tens of thousands of places more.
WATCHED = {"hooks.py", "contextlib.py", "module.py", "attention_processor.py", "test_hooks.py"}


def interrupted_at(n, small, context):
    """Enters and leaves a context, with Ctrl-C served at the n-th place where Python does so.

    That is after a call, in tfkit's own code and what it calls. (And where a function begins, which
    is the same as before its call; but for `__exit__`, which no code calls.)
    Returns whether there was an n-th place.
    """
    left = n

    def trace(frame, event, argument):
        nonlocal left
        if Path(frame.f_code.co_filename).name not in WATCHED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and frame.f_lasti in after_calls(frame.f_code):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt(f"{frame.f_code.co_name} line {frame.f_lineno}")
        return trace

    def body():
        with CONTEXTS[context](small):
            pass

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        body()
    except KeyboardInterrupt as error:
        interrupted_at.kept = error  # as a notebook does: no garbage collection comes to help
    finally:
        sys.settrace(outer)
    return left <= 0


def state(small):
    return {name: {k: identity(v) for k, v in vars(m).items()}
            for name, m in small.named_modules()}  # fmt: skip


@pytest.mark.parametrize("context", CONTEXTS)
def test_ctrl_c_on_the_way_in_or_out_leaves_nothing_behind(context):
    small = Small()
    before, n = state(small), 1
    while interrupted_at(n, small, context):
        assert state(small) == before, f"{n}th place: {interrupted_at.kept}"
        n += 1
    assert n > 20  # or nothing was traced
