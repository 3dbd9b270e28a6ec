"""The safetensors format, read and written a stretch of a tensor at a time.

The format is simple: eight bytes of length, a header in JSON, the values one after the other. It is written here to
keep memory small, as the ``safetensors`` package wants a whole file's tensors at once. Tests hold both directions
against that package.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that weights are exchanged in; each is exact in fp32."""
CODES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
"""Their names in the format."""
STRETCH = 32 << 20
"""Bytes read or written at once."""
_MOST_HEADER = 100 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    path: Path
    dtype: str
    """Key of ``DTYPES``."""
    shape: tuple[int, ...]
    start: int
    """First byte within the file."""


@dataclass(frozen=True)
class Planned:
    """A tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What it takes in its file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file.

    Raises:
        UserError: it is no safetensors file, is cut short, or holds a dtype that weights do not have.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _MOST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        entries = {
            name: _entry(path, name, told, 8 + length) for name, told in header.items() if name != "__metadata__"
        }
        end = max((told["data_offsets"][1] for name, told in header.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error}") from None
    if size < 8 + length + end:
        raise UserError(f"{path} is cut short: {size:,} bytes instead of {8 + length + end:,}")
    return entries


def _entry(path: Path, name: str, told: dict[str, Any], data: int) -> Entry:
    if told["dtype"] not in CODES:
        raise UserError(f"{path}: {name} has the dtype {told['dtype']}; weights are {', '.join(CODES)}")
    shape, (start, end) = tuple(told["shape"]), told["data_offsets"]
    entry = Entry(path, CODES[told["dtype"]], shape, data + start)
    if end - start != Planned(name, entry.dtype, shape).bytes:
        raise ValueError(f"{name} {list(shape)} does not fit its {end - start:,} bytes")
    return entry


def read_into(entry: Entry, target: Tensor) -> None:
    """Copy a tensor into ``target``, fp32 of as many values in any strides and shape; a stretch at a time.

    Raises:
        UserError: the file cannot be read.
    """
    dtype = DTYPES[entry.dtype]
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            for stretch in _stretches(target, dtype.itemsize):
                buffer = torch.empty(stretch.shape, dtype=dtype)
                view = memoryview(buffer.view(-1).view(torch.uint8).numpy())
                if file.readinto(view) != len(view):
                    raise UserError(f"{entry.path} is cut short")
                stretch.copy_(buffer)
    except OSError as error:
        raise UserError(f"{entry.path} cannot be read: {error.strerror}") from None


def _stretches(tensor: Tensor, itemsize: int) -> Iterator[Tensor]:
    """Views of ``tensor`` that follow each other in its order, of about ``STRETCH`` bytes."""
    if tensor.dim() == 0 or tensor.numel() * itemsize <= STRETCH:
        yield tensor
        return
    row_bytes = tensor[0].numel() * itemsize
    if row_bytes > STRETCH:
        for row in tensor:
            yield from _stretches(row, itemsize)
        return
    yield from tensor.split(STRETCH // row_bytes)


class FileWriter:
    """One file, its tensors written in the order of the plan. Use it as a context manager; at its end the file is on
    disk.

    Raises:
        OSError: the disk is full, and the like.
    """

    def __init__(self, path: Path, plan: Sequence[Planned]) -> None:
        self._path, self._plan, self._next = path, list(plan), 0
        self._file: BinaryIO = path.open("wb")
        codes = {name: code for code, name in CODES.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in plan:
            start, end = end, end + tensor.bytes
            entry = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            header[tensor.name] = entry
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, values: Tensor) -> None:
        """The next tensor: values in its order, in any strides, shape and floating dtype.

        Raises:
            UserError: finite values that fp16 would make infinite.
        """
        planned = self._plan[self._next]
        if planned.name != name or values.numel() != math.prod(planned.shape):
            raise ValueError(f"{name} {list(values.shape)} where {planned.name} {list(planned.shape)} was planned")
        self._next += 1
        for stretch in _stretches(values, DTYPES[planned.dtype].itemsize):
            data = stretch.to(DTYPES[planned.dtype]).contiguous()
            if planned.dtype == "fp16" and bool((data.isinf() & stretch.isfinite()).any()):
                raise UserError(f"{name} holds values that fp16 has no room for (beyond 65,504): use bf16 or fp32")
            self._file.write(memoryview(data.view(-1).view(torch.uint8).numpy()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if self._next != len(self._plan):
                    raise ValueError(f"{self._path}: {len(self._plan) - self._next} planned tensors were not written")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def cut_into_files(plan: Sequence[Planned], most_bytes: int) -> list[list[Planned]]:
    """The plan in files of at most ``most_bytes``, in order; a larger tensor has a file of its own."""
    files: list[list[Planned]] = [[]]
    size = 0
    for tensor in plan:
        if files[-1] and size + tensor.bytes > most_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes
    return files
