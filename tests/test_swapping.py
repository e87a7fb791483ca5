"""Frames rebuilt from another frame's tokens: against plain loops, and where nothing is to swap."""

import pytest
import torch
from clips import bare

import tfkit
from tfkit import hooks
from tfkit.sampling import ddim_step
from tfkit.swapping import rebuild, rebuild_from_latents, rebuild_from_patches


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def source(model):
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tfkit.invert(model, x, "a cat", steps=3, progress=False)


def by_loops(model, source, key, names, when):
    """Each frame alone: record its own and the key's tokens, then put the nearest ones in."""
    text, out = model.embed(source.prompt), []
    for i in range(len(source)):
        x = source.noise[i : i + 1].to(torch.float64)
        for k, t in enumerate(source.timesteps):
            tokens = tfkit.extract_tokens(model, source, timestep=t, layers="*", batch=1)
            swapped = {}
            for name in names:
                a, b = tokens[name][[i, key]]
                cos = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
                swapped[name] = torch.stack([b[row.argmax()] for row in cos])[None]
            handles = []
            if t in when:
                for name, value in swapped.items():
                    module = model.unet.get_submodule(name)
                    handles.append(module.register_forward_hook(lambda m, a, o, v=value: v))
            with torch.no_grad():
                noise = model.predict_noise(x, t, text)
            for handle in handles:
                handle.remove()
            after = source.timesteps[k + 1] if k + 1 < len(source.timesteps) else None
            x = ddim_step(x, noise, model.alpha(t), model.alpha(after))
        out.append(x)
    return model.decode(torch.cat(out))


@pytest.mark.parametrize("layers", ["*", "up_blocks.2.*"])
@pytest.mark.parametrize("part", [slice(None), slice(1, 2)])
def test_it_is_what_plain_loops_do(model, source, layers, part):
    when = source.timesteps[part]
    names = hooks.match(model.unet, layers)
    expected = by_loops(model, source, 2, names, when)
    got = rebuild(model, source, key=2, layers=layers, timesteps=when, batch=3, progress=False)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_no_timesteps_are_plain_reconstruction(model, source):
    plain = tfkit.reconstruct(model, source, progress=False)
    none = rebuild(model, source, timesteps=[], progress=False)
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-8)
    swapped = rebuild(model, source, key=1, progress=False)
    assert (swapped[0] - plain[0]).abs().max() > 1e-4


def test_equal_frames_can_be_rebuilt_from_any_of_them(model, source):
    frames = source.clean[:1].expand(3, -1, -1, -1).clone()
    same = tfkit.invert(model, frames, "a cat", steps=3, progress=False)
    first, other = (rebuild(model, same, key=key, progress=False) for key in (0, 2))
    torch.testing.assert_close(first, other, rtol=0, atol=1e-10)
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-10)


def test_any_token_is_another_result_than_the_nearest(model, source):
    nearest = rebuild(model, source, progress=False)
    blind = rebuild(model, source, match="random", progress=False)
    assert torch.equal(blind, rebuild(model, source, match="random", progress=False))
    assert (blind - nearest).abs().max() > 1e-4
    one_by_one = rebuild(model, source, match="random", batch=1, progress=False)
    torch.testing.assert_close(one_by_one, blind, rtol=0, atol=1e-8)
    none = rebuild(model, source, match="random", timesteps=[], progress=False)
    plain = tfkit.reconstruct(model, source, progress=False)
    torch.testing.assert_close(none, plain, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="match='best': expected"):
        bare(rebuild)(model, source, match="best")


def test_the_model_is_as_before(model, source):
    before = {n: m.processor for n, m in hooks.self_attention(model.unet).items()}
    rebuild(model, source, progress=False)
    assert before == {n: m.processor for n, m in hooks.self_attention(model.unet).items()}


def test_patches_come_from_the_key_frame():
    frames = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    frames[2] = frames[1].roll(8, -1)
    out = rebuild_from_patches(frames, key=1, patch=8)
    assert torch.equal(out[1], frames[1]) and torch.equal(out[2], frames[2])
    own = {tuple(p.flatten().tolist()) for p in frames[1].unfold(1, 8, 8).unfold(2, 8, 8)
           .permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)}  # fmt: skip
    got = out[0].unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(-1, 3, 8, 8)
    assert all(tuple(p.flatten().tolist()) in own for p in got)


def test_of_many_patches_each_is_most_like_itself():
    frames = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 99 + 0.9
    out = rebuild_from_patches(frames, key=1, patch=2)
    assert torch.equal(out[1], frames[1])


def test_latents_of_the_same_frame_are_its_own(model):
    frames = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    both = torch.cat([frames, frames])
    out = rebuild_from_latents(model, both)
    torch.testing.assert_close(out, model.decode(model.encode(both), size=(32, 32)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: rebuild(m, s, key=4), "key=4: expected a frame from 0 to 3"),
        (lambda m, s: rebuild(m, s, timesteps=[5]), "timestep 5 is not on this trajectory"),
        (lambda m, s: rebuild(m, s, layers="nowhere"), "fits no self-attention"),
        (lambda m, s: rebuild_from_patches(torch.rand(2, 3, 16, 16), patch=5), "patch=5.*divisor"),
        (lambda m, s: rebuild_from_patches(torch.rand(2, 3, 16, 16), key=2), "key=2"),
    ],
)
def test_bad_input_is_refused(model, source, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, source)
