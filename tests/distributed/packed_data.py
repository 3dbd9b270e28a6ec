"""Small datasets of every kind with packing plans, and the settings of a run that mixes them."""

import json
import random
from pathlib import Path

from megatron_pixel.config.schema import PairConfig, RenderingConfig
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.packing_datasets import pack_dataset
from megatron_pixel.data.preprocess_documents import Recipe
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.tokenizer import train_tokenizer
from megatron_pixel.rendering.fonts import find_fonts

LENGTH = 32
"""Positions of a row; pages and pairs have 3 to 16."""
VOCABULARY = 280
WORDS = "four score and seven years ago our fathers brought forth on this continent a new nation".split()


def make_packed(folder: Path) -> list[str]:
    """Datasets of pages, strings, pairs and text in ``folder``, packed; words for a run that reads all four."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(60)]
    source, tokenizer = folder / "documents.jsonl", folder / "tokenizer.model"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(texts, tokenizer, vocab_size=VOCABULARY, max_sentences=1000)
    font = str(find_fonts([], "default")[0].path)
    rendering = RenderingConfig(fonts=[font], patch_size=8, mode="gray", seq_length=16)
    for kind in ("pixels", "strings", "pairs", "text"):
        recipe = Recipe(
            kind,  # type: ignore[arg-type]
            0.2,
            None if kind == "text" else rendering,
            str(tokenizer) if kind in ("text", "pairs") else None,
            PairConfig(patches=16, tokens=16) if kind == "pairs" else None,
        )
        preprocess(DocumentReader([str(source)]), recipe, str(folder / kind))
        if kind != "text":
            pack_dataset(str(folder / kind), LENGTH)
    return [
        f"--data.text={folder / 'text'}",
        "--data.pixels",
        f"2:{folder / 'pixels'}",
        f"1:{folder / 'strings'}",
        f"--data.pairs={folder / 'pairs'}",
        *("--data.synthetic=false", "--data.packing=documents", "--pair.patches=16", "--pair.tokens=16"),
        *(f"--model.seq_length={LENGTH}", "--model.patch_size=8", "--model.num_channels=1"),
        f"--model.vocab_size={VOCABULARY}",
        f"--data.rendering.fonts={font}",
    ]
