"""A widget as one file: its ES module, its style and its state, with a stand-in for the kernel.

The page needs neither network nor server: all that it loads is in it.
"""

import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfkit.atomic import replacing

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; background: Canvas; }
body { margin: 1rem auto; padding: 0 1rem; max-width: 1400px; font-family: sans-serif; }
STYLE
</style>
<main id="view"></main>
<script type="application/json" id="state">STATE</script>
<script type="module">
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const state = JSON.parse(document.getElementById("state").textContent,
  (key, value) => value?.base64 === undefined ? value : bytes(value.base64));
const heard = {};
const model = { // what a notebook's model does, without a kernel behind it
  get: (name) => state[name],
  set(name, value) {
    if (JSON.stringify(state[name]) === JSON.stringify(value)) return;
    state[name] = value;
    heard["change:" + name]?.forEach((listener) => listener());
  },
  on: (event, listener) => { (heard[event] ??= new Set()).add(listener); },
  off: (event, listener) => { heard[event]?.delete(listener); },
  save_changes() {},
};
function dress() { // a page that frames this one says in the address whose colours are its own
  const scheme = { "#light": "light", "#dark": "dark" }[location.hash] ?? "";
  document.documentElement.style.colorScheme = scheme;
  dispatchEvent(new Event("resize")); // what is drawn is drawn anew
}
addEventListener("hashchange", dress);
dress();
const { default: widget } = await import("data:text/javascript;base64,MODULE");
const leave = await widget.render({ model, el: document.getElementById("view") });
addEventListener("pagehide", (event) => event.persisted || leave?.());
</script>
</html>
"""


def source(*names: str) -> str:
    """Files of this folder, one after another: a later one may use what stands in an earlier."""
    return "\n".join(Path(__file__).with_name(name).read_text("utf-8") for name in names)


def write(
    path: str | Path, state: Mapping[str, Any], *, module: str, style: str, title: str
) -> Path:
    """Write one .html that shows the widget: ``state`` is JSON with bytes anywhere in it.

    module, style: the source of its ES module and CSS. Returns the path, which appears only once
    complete. Raises ValueError for another suffix.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{str(path)!r} ends in {path.suffix!r}; expected .html")
    held = json.dumps(state, default=lambda value: {"base64": b64encode(value).decode()})
    parts = {
        "TITLE": html.escape(title),
        "STYLE": style,
        "STATE": held.replace("<", "\\u003c"),
        "MODULE": b64encode(module.encode()).decode(),
    }
    text = re.sub("|".join(parts), lambda match: parts[match[0]], PAGE)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
