"""merge.py on datasets that preprocess.py wrote."""

import numpy as np

from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.stores import PageStore


def test_two_halves_of_a_corpus(tool, corpus, font, tmp_path) -> None:
    """The pages of the joined halves are those of the corpus made in one piece; each half has its own codec."""
    lines = corpus.read_text().splitlines(keepends=True)
    settings = ["--rendering.fonts", font, "--rendering.seq_length", 32, "--heldout-fraction", 0.2]
    for name, part in (("a", lines[:13]), ("b", lines[13:]), ("one", lines)):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
        words = ["--input", tmp_path / f"{name}.jsonl", "--output-prefix", tmp_path / "out" / name, *settings]
        assert tool("preprocess", "pixels", *words).status == 0
    out = tmp_path / "out"
    done = tool("merge", out / "a", out / "b", "--output-prefix", out / "all")
    assert done.status == 0
    assert f"{out / 'all'}: 2 datasets joined" in done.out
    assert tool("verify", out / "all").status == 0
    joined, one = (Manifest.read(str(out / name)) for name in ("all", "one"))
    assert joined.source["documents"] == one.source["documents"] == 40
    for split in ("train", "heldout"):
        stores = PageStore(str(out / "all"), split), PageStore(str(out / "one"), split)
        assert len(stores[0]) == len(stores[1]) > 5
        assert joined.splits[split].patches == one.splits[split].patches
        for index in range(len(stores[0])):
            assert np.array_equal(stores[0].patches(index, 3), stores[1].patches(index, 3))
    assert [len({*codec.files}) for codec in joined.codecs] == [1, 1]


def test_what_is_refused(tool, corpus, font, tmp_path) -> None:
    for name, fraction in (("a", 0.2), ("b", 0.3)):
        words = ["--input", corpus, "--output-prefix", tmp_path / name, "--heldout-fraction", fraction]
        assert tool("preprocess", "strings", *words, "--rendering.fonts", font).status == 0
    done = tool("merge", tmp_path / "a", tmp_path / "b", "--output-prefix", tmp_path / "all")
    assert done.status == 2
    assert "its heldout_fraction is 0.3, the other's is 0.2" in done.err
    assert not list(tmp_path.glob("all*"))
    assert "--output-prefix" in tool("merge", "--help").out
