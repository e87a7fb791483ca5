"""Results on disk, each under a key of all that determines it: what a resumed run finds again.

A record is a small JSON file that appears whole or not at all. Its name is a digest of its key
(:func:`tfkit.identity.key_of`), so whatever was made with other settings has another name and is
never taken for it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tfkit.atomic import left_over, replacing
from tfkit.files import SUM, checksum_of
from tfkit.settings import check_path

_STALE = 60  # seconds after which an unfinished file is nobody's any more


def read_record(folder: Path, key: str, fields: Iterable[str] = ()) -> dict | None:
    """The record of a key; None where there is none, or none with these fields can be read, as it
    was written."""
    try:
        record = json.loads((folder / f"{key}.json").read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and record.pop(SUM, None) in (None, checksum_of(record))
    return record if whole and record.keys() >= {*fields} else None


def write_record(folder: Path, key: str, record: Mapping) -> None:
    """Keeps a record, in place of the one there was."""
    record = {**record, SUM: checksum_of(record)}
    with replacing(folder / f"{key}.json") as path:
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def open_folder(path: str | Path) -> Path:
    """The folder of records, made where it is new and swept of what a killed run left half-written.

    Raises ValueError where it is a file.
    """
    folder = check_path("folder", path).absolute()  # another process may work elsewhere
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(path)!r} is a file; expected a folder for the results")
    folder.mkdir(parents=True, exist_ok=True)
    for file in left_over(folder, "*.json", age=_STALE):
        file.unlink(missing_ok=True)
    return folder
