"""A video prepared while it is inverted: the same levels and edits, for fewer passes."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from clips import annotations_unchecked, decibels
from pipelines import moving_latents
from test_controlnet import make_controlnet
from test_interrupts import stopped_after
from test_passes import edited, frames_through
from unchanged import unchanged

import tfkit
from tfkit import Preparation, invert
from tfkit.inversion import Prepares
from tfkit.sampling import ddim_step

STEPS, FRAMES, KEYFRAMES = 4, 7, 3
QUIET = {"progress": False}
WAY = tfkit.TokenFlow(interval=3)
FIRST, FURTHER = STEPS * 3 * FRAMES, STEPS * (2 * FRAMES + KEYFRAMES)
AHEAD = {"predictor": "extrapolated"}
EXACT = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(scope="module")
def model(pipeline_folder):
    return tfkit.load(pipeline_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="module")
def latents():
    return moving_latents(FRAMES, 8, 8).double()


@pytest.fixture(scope="module")
def plain(model, latents):
    """The straightforward path: inverted and nothing read on the way."""
    return invert(model, latents, "a cat", steps=STEPS, predictor="extrapolated", **QUIET)


def preparation(**settings):
    return Preparation(**{"propagation": WAY} | settings)


def prepared(model, latents, prepare, **options):
    settings = {"steps": STEPS, "predictor": "extrapolated", "prepare": prepare}
    return invert(model, latents, "a cat", **settings | QUIET | options)


def counted(model, work, *args, **options):
    """What ``work(model, ...)`` returns, and how many frames it sends through the UNet."""
    made = []
    passes = frames_through(model, lambda: made.append(work(model, *args, **options)))
    return made[0], passes


def same_levels(source, other):
    assert source.timesteps == other.timesteps
    for t in source.timesteps:
        torch.testing.assert_close(source.at(t), other.at(t), **EXACT)


# The extrapolated predictor


@torch.no_grad()
def by_hand(model, x, fixed_point=0):
    """Steps by the line through the noise at the last two levels; all noises of one model pass."""
    text, before, lower = model.embed("a cat").expand(len(x), -1, -1), None, None
    for t in model.timesteps(STEPS)[::-1]:
        noise = model.predict_noise(x, t if before is None else before, text)
        guess = noise if lower is None else 2 * noise - lower  # levels are evenly spaced
        there = ddim_step(x, guess, model.alpha(before), model.alpha(t))
        for _ in range(fixed_point):
            refined = model.predict_noise(there, t, text)
            there = ddim_step(x, refined, model.alpha(before), model.alpha(t))
        lower = noise if before is not None else None
        x, before = there, t
    return x


@pytest.mark.parametrize("fixed_point", [0, 2])
def test_extrapolated_is_a_plain_loop(model, latents, fixed_point):
    options = {"steps": STEPS, "fixed_point": fixed_point} | QUIET
    source = invert(model, latents, "a cat", predictor="extrapolated", **options)
    torch.testing.assert_close(source.noise, by_hand(model, latents, fixed_point), **EXACT)
    usual = invert(model, latents, "a cat", **options)
    assert (usual.noise - source.noise).abs().max() > 1e-3


def test_it_brings_more_back_for_the_same_passes():
    """On the menagerie, by 10 dB: its noise is nearly a line from level to level."""
    model, clip = tfkit.load(), tfkit.menagerie.film("a striped orange fox on grass", frames=1)
    x = model.encode(clip)
    left = []
    for predictor in ("next", "extrapolated"):
        source = invert(model, x, clip.caption, steps=10, predictor=predictor, **QUIET)
        left.append(decibels(tfkit.reconstruct(model, source, **QUIET), model.decode(x)))
    assert left[1] > left[0] + 5


# Prepared


@pytest.mark.parametrize("fixed_point", [0, 1])
@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
def test_inversion_reads_the_source_by_the_way(model, latents, tmp_path, kept, fixed_point):
    options = {"fixed_point": fixed_point}
    if kept == "in a folder":
        options["folder"] = tmp_path / "fox"
    source, passes = counted(model, prepared, latents, preparation(), **options)
    # the clean level's pass is no edit's, the noisiest level's no inversion's
    assert passes == (STEPS * (1 + fixed_point) + 1) * FRAMES
    if kept == "in a folder":
        source = tfkit.open_trajectory(tmp_path / "fox")
    alone = invert(
        model,
        latents,
        "a cat",
        steps=STEPS,
        predictor="extrapolated",
        fixed_point=fixed_point,
        **QUIET,
    )
    same_levels(source, alone)
    for prompt in ("a dog", "a red dog"):
        latents, passes = counted(model, edited, source, prompt, WAY)
        assert passes == FURTHER
        torch.testing.assert_close(latents, edited(model, alone, prompt, WAY), **EXACT)


def test_what_is_kept_is_what_an_edit_would_have_read(model, latents, plain):
    source = prepared(model, latents, preparation())
    tfkit.EditSession(model, plain, "a dog", propagation=WAY).prepare()
    (key,) = source.cache.sizes()
    assert source.cache.sizes() == plain.cache.sizes()
    for t in source.timesteps:
        ours, theirs = (one.cache.get(key, t) for one in (source, plain))
        assert ours.names == theirs.names and torch.equal(ours.frames, theirs.frames)
        for name, values in ours.part(0).items():
            torch.testing.assert_close(values, theirs.part(0)[name], **EXACT)


WAYS = {
    "on inputs": tfkit.TokenFlow(interval=3, field="input", blend="linear"),
    "fixed keyframes": tfkit.TokenFlow(interval=2, keyframes="fixed"),
    "in blocks": tfkit.TokenFlow(interval=2, window=3),
}


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_any_setting_and_batch(model, latents, plain, way, batch):
    source = prepared(model, latents, preparation(propagation=way, seed=5), batch=batch)
    same_levels(source, plain)
    session = tfkit.EditSession(model, source, "a dog", propagation=way, seed=5)
    assert frames_through(model, session.prepare) == 0
    expected = edited(model, plain, way=way, seed=5)
    torch.testing.assert_close(session.step(STEPS).latents, expected, **EXACT)


def test_given_keyframes(model, latents):
    rows = torch.tensor([[0, 4], [1, 5], [2, 6], [3, 5]])
    source = prepared(model, latents, preparation(keyframes=rows))
    assert counted(model, edited, source, way=WAY, keyframes=rows)[1] == STEPS * (2 * FRAMES + 2)
    assert counted(model, edited, source, way=WAY)[1] == FIRST


def test_methods_that_read_less_find_it_too(model, latents):
    source = prepared(model, latents, preparation())
    for method, steps in ((tfkit.Plain(), STEPS), (tfkit.SDEdit(0.5), STEPS // 2)):
        _, passes = counted(model, edited, source, way=WAY, method=method)
        assert passes == steps * (2 * FRAMES + KEYFRAMES), method


def test_a_method_that_starts_late_reads_the_lower_levels_alone(model, latents, plain):
    source = prepared(model, latents, preparation(method=tfkit.SDEdit(0.5)))
    same_levels(source, plain)
    (key,) = source.cache.sizes()
    assert [source.cache.get(key, t) is None for t in source.timesteps] == [True] * 2 + [False] * 2


APART = {
    "at the next": ({"predictor": "next"}, {}),
    "a carried source": ({}, {"propagation": tfkit.TokenFlow(interval=3, variant="reference")}),
}


@pytest.mark.parametrize(("options", "settings"), APART.values(), ids=APART)
def test_where_its_passes_are_others_it_reads_afterwards(model, latents, options, settings):
    source, passes = counted(model, prepared, latents, preparation(**settings), **options)
    way = settings.get("propagation", WAY)
    again = KEYFRAMES * (way.variant == "reference")  # which carries keyframes like all frames
    assert passes == STEPS * (2 * FRAMES + again)
    alone = invert(
        model,
        latents,
        "a cat",
        steps=STEPS,
        predictor=options.get("predictor", "extrapolated"),
        **QUIET,
    )
    same_levels(source, alone)
    made, passes = counted(model, edited, source, way=way)
    assert passes == STEPS * (2 * FRAMES + KEYFRAMES + 2 * again)
    torch.testing.assert_close(made, edited(model, alone, way=way), **EXACT)


@pytest.fixture(scope="module")
def net(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("controlnet")
    make_controlnet(tfkit.load(model.name, device="cpu").unet).save_pretrained(path)
    return path


@pytest.mark.parametrize("same", [True, False])
def test_under_a_controlnet(model, latents, net, same):
    edges = (torch.rand(FRAMES, 3, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.9) * 1.0
    control = tfkit.ControlNet(edges, model=net)
    method = control if same else tfkit.ControlNet(1 - edges, model=net)
    options = {"control": control}
    source, passes = counted(model, prepared, latents, preparation(method=method), **options)
    assert passes == (STEPS + 1 if same else 2 * STEPS) * FRAMES
    alone = invert(
        model, latents, "a cat", steps=STEPS, predictor="extrapolated", **options, **QUIET
    )
    same_levels(source, alone)
    assert counted(model, edited, source, way=WAY, method=method)[1] == FURTHER


# Cut short


def test_stopped_anywhere_it_goes_on(model, latents, tmp_path):
    """At most one step is repeated, and the outcome is that of a run that was not stopped."""
    whole = prepared(model, latents, preparation())
    with stopped_after(10**9) as count:
        prepared(model, latents, preparation())
    calls = count[0]
    for k, at in enumerate(range(1, calls, calls // 6)):
        folder = tmp_path / str(k)
        with unchanged(model), pytest.raises(KeyboardInterrupt), stopped_after(at):
            prepared(model, latents, preparation(), folder=folder)
        levels = len(list(folder.glob("t*.safetensors")))
        source, passes = counted(model, prepared, latents, preparation(), folder=folder)
        # the noise of two levels that are there, and the noisiest level's pass
        assert passes <= (STEPS - levels + 2) * FRAMES
        same_levels(source, whole)
        (key,) = whole.cache.sizes()
        assert all(source.cache.get(key, t) is not None for t in whole.timesteps)


def test_a_finished_trajectory_is_prepared_for_other_edits_too(model, latents, tmp_path):
    folder = {"folder": tmp_path / "fox"}
    prepared(model, latents, preparation(), **folder)
    assert counted(model, prepared, latents, preparation(), **folder)[1] == 0
    assert counted(model, prepared, latents, preparation(seed=1), **folder)[1] == STEPS * FRAMES


def test_without_room_it_says_so_inverts_and_wastes_no_pass(model, latents, plain, tmp_path):
    whole = sum(prepared(model, latents, preparation()).cache.sizes().values())
    folder = tmp_path / "fox"

    small = preparation(budget=whole // 2)
    with pytest.warns(UserWarning, match=r"the steps read .* source.cache.budget = \d+"):
        source, passes = counted(model, prepared, latents, small, folder=folder)
    assert passes <= (STEPS + 1) * FRAMES and 0 < sum(source.cache.sizes().values()) <= whole // 2
    same_levels(source, plain)
    source.cache.budget = 2**30
    made = edited(model, source, way=WAY)
    torch.testing.assert_close(made, edited(model, plain, way=WAY), **EXACT)


def test_what_the_noisy_steps_inject_counts_where_room_is_short(model, latents, plain):
    """The lowest level is read first, and Plug-and-Play injects nothing there."""
    method = tfkit.PlugAndPlay(attention=0.5, convolution=0.5)
    whole = sum(prepared(model, latents, preparation(method=method)).cache.sizes().values())
    one = sum(prepared(model, latents, preparation(method=tfkit.Plain())).cache.sizes().values())
    assert one < whole - 1000

    small = preparation(method=method, budget=whole - 1)  # room enough for fields alone
    with pytest.warns(UserWarning, match=r"To keep all of it: source.cache.budget") as said:
        prepared(model, latents, small)
    assert len(said) == 1


def bytes_in(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("more", [0, 0.2], ids=["bare", "some"])
def test_what_is_prepared_gives_way_to_levels_on_a_full_disk(
    model, latents, plain, tmp_path, small_disk, more
):
    """Room for the levels, and for none or a fifth of what is read on the way."""
    prepared(model, latents, None, folder=tmp_path / "plain")
    prepared(model, latents, preparation(), folder=tmp_path / "whole")
    room, whole = (bytes_in(tmp_path / name) for name in ("plain", "whole"))
    small_disk(tmp_path / "fox", room + int(more * (whole - room)))
    with pytest.warns(UserWarning, match=r"the disk is full: .* give way") as said:
        source = prepared(model, latents, preparation(), folder=tmp_path / "fox")
    assert sum("give way" in str(one.message) for one in said) == 1
    assert source.cache.budget == 0 and not source.cache.sizes()
    same_levels(source, plain)
    made = edited(model, source, way=WAY)
    torch.testing.assert_close(made, edited(model, plain, way=WAY), **EXACT)


def test_a_place_that_takes_nothing_is_told_once(model, latents, plain, tmp_path):
    source = prepared(model, latents, None, folder=tmp_path / "fox")
    source.cache.folder.write_text("a file, where the folder was to be")
    with pytest.warns(
        UserWarning, match=r"cannot be kept in .*cache' \(.*\): further edits"
    ) as said:
        made = [edited(model, source, way=WAY) for _ in range(2)]
    assert len(said) == 1
    for one in made:
        torch.testing.assert_close(one, edited(model, plain, way=WAY), **EXACT)


def test_steps_of_an_edit_come_before_what_is_kept_of_its_source(
    model, latents, tmp_path, small_disk
):
    source = prepared(model, latents, preparation(), folder=tmp_path / "fox")
    first, again = (tfkit.EditSession(model, source, "a dog", propagation=WAY) for _ in range(2))
    first.run(folder=tmp_path / "first", **QUIET)
    kept = sum(source.cache.sizes().values())
    small_disk(tmp_path, bytes_in(tmp_path) + bytes_in(tmp_path / "first") - kept)
    with pytest.warns(UserWarning, match=r"the disk is full: .* give way"):
        again.run(folder=tmp_path / "again", **QUIET)
    torch.testing.assert_close(again.latents, first.latents, **EXACT)
    assert bytes_in(tmp_path / "again") == bytes_in(tmp_path / "first")


def test_a_disk_that_stays_full_is_an_error(model, latents, tmp_path, small_disk):
    source = prepared(model, latents, preparation(), folder=tmp_path / "fox")
    whole = bytes_in(tmp_path)
    small_disk(tmp_path, whole - sum(source.cache.sizes().values()))  # not a byte for the edit
    edit = tfkit.EditSession(model, source, "a dog", propagation=WAY)
    with pytest.warns(UserWarning, match="give way"), pytest.raises(OSError, match="No space left"):
        edit.run(folder=tmp_path / "edit", **QUIET)


def test_what_is_kept_on_another_disk_stays(model, latents, tmp_path, full_disk, monkeypatch):
    source, stat = prepared(model, latents, preparation(), folder=tmp_path / "fox"), Path.stat
    kept = source.cache.sizes()

    def mounted(path, **options):  # the edit's folder is on a disk of its own
        found = list(stat(path, **options))
        found[2] += path.name == "edit"
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", mounted)
    full_disk(2)  # the manifest, and then
    edit = tfkit.EditSession(model, source, "a dog", propagation=WAY)
    with pytest.raises(OSError, match="No space left"):
        edit.run(folder=tmp_path / "edit", **QUIET)
    monkeypatch.undo()
    assert source.cache.sizes() == kept


def test_no_budget_prepares_nothing(model, latents, plain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source, passes = counted(model, prepared, latents, preparation(budget=0))
    assert passes == STEPS * FRAMES and not source.cache.sizes()
    same_levels(source, plain)


# Bad input


def test_it_is_what_invert_takes():
    assert isinstance(Preparation(), Prepares)


BAD = {
    "propagation": (lambda: Preparation(propagation=tfkit.PerFrame()), r"PerFrame\(\).*TokenFlow"),
    "method": (lambda: Preparation(method="pnp"), r"method='pnp'.*PlugAndPlay"),
    "a class": (lambda: Preparation(propagation=tfkit.TokenFlow), "expected an object such as"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_settings_that_are_none(make, message):
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        make()


REFUSED = {
    "a propagation": ({"prepare": WAY}, r"prepare=TokenFlow\(.*Preparation"),
    "its class": ({"prepare": Preparation}, r"prepare=.*Preparation\(\.\.\.\)"),
    "keyframes": ({"prepare": Preparation(keyframes=[0, 99])}, "0 to 99: expected .* 0 to 6"),
    "seed": ({"prepare": Preparation(seed=-1)}, "seed=-1"),
    "predictor": ({"predictor": "here"}, "predictor='here'.*next.*extrapolated"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_invert_refuses_leaves_nothing_behind(model, latents, tmp_path, options, message):
    folder = tmp_path / "fox"
    with annotations_unchecked(), pytest.raises(ValueError, match=message):
        prepared(model, latents, **{"prepare": preparation(), "folder": folder} | options)
    assert not folder.exists()


def test_a_folder_belongs_to_one_predictor(model, latents, tmp_path):
    options = {"steps": STEPS, "folder": tmp_path / "fox"} | QUIET
    source = invert(model, latents, "a cat", **options)
    with pytest.raises(
        ValueError, match="another predictor: 'next' there, 'extrapolated' asked for"
    ):
        invert(model, latents, "a cat", predictor="extrapolated", **options)
    manifest = tmp_path / "fox" / "trajectory.json"
    older = json.loads(manifest.read_text())
    assert older.pop("predictor") == "next" and older.pop("crc32")
    manifest.write_text(json.dumps(older))
    assert tfkit.open_trajectory(tmp_path / "fox").timesteps == source.timesteps
    assert counted(model, invert, latents, "a cat", **options)[1] == 0
    with pytest.raises(ValueError, match="another predictor"):
        invert(model, latents, "a cat", predictor="extrapolated", **options)
