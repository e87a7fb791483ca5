"""Stable Diffusion 1.5 at full size, with random weights: does it fit, and does it go through?"""

import resource
import subprocess
import sys

import pytest
from pipelines import make_pipeline, sd15_unet_config

import tfkit

LIMIT = 12  # GiB; most of it the UNet in float32 and one batch of it


@pytest.mark.slow
def test_one_step_of_full_size_stable_diffusion(tmp_path):
    folder = make_pipeline(tmp_path / "sd15", variant="fp16", unet_config=sd15_unet_config())
    clip = tfkit.menagerie.film("a red dog on snow", frames=2, seed=1)
    video = tfkit.write_video(tmp_path / "dog", clip.frames)
    out = tmp_path / "out.mp4"
    command = ["-m", "tfkit", "edit", video, "a blue dog", "--model", folder, "--steps", "1",
               "--size", "512", "--batch", "1", "--quiet", "--output", out]  # fmt: skip
    subprocess.run([sys.executable, *map(str, command)], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GiB")
    assert tfkit.read_video(out).frames.shape == (2, 3, 512, 512)
    assert peak < LIMIT
