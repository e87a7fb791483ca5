"""Docstrings and names as they stand in the sources, set and linked for readers."""

import inspect
import re

from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature


def explained(thing) -> list[str]:
    """The names a docstring may explain: parameters, a dataclass's fields, a widget's traits."""
    try:
        names = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        names = []
    traits = thing.class_trait_names() if hasattr(thing, "class_trait_names") else []
    return [*names, *getattr(thing, "__dataclass_fields__", {}), *traits]


def as_list(text: str, names: list[str]) -> str:
    """A paragraph whose sentences explain parameters, ``name: what it means``, as a list of them.

    A sentence that begins a line, or tells what is returned or raised, is about none of them.
    """
    known = "|".join(map(re.escape, names))
    begin = rf"(?:(?<=[.;] )|^)((?:{known})(?:, (?:{known}))*): "
    made = []
    for part in re.split(r"(?<=\.)(?:\n(?=[A-Z])|\s(?=Returns |Raises ))", text):
        prose, *explained = re.split(begin, " ".join(part.split("\n")))
        items = zip(explained[::2], explained[1::2], strict=True)
        listed = "\n".join(f"* **{name}**: {what.rstrip(' ;')}" for name, what in items)
        made += [prose.strip(), listed]
    return "\n\n".join(filter(None, made))


def prepare(app, what, name, thing, options, lines: list[str]) -> None:
    """Lists the parameters that a docstring explains; |x| stays |x|."""
    names, text = explained(thing), "\n".join(lines)
    if names:
        paragraphs = text.split("\n\n")
        text = "\n\n".join(
            p if "\n " in p or p.startswith(">>>") else as_list(p, names) for p in paragraphs
        )
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


def constructed(app, what, name, thing, options, signature, returned):
    """A widget's own parameters, which traitlets' ``__new__`` would hide."""
    if what == "class" and signature and "*args" in signature and "__init__" in vars(thing):
        own = signature_of(thing.__init__, bound_method=True)
        return stringify_signature(own, unqualified_typehints=True), returned


def setup(app):
    app.connect("autodoc-process-signature", constructed)
    app.connect("autodoc-process-docstring", prepare)
    app.connect("missing-reference", link_by_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
