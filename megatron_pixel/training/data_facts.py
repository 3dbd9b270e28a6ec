"""What a run's datasets were made with, as a checkpoint remembers it: a resume names what has changed."""

from typing import Any

from megatron_pixel.config.mixture import parse_source
from megatron_pixel.config.schema import DataConfig
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.mixture import kinds_of
from megatron_pixel.data.sources import DATA_KEYS


def data_facts(data: DataConfig) -> dict[str, dict[str, Any]]:
    """Tokenizer, fonts and rendering settings of each dataset, by its place in the config: ``data.text[0]``.

    Raises:
        UserError: a dataset is not there or not whole.
    """
    if data.synthetic:
        return {}
    facts = {}
    for kind in kinds_of(data):
        option = DATA_KEYS[kind]
        for number, entry in enumerate(getattr(data, option.removeprefix("data."))):
            facts[f"{option}[{number}]"] = _facts(Manifest.read(parse_source(entry).prefix))
    return facts


def _facts(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if manifest.tokenizer is not None:
        facts["tokenizer"] = _file(manifest.tokenizer["file"], manifest.tokenizer["sha256"])
    for name, value in (manifest.rendering or {}).items():
        is_fonts = name == "fonts"
        facts[name] = [_file(font["name"], font["sha256"]) for font in value] if is_fonts else value
    return facts


def _file(name: str, sha256: str) -> str:
    return f"{name} (sha256 {sha256[:12]})"
