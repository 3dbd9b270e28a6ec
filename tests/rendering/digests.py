"""Hashes of pages in all settings, for ``test_same_bytes.py``; as a program, of the texts on standard input (JSON)."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer


def digests(texts: list[str]) -> dict[str, str]:
    """The first digits of SHA-256 over all texts, by what is rendered how."""
    chain = [str(font.path) for font in find_fonts([], "default")]
    build = {
        "default": Renderer(RenderingConfig()),
        "gray": Renderer(RenderingConfig(mode="gray")),
        "binary": Renderer(RenderingConfig(mode="binary")),
        "patches of 32": Renderer(RenderingConfig(patch_size=32)),
        "released": Renderer(RenderingConfig(preset="released", fonts=chain, seq_length=64)),
    }
    found = {name: _digest([renderer.render(text) for text in texts]) for name, renderer in build.items()}
    default, released = build["default"], build["released"]
    document = "\n".join(sorted(texts))
    found["pages"] = _digest(default.pages(document, 24))
    short = Renderer(RenderingConfig(seq_length=64))
    found["pairs"] = _digest([short.render_pair(text, document) for text in texts])
    found["released pairs"] = _digest([released.render_pair(text, text[::-1]) for text in texts])
    found["patches in RGB"] = _hash(default.render(text).patches(3).tobytes() for text in texts)
    found["patches in gray"] = _hash(default.render(text).patches(1).tobytes() for text in texts)
    return found


def _digest(pages: list[Page]) -> str:
    return _hash(
        page.columns.tobytes() + bytes(str((page.num_patches, page.start, page.end)), "ascii") for page in pages
    )


def _hash(parts: Iterable[bytes]) -> str:
    # Sorted, so that the hash does not depend on the order in which texts were rendered.
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(part).digest() for part in parts))).hexdigest()[:16]


if __name__ == "__main__":
    json.dump(digests(json.load(sys.stdin)), sys.stdout)
