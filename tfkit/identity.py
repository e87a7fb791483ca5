"""What a setting is, in words of JSON, and the digest of these: equal where it does the same.

Settings are numbers, tensors, models, objects of tfkit's and of the user's own, and the user's own
code, which is told by what it does.
"""

import dis
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfkit.trajectory import digest

_FIXED = (bool, int, float, str, tuple, frozenset)
_PLAIN = (*_FIXED, list, dict, set, Tensor, np.ndarray)


def key_of(parts: object) -> str:
    """The digest of what :func:`describe` says of ``parts``; the same in every process."""
    return hashlib.sha256(json.dumps(describe(parts), sort_keys=True).encode()).hexdigest()[:20]


def describe(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """What a setting is, in words of JSON: equal where it does the same, whatever its address.

    Of tensors a digest; of modules the class, the layers, the weights and what is set beside them;
    of objects the class and what they hold; of functions and classes of the user's own the code,
    defaults, closure, what they read of their module's plain data and models, and the functions and
    classes of the user's own that they call, so that a changed one is another one. tfkit's own are
    told by name: its version stands for their code.
    Raises ValueError for what has nothing to be known by, such as an open file.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in inside:  # a function that calls itself, say
        return "itself"
    known = functools.partial(describe, inside=(*inside, id(value)))
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":  # of text or objects
        return {"shape": list(value.shape), "values": known(value.tolist())}
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "digest": digest(tensor)}
    if isinstance(value, nn.Module):
        own = {"module": known(type(value)), "layers": repr(value)}
        beside = [_plain_of(vars(module), known) for module in value.modules()]
        return own | {"weights": known(value.state_dict()), "beside": beside}
    if isinstance(value, type):
        return _of_class(value, known)
    if _has_fingerprint(value):
        return {"class": _name(type(value)), "fingerprint": value.fingerprint()}
    if isinstance(value, Mapping):
        return {str(name): known(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [known(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(known(item), sort_keys=True) for item in value)
    if isinstance(value, functools.partial):
        return {"partial": known(value.func), "with": [known(value.args), known(value.keywords)]}
    if isinstance(value, MethodType):
        return [known(value.__func__), known(value.__self__)]
    if isinstance(value, FunctionType):
        return _of_function(value, known)
    if is_dataclass(value) and not hasattr(value, "__dict__"):  # with slots
        held = {of.name: getattr(value, of.name) for of in fields(value)}
        return {"class": known(type(value)), "holds": known(held)}
    if not hasattr(value, "__dict__"):  # a Path, a dtype, a number of numpy's, a built-in function
        if " at 0x" in repr(value):
            raise ValueError(
                f"{value!r} is a setting, and nothing tells whether it is the same next time; "
                "expected numbers, text, tensors, modules, functions or objects made of these"
            )
        return f"{_name(type(value))} {value!r}"
    kind = type(value)
    made = [k for k in vars(value) if isinstance(getattr(kind, k, None), functools.cached_property)]
    held = {name: item for name, item in vars(value).items() if name not in made}
    return {"class": known(kind), "holds": known(held)}


def _has_fingerprint(value: object) -> bool:
    """Whether it is a model, or something else that says what it is itself; no class is."""
    return callable(getattr(value, "fingerprint", None)) and not isinstance(value, type)


def _name(kind: type | FunctionType) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _ours(kind: type | FunctionType) -> bool:
    return (kind.__module__ or "").split(".")[0] in ("tfkit", "builtins")


def _of_function(function: FunctionType, known: Callable[[object], Any]) -> Any:
    if _ours(function):
        return _name(function)
    return {
        "function": function.__qualname__,
        "code": _code(function.__code__),
        "defaults": known([function.__defaults__, function.__kwdefaults__]),
        "closure": known(_contents(function)),
        "globals": _globals(function, known),
    } | _calls([function], known)


def _of_class(kind: type, known: Callable[[object], Any]) -> Any:
    """Its name and, of a user's own, its methods and what stands beside them, inherited too."""
    if _ours(kind):
        return _name(kind)
    code: dict[str, Any] = {}
    for owner in filter(lambda owner: not _ours(owner), reversed(kind.__mro__)):
        code |= _plain_of(vars(owner), known)
        code |= {name: _by_itself(member, known) for name, member in _methods(owner)}
    return {"name": kind.__qualname__, "code": code} | _calls(_functions_of(kind), known)


def _methods(owner: type) -> Iterable[tuple[str, FunctionType]]:
    """The functions in a class by name, inherited ones not; of properties what computes them."""
    for name, member in vars(owner).items():
        for inner in ("fget", "__func__", "func"):  # of a property, a static or cached one
            member = getattr(member, inner, None) or member
        if isinstance(member, FunctionType):
            yield name, member


def _by_itself(function: FunctionType, known: Callable[[object], Any]) -> list:
    """What a function does, but for what others do that it calls."""
    beside = *(function.__defaults__ or ()), *_contents(function)
    beside += tuple((function.__kwdefaults__ or {}).values())
    fixed = _plain_of({f"_{i}": of for i, of in enumerate(beside)}, known)
    return [_code(function.__code__), fixed, _globals(function, known)]


def _calls(functions: Iterable[FunctionType], known: Callable[[object], Any]) -> dict[str, Any]:
    """The user's own functions that some may call by names of modules, and those that these may."""
    first = list(functions)
    found, waiting = {id(function): function for function in first}, list(first)
    while waiting:
        for value in _named_in(waiting.pop()):
            if not isinstance(value, FunctionType | type) or not _own(value):
                continue
            for function in _functions_of(value):
                if id(function) not in found:
                    found[id(function)] = function
                    waiting.append(function)
    others = list(found.values())[len({id(function) for function in first}) :]
    told = (json.dumps([f.__qualname__, *_by_itself(f, known)], sort_keys=True) for f in others)
    return {"calls": sorted(told)} if others else {}


def _named_in(function: FunctionType) -> Iterable[object]:
    """What a function names of its module, of what it closes over, and of modules of the user's."""
    attributes = set(_attributes(function.__code__))
    for value in (*_read(function).values(), *_contents(function)):
        if isinstance(value, ModuleType) and _is_users(value.__name__):
            yield from (getattr(value, name, None) for name in attributes)
        yield value.func if isinstance(value, functools.partial) else value


def _functions_of(value: FunctionType | type) -> list[FunctionType]:
    """A function, or all functions in a class and in those of the user's that it inherits."""
    if isinstance(value, FunctionType):
        return [value]
    return [method for owner in value.__mro__ if _own(owner) for _, method in _methods(owner)]


def _own(value: FunctionType | type) -> bool:
    """Whether it is the user's own: no library's, and not tfkit's."""
    return not _ours(value) and _is_users(value.__module__ or "")


@functools.cache
def _is_users(module: str) -> bool:
    """Whether a module is the user's own: a notebook, or a file that was not installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or module not in sys.modules:
        return True
    if file is None or module.split(".")[0] == "tfkit":
        return False
    path, library = Path(file).absolute(), sysconfig.get_paths()
    installed = any(path.is_relative_to(library[name]) for name in ("stdlib", "platstdlib"))
    return not installed and not {"site-packages", "dist-packages"} & {*path.parts}


def _globals(function: FunctionType, known: Callable[[object], Any]) -> dict[str, Any]:
    """The plain data and the models that a function reads under names of its module."""
    read = _read(function)
    models = {name: known(of) for name, of in read.items() if _has_fingerprint(of)}
    return _plain_of(read, known) | models


def _read(function: FunctionType) -> dict[str, Any]:
    """What a function reads of its module, by name."""
    there = function.__globals__
    return {name: there[name] for name in _names(function.__code__) if name in there}


def _names(code: CodeType) -> set[str]:
    """The names of its module that code reads, and code inside it."""
    found = {at.argval for at in dis.get_instructions(code) if at.opname == "LOAD_GLOBAL"}
    inner = (value for value in code.co_consts if isinstance(value, CodeType))
    return found.union(*map(_names, inner))


def _attributes(code: CodeType) -> Iterable[str]:
    """The names in code, and in code inside it."""
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _attributes(value)


def _contents(function: FunctionType) -> list[Any]:
    """What a function closes over, as far as it is there yet."""
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _plain_of(values: Mapping[Any, Any], known: Callable[[object], Any]) -> dict[str, Any]:
    """Of some values those that are plain data; under a private name, which may be a cache, what
    cannot change alone."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        plain = isinstance(value, _FIXED if str(name).startswith("_") else _PLAIN)
        if plain and not str(name).startswith("__"):
            with suppress(ValueError):  # of something in it nothing can be told
                found[str(name)] = known(value)
    return found


def _code(code: CodeType) -> str:
    """A digest of what a function does: where it stands in its file makes no difference."""

    def constant(value: object) -> str:
        if isinstance(value, CodeType):
            return _code(value)
        if isinstance(value, frozenset):
            return repr(sorted(map(repr, value)))
        return repr(value)

    parts = [code.co_code.hex(), *code.co_names, *map(constant, code.co_consts)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
