"""The tables that ``report.py`` makes, one function for each result file of ``benchmarks/results``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
MIXES = {"english": "English", "multilingual": "12 languages", "many_languages_a_page": "12 languages on each page"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; numbers stand at the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None) -> str:
    """Three digits that count, or all digits before the point; a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def counted(count: int, noun: str, many: str | None = None) -> str:
    """``1 row``, ``2 rows``; ``many`` is a plural that takes more than an s."""
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def by_mix(result: Result, rows: Mapping[str, str]) -> str:
    """A column for each mix of text, a row for each figure (``rows``: label -> key)."""
    mixes = [mix for mix in MIXES if mix in result]
    return table(
        ["", *(MIXES[mix] for mix in mixes)],
        ([label, *(number(result[mix].get(key)) for mix in mixes)] for label, key in rows.items()),
    )


def rendering(result: Result) -> str:
    """Documents a second of ours and of Pango-Cairo."""
    return by_mix(
        result,
        {
            "patches of a document": "patches_per_document",
            "ours, documents/s": "documents_per_second",
            "ours, patches/s": "patches_per_second",
            "ours expanded to RGB patches, documents/s": "rgb_documents_per_second",
            "ours, words not met before, documents/s": "new_words_documents_per_second",
            "ours, caches cold, tables to be made, documents/s": "cold_documents_per_second",
            "Pango-Cairo, documents/s": "pango_documents_per_second",
            "**ours to Pango-Cairo**": "ratio_to_pango",
            "**expanded, to Pango-Cairo**": "rgb_ratio_to_pango",
            "words not met before, to Pango-Cairo": "new_words_ratio_to_pango",
            "caches cold, to Pango-Cairo warm": "cold_ratio_to_pango",
            "Pillow, documents/s": "pillow_documents_per_second",
        },
    )


def storage(result: Result) -> str:
    """Bytes a page and rates of every format, for every mix."""
    parts = []
    for mix, title in MIXES.items():
        if mix not in result:
            continue
        figures = result[mix]
        rows = [
            [
                name,
                number(form["bytes_per_page"]),
                f"{form['terabytes_of_400m_pages']:.2f}",
                number(form["encode_pages_per_second"]),
                f"{form['decode_patches_per_second'] / 1e6:.2f}",
            ]
            for name, form in figures["formats"].items()
        ]
        head = ["format", "bytes/page", "400M pages, TB", "encode, pages/s", "decode, million patches/s"]
        parts.append(
            f"{title}: pages of {number(figures['patches_per_page'])} patches and "
            f"{number(figures['characters_per_page'])} characters.\n\n{table(head, rows)}"
        )
    return "\n\n".join(parts)


def dataloader(result: Result) -> str:
    """Rows a second of stored pages and of pages drawn when they are read."""
    forms = {"stored": "stored pages", "on_the_fly": "rendered from stored text"}
    workers = list(result["stored"]["by_workers"])
    head = ["rows/s", *(_processes(count) for count in workers)]
    head += ["rows/s of a core", "H200-class GPUs fed by a core", "bytes/row"]
    rows = [
        [
            title,
            *(number(result[form]["by_workers"][count]["rows_per_second"]) for count in workers),
            number(result[form]["rows_per_core_second"]),
            number(result[form]["gpus_per_core"]),
            number(result[form]["bytes_a_row"]),
        ]
        for form, title in forms.items()
    ]
    eaten = number(result["gpu"]["rows_per_second"])
    shown = f"{table(head, rows)}\n\nA 350M model at half the peak of an H200-class GPU eats {eaten} rows a second."
    if "step" not in result:
        return shown
    step = result["step"]
    fed = " and ".join(f"{number(result[form]['steps_fed'])} times as many ({title})" for form, title in forms.items())
    gpus = " and ".join(f"{number(result[form]['gpus_fed'])}" for form in forms)
    return (
        f"{shown} A step of {step['layers']} layers of width {step['hidden']} takes "
        f"{number(step['rows_per_second'])} rows a second on the same machine: the loader builds {fed}, enough for "
        f"{gpus} H200-class GPUs."
    )


def startup(result: Result) -> str:
    """Seconds and memory until the first micro-batch, by size of the dataset."""
    titles = {
        "pixels": "ours, pages",
        "text": "ours, text",
        "step": "ours, `pretrain.py` to the end of its first step",
        "megatron": "megatron-core, text",
        "megatron_cached": "megatron-core, text, its indexes cached",
    }
    rows = [
        [
            f"{int(pages):,}",
            title,
            *(number(found[name].get(key)) for key in ("seconds", "import_seconds")),
            number(None if name == "step" else found[name]["open_seconds"] + found[name]["batch_seconds"]),
            *(number(_megabytes(found[name].get(key))) for key in ("rss_bytes", "anonymous_bytes")),
        ]
        for pages, found in result["sizes"].items()
        for name, title in titles.items()
        if name in found
    ]
    head = ["pages", "", "seconds", "importing", "opening and first batch", "RSS, MB", "of that its own, MB"]
    return table(head, rows)


def packing(result: Result) -> str:
    """Targets a second with a document a row, and packed; then how long plans take to make."""
    rows = [
        [
            f"{kind} rows",
            *(number(result[kind][f"{way}_targets_per_second"]) for way in ("alone", "packed")),
            f"**{result[kind]['ratio']:.2f}**",
            *(f"{1 - result[kind].get(f'{way}_fill', 1):.1%}" for way in ("alone", "packed")),
            number(result[kind].get("documents_a_row")),
            f"{result[kind]['row_seconds_ratio']:.2f}",
        ]
        for kind in ("pixel", "pair", "text")
        if kind in result
    ]
    head = ["", "targets/s, alone", "packed", "ratio", "padding, alone", "packed", "documents a row", "time of a row"]
    shown = table(head, rows)
    if not result.get("plans"):
        return shown
    plans = [
        [
            f"{found['pages']:,}",
            *(number(found[key]) for key in ("seconds", "pages_per_second")),
            number(found["own_bytes"] / 1e6),
            f"{1 - found['packed_fill']:.1%}",
            number(400e6 / found["pages_per_second"] / 60),
        ]
        for found in result["plans"].values()
    ]
    head = ["`pack.py`, 1 process: pages", "seconds", "pages/s", "own memory, MB", "padding", "400 million take, min"]
    return f"{shown}\n\n{table(head, plans)}"


def _megabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e6


def _processes(count: str) -> str:
    return {"0": "one thread", "1": "1 process"}.get(count, f"{count} processes")


def fidelity(result: Result) -> str:
    """Pixels that differ from Pango-Cairo's, by cause."""
    causes = ("squeezed", "overlap", "hinting")
    groups = {
        "printable ASCII, real documents": ["ascii"],
        "printable ASCII, every pair of characters": ["ascii_pairs"],
        "translations, composed (NFC)": [name for name in result if name.endswith("_NFC")],
        "translations, decomposed (NFD)": [name for name in result if name.endswith("_NFD")],
        "every letter": ["letters"],
        "every combining mark on seven letters": ["marks"],
    }

    def total(names: list[str], key: str) -> int:
        return sum(result[name][key] for name in names)

    return table(
        ["text", "documents", "equal", "pixels", *(f"{cause}: pixels" for cause in causes)],
        (
            [
                title,
                number(total(names, "documents")),
                number(total(names, "equal_documents")),
                number(total(names, "pixels")),
                *(number(total(names, f"{cause}_pixels")) for cause in causes),
            ]
            for title, names in groups.items()
        ),
    )


def fuzz(result: Result) -> str:
    """How many hostile texts, and what they cost."""
    return table(
        ["texts", "characters", "broken", "slowest, times plain text", "slowest, microseconds a character", "memory"],
        [
            [
                number(result["strings"]),
                number(result["characters"]),
                number(result["broken"]),
                number(result["slowest_in_times_of_plain_text"]),
                number(result["slowest_microseconds_a_character"]),
                f"{number(result['largest_growth_mib'])} MiB",
            ]
        ],
    )


def strategies(result: Result) -> str:
    """Distinct patches of every rendering strategy on one text."""
    return table(
        [
            "`rendering.strategy`",
            "patches",
            "characters a patch",
            "distinct patches",
            "seen once",
            "cover 90% of all",
            "documents/s",
            "bytes/page",
        ],
        (
            [
                f"`{name}`",
                number(figures["patches"]),
                number(figures["characters_per_patch"]),
                number(figures["distinct_patches"]),
                number(figures["seen_once"]),
                number(figures["patches_for_90_percent"]),
                number(figures["documents_per_second"]),
                number(figures["bytes_per_page"]),
            ]
            for name, figures in result["strategies"].items()
        ),
    )


def clipping(result: Result) -> str:
    """What of letters and marks is outside the strip, and what is cut in the end, by script."""
    names = ("Latn", "Grek", "Cyrl", "Arab", "Deva", "Thai", "Hani", "Hira", "Kana", "Hang")
    others = [figures for name, figures in result.items() if name not in (*names, "run")]
    sums = ("texts", "outside_before", "cut_after")
    together = {key: (sum if key in sums else max)(figures[key] for figures in others) for key in others[0]}
    rows = [(name, result[name]) for name in names if name in result] + [(f"{len(others)} other scripts", together)]
    head = ["script", "letters and piles of marks", "outside the strip", "rows above", "rows below", "cut in the end"]
    keys = ("texts", "outside_before", "rows_above_before", "rows_below_before", "cut_after")
    return table(head, ([name, *(number(figures[key]) for key in keys)] for name, figures in rows))


def preprocessing(result: Result) -> str:
    """Rates and memory of every form, memory against size of the input, and what 400 million documents take."""
    forms = table(
        ["", "seconds", "documents/s", "pages/s", "MB/s", "bytes/page", "RSS of the largest process, MB", "of all, MB"],
        (
            [
                name,
                number(run["seconds"]),
                number(run["documents_per_second"]),
                number(run["pages_per_second"]),
                number(run["megabytes_per_second"]),
                number(run["bytes_per_page"]),
                number(run["rss_largest_megabytes"]),
                number(run["rss_sum_megabytes"]),
            ]
            for name, run in result["runs"].items()
        ),
    )
    memory = table(
        ["input, MB", "RSS of the largest process, MB", "of all processes, MB"],
        (
            [number(each[key]) for key in ("input_megabytes", "rss_largest_megabytes", "rss_sum_megabytes")]
            for each in result["memory"]
        ),
    )
    future = result["extrapolation"]
    same = "equal" if result["equal_bytes"] else "NOT equal"
    outlook = [
        f"{number(future['documents'] / 1e6)} million documents at this rate: {number(future['core_hours'])} hours of",
        f"one core like these, {number(future['hours_on_64_cores'])} hours on 64,",
        f"{number(future['hours_on_the_cluster'])} hours on {number(future['cores_of_a_cluster'])};",
        f"{number(future['terabytes'])} TB.",
    ]
    return (
        f"{number(result['memory'][0]['input_megabytes'])} MB of text. The datasets of all forms are {same} byte for "
        f"byte.\n\n{forms}\n\nWith 2 workers:\n\n{memory}\n\n{' '.join(outlook)}"
    )


def preprocessing_kills(result: Result) -> str:
    """How often a run was killed, while it did what, and whether its bytes were the same in the end."""
    rows = [(f"killed while {name}", count) for name, count in result["killed_while"].items()]
    return table(
        ["", ""],
        (
            [title, number(count)]
            for title, count in [
                ("kills", result["kills"]),
                ("runs brought to their end", result["rounds"]),
                ("**ended with other bytes**", result["rounds_with_other_bytes"]),
                *rows,
            ]
        ),
    )


TABLES: dict[str, Callable[[Result], str]] = {
    "rendering": rendering,
    "storage": storage,
    "dataloader": dataloader,
    "dataloader_multilingual": dataloader,
    "startup": startup,
    "packing": packing,
    "preprocessing": preprocessing,
    "preprocessing_kills": preprocessing_kills,
    "fidelity": fidelity,
    "clipping": clipping,
    "fuzz": fuzz,
    "strategies": strategies,
}
