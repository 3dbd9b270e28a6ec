"""HarfBuzz of the ``uharfbuzz`` wheel, called by address from compiled code.

One Python call per run of text costs more than shaping it, so the loop over runs is compiled and calls HarfBuzz's C
functions itself. Their addresses are run-time arguments (an int64 array), not constants: numba can then cache the
compiled loop on disk, and nothing compiles at start-up after the first time on a machine.
"""

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from megatron_pixel.config.errors import UserError

# Order of the addresses in `function_addresses`.
CLEAR, ADD_UTF32, SET_DIRECTION, SET_SCRIPT, SHAPE, GLYPH_INFOS, GLYPH_POSITIONS = range(7)
_ADDRESSED = (
    "hb_buffer_clear_contents",
    "hb_buffer_add_utf32",
    "hb_buffer_set_direction",
    "hb_buffer_set_script",
    "hb_shape",
    "hb_buffer_get_glyph_infos",
    "hb_buffer_get_glyph_positions",
)
LEFT_TO_RIGHT, RIGHT_TO_LEFT = 4, 5  # hb_direction_t
# Units of a pixel in which fonts are shaped, as in Pango: with less, rounding to units moves marks by a pixel.
PIXEL_BITS = 10
PIXEL = 1 << PIXEL_BITS
_MONOTONE_CHARACTERS = 1  # hb_buffer_cluster_level_t


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The HarfBuzz library inside the wheel, with the signatures of what Python calls."""
    import uharfbuzz._harfbuzz

    loaded = ctypes.CDLL(uharfbuzz._harfbuzz.__file__)
    pointer, integer, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
    for name, result, arguments in (
        ("hb_blob_create_from_file_or_fail", pointer, [ctypes.c_char_p]),
        ("hb_blob_destroy", None, [pointer]),
        ("hb_face_create", pointer, [pointer, unsigned]),
        ("hb_face_get_glyph_count", unsigned, [pointer]),
        ("hb_face_reference_table", pointer, [pointer, ctypes.c_uint32]),
        ("hb_blob_get_data", pointer, [pointer, pointer]),
        ("hb_blob_get_length", unsigned, [pointer]),
        ("hb_face_collect_unicodes", None, [pointer, pointer]),
        ("hb_ot_layout_get_glyphs_in_class", None, [pointer, integer, pointer]),
        ("hb_ot_layout_lookup_collect_glyphs", None, [pointer, unsigned, unsigned, *[pointer] * 4]),
        ("hb_script_get_horizontal_direction", integer, [unsigned]),
        ("hb_shape_plan_create", pointer, [pointer, pointer, pointer, unsigned, pointer]),
        ("hb_shape_plan_destroy", None, [pointer]),
        ("hb_ot_shape_plan_collect_lookups", None, [pointer, unsigned, pointer]),
        ("hb_set_create", pointer, []),
        ("hb_set_get_population", unsigned, [pointer]),
        ("hb_set_next_many", unsigned, [pointer, ctypes.c_uint32, pointer, unsigned]),
        ("hb_set_destroy", None, [pointer]),
        ("hb_face_destroy", None, [pointer]),
        ("hb_font_create", pointer, [pointer]),
        ("hb_font_get_nominal_glyphs", unsigned, [pointer, unsigned, pointer, unsigned, pointer, unsigned]),
        ("hb_font_get_glyph_h_advances", None, [pointer, unsigned, pointer, unsigned, pointer, unsigned]),
        ("hb_font_set_scale", None, [pointer, integer, integer]),
        ("hb_font_destroy", None, [pointer]),
        ("hb_buffer_create", pointer, []),
        ("hb_buffer_set_cluster_level", None, [pointer, integer]),
        ("hb_buffer_destroy", None, [pointer]),
        ("hb_version_string", ctypes.c_char_p, []),
    ):
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded


@lru_cache(maxsize=1)
def function_addresses() -> np.ndarray:
    """int64 [7]: addresses of the functions that compiled code calls, in the order of this module's constants."""
    values = [ctypes.cast(getattr(library(), name), ctypes.c_void_p).value for name in _ADDRESSED]
    return np.array(values, dtype=np.int64)


def version() -> str:
    """Version of HarfBuzz itself."""
    return library().hb_version_string().decode()


def script_tag(name: str) -> int:
    """``hb_script_t`` of an ISO 15924 tag such as ``Latn``."""
    return int.from_bytes(name.encode("ascii"), "big")


def native_direction(script: int) -> int | None:
    """The direction that a script (``hb_script_t``) is written in; None for either."""
    return library().hb_script_get_horizontal_direction(script) or None


class _SegmentProperties(ctypes.Structure):
    """hb_segment_properties_t."""

    _fields_ = (
        ("direction", ctypes.c_int),
        ("script", ctypes.c_uint32),
        ("language", ctypes.c_void_p),
        ("reserved1", ctypes.c_void_p),
        ("reserved2", ctypes.c_void_p),
    )


@contextmanager
def _glyph_sets(count: int) -> Iterator[list[int]]:
    """Addresses of so many empty hb_set_t."""
    sets = [library().hb_set_create() for _ in range(count)]
    yield sets
    for members in sets:
        library().hb_set_destroy(members)


def _members(members: int) -> np.ndarray:
    """uint32: what is in an hb_set_t, sorted."""
    found = np.empty(library().hb_set_get_population(members), dtype=np.uint32)
    library().hb_set_next_many(members, 0xFFFFFFFF, found.ctypes.data, len(found))
    return found


class ShapingFont:
    """An ``hb_font_t``, its em ``scale`` wide and high in units of 1/PIXEL; variable fonts are left at their default.

    Raises :class:`UserError` for a file that is no font.
    """

    def __init__(self, path: Path, index: int, scale: tuple[int, int]) -> None:
        hb = library()
        blob = hb.hb_blob_create_from_file_or_fail(os.fsencode(path))
        if not blob:
            raise UserError(f"{path}: cannot be read")
        self._face = hb.hb_face_create(blob, index)
        hb.hb_blob_destroy(blob)
        self.num_glyphs: int = hb.hb_face_get_glyph_count(self._face)
        if not self.num_glyphs:
            hb.hb_face_destroy(self._face)
            raise UserError(f"{path}: is no font file, or has no face number {index}")
        self.address: int = hb.hb_font_create(self._face)
        hb.hb_font_set_scale(self.address, *scale)
        weakref.finalize(self, hb.hb_font_destroy, self.address)
        weakref.finalize(self, hb.hb_face_destroy, self._face)

    def has_table(self, tag: str) -> bool:
        """Whether the font file has the table ``tag``, such as ``COLR``."""
        return len(self.table(tag)) > 0

    def table(self, tag: str) -> bytes:
        """The bytes of a table, none where the font lacks it."""
        hb = library()
        blob = hb.hb_face_reference_table(self._face, script_tag(tag))
        length = hb.hb_blob_get_length(blob)
        data = ctypes.string_at(hb.hb_blob_get_data(blob, None), length) if length else b""
        hb.hb_blob_destroy(blob)
        return data

    def codepoints(self) -> np.ndarray:
        """uint32: the characters that the font has glyphs for, sorted."""
        with _glyph_sets(1) as (members,):
            library().hb_face_collect_unicodes(self._face, members)
            return _members(members)

    def nominal_glyphs(self, codepoints: np.ndarray) -> np.ndarray:
        """uint32 [k]: the glyphs of characters (uint32 [k]) of the font before shaping."""
        glyphs = np.zeros(len(codepoints), dtype=np.uint32)
        codepoints = np.ascontiguousarray(codepoints)
        library().hb_font_get_nominal_glyphs(
            self.address, len(codepoints), codepoints.ctypes.data, 4, glyphs.ctypes.data, 4
        )
        return glyphs

    def glyphs_of_class(self, kind: int) -> np.ndarray:
        """uint32: the glyphs of a class of GDEF (1 base, 2 ligature, 3 mark), sorted."""
        with _glyph_sets(1) as (members,):
            library().hb_ot_layout_get_glyphs_in_class(self._face, kind, members)
            return _members(members)

    def lookups(self, script: int, direction: int) -> list[tuple[str, int]]:
        """Tables (GSUB, GPOS) and numbers of the lookups that shaping text of this script and direction applies."""
        hb = library()
        properties = _SegmentProperties(direction, script, None, None, None)
        plan = hb.hb_shape_plan_create(self._face, ctypes.addressof(properties), None, 0, None)
        found: list[tuple[str, int]] = []
        for table in ("GSUB", "GPOS"):
            with _glyph_sets(1) as (numbers,):
                hb.hb_ot_shape_plan_collect_lookups(plan, script_tag(table), numbers)
                found += [(table, number) for number in _members(numbers).tolist()]
        hb.hb_shape_plan_destroy(plan)
        return found

    def lookup_glyphs(self, table: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Glyphs (uint32, sorted) that a lookup reads at any place, that it may change, and that it may put there."""
        with _glyph_sets(4) as sets:
            library().hb_ot_layout_lookup_collect_glyphs(self._face, script_tag(table), number, *sets)
            before, changed, after, put = map(_members, sets)
        return np.unique(np.concatenate([before, changed, after])), changed, put

    def advances(self) -> np.ndarray:
        """int32 [glyphs]: horizontal advances in units of 1/PIXEL."""
        numbers = np.arange(self.num_glyphs, dtype=np.uint32)
        advances = np.empty(self.num_glyphs, dtype=np.int32)
        library().hb_font_get_glyph_h_advances(
            self.address, self.num_glyphs, numbers.ctypes.data, 4, advances.ctypes.data, 4
        )
        return advances


class ShapingBuffer:
    """An ``hb_buffer_t`` whose glyphs name the first character that they stand for, marks among them their own."""

    def __init__(self) -> None:
        hb = library()
        self.address: int = hb.hb_buffer_create()
        hb.hb_buffer_set_cluster_level(self.address, _MONOTONE_CHARACTERS)
        weakref.finalize(self, hb.hb_buffer_destroy, self.address)
