"""The typed config tree. Each component receives its own dataclass; nothing reads a global one.

A field's meaning stands under the field. Values come from a YAML recipe and from dotted overrides on the command line
(``--optimizer.lr 3e-4``); :func:`megatron_pixel.config.load_config` reads, checks and returns a :class:`RunConfig`.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class RunSection:
    """Where a run lives."""

    dir: str = "runs/run"
    """Folder of the run: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, logs/."""


@dataclass
class ModelConfig:
    """The decoder (paper, Table 8) with its two inputs and two heads."""

    layers: int = 24
    """Decoder layers."""
    hidden: int = 1024
    """Width of the residual stream."""
    heads: int = 16
    """Attention heads; divides ``hidden`` into even widths."""
    kv_heads: int = 8
    """Key-value heads of grouped-query attention; divides ``heads``."""
    ffn: int = 2816
    """Width of the SwiGLU feed-forward layer."""
    vocab_size: int = 32000
    """Entries of the tokenizer, which must have as many."""
    seq_length: int = 1024
    """Positions of a row: patches, tokens, or both."""
    patch_size: int = 16
    """Height and width of a patch in pixels."""
    num_channels: int = 3
    """3 for RGB, 1 for gray and binary pages."""
    patch_target: Literal["normalised", "raw"] = "normalised"
    """Regression target: each patch normalized by its own mean and variance (the paper's), or pixel values / 255."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary position embedding."""
    init_std: float = 0.02
    """Standard deviation of the normal initialization."""


@dataclass
class RenderingConfig:
    """How text becomes a strip of patches (paper, Table 6)."""

    preset: Literal["default", "released"] = "default"
    """``released`` does what the released checkpoints were trained with, faults of layout included."""
    strategy: Literal["continuous", "bigram", "word", "mono"] = "continuous"
    """Where patches begin (Lotz et al. 2023): anywhere, at every second character of a word, at every word, or on a
    grid of half patches in a monospaced font."""
    fonts: list[str] = field(default_factory=list)
    """Font files, first choice first; empty means the chain of Noto fonts from the pinned packages."""
    font_size: float | None = None
    """Points; by default half the patch size (8 for 16-pixel patches)."""
    dpi: int = 120
    """Dots an inch: a size of 8 points is 8 * 120 / 72 = 13.33 pixels."""
    patch_size: int = 16
    """Height of the strip and width of a patch in pixels."""
    mode: Literal["rgb", "gray", "binary"] = "rgb"
    """Colors that a page may hold."""
    binary_threshold: int = 128
    """Gray values below it become black in binary mode."""
    seq_length: int = 1024
    """Patches of a page at the most, its black end patch included."""


@dataclass
class RenderingOverrides:
    """Other settings than a strings dataset was made with; null takes those of the dataset."""

    preset: Literal["default", "released"] | None = None
    """Instead of the dataset's ``rendering.preset``."""
    strategy: Literal["continuous", "bigram", "word", "mono"] | None = None
    """Instead of the dataset's ``rendering.strategy``."""
    fonts: list[str] = field(default_factory=list)
    """Font files, first choice first; empty means the dataset's fonts, which must be installed here."""
    font_size: float | None = None
    """Points; null with another ``patch_size`` is the dataset's size, grown likewise."""
    dpi: int | None = None
    """Dots an inch."""
    patch_size: int | None = None
    """Height of the strip and width of a patch in pixels; ``model.patch_size``."""
    mode: Literal["rgb", "gray", "binary"] | None = None
    """Colors that a page may hold."""
    binary_threshold: int | None = None
    """Gray values below it become black in binary mode."""
    seq_length: int | None = None
    """Patches of a page at the most, its black end patch included; at most ``model.seq_length``."""


@dataclass
class DataConfig:
    """Where rows come from."""

    text: list[str] = field(default_factory=list)
    """Token datasets: ``prefix`` or ``weight:prefix``."""
    pixels: list[str] = field(default_factory=list)
    """Page datasets, likewise, or strings datasets, whose pages are drawn when they are read."""
    pairs: list[str] = field(default_factory=list)
    """Pair datasets, likewise."""
    mixture: str = "4:4:2"
    """Rows of a step as text:pixel:pair (paper, appendix D: 4:4:2 for DualGPT)."""
    synthetic: bool = False
    """Made-up rows instead of files: the ``-debug`` recipes need no prepared data."""
    prefetch: int = 4
    """Micro-batches prepared ahead of the step."""
    workers: int = 0
    """Processes on each rank that prepare them; 0 is a thread of the training process. The rows stay the same."""
    packing: Literal["none", "documents"] = "none"
    """``none``: a page or a pair is a row (the paper), documents of text see those before them; ``documents``: short
    pages and pairs share rows, and no document sees another: attention is block-diagonal, positions begin anew."""
    rendering: RenderingOverrides = field(default_factory=RenderingOverrides)
    """How strings datasets are rendered, where not as they were made."""


@dataclass
class PairConfig:
    """Layout of a pair row."""

    layout: Literal["compact", "released"] = "compact"
    """``compact``: patches, end patch, tokens, no padding between; ``released``: the image padded to its cap first."""
    patches: int = 512
    """Patches of a pair row at the most, end patch included."""
    tokens: int = 512
    """Tokens of a pair row at the most, BOS and EOS included."""


@dataclass
class LossConfig:
    """``L = token_weight * mean(token loss) + patch_weight * mean(patch loss)``, means over the global batch."""

    token_weight: float = 1.0
    """Weight of the next-token loss."""
    patch_weight: float = 1.0
    """Weight of the next-patch loss."""
    end_patch: bool = True
    """Whether the black end patch is a target: the released masks include it, the paper's text leaves it out."""


@dataclass
class OptimizerConfig:
    """AdamW and its schedule (paper, Table 9)."""

    lr: float = 5e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the last step."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises linearly from 0 to ``lr``."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How it falls from there to ``min_lr``."""
    beta1: float = 0.9
    """Decay of the mean of the gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square. Not stated in the paper."""
    weight_decay: float = 0.0
    """Decoupled weight decay. Not stated in the paper."""
    clip_grad: float = 1.0
    """Largest gradient norm; 0 switches clipping off. Not stated in the paper."""


@dataclass
class TrainingConfig:
    """Length, batch and precision of a run."""

    steps: int = 10000
    """Optimizer steps of the whole run, which the learning-rate schedule spans."""
    stop_after: int | None = None
    """End early after this step, whole, as a signal would; the schedule still spans ``steps``."""
    seed: int = 1234
    """Of the weights and of the order of the rows."""
    global_batch_rows: int = 10240
    """Rows of one optimizer step over all devices, split by ``data.mixture``."""
    micro_batch_rows: int | Literal["auto"] = 8
    """Rows of one forward pass on one device, all of one kind; a matter of memory and speed only. ``auto`` takes what
    the memory model and the predictor find best for the device."""
    precision: Literal["fp32", "bf16"] = field(
        default="bf16",
        metadata={"refused": {"fp16": "fp16 is not supported: use bf16, which needs no loss scaling, or fp32"}},
    )
    """Of the forward and backward pass; master weights and optimizer states are fp32 in both."""
    compile: Literal["none", "layers"] = "none"
    """``layers``: before the first step ``torch.compile`` makes one code for all decoder layers, which takes a minute
    and a C++ compiler or, on CUDA devices, Triton. What they compute changes by rounding only."""

    @property
    def micro_rows(self) -> int:
        """``micro_batch_rows`` as the number that it is as soon as a run begins.

        Raises:
            ValueError: it is still ``auto``; :mod:`megatron_pixel.config.automatic` says who decides.
        """
        if self.micro_batch_rows == "auto":
            raise ValueError("training.micro_batch_rows is still auto")
        return self.micro_batch_rows


@dataclass
class ParallelConfig:
    """How the model is spread over devices; data parallelism takes what is left."""

    tensor: int = 1
    """Devices that share each layer's matrices."""
    pipeline: int = 1
    """Devices that share the list of layers."""
    pipeline_cut: Literal["layers", "cost"] = "layers"
    """How they share it: as many decoder layers on each as can be (``layers``), or fewer beside embedding and heads,
    so that all of them compute about as long (``cost``)."""
    activation_checkpointing: str = "none"
    """Decoder layers whose activations are computed again in the backward pass instead of kept: ``none``, ``all``, or
    numbers and ranges such as ``1-12,24``. Saves memory, costs up to a third more computing. ``auto`` takes as few as
    the device's memory asks for."""
    device_memory_gb: float | None = None
    """Memory of a device in 10^9 bytes, for ``auto`` to fill; null asks the CUDA device. Processes on CPUs have to be
    told their share."""
    experimental: list[Literal["sequence_parallel"]] = field(default_factory=list)
    """Modes whose tests need several GPUs. ``sequence_parallel`` splits norms and residuals, too, over the
    tensor-parallel devices, by position."""


@dataclass
class EvaluationConfig:
    """Evaluation on the held-out splits."""

    every: int = 500
    """Steps between evaluations; 0 evaluates only at the end."""
    rows: int = 256
    """Held-out rows of each kind at the most."""


@dataclass
class CheckpointConfig:
    """Saving and resuming."""

    every: int = 500
    """Steps between checkpoints; 0 saves only at the end."""
    keep: int = 3
    """Newest checkpoints kept; 0 keeps all."""
    milestones: list[int] = field(default_factory=list)
    """Steps whose checkpoints are kept for ever."""
    resume: str = "auto"
    """``auto`` (newest whole checkpoint of the run), ``none``, or a checkpoint folder."""
    asynchronous: bool | None = None
    """Write behind the training, from a copy in host memory; null means on CUDA devices only."""
    allow_changes: list[str] = field(default_factory=list)
    """Config names whose change at resume is accepted although it changes the model, the data or the optimization."""


@dataclass
class LoggingConfig:
    """What a run tells."""

    every: int = 1
    """Steps between lines of metrics.jsonl and TensorBoard."""
    progress_every: int = 10
    """Steps between progress lines on a terminal that is not interactive."""
    pages: int = 2
    """Held-out pages drawn with their predictions at each evaluation; 0 switches it off."""
    attention: int | None = None
    """Decoder layer, counted from 1, whose attention on those pages is drawn beside them."""
    histograms: int = 0
    """Steps between histograms of gradients and weights by stage, in TensorBoard; 0 switches them off."""
    wandb: str | None = None
    """Project at Weights & Biases that gets the same curves and pictures; needs the package wandb."""


@dataclass
class ProfileConfig:
    """A trace of some steps."""

    steps: str | None = None
    """Steps to record, first and last, such as ``10:13``: one trace a rank below the run's folder, for Perfetto."""
    stacks: bool = False
    """Whether the trace holds the Python stack of every operation; slows those steps down."""


@dataclass
class GuardsConfig:
    """What stops or mends a run whose numbers or machines go wrong (docs/operations.md)."""

    max_skipped: int = 10
    """Steps in a row that may be skipped, as losses or gradients are not finite, before the run stops."""
    spike: Literal["off", "stop", "rewind"] = "off"
    """When the loss jumps and stays up: nothing, stop the run, or go back to a checkpoint and skip the rows since."""
    spike_deviations: float = 8.0
    """How far above the mean of the steps before a loss is high, in their standard deviations."""
    spike_window: int = 100
    """Steps before that mean and deviation are taken of; none is high until there are as many."""
    spike_patience: int = 5
    """High steps in a row that make a spike."""
    max_rewinds: int = 3
    """Rewinds of a run before it stops instead."""
    skip_steps: list[str] = field(default_factory=list)
    """Steps whose rows are passed over, such as ``120-139``, in the numbers of a run without any."""
    hang_seconds: float = 300.0
    """Seconds without a sign of life in a step, after which all ranks write their stacks and end; 0 switches off."""
    slow_ranks_every: int = 100
    """Steps between reports on the times of the ranks; 0 switches them off."""
    slow_ranks_factor: float = 1.3
    """Times what is usual that make a rank a slow one."""
    check_data: Literal["rows", "hashes", "none"] = "rows"
    """Before the first step read some rows of every dataset, or compare all files with their sha256, or neither."""


@dataclass
class RunConfig:
    """Everything a pretraining run needs."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pair: PairConfig = field(default_factory=PairConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    deepspeed_config: str = "ds_configs/zero1.json"
    """DeepSpeed's own settings (ZeRO stage, offload, buckets); what stands in this tree may not stand there too."""
