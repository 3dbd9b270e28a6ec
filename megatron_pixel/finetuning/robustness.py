"""How a fine-tuned model bears orthographic noise: its score on attacked texts, attack by attack and rate by rate."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.finetuning.attacks import ATTACKS, attacked
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.finetuning.inference import open_classifier
from megatron_pixel.finetuning.metrics import majority
from megatron_pixel.parallel.mesh import mesh


def noisy(examples: Examples, attack: str, rate: float) -> Examples:
    """The same examples with attacked texts."""
    second = examples.second
    return replace(
        examples,
        first=[attacked(text, attack, rate) for text in examples.first],
        second=None if second is None else [attacked(text, attack, rate) for text in second],
    )


def measure(
    run: Path, attacks: Sequence[str], rates: Sequence[float], limit: int, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Score the best model of a run on its first evaluation split, clean and attacked; shows a table as it goes.

    Returns:
        ``{"metric", "split", "clean", "majority", "attacks": {attack: {rate: score}}}``.

    Raises:
        UserError: no such run, no such attack, rates outside 0 to 1, or examples that are images alone.
    """
    unknown = [attack for attack in attacks if attack not in ATTACKS]
    if unknown:
        raise UserError(f"--attacks: there is no {', '.join(unknown)}; known: {', '.join(ATTACKS)}")
    if not all(0 < rate <= 1 for rate in rates):
        raise UserError(f"--rates: shares of letters above 0 and up to 1, not {', '.join(map(str, rates))}")
    with mesh(ParallelConfig()) as here:
        model = open_classifier(run, here)
        split = model.data.evaluation[0].take(limit)
        if split.images is not None:
            raise UserError(f"{run}: its examples are rendered images; attacks need their texts")
        train, labels = model.data.train.labels, split.labels
        assert train is not None
        assert labels is not None
        metric = model.task.metric
        clean = model.scores(split)[metric]
        floor = majority(metric, train, labels)
        show(f"{run}: {model.task.title}, modality {model.config.modality}, {len(split):,} examples of {split.name}")
        show(f"{metric}: clean {clean:.4f}, majority {floor:.4f}")
        show(f"{'attack':12}" + "".join(f"{rate:>9.0%}" for rate in rates))
        found: dict[str, dict[str, float]] = {}
        for attack in attacks:
            found[attack] = {str(rate): model.scores(noisy(split, attack, rate))[metric] for rate in rates}
            show(f"{attack:12}" + "".join(f"{value:9.4f}" for value in found[attack].values()))
    return {
        "metric": metric,
        "split": split.name,
        "examples": len(split),
        "modality": model.config.modality,
        "system": model.start.system,
        "clean": clean,
        "majority": floor,
        "attacks": found,
    }
