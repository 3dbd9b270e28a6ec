"""Looking for damage in packing plans, which lie beside a dataset but are no part of it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import hash_file
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.packing import ENDINGS, Content, OtherVersionError, PlanFacts, outdated, read_facts
from megatron_pixel.data.stores import fingerprint_of
from megatron_pixel.data.verification_tasks import Finding


@dataclass
class PlanReport:
    """What was found of one plan."""

    sizes: dict[str, int]
    """Its files: name after ``P.`` -> bytes."""
    outdated: str = ""
    """Why it is whole, and nevertheless of no use; it has no findings then."""
    findings: list[Finding] = field(default_factory=list)


def examine_plan(prefix: str, name: str, manifest: Manifest, full: bool) -> PlanReport:
    """Look for damage in the plan ``P.<name>``.

    Always: the digest of its JSON file, sizes, counts, and whether it was made for the dataset as it is. ``full`` also
    hashes its files. Whether strings are drawn as they were when they were measured, only a run can tell.
    """
    path_prefix = f"{prefix}.{name}"
    sizes = {f"{name}.{ending}": _size(f"{path_prefix}.{ending}") for ending in ("json", *ENDINGS)}
    report = PlanReport(sizes)
    split, _, length = name.partition(".packed")
    again = f"python data_tools/pack.py {prefix} --seq-length {length} makes it again"
    try:
        facts = read_facts(path_prefix)
    except OtherVersionError as error:
        report.outdated = f"{error}: {again}"
        return report
    except (UserError, FileNotFoundError) as error:
        report.findings.append(Finding(f"{name}.json", f"{error}; {again}"))
        return report
    counts = manifest.splits[split]
    now = Content(fingerprint_of(manifest, split), counts.sequences, facts.rendering)
    if why := outdated(facts, now):
        report.outdated = f"{path_prefix}.json {why}: {again}"
        return report
    report.findings += [
        Finding(f"{name}.{ending}", f"{path_prefix}.{ending}: {what}; {again}")
        for ending, what in _damage(path_prefix, facts, full)
    ]
    return report


def _damage(path_prefix: str, facts: PlanFacts, full: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with the files: ending and words."""
    for ending in ENDINGS:
        path = f"{path_prefix}.{ending}"
        if not os.path.exists(path):
            yield ending, "does not exist"
        elif full and hash_file(path) != facts.sha256[ending]:
            yield ending, "the content differs from what was written (sha256)"
    try:
        reader = IndexedReader(path_prefix)
    except UserError as error:
        yield "idx", f"cannot be opened: {error}"
        return
    found = (len(reader), reader.num_elements)
    if found != (facts.rows, facts.pages):
        yield "idx", f"holds {found[0]:,} rows of {found[1]:,} pages, its plan {facts.rows:,} of {facts.pages:,}"


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0
