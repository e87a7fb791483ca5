"""Docstrings and names as they stand in the sources, set and linked for readers."""

import inspect
import re


def explained(thing) -> list[str]:
    """The names that a docstring may explain: parameters, and a dataclass's fields."""
    try:
        names = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *getattr(thing, "__dataclass_fields__", {})]


def prepare(app, what, name, thing, options, lines: list[str]) -> None:
    """Sets in bold the names that begin an explanation, ``name: what it means``; |x| stays |x|."""
    text = "\n".join(lines)
    known = "|".join(map(re.escape, explained(thing)))
    if known:
        begin = re.compile(rf"(?m)(^|(?<=[.;] ))((?:{known})(?:, (?:{known}))*):(?= |$)")
        text = begin.sub(r"**\2**:", text)
    pieces = re.split(r"(`+[^`]*`+)", text)  # text and literals by turns
    pieces[::2] = [piece.replace("|", r"\|") for piece in pieces[::2]]
    lines[:] = "".join(pieces).split("\n")


def link_by_name(app, env, node, content):
    """Links a name that is documented elsewhere, ``tfkit.editing.Edit`` say as ``tfkit.Edit``."""
    domain, name = env.get_domain("py"), node.get("reftarget", "").rpartition(".")[2]
    found = [full for full in domain.objects if full.rpartition(".")[2] == name]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    where = env, node["refdoc"], app.builder
    return domain.resolve_xref(*where, "obj", found[0], node, content)


def setup(app):
    app.connect("autodoc-process-docstring", prepare)
    app.connect("missing-reference", link_by_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
