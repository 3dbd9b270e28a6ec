"""The block of lines that a run starts with."""

from collections.abc import Mapping

import megatron_pixel
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.parallel.environment import describe
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.progress import quantity
from megatron_pixel.training.resume import Layout

SYSTEMS = {
    frozenset({Kind.TEXT}): "TextGPT",
    frozenset({Kind.PIXEL}): "PixelGPT",
    frozenset({Kind.TEXT, Kind.PIXEL}): "MonoGPT",
}
"""The paper's name of a mixture; whatever holds pair rows is a DualGPT."""


def start_block(
    config: RunConfig,
    mesh: Mesh,
    layout: Layout,
    parameters: int,
    rows: Mapping[Kind, tuple[int, int]],
    accumulation: int,
) -> str:
    """System, layout, parameters, batch and data in a few lines.

    Args:
        parameters: of the whole model.
        rows: rows of a step and rows of the training data, by kind.
        accumulation: micro-batches of a step on each rank.
    """
    model, training = config.model, config.training
    shares = ", ".join(f"{count:,} {kind.name.lower()}" for kind, (count, _) in rows.items())
    data = ", ".join(
        f"{available:,} {kind.name.lower()} ({count * training.steps / available:.2g} epochs)"
        for kind, (count, available) in rows.items()
    )
    processes = "1 process" if mesh.world_size == 1 else f"{mesh.world_size} processes"
    lines = {
        **describe(mesh.launch),
        "layout": f"{processes} on {mesh.device.type.upper()}: {layout}, {training.precision}",
        "model": f"{quantity(parameters)} parameters: {model.layers} layers, {model.hidden} wide, {model.heads} heads "
        f"({model.kv_heads} key-value), {model.seq_length:,} positions",
        "batch": f"{training.global_batch_rows:,} rows a step ({shares}), micro-batches of "
        f"{training.micro_batch_rows}, {accumulation} accumulated",
        "data": f"rows: {data}" + (" made up on the spot" if config.data.synthetic else ""),
    }
    system = SYSTEMS.get(frozenset(rows), "DualGPT")
    head = f"megatron_pixel {megatron_pixel.__version__}  {system}  {config.run.dir}"
    return "\n".join([head, *(f"  {name:<11} {text}" for name, text in lines.items())])
