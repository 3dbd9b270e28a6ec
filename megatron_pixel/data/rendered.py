"""Pages drawn when they are read: which settings a strings dataset is rendered with, and what its rows then show."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig, RenderingOverrides
from megatron_pixel.data.manifest import manifest_path
from megatron_pixel.data.packing import Content
from megatron_pixel.data.stores import StringStore
from megatron_pixel.rendering.fonts import FontFile, find_fonts
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

SAMPLE_ROWS = 64
"""Rows that tell how much of the text other settings leave out."""
_KEPT_RENDERERS = 4
_SAME_LAYOUT = ("mode", "binary_threshold")
"""Settings that change the pixels, but not which characters a page shows."""


class StringPages:
    """Draws the pages of a strings dataset.

    With the settings, fonts and library versions that the dataset was made with, page i shows piece i and is the page
    that a dataset of pixels holds. With others it begins with the same character and shows as much of the text that
    follows in the document as it has room for.

    It may be used by several threads and be sent to other processes: each draws with a renderer of its own.

    Args:
        store: the dataset.
        overrides: settings that differ from those of the dataset.

    Raises:
        UserError: a font that the dataset was made with is not here, or the settings cannot be.
    """

    def __init__(self, store: StringStore, overrides: RenderingOverrides) -> None:
        recorded = store.manifest.rendering or {}
        self._store = store
        path = manifest_path(store.prefix)
        self.config = effective_config(recorded, overrides)
        try:
            if not overrides.fonts:
                self.config.fonts = _find_recorded(
                    recorded["fonts"], self.config.preset, mono=recorded.get("strategy") == "mono"
                )
            fingerprint = fingerprint_of(self.config)
        except UserError as error:
            raise UserError(
                f"{path}: its rows cannot be rendered: {error} (settings for them stand under data.rendering)"
            ) from error
        self._key = key_of(self.config)
        self.fingerprint = hashlib.sha256(json.dumps([store.fingerprint, fingerprint]).encode()).hexdigest()
        """Differs wherever any pixel of any row may differ."""
        self.content = Content(store.fingerprint, len(store), json.loads(json.dumps(fingerprint)))
        """What a packing plan for its pages is made for."""
        self._changes = list(_changes(recorded, fingerprint))
        """What differs from the settings of the dataset and moves text from page to page."""

    def page(self, index: int) -> Page:
        """The page of row ``index``; it shows ``text[page.start:page.end]`` of the document from the row's first
        character on. Raises UserError naming a damaged piece."""
        text = self._store.piece(index)
        renderer = renderer_for(self.config, self._key)
        if not self._changes:
            return next(renderer.iter_pages(text))
        document_end = self._store.document_end(index)
        enough = len(text) * 3 // 2
        while True:
            while len(text) < enough and index + 1 < document_end:
                index += 1
                text += self._store.piece(index)
            page = next(renderer.iter_pages(text))
            # What follows the first character that does not fit cannot change a page.
            if page.end < len(text) or index + 1 == document_end:
                return page
            enough = 2 * len(text)

    def note(self, name: str) -> str:
        """What a user should know of rows drawn with other settings than the dataset was made with, else nothing."""
        if not self._changes:
            return ""
        share = self.sample()
        return (
            f"{name} is rendered with {', '.join(self._changes)}: {share.missing:.1%} of its text does not fit on the "
            f"rows, {share.repeated:.1%} is shown on two (sample of {share.rows} rows)"
        )

    def sample(self, rows: int = SAMPLE_ROWS) -> "Share":
        """How much of the text the rows show, from ``rows`` rows spread evenly over the dataset."""
        total = len(self._store)
        indexes = sorted({number * total // rows for number in range(rows)}) if total else []
        characters = missing = repeated = 0
        for index in indexes:
            piece, shown = len(self._store.piece(index)), self.page(index).end
            characters += piece
            missing += max(0, piece - shown)
            repeated += max(0, shown - piece)
        return Share(missing / max(1, characters), repeated / max(1, characters), len(indexes))


@dataclass(frozen=True)
class Share:
    """Parts of the text, in characters."""

    missing: float
    """Shown on no row."""
    repeated: float
    """Shown on a row and again at the beginning of the next."""
    rows: int
    """Rows of the sample."""


def effective_config(recorded: dict[str, Any], overrides: RenderingOverrides) -> RenderingConfig:
    """The settings to render with: those of ``overrides`` that are given, else those in the dataset's manifest.

    The font grows with the patch size unless its size is given too.
    """
    names = [field.name for field in fields(RenderingConfig)]
    values = {name: recorded[name] for name in names if name in recorded and name != "fonts"}
    given = {name: value for name, value in asdict(overrides).items() if value is not None}
    if "patch_size" in given and "font_size" not in given:
        given["font_size"] = values["font_size"] * given["patch_size"] / values["patch_size"]
    return RenderingConfig(**(values | given))


class _Renderers(threading.local):
    """Renderers are not thread-safe, and take a fraction of a second to build."""

    def __init__(self) -> None:
        self.known: dict[str, Renderer] = {}


_renderers = _Renderers()
_fingerprints: dict[str, dict[str, Any]] = {}


def renderer_for(config: RenderingConfig, key: str = "") -> Renderer:
    """This thread's renderer for these settings. Raises UserError as :class:`Renderer` does.

    ``key`` is their :func:`key_of`, for those who ask often.
    """
    known, key = _renderers.known, key or key_of(config)
    renderer = known.pop(key, None) or Renderer(config)
    while len(known) >= _KEPT_RENDERERS:
        del known[next(iter(known))]  # the one that was not asked for the longest
    known[key] = renderer
    return renderer


def key_of(config: RenderingConfig) -> str:
    """The settings as text: equal for equal settings."""
    return json.dumps(asdict(config))


def fingerprint_of(config: RenderingConfig) -> dict[str, Any]:
    """The fingerprint of the renderer for these settings, JSON-able; the fonts are hashed once a process."""
    key = key_of(config)
    if key not in _fingerprints:
        _fingerprints[key] = renderer_for(config).fingerprint()
    return _fingerprints[key]


@cache
def _installed_fonts(mono: bool) -> list[FontFile]:
    return find_fonts([], "default", mono)


def _find_recorded(recorded: list[dict[str, Any]], preset: str, mono: bool) -> list[str]:
    """The fonts of a dataset among those that are found here, by their content; empty if they are the default chain."""
    installed = _installed_fonts(mono)
    wanted = [font["sha256"] for font in recorded]
    if preset == "default" and wanted == [font.sha256 for font in installed]:
        return []
    by_content = {font.sha256: str(font.path) for font in reversed(installed)}
    for number, font in enumerate(recorded):
        if font["sha256"] not in by_content:
            same_name = [here for here in installed if here.path.name == font["name"]]
            other = f"; the file of that name here has other content: {same_name[0].path}" if same_name else ""
            raise UserError(
                f"font {number + 1} of {len(recorded)} of its pages, {font['name']} (sha256 "
                f"{font['sha256'][:12]}), is not among the fonts found here{other}. Install it, or name the fonts to "
                f"render with in order: --data.rendering.fonts FILE..., the dataset's own or others"
            )
    return [by_content[content] for content in wanted]


def _changes(recorded: dict[str, Any], present: dict[str, Any]) -> Iterator[str]:
    """The settings and versions that lay out text differently, as ``name old -> new``."""
    for name in sorted(recorded.keys() | present.keys()):
        old, new = recorded.get(name), present.get(name)
        if name == "fonts":
            if _font_content(recorded["fonts"]) != _font_content(present["fonts"]):
                yield f"fonts {present['fonts'][0]['name']}" + (" and others" if len(present["fonts"]) > 1 else "")
        elif name not in _SAME_LAYOUT and old != new:
            yield f"{name} {new} instead of {old}"


def _font_content(fonts: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What decides how fonts draw: a file may have another name."""
    return [(font["sha256"], font["index"], font["height"]) for font in fonts]
