"""The recipe's own evaluation: held-out scenes, figures that mean what they say, a card."""

import json

import pytest
import torch

import tfkit
from tfkit import tracks
from tfkit.clip import CLIP, load_clip
from tfkit.menagerie import vocabulary
from tfkit.menagerie.recipe import card, evaluation
from tfkit.menagerie.recipe.data import reserved, scenes
from tfkit.menagerie.training import main


@pytest.fixture(scope="module")
def bench():
    return evaluation.Bench(tfkit.load(device="cpu"), load_clip(), 3)


def test_no_scene_is_both_trained_on_and_measured():
    trained = scenes(200, 1_000_000, evaluation=False)
    measured = scenes(40, evaluation.FIRST_SEED, evaluation=True)
    texts = [
        {f"{x.coat} {x.color} {x.species} {d.ground}" for _, d in part for x in d.looks}
        for part in (trained, measured)
    ]
    assert not any(reserved(d) for _, d in trained) and all(reserved(d) for _, d in measured)
    held = {t for t in texts[1] if reserved(_scene(t))}
    assert held and not held & texts[0]
    assert 0.05 < sum(reserved(_scene(" ".join(w))) for w in _all()) / len(_all()) < 0.15


def _all():
    return [
        (coat, color, species, ground)
        for coat in vocabulary.COATS for color in vocabulary.COLORS
        for species in vocabulary.SPECIES for ground in vocabulary.GROUNDS
    ]  # fmt: skip


def _scene(text):
    coat, color, species, ground = text.split()
    return vocabulary.Description(((vocabulary.Look(species, color, coat), 1),), ground)


def test_a_judge_that_knows_the_answer_reads_everything_right(bench):
    class Knows(CLIP):
        def __init__(self, caption):
            object.__setattr__(self, "caption", caption)

        def text_alignment(self, frames, prompt):
            return float(prompt == self.caption)

    _, description = bench.scenes[0]
    knows = Knows(vocabulary.compose(description))
    oracle = evaluation.Bench(bench.model, knows, 1)
    assert all(oracle.right(torch.zeros(1, 3, 8, 8), description).values())
    other = vocabulary.change(description, coat="a coat nobody wears")
    object.__setattr__(knows, "caption", vocabulary.compose(other))
    found = oracle.right(torch.zeros(1, 3, 8, 8), description)
    assert found["coat"] == (vocabulary.COATS[0] == description.looks[0].coat)


def test_self_attention_and_round_trip_on_the_shipped_weights(bench):
    share = evaluation.self_attention(bench)
    assert share["attn1 silenced over as it is, least"] > 1
    figures = evaluation.round_trip(bench)
    assert figures["VAE round trip, menagerie, dB"] > 22
    assert "VAE round trip, real video, dB" not in figures


def test_pixels_that_are_the_answer_have_a_perfect_pck(bench, monkeypatch):
    """Were the layers' tokens the flow's own coordinates, every point would be found."""
    made = {}

    def tell(model, source, *, timestep, layers, kind):
        clip = made["clip"]
        points = tracks.token_centers((32, 32), (128, 128))
        back = points[None].repeat(2, 1, 1)  # where each token of the first and last frame began
        places, seen = tracks.follow_flow(points, clip.flow, clip.visible)
        moved = (places[-1] / 4 - 0.375).round().long().clamp(0, 31)
        on = seen[-1] & clip.mask[0, points[:, 1].long(), points[:, 0].long()]
        back[1, (moved[:, 1] * 32 + moved[:, 0])[on]] = points[on]
        return {"up_blocks.1": torch.cat([torch.cos(back / 128), torch.sin(back / 128)], -1)}

    def clip(self, i, frames):
        made["clip"] = tfkit.menagerie.film("a plain red dog on sand", frames=frames, seed=i)
        return made["clip"]

    monkeypatch.setattr(evaluation.Bench, "clip", clip)
    monkeypatch.setattr(tfkit, "extract_tokens", tell)
    monkeypatch.setattr(tfkit, "invert", lambda *args, **settings: None)
    figures = evaluation.correspondence(bench)
    assert figures["PCK@0.05, up_blocks.1, output, 261"] > 0.9
    assert figures["PCK@0.05, up_blocks.1, input, 261"] > 0.9 and len(figures) == 3


def test_a_card_says_what_is_met_and_what_is_missed(tmp_path):
    spent = {"vae": {"minutes": 12.3, "steps": 4567, "samples": 36536, "device": "2 CPU threads"}}
    (tmp_path / "training.json").write_text(json.dumps(spent))
    figures = {"VAE round trip, menagerie, dB": 31.2, "invert and edit 16 frames, s": 120.0,
               "PnP, TokenFlow over per frame, warp error": 0.3, "unheard of": 1.0}  # fmt: skip
    card.write(tmp_path, figures, ["a cat"])
    text = (tmp_path / "README.md").read_text()
    for line in (
        "| vae | 12 | 4,567 | 36,536 | 2 CPU threads |",
        "| VAE round trip, menagerie, dB | 31.2 | at least 30 | met |",
        "| invert and edit 16 frames, s | 120 | at most 90 | missed |",
        "| PnP, TokenFlow over per frame, warp error | 0.3 | at most 0.35 | met |",
        "| unheard of | 1 |  |  |",
    ):
        assert line in text


def test_the_card_is_a_stage_of_the_recipe(monkeypatch, tmp_path):
    from shutil import copytree

    from tfkit.loading import WEIGHTS

    few = card.prompts()[:8]  # a row; all 24 take two minutes
    monkeypatch.setattr(card, "prompts", lambda: few)
    out = copytree(WEIGHTS, tmp_path / "out")
    begun = {"held-out scenes, at the most": 2, "measured before": 0.5}
    (out / "figures.json").write_text(json.dumps(begun))
    main(["card", "--out", str(out), "--work", str(tmp_path), "--device", "cpu",
          "--resume", "--only", "judge", "round_trip"])  # fmt: skip
    figures = json.loads((out / "figures.json").read_text())
    assert figures | begun == figures
    assert set(figures) - set(begun) == {
        "VAE round trip, menagerie, dB", "VAE round trip, dead leaves, dB",
        *(f"CLIP reads {kind} of filmed frames" for kind in vocabulary.ATTRIBUTES),
    }  # fmt: skip
    assert (out / "samples.png").stat().st_size > 10_000
    assert "| VAE round trip, menagerie, dB |" in (out / "README.md").read_text()
