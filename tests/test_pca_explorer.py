"""The components' explorer without a browser: its colours, slices, bytes, traits and page."""

import io
import json
import re
from base64 import b64decode

import pytest
import torch
import traitlets
from clips import bare, moving
from PIL import Image

import tfkit
from tfkit.pca import TokenPCA
from tfkit.plots import xt_slice, yt_slice
from tfkit.widgets import PCAExplorer

FINE, COARSE = "up.3", "up.1"


def features(frames=4, width=24, timesteps=(41, 261)):
    """Tokens of a pattern that moves, of two layers, with a few strong directions."""
    g = torch.Generator().manual_seed(0)
    found = {}
    for name, side in ((FINE, 16), (COARSE, 8)):
        mixing = torch.randn(6, width, generator=g) * torch.arange(6, 0, -1)[:, None]
        for t in timesteps:
            scene = torch.randn(6, side, side + frames, generator=g)
            rows = [scene[..., i : i + side].flatten(1).T for i in range(frames)]
            noise = torch.randn(frames, side**2, width, generator=g)
            found[t, name] = torch.stack(rows) @ mixing + 0.3 * noise
    return found


@pytest.fixture(scope="module")
def clip():
    return moving(4, 64, 64)


@pytest.fixture
def explorer(clip):
    return PCAExplorer(clip, features())


# --- Colours ---


def test_at_first_colours_are_those_of_token_pca(explorer):
    tokens = features()[41, FINE]
    want = TokenPCA(explorer.count).fit(tokens).to_rgb(tokens)[..., :3]
    torch.testing.assert_close(explorer.colors(), want, atol=2e-3, rtol=0)
    explorer.basis = "frame"
    own = [TokenPCA(explorer.count).fit(frame).to_rgb(frame)[..., :3] for frame in tokens]
    torch.testing.assert_close(explorer.colors(), torch.stack(own), atol=2e-3, rtol=0)


def test_components_are_chosen_and_weighed(explorer):
    tokens = features()[41, FINE]
    all_of_them = TokenPCA(explorer.count).fit(tokens).to_rgb(tokens)
    explorer.components, explorer.strength = [5, 0, 0], [1, 0, -1]
    red, green, blue = explorer.colors().unbind(-1)
    torch.testing.assert_close(red, all_of_them[..., 5], atol=2e-3, rtol=0)
    assert (green == 0.5).all()
    torch.testing.assert_close(blue, 1 - all_of_them[..., 0], atol=2e-3, rtol=0)
    explorer.strength = [2, 1, 1]
    strong = (0.5 + 2 * (all_of_them[..., 5] - 0.5)).clamp(0, 1)
    torch.testing.assert_close(explorer.colors()[..., 0], strong, atol=4e-3, rtol=0)


def test_layers_and_timesteps_are_chosen_by_their_traits(explorer):
    shown = explorer.colors()
    explorer.timestep = 261
    assert not torch.equal(explorer.colors(), shown)
    explorer.layer = COARSE
    assert explorer.colors().shape == (4, 64, 3) and explorer.grid == (8, 8)


# --- Slices ---


def test_slices_along_rows_and_columns_are_those_of_plots(explorer, clip):
    explorer.line = [0, 20, 63, 20]
    torch.testing.assert_close(explorer.slices()["film"], xt_slice(clip, 20))
    explorer.line = [7, 0, 7, 63]
    want = yt_slice(clip, 7).transpose(1, 2)
    torch.testing.assert_close(explorer.slices()["film"], want)


def test_slices_of_colours_are_the_tokens_under_the_line(explorer):
    explorer.line = [0, 0, 63, 63]
    cut = explorer.slices()["joint"]
    assert cut.shape == (3, 4, 90)
    picture = explorer.colors().reshape(4, 16, 16, 3)
    diagonal = torch.stack([picture[:, i, i] for i in range(16)], 1).permute(2, 0, 1)
    near = [round(89 * (4 * k + 1.5) / 63) for k in range(16)]  # in each token's middle
    torch.testing.assert_close(cut[..., near], diagonal)


def test_each_frames_own_basis_flickers(explorer):
    explorer.components = [0, 1, 2]
    flicker = explorer.flicker()
    assert set(flicker) == {"film", "joint", "frame"}
    want = explorer.slices()["joint"].diff(dim=1).abs().mean().item()
    assert flicker["joint"] == pytest.approx(want)
    still = {key: tokens[:1].expand(4, -1, -1) for key, tokens in features().items()}
    same = PCAExplorer(explorer._frames, still).flicker()
    assert same["joint"] == same["frame"] == 0
    # the same content, but half of the frames turned about: only a frame's own basis is disturbed
    tokens = features()[41, FINE][:1].repeat(4, 1, 1)
    tokens[1::2] += (
        8
        * torch.randn(1, 256, 1, generator=torch.Generator().manual_seed(1))
        * (torch.arange(24) == 3)
    )
    turned = PCAExplorer(explorer._frames, {(1, FINE): tokens}).flicker()
    assert turned["frame"] > turned["joint"] > 0


# --- Bytes ---


def test_the_budget_decides_how_many_components(clip):
    small = PCAExplorer(clip, features(), budget=0.04)
    large = PCAExplorer(clip, features(), most=5)
    assert small.nbytes <= 0.04e6 < large.nbytes and 3 <= small.count < large.count == 5
    assert f"{small.count} components (" in repr(small) and "2 layers x 2 timesteps" in repr(large)
    few = PCAExplorer(clip, {(1, "up"): torch.randn(4, 16, 4)})
    assert few.count == 4


def test_the_variance_it_tells_is_what_the_components_have(explorer):
    tokens = features()[41, FINE].flatten(0, 1).double()
    values = torch.linalg.eigvalsh(tokens.T.cov()).flip(0)
    held = explorer._data["tokens"][0]
    want = (values / values.sum())[: explorer.count]
    torch.testing.assert_close(torch.tensor(held["joint_energy"]).double(), want, atol=1e-4, rtol=0)
    assert sum(held["frame_energy"]) > 0.9


def test_of_a_model_and_a_source(pipeline_folder):
    model = tfkit.load(pipeline_folder, device="cpu", dtype=torch.float32)
    noised = tfkit.tokens.noised(model, moving(2, 64, 64))
    explorer = PCAExplorer.of(model, noised, timesteps=[100], layers="up_blocks.3.attentions.0.*")
    assert explorer.timestep == 100 and explorer.grid == (8, 8) and explorer.size == (64, 64)
    given = PCAExplorer.of(
        model, noised, moving(2, 64, 64), timesteps=[100], layers="up_blocks.3.*", most=4
    )
    assert given.count == 4 and len(given._kept) == 3


# --- Traits, pictures and pages ---


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("components", [0, 1], "components is .*three of 0 to 7"),
        ("components", [0, 1, 8], "three of 0 to 7"),
        ("strength", [1, 1, 3], "strength is .*three from -2 to 2"),
        ("strength", [1, 1, float("nan")], "strength is"),
        ("line", [0, 0, 64, 3], r"line is .*\[x, y, x, y\] in 64 x 64"),
        ("line", [3, 3, 3, 3], "ends a pixel or more apart"),
        ("line", ["0", 0, 3, 3], "line is"),
        ("probe", [4, 0.5], r"probe is .*\[frame to 3, 0 to 1\]"),
        ("probe", [1, 1.5], "probe is"),
        ("basis", "both", "'joint'.*'frame'"),
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
    ("given", "options", "message"),
    [
        ({}, {}, r"features is \{\}; expected \{\(timestep, layer\)"),
        ({(1, "up"): torch.randn(3, 16, 8)}, {}, r"\(3, 16, 8\).*4 frames"),
        ({(1, "up"): torch.full((4, 16, 8), torch.nan)}, {}, "NaN or infinity"),
        ({(1, "up"): torch.randn(4, 16, 8)}, {"most": 2}, "most=2: expected .* at least 3"),
        ({(1, "up"): torch.randn(4, 16, 8)}, {"budget": 0.001}, "budget: .* MB are left"),
        ({(1, "up"): torch.randn(4, 16, 2)}, {}, "tokens of as many"),
    ],
)
def test_what_does_not_fit_is_refused(clip, unchecked, given, options, message):
    with pytest.raises(ValueError, match=message):
        bare(PCAExplorer)(clip, given, **options)


def test_readers_without_a_kernel_see_what_it_shows(explorer):
    def picture():
        bundle = explorer._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert "application/vnd.jupyter.widget-view+json" in data
        return b64decode(data["image/png"])

    before = picture()
    assert Image.open(io.BytesIO(before)).size[0] > 600 and len(before) < 300_000
    explorer.components = [2, 1, 0]
    assert picture() != before


def test_the_page_holds_all_it_needs(explorer, tmp_path):
    explorer.components, explorer.line = [3, 1, 0], [1.0, 2.0, 30.0, 40.0]
    text = explorer.save_html(tmp_path / "new" / "page.html").read_text()
    assert not re.search(r"https?:|//cdn|<link|src=", text)
    state = json.loads(re.search(r'id="state">(.*?)</script>', text, re.S)[1])
    assert (state["components"], state["line"]) == ([3, 1, 0], [1.0, 2.0, 30.0, 40.0])
    values = b64decode(state["_data"]["tokens"][0]["joint"]["base64"])
    held = torch.frombuffer(bytearray(values), dtype=torch.float16).view(4, 256, explorer.count)
    torch.testing.assert_close(held[..., [3, 1, 0]].float().clamp(0, 1), explorer.colors())
    with pytest.raises(ValueError, match=r"ends in '\.png'"):
        explorer.save_html(tmp_path / "page.png")
