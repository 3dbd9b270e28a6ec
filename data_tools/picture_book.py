"""Draw the picture book of the renderer: scripts, emoji, mixed directions, controls, pairs, modes and patch sizes.

python data_tools/picture_book.py --output docs/pictures
python data_tools/picture_book.py --output /tmp/book --only emoji pair
python data_tools/picture_book.py --output /tmp/book --rendering.patch_size 32
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.command_line import add_dataclass_arguments, from_arguments
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.preprocess_arguments import parse_with_sections

# Article 1 of the Universal Declaration of Human Rights.
ARTICLE_1 = {
    "English": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act towards one another in a spirit of brotherhood.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Swahili": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa. Wote wamejaliwa akili na dhamiri, hivyo yapasa "
    "watendeane kindugu.",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve "
    "birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "Vietnamese": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con người đều được "
    "tạo hoá ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình bằng hữu.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι "
    "με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "Bulgarian": "Всички хора се раждат свободни и равни по достойнство и права. Те са надарени с разум и съвест и "
    "следва да се отнасят помежду си в дух на братство.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью "
    "и должны поступать в отношении друг друга в духе братства.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل بعضهم بعضًا "
    "بروح الإخاء.",
    "Urdu": "تمام انسان آزاد اور حقوق و عزت کے اعتبار سے برابر پیدا ہوئے ہیں۔ انہیں ضمیر اور عقل ودیعت ہوئی ہے۔ اس لئے "
    "انہیں ایک دوسرے کے ساتھ بھائی چارے کا سلوک کرنا چاہیئے۔",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और "
    "अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、"
    "理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 "
    "부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
}

MIXED = "Reading needs no vocabulary: été, мир, سلام, नमस्ते, 世界 👋🏽🌍"


@dataclass(frozen=True)
class Sample:
    """A text, or two of a pair, under its caption; ``changes`` are made to the rendering settings."""

    caption: str
    text: str | tuple[str, str]
    changes: Mapping[str, Any] = field(default_factory=dict)
    show_patches: bool = False
    """Whether every second patch is shaded, so that one sees where they begin."""


@dataclass(frozen=True)
class Picture:
    """One sheet of the book."""

    title: str
    samples: Sequence[Sample]
    patches_per_row: int = 40
    scale: int = 2


def languages(title: str, *names: str) -> Picture:
    """A sheet of article 1."""
    return Picture(title, [Sample(name, ARTICLE_1[name]) for name in names])


STRATEGY_MIX = "Ünïcödé, мир, سلام عالم, שלום, नमस्ते, ที่, 世界，你好 👋🏽 (1,024)."
SHADE = (218, 230, 250)

BOOK = {
    "latin": languages("Latin script", "English", "German", "French", "Spanish"),
    "latin-more": languages("Latin script, continued", "Swahili", "Turkish", "Vietnamese"),
    "greek-cyrillic": languages("Greek and Cyrillic scripts", "Greek", "Bulgarian", "Russian"),
    # Rows as long as the pages: a right-to-left page begins at its right end.
    "arabic": replace(languages("Arabic script", "Arabic", "Urdu"), patches_per_row=54),
    "hindi-thai": languages("Devanagari and Thai scripts", "Hindi", "Thai"),
    "cjk": languages("Chinese, Japanese, Korean", "Chinese", "Japanese", "Korean"),
    "emoji": Picture(
        "Emoji",
        [
            Sample("Faces, hearts, hands", "😀 😂 🥰 🤔 😭 🙃 ❤️ 💔 ❤️‍🔥 👍 👎 🙏 👏 ✌️"),
            Sample("Skin tones", "👍🏻 👍🏼 👍🏽 👍🏾 👍🏿 🧑🏽‍💻 👩🏿‍🚀 🤝🏼 👩🏻‍🤝‍👨🏾"),
            Sample("Joined by U+200D", "👩‍👩‍👧 👨‍👩‍👧‍👦 🧑‍🚒 🐻‍❄️ 🏳️‍🌈 🏴‍☠️ 👁️‍🗨️ 🧑‍🦽‍➡️"),
            Sample("Flags: pairs of regional indicators, and tags", "🇫🇷 🇯🇵 🇰🇪 🇧🇷 🇺🇳 🏴󠁧󠁢󠁷󠁬󠁳󠁿 🏴󠁧󠁢󠁳󠁣󠁴󠁿"),
            Sample("Keycaps", "1️⃣ 9️⃣ #️⃣ 🔟"),
            Sample("As text (U+FE0E) and as emoji (U+FE0F)", "☎︎ ☎️ ☀︎ ☀️ ✂︎ ✂️ ♥︎ ♥️ ↔︎ ↔️ © ©️"),
            Sample("Among words", "ship it 🚀, then sleep 😴💤 and eat 🍕🍣!"),
        ],
    ),
    "kaomoji": Picture(
        "Kaomoji",
        [
            Sample("Western", "¯\\_(ツ)_/¯  ( ͡° ͜ʖ ͡°)  ʕ•ᴥ•ʔ  ಠ_ಠ  (✿◠‿◠)  (•_•) ( •_•)>⌐■-■ (⌐■_■)"),
            Sample("Tables", "(╯°□°)╯︵ ┻━┻   ┬─┬ノ( º _ ºノ)   (ノಠ益ಠ)ノ彡┻━┻"),
            Sample("Japanese", "(＾▽＾) ヽ(´▽`)/ (´；ω；`) m(_ _)m (｡♥‿♥｡) ٩(◕‿◕｡)۶ (づ｡◕‿‿◕｡)づ ☆*:.｡.o(≧▽≦)o.｡.:*☆"),
        ],
    ),
    "bidi": Picture(
        "Left to right and right to left on one line",
        [
            Sample("Arabic in English", "The title is مفتاح معايير الويب! in Arabic."),
            Sample("Hebrew in English, with a number and brackets", "He paid 1,250.50 ₪ for שלום (עולם [2024]) today"),
            Sample("English in Arabic", "تصدر Python 3.13 (نسخة ثابتة) في أكتوبر، وتدعم UTF-8."),
            Sample("English in Hebrew", "הגרסה Linux 6.1-rc2 יצאה ב־12:30 (שעון UTC)."),
            Sample(
                "The isolates U+2068 and U+2069 keep names apart",
                "\u2068עמותה א\u2069 - 3 reviews, \u2068שלום\u2069 - 5",
            ),
            Sample("The override U+202E turns letters", "plain \u202eoverridden\u202c plain"),
        ],
    ),
    "marks": Picture(
        "Combining marks and ligatures",
        [
            Sample(
                "Accents: one code point, then letter and mark",
                "é e\u0301  ñ n\u0303  ệ e\u0323\u0302  ǭ o\u0328\u0304",
            ),
            Sample("Capitals with two accents", "ẤỀỔỮẶỆ TRUYỀN THỐNG"),
            Sample("Arabic: lam-alef and vowel signs", "لا لله السَّلامُ عَلَيْكُمْ مُحَمَّدٌ"),
            Sample("Devanagari: conjuncts, reph, matras", "क्ष त्र ज्ञ र्क कि की कु कृ श्री द्ध स्त्री हिन्दी"),
            Sample("Thai: tone over vowel", "ที่ นี้ ปู่ น้ำ ผู้ใหญ่ เก๊ก"),
            Sample("Hebrew points", "בְּרֵאשִׁית בָּרָא אֱלֹהִים"),
            Sample("A mark with nothing to stand on", "a \u0301b \u0e31 \u093f \u064b"),
            Sample(
                "Stacks higher than the strip",
                "Z\u0351\u036b\u0343a\u0316\u0317\u0318l\u0300\u0301\u0302\u0303g\u0489o",
            ),
        ],
    ),
    "controls": Picture(
        "Line ends, tabs, controls and what is invisible",
        [
            Sample("Line feed, carriage return, both, U+2028, U+2029", "a\nb\rc\r\nd\u2028e\u2029f"),
            Sample("Tab, form feed, no-break space, ideographic space", "a\tb\fc\u00a0d\u3000e"),
            Sample("Null, bell, escape, delete, U+0085, U+009B", "a\0b\x07c\x1b[31md\x7fe\x85f\x9bg"),
            Sample("Soft hyphen, U+200B, U+2060, U+FEFF, a tag", "a\u00adb\u200bc\u2060d\ufeffe\U000e0041f"),
            Sample("Lone surrogate, noncharacter, unassigned, private use", "a\ud800b\ufffec\u0378d\ue000e\ufffdf"),
        ],
    ),
    "pair": Picture(
        "A pair: a black patch between the texts, one at the end",
        [
            Sample("English", ("The cat sat on the mat.", "There is a cat on the mat.")),
            Sample("Arabic and English", ("القطة على السجادة.", "The cat is on the mat.")),
            Sample("Empty second text", ("Only one text.", "")),
        ],
    ),
    "modes": Picture(
        "Modes",
        [Sample(f"rendering.mode: {mode}", MIXED, {"mode": mode}) for mode in ("rgb", "gray", "binary")],
    ),
    "strategies": Picture(
        "Rendering strategies; every second patch is shaded",
        [
            Sample(f"rendering.strategy: {strategy}", text, {"strategy": strategy}, show_patches=True)
            for text in ("I must be growing small again, quite office-like!", STRATEGY_MIX)
            for strategy in ("continuous", "bigram", "word", "mono")
        ],
    ),
    "patch-sizes": Picture(
        "Patch sizes at the same 120 DPI",
        [
            Sample(f"rendering.patch_size: {size} (font size {size / 2:g})", MIXED, {"patch_size": size})
            for size in (16, 24, 32)
        ],
        patches_per_row=32,
        scale=1,
    ),
}


def draw(book: Mapping[str, Picture], settings: RenderingConfig, folder: Path) -> None:
    """Render the samples of every sheet and write it, saying so."""
    from megatron_pixel.drawing import Panel, page_sheet, save_png
    from megatron_pixel.rendering.renderer import Renderer

    renderers: dict[str, Renderer] = {}
    for name, picture in book.items():
        panels = []
        for sample in picture.samples:
            config = replace(settings, **sample.changes)
            if repr(config) not in renderers:
                renderers[repr(config)] = Renderer(config)
            renderer = renderers[repr(config)]
            if isinstance(sample.text, tuple):
                page = renderer.render_pair(*sample.text)
            else:
                page = renderer.render(sample.text)
            patches = page.patches(3)
            if sample.show_patches:
                shaded = patches[1:-1:2]
                shaded[(shaded == 255).all(axis=3)] = SHADE
            panels.append(Panel(patches, f"{sample.caption}: {page.num_patches} patches"))
        path = folder / f"{name}.png"
        save_png(page_sheet(panels, picture.title, "", picture.patches_per_row, picture.scale), path)
        print(f"{path}: {path.stat().st_size:,} bytes")


def main(words: Sequence[str]) -> None:
    """Parse, draw, say what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the pictures; made if need be")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"draw these: {', '.join(BOOK)}")
    add_dataclass_arguments(parser, RenderingConfig, "rendering")
    arguments = parse_with_sections(parser, words, {"rendering": RenderingConfig})
    settings = from_arguments(arguments, RenderingConfig, "rendering")

    book = BOOK
    if arguments.only:
        if unknown := sorted(set(arguments.only) - set(BOOK)):
            raise UserError(f"--only: no picture is called {unknown[0]}; the book has {', '.join(BOOK)}")
        book = {name: BOOK[name] for name in arguments.only}
    draw(book, settings, Path(arguments.output))


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
