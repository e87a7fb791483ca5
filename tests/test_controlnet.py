"""ControlNet: what diffusers would compute by hand, in edits, inversions and reconstructions."""

import copy
import functools
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from clips import moving
from diffusers import ControlNetModel
from fakehub import serve
from pipelines import _enliven, moving_latents
from safetensors.torch import save_file
from unchanged import unchanged

import tfkit
from tfkit import finding, loading
from tfkit.control import check_beside
from tfkit.identity import key_of
from tfkit.menagerie.recipe.controlnet import from_unet
from tfkit.sampling import ddim_step
from tfkit.swapping import rebuild
from tfkit.video_file import VideoFile

QUIET = {"progress": False}
FRAMES = 3


def make_controlnet(unet, *, factor=8, seed=0):
    """A random ControlNet beside a UNet; its outputs are not zero, as from_unet's would be."""
    widths = (8, 8, 16, 16)[: factor.bit_length()]  # a halving for each but the first
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    _enliven(net, seed)
    with torch.no_grad():
        for part in (net.controlnet_mid_block, *net.controlnet_down_blocks):
            part.weight *= 0.3
    return net.eval()


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("controlnet")
    make_controlnet(tfkit.load(model.name, device="cpu").unet).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def condition():
    edges = torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return (edges > 0.9).double()


@pytest.fixture(scope="module")
def source(model):
    return tfkit.invert(model, moving_latents(FRAMES, 8, 8).double(), "a cat", steps=3, **QUIET)


def by_hand(model, net, x, t, text, condition, scale=1.0):
    """diffusers' own calls, as the authors' preprocess has them; the tiny model predicts noise."""
    text = text.expand(len(x), -1, -1)
    down, mid = net(x, t, encoder_hidden_states=text, controlnet_cond=condition,
                    conditioning_scale=scale, return_dict=False)  # fmt: skip
    return model.unet(
        x, t, encoder_hidden_states=text, down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample  # fmt: skip


@torch.no_grad()
def edit_by_hand(model, net, source, x, condition, scale=1.0, guidance=7.5):
    texts = [model.embed(text) for text in ("ugly", "a dog")]
    for i, t in enumerate(source.timesteps):
        without, with_text = (by_hand(model, net, x, t, text, condition, scale) for text in texts)
        after = source.timesteps[i + 1] if i + 1 < len(source.timesteps) else None
        noise = without + guidance * (with_text - without)
        x = ddim_step(x, noise, model.alpha(t), model.alpha(after))
    return x


def test_a_per_frame_edit_is_a_plain_loop_with_diffusers(model, folder, source, condition):
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64)
    settings = {"negative_prompt": "ugly", "propagation": tfkit.PerFrame(), "batch": 2, **QUIET}
    for scale, noise in ((1.0, "inverted"), (0.5, "fresh")):
        method = tfkit.ControlNet(condition, folder, scale=scale, noise=noise, seed=3)
        with unchanged(model):
            ours = tfkit.edit(model, source, "a dog", method=method, **settings)
        x = source.noise
        if noise == "fresh":  # one draw for all frames, of the condition's structure alone
            one = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
            x = one.double().expand(FRAMES, -1, -1, -1)
        theirs = edit_by_hand(model, net, source, x, condition, scale)
        torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-9)
    plain = tfkit.edit(model, source, "a dog", method=tfkit.Plain(), **settings)
    nothing = tfkit.ControlNet(condition, folder, until=0)
    assert not torch.allclose(ours.latents, plain.latents, atol=1e-3)
    off = tfkit.edit(model, source, "a dog", method=nothing, **settings)
    assert torch.equal(off.latents, plain.latents)


def test_each_pass_sees_the_condition_of_its_own_frames_in_every_branch(
    model, folder, source, condition
):
    """TokenFlow's passes: keyframes as [source | negative | prompt], others' source, the rest."""
    seen = []
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64)
    handle = net.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    tfkit.edit(
        model, source, "a dog", method=tfkit.ControlNet(condition, net), keyframes=[1],
        propagation=tfkit.TokenFlow(FRAMES), **QUIET,
    )  # fmt: skip
    handle.remove()
    for i, (frames, branches) in enumerate([([1], 3), ([0, 2], 1), ([0, 2], 2)] * 3):
        assert torch.equal(seen[i], condition[frames].repeat(branches, 1, 1, 1))


@pytest.mark.parametrize(
    "propagation",
    [tfkit.TokenFlow(2), tfkit.TokenFlow(2, "reference"), tfkit.ExtendedAttention(),
     tfkit.FirstFrame(), tfkit.PerFrame()],
)  # fmt: skip
def test_it_works_with_every_propagation_and_leaves_no_trace(
    model, folder, source, condition, propagation
):
    method = tfkit.ControlNet(condition, folder)
    with unchanged(model):
        session = tfkit.EditSession(
            model, source, "a dog", method=method, propagation=propagation, batch=2
        ).step()
        with pytest.raises(KeyboardInterrupt), _interrupted(model):
            session.step()
    assert session.position == 1 and torch.isfinite(session.latents).all()


class _interrupted:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        def stop(module, args):
            raise KeyboardInterrupt

        self.handle = self.model.unet.mid_block.register_forward_pre_hook(stop)

    def __exit__(self, *error):
        self.handle.remove()


def test_inverted_under_control_it_reconstructs_under_control(model, folder, condition, tmp_path):
    """The authors invert with ControlNet too; the source remembers the condition, not the net."""
    latents, control = moving_latents(FRAMES, 8, 8).double(), tfkit.ControlNet(condition, folder)
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64)
    options = {"steps": 3, "batch": 2, **QUIET}
    with unchanged(model):
        source = tfkit.invert(model, latents, "a cat", control=control, **options)
    x, before = latents, None
    with torch.no_grad():
        for t in source.timesteps[::-1]:
            noise = by_hand(model, net, x, t, model.embed("a cat"), condition)
            x = ddim_step(x, noise, model.alpha(before), model.alpha(t))
            before = t
            torch.testing.assert_close(source.at(t), x, rtol=0, atol=1e-9)
    kept = tfkit.invert(model, latents, "a cat", control=control, folder=tmp_path, **options)
    opened = tfkit.open_trajectory(tmp_path)
    assert torch.equal(opened.at(t), kept.at(t)) and torch.equal(
        opened.conditions["control"], condition
    )
    back = tfkit.reconstruct(model, source, control=control, **QUIET)
    own = tfkit.ControlNet(model=folder)  # no condition of its own: what the source was under
    assert torch.equal(tfkit.reconstruct(model, opened, control=own, batch=3, **QUIET), back)
    with pytest.raises(ValueError, match=r"inverted under a ControlNet.*expected control=tfkit"):
        tfkit.reconstruct(model, source, **QUIET)
    with pytest.raises(ValueError, match=r"under a ControlNet.*expected one inverted without"):
        rebuild(model, source, **QUIET)
    with pytest.raises(ValueError, match="another condition"):
        other = tfkit.ControlNet(1 - condition, folder)
        tfkit.invert(model, latents, "a cat", control=other, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="another condition"):
        tfkit.invert(model, latents, "a cat", folder=tmp_path, **options)


def test_what_is_kept_of_an_edit_knows_the_weights_behind_a_name(
    model, folder, source, condition, tmp_path
):
    """Trained on under the same name, it is another ControlNet."""
    place = shutil.copytree(folder, tmp_path / "net")
    method = tfkit.ControlNet(condition, place)
    settings = {"method": method, "propagation": tfkit.PerFrame(), "progress": False}
    tfkit.edit(model, source, "a dog", folder=tmp_path / "edit", **settings)
    before = key_of({"method": method})
    assert before == key_of({"method": tfkit.ControlNet(condition.clone(), place)})
    assert before != key_of({"method": tfkit.ControlNet(condition, place, scale=0.5)})
    net = loading.load_controlnet(place, device="cpu")
    with torch.no_grad():
        net.conv_in.weight.add_(1e-3)
    net.save_pretrained(place)
    assert before != key_of({"method": method})
    held = [key_of({"method": tfkit.ControlNet(condition, x)}) for x in (net, copy.deepcopy(net))]
    assert held[0] == held[1]
    hub = [tfkit.ControlNet(condition, f"someone/{x}") for x in "aab"]  # not fetched for this
    assert [key_of({"method": x}) == key_of({"method": hub[0]}) for x in hub] == [True, True, False]
    with pytest.raises(ValueError, match="holds the edit of another method"):
        tfkit.edit(model, source, "a dog", folder=tmp_path / "edit", **settings)


def test_until_counts_from_the_noise_in_either_direction(model, folder, condition):
    calls = []
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64)
    handle = net.register_forward_hook(lambda module, args, out: calls.append(int(args[1])))
    control = tfkit.ControlNet(condition, net, until=0.5)
    latents = moving_latents(FRAMES, 8, 8).double()
    source = tfkit.invert(model, latents, steps=4, control=control, **QUIET)
    tfkit.reconstruct(model, source, control=control, **QUIET)
    handle.remove()
    high, low = source.timesteps[:2]
    assert calls == [low, high, high, low]


def test_the_session_shows_the_fields_it_uses(model, folder, source, condition):
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
    settings = {"propagation": tfkit.TokenFlow(FRAMES), "keyframes": [1]}
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64)
    session = tfkit.EditSession(
        model, source, "a dog", method=tfkit.ControlNet(condition, net), batch=2, **settings
    )
    heads = model.unet.get_submodule(layer)
    seen = []
    handle = heads.register_forward_hook(lambda module, args, out: seen.append(out))
    t = source.timesteps[0]
    with torch.no_grad():
        by_hand(model, net, source.at(t), t, model.embed("a cat"), condition)
    handle.remove()
    want = tfkit.nearest_neighbors(seen[0], seen[0][[1]].expand_as(seen[0]))
    assert torch.equal(session.fields(layer).index[:, 0], want.index)


# --- conditions ---------------------------------------------------------------------------------


def test_canny_is_opencvs(unchecked):
    frames = moving(2, 48, 64)
    images = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for low, high in ((100, 200), (20, 60)):
        theirs = np.stack([cv2.Canny(np.ascontiguousarray(i), low, high) for i in images])
        ours = tfkit.canny(frames, low=low, high=high)
        assert torch.equal(ours, torch.from_numpy(theirs)[:, None].expand(-1, 3, -1, -1) / 255)
    assert 0 < ours.mean() < 0.5 and set(ours.unique().tolist()) == {0, 1}
    for options in ({"low": 300}, {"low": -1}, {"high": 0.5}):
        with pytest.raises(ValueError, match="expected"):
            tfkit.canny(frames, **options)


def test_by_default_it_sees_the_edges_of_the_sources_frames(model, folder):
    frames = moving(FRAMES, 64, 64).double()
    own = tfkit.ControlNet(model=folder)
    assert torch.equal(own.see(model, frames), tfkit.canny(frames))
    latents = model.encode(frames)
    assert torch.equal(own.see(model, latents), tfkit.canny(model.decode(latents)))
    finer = tfkit.ControlNet(functools.partial(tfkit.canny, low=5, high=10), folder)
    assert finer.see(model, frames).sum() > own.see(model, frames).sum()
    odd = tfkit.ControlNet(tfkit.Clip(moving(1, 50, 70)), folder).see(model, latents)
    assert odd.shape == (FRAMES, 3, 64, 64) and torch.equal(odd[0], odd[2])
    source = tfkit.invert(model, frames, steps=2, control=own, **QUIET)
    assert torch.equal(source.conditions["control"], tfkit.canny(frames))
    prepared = own.prepare(model, source)
    assert torch.equal(prepared.condition, tfkit.canny(frames))


def test_a_long_video_is_seen_in_chunks_and_held_as_one_channel(
    model, folder, tmp_path, monkeypatch
):
    """A file is never read whole for its edges, and they take a third of the frames."""
    movie = tfkit.write_video(tmp_path / "long.mp4", moving(FRAMES, 64, 64))
    video, own = tfkit.open_video(movie), tfkit.ControlNet(model=folder)
    whole = tfkit.canny(video.read().frames.double())
    monkeypatch.setattr(VideoFile, "read", lambda self: pytest.fail("read whole"))
    for batch in (1, 2, FRAMES + 1):
        assert torch.equal(own.see(model, video, batch).double(), whole)
    kept = {"steps": 2, "control": own, "batch": 2, **QUIET}
    source = tfkit.invert(model, video, folder=tmp_path / "kept", **kept)
    assert torch.equal(source.conditions["control"].double(), whole)
    again = tfkit.open_trajectory(tmp_path / "kept")
    assert torch.equal(again.conditions["control"], source.conditions["control"])
    held = own.prepare(model, source).condition.untyped_storage()
    assert held.nbytes() == whole[:, :1].numel() * source.clean.element_size()
    half = own.bind(tfkit.load(model.name, device="cpu", dtype=torch.float16), whole[:, :1].expand(
        -1, 3, -1, -1
    ))  # fmt: skip
    assert half.condition.untyped_storage().nbytes() == whole[:, :1].numel() * 2
    assert torch.equal(half.condition.double(), whole)


SCRIPT = """
import torch
from tfkit.adapters import _read
from tfkit.loading import load_controlnet
for _ in range(2):
    print(load_controlnet("someone/canny", device="cpu", dtype=torch.float16).dtype)
print(len(_read("someone/lora", "pytorch_lora_weights.safetensors")[0]))
"""


def test_a_hub_id_is_fetched_only_as_far_as_it_is_read(folder, tmp_path):
    """A ControlNet's files lie at the top of its repository; and so do a LoRA's."""
    hub = shutil.copytree(folder, tmp_path / "hub")
    (hub / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (tmp_path / "lora").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "lora" / "mine.safetensors")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "cache")}  # fmt: skip
    with serve({"someone/canny": hub, "someone/lora": tmp_path / "lora"}) as (address, fetched, _):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], text=True, env={**environment, "HF_ENDPOINT": address},
            capture_output=True, cwd=loading.__file__.rsplit("/", 2)[0], timeout=300,
        )  # fmt: skip
    assert done.stdout.split() == ["torch.float16"] * 2 + ["1"], done.stderr
    weights = "diffusion_pytorch_model.safetensors"
    assert sorted(fetched) == ["config.json", weights, "mine.safetensors"]


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"scale": "high"}, r"scale='high': expected a finite number"),
        ({"scale": float("nan")}, r"scale=nan: expected a finite number"),
        ({"until": 2}, r"until=2: expected a share of the steps"),
        ({"noise": "white"}, r"noise='white': expected one of 'inverted', 'fresh'"),
        ({"seed": -1}, r"seed=-1: expected a whole number"),
        ({"condition": "canny"}, r"condition='canny': expected a clip \(f, 3, h, w\)"),
    ],
)
def test_settings_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        tfkit.ControlNet(**settings)


def test_what_does_not_fit_is_refused_before_a_step(model, folder, source, condition, tmp_path):
    def edit(*settings, **options):
        method = tfkit.ControlNet(*settings, **options)
        return tfkit.EditSession(model, source, "a dog", method=method)

    with pytest.raises(ValueError, match=r"condition has 2 frames; expected 1 or the video's 3"):
        edit(condition[:2], folder)
    with pytest.raises(ValueError, match=r"condition: frames span -1 to 1; expected \[0, 1\]"):
        edit(condition * 2 - 1, folder)
    with pytest.raises(FileNotFoundError, match=r"no model '/no/net': expected"):
        edit(condition, "/no/net")
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected a ControlNetModel"):
        edit(condition, tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"model.bin is pickled and could run code: refused"):
        edit(condition, tmp_path)
    session = tfkit.EditSession(model, source, "a dog", propagation=tfkit.PerFrame())
    before = session.plan
    with pytest.raises(FileNotFoundError, match="no model"):
        session.change(method=tfkit.ControlNet(condition, "/no/net"))
    assert session.plan is before


def test_the_menageries_own_says_where_it_is_missing(model, monkeypatch, tmp_path):
    monkeypatch.setattr(finding, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no ControlNet in .*tfkit.menagerie.training con"):
        loading.load_controlnet("menagerie")


def test_the_menageries_own_is_the_default(monkeypatch, tmp_path):
    """As its recipe begins and saves it: a ControlNet that adds nothing yet."""
    menagerie = tfkit.load(device="cpu")
    from_unet(menagerie.unet).half().save_pretrained(tmp_path / "controlnet")
    monkeypatch.setattr(finding, "WEIGHTS", tmp_path)
    frames = tfkit.menagerie.film("a red cat on grass", frames=2).frames
    source = tfkit.invert(menagerie, frames, steps=2, control=tfkit.ControlNet(), **QUIET)
    assert torch.equal(source.conditions["control"], tfkit.canny(frames))
    settings = {"propagation": tfkit.TokenFlow(2), **QUIET}
    ours, plain = (
        tfkit.edit(menagerie, source, "a blue cat on grass", method=method, **settings)
        for method in (tfkit.ControlNet(), tfkit.Plain())
    )
    torch.testing.assert_close(ours.latents, plain.latents, rtol=0, atol=1e-5)


def test_a_net_of_another_model_is_refused(model, tmp_path):
    from pipelines import make_unet, small_unet_config

    wide = {**small_unet_config(), "cross_attention_dim": 48}
    for net, message in (
        (make_controlnet(make_unet(config=wide)), r"cross_attention_dim is 48, the UNet's 32"),
        (make_controlnet(make_unet(), factor=4), r"4 times as large as latents"),
    ):
        with pytest.raises(ValueError, match=message):
            check_beside(model, net, "other")


def test_an_overflow_is_laid_at_its_door(model, source, condition, folder):
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64)
    with torch.no_grad():
        net.controlnet_mid_block.bias[0] = torch.inf
    method = tfkit.ControlNet(condition, net)
    with pytest.raises(tfkit.NonFiniteError, match=r"step 1 of 3: .* in the ControlNet, at time"):
        tfkit.edit(model, source, "a dog", method=method, **QUIET)


@pytest.mark.parametrize(
    "way",
    [
        tfkit.PerFrame(),
        tfkit.FirstFrame(),
        tfkit.ExtendedAttention(),
        tfkit.ExtendedAttention(interval=2),
        tfkit.TokenFlow(interval=2),
        tfkit.TokenFlow(interval=2, variant="reference"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["Plain", "PlugAndPlay", "SDEdit", "ControlNet"])
def test_each_method_edits_with_each_propagation(model, folder, source, condition, name, way):
    """An edit, and the same whatever the batch."""
    methods = {
        "Plain": tfkit.Plain(), "PlugAndPlay": tfkit.PlugAndPlay(), "SDEdit": tfkit.SDEdit(0.7),
        "ControlNet": tfkit.ControlNet(condition, folder),
    }  # fmt: skip
    settings = {"method": methods[name], "propagation": way, "guidance": 3, "progress": False}
    one, all_at_once = (
        tfkit.edit(model, source, "a dog", batch=batch, **settings) for batch in (1, 8)
    )
    torch.testing.assert_close(one.latents, all_at_once.latents, rtol=0, atol=1e-8)
    assert torch.isfinite(one.latents).all()
    change = (one.latents - source.clean).abs().mean()
    assert change > 1e-3
    if not isinstance(way, tfkit.PerFrame):
        alone = tfkit.edit(model, source, "a dog", **settings | {"propagation": tfkit.PerFrame()})
        assert (one.latents - alone.latents).abs().mean() > 1e-6


def test_two_of_them_are_equal_where_they_are_one(condition):
    """A parent's comparison would leave out all that a ControlNet has."""
    one = tfkit.ControlNet(condition)
    assert one == one and one != tfkit.ControlNet(condition, scale=0.5)
    assert len({one, tfkit.ControlNet(condition)}) == 2


def test_the_users_own_stays_in_training(model, source, folder, condition):
    net = loading.load_controlnet(folder, device="cpu", dtype=torch.float64).train()
    tfkit.edit(model, source, "a dog", method=tfkit.ControlNet(condition, net), **QUIET)
    assert net.training


def test_what_is_no_controlnet_is_refused_at_once(unchecked):
    with pytest.raises(ValueError, match=r"model=3: expected 'menagerie', a hub id, a folder or"):
        tfkit.ControlNet(model=3)
