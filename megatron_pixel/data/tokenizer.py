"""The token vocabulary: sentencepiece models in Llama 2's format, used and trained.

sentencepiece is imported when a tokenizer is opened, not before.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import write_file

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
"""Ids of the special pieces in models that :func:`train_tokenizer` makes, Llama 2's."""

LEAST_SENTENCES = 101

_SENTENCE_CHARACTERS = 2000
"""Longest stretch of text handed to the trainer at once; below its limit of 4,192 bytes for most text."""


class Offsets(NamedTuple):
    """Tokens of a text and the characters they stand for."""

    ids: np.ndarray
    """int32 [n]."""
    ends: np.ndarray
    """int64 [n]: characters of the text covered by the tokens up to and including each one; a character spelled in
    several byte tokens is covered from its last one on."""


class Tokenizer:
    """A sentencepiece model with BOS and EOS.

    Raises:
        UserError: the file is missing, is no sentencepiece model, or has no BOS or EOS.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        model = _read_model(self.path)
        self._processor = _open_model(model, str(path))
        self.sha256 = hashlib.sha256(model).hexdigest()
        self.vocab_size: int = self._processor.get_piece_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()
        for name, value in (("BOS", self.bos_id), ("EOS", self.eos_id)):
            if value < 0:
                raise UserError(
                    f"{path}: the tokenizer has no {name} piece; documents begin with BOS and end with EOS "
                    "(sentencepiece's bos_id and eos_id; data_tools/tokenizer.py train sets both)"
                )

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32 [n], without BOS and EOS."""
        return np.asarray(self._processor.encode_as_numpy(text), dtype=np.int32)

    def encode_with_offsets(self, text: str) -> Offsets:
        """Token ids of a text, without BOS and EOS, and where each one ends in it."""
        mapping: dict[str, Any] = self._processor.encode_as_offset_mapping(text)
        ends = np.array([end for _, end in mapping["offsets"]], dtype=np.int64)
        return Offsets(np.array(mapping["ids"], dtype=np.int32), ends)

    def decode(self, ids: np.ndarray | Iterable[int]) -> str:
        """The text of token ids; BOS and EOS leave nothing behind."""
        return str(self._processor.decode([int(token) for token in ids]))

    def piece(self, token: int) -> str:
        """The piece of one token id, as sentencepiece writes it."""
        return str(self._processor.id_to_piece(int(token)))

    def fingerprint(self) -> dict[str, str | int]:
        """What a manifest remembers of the tokenizer."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "vocab_size": self.vocab_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
        }


def train_tokenizer(texts: Iterable[str], output: str | os.PathLike[str], vocab_size: int, max_sentences: int) -> None:
    """Train a model with Llama 2's settings (BPE, byte fallback, single digits, no normalization) and write it.

    The same texts give the same bytes. ``max_sentences`` bounds memory: of more lines than that, a random sample (of a
    fixed seed) is used. Errors that ``texts`` raises pass through.

    Raises:
        UserError: no text, or a vocabulary that the text cannot fill or that is too small for its characters.
    """
    import io

    import sentencepiece

    if max_sentences < LEAST_SENTENCES:
        raise UserError(f"--max-sentences {max_sentences}: sentencepiece samples {LEAST_SENTENCES} lines at the least")
    sentencepiece.set_random_generator_seed(0)
    model = io.BytesIO()
    sentences = _Sentences(texts)
    failure: RuntimeError | None = None
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            character_coverage=0.99995,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=-1,
            unk_surface=" \u2047 ",
            input_sentence_size=max_sentences,
            shuffle_input_sentence=True,
            num_threads=16,  # stands in the model file: a machine's own number would change its hash
            minloglevel=3,
        )
    except RuntimeError as error:
        failure = error
    if sentences.error is not None:
        raise sentences.error
    if sentences.count == 0:
        raise UserError("the input files hold no text to train a tokenizer on")
    if failure is not None:
        raise _training_error(failure, vocab_size) from None
    write_file(str(output), model.getvalue())


class _Sentences:
    """Texts cut to lines: line ends stay out of the pieces (they become byte tokens, as in Llama 2).

    An exception inside sentencepiece's loop would lose its type, so it is kept in ``error``.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.splitlines():
                    for sentence in _stretches(line):
                        if sentence and "\0" not in sentence:
                            self.count += 1
                            yield sentence
        except BaseException as error:  # raised again by train_tokenizer
            self.error = error


def _stretches(line: str) -> Iterator[str]:
    """A line in stretches that the trainer accepts, cut at spaces where there are any."""
    start = 0
    while len(line) - start > _SENTENCE_CHARACTERS:
        cut = line.rfind(" ", start + 1, start + _SENTENCE_CHARACTERS)
        end = cut if cut > start else start + _SENTENCE_CHARACTERS
        yield line[start:end]
        start = end
    yield line[start:]


def _training_error(error: RuntimeError, vocab_size: int) -> UserError:
    message = str(error)
    if most := re.search(r"value <= (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is too large for this text: it fills {int(most[1])} pieces at the most; "
            "give more text or a smaller vocabulary"
        )
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is too small: 256 byte pieces, 3 special ones and the characters of this text "
            f"need {int(least[1])} at the least"
        )
    return UserError(f"sentencepiece cannot train on this text: {message}")


def _read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such tokenizer; data_tools/tokenizer.py train makes one") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _open_model(model: bytes, path: str) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = bool(model) and processor.load_from_serialized_proto(model)
    except (RuntimeError, TypeError):
        loaded = False
    if not loaded:
        raise UserError(
            f"{path}: not a sentencepiece model (tokenizer.model of Llama 2, or data_tools/tokenizer.py train)"
        )
    return processor
