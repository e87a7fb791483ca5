"""The example in CONTRIBUTING.md does what it says."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pipelines import moving_latents

import tfkit
from tfkit import hooks

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def example():
    return written("SparseCausal")


def written(name):
    """What a piece of Python in the text defines."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if name in code)
    names: dict = {"__name__": "example"}
    exec(code, names)
    return names[name]


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


def test_the_example_edits_with_any_method(model, example):
    source = tfkit.invert(model, moving_latents(3, 8, 8).double(), steps=2, progress=False)
    for method in (tfkit.PlugAndPlay(), tfkit.SDEdit(0.5)):
        settings = {"method": method, "progress": False}
        made = tfkit.edit(model, source, "a dog", propagation=example(), **settings)
        alone = tfkit.edit(model, source, "a dog", propagation=tfkit.PerFrame(), **settings)
        assert not torch.allclose(made.latents, alone.latents)


def test_the_methods_example_holds_on_to_the_source(model):
    """Frame by frame and with TokenFlow, in a first edit and a further one."""
    source = tfkit.invert(model, moving_latents(3, 8, 8).double(), steps=2, progress=False)
    method = written("HoldTheMiddle")(share=0.5)
    for way in (tfkit.PerFrame(), tfkit.TokenFlow(interval=3)):
        made, plain = (
            tfkit.edit(model, source, "a dog", method=x, propagation=way, progress=False).latents
            for x in (method, tfkit.Plain())
        )
        assert not torch.allclose(made, plain)
        again = tfkit.edit(model, source, "a dog", method=method, propagation=way, progress=False)
        torch.testing.assert_close(again.latents, made, rtol=0, atol=1e-9)
    held = [method.injects(SimpleNamespace(step=step, steps=2)) for step in (0, 1)]
    assert held == [["mid_block.resnets.1"], []]


@pytest.mark.parametrize("source", [False, True])
def test_its_frames_read_the_first_and_the_one_before(model, example, source):
    name = "up_blocks.3.attentions.0.transformer_blocks.0.attn1"
    layer = hooks.self_attention(model.unet)[name]
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(2 * 3, 9, layer.to_q.in_features, generator=g, dtype=torch.float64)
    with torch.no_grad():
        out = example().attention(branches=2, source=source)(layer, tokens)
        for branch in (0, 3):
            for i in range(3):
                keys = torch.cat([tokens[branch], tokens[branch + max(i - 1, 0)]])[None]
                if source and not branch:
                    keys = tokens[i][None]
                want = layer(tokens[branch + i][None], encoder_hidden_states=keys)[0]
                torch.testing.assert_close(out[branch + i], want, rtol=0, atol=1e-10)


def test_the_commands_are_those_of_the_makefile():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
