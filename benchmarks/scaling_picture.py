"""A chart of :mod:`benchmarks.scaling`: efficiency over GPUs, a line for each layout, a panel for each recipe."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLORS = ("#1f5fbf", "#d1495b", "#2e8b57", "#c77d0a", "#7b4fb5", "#4aa3b5", "#8a5a44", "#8c8c8c", "#111111")


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Write the chart as PNG, whole or not at all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    recipes = figures["recipes"]
    figure, axes = plt.subplots(1, len(recipes), figsize=(5.4 * len(recipes), 5.0), squeeze=False, sharey=True)
    for axis, (name, found) in zip(axes[0], recipes.items(), strict=True):
        for color, (layout, points) in zip(COLORS, found["layouts"].items(), strict=False):
            counts = [point["devices"] for point in points]
            axis.plot(counts, [100 * p["efficiency"] for p in points], "o-", color=color, label=layout, ms=4, lw=1.6)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({p["devices"] for points in found["layouts"].values() for p in points}))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_ylim(40, 102)
        axis.set_title(f"{name}, {found['rows']:,} rows a step", fontsize=10)
        axis.set_xlabel(figures["gpu"])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, frameon=False)
    axes[0][0].set_ylabel("efficiency against one device, %")
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format="png")
    plt.close(figure)
    part = path.with_name(path.name + ".part")
    Image.open(drawn).convert("RGB").quantize(64).save(part, format="PNG", optimize=True)  # in fewer bytes
    os.replace(part, path)
    print(f"wrote {path}")
