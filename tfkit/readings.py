"""Tables in files, with all they were made with, and what is read off them.

Two lie beside this module, both made by ``python -m tfkit tables``: of all contenders in 10 steps,
and of some of them in the paper's 50 (``--steps 50 --prompts 1 --only ...``).
"""

import json
import platform
import zlib
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from tfkit.atomic import replacing
from tfkit.evaluation import COLUMNS, need_pandas
from tfkit.files import SUM
from tfkit.identity import key_of
from tfkit.loading import WEIGHTS, load
from tfkit.tables import BOUNDS, GUIDANCE, INTERVAL, METHODS

if TYPE_CHECKING:
    import pandas

STORED = Path(__file__).parent / "tables.csv"
AT_50 = STORED.with_name("tables_50.csv")  # in as many steps as the paper takes
_EMPTY = {"value": [""], "seconds": [""]}  # of an edit that failed


def write_table(path: str | Path, table: "pandas.DataFrame", **made_with: Any) -> Path:
    """Writes a table as CSV, under one comment line of JSON that says what it was made with."""
    about = {
        **of_weights(), "guidance": GUIDANCE, "interval": INTERVAL,
        "methods": {name: repr(method) for name, method in METHODS.items()},
        "date": date.today().isoformat(),
        **{name: version(name) for name in ("tfkit", "torch", "diffusers")},
        "machine": machine(), **made_with,
    }  # fmt: skip
    rows = table.to_csv(index=False, float_format="%.6g")
    with replacing(Path(path)) as new:
        new.write_text(f"# {json.dumps(about | {SUM: _sum(rows)})}\n{rows}")
    return Path(path)


def _sum(rows: str) -> str:
    return f"{zlib.crc32(rows.encode()):08x}"


def machine(device: str = "cpu") -> str:
    """What edits on a device are made with."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def of_weights() -> dict[str, str]:
    """Digests of all that a table is measured with: the model, its ControlNet and its CLIP."""
    parts = {"ControlNet": WEIGHTS / "controlnet", "CLIP": WEIGHTS / "clip"}
    found = {
        name: key_of([load_file(file) for file in sorted(folder.glob("*.safetensors"))])
        for name, folder in parts.items()
    }
    return {"weights": load(device="cpu").fingerprint()} | found


def read_table(path: str | Path = STORED) -> tuple["pandas.DataFrame", dict]:
    """A table that was written, and what it was made with.

    Raises FileNotFoundError where there is none and ValueError for a file that is not one.
    """
    pandas = need_pandas("tfkit.readings")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table at {str(path)!r}; python -m tfkit tables makes one")
    try:
        first, _, rows = path.read_text("utf-8").partition("\n")
        about = json.loads(first.removeprefix("# "))
        if not isinstance(about, dict):
            raise ValueError("its first line does not say what it was made with")
        if about.pop(SUM, None) not in (None, _sum(rows)):
            raise ValueError("its rows are not those that were written")
        table = pandas.read_csv(StringIO(rows), keep_default_na=False, na_values=_EMPTY)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a table of tfkit.tables: {error}") from None
    if list(table.columns) != COLUMNS:
        raise ValueError(
            f"{str(path)!r} has the columns {', '.join(table.columns)}; expected "
            f"{', '.join(COLUMNS)}"
        )
    return table, about


def beyond_the_floor(
    table: "pandas.DataFrame",
    parts: int = 4,
    base: str = "PnP, per frame",
    method: str = "PnP, TokenFlow",
) -> "pandas.DataFrame":
    """How a method's share of another's warp error depends on how much there is to remove.

    A row for each of ``parts`` equal groups of prompts, from the steadiest by ``base`` on, and one
    for all: mean warp errors x 10^3, the share of one in the other, and the share of what is beyond
    the floor, which is what nothing edited has. Raises ValueError for a table without that.
    """
    pandas = need_pandas("tfkit.readings")
    of = table[table.metric == "warp_error"]
    errors = 1e3 * of.pivot_table("value", ["clip", "prompt"], "method")
    wanted = [BOUNDS[0], base, method]
    missing = set(wanted) - set(errors.columns)
    errors = errors.reindex(columns=wanted).dropna()  # a prompt that one of them lacks is no pair
    if missing or not 1 <= parts <= len(errors):
        raise ValueError(
            f"parts={parts!r} of {len(errors)} prompts, and no warp error of "
            f"{', '.join(map(repr, sorted(missing))) or 'nothing'}: expected a table of "
            "tfkit.tables.measure and at most as many parts as it has prompts"
        )
    errors = errors.sort_values(base)
    group = pandas.Series([i * parts // len(errors) for i in range(len(errors))], errors.index)
    rows = errors.groupby(group).mean()
    rows.index = [f"{i + 1} of {parts}" for i in rows.index]
    rows.loc["all"] = errors.mean()
    floor, before, after = (rows[name] for name in rows.columns)
    return rows.assign(share=after / before, beyond=(after - floor) / (before - floor))


def by_steps(
    some: Mapping[int, "pandas.DataFrame"],
    base: str = "PnP, per frame",
    method: str = "PnP, TokenFlow",
) -> "pandas.DataFrame":
    """What more steps do to a method's share of another's warp error, and to success.

    some: tables of :func:`measure` by their number of steps. A row for each, of the prompts that
    all have: mean warp errors x 10^3, the share of one in the other, and the success of both in %.
    Raises ValueError where no prompt is in all with both methods.
    """
    pandas, found = need_pandas("tfkit.readings"), {}
    wanted = [(metric, name) for metric in ("warp_error", "success") for name in (base, method)]
    for steps, table in some.items():
        rows = table.pivot_table("value", ["clip", "prompt"], ["metric", "method"])
        found[steps] = rows.reindex(columns=wanted).dropna()
    prompts = [set(rows.index) for rows in found.values()]
    common = sorted(set.intersection(*prompts)) if prompts else []
    if not common:
        raise ValueError(
            f"no prompt has warp error and success of {base!r} and {method!r} in all of "
            f"{len(found)} tables: expected tables of tfkit.tables.measure with both"
        )
    means = pandas.DataFrame({steps: rows.loc[common].mean() for steps, rows in found.items()}).T
    errors, success = 1e3 * means["warp_error"], 100 * means["success"]
    return pandas.DataFrame(
        {
            **{name: errors[name] for name in (base, method)},
            "share": errors[method] / errors[base],
            **{f"success, {name}": success[name] for name in (base, method)},
        }
    )
