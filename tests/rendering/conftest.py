"""Renderers are costly to build: one per setting and session."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.renderer import Renderer

SENTENCES = {
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "bg": "Всички хора се раждат свободни и равни по достойнство и права.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. ÄÖÜß",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "en": "All human beings are born free and equal in dignity and rights.",
    "es": "Todos los seres humanos nacen libres e iguales. ¿Ñandú? ¡Ávila!",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité. ÀÉÊÇŒ",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве.",
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์ ที่ ปู่ น้ำ",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İĞŞ",
    "ur": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng. ẾỄẶ",
    "zh": "人人生而自由,在尊严和权利上一律平等。",
    "ja": "すべての人間は、生まれながらにして自由であり、「平等」である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 존엄과 권리에 있어 동등하다.",
    "emoji": "😀 👨‍👩‍👧‍👦 🇩🇪 👍🏽 1️⃣ ❤️ ❤︎ 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "kaomoji": "ᓚᘏᗢ (╯°□°)╯︵ ┻━┻ ¯\\_(ツ)_/¯ ʕ•ᴥ•ʔ ಠ_ಠ",
    "mixed": "English שלום 123 (abc) مرحبا नमस्ते 😀 end.",
}


@lru_cache
def _renderer(settings: tuple[tuple[str, Any], ...]) -> Renderer:
    return Renderer(RenderingConfig(**{name: list(v) if isinstance(v, tuple) else v for name, v in settings}))


@pytest.fixture(scope="session")
def renderer() -> Callable[..., Renderer]:
    """Build (or reuse) a renderer: ``renderer(mode="gray")``."""

    def build(**settings: Any) -> Renderer:
        if settings.get("preset") == "released":
            settings.setdefault("fonts", (str(find_fonts([], "default")[0].path),))
        return _renderer(tuple(sorted(settings.items())))

    return build


@pytest.fixture(scope="session")
def sentences() -> dict[str, str]:
    """One sentence a script or language."""
    return SENTENCES
