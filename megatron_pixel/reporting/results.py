"""``evaluate.py table``: every table and plot that the runs of a folder make."""

import json
from collections.abc import Callable
from pathlib import Path

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import write_file
from megatron_pixel.finetuning.search import results_below
from megatron_pixel.reporting.ours import Ours
from megatron_pixel.reporting.tables import HERE, Table, paper_tables, settings_tables, study_tables

LEGEND = (
    "Scores in percent. Rows of `paper` are the paper's own numbers (arXiv 2404.10710), which come from other code, "
    "other data and far more training. Rows of `ours` are means over seeds with their standard deviation, at the "
    "settings that score best on the split that chooses the model. Intervals are 95%, by Student's t over seeds."
)


def write_tables(runs: Path, output: Path, everything: bool, show: Callable[[str], None] = print) -> None:
    """Print the tables, and write tables.md, tables.json and the plots to ``output``.

    Args:
        runs: folder with finished fine-tuning runs, at any depth.
        output: for the results.
        everything: also the tables of the paper that no run here has a row of.
        show: takes lines.

    Raises:
        UserError: no finished run below ``runs``.
    """
    if not runs.is_dir():
        raise UserError(f"--runs: there is no folder {runs}")
    results = results_below(runs)
    if not results and not everything:
        raise UserError(
            f"{runs}: no finished fine-tuning run (result.json) below it; --all shows the paper's tables alone"
        )
    ours = Ours(results)
    tables = [*study_tables(ours), *paper_tables(ours), *settings_tables(ours)]
    shown = [table for table in tables if everything or _has_ours(table)]
    text = "\n\n".join(table.markdown() for table in shown)
    show(text)
    output.mkdir(parents=True, exist_ok=True)
    # Imported here: matplotlib takes a second, and only pictures need it.
    from megatron_pixel.reporting.figures import draw_figures

    figures = draw_figures(ours, output)
    pictures = "".join(f"\n\n![{title}]({path.name})" for path, title in figures)
    write_file(str(output / "tables.md"), f"{LEGEND}\n\n{text}{pictures}\n".encode())
    content = {table.key: {"title": table.title, "rows": table.figures} for table in shown}
    write_file(str(output / "tables.json"), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    show(f"\nfrom {len(results):,} finished runs below {runs}; written to {output / 'tables.md'}, tables.json")
    for path, title in figures:
        show(f"plot  {path}: {title}")


def _has_ours(table: Table) -> bool:
    if not table.key.startswith("table-"):
        return True
    return any(row[1].startswith(HERE) for row in table.rows)
