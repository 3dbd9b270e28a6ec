"""Micro-batch and recomputed layers where they are left to the program (``auto``): the fastest that fits the device.

For every micro-batch that divides the step, the fewest layers are recomputed with which it fits; of these settings the
one with the shortest predicted step is taken. Large micro-batches start fewer operations and add gradients up less
often; in a pipeline they make the bubble larger; a recomputed layer computes a third more.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd

from megatron_pixel.config.automatic import LAYERS, ROWS, automatic, decided, least
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.layers import name_layers
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.mixture import Mixture
from megatron_pixel.parallel.layout import check_layout, data_parallel_size
from megatron_pixel.planning.devices import Device, device_here
from megatron_pixel.planning.fitting import nearest_fit
from megatron_pixel.planning.memory import RESERVE
from megatron_pixel.planning.plan import Plan
from megatron_pixel.planning.setting import Setting

GB = 1e9
ALIKE = 0.005
"""Steps whose times differ by less take equally long: of these the smallest micro-batch, which leaves memory free."""


@dataclass(frozen=True)
class Choice:
    """What was decided."""

    config: RunConfig
    """Of the run, with plain values."""
    plan: Plan
    why: str
    """A line: what was taken, the bytes that it needs of those there, and what the next larger would take."""


def choose_here(
    config: RunConfig, devices: int, node: int, found: tuple[str, int] | None
) -> tuple[RunConfig, str | None]:
    """The settings of a run that begins, ``auto`` decided for the devices that it is on.

    Args:
        config: the checked config tree.
        devices: of the run.
        node: devices of a node.
        found: name and bytes of the CUDA device with the least memory; None on CPUs.

    Returns:
        The config with plain values, and :attr:`Choice.why`; None where nothing was left to the program.

    Raises:
        UserError: nobody says how much memory there is; or see :func:`choose`.
    """
    names = automatic(config)
    if not names:
        return config, None
    given = config.parallel.device_memory_gb
    if found is None and given is None:
        raise UserError(
            f"{names[0]}: auto fills the memory of a device, and a CPU does not tell how much of it is for this "
            "process: add --parallel.device_memory_gb GB, or set a value"
        )
    name, there = found or (None, 0)
    choice = choose(config, devices, node, device_here(name, there if given is None else given * GB))
    return choice.config, choice.why


def choose(config: RunConfig, devices: int, node: int, device: Device) -> Choice:
    """The fastest setting that fits; what is not ``auto`` stays as it is.

    Args:
        config: the checked config tree.
        devices: of the run.
        node: devices of a node.
        device: each of them.

    Raises:
        UserError: see :func:`megatron_pixel.parallel.layout.check_layout`; or not even the least setting fits.
    """
    check_layout(config, devices)
    sizes = _sizes(config, devices)
    plans: dict[int, Plan] = {}
    seconds: dict[int, float] = {}
    for rows in reversed(sizes):
        plan = _fewest_recomputed(config, Plan(_setting(config, rows, devices, node), device))
        if plan is None:
            continue
        plans[rows], seconds[rows] = plan, _seconds(plan)
        saves_nothing = LAYERS not in automatic(config) or not plan.setting.recompute
        if plan.setting.pipeline == 1 and saves_nothing and not _alike(seconds, rows):
            break  # smaller ones are slower still: they shorten no bubble, and save no layer from being recomputed
    if not plans:
        raise UserError(_nothing_fits(config, Plan(Setting.of(least(config), devices, node), device)))
    rows = min(rows for rows in plans if _alike(seconds, rows))
    chosen = plans[rows]
    next_up = next((size for size in sizes if size > rows), None)
    why = f"{_settings(chosen)}: {_memory(chosen)}"
    if next_up in plans:
        why += f"; {_larger(plans[next_up], seconds[next_up] / seconds[rows] - 1)}"
    elif next_up is not None:
        why += f"; {_too_large(config, Plan(_setting(config, next_up, devices, node), device))}"
    return Choice(decided(config, rows, name_layers(chosen.setting.recompute, config.model.layers)), chosen, why)


def _sizes(config: RunConfig, devices: int) -> list[int]:
    """Rows that a micro-batch may have, ascending."""
    smallest = least(config)
    if ROWS not in automatic(config):
        return [smallest.training.micro_rows]
    data = data_parallel_size(config.parallel, devices)
    counts = Mixture.from_config(config.data, smallest.training, data).rows_per_step.values()
    most = gcd(*counts) // data
    return [rows for rows in range(1, most + 1) if most % rows == 0]


def _setting(config: RunConfig, rows: int, devices: int, node: int) -> Setting:
    """With micro-batches of so many rows; where layers are left to the program, none is recomputed."""
    return Setting.of(decided(config, rows, "none"), devices, node)


def _fewest_recomputed(config: RunConfig, plan: Plan) -> Plan | None:
    """The plan with the fewest recomputed layers on each pipeline rank, the first ones, with which it fits.

    None where it never does.
    """
    setting = plan.setting
    if LAYERS not in automatic(config):
        return plan if plan.fits else None
    recompute: frozenset[int] = frozenset()
    for pipe in range(setting.pipeline):
        layers = setting.layers(pipe)

        def fits(count: int, pipe: int = pipe, layers: list[int] = layers) -> bool:
            tried = replace(plan, setting=replace(setting, recompute=frozenset(layers[:count])))
            return tried.memory_of(pipe).total <= plan.usable

        if fits(0):
            continue
        if not fits(len(layers)):
            return None
        recompute |= frozenset(layers[: bisect_left(range(1, len(layers)), True, key=fits) + 1])
    return replace(plan, setting=replace(setting, recompute=recompute))


def _seconds(plan: Plan) -> float:
    """Of a step: the predictor's, and what every micro-batch costs besides its rows.

    Its gradients are read and added to those of the step, which are fp32. The predictor's constants are fitted on whole
    steps, so they hold that on the average; beside each other, micro-batches of different sizes differ by it.
    """
    setting = plan.setting
    most = max(plan.parameters(pipe) for pipe in range(setting.pipeline))
    return plan.speed.seconds + len(setting.kinds) * most * (setting.width + 8) / plan.device.bandwidth


def _alike(seconds: Mapping[int, float], rows: int) -> bool:
    return seconds[rows] <= (1 + ALIKE) * min(seconds.values())


def _settings(plan: Plan) -> str:
    setting = plan.setting
    again, layers = len(setting.recompute), setting.model.layers
    recomputed = f"{again} of {layers} layers recomputed" if again else "no layer recomputed"
    return f"micro-batches of {setting.rows} row{'s' if setting.rows > 1 else ''}, {recomputed}"


def _memory(plan: Plan) -> str:
    device = plan.device
    return (
        f"{_amount(plan.most)} by the memory model, of {_amount(plan.usable)} that can be used of {device.title} "
        f"({_amount(device.memory)}, {RESERVE:.0%} kept back)"
    )


def _amount(count: float) -> str:
    return f"{count / GB:.3g} GB" if count >= 0.1 * GB else f"{1e3 * count / GB:.3g} MB"


def _larger(plan: Plan, longer: float) -> str:
    """About the next size, which fits."""
    pace = f"take {longer:.1%} longer" if longer > 0 else f"save {abs(longer):.1%} of the time"
    return f"{_settings(plan)}, would need {_amount(plan.most)} and {pace}"


def _too_large(config: RunConfig, plan: Plan) -> str:
    """About the next size, which does not fit."""
    if LAYERS in automatic(config):
        every = frozenset(range(1, config.model.layers + 1))
        plan = replace(plan, setting=replace(plan.setting, recompute=every))
    return f"{_settings(plan)}, would need {_amount(plan.most)}"


def _nothing_fits(config: RunConfig, plan: Plan) -> str:
    nearest = nearest_fit(least(config), plan)
    way_out = (
        f"no layout of {_count(plan.setting.devices)} fits: take more of them"
        if nearest is None
        else f"nearest that fits: {' '.join(nearest.words)}"
    )
    return f"{automatic(config)[0]}: auto finds nothing that fits: {_settings(plan)} need {_memory(plan)}; {way_out}"


def _count(devices: int) -> str:
    return f"{devices} such devices" if devices > 1 else "one such device"
