"""What belongs to a checkpoint besides its weights: the tokenizer file and the settings that its pages are drawn with.

A checkpoint names them by hash only, as they lie with the datasets. They are looked for where they usually are, and a
file counts only if its hash is the one that the checkpoint was trained with.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.mixture import parse_source
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.files import hash_file
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.rendering.renderer import Renderer

_TOLD = re.compile(r"(?P<name>.+) \(sha256 (?P<sha256>[0-9a-f]+)\)")
_SETTINGS = ("preset", "strategy", "mode", "binary_threshold", "patch_size", "font_size", "dpi", "seq_length")


def tokenizer_of(data: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    """File name and first digits of the sha256 of the tokenizer that the datasets were made with.

    Args:
        data: facts of the datasets, as a checkpoint's ``state.json`` has them.
    """
    for facts in data.values():
        if (told := facts.get("tokenizer")) and (match := _TOLD.fullmatch(told)):
            return match["name"], match["sha256"]
    return None


def find_tokenizer(state: Mapping[str, Any], folder: Path, run: Path | None) -> Path | None:
    """The tokenizer that a checkpoint was trained with, beside its datasets, in its run or beside itself.

    Args:
        state: its ``state.json``.
        folder: of the checkpoint.
        run: of the run that it lies in.
    """
    wanted = tokenizer_of(state.get("data", {}))
    if wanted is None:
        # A checkpoint that was imported brings its tokenizer along.
        own = folder / "tokenizer.model"
        return own if own.is_file() else None
    name, sha256 = wanted
    for place in _places(state, folder, run, name):
        if place.is_file() and hash_file(str(place)).startswith(sha256):
            return place
    return None


def _places(state: Mapping[str, Any], folder: Path, run: Path | None, name: str) -> Iterator[Path]:
    yield folder / name
    if run is not None:
        yield from (run / name, run / "data" / name)
    data = state.get("config", {}).get("data", {})
    for entry in (entry for option in ("text", "pairs") for entry in data.get(option, ())):
        prefix = Path(parse_source(entry).prefix)
        yield prefix.parent / name
        yield prefix.parent.parent / name
        try:
            words = shlex.split(Manifest.read(str(prefix), check_files=False).command)
        except (UserError, ValueError):
            continue
        if "--tokenizer" in words[:-1]:
            yield Path(words[words.index("--tokenizer") + 1])


def recorded_rendering(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rendering settings of the first dataset that holds pages; empty where none does."""
    for facts in data.values():
        if "fonts" in facts:
            kept = {key: value for key, value in facts.items() if key not in ("tokenizer", "unicode")}
            return dict(kept)
    return {}


def renderer_for(recorded: Mapping[str, Any], channels: int, patch_size: int, fonts: list[str]) -> Renderer:
    """A renderer with the recorded settings.

    Args:
        recorded: from :func:`recorded_rendering`; empty gives the defaults.
        channels: of the model; one channel means gray pages unless the settings say binary.
        patch_size: of the model.
        fonts: font files to use; empty means the chain of the recorded preset.

    Raises:
        UserError: settings that cannot be, or a font that is not there.
    """
    known = {field.name for field in dataclasses.fields(RenderingConfig)}
    told = {key: recorded[key] for key in _SETTINGS if key in recorded and key in known}
    config = RenderingConfig(**{"patch_size": patch_size, "mode": "gray" if channels == 1 else "rgb"} | told)
    config.fonts = fonts
    return Renderer(config)


def other_fonts(renderer: Renderer, recorded: Mapping[str, Any]) -> list[str]:
    """Fonts of the recorded settings that ``renderer`` does not have: pages may look otherwise than in training."""
    here = {font["sha256"][:12] for font in renderer.fingerprint()["fonts"]}
    told = [_TOLD.fullmatch(font) for font in recorded.get("fonts", ())]
    return [match["name"] for match in told if match and match["sha256"][:12] not in here]
