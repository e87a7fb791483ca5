"""The CLIP metric against transformers' own forward pass, on a small random CLIP."""

import pytest
import torch
from clips import bare, moving
from pipelines import _write_tokenizer
from transformers import CLIPConfig, CLIPModel

import tfkit
from tfkit.clip import load_clip, pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    text = {"vocab_size": _write_tokenizer(path, "1.x"), "max_position_embeddings": 24, **tower}
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
        theirs = judge.model(**ids, pixel_values=pixels(frames.float(), 32))
    torch.testing.assert_close(images, theirs.image_embeds)
    torch.testing.assert_close(text, theirs.text_embeds[0])
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(5))
    score = judge.text_alignment(tfkit.Clip(frames), "a red fox")
    assert score == pytest.approx((images @ text).mean().item(), abs=1e-6) and -1 <= score <= 1


def test_pixels_are_normalised_as_clip_wants_them():
    grey = pixels(torch.full((1, 3, 64, 48), 0.48145466), 32)
    assert grey.shape == (1, 3, 32, 32) and grey[:, 0].abs().max() < 1e-6


def test_a_long_prompt_is_cut_and_other_things_are_refused(folder):
    judge = load_clip(folder)
    judge.text_alignment(moving(1), "a fox " * 50)
    with pytest.raises(ValueError, match="prompt=None: expected a string"):
        bare(judge.embed.__func__)(judge, moving(1), None)
    with pytest.raises(ValueError, match=r"span 0 to 255; expected \[0, 1\]"):
        judge.text_alignment(255 * moving(1), "a fox")
    with pytest.raises(FileNotFoundError, match="cannot read the CLIP of '/nowhere': "):
        load_clip("/nowhere")
