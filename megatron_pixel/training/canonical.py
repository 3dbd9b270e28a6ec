"""The canonical form of a model and its optimizer: whole fp32 tensors by parameter name, whatever layout wrote them.

A :class:`Source` gives one tensor at a time, so the memory it takes is that of the largest tensor and not of the model.
There are two: a run's own checkpoint, whose optimizer files hold flat partitions and whose ``pieces-*.json`` say what
is in them; and a checkpoint in canonical form, which holds each tensor in a file of its own.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.sharding import MOMENTS, Piece, Split
from megatron_pixel.training.checkpoint_files import STATE

if TYPE_CHECKING:
    # Brings megatron-core along, for which readers of files have no use.
    from megatron_pixel.parallel.partitions import Partitions

CANONICAL = "canonical"
"""Form of a checkpoint, in its ``state.json``: each tensor whole, in a file of its own."""
PARTITIONED = "partitioned"
"""Form of a checkpoint: DeepSpeed's files, and for each rank the pieces in its optimizer file."""
TENSORS = ("fp32", *MOMENTS)
"""What there is of each parameter: the weight, and AdamW's mean of gradients and of their squares."""
MAPPED_VALUES = 1 << 24
"""Values read from mapped files before they are let go: 64 MB."""
FOLDER = "zero"
"""Files are ``zero/NAME/fp32.pt`` and so on, each ``{"param": tensor}``, as in DeepSpeed's universal checkpoints."""


def pieces_file(rank: int) -> str:
    """Name of the file in which a rank tells what its optimizer file holds."""
    return f"pieces-{rank:05d}.json"


class Source(ABC):
    """The full tensors of a checkpoint, one at a time.

    Args:
        folder: a checkpoint whose files have been checked.
        state: content of its ``state.json``.
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self.steps: int = state["optimizer_steps"]
        """Steps that AdamW has taken."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Full shape of each parameter, by name, in the order of the model."""

    @abstractmethod
    def read(self, name: str, what: str) -> Tensor:
        """fp32 on the CPU: the full weight (``fp32``) or moment (``exp_avg``, ``exp_avg_sq``) of a parameter.

        Raises:
            UserError: the checkpoint does not hold all of it.
        """

    def check_fits(self, shapes: dict[str, tuple[int, ...]], model: str) -> None:
        """Raise UserError unless a model of these parameters is the one in the checkpoint.

        Args:
            shapes: full shapes by name.
            model: what to call it in the message.
        """
        problems = [f"{name}: not in the checkpoint" for name in shapes if name not in self.shapes]
        problems += [f"{name}: not in {model}" for name in self.shapes if name not in shapes]
        problems += [
            f"{name}: {list(self.shapes[name])} in the checkpoint, {list(shape)} in {model}"
            for name, shape in shapes.items()
            if name in self.shapes and tuple(shape) != self.shapes[name]
        ]
        if problems:
            shown = "".join(f"\n  {problem}" for problem in problems[:8])
            more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise UserError(f"{self.folder} holds another architecture:{shown}{more}")


class CanonicalSource(Source):
    """A checkpoint in canonical form."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        super().__init__(folder, state)
        self.shapes = {name: tuple(shape) for name, shape in state["parameters"].items()}

    def read(self, name: str, what: str) -> Tensor:
        path = self.folder / tensor_file(name, what)
        tensor = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["param"]
        if tuple(tensor.shape) != self.shapes[name]:
            raise UserError(f"{path} holds a tensor {list(tensor.shape)} instead of {list(self.shapes[name])}")
        return tensor


@dataclass
class _Parameter:
    """Where the pieces of a parameter lie."""

    split: Split
    tensor_size: int
    stretches: dict[int, list[tuple[str, Piece]]] = field(default_factory=dict)
    """By tensor-parallel rank: optimizer files and what of the rank's share is in them."""


class PartitionedSource(Source):
    """A checkpoint as a run writes it, in the layout of the run."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        super().__init__(folder, state)
        self._parameters: dict[str, _Parameter] = {}
        self._kinds: dict[str, str] = {}
        self._open: dict[str, _OptimizerFile] = {}
        self._touched = 0  # values read from the files that are open
        for path in sorted(folder.glob(pieces_file(0).replace("00000", "*"))):
            self._add_rank(json.loads(path.read_text(encoding="utf-8")))
        # A pipeline's later stages come with later ranks.
        self.shapes = dict(sorted(self.shapes.items(), key=lambda item: int(item[0].partition(".")[0])))

    def _add_rank(self, told: dict[str, Any]) -> None:
        self._kinds[told["file"]] = told["kind"]
        for name, entry in told["parameters"].items():
            self.shapes[name] = tuple(entry["shape"])
            parameter = self._parameters.setdefault(name, _Parameter(Split(**entry["split"]), told["tensor_size"]))
            if entry["piece"] is not None:
                stretches = parameter.stretches.setdefault(told["tensor_rank"], [])
                stretches.append((told["file"], Piece(**entry["piece"])))

    def read(self, name: str, what: str) -> Tensor:
        parameter = self._parameters[name]
        split, size = parameter.split, parameter.tensor_size
        full = torch.empty(self.shapes[name])
        if split.dim is None or size == 1:
            # Tensor-parallel ranks hold equal copies of what is not split.
            self._fill(full, name, what, 0)
            return full
        for rank in range(size):
            share = torch.empty(split.local_shape(self.shapes[name], size))
            self._fill(share, name, what, rank)
            split.put(full, share, size, rank)
        return full

    def _fill(self, share: Tensor, name: str, what: str, tensor_rank: int) -> None:
        flat, filled = share.view(-1), 0
        for file, piece in self._parameters[name].stretches.get(tensor_rank, []):
            for begin in range(0, piece.count, MAPPED_VALUES):
                count = min(MAPPED_VALUES, piece.count - begin)
                target = flat[piece.start + begin :][:count]
                if what == "fp32" or self.steps:
                    self._copy(target, file, what, piece.buffer, piece.offset + begin)
                else:
                    target.zero_()
            filled += piece.count
        if filled != flat.numel():
            raise UserError(
                f"{self.folder} holds {filled:,} of the {flat.numel():,} values of {name} (tensor rank {tensor_rank})"
            )

    def _copy(self, target: Tensor, file: str, what: str, buffer: int, offset: int) -> None:
        # Pages of a mapped file count as memory of the process for as long as it is mapped.
        if self._touched + target.numel() > MAPPED_VALUES:
            self._open.clear()
            self._touched = 0
        target.copy_(self._file(file).values(what, buffer)[offset : offset + target.numel()])
        self._touched += target.numel()

    def _file(self, name: str) -> "_OptimizerFile":
        if name not in self._open:
            self._open[name] = _OptimizerFile(self.folder / name, self._kinds[name])
        return self._open[name]


class _OptimizerFile:
    """A rank's optimizer file of DeepSpeed's, mapped into memory."""

    def __init__(self, path: Path, kind: str) -> None:
        # DeepSpeed puts objects of its own beside the tensors, so torch's weights-only reader refuses the file.
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
        stage3 = kind == "stage3"
        self._weights = state["fp32_flat_groups" if stage3 else "single_partition_of_fp32_groups"]
        self._moments = state["optimizer_state_dict" if stage3 else "base_optimizer_state"]["state"]

    def values(self, what: str, buffer: int) -> Tensor:
        """A whole flat buffer, not yet read from disk."""
        values = self._weights[buffer] if what == "fp32" else self._moments[buffer][what]
        return values.detach()


def open_source(folder: Path) -> Source:
    """The full tensors of a checkpoint of either form."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return (CanonicalSource if state["form"] == CANONICAL else PartitionedSource)(folder, state)


def tensor_file(name: str, what: str) -> str:
    """``zero/0.tokens.weight/fp32.pt``."""
    return f"{FOLDER}/{name}/{what}.pt"


def write_tensors(source: Source, folder: Path, progress: Callable[[int], None]) -> Iterator[str]:
    """Write every tensor of ``source`` to its file in ``folder``; yields each file's relative name once it is written.

    Args:
        progress: called with the bytes of each tensor.
    """
    for name in source.shapes:
        for what in TENSORS:
            progress(_write_tensor(source, name, what, folder))
            yield tensor_file(name, what)


def _write_tensor(source: Source, name: str, what: str, folder: Path) -> int:
    """Bytes of the tensor, which is let go before the next one is read."""
    tensor = source.read(name, what)
    path = folder / tensor_file(name, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"param": tensor}, path)
    return tensor.nbytes


def load_weights(module: torch.nn.Module, source: Source) -> None:
    """Put the weights into a model that is not split, in its own precision.

    Raises:
        UserError: the checkpoint holds another architecture.
    """
    parameters = dict(module.named_parameters())
    source.check_fits({name: tuple(parameter.shape) for name, parameter in parameters.items()}, "the run's config.yaml")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(source.read(name, "fp32"))


def load_partitions(partitions: "Partitions", source: Source) -> None:
    """Put weights and moments into an engine's optimizer and model. Collective; shapes have been checked before."""
    partitions.begin_writing(source.steps)
    for name, held in partitions.held.items():
        for what in TENSORS if source.steps else ("fp32",):
            if partitions.wants(name, what):
                share = held.split.take(source.read(name, what), partitions.tensor_size, partitions.tensor_rank)
                partitions.write(name, what, share)
    partitions.end_writing()
