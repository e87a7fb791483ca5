"""Makes the explorers that pages embed: one self-contained file each, and a picture beside it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import tfkit
from tfkit import plots, tokens
from tfkit.loading import WEIGHTS
from tfkit.widgets import CorrespondenceExplorer, PCAExplorer

BUDGET = 1  # megabytes each
STAMP = "made-from.txt"


def make(folder: Path) -> None:
    """Writes both explorers to site/explorers/*.html, and what they show at first to *.png."""
    model = tfkit.load(device="cpu")
    clip = tfkit.menagerie.film("a spotted yellow fox on snow", frames=8, seed=3)
    noisy = tokens.noised(model, clip, clip.caption)
    names = {layer.label: layer.name for layer in tokens.layer_table(model)}

    def features(kind, *labels):
        layers = [names[label] for label in labels]
        return tokens.extract_features(model, noisy, timesteps=(261, 401), layers=layers, kind=kind)

    read = features("input", "up 3.0", "up 2.1")
    centred = {key: values - values.mean((0, 1)) for key, values in read.items()}
    explorers = {
        "correspondences": CorrespondenceExplorer(clip, centred, budget=BUDGET),
        "components": PCAExplorer(clip, features("output", "up 3.1", "up 2.1"), budget=BUDGET),
    }
    for name, explorer in explorers.items():
        explorer.save_html(folder / "site" / "explorers" / f"{name}.html")
        plots.save(explorer.figure(), folder / f"{name}.png", dpi=100, colors=256)


def sources() -> Iterator[Path]:
    """The files that the explorers depend on most."""
    yield Path(__file__)
    yield WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors"
    widgets = Path(tfkit.__file__).parent / "widgets"
    yield from sorted(path for path in widgets.iterdir() if path.is_file())


def make_once(app) -> None:
    """Makes them where they are not there yet, or were made from something else."""
    folder = Path(app.confdir) / "_build" / "explorers"
    (folder / "site" / "explorers").mkdir(parents=True, exist_ok=True)
    made_from = hashlib.sha256(b"".join(path.read_bytes() for path in sources())).hexdigest()
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text() != made_from:
        make(folder)
        stamp.write_text(made_from)


def setup(app):
    app.connect("config-inited", lambda app, config: make_once(app), priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
