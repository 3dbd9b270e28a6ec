"""The font chain: which font files the renderer draws with, in which order, and where they are found.

Three sources are tried: the files that the user names; the pinned packages ``fontpkg-noto-sans`` and ``dynamic-font``
(carriers of font files, never imported); the folders where Debian's Noto packages put theirs. A chain comes from one
source as a whole, so that a half-installed one shows as an error and not as a different look.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import freetype

from megatron_pixel.config.errors import UserError

# Order of choice. It matters for characters that several fonts have: the first one with the character is taken. Names
# are those of the files up to the first hyphen or bracket; fonts not listed follow in alphabetical order.
_ORDER = (
    *("NotoSans", "NotoNaskhArabic", "NotoSansArabic", "NotoSansHebrew", "NotoSansDevanagari", "NotoSansBengali"),
    *("NotoSansGurmukhi", "NotoSansGujarati", "NotoSansOriya", "NotoSansTamil", "NotoSansTelugu", "NotoSansKannada"),
    *("NotoSansMalayalam", "NotoSansSinhala", "NotoSansThai", "NotoSansLao", "NotoSansKhmer", "NotoSansMyanmar"),
    *("NotoSansGeorgian", "NotoSansArmenian", "NotoSansEthiopic", "NotoSansCJK", "NotoSansCanadianAboriginal"),
    *(
        "NotoSansMath",
        "NotoSansSymbols",
        "NotoSansSymbols2",
        "NotoSansTibetan",
        "NotoSerifTibetan",
        "NotoSansMongolian",
    ),
    *("NotoSansYi", "NotoSansCherokee"),
)
_FIRST = "NotoSans"

# Fonts whose marks stack higher than the strip are drawn lower, not narrower: the largest multiple of 0.05 at which
# sentences of the script lose nothing at the top of 16-pixel patches.
_HEIGHTS = {
    "NotoNaskhArabic": 0.95,
    "NotoSansThai": 0.85,
    "NotoSansLao": 0.85,
    "NotoSansKhmer": 0.9,
    "NotoSansMyanmar": 0.85,
    "NotoSansTibetan": 0.8,
    "NotoSerifTibetan": 0.8,
    "NotoSansSinhala": 0.9,
    "NotoSansCanadianAboriginal": 0.9,
}
_LARGEST_CHAIN = 250

_PACKAGES = ("fontpkg-noto-sans", "dynamic-font")
_MONO_PACKAGE = "fontpkg-roboto-mono"
_SYSTEM_FOLDERS = ("/usr/share/fonts/truetype/noto", "/usr/share/fonts/opentype/noto")
_HOW_TO_GET_FONTS = (
    "install the packages (pip install fontpkg-noto-sans==2.15 dynamic-font==1.2.4), or on Debian and Ubuntu "
    "apt-get install fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji, or name font files in rendering.fonts"
)
_HOW_TO_GET_MONO = (
    "install the package (pip install fontpkg-roboto-mono==3.1), or on Debian and Ubuntu apt-get install "
    "fonts-noto-mono, or name font files in rendering.fonts, the monospaced one first"
)


@dataclass(frozen=True)
class FontFile:
    """One face of a font file."""

    path: Path
    index: int = 0
    """Number of the face in a collection (.ttc); 0 is the Japanese one in Noto Sans CJK."""
    height: float = 1.0
    """Vertical factor that the font is drawn with."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole file, in hexadecimal digits."""
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def find_fonts(explicit: list[str], preset: str, mono: bool = False) -> list[FontFile]:
    """The chain of a renderer, first choice first; with ``mono``, a monospaced font is put before the others.

    ``explicit`` names font files; empty, the chain is looked for. Raises :class:`UserError` where a named file is
    missing, where no complete chain is installed, for ``mono`` where the first font named is not monospaced, and for
    the preset ``released`` without a named font: its font, GoNotoCurrent.ttf, is in no package.
    """
    if explicit:
        chain = [_named_font(name, preset) for name in explicit]
        if mono and not _is_monospaced(chain[0]):
            raise UserError(
                f"rendering.strategy: mono sets text in the first font, and {chain[0].path} is not monospaced; put one "
                f"that is before it in rendering.fonts"
            )
        return chain
    if preset == "released":
        raise UserError(
            "rendering.preset: released draws with GoNotoCurrent.ttf, which no package carries: download it from the "
            "releases of the Go Noto Universal project and name it: rendering.fonts: [/path/to/GoNotoCurrent.ttf]"
        )
    chain = _from_packages() or _from_system()
    if not chain:
        raise UserError(f"no Noto fonts found: {_HOW_TO_GET_FONTS}")
    return [_find_mono(), *chain] if mono else chain


def _find_mono() -> FontFile:
    listed = _fonts_of(_MONO_PACKAGE) or [Path(folder) / "NotoSansMono-Regular.ttf" for folder in _SYSTEM_FOLDERS]
    found = [path for path in listed if path.is_file()]
    if not found:
        raise UserError(f"rendering.strategy: mono needs a monospaced font: {_HOW_TO_GET_MONO}")
    return _font(found[0])


def _is_monospaced(font: FontFile) -> bool:
    try:
        face = freetype.Face(str(font.path), font.index)
    except freetype.FT_Exception:
        return True  # what is wrong with the file is said where it is opened to be drawn with
    advances = set()
    for letter in "iWm.0":
        face.load_char(letter, freetype.FT_LOAD_NO_SCALE)
        advances.add(face.glyph.advance.x)
    return len(advances) == 1


def _named_font(name: str, preset: str) -> FontFile:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"rendering.fonts: {name} is not a file; {_HOW_TO_GET_FONTS}")
    return _font(path) if preset != "released" else FontFile(path)


def _font(path: Path) -> FontFile:
    return FontFile(path, height=_HEIGHTS.get(_family(path), 1.0))


def _from_packages() -> list[FontFile]:
    found: dict[str, Path] = {}
    for package in _PACKAGES:
        listed = _fonts_of(package)
        if not listed:
            return []
        found |= {path.name: path for path in listed}
    return _sort([path for path in found.values() if path.is_file()])


def _fonts_of(package: str) -> list[Path]:
    """Upright font files of a package; none where it is not installed."""
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        return []
    upright = (entry for entry in listed if entry.suffix in (".ttf", ".ttc") and "Italic" not in entry.name)
    return [Path(str(entry.locate())) for entry in upright]


def _from_system() -> list[FontFile]:
    found = [path for folder in _SYSTEM_FOLDERS for path in Path(folder).glob("Noto*")]
    wanted = [
        path
        for path in found
        if path.suffix in (".ttf", ".ttc")
        and path.stem.endswith(("-Regular", "ColorEmoji"))
        and path.name.startswith(("NotoSans", "NotoNaskhArabic", "NotoSerifTibetan", "NotoColorEmoji"))
        and not _family(path).endswith(("UI", "Display", "Mono", "Supplement"))
    ]
    return _sort(wanted)


def _sort(paths: list[Path]) -> list[FontFile]:
    """The chain in its order, or nothing where its first font is missing."""
    rank = {name: i for i, name in enumerate(_ORDER)}
    ordered = sorted(paths, key=lambda path: (rank.get(_family(path), len(rank)), path.name))
    if not ordered or _family(ordered[0]) != _FIRST:
        return []
    return [_font(path) for path in ordered[:_LARGEST_CHAIN]]


def _family(path: Path) -> str:
    return path.stem.split("-")[0].split("[")[0]
