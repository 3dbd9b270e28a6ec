"""The typed settings of fine-tuning; recipes, dotted names and help work as in :mod:`megatron_pixel.config.schema`."""

from dataclasses import dataclass, field
from typing import Literal

from megatron_pixel.config.schema import OptimizerConfig, RenderingOverrides, RunSection, TrainingConfig


@dataclass
class ExamplesConfig:
    """Where labelled examples come from."""

    path: str = ""
    """Folder of the task in one of the published layouts; for ``custom`` a folder with train.* and validation.* files,
    or nothing where the files are named."""
    train: list[str] = field(default_factory=list)
    """Files of ``custom`` to train on: .jsonl, .tsv, .csv, .parquet, also packed as .gz or .zst."""
    evaluation: list[str] = field(default_factory=list)
    """Files of ``custom`` to evaluate on."""
    columns: list[str] = field(default_factory=list)
    """Text columns of ``custom``, one or two; by default ``text``, or ``text`` and ``text_pair``."""
    label: str = "label"
    """Label column of ``custom``."""
    kind: Literal["classes", "score"] = "classes"
    """What the label of ``custom`` is: one of several classes, or a number to regress."""
    metric: str = "auto"
    """Metric of ``custom`` that chooses the best model: accuracy, f1, mcc, spearman, pearson; ``auto`` is accuracy for
    classes, spearman for scores."""
    setting: Literal["translate-train-all", "cross-lingual"] = "translate-train-all"
    """XNLI: train on all languages, or on English alone; evaluation is on all of them."""
    languages: list[str] = field(default_factory=list)
    """XNLI: languages by code; all fifteen by default."""
    limit: int = 0
    """First examples of the training split to take; 0 takes all."""
    evaluation_limit: int = 0
    """First examples of each evaluation split to take; 0 takes all."""
    empty: Literal["refuse", "keep", "skip"] = "refuse"
    """What happens to an example with an empty text: an error that names its line; kept, as an empty page or no tokens;
    or left out of training and counted (in evaluation it is kept, so that no score is over fewer examples)."""


@dataclass
class InputConfig:
    """How examples become rows."""

    length: int = 768
    """Positions of a row at the most; longer texts are cut at the end, between words, and counted. Of a pair of texts
    the longer one is cut. ``pair`` rows give half of them to patches, half to tokens."""
    tokenizer: str = ""
    """Sentencepiece model; by default the one that the checkpoint was trained with, if it is still beside its data."""
    layout: Literal["auto", "native", "released"] = "auto"
    """``native``: each text between BOS and EOS, as in pretraining here; ``released``: BOS before each text and no EOS,
    the image of a pair row padded to its cap; ``auto`` follows the checkpoint."""
    cache: str = "data/finetuning-cache"
    """Folder of rendered and tokenized sets, found again by their content; empty keeps them in memory only."""


@dataclass
class FinetuningRunSection(RunSection):
    """Where a run lives."""

    dir: str = "runs/finetuned"
    """Folder of the run: config.yaml, metrics.jsonl, result.json, predictions, the best model."""


@dataclass
class FinetuningOptimizer(OptimizerConfig):
    """AdamW and its schedule, as in pretraining (paper, Table 11)."""

    lr: float = 3e-5
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0 to ``lr``."""


@dataclass
class FinetuningLength(TrainingConfig):
    """Length, batch and precision of a run."""

    steps: int = 2000
    """Optimizer steps of the whole run, which the learning-rate schedule spans."""
    stop_after: int | None = None
    """Of pretraining; a fine-tuning run ends early by ``stopping`` or a signal."""
    seed: int = 42
    """Of the new classifier, the dropout and the order of the examples."""
    global_batch_rows: int = 64
    """Examples of one optimizer step over all devices."""
    micro_batch_rows: int = 8
    """Examples of one forward pass on one device."""


@dataclass
class StoppingConfig:
    """Evaluation during training, and early stopping."""

    every: int = 500
    """Steps between evaluations; 0 evaluates at the end only."""
    patience: int = 5
    """Evaluations in a row without a better one after which training ends; 0 never ends early."""


@dataclass
class FinetuningConfig:
    """Everything a fine-tuning run needs."""

    checkpoint: str = ""
    """What to start from: a run (its newest whole checkpoint), a checkpoint folder, the ``best`` folder of a fine-tuned
    model, or a released model in the Hugging Face layout."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """``random`` takes only the architecture from the checkpoint: the baseline of every claim about pretraining."""
    task: str = "custom"
    """cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, xnli, hatemojibuild or custom."""
    modality: Literal["pixel", "text", "pair"] = "pixel"
    """What the model reads of an example: its image, its tokens, or the image and then the tokens."""
    head: Literal["auto", "new"] = "auto"
    """``new`` puts a fresh classifier on a fine-tuned checkpoint; ``auto`` goes on with its own."""
    dropout: float = 0.0
    """Probability of dropping values behind attention and feed-forward layers and before the classifier."""
    predictions: bool = True
    """Write predictions-SPLIT.jsonl, with the scores of the best model for every example."""
    keep_model: bool = True
    """Keep the best model in the run's folder; without it only its results are kept."""
    run: FinetuningRunSection = field(default_factory=FinetuningRunSection)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    input: InputConfig = field(default_factory=InputConfig)
    rendering: RenderingOverrides = field(default_factory=RenderingOverrides)
    optimizer: FinetuningOptimizer = field(default_factory=FinetuningOptimizer)
    training: FinetuningLength = field(default_factory=FinetuningLength)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    deepspeed_config: str = "ds_configs/zero1.json"
    """DeepSpeed's own settings (ZeRO stage, offload), as in pretraining."""
