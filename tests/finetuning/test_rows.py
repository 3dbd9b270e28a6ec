"""Rows of examples, what is cut, and the position that the label comes from."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig, RenderingConfig
from megatron_pixel.data.rows import Kind, padding_row, pair_row, pixel_row, stack_rows, text_row
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.finetuning.attacks import ATTACKS, attacked
from megatron_pixel.finetuning.batches import RowBuilder, TrainingOrder, cut_step, evaluation_batches
from megatron_pixel.finetuning.classifier import Score, build_classifier
from megatron_pixel.finetuning.encoding import Caps, PageEncoder, TextEncoder, shared_room
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.finetuning.outputs import outputs_of
from megatron_pixel.finetuning.sets import EncodedSet, SetMaker
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.parallel.mesh import Mesh
from tests.finetuning.layouts import strip

SMALL = ModelConfig(
    layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=40, seq_length=24, patch_size=4, num_channels=3
)


def rows_of(modality: str, tokens: list[int], patches: list[int], length: int, layout: str = "compact"):
    """Rows with these numbers of tokens and patches, and one of padding alone."""
    rng = np.random.default_rng(0)
    rows = []
    for count, pages in zip(tokens, patches, strict=True):
        ids = rng.integers(3, 40, count)
        image = rng.integers(0, 256, (pages, 4, 4, 3), dtype=np.uint8)
        if modality == "text":
            rows.append(text_row(ids, np.zeros(1, np.int64), length, ("x", 0)))
        elif modality == "pixel":
            rows.append(pixel_row(image, length, ("x", 0)))
        else:
            rows.append(pair_row(image, ids, length, ("x", 0), layout=layout, patch_cap=8))  # type: ignore[arg-type]
    rows.append(padding_row(length, 0 if modality == "text" else 48))
    return stack_rows({"text": Kind.TEXT, "pixel": Kind.PIXEL, "pair": Kind.PAIR}[modality], rows)


@pytest.mark.parametrize(
    ("modality", "layout", "expected"),
    [
        ("text", "compact", [4, 15]),
        ("pixel", "compact", [5, 7]),
        ("pair", "compact", [10, 23]),
        ("pair", "released", [12, 23]),
    ],
)
def test_the_label_comes_from_the_last_real_position(modality: str, layout: str, expected: list[int]) -> None:
    """Also in a row without padding, where the released code takes the last patch of a pair."""
    length = 16 if modality == "text" else 24
    batch = to_tensors(rows_of(modality, [5, 16], [6, 8], length, layout), [Score(modality, 3)])
    found = batch.inputs.targets[0][:2].tolist()
    assert found == [expected[0], length + expected[1]]
    assert batch.counts == {"score": 2}


@pytest.mark.parametrize("modality", ["text", "pixel", "pair"])
def test_padding_and_company_change_no_output(modality: str, one_process: Mesh) -> None:
    score = Score(modality, 3)
    network = build_classifier(SMALL, score, seed=1).eval()
    together = to_tensors(rows_of(modality, [5, 12], [6, 8], 24), [score])
    with torch.no_grad():
        both = network(together.inputs)[0]
        for number, (tokens, patches) in enumerate(((5, 6), (12, 8))):
            length = {"text": tokens, "pixel": patches, "pair": tokens + patches}[modality]
            shorter = rows_of(modality, [5, 12], [6, 8], 24)
            cut = type(shorter)(
                shorter.kind,
                shorter.tokens[number : number + 1, :length],
                None if shorter.patches is None else shorter.patches[number : number + 1, :length],
                shorter.modality[number : number + 1, :length],
                shorter.position_ids[number : number + 1, :length],
                shorter.segment_ids[number : number + 1, :length],
                shorter.rows[number : number + 1],
            )
            alone = network(to_tensors(cut, [score]).inputs)[0]
            assert torch.allclose(alone[0], both[number], atol=1e-6)


def test_dropout_acts_in_training_alone(one_process: Mesh) -> None:
    score = Score("text", 3, dropout=0.5)
    network = build_classifier(SMALL, score, seed=1, dropout=0.5)
    batch = to_tensors(rows_of("text", [5, 12], [0, 0], 16), [score])
    with torch.no_grad():
        one, other = network(batch.inputs)[0], network(batch.inputs)[0]
        assert not torch.equal(one, other)
        network.eval()
        assert torch.equal(network(batch.inputs)[0], network(batch.inputs)[0])


def test_room_of_two_texts() -> None:
    assert shared_room([3, 4], 10) == [3, 4]
    assert shared_room([30], 10) == [10]
    assert shared_room([3, 40], 10) == [3, 7]
    assert shared_room([40, 3], 10) == [7, 3]
    assert shared_room([40, 40], 11) == [5, 6]


def test_tokens_of_pairs(place: Path) -> None:
    tokenizer = Tokenizer(place / "tokenizer.model")
    a, b = tokenizer.encode("a fine day").tolist(), tokenizer.encode("the good song").tolist()
    native, cut = TextEncoder(tokenizer, 100, "native").encode(("a fine day", "the good song"))
    assert (native.tolist(), cut) == ([1, *a, 2, 1, *b, 2], False)
    released, cut = TextEncoder(tokenizer, 100, "released").encode(("a fine day", "the good song"))
    assert (released.tolist(), cut) == ([1, *a, 1, *b], False)
    short, cut = TextEncoder(tokenizer, 9, "native").encode(("a fine day", "the good song"))
    assert (len(short), cut) == (9, True)


def test_pairs_have_a_black_patch_between_and_at_the_end() -> None:
    page, cut = PageEncoder(RenderingConfig(seq_length=64)).page(("one", "two words"))
    dark = np.flatnonzero((page.patches(1) == 0).all(axis=(1, 2, 3)))
    assert len(dark) == 2
    assert dark[1] == page.num_patches - 1
    assert not cut
    _, cut = PageEncoder(RenderingConfig(seq_length=8)).page(("one " * 40, "two words"))
    assert cut


def test_sets_are_found_by_content_and_count_what_is_cut(tmp_path: Path, place: Path) -> None:
    tokenizer = Tokenizer(place / "tokenizer.model")
    pages, text = PageEncoder(RenderingConfig(seq_length=16)), TextEncoder(tokenizer, 16, "native")
    maker = SetMaker(pages, text, {"caps": [16, 16]}, tmp_path)
    texts = ["a fine day", "the good song " * 30, ""]
    examples = Examples("train", texts, None, np.zeros(3, np.int64), ["a", "b", "c"])
    encoded, found = maker.make(examples)
    assert not found
    assert (encoded.cut, encoded.empty, len(encoded)) == (1, 1, 3)
    again, found = maker.make(examples)
    assert found
    for i, name in enumerate(texts):
        page, _ = pages.page((name,))
        shown = np.zeros((16, 16, 16, 3), np.uint8)
        again.patches_of(i, 3, shown)
        assert np.array_equal(shown[: page.num_patches], page.patches(3))
        assert np.array_equal(again.tokens_of(i), encoded.tokens_of(i))
    other = Examples("train", ["a fine day!", *texts[1:]], None, None, ["a", "b", "c"])
    assert maker.key(other) != maker.key(examples)
    assert SetMaker(pages, text, {"caps": [16, 8]}, tmp_path).key(examples) != maker.key(examples)
    assert not list(tmp_path.glob("writing-*"))


def test_one_makes_a_set_and_the_others_wait(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: the lock is of whoever has opened the file. The first one that makes it fails."""
    text = TextEncoder(Tokenizer(place / "tokenizer.model"), 16, "native")
    examples = Examples("train", ["a fine day"] * 3, None, None, ["a", "b", "c"])
    write, at_once, most, written = SetMaker._write, 0, 0, []

    def slowly(self: SetMaker, examples: Examples, folder: Path) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        written.append(folder)
        time.sleep(0.2)
        at_once -= 1
        if len(written) == 1:
            raise UserError("the disk is full")
        write(self, examples, folder)

    monkeypatch.setattr(SetMaker, "_write", slowly)
    together = threading.Barrier(4)

    def make() -> EncodedSet | None:
        together.wait()
        try:
            return SetMaker(None, text, {}, tmp_path).make(examples)[0]
        except UserError:
            return None

    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(make) for _ in range(4)]]
    assert (most, len(written)) == (1, 2), "one at a time, and one after the one that failed"
    whole = [encoded.tokens.tolist() for encoded in found if encoded is not None]
    assert len(whole) == 3
    assert whole[0] == whole[1] == whole[2]
    assert [path.name for path in tmp_path.iterdir()] == [SetMaker(None, text, {}, tmp_path).key(examples)]


@pytest.mark.parametrize("mode", ["rgb", "gray", "binary"])
def test_released_images(mode: str, tmp_path: Path) -> None:
    buffers = []
    for count in (3, 30):
        buffer = io.BytesIO()
        Image.fromarray(strip(count)).save(buffer, "PNG")
        buffers.append(buffer.getvalue())
    pages = PageEncoder(RenderingConfig(seq_length=8, mode=mode))  # type: ignore[arg-type]
    examples = Examples("train", ["", ""], None, None, ["a", "b"], buffers, [3, 30])
    encoded, _ = SetMaker(pages, None, {}, None).make(examples)
    assert encoded.num_patches.tolist() == [4, 8], "the end patch counts; a long image is cut at its right edge"
    assert encoded.cut == 1
    channels = 3 if mode == "rgb" else 1
    shown = np.zeros((8, 16, 16, channels), np.uint8)
    encoded.patches_of(0, channels, shown)
    picture = Image.fromarray(strip(3)[:, :64])
    pixels = np.asarray(picture.convert("RGB" if mode == "rgb" else "L")).reshape(16, 4, 16, channels).swapaxes(0, 1)
    if mode == "binary":
        pixels = np.where(pixels < 128, 0, 255)
    assert np.array_equal(shown[:4], pixels)
    with pytest.raises(UserError, match=r"b: an image of 640 x 16 pixels does not hold 51 patches"):
        list(pages.rendered(buffers, [3, 50], ["a", "b"]))


def test_every_epoch_reads_every_example_once() -> None:
    order = TrainingOrder(10, 4, seed=1)
    seen = np.concatenate([order.step(i) for i in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])
    assert np.array_equal(order.step(0), TrainingOrder(10, 4, seed=1).step(0))
    assert not np.array_equal(order.step(0), TrainingOrder(10, 4, seed=2).step(0))


def test_ranks_share_a_step_and_an_evaluation() -> None:
    lengths = np.array([5, 1, 9, 3, 7, 2, 8, 4])
    parts = [list(cut_step(np.arange(8), lengths, 2, rank, 2)) for rank in range(2)]
    assert sorted(np.concatenate([np.concatenate(part) for part in parts]).tolist()) == list(range(8))
    assert parts[0][0].tolist() == [1, 5], "the shortest stand together"
    batches = [evaluation_batches(lengths[:7], 2, rank, 2) for rank in range(2)]
    assert len(batches[0]) == len(batches[1])
    everything = np.concatenate([np.concatenate(part) for part in batches])
    assert sorted(everything[everything >= 0].tolist()) == list(range(7))


def test_outputs_stand_in_the_order_of_the_examples(place: Path, one_process: Mesh) -> None:
    tokenizer = Tokenizer(place / "tokenizer.model")
    maker = SetMaker(None, TextEncoder(tokenizer, 16, "native"), {}, None)
    encoded, _ = maker.make(Examples("x", ["a fine day", "song", "the good song"], None, None, ["a", "b", "c"]))
    model = ModelConfig(layers=1, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=300, seq_length=16)
    score = Score("text", 2)
    network = build_classifier(model, score, seed=1)
    rows = RowBuilder(encoded, "text", 16, 3)
    found = outputs_of(network, rows, score, 2, 2, one_process)
    network.eval()
    with torch.no_grad():
        for i in range(3):
            alone = network(to_tensors(rows.batch(np.array([i])), [score]).inputs)[0]
            assert np.allclose(found[i], alone.numpy()[0], atol=1e-6)


def test_caps() -> None:
    assert Caps.of("pair", 101) == Caps(50, 51)
    assert Caps.of("text", 9) == Caps(0, 9)
    with pytest.raises(UserError, match=r"input\.length: 10"):
        Caps.of("pair", 10)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_repeatable_and_grow_with_their_rate(name: str) -> None:
    text = "The quick brown fox jumps over the lazy dog again and again, happily ever after. " * 5
    few, many = attacked(text, name, 0.1), attacked(text, name, 0.4)
    assert few == attacked(text, name, 0.1) != attacked(text, name, 0.1, seed=1)
    visible = [c for c in few if c not in "\u200b\u200c\u200d\u2060"]
    if name == "invisible":
        assert "".join(visible) == text
        assert len(few) < len(many)
    else:
        changed = [sum(a != b for a, b in zip(other, text, strict=False)) for other in (few, many)]
        assert 0 < changed[0] < changed[1]
    if name == "swap":
        assert sorted(few) == sorted(text)
