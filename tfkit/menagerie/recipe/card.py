"""The model card beside the weights: how they were trained, every figure with its bar, samples."""

import json
from pathlib import Path

import torch

import tfkit
from tfkit.clip import load_clip
from tfkit.menagerie.recipe.evaluation import MEASURES, Bench
from tfkit.menagerie.recipe.loop import save_grid
from tfkit.menagerie.recipe.unet import prompts
from tfkit.sampling import generate

BARS = {  # beginnings of the figures' names -> at least, or at most where negative
    "CLIP reads": 0.97,
    "VAE round trip, menagerie": 30,
    "VAE round trip, real": 24,
    "inversion, 50 steps, source": 27,
    "inversion, 50 steps, real": 22,
    "samples show": 0.90,
    "edit": 0.85,
    "PCK@0.05, up_blocks": 0.80,
    "PnP, TokenFlow over": -0.35,
    "SDEdit, TokenFlow over": -0.35,
    "attn1 silenced over as it is, least": 3,
    "invert and edit": -90,
}
SCENES = "held-out scenes, at the most"
HEAD = """# The menagerie's weights: model card

A Stable Diffusion in small, trained on single frames of a drawn world by `python -m
tfkit.menagerie.training` and on nothing else: no photograph, no weights of others. It knows eight
animals in eight colours and four coats on six grounds, and is made to be looked into, not to make
pictures of the world. Everything on this page is written by `python -m tfkit.menagerie.training
card`, which measures on scenes that no stage trained on.
"""


def evaluate(args):
    """Measures the weights in ``args.out`` and writes figures.json, samples.png and README.md.

    A resumed card measures on the scenes it began with, whatever ``args.scenes`` says.
    """
    path = args.out / "figures.json"
    figures = json.loads(path.read_text()) if args.resume and path.exists() else {}
    scenes = int(figures.setdefault(SCENES, args.scenes))
    model = tfkit.load(args.out, device=args.device, dtype=torch.float32)
    bench = Bench(model, load_clip(args.out / "clip"), scenes, args.video)
    for measure in MEASURES:
        if args.only and measure.__name__ not in args.only:
            continue
        new = measure(bench)
        print("\n".join(f"{name}: {value:.4g}" for name, value in new.items()), flush=True)
        figures |= new
        path.write_text(json.dumps(figures, indent=2) + "\n")
    texts = prompts()
    save_grid(
        generate(model, texts, steps=25, guidance=4, progress=False), args.out / "samples.png"
    )
    write(args.out, figures, texts)


def write(folder: Path, figures: dict[str, float | int], texts: list[str]):
    """README.md of a folder of weights, from its training.json and its figures."""
    spent = json.loads((folder / "training.json").read_text())
    lines = [
        HEAD,
        "## Training\n",
        "| stage | minutes | steps | samples | device |",
        "|---|---|---|---|---|",
    ]
    for name, row in spent.items():
        lines.append(
            f"| {name} | {row['minutes']:.0f} | {row['steps']:,} | {row['samples']:,} "
            f"| {row['device']} |"
        )
    lines += ["\n## Figures\n", "| figure | measured | wanted | |", "|---|---|---|---|"]
    for name, value in figures.items():
        bar = next((bar for start, bar in BARS.items() if name.startswith(start)), None)
        wanted = "" if bar is None else f"at most {-bar}" if bar < 0 else f"at least {bar}"
        met = (
            ""
            if bar is None
            else "met"
            if (value <= -bar if bar < 0 else value >= bar)
            else "missed"
        )
        lines.append(f"| {name} | {value:.3g} | {wanted} | {met} |")
    lines += ["\n## Samples\n\n![24 samples, 25 steps, guidance 4](samples.png)\n"]
    lines += [f"{i // 8 + 1}.{i % 8 + 1} {text}  " for i, text in enumerate(texts)]
    (folder / "README.md").write_text("\n".join(lines) + "\n")
