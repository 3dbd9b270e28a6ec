"""The layouts next to one that does not fit: which of them do, and which is nearest."""

import dataclasses
from collections.abc import Iterator

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.config.validation import validate
from megatron_pixel.parallel.layout import check_layout
from megatron_pixel.planning.plan import Plan
from megatron_pixel.planning.setting import Setting

SIZES = (1, 2, 4, 8, 16, 32)
"""Of tensor and pipeline parallelism that are tried."""
FILES = ("zero1", "zero2", "zero3", "offload")


@dataclasses.dataclass(frozen=True)
class Nearest:
    """A layout that fits."""

    words: tuple[str, ...]
    """Settings to add to the command line."""
    plan: Plan


def nearest_fit(config: RunConfig, plan: Plan) -> Nearest | None:
    """The layout of the same devices that fits with the fewest settings changed; among those the fastest.

    Args:
        config: of the run, whose layout does not fit.
        plan: of that layout.
    """
    best: Nearest | None = None
    candidates = sorted(_candidates(config, plan.setting), key=len)
    for words in candidates:
        if best is not None and len(words) > len(best.words):
            break
        found = _plan(config, words, plan)
        if found is not None and found.fits and (best is None or found.speed.seconds < best.plan.speed.seconds):
            best = Nearest(tuple(f"--{key} {value}" for key, value in words.items()), found)
    return best


def other_layouts(config: RunConfig, plan: Plan) -> list[Plan]:
    """Layouts of the same devices and micro-batches that fit, the fastest first."""
    found = [plan]
    for words in _candidates(config, plan.setting, smaller_batches=False):
        other = _plan(config, words, plan)
        found += [] if other is None else [other]
    return sorted((other for other in found if other.fits), key=lambda other: other.speed.seconds)


def _candidates(config: RunConfig, setting: Setting, smaller_batches: bool = True) -> Iterator[dict[str, str]]:
    """Changed settings, by name."""
    rows = config.training.micro_rows
    now = {
        "parallel.tensor": str(setting.tensor),
        "parallel.pipeline": str(setting.pipeline),
        "deepspeed_config": config.deepspeed_config,
        "parallel.activation_checkpointing": config.parallel.activation_checkpointing,
        "training.micro_batch_rows": str(rows),
    }
    parts = (1, 2, 4, 8, 16, 32) if smaller_batches else (1,)
    smaller = [rows // part for part in parts if rows % part == 0]
    for tensor in (size for size in SIZES if size <= min(setting.node, setting.devices)):
        for pipeline in (size for size in SIZES if size * tensor <= setting.devices):
            for file in dict.fromkeys([config.deepspeed_config, *(f"ds_configs/{name}.json" for name in FILES)]):
                for layers in dict.fromkeys([config.parallel.activation_checkpointing, "all"]):
                    for micro in smaller:
                        values = (str(tensor), str(pipeline), file, layers, str(micro))
                        words = dict(zip(now, values, strict=True))
                        changed = {key: value for key, value in words.items() if value != now[key]}
                        if changed:
                            yield changed


def _plan(config: RunConfig, words: dict[str, str], plan: Plan) -> Plan | None:
    """The plan with other settings; None where they cannot run."""
    changed = dataclasses.replace(
        config,
        parallel=dataclasses.replace(
            config.parallel,
            tensor=int(words.get("parallel.tensor", config.parallel.tensor)),
            pipeline=int(words.get("parallel.pipeline", config.parallel.pipeline)),
            activation_checkpointing=words.get(
                "parallel.activation_checkpointing", config.parallel.activation_checkpointing
            ),
        ),
        training=dataclasses.replace(
            config.training,
            micro_batch_rows=int(words.get("training.micro_batch_rows", config.training.micro_rows)),
        ),
        deepspeed_config=words.get("deepspeed_config", config.deepspeed_config),
    )
    try:
        validate(changed)
        check_layout(changed, plan.setting.devices)
        setting = Setting.of(changed, plan.setting.devices, plan.setting.node)
    except UserError:
        return None
    return Plan(setting, plan.device, plan.constants)
