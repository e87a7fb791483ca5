"""The house: data flows one way, and one file alone touches a model's insides."""

import ast
import re
import sys
from pathlib import Path

import jaxtyping
import pytest

import tfkit

HOUSE = Path(tfkit.__file__).parent
ORDER = [
    "settings", "memory", "atomic", "codec", "video", "video_file", "writing",
    "menagerie.vocabulary", "menagerie.anatomy", "menagerie.species",
    "menagerie.scenery", "menagerie.casting", "menagerie.puppet", "menagerie.world",
    "menagerie.tasks", "menagerie",
    "checks", "overflow", "spots", "progress", "hooks", "prompts", "autoencoder",
    "noise_schedule", "diffusion", "sampling", "libraries", "finding", "loading",
    "files", "source_cache", "lineage", "trajectory", "identity", "records", "methods",
    "conditions", "control", "adapters", "ascent", "inversion", "token_folder", "tokens",
    "correspondence", "tracks", "pca", "keyframes", "attention", "swapping", "protocols",
    "propagation", "truth",
    "passes", "steps", "planning", "preparation", "checkpoints", "history", "carried", "views",
    "metrics", "comparing", "edit_state", "session", "editing", "live", "cost", "advice",
    "raft", "fidelity", "matches", "clip", "dino", "intervals",
    "choices", "preferences", "scores",
    "readers", "measured_source", "scoring", "portable", "jobs", "entries", "evaluation", "tables",
    "readings", "paper", "overlays", "lettering", "plots", "charts", "demo", "timing", "growth",
    "full_size", "bench",
    "widgets.twin", "widgets.picture", "widgets.kernel", "widgets.composer", "widgets.compact",
    "widgets.page", "widgets.traits",
    "widgets.films", "widgets.compare", "widgets.study",
    "widgets.explorer", "widgets.stops", "widgets.counting", "widgets.branches",
    "widgets.stepper", "widgets.bases", "widgets.components", "widgets.flipbook", "widgets",
    "__main__",
]  # fmt: skip
STAGES = ("data", "loop", "clip", "vae", "unet", "controlnet", "evaluation", "card")
RECIPE = {"menagerie.folder", "menagerie.training", "menagerie.recipe"} | {
    f"menagerie.recipe.{name}" for name in STAGES
}
FILES = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in HOUSE.rglob("*.py")
}


def test_annotations_are_checked():
    """No module was imported before the checks were put in, whatever was collected first."""
    ours = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "tfkit"}
    loaders = {name: type(module.__loader__).__name__ for name, module in ours.items()}
    assert {k: v for k, v in loaders.items() if v != "_JaxtypingLoader"} == {}
    with pytest.raises(jaxtyping.TypeCheckError):
        tfkit.PlugAndPlay(attention="half")


def imports(path):
    """The tfkit modules a file imports, however it spells them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfkit":
            inside = node.module.removeprefix("tfkit").lstrip(".")
            names = {f"{inside}.{a.name}".lstrip(".") for a in node.names}
            found |= {n if n in FILES else inside for n in names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("tfkit")}
    return found - {""}


def test_every_module_has_its_place():
    assert set(FILES) - {"__init__"} - RECIPE == set(ORDER)


@pytest.mark.parametrize("name", [n for n in ORDER if n != "__main__"])
def test_a_module_imports_only_from_those_above_it(name):
    below = {other for other in imports(FILES[name]) if ORDER.index(other) >= ORDER.index(name)}
    assert not below, f"{name} imports {below}"


def test_nothing_imports_the_recipe():
    for name, path in FILES.items():
        if name not in RECIPE:
            assert not imports(path) & RECIPE, name


def test_methods_know_nothing_of_consistency():
    assert not imports(FILES["methods"]) & {
        "attention",
        "swapping",
        "protocols",
        "propagation",
        "keyframes",
        "editing",
    }


@pytest.mark.parametrize("name", sorted(set(FILES) - RECIPE - {"hooks"}))
def test_hooks_alone_touches_a_models_modules(name):
    touching = re.compile(
        r"register_\w*hook|set_(attn_)?processor|named_modules|get_submodule|\.forward = "
    )
    assert not touching.findall(FILES[name].read_text())


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_one_sitting_and_unpickles_nothing(name):
    text = FILES[name].read_text()
    assert text.count("\n") <= 350
    assert not re.search(r"import pickle|torch\.load\(|trust_remote_code|shell=True", text)


def test_the_public_face():
    expected = {
        "load", "read_video", "write_video", "invert", "reconstruct", "extract_tokens", "TokenPCA",
        "nearest_neighbors", "edit", "PlugAndPlay", "SDEdit", "Plain", "TokenFlow",
        "ExtendedAttention", "PerFrame", "Clip", "menagerie", "ControlNet",
    }  # fmt: skip
    assert expected <= set(tfkit.__all__)
    assert all(hasattr(tfkit, name) for name in tfkit.__all__)
    assert callable(tfkit.menagerie.film)
