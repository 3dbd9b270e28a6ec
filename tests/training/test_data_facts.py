import pytest

from megatron_pixel.config.schema import DataConfig
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.training import data_facts as module
from megatron_pixel.training.data_facts import data_facts

TOKENIZER = {"file": "a.model", "sha256": "0123456789abcdef", "vocab_size": 64, "bos_id": 1, "eos_id": 2}
RENDERING = {"dpi": 120, "fonts": [{"name": "Sans.ttf", "index": 0, "height": 16, "sha256": "fedcba9876543210"}]}
MANIFESTS = {
    "corpus/text": Manifest("text", tokenizer=TOKENIZER),
    "corpus/pages": Manifest("pixels", rendering=RENDERING),
    "corpus/pairs": Manifest("pairs", tokenizer=TOKENIZER, rendering=RENDERING),
}


def test_facts_by_place_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Manifest, "read", MANIFESTS.__getitem__)
    data = DataConfig(
        text=["corpus/text"], pixels=["2:corpus/pages", "corpus/pages"], pairs=["corpus/pairs"], mixture="1:1:0"
    )
    tokenizer, font = "a.model (sha256 0123456789ab)", "Sans.ttf (sha256 fedcba987654)"
    pages = {"dpi": 120, "fonts": [font]}
    assert data_facts(data) == {
        "data.text[0]": {"tokenizer": tokenizer},
        "data.pixels[0]": pages,
        "data.pixels[1]": pages,
    }, "kinds that are not in the mixture are not opened"
    data.mixture = "0:0:1"
    assert data_facts(data) == {"data.pairs[0]": {"tokenizer": tokenizer, **pages}}


def test_made_up_rows_have_none() -> None:
    assert data_facts(DataConfig(synthetic=True)) == {}
