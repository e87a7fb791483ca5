"""Sessions side by side: the branches of an edit, and what of each is redrawn when it changes."""

from collections.abc import Iterator, Mapping
from itertools import count
from string import ascii_uppercase
from typing import Any

from tfkit.session import EditSession
from tfkit.settings import check_text

SETTINGS = ("prompt", "negative_prompt", "guidance")


class Branches(Mapping[str, EditSession]):
    """Sessions by name, the first one "A"; seeds: what keyframes were redrawn from, or None.

    Memory: a branch shares what is behind it with the one it comes from.
    """

    def __init__(self, session: EditSession):
        self._sessions = {"A": session}
        self.seeds: dict[str, int | None] = {"A": None}

    def __getitem__(self, name: str) -> EditSession:
        return self._sessions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    def fork(self, origin: str, name: str | None = None) -> str:
        """Another branch, which stands where ``origin`` does; its name, by default a letter.

        Raises ValueError for a name that is taken, and for what is none.
        """
        letters = (f"{letter}{n or ''}" for n in count() for letter in ascii_uppercase)
        if name is None:
            name = next(letter for letter in letters if letter not in self)
        if check_text("name", name) in self:
            raise ValueError(f"there is a branch {name!r} already; expected another name")
        self._sessions[name] = self[origin].branch()
        self.seeds[name] = self.seeds[origin]
        return name

    def drop(self, name: str) -> None:
        """Forgets a branch. Raises ValueError where it is not there, or the only one."""
        if name not in self or len(self) == 1:
            raise ValueError(f"{name!r}: expected one of several branches, of {list(self)}")
        del self._sessions[name], self.seeds[name]

    def change(self, name: str, settings: Mapping[str, Any]) -> None:
        """As the session's own, where anything differs; keyframes of None stay as they are."""
        session = self[name]
        new = {k: v for k, v in settings.items() if not _is_so(session, k, v)}
        if new:
            session.change(**new)
        if new.keys() & {"keyframes", "seed", "propagation"}:
            self.seeds[name] = new.get("seed")


def _is_so(session: EditSession, name: str, value: object) -> bool:
    drawn = name in ("keyframes", "seed") and value is None
    return drawn or (name in SETTINGS and value == getattr(session.plan, name))
