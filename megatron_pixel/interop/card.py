"""The model card of an exported checkpoint, written from what its run recorded: no figure is typed in by hand."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.mixture import parse_mixture, parse_source
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.interop.curves import CURVES, Line, loss_curves, read_metrics
from megatron_pixel.interop.names import Layout
from megatron_pixel.interop.open import Opened

CARD, PICTURE = "README.md", "curves.svg"
_SYSTEMS = {(True, False, False): "TextGPT", (False, True, False): "PixelGPT", (True, True, False): "MonoGPT"}
"""The paper's name of a mixture of text, pixel and pair rows; whatever holds pair rows is a DualGPT."""


def write_card(folder: Path, checkpoint: Opened, layout: Layout, dtype: str, tokenizer: Tokenizer | None) -> None:
    """Write the card, and the curves where the run is at hand, to ``folder``."""
    metrics = read_metrics(checkpoint.run / "metrics.jsonl") if checkpoint.run is not None else []
    metrics = [line for line in metrics if checkpoint.step is None or line.get("step", 0) <= checkpoint.step]
    curves = loss_curves(metrics)
    if curves is not None:
        (folder / PICTURE).write_text(curves, encoding="utf-8")
    parts = [
        _head(checkpoint, layout),
        _use(checkpoint, layout, tokenizer),
        _model(checkpoint, dtype),
        _data(checkpoint, tokenizer),
        _rendering(checkpoint),
        _training(checkpoint, metrics),
        _curves(curves),
        _results(checkpoint, metrics),
        _origin(checkpoint),
    ]
    text = "\n".join("\n".join(part) for part in parts)
    (folder / CARD).write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")


def _config(checkpoint: Opened) -> dict[str, Any]:
    return checkpoint.state.get("config") or {}


def _system(checkpoint: Opened) -> str:
    mixture = _config(checkpoint).get("data", {}).get("mixture")
    if mixture is None:
        return "Model"
    return _SYSTEMS.get(tuple(part > 0 for part in parse_mixture(mixture)), "DualGPT")  # type: ignore[arg-type]


def _head(checkpoint: Opened, layout: Layout) -> Iterator[str]:
    kind = "text-classification" if checkpoint.labels else "text-generation"
    yield from ("---", "library_name: transformers", f"pipeline_tag: {kind}")
    yield from ("tags:", "- pixel-language-model" if layout == "released" else "- llama", "---", "")
    name = _config(checkpoint).get("run", {}).get("dir")
    system = "Classifier" if checkpoint.labels else _system(checkpoint)
    yield f"# {system}{f' {Path(name).name}' if name else ''}"
    yield ""
    if layout == "llama":
        yield "A Llama-style decoder that reads and writes tokens."
    else:
        yield (
            "A Llama-style decoder that reads text as pixels (patches of a rendered strip) and as tokens, after "
            "*Autoregressive Pre-Training on Pixels and Texts* (Chai et al., 2024)."
        )
    yield f"Trained and exported with megatron_pixel {megatron_pixel.__version__}."
    yield ""


def _use(checkpoint: Opened, layout: Layout, tokenizer: Tokenizer | None) -> Iterator[str]:
    name = "AutoModelForSequenceClassification" if checkpoint.labels else "AutoModelForCausalLM"
    remote = ", trust_remote_code=True" if layout == "released" else ""
    yield from ("## Use", "", "```python", f"from transformers import {name}, AutoTokenizer", "")
    yield f'model = {name}.from_pretrained("."{remote})'
    if tokenizer is not None:
        yield f'tokenizer = AutoTokenizer.from_pretrained("."{remote})'
        yield 'outputs = model(**tokenizer("Some text", return_tensors="pt"))'
    yield from ("```", "")
    if layout == "released":
        yield ("Pages go in as `pixel_values`, float [b, C, P, P * n] of pixels / 255: see `modeling_ernie_pixel.py`.")
        yield ""


def _model(checkpoint: Opened, dtype: str) -> Iterator[str]:
    model = checkpoint.model
    count = sum(_size(shape) for shape in checkpoint.source.shapes.values())
    size = model.patch_size
    rows = {
        "parameters": f"{count:,}, stored in {dtype}",
        "layers, width, FFN": f"{model.layers}, {model.hidden:,}, {model.ffn:,}",
        "heads (key-value)": f"{model.heads} ({model.kv_heads})",
        "positions": f"{model.seq_length:,}",
        "vocabulary": f"{model.vocab_size:,}",
        "patches": f"{size} x {size}, {model.num_channels} channel(s), {model.patch_target} target",
    }
    if checkpoint.labels:
        rows["labels"] = ", ".join(checkpoint.labels)
    yield from ("## Model", "", *_table(rows), "")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _data(checkpoint: Opened, tokenizer: Tokenizer | None) -> Iterator[str]:
    data = _config(checkpoint).get("data", {})
    entries = [(kind, entry) for kind in ("text", "pixels", "pairs") for entry in data.get(kind, ())]
    if checkpoint.state.get("task"):
        yield from ("## Data", "", f"Fine-tuned on {checkpoint.state['task']}.", "")
    elif data.get("synthetic"):
        yield from ("## Data", "", "Made-up rows: this model has read no text.", "")
    elif entries:
        yield from ("## Data", "", f"Rows of a step, text : pixel : pair = {data.get('mixture')}.", "")
        yield from (
            "| dataset | kind | weight | documents | tokens | patches | digest |",
            "|---|---|---|---|---|---|---|",
        )
        for kind, entry in entries:
            yield _dataset(kind, entry)
        yield ""
    if tokenizer is not None:
        yield f"Tokenizer: `{tokenizer.path.name}`, {tokenizer.vocab_size:,} entries, sha256 `{tokenizer.sha256}`."
        yield ""


def _dataset(kind: str, entry: str) -> str:
    weight, prefix = parse_source(entry)
    try:
        manifest = Manifest.read(prefix, check_files=False)
        content = json.loads(Path(f"{prefix}.manifest.json").read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        return f"| {Path(prefix).name} | {kind} | {weight:g} | not at hand when this was written | | | |"
    train = manifest.splits["train"]
    figures = f"{train.documents:,} | {train.tokens:,} | {train.patches:,} | `{content['digest'][:12]}`"
    return f"| {Path(prefix).name} | {kind} | {weight:g} | {figures} |"


def _rendering(checkpoint: Opened) -> Iterator[str]:
    told = dict(checkpoint.rendering)
    fonts = told.pop("fonts", [])
    if not told:
        return
    yield from ("## Rendering", "", *_table({key: str(value) for key, value in sorted(told.items())}), "")
    if fonts:
        yield from (f"<details><summary>{len(fonts)} fonts, first choice first</summary>", "")
        yield from (f"- {font}" for font in fonts)
        yield from ("", "</details>", "")


def _training(checkpoint: Opened, metrics: list[Line]) -> Iterator[str]:
    config = _config(checkpoint)
    training, optimizer = config.get("training"), config.get("optimizer")
    if not training or not optimizer or checkpoint.step is None:
        return
    steps = [line for line in metrics if "seconds" in line]
    betas = f"{optimizer['beta1']}, {optimizer['beta2']}"
    rows = {
        "steps": f"{checkpoint.step:,} of {training['steps']:,}",
        "rows a step": f"{training['global_batch_rows']:,}",
        "precision": training["precision"],
        "optimizer": f"AdamW, betas {betas}, weight decay {optimizer['weight_decay']}",
        "learning rate": f"{optimizer['lr']:g}, {optimizer['schedule']}, {optimizer['warmup_steps']:,} warm-up steps",
    }
    if steps:
        rows["target tokens"] = f"{sum(line.get('tokens') or 0 for line in steps):,}"
        rows["target patches"] = f"{sum(line.get('patches') or 0 for line in steps):,}"
        rows["hours"] = f"{sum(line['seconds'] for line in steps) / 3600:,.2f}"
    yield from ("## Budget", "", *_table(rows), "")


def _curves(curves: str | None) -> Iterator[str]:
    if curves is not None:
        yield from ("## Curves", "", f"![losses over steps; dots are held-out ones]({PICTURE})", "")


def _results(checkpoint: Opened, metrics: list[Line]) -> Iterator[str]:
    rows: dict[str, str] = {}
    found = checkpoint.state.get("results")
    if isinstance(found, dict):
        rows |= {name: f"{value:.4g}" for name, value in found.items() if isinstance(value, int | float)}
    baselines = _baselines(checkpoint)
    heldout = [line for line in metrics if any(key.startswith("eval_") for key in line)]
    for key, name in CURVES.items():
        values = baselines or (heldout[-1] if heldout else {})
        if (loss := values.get(f"eval_{key}")) is not None:
            rows[f"held-out {name}"] = f"{loss:.4f}{_rival(key, baselines)}"
    if rows:
        yield from ("## Results", "", *_table(rows), "")


def _baselines(checkpoint: Opened) -> Line:
    """What ``evaluate.py heldout`` found for this very step."""
    if checkpoint.run is None:
        return {}
    try:
        found = json.loads((checkpoint.run / "baselines.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if found.get("step") == checkpoint.step else {}


def _rival(key: str, baselines: Line) -> str:
    """The best that a model without context does on the same targets."""
    pair = "_pair" if key.endswith("pair") else ""
    name = f"{'unigram_entropy' if 'token' in key else 'linear_previous_patch'}{pair}"
    value = baselines.get(name)
    title = "unigram entropy" if "token" in key else "linear map of the previous patch"
    return "" if value is None else f" ({title}: {value:.4f})"


def _origin(checkpoint: Opened) -> Iterator[str]:
    if (released := checkpoint.state.get("imported")) is not None:
        origin = f"`{released['folder']}` ({released['layout']} layout, {released['dtype']})"
        yield f"The weights were imported from {origin}."


def _table(rows: dict[str, str]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
