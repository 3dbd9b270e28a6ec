"""The report of a run as one HTML file that needs nothing else: neither network nor scripts to be read."""

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import flatten, load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.model_pictures import Moment, attention_sheet, history_sheet
from megatron_pixel.reporting.report_curves import curves_section, held_out_losses, time_section
from megatron_pixel.reporting.run_folder import Record, RunFolder
from megatron_pixel.reporting.status import Status, status_of
from megatron_pixel.training.pages import PredictedPage, list_pages, load_pages
from megatron_pixel.training.progress import duration, quantity

HERE = Path(__file__).parent
MOST_MOMENTS = 6
MOST_PATCHES = 384
"""Patches of a sample page that are shown."""
WIDE, NARROW = 48, 20
"""Patches in a row of a sample page, on wide and on narrow screens."""


def report_page(folder: Path, now: float | None = None) -> str:
    """The report of the run in a folder, HTML.

    Raises:
        UserError: it is no run.
    """
    run = RunFolder(folder)
    status = status_of(folder, now)
    steps, evaluations = run.lines()
    sections = [
        ("Curves", "", curves_section(run, steps, evaluations)),
        ("Held-out losses", "Means over all held-out targets of a kind.", _held_out(run, evaluations)),
        ("Sample pages", _PAGES, _pages(run, evaluations)),
        ("Where the time went", "", time_section(run, steps)),
        ("Starts and ends", "", _sessions(run)),
        ("Checkpoints", "", _checkpoints(run, steps)),
        ("Troubles", "The last warnings and errors.", _troubles(run)),
        ("Settings", "What differs from the defaults stands out.", _settings(run)),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{f'<p>{about}</p>' if about else ''}{content}</section>"
        for title, about, content in sections
        if content
    )
    stamp = datetime.fromtimestamp(now) if now is not None else datetime.now()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(run.name)}</title><link rel='icon' href='data:,'>"
        f"<style>{(HERE / 'report.css').read_text(encoding='utf-8')}</style></head><body>"
        f"{_head(run, status, steps)}<main>{body}</main>"
        f"<footer>megatron_pixel {megatron_pixel.__version__}, {stamp:%d %B %Y, %H:%M}. "
        f"<code>python megatron_pixel/report.py {_text(str(folder))}</code> makes this page anew.</footer>"
        f"<script>{(HERE / 'report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _head(run: RunFolder, status: Status, steps: Sequence[Record]) -> str:
    look = "good" if status.state in ("finished", "training", "starting") else "bad" if not status.good else "idle"
    lead = [line for line in _start_block(run)[:1] if line] or [str(run.path)]
    tokens, patches = (sum(record.get(kind) or 0 for record in steps) for kind in ("tokens", "patches"))
    share = 100 * status.step / status.steps if status.steps else 100
    figures = [(f"{status.step:,}", f"of {status.steps:,} steps" if status.steps else "steps")]
    if steps:
        figures.append((f"{steps[-1]['loss']:.4f}" if steps[-1].get("loss") is not None else "none", "loss"))
    figures += [(quantity(n), name) for n, name in ((tokens, "tokens learnt"), (patches, "patches learnt")) if n]
    rates = ((status.tokens_per_second, "tokens/s"), (status.patches_per_second, "patches/s"))
    figures += [(quantity(rate), name) for rate, name in rates if rate]
    if status.mfu:
        figures.append((f"{status.mfu:.1%}", "of the bf16 peak"))
    if status.memory_gb:
        figures.append((f"{status.memory_gb:.3g} GB", "memory at most"))
    figures.append((str(max(0, status.starts - 1)), "restarts"))
    if status.seconds_left and status.state == "training":
        figures.append((duration(status.seconds_left), "left"))
    cells = "".join(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for value, name in figures)
    why = f" <small>{_text(status.why)}</small>" if status.why and not status.good else ""
    details = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(said)}</dd>"
        for name, _, said in (line.strip().partition(" ") for line in _start_block(run)[1:])
    )
    return (
        f'<header><h1>{_text(run.name)} <span class="badge {look}">{status.state}</span></h1>'
        f'<p class="lead">{_text(lead[0])}{why}</p>'
        f'<div class="progress"><i style="width:{min(100.0, share):.2f}%"></i></div>'
        f'<div class="figures">{cells}</div><dl class="start">{details}</dl></header>'
    )


def _start_block(run: RunFolder) -> list[str]:
    """What the run said of itself when it last began."""
    said = [text for _, text in run.log()]
    begins = [place for place, text in enumerate(said) if text.startswith("megatron_pixel ")]
    if not begins:
        return []
    block = [said[begins[-1]]]
    for text in said[begins[-1] + 1 :]:
        if text.startswith("step "):
            break
        if text.partition(" ")[0] in ("layout", "model", "batch", "data"):
            block.append(" ".join(text.split()))
    return block


def _held_out(run: RunFolder, evaluations: Sequence[Record]) -> str:
    if not evaluations:
        return ""
    baselines = _baselines(run)
    rows = []
    for found in held_out_losses(evaluations, baselines):
        rows.append([found.name, found.last, found.best, found.first, found.rivals])
    head = ["", "after step " + f"{evaluations[-1]['step']:,}", "best", "first", "baselines on the same targets"]
    return f'<div class="card scroll">{_table(head, rows, numbers={1, 2, 3})}</div>'


def _baselines(run: RunFolder) -> dict[str, Any]:
    """What ``evaluate.py heldout`` has measured of the run, if it has."""
    try:
        found = json.loads((run.path / "baselines.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_PAGES = (
    "Held-out pages and what was predicted for each patch from the true ones before it, at several times of the "
    "training; below each line its errors, on one scale for all of them: lighter is better."
)


def _pages(run: RunFolder, evaluations: Sequence[Record]) -> str:
    """Pages of evaluations that stand in the curves: those past a restart belong to a life that is over."""
    known = {record["step"] for record in evaluations}
    files = [(step, path) for step, path in list_pages(run.path) if step in known]
    chosen = _spread(files, MOST_MOMENTS)
    loaded: list[tuple[int, list[PredictedPage]]] = []
    for step, path in chosen:
        try:
            loaded.append((step, load_pages(path)))
        except UserError:
            continue
    if not loaded:
        return ""
    target = run.setting("model.patch_target", "normalised")
    parts = []
    for number, page in enumerate(loaded[-1][1]):
        same = [(step, pages[number]) for step, pages in loaded if number < len(pages)]
        same = [(step, other) for step, other in same if other.origin == page.origin]
        parts.append(_page_figure(page, same, target == "normalised"))
        if page.attention is not None:
            parts.append(_attention_figure(page, loaded[-1][0]))
    return "".join(parts)


def _page_figure(page: PredictedPage, moments: Sequence[tuple[int, PredictedPage]], normalised: bool) -> str:
    n = min(len(page.patches), MOST_PATCHES)
    shown = [Moment(f"step {step:,}", other.predictions[:n], other.errors[:n]) for step, other in moments]
    wide, narrow = (
        history_sheet(page.patches[:n], shown, patches_per_row=count, normalised=normalised) for count in (WIDE, NARROW)
    )
    cut = f", the first {n:,} of {len(page.patches):,} patches" if n < len(page.patches) else f", {n:,} patches"
    caption = f"Row {page.origin[1]:,} of {page.origin[0]}{cut}."
    return (
        '<figure class="page card"><div class="scroll"><picture>'
        f'<source media="(max-width: 60rem)" srcset="{_data_uri(narrow)}">'
        f'<img class="sheet" src="{_data_uri(wide)}" alt="{_text(caption)}"></picture></div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _attention_figure(page: PredictedPage, step: int) -> str:
    assert page.attention is not None
    n = min(len(page.patches), MOST_PATCHES)
    sheet = attention_sheet(page.patches[:n], page.attention[:n, :n], patches_per_row=WIDE)
    caption = f"Attention of layer {page.layer} at step {step:,} on row {page.origin[1]:,} of {page.origin[0]}."
    return (
        f'<figure class="page card"><details><summary>{_text(caption)}</summary><div class="scroll">'
        f'<img class="sheet" src="{_data_uri(sheet)}" alt="{_text(caption)}"></div></details></figure>'
    )


def _sessions(run: RunFolder) -> str:
    rows = []
    events = run.sessions()
    for place, event in enumerate(events):
        if event["event"] != "start":
            continue
        until = next((i for i in range(place + 1, len(events)) if events[i]["event"] == "start"), len(events))
        end = next((e for e in events[place + 1 : until] if e["event"] == "end"), None)
        broken = next((e for e in events[place + 1 : until] if e["event"] == "failure"), None)
        if end is not None:
            how = f"{end.get('reason') or 'complete'} (status {end.get('status')}), step {end.get('step', '?')}"
        elif broken is not None:
            how = f"rank {broken.get('rank')} of {broken.get('ranks')}: {broken.get('cause')}"
        else:
            how = "goes on" if until == len(events) else "no end was written"
        where = f"{event.get('host', '')}, {event.get('processes', '?')} processes"
        rows.append(
            [_moment(event.get("time")), where, f"{event.get('step', 0):,}", _moment((end or {}).get("time")), how]
        )
    if not rows:
        return ""
    head = ["started", "on", "from step", "ended", "how"]
    return f'<div class="card scroll">{_table(head, [list(map(_text, row)) for row in rows], numbers={2})}</div>'


def _checkpoints(run: RunFolder, steps: Sequence[Record]) -> str:
    """Those that are kept; what a save cost stands in the line of the step behind it."""
    stalls = {record["step"] - 1: record.get("checkpoint_stall_seconds") for record in steps}
    rows = []
    for saved in run.checkpoints():
        stall = stalls.get(saved.step)
        rows.append(
            [
                f"{saved.step:,}",
                f"{datetime.fromtimestamp(saved.time):%d %b %Y, %H:%M:%S}",
                f"{quantity(float(saved.bytes))}B",
                f"{stall:.2f} s" if stall else "",
                f"<code>{_text(saved.folder.name)}</code>",
            ]
        )
    head = ["step", "written", "size", "training stood still", "folder"]
    return f'<div class="card scroll">{_table(head, rows, numbers={0, 2, 3})}</div>' if rows else ""


def _troubles(run: RunFolder) -> str:
    items = "".join(f"<li><time>{_text(when)}</time>{_text(said)}</li>" for when, said in run.troubles()[-20:])
    return f'<ul class="troubles card">{items}</ul>' if items else ""


def _settings(run: RunFolder) -> str:
    try:
        values = flatten(load_config(run.path / "config.yaml", []))
    except UserError:  # of another version
        return f"<pre class='card'>{_text((run.path / 'config.yaml').read_text(encoding='utf-8'))}</pre>"
    defaults = flatten(RunConfig())
    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        mark = ' class="set"' if value != defaults.get(name) else ""
        sections.setdefault(section or "the rest", []).append(
            f"<dt{mark}>{_text(key)}</dt><dd{mark}>{_text(_shown(value))}</dd>"
        )
    parts = "".join(f"<section><h3>{name}</h3><dl>{''.join(lines)}</dl></section>" for name, lines in sections.items())
    return f'<div class="card settings">{parts}</div>'


def _shown(value: Any) -> str:
    """A setting as a reader of the page wants it."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> str:
    """Cells are HTML already."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place in numbers else ''}>{cell}</{tag}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _spread(entries: Sequence[Any], most: int) -> list[Any]:
    """The first, the last, and between them those at steps that double: learning is fast at first."""
    if len(entries) <= most:
        return list(entries)
    ratio = len(entries) ** (1 / (most - 1))
    places = sorted({0, len(entries) - 1, *(min(len(entries) - 1, round(ratio**i)) for i in range(1, most - 1))})
    return [entries[place] for place in places]


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _moment(stamp: str | None) -> str:
    if not stamp:
        return ""
    try:
        return f"{datetime.fromisoformat(stamp).astimezone():%d %b %Y, %H:%M:%S}"
    except ValueError:
        return stamp


def _text(value: str) -> str:
    return html.escape(str(value))
