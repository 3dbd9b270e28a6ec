"""What the examination of a dataset reports; that damage is found is tested with data_tools/verify.py too."""

from collections.abc import Callable
from pathlib import Path

from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.verification import Report, examine
from megatron_pixel.data.verification_tasks import MOST_PROBLEMS

MakeDataset = Callable[..., str]


def flip(path: str, *offsets: int) -> None:
    content = bytearray(Path(path).read_bytes())
    for offset in offsets:
        content[offset] ^= 1
    Path(path).write_bytes(content)


def test_every_damaged_page_is_counted_and_the_first_are_named(make_dataset: MakeDataset, monkeypatch) -> None:
    prefix = make_dataset("pixels")
    pages = IndexedReader(prefix + ".train.pages")
    flip(prefix + ".train.pages.bin", *(int(pages.pointers[i]) + 19 for i in (5, 1, 3)))
    report = examine(prefix)
    assert report.damaged_pages == {"train.pages.bin": 3}
    assert [finding.page for finding in report.findings] == [None, 1, 3, 5]
    assert (report.pages, report.bytes > 0, report.seconds > 0) == (7, True, True)
    for module in ("verification", "verification_tasks"):
        monkeypatch.setattr(f"megatron_pixel.data.{module}.MOST_PROBLEMS", 2)
    problems = examine(prefix).problems()
    assert len(problems) == 4
    assert "page 3 is damaged" in problems[2]
    assert problems[3] == f"{prefix}.train.pages.bin: 1 more damaged pages"
    assert MOST_PROBLEMS == 20


def test_all_damage_is_reported_at_once(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pairs")
    flip(prefix + ".train.pages.bin", 30)
    flip(prefix + ".codec.columns", 50)
    flip(prefix + ".train.tokens.idx", 40)
    Path(prefix + ".train.tokens.bin").write_bytes(Path(prefix + ".train.tokens.bin").read_bytes()[:-1])
    Path(prefix + ".heldout.tokens.idx").unlink()
    manifest = Path(prefix + ".manifest.json")
    manifest.write_text(manifest.read_text().replace('"heldout_fraction": 0.0', '"heldout_fraction": 0.1'))
    report = examine(prefix)
    assert {finding.name for finding in report.findings} == {
        "manifest.json",
        "train.pages.bin",
        "codec.columns",
        "train.tokens.idx",
        "train.tokens.bin",
        "heldout.tokens.idx",
    }
    quick = {finding.name for finding in examine(prefix, full=False).findings}
    assert quick == {"manifest.json", "train.tokens.idx", "train.tokens.bin", "heldout.tokens.idx"}


def test_progress_ends_with_all_bytes(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    seen: list[tuple[int, int]] = []

    def watch(report: Report, total: int) -> None:
        seen.append((report.bytes, total))

    report = examine(prefix, progress=watch)
    assert report.findings == []
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == report.bytes


def test_files_too_long_and_pages_that_are_cut_off(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    path = Path(prefix + ".train.pages.bin")
    content = path.read_bytes()
    path.write_bytes(content + b"xy")
    (finding,) = examine(prefix).findings
    assert finding.message == f"{path} has {len(content) + 2:,} bytes, 2 bytes too many"
    path.write_bytes(content)
    fourth = int(IndexedReader(prefix + ".train.pages").pointers[4])
    for size, first in ((fourth, 4), (fourth + 1, 4), (1, 0)):
        path.write_bytes(content[:size])
        *_, finding = examine(prefix).findings
        lost = f"page {first} is cut off, and all after it are missing: {7 - first} of 7"
        assert finding.message == f"{path}: {lost}"
