"""The correspondence explorer without a browser: its traits, its bytes, its truth and its page."""

import io
import json
import re
from base64 import b64decode

import pytest
import torch
import traitlets
from clips import bare
from PIL import Image

from tfkit import correspondence
from tfkit.menagerie import film
from tfkit.tracks import follow_flow, grid_of, read_at, token_centers, track_points
from tfkit.widgets import CorrespondenceExplorer, compact

FINE, COARSE = "up.3", "up.1"


def features(frames=4, width=24, timesteps=(41, 261)):
    """Random tokens of two layers, a fine one and a coarse one, at some timesteps."""
    g = torch.Generator().manual_seed(0)
    sides = {FINE: 16, COARSE: 8}
    return {
        (t, name): torch.randn(frames, side**2, width, generator=g)
        for t in timesteps
        for name, side in sides.items()
    }


@pytest.fixture(scope="module")
def clip():
    return film("a striped dog on grass", frames=4, seed=3)


@pytest.fixture
def explorer(clip):
    return CorrespondenceExplorer(clip, features())


# --- What it computes ---


def test_with_room_enough_it_finds_what_the_toolkit_finds(explorer):
    tokens, size = features()[41, FINE], (128, 128)
    explorer.probe = [2, 40.3, 77.0]
    point = torch.tensor([[40.3, 77.0]])
    query = read_at(torch.nn.functional.normalize(tokens[2], dim=-1), point, (16, 16), size)
    want = correspondence.similarity(query, tokens.flatten(0, 1)).view(4, -1)
    torch.testing.assert_close(explorer.similarity(), want, atol=2e-3, rtol=0)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    places, _ = track_points(unit, point, size, start=2)
    torch.testing.assert_close(explorer.matches(), places[:, 0], atol=0.5, rtol=0)


def test_layers_and_timesteps_are_chosen_by_their_traits(explorer):
    shown = explorer.similarity()
    assert shown.shape == (4, 256) and (explorer.layer, explorer.timestep) == (FINE, 41)
    explorer.timestep = 261
    assert not torch.equal(explorer.similarity(), shown)
    explorer.layer = COARSE
    assert explorer.similarity().shape == (4, 64)


def test_pins_have_tracks(explorer):
    assert explorer.tracks().shape == (4, 0, 2)
    explorer.pins = [[1, 5.0, 6.0], explorer.probe]
    torch.testing.assert_close(explorer.tracks()[:, 1], explorer.matches())


def test_it_begins_on_the_animal(explorer, clip):
    frame, x, y = explorer.probe
    assert clip.mask[frame, int(y), int(x)]
    assert CorrespondenceExplorer(clip.frames, features()).probe == [0, 63.5, 63.5]


# --- Its bytes ---


def test_the_budget_decides_the_width(clip):
    small = CorrespondenceExplorer(clip, features(), budget=0.12)
    large = CorrespondenceExplorer(clip, features(), budget=8)
    assert small.nbytes <= 0.12e6 < large.nbytes <= 8e6
    widths = [item["width"] for item in small._data["tokens"]]
    assert min(widths) >= 8 and max(widths) < 24 == large.tokens.shape[-1]
    assert "24 dimensions (100.0% of" in repr(large) and "4 frames of 128x128" in repr(large)


def test_fewer_dimensions_keep_what_is_strong():
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, 50, 4, generator=g) @ torch.randn(4, 32, generator=g)
    tokens += 0.01 * torch.randn(tokens.shape, generator=g)
    small, kept = compact.reduce_tokens(tokens, 4)
    assert small.dtype == torch.float16 and small.shape == (3, 50, 4) and 0.999 < kept <= 1
    want, got = (correspondence.similarity(x[0], x[1]) for x in (tokens, small.float()))
    torch.testing.assert_close(got, want, atol=5e-3, rtol=0)
    whole, kept = compact.reduce_tokens(torch.randn(2, 9, 5, generator=g), 64)
    assert whole.shape == (2, 9, 5) and kept == pytest.approx(1)


def test_pictures_are_small_files():
    files = compact.pictures(torch.rand(2, 3, 300, 600))
    assert [Image.open(io.BytesIO(file)).size for file in files] == [(256, 128)] * 2


# --- The truth ---


def test_truth_forwards_is_the_flow(clip):
    places = compact.true_places(clip.flow, clip.visible, (32, 32))
    centers = token_centers((32, 32), (128, 128))
    want, seen = follow_flow(centers, clip.flow, clip.visible)
    want = want.masked_fill(~seen[..., None], torch.nan).float()
    torch.testing.assert_close(places[0].transpose(0, 1), want, equal_nan=True)


def test_truth_backwards_comes_back_to_where_it_went(clip):
    places = compact.true_places(clip.flow, clip.visible, (32, 32))
    back = places[3, :, 0]
    known = back.isfinite().all(1)
    again, seen = follow_flow(back[known], clip.flow, clip.visible)
    off = (again[-1].float() - token_centers((32, 32), (128, 128))[known]).norm(dim=1)
    assert known.float().mean() > 0.7  # the rest was hidden or outside
    assert seen[-1].float().mean() > 0.95 and off.median() < 0.05 and off.quantile(0.95) < 1


def test_truth_is_packed_in_a_byte_a_coordinate(explorer):
    size = (100, 200)
    places = torch.tensor([[0.0, 0.0], [199.0, 99.0], [61.2, 33.3], [torch.nan, torch.nan]])
    unpacked = compact.unpack_places(compact.pack_places(places, size), size)
    torch.testing.assert_close(unpacked, places, atol=200 / 508, rtol=0, equal_nan=True)
    assert compact.truth_grid(16, (128, 128), 2e6) == (62, 62)
    assert compact.truth_grid(2, (128, 256), 2e6) == (64, 128)


def test_truth_of_the_probe(explorer, clip):
    frame, x, y = explorer.probe
    want, seen = follow_flow(torch.tensor([[x, y]]), clip.flow, clip.visible)
    assert seen.all()
    torch.testing.assert_close(explorer.truth(), want[:, 0].float(), atol=1.0, rtol=0)
    assert explorer.truth()[frame].tolist() == [x, y]
    assert CorrespondenceExplorer(clip, features(), truth=False).truth() is None
    assert CorrespondenceExplorer(clip.frames, features()).truth() is None


# --- Traits, pictures and pages ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("probe", [4, 1.0, 1.0], r"probe is \[4, 1.0, 1.0\].*0 to 3.*128 x 128"),
        ("probe", [0, 128.0, 1.0], "probe is"),
        ("probe", [0, 1.0], "probe is"),
        ("probe", ["0", 1.0, 1.0], "probe is"),
        ("pins", [[0, 1.0, 1.0], [0, -1.0, 1.0]], r"a pin is \[0, -1.0, 1.0\]"),
        ("layer", "up.9", r"layer='up.9'.*'up.1', 'up.3'"),
        ("timestep", 7, r"timestep=7.*\[41, 261\]"),
    ],
)
def test_values_that_are_not_there_change_nothing(explorer, name, value, message):
    before = getattr(explorer, name)
    with pytest.raises(traitlets.TraitError, match=message):
        setattr(explorer, name, value)
    assert getattr(explorer, name) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {}, r"features is \{\}; expected \{\(timestep, layer\)"),
        (lambda f: {"up": f[41, FINE]}, "key 'up'; expected"),
        (lambda f: f | {(41, FINE): f[41, FINE][:3]}, r"\(3, 256, 24\).*4 frames.*clip\[:f\]"),
        (lambda f: {k: v for k, v in f.items() if k != (261, FINE)}, r"lack \(261, 'up.3'\)"),
        (lambda f: f | {(41, FINE): f[41, FINE][:, :97]}, "97 tokens lie on no grid"),
        (lambda f: f | {(41, FINE): f[41, FINE] * torch.nan}, "NaN or infinity"),
    ],
)
def test_features_that_do_not_fit_are_refused(clip, unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        bare(CorrespondenceExplorer)(clip, change(features()))


def test_what_cannot_be_done_is_refused(clip, explorer, tmp_path):
    with pytest.raises(ValueError, match=r"budget: .* MB are left .* expected 8 or more"):
        CorrespondenceExplorer(clip, features(), budget=0.02)
    with pytest.raises(ValueError, match="truth=True, but"):
        CorrespondenceExplorer(clip.frames, features(), truth=True)
    with pytest.raises(ValueError, match=r"ends in '\.png'"):
        explorer.save_html(tmp_path / "page.png")


def test_readers_without_a_kernel_see_what_it_shows(explorer):
    def picture():
        bundle = explorer._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
        return b64decode(data["image/png"])

    before = picture()
    assert Image.open(io.BytesIO(before)).size[0] > 600 and len(before) < 300_000
    explorer.probe = [3, 100.0, 20.0]
    assert picture() != before


def test_the_page_holds_all_it_needs(explorer, tmp_path):
    explorer.probe, explorer.pins = [1, 2.0, 3.0], [[0, 4.0, 5.0]]
    path = explorer.save_html(tmp_path / "new" / "page.html")
    text = path.read_text()
    assert not re.search(r"https?:|//cdn|<link|src=", text)
    state = json.loads(re.search(r'id="state">(.*?)</script>', text, re.S)[1])
    assert (state["probe"], state["pins"]) == (explorer.probe, explorer.pins)
    values = b64decode(state["_data"]["tokens"][0]["values"]["base64"])
    held = torch.frombuffer(bytearray(values), dtype=torch.float16).view(4, 256, 24)
    torch.testing.assert_close(held.float(), explorer.tokens)
    module = b64decode(re.search(r"base64,(\w[\w+/=]+)\"\)", text)[1]).decode()
    assert module == explorer._esm and "export default" in module
    assert grid_of(held, (128, 128)) == tuple(state["_data"]["tokens"][0]["grid"])


def test_a_layers_name_cannot_break_out_of_the_page(clip, tmp_path):
    name = "</script><b>MODULE"
    explorer = CorrespondenceExplorer(clip, {(1, name): features()[41, FINE]})
    text = explorer.save_html(tmp_path / "page.html").read_text()
    assert "</script><b>" not in text and text.count("</script>") == 2
