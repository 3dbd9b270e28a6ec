"""Whether pages can be rendered again: the fonts of this machine, and pages against the text that they show."""

import random
from collections.abc import Sequence

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingOverrides
from megatron_pixel.data.manifest import Manifest, manifest_path
from megatron_pixel.data.rendered import StringPages, effective_config, fingerprint_of
from megatron_pixel.data.split import SPLITS
from megatron_pixel.data.stores import PageStore, StringStore

_MOST_PROBLEMS = 20


def compare_fonts(manifest: Manifest, files: Sequence[str] = ()) -> list[str]:
    """In what a renderer here differs from the one that made a dataset, a sentence each; nothing if in nothing.

    ``files`` are the fonts to compare with, in order; without any, those that are found on this machine.
    """
    recorded = manifest.rendering or {}
    config = effective_config(recorded, RenderingOverrides())
    config.fonts = list(files)
    try:
        present = fingerprint_of(config)
    except UserError as error:
        return [f"the pages cannot be rendered here: {error}"]
    found = []
    here = {font["sha256"] for font in present["fonts"]}
    by_name = {font["name"]: font for font in present["fonts"]}
    for font in recorded["fonts"]:
        if font["sha256"] in here:
            continue
        if other := by_name.get(font["name"]):
            there = f"the file of that name here is another one ({other['sha256'][:12]}...)"
        else:
            there = "it is not among the fonts here"
        found.append(f"font {font['name']} ({font['sha256'][:12]}...): {there}")
    if not found and [font["sha256"] for font in recorded["fonts"]] != [font["sha256"] for font in present["fonts"]]:
        found.append("the fonts are here, but in another order or with others among them, which may be taken first")
    for name in sorted(recorded.keys() | present.keys()):
        if name != "fonts" and recorded.get(name) != present.get(name):
            found.append(f"{name}: the pages were made with {recorded.get(name)}, here is {present.get(name)}")
    return found


def compare_pages(prefix: str, strings: str, sample: int | None = None, seed: int = 0) -> tuple[int, list[str]]:
    """Render pages of a pixel dataset again from a strings dataset, and compare them pixel by pixel.

    ``sample`` pages of both splits are chosen at random, all without it. Returns how many were compared, and the
    differences, a sentence each.

    Raises:
        UserError: the two datasets were not made of the same text with the same settings, or the fonts are not here.
    """
    _check_comparable(prefix, strings)
    pages = {split: (PageStore(prefix, split), StringStore(strings, split)) for split in SPLITS}
    everything = [(split, index) for split, (stored, _) in pages.items() for index in range(len(stored))]
    if sample is not None and sample < len(everything):
        everything = sorted(random.Random(seed).sample(everything, sample))
    rendered = {split: StringPages(text, RenderingOverrides()) for split, (_, text) in pages.items()}
    found = []
    for split, index in everything:
        stored = pages[split][0].page(index)
        again = rendered[split].page(index)
        channels = 3 if stored.has_color or again.has_color else 1
        if stored.num_patches != again.num_patches:
            what = f"has {stored.num_patches:,} patches, rendered again {again.num_patches:,}"
        else:
            different = (stored.patches(channels) != again.patches(channels)).any(axis=(1, 2, 3))
            if not different.any():
                continue
            first = int(np.argmax(different))
            what = f"differs in {int(different.sum()):,} patches from what is rendered again, first in patch {first}"
        found.append(f"{prefix}.{split}.pages.bin: page {index} {what}")
        if len(found) == _MOST_PROBLEMS:
            found.append("(no further pages were compared)")
            break
    return len(everything), found


def _check_comparable(prefix: str, strings: str) -> None:
    first, second = Manifest.read(prefix), Manifest.read(strings)
    if (first.kind, second.kind) != ("pixels", "strings"):
        raise UserError(
            f"--against compares a pixel dataset with a strings dataset; {prefix} holds {first.kind}, {strings} "
            f"{second.kind}"
        )
    for name in sorted((first.rendering or {}).keys() | (second.rendering or {}).keys()):
        here, there = (first.rendering or {}).get(name), (second.rendering or {}).get(name)
        if here != there:
            values = f": {here} and {there}" if name != "fonts" else ""
            raise UserError(
                f"{manifest_path(prefix)} and {manifest_path(strings)} differ in {name}{values}; only datasets made "
                f"with the same settings have the same pages"
            )
    for split in SPLITS:
        pages, pieces = first.splits[split].sequences, second.splits[split].sequences
        if pages != pieces:
            raise UserError(
                f"{prefix} has {pages:,} pages in {split}, {strings} has {pieces:,}: they were made of different text"
            )
