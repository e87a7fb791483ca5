"""`make figures`: runs notebooks and the demo again, and renews what comes out otherwise.

    python tests/make_figures.py [notebooks/03_what_tokens_see.ipynb tfkit/demo.py ...]

Everything is made in a folder apart first. What then shows the same as before, but for times, ids
and the rounding of another processor, stays as it is: a second run changes no file. A figure that
was removed, or whose code or weights have changed, is written in any case.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from nbval.plugin import get_sanitize_patterns
from pictures import same
from provenance import DEMO, ROOT, listed, origins, write_list

HIDDEN = [
    (regex, word)
    for regex, word in get_sanitize_patterns((ROOT / "tests" / "nbval.cfg").read_text())
    if word != "BASE64"  # pictures and videos are what this is about
]
EXECUTE = (
    "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace",
    "--ExecutePreprocessor.store_widget_state=False", "--ExecutePreprocessor.record_timing=False",
)  # fmt: skip


def make(source: Path, root: Path = ROOT) -> str:
    """Makes the figures of one notebook or of the demo, and its outputs; says what is new."""
    start, made_from, kept = time.perf_counter(), listed(root), root / "figures"
    found = {origin.figure: origin for origin in origins(source, root)}
    stale = {name for name in found if found[name].stale(made_from.get(name))}
    with TemporaryDirectory() as place:
        drawn, copy = Path(place, "figures"), Path(place, source)
        drawn.mkdir()
        if source == DEMO:
            _run("-m", "tfkit", "demo", "--output", drawn)
        else:
            copy.parent.mkdir()
            shutil.copy(root / source, copy)
            _run(*EXECUTE, copy)
            book = renewed(json.loads((root / source).read_text()), json.loads(copy.read_text()))
            text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
            (root / source).write_text(text)
        new = [path.name for path in sorted(drawn.iterdir()) if renew(path, kept, stale)]
    seconds = time.perf_counter() - start
    return f"{source}, {seconds:.0f} s: {', '.join(new) or 'every figure is as it was'}"


def _run(*command) -> None:
    """With one thread, so that sums are the same on every number of cores."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[-1]} failed:\n{done.stderr[-3000:]}")


def renew(drawn: Path, figures: Path, stale: set[str]) -> bool:
    """Puts a figure in its place unless the one there shows the same and is not stale."""
    kept = figures / drawn.name
    if kept.exists():
        if kept.read_bytes() == drawn.read_bytes():
            return False
        if drawn.name not in stale and same(drawn, kept):
            return False
    shutil.copy(drawn, kept)
    return True


def renewed(before: dict, after: dict) -> dict:
    """The notebook with the outputs of a run, where they say something else than those it had."""
    for old, new in zip(before["cells"], after["cells"], strict=True):
        old["metadata"].pop("execution", None)  # when that was, to the microsecond
        if old["cell_type"] == "code":
            old["execution_count"] = new["execution_count"]
            if said(old["outputs"]) != said(new["outputs"]):
                old["outputs"] = new["outputs"]
    return before


def said(outputs: list[dict]) -> str:
    """What outputs say, without what tests/nbval.cfg lets differ, and however prints are cut."""
    streams, others = {}, []
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + "".join(output["text"])
        else:
            others.append(output)
    text = "\n".join(_strings([streams, others]))
    for regex, word in HIDDEN:
        text = re.sub(regex, word, text)
    return text


def _strings(value) -> Iterator[str]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield key
            yield from _strings(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    else:
        yield str(value)


def main(chosen: list[str], root: Path = ROOT) -> int:
    """Makes the figures of the chosen notebooks (none: all, and the demo's) and lists them."""
    every = sorted(path.relative_to(root) for path in root.glob("notebooks/*.ipynb"))
    wanted = [Path(os.path.relpath(path, root)) for path in chosen] or [*every, DEMO]
    unknown = [str(path) for path in wanted if path not in (*every, DEMO)]
    if unknown:
        print(f"{', '.join(unknown)}: neither a notebook nor {DEMO}", file=sys.stderr)
        return 2
    made = []
    with ThreadPoolExecutor(int(os.environ.get("WORKERS", "1"))) as pool:
        for source, running in [(source, pool.submit(make, source, root)) for source in wanted]:
            try:
                print(running.result(), flush=True)
                made.append(source)
            except RuntimeError as error:
                print(error, file=sys.stderr)
    write_list(made, root)
    return int(len(made) < len(wanted))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
