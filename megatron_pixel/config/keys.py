"""What a dataclass tree can hold: its dotted keys with their types, defaults and docs, read from the source itself."""

import ast
import dataclasses
import difflib
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the tree."""

    key: str
    """Dotted name, such as ``optimizer.lr``."""
    annotation: Any
    """Its type as annotated in the dataclass."""
    default: Any
    doc: str
    """The docstring that stands under the field; empty where the name says it all."""
    refused: Mapping[str, str]
    """Values that people are likely to try, with the reason why they do not work (field metadata ``refused``)."""


def settings(schema: type, prefix: str = "") -> dict[str, Setting]:
    """All leaves of ``schema`` in the order of the source, by dotted key (below ``prefix`` where one is given)."""
    found: dict[str, Setting] = {}
    docs = field_docs(schema)
    hints = _hints(schema)
    for field in dataclasses.fields(schema):
        key = f"{prefix}.{field.name}" if prefix else field.name
        annotation = hints[field.name]
        if dataclasses.is_dataclass(annotation):
            found.update(settings(typing.cast(type, annotation), key))
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            found[key] = Setting(key, annotation, default, docs.get(field.name, ""), field.metadata.get("refused", {}))
    return found


def sections(schema: type, prefix: str = "") -> dict[str, type]:
    """Dotted names of the inner dataclasses of ``schema`` and their types, outermost first."""
    found: dict[str, type] = {}
    for field in dataclasses.fields(schema):
        annotation = _hints(schema)[field.name]
        if dataclasses.is_dataclass(annotation):
            key = f"{prefix}.{field.name}" if prefix else field.name
            found[key] = typing.cast(type, annotation)
            found.update(sections(found[key], key))
    return found


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


@functools.cache
def field_docs(schema: type) -> dict[str, str]:
    """Docstrings under the fields of a dataclass and of those that it extends, joined to one line each, by name."""
    docs: dict[str, str] = {}
    for parent in reversed(schema.__mro__):
        if dataclasses.is_dataclass(parent):
            docs |= _own_docs(parent)
    return docs


def _own_docs(schema: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[field.target.id] = " ".join(below.value.value.split())
    return docs


def optional(annotation: Any) -> tuple[Any, bool]:
    """``(X, True)`` for ``X | None``, ``(annotation, False)`` for anything else."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        if len(inner) == 1:
            return inner[0], True
    return annotation, False


def alternatives(annotation: Any) -> list[Any]:
    """``[int, Literal["auto"]]`` for ``int | Literal["auto"]``; the annotation alone for anything else."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return list(typing.get_args(annotation))
    return [annotation]


def expected(annotation: Any) -> str:
    """What a value of this type is called in messages: ``an integer``, ``one of fp32, bf16``, ``a list of text``."""
    inner, or_null = optional(annotation)
    if len(parts := alternatives(inner)) > 1:
        name = " or ".join(expected(part) for part in parts)
    elif typing.get_origin(inner) is Literal and len(choices := typing.get_args(inner)) == 1:
        name = str(choices[0])
    elif typing.get_origin(inner) is Literal:
        name = "one of " + ", ".join(str(choice) for choice in typing.get_args(inner))
    elif typing.get_origin(inner) is list:
        plurals = {int: "integers", float: "numbers", str: "text", bool: "true or false"}
        name = "a list of " + plurals[typing.get_args(inner)[0]]
    else:
        name = {int: "an integer", float: "a number", str: "text", bool: "true or false"}[inner]
    return f"{name} or null" if or_null else name


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known dotted key that ``key`` most likely meant, or None if nothing resembles it."""
    keys = list(known)
    section, _, name = key.replace("-", "_").rpartition(".")
    same_name = [candidate for candidate in keys if candidate.rpartition(".")[2] == name]
    # A section inside another one holds what is rarely meant, unless it is named.
    outermost = min((candidate.count(".") for candidate in same_name), default=0)
    named = [candidate for candidate in same_name if section and candidate.endswith(f".{section}.{name}")]
    same_name = named or [candidate for candidate in same_name if candidate.count(".") == outermost]
    whole = difflib.get_close_matches(key.replace("-", "_"), same_name or keys, n=1, cutoff=0.0 if same_name else 0.6)
    if whole:
        return whole[0]
    by_name = {candidate.rpartition(".")[2]: candidate for candidate in keys}
    part = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)
    return by_name[part[0]] if part else None
