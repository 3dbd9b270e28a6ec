"""Reading a YAML recipe: every value keeps the file and line that it came from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.keys import expected, nearest, sections, settings
from megatron_pixel.config.values import ConfigLoader, from_yaml, show

BASE = "base"
"""Key of a recipe that names another one, relative to its own folder, whose values it takes over and changes."""


@dataclass(frozen=True)
class Origin:
    """A value and where it was written: ``recipe.yaml:12`` or ``command line``."""

    value: Any
    where: str


def read_recipe(path: Path, schema: type) -> dict[str, Origin]:
    """Values of a recipe and of the recipes it is based on, by dotted key, checked against ``schema``.

    Raises UserError that lists every unknown key, wrong type and repeated key at once.
    """
    problems: list[str] = []
    values = _read(path, schema, (), problems)
    raise_problems(problems)
    return values


def raise_problems(problems: list[str]) -> None:
    """Raise one UserError with all ``problems``, or nothing if there are none."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems in the configuration:\n  " + "\n  ".join(problems))


def unknown_key(where: str, key: str, value: Any, schema: type, prefix: str = "", dashes: str = "") -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    known = settings(schema, prefix)
    near = nearest(key, known)
    message = f"{where}: {dashes}{key}: unknown key (value {show(value)}); "
    if near:
        return message + f"did you mean {dashes}{near} ({expected(known[near].annotation)})?"
    parent = key.rpartition(".")[0]
    beside = [name for name in known if name.startswith(parent + ".")] if parent in sections(schema, prefix) else []
    outer = [name for name in sections(schema, prefix) if name.count(".") == (1 if prefix else 0)]
    names = beside or outer or list(known)
    return message + f"known {'keys' if beside else 'names'}: {', '.join(names)}"


def _read(path: Path, schema: type, based_on_by: tuple[Path, ...], problems: list[str]) -> dict[str, Origin]:
    root = _compose(path)
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{_place(path, root)}: expected sections with keys and values, got {_construct(path, root)!r}")
    own: dict[str, Origin] = {}
    base = _take_base(path, root)
    _flatten(path, root, "", schema, own, problems)
    if base is None:
        return own
    chain = (*based_on_by, path.resolve())
    base_path = path.parent / base.value
    if base_path.resolve() in chain:
        raise UserError(f"{base.where}: base: {base.value!r} leads back to {base_path.name}: a circle of recipes")
    if not base_path.is_file():
        raise UserError(f"{base.where}: base: no file {str(base_path)!r}{_nearest_file(base_path)}")
    return _read(base_path, schema, chain, problems) | own


def _compose(path: Path) -> yaml.Node | None:
    if not path.exists():
        raise UserError(f"{path}: no such recipe{_nearest_file(path)}")
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=ConfigLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 (byte {error.start}: {error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{path}{line}: not valid YAML: {what}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None


def _take_base(path: Path, root: yaml.MappingNode) -> Origin | None:
    """Remove the ``base`` entry from ``root`` and return it."""
    for entry in root.value:
        if entry[0].value == BASE:
            root.value.remove(entry)
            name = _construct(path, entry[1])
            if not isinstance(name, str):
                raise UserError(f"{_place(path, entry[1])}: base: expected a file name, got {show(name)}")
            return Origin(name, _place(path, entry[0]))
    return None


def _flatten(
    path: Path, node: yaml.MappingNode, prefix: str, schema: type, values: dict[str, Origin], problems: list[str]
) -> None:
    known = settings(schema)
    inner = sections(schema)
    seen: dict[str, str] = {}
    for key_node, value_node in node.value:
        where = _place(path, key_node)
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(_construct(path, key_node))
        key = f"{prefix}.{name}" if prefix else name
        if key in seen:
            problems.append(f"{where}: {key}: given twice, first at {seen[key]}; keep one")
            continue
        seen[key] = where
        if key in inner:
            if isinstance(value_node, yaml.MappingNode):
                _flatten(path, value_node, key, schema, values, problems)
            elif _construct(path, value_node) is not None:  # a section whose lines are all comments is empty
                problems.append(_section_problem(where, key, _construct(path, value_node), schema))
        elif key in known:
            try:
                values[key] = Origin(from_yaml(_construct(path, value_node), known[key].annotation), where)
            except ValueError as error:
                problems.append(type_problem(where, key, _construct(path, value_node), error, known[key].refused))
        else:
            problems.append(unknown_key(where, key, _construct(path, value_node), schema))


def _section_problem(where: str, key: str, value: Any, schema: type) -> str:
    names = [name.removeprefix(key + ".") for name in settings(schema) if name.startswith(key + ".")]
    return f"{where}: {key}: expected a section with keys ({', '.join(names)}), got {show(value)}"


def type_problem(where: str, key: str, value: Any, error: ValueError, refused: Mapping[str, str]) -> str:
    """The message for a value of the wrong type, or the reason why a value that many would try is refused."""
    return f"{where}: {key}: {refused.get(str(value), error)}"


def _construct(path: Path, node: yaml.Node) -> Any:
    """The Python value of a node: scalars, lists and mappings only."""
    loader = ConfigLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{_place(path, node)}: not a plain value: {error.problem}") from None
    finally:
        loader.dispose()


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _nearest_file(path: Path) -> str:
    """``; did you mean X?`` for the recipe in the same folder whose name is nearest."""
    try:
        names = sorted(name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml")))
    except OSError:
        return f": there is no folder {str(path.parent)!r}"
    near = nearest(path.name, names)
    return f"; did you mean {str(path.parent / near)!r}?" if near else ""
