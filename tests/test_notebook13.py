"""Notebook 13 with its switch turned: a Stable Diffusion, a ControlNet and a video of one's own."""

import json
from pathlib import Path

import torch
from pipelines import make_pipeline, small_unet_config
from test_controlnet import make_controlnet

import tfkit

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "13_your_video_with_stable_diffusion.ipynb"
SWITCH = 'MODEL, CONTROLNET, VIDEO = "menagerie", "menagerie", None'
MUCH, LITTLE = "(24, 50)", "(3, 2)"


def code_of(notebook):
    """What its cells run, without the line that installs."""
    cells = [
        c for c in json.loads(notebook.read_text("utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("%"))


def test_the_switch_leads_to_stable_diffusion(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = small_unet_config() | {"sample_size": 8}
    model = make_pipeline(tmp_path / "sd", unet_config=config)
    make_controlnet(tfkit.load(model, device="cpu").unet).save_pretrained(tmp_path / "control")
    film = tfkit.menagerie.film("a cat", frames=4)
    wide = torch.nn.functional.interpolate(film.frames, (90, 161))
    tfkit.write_video(tmp_path / "my.mp4", wide, fps=8)
    code = code_of(NOTEBOOK)
    assert code.count(SWITCH) == code.count(MUCH) == 1
    switched = f"MODEL, CONTROLNET, VIDEO = {str(model)!r}, 'control', 'my.mp4'"
    code = code.replace(SWITCH, switched).replace(MUCH, LITTLE)

    names = {}
    exec(compile(code, NOTEBOOK.name, "exec"), names)

    assert names["model"].name == str(model) and names["model"].factor == 8
    assert set(names["edits"]) == {"Plug-and-Play", "SDEdit", "ControlNet"}
    shape = names["clip"].frames.shape
    assert shape[0] == 3 and min(shape[2:]) == 64 and shape[3] > 1.7 * shape[2]
    for frames in names["edits"].values():
        assert frames.shape == shape
    kept = Path("runs") / "13"
    assert len(tfkit.read_video(kept / "edit.mp4")) == 3
    assert "<script" in (kept / "compare.html").read_text("utf-8")
    printed = capsys.readouterr().out
    assert "float16" in printed and "down_blocks.0" in printed and "100% NaN" in printed
    assert "the same: True" in printed and "the same in float32: finite" in printed
