"""From records to examples: empty texts, labels, and what to say of them."""

import base64
import binascii
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.finetuning.readers.files import Record

Label = Callable[[Record], int | float]
IMAGE, NUM_PATCHES = "image", "num_patches"
"""Columns of the released rendered files: a PNG in base64, and the patches that its text takes."""


def collect(
    name: str,
    records: Iterable[Record],
    columns: Sequence[str],
    label: Label | None,
    empty: str,
    identify: Callable[[Record], str] | None = None,
) -> Examples:
    """The examples of a split.

    Args:
        name: of the split.
        records: its rows.
        columns: one or two text columns.
        label: number of the class, or the score, of a row; None for a split without labels.
        empty: ``refuse``, ``keep`` or ``skip`` (see ``examples.empty``); a split other than ``train`` skips nothing.
        identify: what an example is called; by default its place.

    Raises:
        UserError: a missing column, an unknown label, an empty text that is refused, or no example at all.
    """
    texts: list[list[str]] = [[] for _ in columns]
    images: list[bytes] = []
    image_patches: list[int] = []
    labels: list[int | float] = []
    ids: list[str] = []
    skipped = 0
    for record in records:
        rendered = IMAGE in record.values
        row = [record.text(column) if column in record.values or not rendered else "" for column in columns]
        if rendered:
            images.append(_png(record))
            image_patches.append(_patches(record))
        blank = (
            None
            if rendered
            else next((column for column, text in zip(columns, row, strict=True) if not text.strip()), None)
        )
        if blank is not None:
            if empty == "refuse":
                raise UserError(
                    f"{record.place}: column {blank!r} is empty; mend the file, or set examples.empty to keep or skip"
                )
            if empty == "skip" and name == "train":
                skipped += 1
                continue
        for column, text in zip(texts, row, strict=True):
            column.append(text)
        if label is not None:
            labels.append(label(record))
        ids.append(identify(record) if identify else record.place)
    if not ids:
        raise UserError(f"the split {name} has no examples" + (f": {skipped} were empty" if skipped else ""))
    if images and len(images) != len(ids):
        raise UserError(f"the split {name}: {len(images):,} of {len(ids):,} rows hold an {IMAGE!r}; all or none must")
    return Examples(
        name,
        texts[0],
        texts[1] if len(columns) > 1 else None,
        None if label is None else np.array(labels),
        ids,
        images or None,
        image_patches or None,
        skipped,
    )


def class_label(column: str, classes: Sequence[str], other_names: dict[str, str] | None = None) -> Label:
    """Numbers of classes: a name, another name of it, or the number itself as exports have it."""
    numbers = {name: number for number, name in enumerate(classes)}
    numbers |= {other: numbers[name] for other, name in (other_names or {}).items()}
    numbers |= {str(number): number for number in range(len(classes))}

    def label(record: Record) -> int:
        value = record.value(column)
        number = numbers.get(_plain(value))
        if number is None:
            raise UserError(
                f"{record.place}: unknown label {value!r} in column {column!r}; known: {', '.join(classes)}, or 0 to "
                f"{len(classes) - 1}"
            )
        return number

    return label


def score_label(column: str) -> Label:
    """Finite numbers."""

    def label(record: Record) -> float:
        value = record.value(column)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{record.place}: column {column!r} holds {value!r} where a number is expected")
        return number

    return label


def _png(record: Record) -> bytes:
    try:
        return base64.b64decode(record.text(IMAGE), validate=True)
    except binascii.Error as error:
        raise UserError(f"{record.place}: column {IMAGE!r} is not base64: {error}") from None


def _patches(record: Record) -> int:
    value = record.value(NUM_PATCHES)
    if not isinstance(value, int) or value < 0:
        raise UserError(f"{record.place}: column {NUM_PATCHES!r} holds {value!r} where a number of patches is expected")
    return value


def _plain(value: Any) -> str:
    """``1.0`` and ``True`` as exports write the number of a class."""
    if isinstance(value, bool | float) and value == int(value):
        return str(int(value))
    return str(value).strip()
