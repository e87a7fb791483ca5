"""One edit by every metric, each number with what it was measured with; means and tables."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from clips import bare, moving

import tfkit
from tfkit import fidelity, matches, measured_source, metrics, raft, tokens, tracks
from tfkit.clip import load_clip
from tfkit.editing import Edit
from tfkit.menagerie import film
from tfkit.readers import TokenReader, name_of
from tfkit.scores import METRICS, Score, ScoreTable, over_clips, settings_of
from tfkit.scoring import Scorer, score
from tfkit.video import Clip, resize

SOURCE = film("a red cat walking on grass", frames=3)
EDIT = SOURCE.frames.flip(1)  # blue where it was red
PROMPT = "a blue cat walking on grass"


def patches(frames):
    """A reader of tokens that needs no model: patches of 8 x 8 pixels."""
    return torch.nn.functional.unfold(frames - 0.5, 8, stride=8).transpose(1, 2)


@pytest.fixture(scope="module")
def judge():
    return load_clip()


@pytest.fixture(scope="module")
def row(judge):
    return score(EDIT, SOURCE, PROMPT, clip=judge, tokens=patches)


def test_every_number_is_that_of_its_metric(row, judge):
    both, caption = (EDIT, SOURCE), SOURCE.caption
    read = [patches(x) for x in (EDIT, SOURCE.frames)]
    places = tracks.token_centers((16, 16), (128, 128)).reshape(16, 16, 2)[::2, ::2].flatten(0, 1)
    moved = [tracks.track_points(x, places, (128, 128))[0] for x in read]
    along = matches.matches_by_flow(SOURCE.flow, SOURCE.visible, (16, 16))
    expected = {
        "warp_error": metrics.warp_error(EDIT, SOURCE.flow, SOURCE.visible),
        "frame_consistency": judge.frame_consistency(EDIT),
        "frame_consistency_all": judge.frame_consistency(EDIT, "all"),
        "text_alignment": judge.text_alignment(EDIT, PROMPT),
        "directional": judge.directional(*both, PROMPT, caption),
        "success": judge.success(EDIT, PROMPT, caption),
        "structure_distance": fidelity.structure_distance(*read),
        "token_consistency": matches.token_consistency(read[0], along, centered=True),
        "motion_fidelity": fidelity.motion_fidelity(*moved, still=0.5),
        "background_psnr": fidelity.background_psnr(*both, SOURCE.mask),
        "background_ssim": fidelity.background_ssim(*both, SOURCE.mask),
    }
    assert list(row) == list(expected) == list(METRICS)
    for name, value in expected.items():
        assert float(row[name]) == value, name
        assert row[name].name == name and isinstance(float(row[name]), float)


def test_every_number_says_what_it_was_measured_with(row):
    assert row["warp_error"].measured_with == "flow: exact"
    assert row["text_alignment"].measured_with == "CLIP: menagerie"
    assert row["structure_distance"].measured_with == "tokens: patches"
    assert row["token_consistency"].settings == {
        "tokens": "patches, centred",
        "matches": "exact flow",
    }
    assert row["motion_fidelity"].measured_with == "tracks: patches, still: 0.5"
    assert row["background_psnr"].measured_with == "mask: the source's"
    assert row["background_ssim"].measured_with == "mask: the source's, window: 11 x 11 Gaussian"
    assert str(row["warp_error"]).startswith("warp error ×10³ ")


def test_a_video_without_truth_or_words_gets_what_can_be_measured(judge):
    found = score(EDIT, SOURCE.frames, PROMPT, clip=judge)
    assert list(found) == [
        "warp_error",
        "frame_consistency",
        "frame_consistency_all",
        "text_alignment",
    ]
    assert found["warp_error"].measured_with == "flow: DIS, occlusion: forward-backward check"
    flow, visible = metrics.estimate_flow(SOURCE.frames)
    assert float(found["warp_error"]) == metrics.warp_error(EDIT, flow, visible)
    again = score(EDIT, SOURCE, SOURCE.caption, clip=judge, mask=~SOURCE.mask)
    assert "directional" not in again and again["background_psnr"].measured_with == "mask: given"


@pytest.fixture
def still_raft(monkeypatch):
    """A RAFT that sees no motion; a list of what was loaded."""
    loaded = []

    class Still(torch.nn.Conv2d):
        def forward(self, a, b):
            return [torch.zeros(1, 2, *a.shape[-2:])]

    def load(device):
        loaded.append(torch.manual_seed(len(loaded)))
        return Still(1, 1, 1)

    monkeypatch.setattr(raft, "load_raft", load)
    raft.shared_raft.cache_clear()
    yield loaded
    raft.shared_raft.cache_clear()


def test_raft_is_read_once_and_known_by_its_weights(judge, still_raft):
    def measured():
        return score(EDIT, SOURCE.frames, PROMPT, clip=judge, flow="raft")["warp_error"]

    first = measured()
    assert measured() == first and len(still_raft) == 1
    assert first.measured_with.startswith("flow: RAFT large ")
    assert first.measured_with.endswith(", occlusion: forward-backward check")
    raft.shared_raft.cache_clear()
    assert measured().measured_with != first.measured_with and len(still_raft) == 2


def test_other_flows_readers_and_tracks(judge, still_raft):
    zero = torch.zeros_like(SOURCE.flow), torch.ones_like(SOURCE.visible)
    given = score(EDIT, SOURCE, PROMPT, clip=judge, flow=zero)
    assert given["warp_error"].measured_with == "flow: given"
    by_raft = score(EDIT, SOURCE, PROMPT, clip=judge, flow="raft")
    assert float(given["warp_error"]) == float(by_raft["warp_error"])
    true, _ = tracks.follow_flow(
        tracks.token_centers((4, 4), (128, 128)), SOURCE.flow, SOURCE.visible
    )
    reader = type("Reader", (), {"name": "halves", "__call__": lambda self, x: patches(x) ** 2})()
    found = score(
        EDIT, SOURCE, PROMPT, clip=judge, flow="dis", tokens=patches, structure=reader,
        tracks=(true, true),
    )  # fmt: skip
    assert float(found["motion_fidelity"]) == pytest.approx(1)
    assert found["motion_fidelity"].measured_with == "tracks: given, still: 0"
    assert found["structure_distance"].measured_with == "tokens: halves"
    squares = [patches(x) ** 2 for x in (EDIT, SOURCE.frames)]
    assert float(found["structure_distance"]) == fidelity.structure_distance(*squares) > 0
    assert found["token_consistency"].settings["matches"] == "mutual field"


def centers(frames):
    """Tracks: where the centre of each colour is."""
    weights = frames / frames.sum((-1, -2), keepdim=True)
    y, x = torch.meshgrid(*map(torch.arange, frames.shape[-2:]), indexing="ij")
    return torch.stack([(weights * x).sum((-1, -2)), (weights * y).sum((-1, -2))], -1)


def test_tracks_can_be_made_of_the_frames(judge):
    found = score(EDIT, SOURCE, PROMPT, clip=judge, tracks=centers)["motion_fidelity"]
    assert found.measured_with == "tracks: centers, still: 0"
    both = centers(EDIT), centers(SOURCE.frames)
    assert float(found) == fidelity.motion_fidelity(*both)
    given = score(EDIT, SOURCE, PROMPT, clip=judge, tracks=both)["motion_fidelity"]
    assert float(given) == float(found)


def test_weights_are_told_where_names_are_not_enough(judge):
    assert name_of(judge) == "menagerie"
    other, same = (replace(judge, name="mine") for _ in range(2))
    assert name_of(other) == name_of(same) != name_of(replace(other, cut=True))
    moved = load_clip()
    moved.model.visual_projection.weight.data += 1
    assert name_of(replace(moved, name="mine")) != name_of(other)
    found = score(EDIT, SOURCE, PROMPT, clip=other)["text_alignment"].measured_with
    assert found == f"CLIP: mine {other.fingerprint()[:8]}"
    model = replace(tfkit.load(device="cpu"), name="tuned")
    layer = "up_blocks.2.attentions.0.transformer_blocks.0.attn1"
    reader = TokenReader(model, layer, 201, seed=3)
    assert reader.name == f"tuned {model.fingerprint()[:8]} {layer} at t = 201, noise 3"


# Several edits of one source


@pytest.fixture
def counted(judge, monkeypatch):
    """(Readers of a Scorer, how often each read the source) of a source that knows no flow."""
    times = {}

    def count(name, made, is_source=lambda x: torch.equal(x, SOURCE.frames)):
        def counting(*given, **settings):
            times[name] = times.get(name, 0) + is_source(given[0])
            return made(*given, **settings)

        return counting

    monkeypatch.setattr(measured_source, "estimate_flow", count("flow", metrics.estimate_flow))
    by_field = count("matches", matches.matches_by_field, lambda x: True)
    monkeypatch.setattr(measured_source, "matches_by_field", by_field)
    object.__setattr__(judge, "embed_frames", count("images", judge.embed_frames))
    is_caption = SOURCE.caption.__eq__
    object.__setattr__(judge, "embed_prompt", count("words", judge.embed_prompt, is_caption))
    names = ("tokens", "structure", "tracks")
    reads = (patches, lambda x: patches(x) ** 2, centers)
    yield {n: count(n, read) for n, read in zip(names, reads, strict=True)}, times
    del vars(judge)["embed_frames"], vars(judge)["embed_prompt"]


def test_a_source_is_read_once_for_all_its_edits(judge, counted):
    readers, times = counted
    source = replace(SOURCE, flow=None, visible=None)
    edits = [EDIT, EDIT / 2, source.frames.flip(0), resize(EDIT, (64, 96)), EDIT.flip(3)]
    apart = [score(edit, source, PROMPT, clip=judge, **readers) for edit in edits]
    assert times["flow"] == times["words"] == 5 and times["images"] == 4  # one at another size
    times.clear()
    scorer = Scorer(source, clip=judge, **readers)
    assert [scorer(edit, PROMPT) for edit in edits] == apart  # to the last bit
    once = dict.fromkeys(("flow", "images", "words", "tokens", "structure", "tracks"), 1)
    assert times == once | {"matches": 2}  # a match has the edit's size


def test_a_scorers_settings_stay_and_a_pair_of_tracks_goes_with_its_edit(judge):
    scorer = Scorer(SOURCE, clip=judge, tokens=patches)
    with pytest.raises(FrozenInstanceError):
        scorer.structure = patches
    still, moved = torch.rand(3, 5, 2), torch.rand(3, 5, 2)
    pairs = [(moved, still), (still, still)]
    found = [float(scorer(EDIT, PROMPT, tracks=p)["motion_fidelity"]) for p in pairs]
    assert found == [fidelity.motion_fidelity(*p) for p in pairs] and found[0] < found[1]
    followed = scorer(EDIT, PROMPT)["motion_fidelity"]
    assert "given" not in followed.measured_with


def test_only_the_last_edits_size_is_kept_beside_the_sources_own(judge):
    scorer = Scorer(SOURCE, clip=judge, tokens=patches)
    for side in (64, 32, 128, 96):
        scorer(resize(EDIT, (side, side)), PROMPT)
    assert {at[0] for _, at, _ in scorer._made} == {(128, 128), (96, 96)}


def test_an_edit_of_another_size_is_measured_at_its_own(judge):
    small = resize(EDIT, (64, 64))
    found = score(small, SOURCE, PROMPT, clip=judge)
    flow, visible = metrics.resize_flow(SOURCE.flow, SOURCE.visible, (64, 64))
    assert float(found["warp_error"]) == metrics.warp_error(small, flow, visible)
    mask = SOURCE.mask.reshape(3, 64, 2, 64, 2).any(4).any(2)
    expected = fidelity.background_psnr(small, resize(SOURCE.frames, (64, 64)), mask)
    assert float(found["background_psnr"]) == pytest.approx(expected)


def test_the_unedited_source_is_perfect_but_for_the_words(judge):
    found = score(SOURCE, SOURCE, PROMPT, clip=judge, tokens=patches)
    assert found["structure_distance"].value == 0 and found["background_psnr"].value == math.inf
    assert float(found["motion_fidelity"]) == pytest.approx(1)
    assert float(found["background_ssim"]) == pytest.approx(1)
    assert found["directional"].value == found["success"].value == 0


def test_what_cannot_be_measured_is_left_out_and_the_rest_is_there(judge):
    same = SOURCE.caption.upper()  # to the CLIP the caption itself
    everything = torch.ones_like(SOURCE.mask)
    found = score(EDIT, SOURCE, same, clip=judge, mask=everything)
    assert found.keys() == {
        "warp_error", "frame_consistency", "frame_consistency_all", "text_alignment"
    }  # fmt: skip
    everything[:, :5] = False  # background, and no window of 11 x 11 of it
    found = score(EDIT, SOURCE, same, clip=judge, mask=everything)
    assert "background_psnr" in found and "background_ssim" not in found


def test_tokens_come_from_a_model_by_name():
    model = tfkit.load(device="cpu")
    layer = "up_blocks.2.attentions.0.transformer_blocks.0.attn1"
    reader = TokenReader(model, layer, 201)
    frames = SOURCE.frames[:2]
    given = tokens.extract_tokens(model, tokens.noised(model, frames), timestep=201, layers=layer)
    assert torch.equal(reader(frames), given[layer])
    assert reader.name == f"menagerie {layer} at t = 201"
    keys = TokenReader(model, layer, 201, "key")
    assert keys.name == f"menagerie {layer} key at t = 201"
    with pytest.raises(ValueError, match=r"layer='up_blocks.2.\*': expected one layer, it fits up"):
        TokenReader(model, "up_blocks.2.*", 201)
    with pytest.raises(ValueError, match=r"layer 'up_blocks.9' fits no self-attention"):
        TokenReader(model, "up_blocks.9", 201)
    with pytest.raises(ValueError, match="timestep 1000: expected 0 to 999"):
        TokenReader(model, layer, 1000)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((EDIT[:2], SOURCE, PROMPT), {}, r"edit has 2 frames, source 3; expected as many"),
        ((EDIT[:1], SOURCE[:1], PROMPT), {}, r"edit has 1 frames, source 1; .*two at least"),
        ((None, SOURCE, PROMPT), {}, r"edit is of type NoneType; expected a Clip"),
        ((EDIT, SOURCE, PROMPT), {"flow": "lk"}, r"flow='lk'; expected \(flow, visible\) or one "),
        ((EDIT, SOURCE.frames, PROMPT), {"flow": "exact"}, r"the source knows no flow; expected"),
        ((EDIT, SOURCE, PROMPT), {"structure": "dino"}, r"structure='dino': expected a function"),
        ((EDIT, SOURCE, PROMPT), {"tokens": 3}, r"tokens=3: expected a function of frames"),
        ((EDIT, SOURCE, None), {}, r"prompt=None: expected a string"),
        ((EDIT, SOURCE, PROMPT), {"flow": (SOURCE.flow,)}, r"expected \(flow, visible\) or one "),
        ((EDIT, SOURCE, PROMPT), {"flow": (SOURCE.flow, None)}, r"expected \(flow, visible\) or o"),
        ((EDIT, SOURCE, PROMPT), {"mask": SOURCE.mask[0]}, r"mask is torch.bool \(128, 128\); exp"),
        ((EDIT, SOURCE, PROMPT), {"mask": SOURCE.mask.float()}, r"mask is torch.float32 .*; expec"),
        (
            (EDIT, SOURCE, PROMPT),
            {"mask": SOURCE.mask.numpy()},
            r"mask is .*ndarray.*; expected t",
        ),
        ((EDIT, SOURCE, PROMPT), {"mask": SOURCE.mask[:2]}, r"mask is torch.bool \(2, 128, 128\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, settings, message, judge, unchecked):
    with pytest.raises(ValueError, match=message):
        bare(score)(*arguments, clip=judge, **settings)


# Means over clips


def rows(name="warp_error", values=(1e-3, 2e-3, 4e-3), **settings):
    return [{name: Score(name, v, settings or {"flow": "exact"})} for v in values]


def test_the_mean_over_clips_has_an_interval_and_keeps_what_it_was_measured_with():
    found = over_clips(rows())["warp_error"]
    assert float(found) == pytest.approx(7e-3 / 3) and found.clips == 3
    low, high = found.interval
    assert 1e-3 <= low < float(found) < high <= 4e-3
    assert found.measured_with == "flow: exact"
    assert found.text() == f"2.33 [{1e3 * low:.2f}, {1e3 * high:.2f}]"
    assert str(found) == f"warp error ×10³ {found.text()} over 3 clips (flow: exact)"


@pytest.mark.parametrize("settings", [{}, {"CLIP": "a: b, c"}, {"tracks": "given", "still": "0"}])
def test_settings_are_read_back_from_their_line(settings):
    assert settings_of(Score("steady", 1.0, settings).measured_with) == settings


def test_one_clip_or_an_infinite_value_has_no_interval():
    assert over_clips(rows(values=[1e-3]))["warp_error"].interval is None
    found = over_clips(rows("background_psnr", [20, math.inf]))["background_psnr"]
    assert found.interval is None and found.value == math.inf and found.text() == "inf"


def test_clips_measured_differently_have_no_mean():
    with pytest.raises(ValueError, match="warp_error was measured with 'flow: exact' and with 'fl"):
        over_clips([*rows(), *rows(flow="DIS")])
    with pytest.raises(ValueError, match="no rows; expected the scores of at least one clip"):
        over_clips([])


# Tables


def table():
    first = rows(values=[4e-3])[0] | rows("text_alignment", [0.3], CLIP="menagerie")[0]
    second = rows(values=[1e-3])[0] | rows("text_alignment", [0.3004], CLIP="menagerie")[0]
    return ScoreTable({"<PnP>": first | rows("mine", [5], by="hand")[0], "TokenFlow": second})


def test_a_table_prints_its_rows_marks_the_best_and_says_with_what():
    assert repr(table()).split("\n") == [
        "           warp error ×10³ ↓   CLIP-T ↑    mine",
        "<PnP>                   4.00      0.300*  5.000",
        "TokenFlow               1.00*     0.300*      –",
        "warp error ×10³ with flow: exact",
        "CLIP-T with CLIP: menagerie",
        "mine with by: hand",
    ]


def test_a_table_shows_as_html():
    text = table()._repr_html_()
    assert text.count("<tr>") == 3 and "&lt;PnP&gt;" in text and "<PnP>" not in text
    assert "<td><b>1.00</b></td>" in text and "<td>4.00</td>" in text and "CLIP: menagerie" in text


def test_columns_measured_differently_have_no_best_and_say_so():
    mixed = ScoreTable({"a": rows()[0], "b": rows(flow="DIS")[0]})
    assert mixed.best("warp_error") == set()
    assert mixed.notes() == [
        "warp error ×10³ is not comparable: a with flow: exact; b with flow: DIS"
    ]


def test_the_best_is_the_highest_where_more_is_better():
    values = {"a": 20, "b": 25, "c": math.nan}
    made = {name: rows("background_psnr", [value])[0] for name, value in values.items()}
    assert ScoreTable(made).best("background_psnr") == {"b"}


def test_a_tidy_record_for_each_number():
    made = ScoreTable({"PnP": over_clips(rows()), "one": rows()[0]})
    first, second = made.tidy()
    assert first["row"] == "PnP" and first["metric"] == "warp_error" and first["clips"] == 3
    assert first["low"] < first["value"] < first["high"] and second["clips"] == 1
    assert math.isnan(second["low"]) and second["measured_with"] == "flow: exact"


def test_an_edit_goes_in_as_it_is(judge):
    made = Edit(torch.zeros(2, 4, 8, 8), moving(2, 32, 32), None, PROMPT)
    found = score(made, Clip(moving(2, 32, 32)), PROMPT, clip=judge)
    assert found["frame_consistency"].measured_with == "CLIP: menagerie"
