"""The documentation site: built without a warning, whole, and readable with the network off."""

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import tfkit
from tfkit.__main__ import parser

HOUSE = Path(__file__).parents[1]
DOCS = HOUSE / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("api/*.rst")])
NOTEBOOKS = sorted(HOUSE.glob("notebooks/*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LOADED = r'<(?:script|img|iframe|source|video|link)\b[^>]*?\b(?:src|href)="([^"]*)"'


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-qnW", "--keep-going", "-d", out / "doctrees"]
    done = subprocess.run(
        [*command, DOCS, out / "html"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(HOUSE)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def pages(site):
    """The text of every page, by its path."""
    return {path: path.read_text("utf-8") for path in sorted(site.rglob("*.html"))}


@pytest.fixture(scope="module")
def documented(site):
    """The names that the API documents: Sphinx's inventory, four lines and then zipped ones."""
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    return {line.split()[0] for line in lines.splitlines() if line.split()[1].startswith("py:")}


# --- What is built ---


def test_links_pictures_and_embedded_pages_resolve(site, pages):
    missing = []
    for path, text in pages.items():
        for link in re.findall(r'\b(?:href|src|poster)="([^"]*)"', text):
            parts = urlsplit(unquote(link))
            if parts.scheme or path.parent.name == "explorers":
                continue
            target = (path.parent / parts.path).resolve() if parts.path else path
            anchor = parts.fragment
            if not target.is_file() or (
                anchor and target in pages and f'id="{anchor}"' not in pages[target]
            ):
                missing.append((str(path.relative_to(site)), link))
    assert len(pages) > 20 and not missing


def test_nothing_is_loaded_from_the_network(site, pages):
    loaded = {
        (str(path.relative_to(site)), link)
        for path, text in pages.items()
        for link in re.findall(LOADED, text)
        if re.match(r"(https?:)?//", link)
    }
    styles = {
        (path.name, link)
        for path in site.rglob("*.css")
        for link in re.findall(
            r"(?:url\(|@import )[\"']?((?:https?:)?//[^)\"']*)", path.read_text()
        )
    }
    assert not loaded and not styles


def test_equations_are_drawn_and_need_no_script(pages):
    (concepts,) = [text for path, text in pages.items() if path.name == "concepts.html"]
    written = (DOCS / "concepts.md").read_text("utf-8")
    assert concepts.count('<div class="math"><svg') == written.count("$$") // 2 >= 5
    assert concepts.count('<svg class="equation"') == len(re.findall(r"\$\$?[^$]+\$\$?", written))
    assert not any(re.search(r"<script[^>]*(mathjax|katex)", text, re.I) for text in pages.values())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_shown_as_it_was_committed(site, notebook):
    text = (site / "notebooks" / f"{notebook.stem}.html").read_text("utf-8")
    outputs = [
        output
        for cell in json.loads(notebook.read_text("utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(re.findall(r'<img [^>]*src="\.\./_images/', text)) == len(pictures)
    assert "requirejs" not in text and "jupyter-widgets" not in text


@pytest.mark.parametrize("name", ["correspondences", "components"])
def test_an_explorer_is_embedded_beside_its_picture(site, pages, name):
    inside = pages[site / "explorers" / f"{name}.html"]
    assert "data:text/javascript;base64," in inside and len(inside) < 2e6
    (page,) = [text for text in pages.values() if f'src="explorers/{name}.html"' in text]
    assert re.search(rf'<img [^>]*src="_images/{name}\.png"', page)


# --- What the API documents ---


def test_everything_public_is_documented(documented):
    assert not [name for name in tfkit.__all__ if f"tfkit.{name}" not in documented]
    for widget in importlib.import_module("tfkit.widgets").__all__:
        assert f"tfkit.widgets.{widget}" in documented


MODULES = [
    "correspondence", "tracks", "matches", "swapping", "pca", "tokens", "hooks", "metrics",
    "fidelity", "scores", "evaluation", "plots", "charts", "overlays", "keyframes", "attention",
    "advice",
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_documented_whole(documented, module):
    names = vars(importlib.import_module(f"tfkit.{module}"))
    own = [
        name
        for name, value in names.items()
        if not name.startswith("_") and callable(value)
        and getattr(value, "__module__", "") == f"tfkit.{module}"
        and (inspect.isclass(value) or inspect.isfunction(value))
    ]  # fmt: skip
    missing = [n for n in own if not {f"tfkit.{module}.{n}", f"tfkit.{n}"} & documented]
    assert own and not missing


# --- What pages say of the code ---


def spoken(text):
    """The pieces of a page that are code: literals and Python blocks; none of Sphinx's own."""
    return BLOCK.findall(text) + re.findall(
        r"(?<!\})`+([^`\n]+)`+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    )


def resolve(dotted):
    """The thing that a dotted name starting with tfkit means."""
    thing = tfkit
    for name in dotted.split(".")[1:]:
        if inspect.ismodule(thing) and not hasattr(thing, name):
            importlib.import_module(f"{thing.__name__}.{name}")
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_names_and_settings_are_those_of_the_code(page):
    for code in spoken(page.read_text("utf-8")):
        for dotted in re.findall(r"\btfkit(?:\.[A-Za-z_]\w*)+", code.replace(".py", "")):
            resolve(dotted)
        for name in ("TokenFlow", "ExtendedAttention"):  # short for tfkit's
            code = re.sub(rf"(?<![\w.]){name}\(", f"tfkit.{name}(", code)
        try:
            tree = ast.parse(
                code.replace("(...", "(None").replace(", ...)", ")").replace("=...", "=0")
            )
        except SyntaxError:
            continue  # prose in a literal
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if re.fullmatch(r"tfkit(\.\w+)+", name):
                known = inspect.signature(resolve(name)).parameters
                assert {keyword.arg for keyword in call.keywords} <= set(known), code


def test_options_are_those_of_the_command_line():
    commands = next(iter(parser()._subparsers._group_actions)).choices
    known = {option for each in commands.values() for option in each._option_string_actions}
    text = "\n".join(path.read_text("utf-8") for path in PAGES)
    asked = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert asked and asked <= known


FEWER = {
    'film("a cat")': 'film("a cat", frames=3)',
    "steps=20": "steps=2",
    "size=512": "size=128",
    'folder="my-trajectory"': 'steps=2, folder="my-trajectory"',
}


def test_the_code_of_troubleshooting_runs(tmp_path, monkeypatch):
    tfkit.write_video(tmp_path / "my.mp4", tfkit.menagerie.film("a cat", frames=4))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in BLOCK.findall((DOCS / "troubleshooting.md").read_text("utf-8")):
        for much, little in FEWER.items():
            code = code.replace(much, little)
        if "diffusers" not in code:  # which would need a checkpoint
            exec(compile(code, "troubleshooting.md", "exec"), names)
    assert len(tfkit.read_video("out.mp4")) == 4
