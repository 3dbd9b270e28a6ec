"""From pixel columns to patches: the page turned on its side, gray made RGB, in vector registers.

A page lies in memory column after column, a patch of the training layout row after row, so each patch is a transposed
matrix of bytes. It is transposed in tiles of 16x16 (or 8x8) bytes: interleaving the first half of the columns with the
second, byte by byte, moves every byte half way; after log2(16) rounds the columns have become rows. The rounds are
written as LLVM vector shuffles, which every processor with byte shuffles has an instruction for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

GRAY, RGB_FROM_GRAY, RGB = range(3)
_BYTE = ir.IntType(8)


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    """The bytes ``lanes`` of two vectors in a row."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(first, second, mask)


def _transpose(builder: Any, lines: list[Any]) -> list[Any]:
    """Rows of a square tile from its columns."""
    width = len(lines)
    low = [lane // 2 + width * (lane % 2) for lane in range(width)]
    high = [lane + width // 2 for lane in low]
    for _ in range(width.bit_length() - 1):
        pairs = list(zip(lines[: width // 2], lines[width // 2 :], strict=True))
        lines = [_shuffle(builder, *pair, half) for pair in pairs for half in (low, high)]
    return lines


def _split(builder: Any, parts: list[Any], width: int) -> list[Any]:
    """Three planes from a column of RGB pixels, given as three vectors in a row."""
    planes = []
    for channel in range(3):
        places = [3 * pixel + channel for pixel in range(width)]
        head = _shuffle(builder, parts[0], parts[1], [place % (2 * width) for place in places])
        lanes = [lane if place < 2 * width else place - width for lane, place in enumerate(places)]
        planes.append(_shuffle(builder, head, parts[2], lanes))
    return planes


def _join(builder: Any, planes: list[Any], width: int) -> list[Any]:
    """The converse of :func:`_split`."""
    parts = []
    for part in range(3):
        pixels = [divmod(part * width + byte, 3) for byte in range(width)]
        head = _shuffle(builder, planes[0], planes[1], [pixel + c % 2 * width for pixel, c in pixels])
        lanes = [width + pixel if c == 2 else byte for byte, (pixel, c) in enumerate(pixels)]
        parts.append(_shuffle(builder, head, planes[2], lanes))
    return parts


def _make_tile(width: int, form: int) -> Callable[..., None]:
    """A function for compiled code that turns one tile of ``width`` columns into rows.

    Its arguments: address of the first column, bytes from a column to the next, the same of the rows.
    """
    channels_in, channels_out = 3 if form == RGB else 1, 1 if form == GRAY else 3
    vector = ir.VectorType(_BYTE, width)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, column_bytes, target, row_bytes = values

        def place(base: Any, step: Any, line: int, part: int) -> Any:
            offset = builder.add(builder.mul(step, step.type(line)), step.type(part * width))
            return builder.inttoptr(builder.add(base, offset), vector.as_pointer())

        columns = [
            [builder.load(place(source, column_bytes, line, part), align=1) for part in range(channels_in)]
            for line in range(width)
        ]
        if form == RGB:
            columns = [_split(builder, parts, width) for parts in columns]
        planes = [_transpose(builder, [column[plane] for column in columns]) for plane in range(channels_in)]
        for line in range(width):
            row = [plane[line] for plane in planes]
            if channels_out == 3:
                row = _join(builder, row * (3 // channels_in), width)
            for part, value in enumerate(row):
                builder.store(value, place(target, row_bytes, line, part), align=1)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing_context, source, column_bytes, target, row_bytes):  # type: ignore[no-untyped-def]
        return types.void(types.int64, types.int64, types.int64, types.int64), generate

    return tile


_gray_16, _gray_8 = _make_tile(16, GRAY), _make_tile(8, GRAY)
_rgb_from_gray_16, _rgb_from_gray_8 = _make_tile(16, RGB_FROM_GRAY), _make_tile(8, RGB_FROM_GRAY)
_rgb_16, _rgb_8 = _make_tile(16, RGB), _make_tile(8, RGB)


@njit(cache=True, nogil=True)
def gray_to_gray(columns: np.ndarray, size: int, out: np.ndarray) -> None:
    """Turn a gray page, uint8 [n*P*P] column after column, into patches, uint8 [n*P*P] row after row; P is ``size``.

    Both arrays are contiguous; ``columns`` holds whole patches and ``out`` has room for them, which is not checked.
    """
    area = size * size
    if size % 8:
        _any_size(columns, size, 1, out, 1)
        return
    source, target = columns.ctypes.data, out.ctypes.data
    step = 8 if size % 16 else 16
    for _ in range(len(columns) // area):
        for x in range(0, size, step):
            for y in range(0, size, step):
                if step == 16:
                    _gray_16(source + x * size + y, size, target + y * size + x, size)
                else:
                    _gray_8(source + x * size + y, size, target + y * size + x, size)
        source += area
        target += area


@njit(cache=True, nogil=True)
def gray_to_rgb(columns: np.ndarray, size: int, out: np.ndarray) -> None:
    """As :func:`gray_to_gray`, each pixel three times: ``out`` is uint8 [n*P*P*3]."""
    area = size * size
    if size % 8:
        _any_size(columns, size, 1, out, 3)
        return
    source, target = columns.ctypes.data, out.ctypes.data
    step = 8 if size % 16 else 16
    for _ in range(len(columns) // area):
        for x in range(0, size, step):
            for y in range(0, size, step):
                if step == 16:
                    _rgb_from_gray_16(source + x * size + y, size, target + 3 * (y * size + x), 3 * size)
                else:
                    _rgb_from_gray_8(source + x * size + y, size, target + 3 * (y * size + x), 3 * size)
        source += area
        target += 3 * area


@njit(cache=True, nogil=True)
def rgb_to_rgb(columns: np.ndarray, size: int, out: np.ndarray) -> None:
    """As :func:`gray_to_gray` with three channels: ``columns`` and ``out`` are uint8 [n*P*P*3]."""
    area = 3 * size * size
    if size % 8:
        _any_size(columns, size, 3, out, 3)
        return
    source, target = columns.ctypes.data, out.ctypes.data
    step = 8 if size % 16 else 16
    for _ in range(len(columns) // area):
        for x in range(0, size, step):
            for y in range(0, size, step):
                if step == 16:
                    _rgb_16(source + 3 * (x * size + y), 3 * size, target + 3 * (y * size + x), 3 * size)
                else:
                    _rgb_8(source + 3 * (x * size + y), 3 * size, target + 3 * (y * size + x), 3 * size)
        source += area
        target += area


@njit(cache=True, nogil=True)
def _any_size(columns: np.ndarray, size: int, channels: int, out: np.ndarray, channels_out: int) -> None:
    area = size * size
    for patch in range(len(columns) // (area * channels)):
        for y in range(size):
            for x in range(size):
                source = (patch * area + x * size + y) * channels
                target = (patch * area + y * size + x) * channels_out
                for channel in range(channels_out):
                    out[target + channel] = columns[source + (channel if channels == 3 else 0)]


def patches_from_columns(columns: np.ndarray, size: int, out: np.ndarray) -> None:
    """Write the patches of a page into ``out``, uint8 [n, P, P, C], contiguous.

    ``columns`` is uint8 [n*P, P] (gray) or [n*P, P, 3]; gray goes into one or three channels, color into three only.
    """
    channels = columns.size // (len(columns) * size)
    shape = len(columns) // size, size, size, out.shape[-1]
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous or out.shape[-1] not in (channels, 3):
        raise ValueError(f"no room for columns {columns.shape} in patches {out.shape} of {out.dtype}")
    kernel = rgb_to_rgb if channels == 3 else (gray_to_gray if out.shape[-1] == 1 else gray_to_rgb)
    kernel(np.ascontiguousarray(columns).reshape(-1), size, out.reshape(-1))
