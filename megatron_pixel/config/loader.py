"""From a YAML recipe and the words of a command line to a checked config tree, and back."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import yaml

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.keys import sections, settings
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.config.source import Origin, raise_problems, read_recipe, type_problem, unknown_key
from megatron_pixel.config.validation import validate
from megatron_pixel.config.values import ConfigDumper, from_words

Config = TypeVar("Config")

COMMAND_LINE = "command line"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe with its bases, apply dotted overrides (``--optimizer.lr 3e-4``) and validate the result.

    Raises UserError that names file and line (or "command line"), key, value and the way out of everything found wrong.
    """
    origins = read_recipe(Path(path), RunConfig)
    origins.update(parse_overrides(overrides, RunConfig))
    config = build(RunConfig, origins)
    validate(config, {key: origin.where for key, origin in origins.items()})
    return config


@overload
def apply_overrides(config: type[Config], prefix: str, overrides: Sequence[str]) -> Config: ...
@overload
def apply_overrides(config: Config, prefix: str, overrides: Sequence[str]) -> Config: ...
def apply_overrides(config: Any, prefix: str, overrides: Sequence[str]) -> Any:
    """A copy of a dataclass (or of its defaults) with ``--prefix.key value`` applied; types checked, nothing more.

    With the empty prefix keys stand as they are. Raises UserError as :func:`load_config` does.
    """
    start = config() if isinstance(config, type) else config
    found = parse_overrides(overrides, type(start), prefix)
    changes = {key.removeprefix(f"{prefix}."): origin for key, origin in found.items()}
    return build(type(start), {key: Origin(value, "") for key, value in flatten(start).items()} | changes)


def parse_overrides(words: Sequence[str], schema: type, prefix: str = "") -> dict[str, Origin]:
    """Dotted overrides as values by key; of a key given twice the last one counts, so that scripts can set defaults.

    Forms: ``--key value``, ``--key=value``, ``--key a b`` for lists, ``--key`` alone to switch something on.
    """
    known = settings(schema, prefix)
    values: dict[str, Origin] = {}
    problems: list[str] = []
    for key, given in _split(words):
        if key in known:
            try:
                values[key] = Origin(from_words(given, known[key].annotation), COMMAND_LINE)
            except ValueError as error:
                value = given[0] if len(given) == 1 else given
                problems.append(type_problem(COMMAND_LINE, f"--{key}", value, error, known[key].refused))
        elif key in sections(schema, prefix):
            names = ", ".join(f"--{name}" for name in known if name.startswith(key + "."))
            problems.append(f"{COMMAND_LINE}: --{key}: a section takes no value; set one of its keys: {names}")
        else:
            value = given[0] if len(given) == 1 else given
            problems.append(unknown_key(COMMAND_LINE, key, value, schema, prefix, dashes="--"))
    raise_problems(problems)
    return values


def _split(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """``--a 1 --b=2 3`` as ``[("a", ["1"]), ("b", ["2", "3"])]``."""
    pairs: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            pairs.append((key, [value] if equals else []))
        elif pairs:
            pairs[-1][1].append(word)
        else:
            raise UserError(f"{COMMAND_LINE}: unexpected {word!r}; settings look like --optimizer.lr 3e-4")
    return pairs


def build(schema: type[Config], origins: Mapping[str, Origin], prefix: str = "") -> Config:
    """The dataclass with the given values by dotted key and its own defaults for the rest."""
    arguments: dict[str, Any] = {}
    inner = sections(schema)
    for field in dataclasses.fields(cast(Any, schema)):
        key = f"{prefix}.{field.name}" if prefix else field.name
        if field.name in inner:
            arguments[field.name] = build(inner[field.name], origins, key)
        elif key in origins:
            arguments[field.name] = origins[key].value
    return schema(**arguments)


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as nested dicts of plain values, in the order of the schema."""
    return dataclasses.asdict(config)


def flatten(config: Any) -> dict[str, Any]:
    """Values by dotted key, in the order of the schema; lists are leaves."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values.update({f"{field.name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            values[field.name] = list(value) if isinstance(value, list) else value
    return values


def diff(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, as ``{key: (old, new)}``."""
    before, after = flatten(old), flatten(new)
    return {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}


def save_config(config: Any, path: str | Path) -> None:
    """Write the whole tree as YAML that :func:`load_config` reads back equal; the file appears whole or not at all."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    text = yaml.dump(to_dict(config), Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=10**6)
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
