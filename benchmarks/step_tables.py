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


TABLES: Mapping[str, Callable[[Result], str]] = {"roofline": roofline, "levers": levers}
