"""What fine-tuning starts from: weights, architecture, what the model was trained on, and its tokenizer."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import build
from megatron_pixel.config.mixture import parse_mixture, parse_source
from megatron_pixel.config.schema import ModelConfig, RenderingConfig
from megatron_pixel.config.source import Origin as Written
from megatron_pixel.finetuning.saved import SavedModel
from megatron_pixel.interop.source import is_released, open_released
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import Source, open_source
from megatron_pixel.training.weights import named_checkpoint, newest_whole

SYSTEMS = {"text": "textgpt", "pixel": "pixelgpt", "text+pixel": "monogpt", "text+pixel+pair": "dualgpt"}
"""Name of a system by what it was trained on."""


PROJECTION, TOKENS = "0.patches.projection.weight", "0.tokens.weight"
"""Names of the embedders."""


def score_name(model: ModelConfig) -> str:
    """Name of the classifier's matrix."""
    return f"{model.layers + 2}.heads.score.linear.weight"


class Weights(ABC):
    """Full fp32 tensors by our parameter names."""

    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """A tensor on the CPU."""


class _SourceWeights(Weights):
    def __init__(self, source: Source) -> None:
        self._source, self.shapes = source, source.shapes

    def read(self, name: str) -> Tensor:
        return self._source.read(name, "fp32")


@dataclass(frozen=True)
class Start:
    """A model to start from."""

    where: Path
    system: str
    """``textgpt``, ``pixelgpt``, ``monogpt``, ``dualgpt``, or what a released folder says."""
    step: int | None
    model: ModelConfig
    weights: Weights
    reads: frozenset[str]
    """``text``, ``pixel``: what its embedders were trained on."""
    rendering: dict[str, Any]
    """Settings of its pages, as far as they are known."""
    tokenizer_file: Path | None
    tokenizer_sha256: str | None
    """First digits of the hash of the tokenizer that it was trained with."""
    released: bool
    classes: list[str] | None = None
    """Of a fine-tuned model; None for a score."""
    modality: str | None = None
    """Of a fine-tuned model."""
    positions: dict[str, int] | None = None
    """Tokens and patches seen in pretraining, where known."""

    def check_modality(self, modality: str) -> None:
        """Raise UserError unless the model can read rows of this modality."""
        missing = ({"text", "pixel"} if modality == "pair" else {modality}) - self.reads
        if missing:
            can = [m for m in ("text", "pixel", "pair") if ({"text", "pixel"} if m == "pair" else {m}) <= self.reads]
            raise UserError(
                f"modality {modality}: {self.where} ({self.system}) was never trained on "
                f"{' and '.join(sorted(missing))} rows, so its embedding of them is noise; "
                f"it can serve --modality {' or '.join(can)}"
            )
        if self.modality not in (None, modality):
            raise UserError(
                f"modality {modality}: {self.where} was fine-tuned on modality {self.modality}; take that, or start "
                "from the pretrained checkpoint"
            )


def find_start(path: str) -> Start:
    """Open what ``checkpoint`` names.

    Raises:
        UserError: nothing there, or nothing whole.
    """
    if not path:
        raise UserError(
            "checkpoint is not given: a run (runs/demo), a checkpoint folder (runs/demo/checkpoints/step-00000400), "
            "the best folder of a fine-tuned model, or a released model"
        )
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"checkpoint: there is no folder {path}")
    for candidate in (folder, folder / "best"):
        if saved := SavedModel.find(candidate):
            return _fine_tuned(saved)
    if files.step_of(folder.resolve()) is not None:
        return _pretrained(*named_checkpoint(folder))
    if (folder / "checkpoints").is_dir():
        return _pretrained(*newest_whole(folder / "checkpoints"))
    if is_released(folder):
        return _released(folder)
    raise UserError(
        f"checkpoint: {path} is neither a run, a checkpoint, a fine-tuned model nor a released model (config.json and "
        "weights)"
    )


def _fine_tuned(saved: "SavedModel") -> Start:
    facts = saved.facts
    return Start(
        where=saved.folder,
        system=facts["system"],
        step=facts["pretraining_step"],
        model=build_from(ModelConfig, facts["model"]),
        weights=_SourceWeights(saved.source()),
        reads=frozenset(facts["reads"]),
        rendering=facts["rendering"],
        tokenizer_file=Path(facts["tokenizer"]) if facts["tokenizer"] else None,
        tokenizer_sha256=facts["tokenizer_sha256"],
        released=facts["released"],
        classes=facts["labels"],
        modality=facts["modality"],
        positions=facts.get("positions"),
    )


def _pretrained(step: int, folder: Path) -> Start:
    state = json.loads((folder / files.STATE).read_text(encoding="utf-8"))
    config = state["config"]
    mixture = parse_mixture(config["data"]["mixture"])
    kinds = "+".join(kind for kind, share in zip(("text", "pixel", "pair"), mixture, strict=True) if share)
    reads = {"text"} if mixture.text or mixture.pair else set()
    reads |= {"pixel"} if mixture.pixel or mixture.pair else set()
    rendering, tokenizer, sha256 = _data_facts(config["data"], state["data"])
    model = build_from(ModelConfig, config["model"])
    rows = config["training"]["global_batch_rows"] * step
    return Start(
        where=folder,
        system=SYSTEMS.get(kinds, kinds),
        step=step,
        model=model,
        weights=_SourceWeights(open_source(folder)),
        reads=frozenset(reads),
        rendering={"patch_size": model.patch_size, **rendering},
        tokenizer_file=tokenizer,
        tokenizer_sha256=sha256,
        released=False,
        positions={"rows": rows, "positions": rows * model.seq_length},
    )


def _released(folder: Path) -> Start:
    """A model in the released layout, or a plain Llama, which reads text alone."""
    source = open_released(folder)
    reads = {"text"} if TOKENS in source.shapes else set()
    reads |= {"pixel"} if PROJECTION in source.shapes else set()
    score = score_name(source.model)
    return Start(
        where=folder,
        system=folder.resolve().name,
        step=None,
        model=source.model,
        weights=_SourceWeights(source),
        reads=frozenset(reads),
        rendering={"preset": "released", "patch_size": source.model.patch_size},
        tokenizer_file=source.tokenizer,
        tokenizer_sha256=None,
        released=True,
        classes=_class_names(folder) if score in source.shapes else None,
    )


def _class_names(folder: Path) -> list[str] | None:
    """What a released classifier tells apart; None where its config.json has only numbers for them."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    except ValueError:
        return None
    ordered = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    return ordered if ordered and not all(name.startswith("LABEL_") for name in ordered) else None


def _data_facts(data: dict[str, Any], facts: dict[str, Any]) -> tuple[dict[str, Any], Path | None, str | None]:
    """Rendering settings, the tokenizer's file where it lies beside a dataset, and the beginning of its hash."""
    rendering: dict[str, Any] = {}
    known = {field.name for field in fields(RenderingConfig)} - {"fonts"}
    sha256, file = None, None
    for place, made_with in sorted(facts.items()):
        if not rendering and "patch_size" in made_with:
            rendering = {name: value for name, value in made_with.items() if name in known}
        if sha256 is None and "tokenizer" in made_with:
            name, _, rest = made_with["tokenizer"].rpartition(" (sha256 ")
            sha256 = rest.rstrip(")")
            kind, _, number = place.removeprefix("data.").rstrip("]").partition("[")
            prefix = Path(parse_source(data[kind][int(number)]).prefix)
            candidates = [prefix.parent / name, prefix.parent.parent / name]
            file = next((path for path in candidates if path.is_file()), None)
    return rendering, file, sha256


def build_from(schema: Any, values: dict[str, Any]) -> Any:
    """A dataclass from the values that this program knows; others, of a newer program, are left out."""
    known = {field.name for field in fields(schema)}
    return build(schema, {name: Written(value, "") for name, value in values.items() if name in known})
