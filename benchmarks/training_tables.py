"""The tables of training steps on docs/performance.md, of a CPU and of a GPU."""

from collections.abc import Callable, Iterator, Mapping

from benchmarks.report_tables import Result, counted, number, table

KINDS = {"text": "text rows", "pixel": "pixel rows", "pair": "pair rows", "mix": "DualGPT's mix 4:4:2"}
PEERS = {"hf": "Hugging Face", "hf_kept": "Hugging Face keeping memory", "megatron_core": "megatron-core"}


def training(result: Result) -> str:
    """For each precision: rates, ratios and memory; where the time goes; the head's share; variants."""
    parts = []
    for precision, figures in precisions(result):
        model = figures["model"]
        parts.append(
            f"**{precision}**, {figures['device']}: {figures['parameters'] / 1e6:,.0f} million parameters, "
            f"{model['layers']} layers of {model['hidden']:,}, micro-batches of "
            f"{counted(first(figures)['rows'], 'row')} of {model['seq_length']:,} positions; medians of "
            f"{counted(figures['rounds'], 'round')}."
        )
        parts += [rates(figures), split(figures)]
        parts += [text for text in (head(figures), variants(figures), left_out(figures)) if text]
    return "\n\n".join(parts)


def precisions(result: Result) -> Iterator[tuple[str, Result]]:
    """Figures by precision: the first stand at the top of a result, others below their names."""
    yield result["precision"], result
    for name in ("fp32", "bf16"):
        if name in result:
            yield name, result[name]


def first(figures: Result) -> Result:
    """Those of the first kind of rows that was measured."""
    found: Result = figures[next(kind for kind in KINDS if kind in figures)]
    return found


def rates(figures: Result) -> str:
    """A line for each kind of rows."""
    peers = [peer for peer in PEERS if any(f"ratio_to_{peer}" in figures[kind] for kind in KINDS if kind in figures)]
    titles = ["positions/s", "targets/s", "tokens/s", "patches/s", "TFLOP/s", "MFU", "of plain products"]
    rows = []
    for kind, title in KINDS.items():
        if kind not in figures:
            continue
        its = figures[kind]
        keys = ("positions_per_second", "targets_per_second", "tokens_per_second", "patches_per_second", "tflops")
        cells = [title, *(number(its[key]) for key in keys), share(its["mfu"]), share(its.get("share_of_ceiling"))]
        cells += [ratio(its, f"ratio_to_{peer}") for peer in peers]
        rows.append(cells)
    return table(["", *titles, *(f"**ours to {PEERS[peer]}**" for peer in peers)], rows)


def split(figures: Result) -> str:
    """Seconds of the parts of a step, ours and the peers', and what it does with memory."""
    rows = []
    for kind, title in KINDS.items():
        if kind in figures:
            sides = {"ours": figures[kind], **figures[kind].get("peers", {})}
            for name, its in sides.items():
                parts = [f"{value:.3g}" for value in its["split"].values()]
                memory = [number(its.get("page_faults")), number(its["peak_memory_gb"])]
                rows.append([f"{title}, {PEERS.get(name, name)}", f"{its['step_seconds']:.3g}", *parts, *memory])
    titles = ["all", "data", "forward", "backward", "optimizer", "page faults", "peak, GB"]
    return table(["seconds of a step", *titles], rows)


def head(figures: Result) -> str:
    """Pixel rows beside text rows without the vocabulary head."""
    found = figures.get("text_without_head_over_pixel")
    if found is None:
        return ""
    return (
        f"A text step takes {found['text_step_seconds']:.3g} s, of which the vocabulary head and its loss are "
        f"{found['head_seconds']:.3g} s, and a pixel step of as many positions {found['pixel_step_seconds']:.3g} s: "
        f"the rest of the text step takes {found['ratio']:.2f} times as long as the pixel step."
    )


def variants(figures: Result) -> str:
    """Our settings beside our defaults."""
    rows = []
    for kind, title in KINDS.items():
        for name, its in figures.get(kind, {}).get("variants", {}).items():
            cells = [f"`{name}`, {title}", number(its["positions_per_second"]), number(its["targets_per_second"])]
            cells += [number(its["tflops"]), share(its["mfu"]), number(its["peak_memory_gb"])]
            rows.append([*cells, number(its.get("page_faults")), f"{its['ratio_to_ours']:.3f}"])
    if not rows:
        return ""
    titles = ["positions/s", "targets/s", "TFLOP/s", "MFU", "peak, GB", "page faults", "positions/s to the default's"]
    return table(["settings", *titles], rows)


def left_out(figures: Result) -> str:
    """Variants that could not be measured, and why."""
    return "  \n".join(f"Left out: `{name}`: {why}." for name, why in figures["variants_left_out"].items())


def share(value: float | None) -> str:
    """In percent; a dash where it is not known."""
    return "-" if value is None else f"{value:.1%}"


def ratio(its: Result, key: str) -> str:
    """The median with the least and the most of the rounds."""
    if key not in its:
        return "-"
    least, most = its[f"{key}_range"]
    return f"**{its[key]:.2f}** ({least:.2f} to {most:.2f})"


def levers_gpu(result: Result) -> str:
    """What changes of a step give on a GPU, and what could not be measured."""
    rows = [
        [
            name,
            *(f"{row[key]:.3g}" for key in ("before_ms", "after_ms")),
            f"**{row['ratio']:.2f}**",
            share(row.get("relative_error")),
        ]
        for changes in result["parts"].values()
        for name, row in changes.items()
    ]
    absent = [f"Left out: `{part}`: {why}." for part, why in result["left_out"].items()]
    return (
        f"{result['device']}, bf16, micro-batches of {result['rows']:,} x {result['positions']:,} positions.\n\n"
        + table(["part of a step", "before, ms", "after, ms", "**ratio**", "error of a product"], rows)
        + "".join(f"\n\n{line}" for line in ["  \n".join(absent)] if line)
    )


TABLES: Mapping[str, Callable[[Result], str]] = {
    "training": training,
    "training_gpu": training,
    "levers_gpu": levers_gpu,
}
NO_GPU = "Not measured: no GPU was at hand. `python benchmarks/gpu.py` measures it in one call, with the "
ABSENT = {
    "training_gpu": f"{NO_GPU}tests that need a GPU.",
    "levers_gpu": f"{NO_GPU}training benchmark on a GPU.",
}
"""What a page says where a result is not there, if it is more than that."""
