"""The documentation site: `make docs`. It needs no network, neither to build nor to read."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # tfkit as it lies here, and building/

import tfkit  # noqa: E402

project, author, copyright = "tfkit", "the tfkit authors", "the tfkit authors"
version = release = tfkit.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "building.equations",
    "building.notebooks",
    "building.explorers",
    "building.docstrings",
]
exclude_patterns = ["_build", "building"]

# Notebooks are shown as they were committed. Widgets show their pictures: a live view would load
# its scripts from the network.
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "tfkit"
html_static_path = ["_static"]
html_css_files = ["tfkit.css"]
html_js_files = ["explorers.js"]
html_extra_path = ["_build/explorers/site"]  # made by building/explorers.py
html_math_renderer = "outlines"
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # would be fetched, which a page from a file may not

default_role = "code"  # what docstrings put in `backticks`
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
# Other people's classes, which nothing offline says where to find; and type variables, "T".
OTHERS = "torch|numpy|np|jaxtyping|diffusers|transformers|pandas|matplotlib"
NOTEBOOKS = "anywidget|traitlets|t|IPython|tqdm"
STANDARD = "pathlib|collections|numbers|contextlib|os|random|types|typing"
ELSEWHERE = rf"({OTHERS}|{NOTEBOOKS}|{STANDARD})\..*|Tensor|Path|(dict|list)\[.*|(\w+\.)*T"
nitpick_ignore_regex = [("py:.*", ELSEWHERE)]
