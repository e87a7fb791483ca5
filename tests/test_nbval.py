"""How notebooks are tested: tests/nbval.cfg hides what differs between runs, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).resolve().parents[1]
FIGURE = "<Figure size 640x480 with 1 Axes>"


def sanitised(text):
    for regex, replacement in get_sanitize_patterns((ROOT / "tests" / "nbval.cfg").read_text()):
        text = re.sub(regex, replacement, text)
    return text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<tfkit.video.Clip at 0x7f3a1c0d2e50>", "<tfkit.video.Clip at 0x7f00aa11bb20>"),
        (FIGURE, "<Figure size 800x200 with 1 Axes>"),
        ("edit: 100%|██████| 50/50 [00:12<00:00,  4.1it/s]", "edit: 100%|█| 50/50 [01:02<00:00]"),
        ("took 12.3 s, peak 512 MiB", "took 9 s, peak 1.2 GiB"),
        ("240 ms/frame, 4.1 frames/s", "310 ms/frame, 3.2 frames/s"),
        ("wrote /home/ada/tfkit-1.0/figures/pca.png", "wrote /work/main/figures/pca.png"),
        ("wrote /tmp/tmpa1b2/clip.mp4", "wrote /var/folders/x1/T/tmp9/clip.mp4"),
        ('<img src="data:image/png;base64,iVBORw0K/+8=">', '<img src="data:image/gif;base64,R0l">'),
        ("IPY-5f2b8c1e9a7d4f6080a1b2c3d4e5f607", "IPY-00112233-4455-6677-8899-aabbccddeeff"),
    ],
)
def test_what_differs_between_runs_is_not_compared(one, other):
    assert sanitised(one) == sanitised(other)


@pytest.mark.parametrize(
    "result",
    ["PSNR 25.3 dB", "warp error 3.0", "PCK@0.1: 87 %", "frames (24, 3, 128, 128)", "8 steps"],
)
def test_results_are_compared_as_they_are(result):
    assert sanitised(f"{result}\n") == f"{result}\n"


def test_a_notebook_fails_when_a_printed_number_changes(tmp_path):
    def notebook(name, printed):
        output = {"output_type": "stream", "name": "stdout", "text": printed}
        # the figure appears only where no test left an MPLBACKEND in the environment
        figure = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": FIGURE}}
        source = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint(1 + 1)"
        cell = {"cell_type": "code", "id": "a", "source": source}
        cell |= {"metadata": {}, "execution_count": 1, "outputs": [output, figure]}
        # a kernel that is nowhere installed: --nbval-current-env must not mind
        kernel = {"name": "elsewhere", "display_name": "Elsewhere", "language": "python"}
        document = {"cells": [cell], "metadata": {"kernelspec": kernel}}
        (tmp_path / name).write_text(json.dumps(document | {"nbformat": 4, "nbformat_minor": 5}))

    notebook("right.ipynb", "2\n")
    notebook("wrong.ipynb", "3\n")
    options = re.search(r"(?<=\t)--nbval.*", (ROOT / "Makefile").read_text())[0].split()
    options[-1] = ROOT / options[-1]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += [*options, tmp_path]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert "1 failed, 1 passed" in printed, printed
    assert "wrong.ipynb::Cell 0" in printed
