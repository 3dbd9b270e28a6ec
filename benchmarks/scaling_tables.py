"""The tables of predictions on docs/scaling.md."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.report_tables import Result, table


def scaling(result: Result) -> str:
    """For a page: a line for each layout, then what the most GPUs take of each."""
    parts = [start(result)]
    for name, found in result["recipes"].items():
        layouts = {layout: points for layout, points in found["layouts"].items() if points}
        counts = sorted({point["devices"] for points in layouts.values() for point in points})
        rows = []
        for layout, points in layouts.items():
            cells = {p["devices"]: f"{p['step_seconds']:.3g} s, {p['efficiency']:.0%}" for p in points}
            rows.append([layout, *(cells.get(count, "-") for count in counts)])
        short = table(["seconds a step, efficiency", *(f"{count:,} GPUs" for count in counts)], rows)
        last = every_point({layout: [points[-1]] for layout, points in layouts.items()})
        batch = f"{found['rows']:,} rows of {found['positions']:,} positions a step"
        parts.append(f"`{name}`, {batch}:\n\n{short}\n\nOn the most of them:\n\n{last}")
    return "\n\n".join(parts)


def all_of(result: Result) -> str:
    """For a terminal: every layout on every number of GPUs."""
    parts = [start(result)]
    for name, found in result["recipes"].items():
        batch = f"{found['rows']:,} rows of {found['positions']:,} positions a step"
        parts.append(f"{name}, {batch}:\n\n{aligned(every_point(found['layouts']))}")
    return "\n\n".join(parts)


def start(result: Result) -> str:
    """What the predictions start from."""
    text = (
        f"{result['gpu']}, {result['gpus_of_a_node']} a node, links of {result['link_gb_per_s']:g} GB/s, a network of "
    )
    text += f"{result['network_gb_per_s']:g} GB/s for each; computing: {result['computing']}"
    factors = ", ".join(f"{kind} rows {value:.2f}" for kind, value in result["measured_to_roofline"].items())
    return text + (f", measured / roofline: {factors}." if factors else ".")


def every_point(layouts: Mapping[str, Sequence[Result]]) -> str:
    """All that is told of each."""
    head = ["layout", "GPUs", "rows x micro-batches", "s a step", "million positions/s", "efficiency", "MFU"]
    head += ["GB in nodes", "GB between", "pipeline", "limit"]
    rows = [
        [
            layout,
            f"{point['devices']:,}",
            f"{point['micro_batch_rows']} x {point['micro_batches']}"
            + (", recomputed" if point["recomputed_layers"] else ""),
            f"{point['step_seconds']:.3g}",
            f"{point['positions_per_second'] / 1e6:.3g}",
            f"{point['efficiency']:.0%}",
            f"{point['mfu']:.0%}",
            f"{point['node_bytes'] / 1e9:,.1f}",
            f"{point['network_bytes'] / 1e9:,.1f}",
            f"{point['pipeline_share']:.0%}" if point["pipeline"] > 1 else "-",
            point["limit"],
        ]
        for layout, points in layouts.items()
        for point in points
    ]
    return table(head, rows)


def aligned(markdown: str) -> str:
    """A Markdown table for a terminal: columns of equal width."""
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    rows = [row for number, row in enumerate(rows) if number != 1]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        [
            row[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(row[1:-1], widths[1:-1], strict=True)),
            row[-1],
        ]
        for row in rows
    )
    return "\n".join("  ".join(line) for line in lines)


def scaling_published(result: Result) -> str:
    """Predictions over what was published, table by table."""
    groups = {
        **result["tables"],
        "**rows that the constants were fitted on**": result["fitted"],
        "**all other rows**": result["unseen"],
    }
    rows = [
        [
            name,
            f"{group['rows']}",
            f"{group['median_of_predicted_to_published']:.2f}",
            f"{group['least_predicted_to_published']:.2f} .. {group['most_predicted_to_published']:.2f}",
            f"{group['median_error']:.1%}",
            f"{group['nine_of_ten_error']:.1%}",
            f"{group['worst_error']:.1%}",
        ]
        for name, group in groups.items()
    ]
    head = ["predicted / published", "rows", "median", "range", "error: median", "9 of 10 within", "worst"]
    return table(head, rows)


TABLES: dict[str, Callable[[Result], str]] = {"scaling": scaling, "scaling_published": scaling_published}
