"""The model card of an exported checkpoint, written from what its run recorded; no figure is typed in by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_pixel.config.loader import flatten
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.interop.names import Layout
from megatron_pixel.interop.open import Opened

CARD = "README.md"


def write_card(folder: Path, checkpoint: Opened, layout: Layout, dtype: str, tokenizer: Tokenizer | None) -> None:
    """Write the card to ``folder``."""
    text = "\n".join(_card(checkpoint, layout, dtype, tokenizer))
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def _card(checkpoint: Opened, layout: Layout, dtype: str, tokenizer: Tokenizer | None) -> Iterator[str]:
    yield f"# {checkpoint.folder.name}"
    yield f"{layout} {dtype} {json.dumps(flatten(checkpoint.model))} {tokenizer}"


def _unused(value: Any) -> Any:
    return value
