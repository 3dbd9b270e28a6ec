#!/usr/bin/env python
"""Step time and memory by how DeepSpeed reduces gradients: bucket size, overlap with the backward pass, one buffer.

    python benchmarks/buckets.py
    python benchmarks/buckets.py --processes 8 --layers 24 --hidden 1024 --rows 8 --json buckets_gpu.json

On as many processes as asked for, with NCCL and a GPU each where there are GPUs, with gloo otherwise. At every ZeRO
stage a setting is the file of ds_configs with one thing changed. They take their steps in turns, in one run, so that
a ratio is of steps that are neighbors; it is the median over the rounds of this file's time to the setting's: above 1
the setting is faster. Messages and megabytes are those of a step between the processes, counted; *takes, MB* is what
the step allocates at the most above what is held between steps. In bf16 DeepSpeed sums the gradients of ZeRO 1
without these settings, so ZeRO 1 is left out there.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.quiet import silence_libraries

RECIPE = ROOT / "megatron_pixel" / "config" / "recipes" / "dualgpt-debug.yaml"
FILES = {stage: f"ds_configs/zero{stage}.json" for stage in (1, 2, 3)}
RANK = "--rank-of"
"""Marks a process of the measurement; behind it stands the file for its figures."""
METHODS = "allreduce allgather all_gather_single reduce_scatter reduce_scatter_single reduce broadcast".split()
"""Of a process group, those that move tensors."""


def main(words: Sequence[str]) -> None:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--processes", type=int, default=2, metavar="N", help="(default: %(default)s)")
    add("--layers", type=int, default=4, help="decoder layers (default: %(default)s)")
    add("--hidden", type=int, default=512, help="their width (default: %(default)s)")
    add("--vocab-size", type=int, default=8000, help="(default: %(default)s)")
    add("--seq-length", type=int, default=256, help="positions of a row (default: %(default)s)")
    add("--rows", type=int, default=1, help="of a micro-batch (default: %(default)s)")
    add("--accumulation", type=int, default=2, help="micro-batches of a step on each process (default: %(default)s)")
    sizes = [1e6, 5e6, 5e7, 5e8]
    add("--buckets", type=float, nargs="+", default=sizes, metavar="VALUES", help="(default: %(default)s)")
    add("--stages", type=int, nargs="+", choices=FILES, default=list(FILES), metavar="N", help="(default: %(default)s)")
    add("--precision", choices=["fp32", "bf16"], help="(default: bf16 on GPUs, fp32 on CPUs)")
    add("--rounds", type=int, default=5, help="turns that each setting takes (default: %(default)s)")
    add(RANK, type=Path, help=argparse.SUPPRESS)
    result_file.add_json_argument(parser)
    arguments = parser.parse_args(words)
    silence_libraries()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler would tell of every start
    if arguments.rank_of is not None:
        measure(arguments)
        return
    # Imported here: it loads torch.
    from megatron_pixel.parallel.local_ranks import LocalRanks

    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, __file__, *words, RANK, str(figures)]
        with LocalRanks(command, arguments.processes, Path(folder) / "log") as ranks:
            failed = ranks.wait(grace=30)
        if failed is not None:
            raise UserError(f"rank {failed.rank} {failed.cause()}")
        result_file.write(arguments.json, json.loads(figures.read_text()), ("torch", "deepspeed"))


def settings(stage: int, buckets: Sequence[float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is compared: the file of the stage first, then one thing changed at a time."""
    given = json.loads((ROOT / FILES[stage]).read_text())["zero_optimization"]
    overlaps = bool(given.get("overlap_comm", False))
    yield f"`{FILES[stage]}`", given
    for size in (size for size in buckets if size != given.get("reduce_bucket_size")):
        yield f"`reduce_bucket_size` {size:,.0f}", {**given, "reduce_bucket_size": int(size)}
    yield f"`overlap_comm` {json.dumps(not overlaps)}", {**given, "overlap_comm": not overlaps}
    yield "`contiguous_gradients` false", {**given, "contiguous_gradients": False}


def measure(arguments: argparse.Namespace) -> None:
    """In each process: all settings of a stage, in turns."""
    import torch

    from megatron_pixel.parallel.mesh import mesh

    precision = arguments.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    folder = arguments.rank_of.parent
    figures: dict[str, Any] = {}
    with mesh(config_of(arguments, precision, FILES[1]).parallel) as here:
        figures |= {
            "device": torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "CPU",
            "processes": here.world_size,
            "precision": precision,
            "model": {name: getattr(arguments, name) for name in ("layers", "hidden", "vocab_size", "seq_length")},
            "rows": arguments.rows,
            "accumulation": arguments.accumulation,
            "rounds": arguments.rounds,
        }
        for stage in (stage for stage in arguments.stages if (stage, precision) != (1, "bf16")):
            sides = {}
            for number, (name, content) in enumerate(settings(stage, arguments.buckets)):
                file = folder / f"rank{here.rank}-{stage}-{number}.json"
                file.write_text(json.dumps({"zero_optimization": content}))
                sides[name] = Side(config_of(arguments, precision, str(file)), here)
                if here.is_main:
                    print(f"ZeRO {stage}, {name}: built", flush=True)
            found = rounds(sides, arguments.rounds, lambda text: print(text, flush=True) if here.is_main else None)
            figures[f"zero{stage}"] = found
            figures["parameters"] = next(iter(sides.values())).parameters
            del sides
    if here.is_main:
        arguments.rank_of.write_text(json.dumps(figures))


def config_of(arguments: argparse.Namespace, precision: str, file: str) -> RunConfig:
    """Rows of text alone: what is reduced does not depend on what rows hold."""
    rows = arguments.rows * arguments.accumulation * arguments.processes
    heads = max(1, arguments.hidden // 64)
    words = {
        "model.layers": arguments.layers,
        "model.hidden": arguments.hidden,
        "model.heads": heads,
        "model.kv_heads": max(1, heads // 2),
        "model.ffn": arguments.hidden * 11 // 4,
        "model.vocab_size": arguments.vocab_size,
        "model.seq_length": arguments.seq_length,
        "pair.patches": arguments.seq_length // 2,
        "pair.tokens": arguments.seq_length // 2,
        "data.mixture": "1:0:0",
        "training.global_batch_rows": rows,
        "training.micro_batch_rows": arguments.rows,
        "training.precision": precision,
        "deepspeed_config": file,
    }
    return load_config(RECIPE, [f"--{key}={value}" for key, value in words.items()])


class Side:
    """One setting: an engine of its own, and the rows of a step.

    Attributes:
        parameters: of the model.
    """

    def __init__(self, config: RunConfig, here: Any) -> None:
        from megatron_pixel.data.mixture import open_training
        from megatron_pixel.model.batch import to_tensors
        from megatron_pixel.model.objectives import losses, pretraining_objectives
        from megatron_pixel.model.stages import stage_specs
        from megatron_pixel.parallel.build import build_training
        from megatron_pixel.parallel.cut import boundaries
        from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
        from megatron_pixel.parallel.engine import merged_config, set_learning_rate

        objectives = pretraining_objectives(config.model, config.loss)
        reader = open_training(config.data, config.model, config.pair, config.training, here.data_size)
        count = reader.num_micro_batches(here.data_size)
        file = DeepSpeedFile(config.deepspeed_config)
        merged = merged_config(file, config.training, config.optimizer, count, cuda=here.device.type == "cuda")
        specs = stage_specs(config.model, objectives, seed=1, touch_all=file.touches_all)
        self._here = here
        self._execution, self.parameters = build_training(specs, boundaries(config), merged, 0.0, here)
        set_learning_rate(self._execution.engine, 1e-4)
        numbers = range(count)
        rows = [reader.micro_batch(0, number, here.data_rank, here.data_size) for number in numbers]
        self._batches = [to_tensors(part, objectives, here.device) for part in rows]

        def loss(outputs: Any, batch: Any) -> Any:
            (term,) = (term for term in losses(outputs, batch.labels, objectives).values() if term.count)
            return term.sum / term.count

        self._loss = loss

    def step(self) -> float:
        """Seconds from all processes' begin to the last one's end."""
        import torch
        import torch.distributed as dist

        dist.barrier()
        begin = time.perf_counter()
        self._execution.step(self._batches, self._loss, [batch.inputs.header for batch in self._batches])
        if self._here.device.type == "cuda":
            torch.cuda.synchronize(self._here.device)
        dist.barrier()
        return time.perf_counter() - begin

    def allocated(self) -> int:
        """Most bytes that a step has allocated at a time, above those before it."""
        import torch

        from benchmarks.training_memory import most_allocated

        if self._here.device.type != "cuda":
            return most_allocated(self.step)
        torch.cuda.reset_peak_memory_stats(self._here.device)
        before = torch.cuda.memory_allocated(self._here.device)
        self.step()
        return torch.cuda.max_memory_allocated(self._here.device) - before


def rounds(sides: Mapping[str, Side], count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Time, messages and bytes of every setting; the first is what others are compared with."""
    found: dict[str, dict[str, Any]] = {}
    for name, side in sides.items():
        side.step()  # makes the optimizer's moments
        with counted() as sent:
            taken = side.allocated()
        found[name] = {"messages": len(sent), "sent_megabytes": sum(sent) / 1e6, "added_megabytes": taken / 1e6}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(count):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for name in order:
            times[name].append(sides[name].step())
    base = times[next(iter(sides))]
    for name, own in times.items():
        ratios = [mine / its for mine, its in zip(base, own, strict=True)]
        found[name] |= {
            "step_seconds": statistics.median(own),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        row = found[name]
        say(
            f"  {name}: {1e3 * row['step_seconds']:.0f} ms, ratio {row['ratio']:.3f}, {row['messages']} messages, "
            f"{row['sent_megabytes']:.1f} MB sent, {row['added_megabytes']:.0f} MB taken"
        )
    return found


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of every operation between processes, one entry each."""
    from torch.distributed import ProcessGroup

    sent: list[int] = []
    originals = {name: vars(ProcessGroup)[name] for name in METHODS if name in vars(ProcessGroup)}

    def counting(name: str) -> Callable[..., Any]:
        def call(group: Any, *arguments: Any, **options: Any) -> Any:
            given = arguments[1 if name.startswith("reduce_scatter") else 0]
            tensors = given if isinstance(given, list) else [given]
            if group.size() > 1 and tensors and hasattr(tensors[0], "nbytes"):
                sent.append(sum(tensor.nbytes for tensor in tensors))
            return originals[name].__get__(group)(*arguments, **options)

        return call

    for name in originals:
        setattr(ProcessGroup, name, counting(name))
    try:
        yield sent
    finally:
        for name, method in originals.items():
            setattr(ProcessGroup, name, method)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
