"""The config tree on a command line: help that teaches, and the same checked values as from a recipe."""

import argparse
import sys
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from megatron_pixel.config.keys import Setting, alternatives, optional, settings
from megatron_pixel.config.loader import apply_overrides, load_config, to_dict
from megatron_pixel.config.schema import RenderingConfig, RunConfig
from megatron_pixel.config.validation import check_files
from megatron_pixel.config.values import ConfigDumper, show

Config = TypeVar("Config")


def describe(schema: type, prefix: str = "") -> list[Setting]:
    """Every setting of a dataclass tree with its type, default and the docstring under its field."""
    return list(settings(schema, prefix).values())


def read_command_line(description: str, arguments: Sequence[str] | None = None) -> RunConfig:
    """What a training program is started with: ``--config RECIPE`` and dotted settings, all explained by ``--help``.

    The result is validated and its datasets exist. Raises UserError for anything wrong with it.
    """
    usage = "%(prog)s --config RECIPE [--SECTION.KEY VALUE ...]"
    parser = recipe_parser(description, usage, RunConfig, required=True)
    known, overrides = parser.parse_known_args(arguments)
    config = load_config(known.config, overrides)
    check_files(config)
    return config


def recipe_parser(description: str, usage: str, schema: type, required: bool) -> argparse.ArgumentParser:
    """A parser of ``--config`` alone, whose help explains all settings of ``schema``; what it leaves are overrides."""
    parser = argparse.ArgumentParser(
        description=description,
        usage=usage,
        epilog="settings, with the defaults that a recipe changes:\n" + format_settings(describe(schema)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=required,
        metavar="RECIPE",
        help="YAML file with settings, see megatron_pixel/config/recipes/; the command line goes over it",
    )
    # DeepSpeed's launcher and old versions of torch's pass the local rank; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def print_settings(config: Any) -> NoReturn:
    """What ``--print-config`` does: show the whole tree as YAML, and end."""
    sys.stdout.write(yaml.dump(to_dict(config), Dumper=ConfigDumper, sort_keys=False, allow_unicode=True))
    raise SystemExit(0)


def add_dataclass_arguments(parser: argparse.ArgumentParser, schema: type, prefix: str) -> None:
    """Add ``--prefix.key`` for every field of a dataclass; :func:`from_arguments` reads them after parsing."""
    group = parser.add_argument_group(f"{prefix} settings")
    for setting in describe(schema, prefix):
        inner, _ = optional(setting.annotation)
        nargs: Any = "?" if inner is bool else "*" if typing.get_origin(inner) is list else None
        group.add_argument(
            f"--{setting.key}",
            dest=setting.key,
            nargs=nargs,
            const="true" if inner is bool else None,
            default=argparse.SUPPRESS,
            metavar=_metavar(setting.annotation),
            help=_help(setting).replace("%", "%%"),
        )


def from_arguments(arguments: argparse.Namespace, schema: type[Config], prefix: str) -> Config:
    """The dataclass from the arguments that :func:`add_dataclass_arguments` added; raises UserError for wrong types."""
    words: list[str] = []
    for key, value in vars(arguments).items():
        if key.startswith(f"{prefix}."):
            words += [f"--{key}", *value] if isinstance(value, list) else [f"--{key}={value}"]
    return apply_overrides(schema, prefix, words)


def format_settings(described: Iterable[Setting]) -> str:
    """Settings as the lines of a help text, a blank line between sections."""
    lines: list[str] = []
    section = None
    for setting in described:
        if lines and setting.key.rpartition(".")[0] != section:
            lines.append("")
        section = setting.key.rpartition(".")[0]
        lines.append(f"  --{setting.key} {_metavar(setting.annotation)}")
        lines.append(f"      {_help(setting)}")
    return "\n".join(lines)


def reference() -> str:
    """Every setting of a run and of rendering as the tables of docs/configuration.md."""
    parts: list[str] = []
    for schema, prefix in ((RunConfig, ""), (RenderingConfig, "rendering")):
        table: list[str] = []
        section = ""
        for setting in describe(schema, prefix):
            if setting.key.rpartition(".")[0] != section or not table:
                section = setting.key.rpartition(".")[0]
                table += ["", f"### {section or 'The rest'}", ""]
                table += ["| key | type | default | meaning |", "|---|---|---|---|"]
            kind = _metavar(setting.annotation).replace("|", "\\|")
            doc = setting.doc.replace("``", "`")
            table.append(f"| `{setting.key}` | {kind} | `{show(setting.default)}` | {doc} |")
        parts += table
    return "\n".join(parts).strip()


def _help(setting: Setting) -> str:
    default = f"(default {show(setting.default)})"
    return f"{setting.doc.replace('``', '')} {default}" if setting.doc else default


def _metavar(annotation: Any) -> str:
    inner, or_null = optional(annotation)
    if len(parts := alternatives(inner)) > 1:
        name = "|".join(_metavar(part) for part in parts)
    elif typing.get_origin(inner) is Literal:
        name = "|".join(str(choice) for choice in typing.get_args(inner))
    elif typing.get_origin(inner) is list:
        name = f"{_metavar(typing.get_args(inner)[0])} ..."
    else:
        name = {int: "INTEGER", float: "NUMBER", str: "TEXT", bool: "true|false"}[inner]
    return f"{name}|null" if or_null else name
