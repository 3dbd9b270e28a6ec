"""Sources of rows: what stands between the datasets and the mixture, and the checks that they fit the model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.mixture import parse_source
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig
from megatron_pixel.data.manifest import Manifest, manifest_path
from megatron_pixel.data.rows import Kind, Row, pair_row, pixel_row, text_row
from megatron_pixel.data.stores import PageStore, PairStore, TokenStore
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

    def row(self, index: int) -> Row:
        """Row ``index``, 0 <= index < num_rows."""
        ...


WeightedSources = Mapping[Kind, Sequence[tuple[float, Source]]]
"""The sources of each kind with their weights."""


class TextSource:
    """A token dataset as one stream over its documents: row k is positions ``[k * s, (k + 1) * s)``, the last padded.

    Raises:
        UserError: if the dataset is not whole, or of another kind, or its vocabulary is not the model's.
    """

    kind = Kind.TEXT

    def __init__(self, prefix: str, split: str, model: ModelConfig, name: str) -> None:
        self._store = TokenStore(prefix, split)
        self.name, self.identity = name, _identity(name, self._store)
        self.manifest = self._store.manifest
        _check_vocabulary(prefix, self.manifest, model)
        self._seq_length = model.seq_length
        self.num_rows = -(-self._store.num_tokens // model.seq_length)
        self.rows_per_block = _rows_per_block(self.manifest, split, self.num_rows)

    def row(self, index: int) -> Row:
        """Row ``index``."""
        start = index * self._seq_length
        stop = min(start + self._seq_length, self._store.num_tokens)
        document_starts = self._store.starts_between(start, stop) - start
        return text_row(self._store.read(start, stop), document_starts, self._seq_length, (self.name, index))


class PixelSource:
    """A page dataset; a row is a page.

    Raises:
        UserError: if the dataset is not whole, or of another kind, or its pages do not fit the model.
    """

    kind = Kind.PIXEL

    def __init__(self, prefix: str, split: str, model: ModelConfig, name: str) -> None:
        self._store = PageStore(prefix, split)
        self.name, self.identity = name, _identity(name, self._store)
        self.manifest = self._store.manifest
        _check_pages(prefix, self.manifest, model)
        length = rendering_setting(self.manifest, "seq_length")
        _check_at_most(prefix, "patches of a page", length, "model", model, "seq_length")
        self._model = model
        self.num_rows = len(self._store)
        self.rows_per_block = _rows_per_block(self.manifest, split, self.num_rows)

    def row(self, index: int) -> Row:
        """Row ``index``."""
        patches = self._store.patches(index, self._model.num_channels)
        return pixel_row(patches, self._model.seq_length, (self.name, index))


class PairSource:
    """A pair dataset; a row is a chunk of text, first as a page, then as tokens.

    Raises:
        UserError: if the dataset is not whole, or of another kind, or its pages, tokens or caps do not fit the config.
    """

    kind = Kind.PAIR

    def __init__(self, prefix: str, split: str, model: ModelConfig, pair: PairConfig, name: str) -> None:
        self._store = PairStore(prefix, split)
        self.name, self.identity = name, _identity(name, self._store)
        self.manifest = self._store.manifest
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
        self.num_rows = len(self._store)
        self.rows_per_block = _rows_per_block(self.manifest, split, self.num_rows)

    def row(self, index: int) -> Row:
        """Row ``index``."""
        patches = self._store.patches(index, self._model.num_channels)
        tokens, origin = self._store.tokens[index], (self.name, index)
        return pair_row(patches, tokens, self._model.seq_length, origin, self._pair.layout, self._pair.patches)


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
        return {kind: [(1.0, SyntheticSource(kind, split, model, pair))] for kind in kinds}
    listed = {Kind.TEXT: data.text, Kind.PIXEL: data.pixels, Kind.PAIR: data.pairs}
    opened: dict[Kind, list[tuple[float, Source]]] = {}
    manifests: dict[str, Manifest] = {}
    for kind in kinds:
        opened[kind] = []
        entries = [parse_source(entry) for entry in listed[kind]]
        for (weight, prefix), name in zip(entries, _names(kind, [entry.prefix for entry in entries]), strict=True):
            source = _open(kind, prefix, split, model, pair, name)
            opened[kind].append((weight, source))
            manifests[prefix] = source.manifest
    _check_same_tokenizer(manifests)
    _check_same_heldout(manifests)
    return opened


def rendering_setting(manifest: Manifest, name: str) -> Any:
    """A value of the rendering config that the pages were made with."""
    return (manifest.rendering or {})[name]


def _open(
    kind: Kind, prefix: str, split: str, model: ModelConfig, pair: PairConfig, name: str
) -> TextSource | PixelSource | PairSource:
    if kind == Kind.TEXT:
        return TextSource(prefix, split, model, name)
    if kind == Kind.PIXEL:
        return PixelSource(prefix, split, model, name)
    return PairSource(prefix, split, model, pair, name)


def _names(kind: Kind, prefixes: list[str]) -> list[str]:
    """Names of the datasets of a kind: the last parts of the prefixes, so that a dataset may move, if they differ."""
    short = [os.path.basename(prefix) for prefix in prefixes]
    unique = len(set(short)) == len(short)
    return [f"{kind.name.lower()}:{name}" for name in (short if unique else prefixes)]


def _identity(name: str, store: TokenStore | PageStore | PairStore) -> str:
    return f"{name}@{store.fingerprint[:12]}"


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
