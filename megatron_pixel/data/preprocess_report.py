"""The table at the end of preprocessing."""

from megatron_pixel.data.manifest import manifest_path
from megatron_pixel.data.preprocessing import Report


def report_table(report: Report, prefix: str) -> str:
    """What was read, left out and written, a line each."""
    manifest, total = report.manifest, report.total
    source = manifest.source
    rows = [("documents read", f"{source['documents']:,} ({report.text_bytes / 1e6:,.1f} MB of text)")]
    rows += [(f"skipped: {reason}", f"{count:,}") for reason, count in sorted(report.skipped.items())]
    if not report.skipped:
        rows.append(("skipped", "0"))
    rows.append(("held out", f"{manifest.splits['heldout'].documents:,} documents"))
    if manifest.kind != "text":
        rows.append(("pages", f"{total.sequences:,}"))
        rows.append(("patches", f"{total.patches:,}"))
    if manifest.kind in ("pixels", "pairs"):
        rows.append(("bytes a page", f"{report.page_bytes / max(total.sequences, 1):,.0f}"))
    if manifest.kind in ("text", "pairs"):
        rows.append(("tokens", f"{total.tokens:,}"))
    if report.found.input_bytes:
        rows.append(("found done", f"{report.found.documents:,} documents, by an earlier run"))
    seconds = max(report.seconds, 1e-9)
    rows.append(("seconds", f"{report.seconds:.1f}"))
    documents = source["documents"] - report.found.documents
    text_bytes = report.text_bytes - report.found.text_bytes
    rates = [f"{documents / seconds:,.0f} documents/s", f"{text_bytes / seconds / 1e6:.2f} MB/s"]
    if manifest.kind != "text":
        rates.append(f"{(total.sequences - report.found.pages) / seconds:,.0f} pages/s")
    rows.append(("rate", ", ".join(rates)))
    rows.append(("written", manifest_path(prefix)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
