"""Trains the menagerie's Stable Diffusion from nothing, and measures it.

    python -m tfkit.menagerie.training [clip|vae|unet|controlnet|card|all] --minutes 30 --resume

CLIP, VAE, UNet and ControlNet are trained in this order; then the card is written with their
figures. Every stage minds the clock. Every five minutes, at the end and when a signal stops it, it
writes its state (resumable) and pictures to ``--work`` and what it has learned, as fp16 safetensors
in Stable Diffusion's own folder layout, to ``--out``. With ``--resume`` it goes on from its state,
or else from the weights in ``--out``. The data are single frames of the world with captions that
leave things open, and, so that a user's own video fits too, dead-leaves and 1/f images with an
empty caption. The same code on any device, in bfloat16 on a GPU. Memory is that of one batch, the
latents, 4 to 16 kB each (a GPU's hold them all), and of the frames what is touched.
"""

import argparse
import signal
from pathlib import Path

import torch

from tfkit.loading import WEIGHTS
from tfkit.menagerie import casting
from tfkit.menagerie.recipe import card, clip, controlnet, unet, vae

STAGES = {
    "clip": clip.train, "vae": vae.train, "unet": unet.train, "controlnet": controlnet.train,
    "card": card.evaluate,
}  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", nargs="?", default="all", choices=[*STAGES, "all"])
    parser.add_argument("--minutes", type=float, default=30, help="for this stage, or for each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the state, or weights")
    parser.add_argument("--work", type=Path, default=Path("runs/menagerie"), help="state, pictures")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=casting.SIZE, help="of frames, for the UNet")
    parser.add_argument("--batch", type=int, default=32, help="for UNet and ControlNet")
    parser.add_argument("--rate", type=float, help="highest learning rate, if not the stage's own")
    parser.add_argument(
        "--vision-only", action="store_true", help="clip: the text tower, which a UNet knows, stays"
    )
    parser.add_argument("--scenes", type=int, default=64, help="card: how many to measure on")
    parser.add_argument("--video", type=Path, help="card: a real video to measure on as well")
    parser.add_argument("--only", nargs="*", help="card: measure these alone, keep the others")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in STAGES if args.stage == "all" else [args.stage]:
        STAGES[name](args)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as if interrupted
    main()
