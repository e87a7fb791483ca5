"""The CLIP metric against transformers' own forward pass, on a small random CLIP."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import bare, moving
from PIL import Image
from pipelines import _write_tokenizer
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import tfkit
from tfkit import clip

try:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
except ImportError:  # before transformers 5 there is only one, and it is this
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil
from tfkit.clip import accuracy, consistency, direction, load_clip, pixels
from tfkit.menagerie import film
from tfkit.video import to_uint8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    text = {"vocab_size": _write_tokenizer(path, "1.x"), "max_position_embeddings": 24, **tower}
    text["eos_token_id"] = CLIPTokenizer.from_pretrained(path).eos_token_id
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config={"image_size": 32, "patch_size": 8, **tower},
            projection_dim=16,
        )
    )
    model.half().save_pretrained(path)
    return path


def test_embeddings_are_those_of_the_whole_model(folder, capfd):
    judge, frames = load_clip(folder), moving(5, 40, 56, torch.float64)
    assert capfd.readouterr() == ("", "")
    images, text = judge.embed(frames, "a red fox", batch=2)
    ids = judge.tokenizer("a red fox", padding="max_length", max_length=24, return_tensors="pt")
    with torch.no_grad():
        theirs = judge.model(**ids, pixel_values=pixels(frames.float(), 32, cut=True))
    torch.testing.assert_close(images, theirs.image_embeds)
    torch.testing.assert_close(text, theirs.text_embeds[0])
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(5))
    score = judge.text_alignment(tfkit.Clip(frames), "a red fox")
    assert score == pytest.approx((images @ text).mean().item(), abs=1e-6) and -1 <= score <= 1


def test_pixels_are_normalised_as_clip_wants_them():
    grey = pixels(torch.full((1, 3, 64, 48), 0.48145466), 32)
    assert grey.shape == (1, 3, 32, 32) and grey[:, 0].abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(128, 128), (45, 80), (200, 96), (20, 24)])
def test_another_clip_takes_pictures_as_transformers_prepares_them(shape):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    frames = (moving(3, *shape) * 255).round() / 255  # it reads 8 bits
    images = [Image.fromarray(frame) for frame in to_uint8(frames)]
    theirs = torch.as_tensor(np.stack(processor(images)["pixel_values"]))
    ours = pixels(frames, 32, cut=True)
    assert ours.shape == theirs.shape == (3, 3, 32, 32)
    assert (ours - theirs).abs().max() < 1.5 / 255 / 0.26  # which PIL rounds to, once or twice


def test_the_menageries_own_takes_them_as_its_folder_says():
    judge, frames = load_clip(), film("a red cat on snow", frames=2, seed=1).frames
    folder = Path(clip.__file__).parent / "menagerie" / "weights" / "clip"
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    images = [Image.fromarray(frame) for frame in to_uint8(frames)]
    theirs = torch.as_tensor(np.stack(processor(images)["pixel_values"]))
    assert not judge.cut and theirs.shape == (2, 3, 64, 64)
    assert (pixels(frames, 64) - theirs).abs().max() < 1.5 / 255 / 0.26


def test_a_long_prompt_is_cut_and_other_things_are_refused(folder):
    judge = load_clip(folder)
    judge.text_alignment(moving(1), "a fox " * 50)
    with pytest.raises(ValueError, match="prompt=None: expected a string"):
        bare(judge.embed.__func__)(judge, moving(1), None)
    with pytest.raises(ValueError, match=r"span 0 to 255; expected \[0, 1\]"):
        judge.text_alignment(255 * moving(1), "a fox")
    with pytest.raises(FileNotFoundError, match="cannot read the CLIP of '/nowhere': "):
        load_clip("/nowhere")


# Between frames, and towards a prompt


def prompts(judge):
    return [judge.embed_prompt(text).double() for text in ("a red fox", "a blue whale")]


def test_frame_consistency_of_both_kinds_is_numpys(folder):
    judge = load_clip(folder)
    frames = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = judge.embed_frames(frames).double().numpy()
    gram = x @ x.T
    consecutive = [gram[i, i + 1] for i in range(3)]
    pairs = [gram[i, j] for i in range(4) for j in range(4) if i != j]
    assert judge.frame_consistency(frames) == pytest.approx(sum(consecutive) / 3, abs=1e-9)
    found = judge.frame_consistency(tfkit.Clip(frames), "all")
    assert found == pytest.approx(sum(pairs) / 12, abs=1e-9)


def test_slow_drift_is_seen_by_all_pairs_alone():
    angle = torch.linspace(0, 1.5, 31, dtype=torch.float64)
    drift = torch.stack([angle.cos(), angle.sin()], 1)
    step = 1.5 / 30
    assert consistency(drift, "consecutive") == pytest.approx(math.cos(step), abs=1e-12)
    assert consistency(drift, "all") < 0.9
    assert consistency(drift[:1].expand(5, 2), "all") == pytest.approx(1)
    with pytest.raises(ValueError, match="1 frame; consistency needs two at least"):
        consistency(drift[:1], "all")
    with pytest.raises(ValueError, match="pairs='every'; expected 'consecutive' or 'all'"):
        bare(consistency)(drift, "every")


def test_directional_is_the_mean_cosine_of_the_changes(folder):
    judge, noise = load_clip(folder), torch.Generator().manual_seed(0)
    edit, source = (torch.rand(3, 3, 32, 32, generator=noise) for _ in range(2))
    change = (judge.embed_frames(edit) - judge.embed_frames(source)).double()
    target, before = prompts(judge)
    words = target - before
    expected = [(c @ words / c.norm() / words.norm()).item() for c in change]
    found = judge.directional(edit, tfkit.Clip(source), "a red fox", "a blue whale")
    assert found == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert judge.directional(source, source, "a red fox", "a blue whale") == 0
    back = judge.directional(source, edit, "a red fox", "a blue whale")
    assert back == pytest.approx(-found, abs=1e-6)
    with pytest.raises(ValueError, match="the two prompts have one embedding"):
        judge.directional(edit, source, "a red fox", "a red fox")


def test_an_edit_of_fewer_frames_has_no_direction(unchecked):
    x = torch.eye(3)
    with pytest.raises(ValueError, match="2 frames of the edit, 3 of its source; expected as many"):
        direction(x[:2], x, x[0], x[1])


def test_a_change_along_the_words_is_one_and_across_them_nothing():
    one, other, third = torch.eye(3).unbind()
    source = torch.stack([one, one, one])
    edit = torch.stack([other, one, third])
    # along: 1, unchanged: 0, halfway across: cos 60 degrees
    assert direction(edit, source, other, one) == pytest.approx((1 + 0 + 0.5) / 3, abs=1e-7)


def test_success_is_the_share_of_frames_closer_to_the_target(folder):
    one, other = torch.eye(2).unbind()
    frames = torch.tensor([[1.0, 0], [0.8, 0.6], [0.6, 0.8], [0.5**0.5, 0.5**0.5]])
    assert accuracy(frames, one, other) == 0.5  # a tie is no success
    assert accuracy(frames, other, one) == 0.25
    judge = load_clip(folder)
    frames = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target, before = prompts(judge)
    x = judge.embed_frames(frames).double()
    expected = sum((v @ target > v @ before).item() for v in x) / 8
    assert judge.success(frames, "a red fox", "a blue whale") == expected
