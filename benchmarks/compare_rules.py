"""Which figures of a result are better high, which low, and which only say what was measured; by their names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

Direction = Literal["higher", "lower"]
Path = tuple[str, ...]
Leaf = bool | int | float | str | None

EXCEPTIONS: Mapping[str, Direction | None] = {
    # Assumed or given, not measured.
    "input_megabytes": None,
    "largest_tensor_mb": None,
    "checkpoint_gb": None,
    "memory_gib": None,
    "cores_of_a_cluster": None,
    "tokens_per_step": None,
    "peak_tflops": None,
    # Of a variant or a peer beside ours.
    "ratio_to_ours": None,
    # Names that tell no unit.
    "share_of_ceiling": "higher",
    "gpus_per_core": "higher",
    "characters_a_second": "higher",
    "loader_cpu_share": "lower",
    "cost_share": "lower",
    "bubble": "lower",
    "largest_cut_after": "lower",
    "cut_after": "lower",
    "slowest_in_times_of_plain_text": "lower",
    "patches_for_90_percent": None,
}
"""Figures whose names the patterns below would read wrongly, or not at all."""

PEERS = r"^(pango|pillow|hf|hugging_?face|transformers|megatron_core|theirs|peers?|ceiling)(_|$)"
"""Figures of other programs, measured beside ours: told, not judged. Ratios to them are ours."""

HIGHER = (
    r"(^|_)(per|a)_(\w+_)?(second|hour|day)s?(_|$)",
    r"^(rows|tokens|patches|positions|pages|documents|steps|examples|characters)/s$",
    r"(^|_)(t|g|p)?flops(_per_second)?$|(^|_)tflop_?s$",
    r"(^|_)mfu(_|$)",
    r"(^|_)ratio(s)?(_|$)",
    r"(^|_)(speed|speedup|scaling|efficiency|throughput)(_|$)",
    r"(^|_)(accuracy|f1|spearman|pearson|matthews|score)s?$",
    r"^(equal|same)_",
    r"(^|_)over_(?!largest)",
)
"""Rates, ratios of ours to another, and what is equal."""

LOWER = (
    r"(^|_)(seconds|milliseconds|microseconds|nanoseconds|minutes|hours)(_|$)",
    r"_m?s$",
    r"(^|_)(bytes|kilobytes|megabytes|gigabytes|terabytes|kib|mib|gib|kb|mb|gb|tb)(_|$)",
    r"(^|_)(rss|peak)(_|$)",
    r"(^|_)(broken|wrong|missing|repeated|other|lost|dropped|differ|differing)(_|$)",
    r"(^|_)(errors?|loss|losses|overhead)(_|$)",
    r"_pixels$|_places$",
)
"""Times, sizes and faults; a rate is told first, so ``bytes_per_second`` is none of them."""


def direction(path: Sequence[str]) -> Direction | None:
    """Whether a figure is better high or low; None for one that only describes what was measured.

    The last name that tells it decides: ``english.microseconds.blit`` is a time, as ``blit`` tells nothing.
    """
    if any(re.search(PEERS, name) for name in path):
        return None
    for name in reversed(path):
        if name in EXCEPTIONS:
            return EXCEPTIONS[name]
        for way, patterns in (("higher", HIGHER), ("lower", LOWER)):
            if any(re.search(pattern, name) for pattern in patterns):
                return "higher" if way == "higher" else "lower"
    return None


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Leaf]]:
    """Every figure with the names that lead to it; entries of a list are told by their number, from 1."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from leaves(entry, (*path, str(key)))
    elif isinstance(value, list):
        for number, entry in enumerate(value, start=1):
            yield from leaves(entry, (*path, str(number)))
    else:
        yield path, value
