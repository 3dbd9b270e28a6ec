"""Values of the config tree: from YAML or from the words of a command line to the type that the dataclass names."""

import math
import re
import typing
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import yaml

from megatron_pixel.config.keys import alternatives, expected, optional

# YAML 1.2's core schema. PyYAML follows YAML 1.1, where 5e-4 is text, 4:4:2 is the number 14642 in base 60,
# `on` is true and 010 is 8: all of them traps in a recipe.
_RESOLVERS = (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ("n", "N", "~", "")),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", tuple("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN)",
        tuple("-+.0123456789"),
    ),
)


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain scalars of YAML 1.2."""


class ConfigDumper(yaml.SafeDumper):
    """Puts in quotes whatever a reader of YAML 1.1 or of 1.2 would take for something other than text."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 10)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = node.value.lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


ConfigLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RESOLVERS:
    ConfigLoader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
    ConfigDumper.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
ConfigLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
ConfigLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
# Lists stand on one line each; sections are indented below their name.
ConfigDumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def from_yaml(value: Any, annotation: Any) -> Any:
    """``value`` as the annotated type: integers pass for numbers, whole numbers for integers, nothing else changes.

    Raises ValueError with the reason, without the key or the place, which only the caller knows.
    """
    inner, or_null = optional(annotation)
    if value is None and or_null:
        return None
    origin = typing.get_origin(inner)
    if len(parts := alternatives(inner)) > 1:
        for part in parts:
            with suppress(ValueError):
                return from_yaml(value, part)
    elif origin is Literal:
        if value in typing.get_args(inner) and not isinstance(value, bool):
            return value
    elif origin is list:
        if isinstance(value, list):
            (item_type,) = typing.get_args(inner)
            return [from_yaml(item, item_type) for item in value]
    elif inner is bool:
        if isinstance(value, bool):
            return value
    elif inner is int:
        if _is_number(value) and (isinstance(value, int) or value.is_integer()):
            return int(value)
    elif inner is float:
        if _is_number(value):
            return _finite(float(value))
    elif inner is str and isinstance(value, str):
        return value
    hint = " in quotes" if inner is str and isinstance(value, bool | int | float) else ""
    raise ValueError(f"expected {expected(annotation)}{hint}, got {show(value)}")


def from_words(words: Sequence[str], annotation: Any) -> Any:
    """The words that follow a key on the command line as the annotated type.

    A switch may stand alone (``--data.synthetic``); a list takes any number of words or one in brackets
    (``[a, b]``, ``[]`` for the empty list); ``null`` is None where the type allows it. Raises ValueError with the
    reason.
    """
    inner, _ = optional(annotation)
    if typing.get_origin(inner) is list:
        return _list_from_words(words, annotation, typing.get_args(inner)[0])
    if inner is bool and not words:
        return True
    if len(words) != 1:
        raise ValueError(f"expected {expected(annotation)}, got {'no value' if not words else f'{len(words)} values'}")
    return _from_word(words[0], annotation)


def _from_word(word: str, annotation: Any) -> Any:
    inner, or_null = optional(annotation)
    if or_null and word.lower() in ("null", "none", "~"):
        return None
    if inner is str:
        return word
    for choice in typing.get_args(inner) if typing.get_origin(inner) is Literal else ():
        if word == str(choice):
            return choice
    return from_yaml(_parse(word), annotation)


def _list_from_words(words: Sequence[str], annotation: Any, item_type: Any) -> list[Any]:
    if not words:
        raise ValueError(f"expected {expected(annotation)}, got no value; [] is the empty list")
    if len(words) == 1 and words[0].startswith("["):
        items = _parse(words[0])
        if not isinstance(items, list):
            raise ValueError(f"expected {expected(annotation)}, got {show(words[0])}")
        # In brackets 7 is a number, yet a list of text means the text: a command line has no quotes to tell them apart.
        return from_yaml([show(item) if item_type is str and _is_number(item) else item for item in items], annotation)
    return [_from_word(word, item_type) for word in words]


def _parse(word: str) -> Any:
    """One word as YAML; what is not a single scalar or list is text."""
    try:
        value = yaml.load(word, Loader=ConfigLoader)
    except yaml.YAMLError:
        return word
    return value if value is not None or word in ("null", "~") else word


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {number}")
    return number


def show(value: Any) -> str:
    """A value as messages print it: as YAML would, text in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return repr(value)
