"""Sources of rows: what stands between the datasets and the mixture, and the checks that they fit the model."""

import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import diff
from megatron_pixel.config.mixture import parse_source
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, RenderingConfig, RenderingOverrides
from megatron_pixel.data.manifest import Manifest, manifest_path
from megatron_pixel.data.packed import PackedSource
from megatron_pixel.data.packing import Content, PackingPlan
from megatron_pixel.data.rows import Kind, Piece, Row, fill_pair, fill_pixels, fill_text
from megatron_pixel.data.split import TRAIN
from megatron_pixel.data.stores import PageStore, PairStore, StringStore, TokenStore
from megatron_pixel.data.synthetic import SyntheticSource

BLOCK_BYTES = 1 << 20
"""Bytes of a file that the sampler moves as one block: enough for a disk to read at full speed."""

DATA_KEYS = {Kind.TEXT: "data.text", Kind.PIXEL: "data.pixels", Kind.PAIR: "data.pairs"}
"""The config key that lists the datasets of a kind."""


class Source(Protocol):
    """Rows of one kind, addressed by index; a row is a pure function of its index."""

    name: str
    """Names the source in batches and messages; keys its order."""
    identity: str
    """Name and content: differs if the dataset was made again from other text or with other settings."""
    kind: Kind
    num_rows: int
    rows_per_block: int
    """Neighbouring rows that make about 1 MB of the file."""
    seq_length: int
    """Positions of a row."""
    patch_values: int
    """Values of a patch, 0 for text rows."""
    note: str
    """What the user should know of it before a run, or nothing."""

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index``, 0 <= index < num_rows, written into ``out`` if given, else into new memory."""
        ...


WeightedSources = Mapping[Kind, Sequence[tuple[float, Source]]]
"""The sources of each kind with their weights."""


class _DatasetSource:
    """What the sources of all kinds of dataset have in common.

    Attributes:
        manifest: of the dataset.
    """

    kind: Kind

    def __init__(
        self, name: str, store: TokenStore | PageStore | PairStore | StringStore, model: ModelConfig, num_rows: int
    ) -> None:
        self.fingerprint = store.fingerprint
        self.name, self.identity, self.note = name, f"{name}@{store.fingerprint[:12]}", ""
        self.manifest = store.manifest
        self.num_rows = num_rows
        self.rows_per_block = _rows_per_block(self.manifest, store.split, num_rows)
        self.seq_length = model.seq_length
        self.patch_values = 0 if self.kind == Kind.TEXT else model.patch_size**2 * model.num_channels

    @property
    def content(self) -> Content:
        """What a packing plan for its rows is made for."""
        return Content(self.fingerprint, self.num_rows)

    def _new(self, index: int) -> Row:
        return Row.empty(self.seq_length, self.patch_values, (self.name, index))


class TextSource(_DatasetSource):
    """A token dataset as one stream over its documents: row k is positions ``[k * s, (k + 1) * s)``, the last padded.

    Args:
        apart: whether documents that share a row do not see each other.

    Raises:
        UserError: if the dataset is not whole, or of another kind, or its vocabulary is not the model's.
    """

    kind = Kind.TEXT

    def __init__(self, prefix: str, split: str, model: ModelConfig, name: str, apart: bool = False) -> None:
        self._store = TokenStore(prefix, split)
        self._apart = apart
        super().__init__(name, self._store, model, -(-self._store.num_tokens // model.seq_length))
        _check_vocabulary(prefix, self.manifest, model)

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index``."""
        start = index * self.seq_length
        stop = min(start + self.seq_length, self._store.num_tokens)
        document_starts = self._store.starts_between(start, stop) - start
        return fill_text(out or self._new(index), self._store.read(start, stop), document_starts, self._apart)


class PixelSource(_DatasetSource):
    """A page dataset; a row is a page.

    Raises:
        UserError: if the dataset is not whole, or of another kind, or its pages do not fit the model.
    """

    kind = Kind.PIXEL

    def __init__(self, prefix: str, split: str, model: ModelConfig, name: str) -> None:
        self._store = PageStore(prefix, split)
        super().__init__(name, self._store, model, len(self._store))
        _check_pages(prefix, self.manifest, model)
        length = rendering_setting(self.manifest, "seq_length")
        _check_at_most(prefix, "patches of a page", length, "model", model, "seq_length")
        self._model = model

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index``."""
        row = out or self._new(index)
        return fill_pixels(row, self.piece(index, row, 0).patches)

    def piece(self, index: int, row: Row, start: int) -> Piece:
        """Writes page ``index`` from position ``start`` of a row on."""
        room = row.page(self._model.patch_size)[start:]
        return Piece(len(self._store.patches(index, self._model.num_channels, room)))


class RenderedSource(_DatasetSource):
    """A strings dataset; a row is a page, drawn when it is read.

    Args:
        rendering: settings to draw with instead of those of the dataset.

    Raises:
        UserError: if the dataset is not whole, or of another kind, its fonts are not here, or its pages do not fit the
            model.
    """

    kind = Kind.PIXEL

    def __init__(self, prefix: str, split: str, model: ModelConfig, rendering: RenderingOverrides, name: str) -> None:
        # The renderer's compiled code: who reads rows that are drawn already imports neither it nor numba.
        from megatron_pixel.data.rendered import StringPages

        store = StringStore(prefix, split)
        super().__init__(name, store, model, len(store))
        self._pages = StringPages(store, rendering)
        self.identity = f"{name}@{self._pages.fingerprint[:12]}"
        _check_rendering(prefix, self._pages.config, model)
        self._model = model
        self.note = self._pages.note(name)

    @property
    def content(self) -> Content:
        """What a packing plan for its rows is made for."""
        return self._pages.content

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index``."""
        row = out or self._new(index)
        return fill_pixels(row, self.piece(index, row, 0).patches)

    def piece(self, index: int, row: Row, start: int) -> Piece:
        """Draws page ``index`` from position ``start`` of a row on."""
        page, room = self._pages.page(index), row.page(self._model.patch_size)[start:]
        if page.num_patches > len(room):
            raise ValueError(f"page {index} has {page.num_patches} patches, and its row room for {len(room)}")
        return Piece(len(page.patches(self._model.num_channels, room)))


class PairSource(_DatasetSource):
    """A pair dataset; a row is a chunk of text, first as a page, then as tokens.

    Raises:
        UserError: if the dataset is not whole, or of another kind, or its pages, tokens or caps do not fit the config.
    """

    kind = Kind.PAIR

    def __init__(self, prefix: str, split: str, model: ModelConfig, pair: PairConfig, name: str) -> None:
        self._store = PairStore(prefix, split)
        super().__init__(name, self._store, model, len(self._store))
        _check_pages(prefix, self.manifest, model)
        _check_vocabulary(prefix, self.manifest, model)
        caps = self.manifest.pair or {}
        _check_at_most(prefix, "patches of a pair", caps["patches"], "pair", pair, "patches")
        _check_at_most(prefix, "tokens of a pair", caps["tokens"], "pair", pair, "tokens")
        if pair.patches + pair.tokens > model.seq_length:
            raise UserError(
                f"pair.patches {pair.patches} + pair.tokens {pair.tokens} exceed model.seq_length {model.seq_length}"
            )
        self._model = model
        self._pair = pair

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index``."""
        row = out or self._new(index)
        patches = self._store.patches(index, self._model.num_channels, row.page(self._model.patch_size))
        return fill_pair(row, len(patches), self._store.tokens[index], self._pair.layout, self._pair.patches)

    def piece(self, index: int, row: Row, start: int) -> Piece:
        """Writes the page of pair ``index`` from position ``start`` of a row on."""
        room = row.page(self._model.patch_size)[start:]
        patches = self._store.patches(index, self._model.num_channels, room)
        first_token = self._pair.patches if self._pair.layout == "released" else None
        return Piece(len(patches), self._store.tokens[index], first_token)


def open_sources(
    kinds: Iterable[Kind], split: str, data: DataConfig, model: ModelConfig, pair: PairConfig
) -> WeightedSources:
    """Opens the datasets of some kinds, or their synthetic stand-ins.

    Args:
        kinds: kinds to open.
        split: ``train`` or ``heldout``.

    Raises:
        UserError: if a dataset does not fit the config, or two of them do not fit each other: text and pairs must have
            the same tokenizer, and all datasets the same held-out fraction.
    """
    if data.synthetic:
        packed = data.packing == "documents"
        return {kind: [(1.0, SyntheticSource(kind, split, model, pair, packed))] for kind in kinds}
    listed = {Kind.TEXT: data.text, Kind.PIXEL: data.pixels, Kind.PAIR: data.pairs}
    opened: dict[Kind, list[tuple[float, Source]]] = {}
    manifests: dict[str, Manifest] = {}
    for kind in kinds:
        opened[kind] = []
        entries = [parse_source(entry) for entry in listed[kind]]
        for (weight, prefix), name in zip(entries, _names(kind, [entry.prefix for entry in entries]), strict=True):
            source = _open(kind, prefix, split, data, model, pair, name)
            opened[kind].append((weight, source))
            manifests[prefix] = source.manifest
    _check_same_tokenizer(manifests)
    _check_same_heldout(manifests)
    _check_rendering_has_use(data, manifests.values() if Kind.PIXEL in opened else ())
    return opened


def rendering_setting(manifest: Manifest, name: str) -> Any:
    """A value of the rendering config that the pages were made with."""
    return (manifest.rendering or {})[name]


def _open(
    kind: Kind, prefix: str, split: str, data: DataConfig, model: ModelConfig, pair: PairConfig, name: str
) -> "TextSource | PixelSource | RenderedSource | PairSource | PackedSource":
    apart = data.packing == "documents"
    if kind == Kind.TEXT:
        return TextSource(prefix, split, model, name, apart)
    options = ""
    pages: PixelSource | RenderedSource | PairSource
    if kind == Kind.PAIR:
        pages = PairSource(prefix, split, model, pair, name)
    elif Manifest.read(prefix).kind == StringStore.kind:
        pages = RenderedSource(prefix, split, model, data.rendering, name)
        options = as_words(data.rendering)
    else:
        pages = PixelSource(prefix, split, model, name)
    # A document's loss does not depend on its row: held-out ones stay apart, and their figures comparable.
    if apart and split == TRAIN:
        return PackedSource(pages, PackingPlan(prefix, split, model.seq_length, pages.content, options))
    return pages


def as_words(rendering: RenderingOverrides) -> str:
    """The settings that are given, as words of a command line, each with a space before it."""
    words = ""
    for name, (_, value) in diff(RenderingOverrides(), rendering).items():
        values = value if isinstance(value, list) else [value]
        words += f" --data.rendering.{name} {shlex.join(map(str, values))}"
    return words


def _names(kind: Kind, prefixes: list[str]) -> list[str]:
    """Names of the datasets of a kind: the last parts of the prefixes, so that a dataset may move, if they differ."""
    short = [os.path.basename(prefix) for prefix in prefixes]
    unique = len(set(short)) == len(short)
    return [f"{kind.name.lower()}:{name}" for name in (short if unique else prefixes)]


def _rows_per_block(manifest: Manifest, split: str, num_rows: int) -> int:
    """Rows in about 1 MB of the files that hold the split."""
    files = manifest.splits[split].files
    total = sum(entry.bytes for name, entry in files.items() if name.endswith(".bin"))
    return max(1, BLOCK_BYTES * num_rows // max(1, total))


def _check_vocabulary(prefix: str, manifest: Manifest, model: ModelConfig) -> None:
    tokenizer = manifest.tokenizer or {}
    if tokenizer["vocab_size"] != model.vocab_size:
        raise UserError(
            f"{manifest_path(prefix)}: its tokenizer {tokenizer['file']} has {tokenizer['vocab_size']} entries, but "
            f"model.vocab_size is {model.vocab_size}: set --model.vocab_size {tokenizer['vocab_size']} or make the "
            f"dataset again with the model's tokenizer"
        )


def _check_pages(prefix: str, manifest: Manifest, model: ModelConfig) -> None:
    patch_size, mode = rendering_setting(manifest, "patch_size"), rendering_setting(manifest, "mode")
    if patch_size != model.patch_size:
        raise UserError(
            f"{manifest_path(prefix)}: its pages have patches of {patch_size} pixels, but model.patch_size is "
            f"{model.patch_size}: set --model.patch_size {patch_size} or make the dataset again with "
            f"--rendering.patch_size {model.patch_size}"
        )
    if mode == "rgb" and model.num_channels == 1:
        raise UserError(
            f"{manifest_path(prefix)}: its pages are rendered in mode rgb, but model.num_channels is 1: set "
            f"--model.num_channels 3 or make the dataset again with --rendering.mode gray"
        )


def _check_rendering(prefix: str, rendering: RenderingConfig, model: ModelConfig) -> None:
    """What :func:`_check_pages` asks of stored pages, of the settings that rows are rendered with."""
    rows = f"{manifest_path(prefix)}: its rows are rendered with"
    if rendering.patch_size != model.patch_size:
        raise UserError(
            f"{rows} patches of {rendering.patch_size} pixels, but model.patch_size is {model.patch_size}: set "
            f"--data.rendering.patch_size {model.patch_size} or --model.patch_size {rendering.patch_size}"
        )
    if rendering.mode == "rgb" and model.num_channels == 1:
        raise UserError(
            f"{rows} mode rgb, but model.num_channels is 1: set --data.rendering.mode gray or --model.num_channels 3"
        )
    if rendering.seq_length > model.seq_length:
        raise UserError(
            f"{rows} up to {rendering.seq_length} patches, but model.seq_length is {model.seq_length}: set "
            f"--data.rendering.seq_length {model.seq_length} or --model.seq_length {rendering.seq_length}"
        )


def _check_rendering_has_use(data: DataConfig, manifests: Collection[Manifest]) -> None:
    given = diff(RenderingOverrides(), data.rendering)
    if given and manifests and all(manifest.kind != StringStore.kind for manifest in manifests):
        names = ", ".join(f"data.rendering.{name}" for name in sorted(given))
        raise UserError(
            f"{names}: every dataset under data.pixels holds pages that are drawn already: leave the setting out, or "
            f"give a dataset of strings (data_tools/preprocess.py strings)"
        )


def _check_at_most(
    prefix: str, what: str, value: int, section: str, config: ModelConfig | PairConfig, name: str
) -> None:
    limit = getattr(config, name)
    if value > limit:
        raise UserError(
            f"{manifest_path(prefix)}: up to {value} {what}, but {section}.{name} is {limit}: set --{section}.{name} "
            f"{value} or make the dataset again with at most {limit}"
        )


def _check_same_tokenizer(manifests: Mapping[str, Manifest]) -> None:
    known = [(prefix, manifest.tokenizer) for prefix, manifest in manifests.items() if manifest.tokenizer]
    for prefix, tokenizer in known[1:]:
        first_prefix, first = known[0]
        if tokenizer["sha256"] != first["sha256"]:
            raise UserError(
                f"{manifest_path(first_prefix)} was made with the tokenizer {first['file']} (sha256 "
                f"{first['sha256'][:12]}), {manifest_path(prefix)} with {tokenizer['file']} (sha256 "
                f"{tokenizer['sha256'][:12]}): one model reads the tokens of one tokenizer; make one of them again"
            )


def _check_same_heldout(manifests: Mapping[str, Manifest]) -> None:
    known = list(manifests.items())
    for prefix, manifest in known[1:]:
        first_prefix, first = known[0]
        if manifest.heldout_fraction != first.heldout_fraction:
            raise UserError(
                f"{manifest_path(first_prefix)} holds out a fraction of {first.heldout_fraction}, "
                f"{manifest_path(prefix)} one of {manifest.heldout_fraction}: a document held out in one would be "
                f"trained on in the other; make one of them again with the same --heldout-fraction"
            )
