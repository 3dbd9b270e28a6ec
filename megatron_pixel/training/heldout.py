"""What a trained model has learnt: held-out losses beside baselines, and whether it reads the image of a pair."""

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import ModelConfig, PairConfig, ParallelConfig
from megatron_pixel.data.mixture import HeldoutReader, open_heldout
from megatron_pixel.data.rows import PADDING_ORIGIN, Kind, MicroBatch, Modality, Row, pair_row, stack_rows
from megatron_pixel.drawing import prediction_sheet
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.execution import WholeModel
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.training.baselines import PatchBaselines, UnigramEntropy
from megatron_pixel.training.canonical import load_weights, open_source
from megatron_pixel.training.evaluation import Evaluator
from megatron_pixel.training.weights import named_checkpoint, newest_whole


@dataclass(frozen=True)
class Baselines:
    """Baselines on the held-out rows of one kind; None where the kind has no such targets."""

    unigram_entropy: float | None
    constant_patch: float | None
    linear_previous_patch: float | None


def measure_baselines(batches: Iterable[MicroBatch], model: ModelConfig, end_patch: bool) -> Baselines:
    """Baselines over held-out batches of one kind."""
    tokens = UnigramEntropy(model.vocab_size)
    patch_dim = model.patch_size**2 * model.num_channels
    patches = PatchBaselines(patch_dim, normalised=model.patch_target == "normalised", end_patch=end_patch)
    for batch in batches:
        tokens.add(batch)
        patches.add(batch)
    return Baselines(tokens.value(), patches.constant_patch(), patches.linear_previous_patch())


def swap_images(batches: Iterable[MicroBatch], model: ModelConfig, pair: PairConfig) -> Iterator[MicroBatch]:
    """The same pair rows, each with the image of another row: half the held-out rows away, so rarely the same document.

    Tokens and their targets stay as they are, so the token loss on these batches against the loss on the true ones says
    whether the model reads.
    """
    contents = []
    size = 1
    for batch in batches:
        assert batch.patches is not None
        size = len(batch.rows)
        for i, origin in enumerate(batch.rows):
            if origin != PADDING_ORIGIN:
                is_patch, is_token = batch.modality[i] == Modality.PATCH, batch.modality[i] == Modality.TOKEN
                contents.append((batch.patches[i][is_patch], batch.tokens[i][is_token], origin))
    rows: list[Row] = []
    for i, (_, tokens, origin) in enumerate(contents):
        image = contents[(i + max(1, len(contents) // 2)) % len(contents)][0]
        rows.append(pair_row(image, tokens, model.seq_length, origin, pair.layout, pair.patches))
    for first in range(0, len(rows), size):
        yield stack_rows(Kind.PAIR, rows[first : first + size])


@dataclass(frozen=True)
class Report:
    """Everything that the summary of a run shows; None where the run has no rows of the kind."""

    step: int
    losses: dict[str, float | None]
    by_source: dict[str, float]
    """The same by dataset: ``loss_token_text/corpus``."""
    text: Baselines
    pixel: Baselines
    pair: Baselines
    shuffled_image: float | None
    """Token loss of pair rows whose image belongs to another text."""
    patches_per_second: float | None
    """Median over the steps of the run."""

    def to_json(self) -> dict[str, Any]:
        """Flat figures: baselines of text and pixel rows under their own names, those of pair rows with ``_pair``."""
        figures: dict[str, Any] = {"step": self.step}
        figures["unigram_entropy"] = self.text.unigram_entropy
        figures["constant_patch"] = self.pixel.constant_patch
        figures["linear_previous_patch"] = self.pixel.linear_previous_patch
        figures |= {f"{name}_pair": value for name, value in asdict(self.pair).items()}
        figures |= {f"eval_{name}": value for name, value in self.losses.items()}
        figures["eval_loss_by_source"] = self.by_source
        figures["eval_loss_token_pair_shuffled_image"] = self.shuffled_image
        figures["patches_per_second"] = self.patches_per_second
        return figures

    def table(self) -> str:
        """The summary as text."""
        losses = self.losses
        lines = [f"held-out losses after step {self.step}", ""]
        lines.append(f"{'':16}{'model':>8}   baselines on the same held-out targets")
        for name, key, unit, baselines in (
            ("text tokens", "loss_token_text", "nats", self.text),
            ("pair tokens", "loss_token_pair", "nats", self.pair),
            ("pixel patches", "loss_patch_pixel", "error", self.pixel),
            ("pair patches", "loss_patch_pair", "error", self.pair),
        ):
            value = losses.get(key)
            if value is None:
                continue
            if unit == "nats":
                rivals = {"unigram entropy": baselines.unigram_entropy}
            else:
                rivals = {
                    "constant patch": baselines.constant_patch,
                    "linear map of the previous patch": baselines.linear_previous_patch,
                }
            shown = ", ".join(f"{rival} {figure:.3f}" for rival, figure in rivals.items() if figure is not None)
            beaten = all(figure is None or value < figure for figure in rivals.values())
            lines.append(f"{name:16}{value:8.3f}   {shown}: {'beaten' if beaten else 'NOT beaten'}")
        right = losses.get("loss_token_pair")
        if right is not None and self.shuffled_image is not None:
            gain = self.shuffled_image - right
            verdict = "it reads" if gain > 0.05 else "it does not read yet" if gain < 0.01 else "a trace of reading"
            lines += [
                "",
                f"does it read?   pair tokens with the right image {right:.3f}, with the image of another text "
                f"{self.shuffled_image:.3f}: {gain:+.3f} nats, {verdict}",
            ]
        if self.patches_per_second is not None:
            lines.append(
                f"throughput      {self.patches_per_second:,.0f} patches/s (median over steps, target patches)"
            )
        return "\n".join(lines)


class SwappedReader(HeldoutReader):
    """The pair rows of a reader with swapped images, and nothing else."""

    def __init__(self, reader: HeldoutReader, model: ModelConfig, pair: PairConfig) -> None:
        self._swapped = list(swap_images(reader.batches(Kind.PAIR), model, pair))

    @property
    def source_names(self) -> dict[Kind, list[str]]:
        """Rows with swapped images belong to no source."""
        return {}

    def num_rows(self, kind: Kind) -> int:
        """Rows of the kind."""
        return sum(len(batch.rows) for batch in self._swapped) if kind == Kind.PAIR else 0

    def num_batches(self, kind: Kind, dp_size: int) -> int:
        """Batches of the only rank."""
        return len(self._swapped) if kind == Kind.PAIR else 0

    def batches(self, kind: Kind, dp_rank: int = 0, dp_size: int = 1) -> Iterator[MicroBatch]:
        """The batches of the only rank."""
        return iter(self._swapped if kind == Kind.PAIR else [])


def evaluate_run(
    run: Path, checkpoint: Path | None = None, rows: int | None = None
) -> tuple[Report, Image.Image | None]:
    """Evaluate a checkpoint of a run on its held-out rows, on this one process.

    Args:
        run: folder of the run.
        checkpoint: folder of the checkpoint; by default the newest whole one of the run.
        rows: held-out rows of each kind at the most; by default ``evaluation.rows``.

    Returns:
        The figures, and a held-out page with its predictions and errors (None where no rows hold patches).

    Raises:
        UserError: no run, no whole checkpoint, data that is not there.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run: it has no config.yaml")
    config = load_config(run / "config.yaml", [])
    if rows is not None:
        config.evaluation.rows = rows
    step, folder = newest_whole(run / "checkpoints") if checkpoint is None else named_checkpoint(checkpoint)
    with mesh(ParallelConfig()) as here:
        objectives = pretraining_objectives(config.model, config.loss)
        module = torch.nn.Sequential(*build_stages(config.model, objectives, config.training.seed)).to(here.device)
        load_weights(module, open_source(folder))
        reader = open_heldout(config.data, config.model, config.pair, config.training, config.evaluation)
        model = WholeModel(module)
        evaluation = Evaluator(model, reader, objectives, config.model, here).run(pages=1)
        shuffled = None
        if reader.num_rows(Kind.PAIR) > 1:
            swapped = SwappedReader(reader, config.model, config.pair)
            shuffled = Evaluator(model, swapped, objectives, config.model, here).run().losses["loss_token_pair"]
    text, pixel, pair = (measure_baselines(reader.batches(kind), config.model, config.loss.end_patch) for kind in Kind)
    speed = median_patches_per_second(run / "metrics.jsonl")
    report = Report(step, evaluation.losses, evaluation.by_source, text, pixel, pair, shuffled, speed)
    picture = None
    if evaluation.pages:
        page = evaluation.pages[0]
        title = f"held-out page, step {step:,}: row {page.origin[1]:,} of {Path(page.origin[0]).name}"
        picture = prediction_sheet(
            page.patches, page.predictions, page.errors, title=title, patch_target=config.model.patch_target
        )
    return report, picture


def median_patches_per_second(metrics: Path) -> float | None:
    """Median of ``patches_per_second`` over the steps in metrics.jsonl; None without any."""
    if not metrics.exists():
        return None
    records = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    rates = [record["patches_per_second"] for record in records if record.get("patches_per_second")]
    return statistics.median(rates) if rates else None
