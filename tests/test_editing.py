"""The edit against the oracle, against itself under other batch sizes, and its manners."""

import oracle
import pytest
import torch

import tfkit

STEPS, GUIDANCE = 3, 5.0


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module", params=[5, 8])
def source(model, request):
    from pipelines import moving_latents

    latents = moving_latents(request.param, 8, 8).double()
    return tfkit.invert(model, latents, "a cat", steps=STEPS, progress=False)


def texts(model, source):
    return [model.embed(text) for text in (source.prompt, "ugly", "a blue dog")]


def edited(model, source, **settings):
    settings = {"negative_prompt": "ugly", "guidance": GUIDANCE, "progress": False} | settings
    return tfkit.edit(model, source, "a blue dog", **settings)


def oracle_trajectory(source):
    return {t: source.at(t) for t in source.timesteps}


@pytest.mark.parametrize("inject", [True, False])
@pytest.mark.parametrize("interval", [2, 3, 8])
def test_reference_variant_equals_the_oracle(model, source, interval, inject):
    flow = tfkit.TokenFlow(interval, variant="reference")
    keyframes = flow.draw(len(source), STEPS, seed=interval)
    method = tfkit.PlugAndPlay(0.4, 0.7) if inject else tfkit.Plain()
    ours = edited(model, source, method=method, propagation=flow, keyframes=keyframes, batch=3)
    theirs = oracle.edit_reference(
        model.unet, model.scheduler, oracle_trajectory(source), *texts(model, source),
        keyframes=keyframes, interval=interval, guidance=GUIDANCE, attention=0.4, convolution=0.7,
        inject=inject,
    )  # fmt: skip
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("blend", "field", "keyframes"),
    [("sigmoid", "output", [[1, 3], [0, 4], [2, 3]]), ("linear", "input", [[2], [4], [0]])],
)
def test_paper_variant_equals_the_oracle(model, source, blend, field, keyframes):
    flow = tfkit.TokenFlow(field=field, blend=blend)
    ours = edited(model, source, propagation=flow, keyframes=keyframes, batch=2)
    theirs = oracle.edit_paper(
        model.unet, model.scheduler, oracle_trajectory(source), *texts(model, source),
        keyframes=keyframes, guidance=GUIDANCE, blend=blend, field=field,
    )  # fmt: skip
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-8)


def test_keyframes_everywhere_are_joint_attention(model, source):
    """With every frame a keyframe nothing is left to propagate; one frame alone works too."""
    flow = edited(model, source, propagation=tfkit.TokenFlow(interval=1))
    joint = edited(model, source, propagation=tfkit.ExtendedAttention())
    torch.testing.assert_close(flow.latents, joint.latents, rtol=0, atol=1e-9)


def test_per_frame_equals_the_oracle(model, source):
    ours = edited(model, source, propagation=tfkit.PerFrame())
    theirs = oracle.edit_per_frame(
        model.unet, model.scheduler, oracle_trajectory(source), *texts(model, source),
        guidance=GUIDANCE,
    )  # fmt: skip
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-8)
