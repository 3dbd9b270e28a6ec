"""Tables of ``report.py`` about the parts of a training step: the roofline of a layer, and what changes gave."""

from collections.abc import Callable, Mapping

from benchmarks.report_tables import Result, counted, number, table

PRECISIONS = ("fp32", "bf16")


def roofline(result: Result) -> str:
    """Every operation's work, what it takes at least, and what it takes."""
    parts = []
    for precision in PRECISIONS:
        if precision not in result:
            continue
        found = result[precision]
        rates = f"{number(found['gflops'])} GFLOP/s, {number(found['gigabytes_per_second'])} GB/s"
        rows = [
            [
                name,
                *(number(row[key]) for key in ("gflop", "megabytes", "intensity")),
                row["bound_by"],
                *(number(row[key]) for key in ("least_ms", "ms")),
                f"{row['reached']:.0%}",
            ]
            for name, row in found["operations"].items()
        ]
        head = [f"{precision}: {rates}", "GFLOP", "MB", "FLOP/byte", "bound by", "at least, ms", "ms", "reached"]
        parts.append(table(head, rows))
    return "\n\n".join([*parts, f"{counted(result['rows'], 'row')}, {counted(result['threads'], 'thread')}."])


def levers(result: Result) -> str:
    """Before and after each change."""
    rows = []
    for place in (*PRECISIONS, "optimizer"):
        for name, row in result.get(place, {}).items():
            memory = [number(row.get(f"{side}_megabytes")) for side in ("before", "after")]
            shown = [number(row["before_ms"]), number(row["after_ms"]), number(row["ratio"]), *memory]
            rows.append([f"{place}: {name}", *shown, "yes" if row["kept"] else "no"])
    head = ["part of a step", "before, ms", "after, ms", "**ratio**", "keeps before, MB", "keeps after, MB", "kept"]
    return table(head, rows)


def buckets(result: Result) -> str:
    """Step time and bytes by how gradients are reduced, each ZeRO stage beside its file."""
    rows = []
    for stage in (1, 2, 3):
        for name, row in result.get(f"zero{stage}", {}).items():
            least, most = row["ratio_range"]
            shown = [number(1e3 * row["step_seconds"]), f"**{row['ratio']:.2f}** ({least:.2f} to {most:.2f})"]
            shown += [number(row[key]) for key in ("messages", "sent_megabytes", "added_megabytes")]
            rows.append([f"ZeRO {stage}: {name}", *shown])
    model = result["model"]
    head = ["", "step, ms", "**file's time to it**", "messages", "sent, MB", "a step takes, MB"]
    return (
        f"{counted(result['processes'], 'process', 'processes')}, {result['device']}, {result['precision']}: "
        f"{result['parameters'] / 1e6:,.1f} million parameters, {model['layers']} layers of {model['hidden']:,}, "
        f"{counted(result['accumulation'], 'micro-batch', 'micro-batches')} of {counted(result['rows'], 'row')} of "
        f"{model['seq_length']:,} positions; medians of {counted(result['rounds'], 'round')}.\n\n{table(head, rows)}"
    )


TABLES: Mapping[str, Callable[[Result], str]] = {
    "roofline": roofline,
    "levers": levers,
    "buckets": buckets,
}
