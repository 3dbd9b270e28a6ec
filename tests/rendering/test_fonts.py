"""The font chain: order, sources, errors."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering import fonts
from megatron_pixel.rendering.fonts import FontFile, find_fonts
from megatron_pixel.rendering.renderer import Renderer


def test_chain_of_the_packages() -> None:
    names = [font.path.name for font in find_fonts([], "default")]
    assert names[0] == "NotoSans[wdth,wght].ttf"
    order = [
        next(i for i, name in enumerate(names) if name.startswith(stem))
        for stem in (
            "NotoNaskhArabic",
            "NotoSansHebrew",
            "NotoSansDevanagari",
            "NotoSansThai",
            "NotoSansCJK",
            "NotoSansSymbols-",
            "NotoSansSymbols2",
            "NotoSansYi",
            "NotoSansVai",
        )
    ]
    assert order == sorted(order)
    assert any("ColorEmoji" in name for name in names)
    assert not any("Italic" in name for name in names)


def test_explicit_fonts_are_all_there_is() -> None:
    path = str(find_fonts([], "default")[3].path)
    assert [str(font.path) for font in find_fonts([path], "released")] == [path]


def test_missing_font_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere\.ttf is not a file.*pip install"):
        find_fonts(["/nowhere.ttf"], "default")

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fonts, "files", absent)
    monkeypatch.setattr(fonts, "_SYSTEM_FOLDERS", ())
    with pytest.raises(UserError, match="apt-get install fonts-noto-core"):
        find_fonts([], "default")


def test_a_file_that_is_no_font(tmp_path: Path) -> None:
    path = tmp_path / "font.ttf"
    path.write_bytes(b"not a font" * 99)
    with pytest.raises(UserError, match=r"font\.ttf: is no font file"):
        Renderer(RenderingConfig(fonts=[str(path)]))


def test_system_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        *("NotoSans-Regular.ttf", "NotoSans-Bold.ttf", "NotoSansThaiUI-Regular.ttf", "NotoSansThai-Regular.ttf"),
        *("NotoSansCJK-Regular.ttc", "NotoColorEmoji.ttf", "NotoSerif-Regular.ttf", "NotoSansArabic-Regular.ttf"),
    ):
        (tmp_path / name).touch()
    monkeypatch.setattr(fonts, "_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(fonts, "_SYSTEM_FOLDERS", (str(tmp_path),))
    assert [font.path.name for font in find_fonts([], "default")] == [
        *("NotoSans-Regular.ttf", "NotoSansArabic-Regular.ttf", "NotoSansThai-Regular.ttf"),
        *("NotoSansCJK-Regular.ttc", "NotoColorEmoji.ttf"),
    ]
    (tmp_path / "NotoSans-Regular.ttf").unlink()
    with pytest.raises(UserError, match="no Noto fonts"):
        find_fonts([], "default")


def test_hash_is_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "font.ttf"
    path.write_bytes(b"abc")
    assert FontFile(path).sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_monospaced_font_comes_before_the_chain() -> None:
    chain = find_fonts([], "default", mono=True)
    assert chain[0].path.name == "RobotoMono[wght].ttf"
    assert chain[1:] == find_fonts([], "default")
    mono, noto = str(chain[0].path), str(chain[1].path)
    assert [str(font.path) for font in find_fonts([mono, noto], "default", mono=True)] == [mono, noto]
    with pytest.raises(UserError, match=r"NotoSans\[wdth,wght\]\.ttf is not monospaced"):
        find_fonts([noto, mono], "default", mono=True)


def test_without_a_monospaced_font(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = fonts._fonts_of
    monkeypatch.setattr(fonts, "_fonts_of", lambda package: [] if "mono" in package else find(package))
    monkeypatch.setattr(fonts, "_SYSTEM_FOLDERS", (str(tmp_path),))
    with pytest.raises(UserError, match="pip install fontpkg-roboto-mono"):
        find_fonts([], "default", mono=True)
    (tmp_path / "NotoSansMono-Regular.ttf").touch()
    assert find_fonts([], "default", mono=True)[0].path == tmp_path / "NotoSansMono-Regular.ttf"
