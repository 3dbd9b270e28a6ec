"""Looking for damage in a dataset: every hash, every index entry, every page."""

import bisect
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.indexed import Index, read_index
from megatron_pixel.data.manifest import CONTENTS, Manifest, content_prefix, manifest_digest, manifest_path
from megatron_pixel.data.packing import plans_of
from megatron_pixel.data.verification_packing import PlanReport, examine_plan
from megatron_pixel.data.verification_tasks import MOST_PROBLEMS, Finding, Task, run_here, run_in_processes, task_bytes

_CHUNK = 1 << 20
_SEQUENCES_OF_TASK = 4096


@dataclass
class Report:
    """What an examination found."""

    findings: list[Finding] = field(default_factory=list)
    """By file, in the order of the manifest; of damaged pages of a file the first 20."""
    damaged_pages: Counter[str] = field(default_factory=Counter)
    """Damaged pages or pieces by file."""
    bytes: int = 0
    """Read, files that were both hashed and decoded counted twice; without plans."""
    pages: int = 0
    """Pages and pieces of text that were decoded."""
    seconds: float = 0.0
    plans: list[PlanReport] = field(default_factory=list)
    """The packing plans beside it; what is wrong with them stands in ``findings``, too."""

    def problems(self) -> list[str]:
        """The findings as sentences; more damaged pages than are listed are counted."""
        listed = [finding.message for finding in self.findings]
        for name, count in self.damaged_pages.items():
            if count > MOST_PROBLEMS:
                last = max(
                    i for i, finding in enumerate(self.findings) if finding.page is not None and finding.name == name
                )
                path = self.findings[last].message.partition(": ")[0]
                listed[last] += f"\n{path}: {count - MOST_PROBLEMS:,} more damaged pages"
        return "\n".join(listed).split("\n") if listed else []


def verify(prefix: str, full: bool = True) -> list[str]:
    """Look for damage in the dataset at ``prefix`` and return what was found, a sentence each; nothing means sound."""
    return examine(prefix, full).problems()


def examine(
    prefix: str, full: bool = True, workers: int = 1, progress: Callable[[Report, int], None] | None = None
) -> Report:
    """Look for damage in the dataset at ``prefix``.

    Always: the manifest itself, sizes of all files, every entry of the indexes, counts. ``full`` also hashes every
    file, decodes every page and counts its patches, decodes every piece of text, and looks for token ids outside the
    vocabulary. A damaged file does not keep the others from being examined. Packing plans are examined likewise.

    ``progress`` is called a few times a second with the report so far and the bytes that there are to read. Raises
    UserError where there is no dataset or a manifest that cannot be read at all.
    """
    started = time.monotonic()
    manifest = Manifest.read(prefix, check_files=False)
    report = Report()
    report.findings += _manifest_findings(prefix)
    sound = _check_sizes(prefix, manifest, report)
    tasks: list[Task] = []
    if full:
        tasks += [Task("hash", name) for name in sorted(sound, key=lambda name: -manifest.all_files()[name].bytes)]
    for split, content in _contents(manifest):
        bin_name, idx_name = f"{split}.{content}.bin", f"{split}.{content}.idx"
        if idx_name not in sound:
            continue
        index, found = _check_index(prefix, manifest, split, content)
        report.findings += found
        if index is None or not full:
            continue
        if bin_name in sound and not found:
            tasks += _sequence_tasks(manifest, split, content, len(index.sizes))
        elif bin_name not in sound:
            report.findings += _lost_sequences(prefix, bin_name, index)
    total = sum(task_bytes(manifest, task) for task in tasks)

    def show() -> None:
        report.seconds = time.monotonic() - started
        if progress:
            progress(report, total)

    def count(read: int, pages: int) -> None:
        report.bytes += read
        report.pages += pages
        show()

    run = run_here(prefix, manifest, tasks, count)
    if workers > 1:
        run = run_in_processes(prefix, manifest, tasks, workers, count)
    patches: Counter[str] = Counter()
    decoded: Counter[str] = Counter()
    for outcome in run:
        name = outcome.task.name
        room = max(MOST_PROBLEMS - report.damaged_pages[name], 0)
        pages = [finding for finding in outcome.findings if finding.page is not None]
        others = [finding for finding in outcome.findings if finding.page is None and finding not in report.findings]
        report.findings += others + pages[:room]
        if outcome.damaged:
            report.damaged_pages[name] += outcome.damaged
        patches[name] += outcome.patches
        decoded[name] += outcome.decoded
    for split, counts in manifest.splits.items():
        name = f"{split}.pages.bin"
        if decoded[name] == counts.sequences and patches[name] != counts.patches:
            message = f"{prefix}.{name} holds {patches[name]:,} patches, its manifest says {counts.patches:,}"
            report.findings.append(Finding(name, message))
    report.plans = [examine_plan(prefix, plan, manifest, full) for plan in plans_of(prefix)]
    report.findings += [finding for plan in report.plans for finding in plan.findings]
    order = ["manifest.json", *manifest.all_files(), *(name for plan in report.plans for name in plan.sizes)]
    report.findings.sort(key=lambda finding: (order.index(finding.name), -1 if finding.page is None else finding.page))
    show()
    return report


def _manifest_findings(prefix: str) -> Iterator[Finding]:
    with open(manifest_path(prefix), encoding="utf-8") as file:
        content = json.load(file)
    if "digest" in content and content["digest"] != manifest_digest(content):
        yield Finding("manifest.json", f"{manifest_path(prefix)}: the content differs from what was written (sha256)")


def _contents(manifest: Manifest) -> list[tuple[str, str]]:
    return [(split, content) for split in manifest.splits for content in CONTENTS[manifest.kind]]


def _check_sizes(prefix: str, manifest: Manifest, report: Report) -> set[str]:
    """The files that are there with as many bytes as they should have."""
    sound = set()
    for name, entry in manifest.all_files().items():
        path = f"{prefix}.{name}"
        try:
            size = os.stat(path).st_size
        except OSError as error:
            report.findings.append(Finding(name, f"{path} cannot be opened: {error.strerror}"))
            continue
        if size == entry.bytes:
            sound.add(name)
        else:
            what = "bytes too few" if size < entry.bytes else "bytes too many"
            message = f"{path} has {size:,} bytes, {abs(size - entry.bytes):,} {what}"
            report.findings.append(Finding(name, message))
    return sound


def _check_index(prefix: str, manifest: Manifest, split: str, content: str) -> tuple[Index | None, list[Finding]]:
    """The index if it can be opened, and what is wrong with it."""
    name = f"{split}.{content}.idx"
    try:
        index = read_index(content_prefix(prefix, split, content))
    except UserError as error:
        return None, [Finding(name, str(error))]
    path = f"{prefix}.{name}"
    counts = manifest.splits[split]
    found = [(len(index.sizes), "sequences", counts.sequences), (index.num_documents, "documents", counts.documents)]
    if content == "tokens":
        found.append((index.data_bytes // index.dtype.itemsize, "tokens", counts.tokens))
    wrong = [
        Finding(name, f"{path} holds {number:,} {what}, its manifest says {expected:,}")
        for number, what, expected in found
        if number != expected
    ]
    expected = 0
    for start in range(0, len(index.sizes), _CHUNK):
        sizes = index.sizes[start : start + _CHUNK].astype(np.int64) * index.dtype.itemsize
        ends = expected + np.cumsum(sizes)
        where = np.flatnonzero((index.pointers[start : start + _CHUNK] != ends - sizes) | (sizes < 0))
        if len(where):
            message = f"{path}: sequence {start + int(where[0])} is not where the lengths before it put it"
            return index, [*wrong, Finding(name, message)]
        expected = int(ends[-1])
    for start in range(0, len(index.document_bounds), _CHUNK):
        bounds = index.document_bounds[start : start + _CHUNK + 1]
        if (start == 0 and bounds[0] != 0) or (np.diff(bounds) < 0).any():
            return index, [*wrong, Finding(name, f"{path}: the document bounds do not rise from 0")]
    covered = sum(codec.sequences.get(split, 0) for codec in manifest.codecs)
    if content == "pages" and covered != counts.sequences:
        message = f"{manifest_path(prefix)}: codecs for {covered:,} of {counts.sequences:,} pages of {split}"
        wrong.append(Finding("manifest.json", message))
    return index, wrong


def _lost_sequences(prefix: str, bin_name: str, index: Index) -> Iterator[Finding]:
    """Which sequences a file that is too short has lost."""
    path = f"{prefix}.{bin_name}"
    size = os.stat(path).st_size if os.path.exists(path) else 0
    if not 0 < size < index.data_bytes:
        return
    width = index.dtype.itemsize
    sequences = range(len(index.sizes))
    first = bisect.bisect_right(sequences, size, key=lambda i: int(index.pointers[i]) + int(index.sizes[i]) * width)
    unit = "page" if bin_name.endswith("pages.bin") else "sequence"
    lost = f"{unit} {first} is cut off, and all after it are missing: {len(sequences) - first:,} of {len(sequences):,}"
    yield Finding(bin_name, f"{path}: {lost}")


def _sequence_tasks(manifest: Manifest, split: str, content: str, count: int) -> Iterator[Task]:
    if content == "tokens" and not manifest.tokenizer:
        return
    kind: Any = content  # the same names
    for first in range(0, count, _SEQUENCES_OF_TASK):
        stop = min(first + _SEQUENCES_OF_TASK, count)
        yield Task(kind, f"{split}.{content}.bin", split, content, first, stop)
