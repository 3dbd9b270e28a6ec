"""Weights of the classifier from what fine-tuning starts from."""

from dataclasses import dataclass

import torch
from torch import nn

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.finetuning.classifier import averaged_channels
from megatron_pixel.finetuning.origin import PROJECTION, Start, score_name


@dataclass(frozen=True)
class Loaded:
    """What was put into the classifier."""

    averaged: bool
    """Whether RGB weights were averaged for one channel."""
    score: bool
    """Whether the classifier's own matrix was among them."""
    unnamed: bool = False
    """Whether its classes have numbers only, so that nobody can tell whether they are the task's."""


def load_start(network: nn.Module, start: Start, model: ModelConfig, classes: list[str] | None, head: str) -> Loaded:
    """Fill the classifier from ``start``.

    Args:
        network: the classifier, whose architecture is ``model`` (one channel where pages are gray).
        classes: of the task, to be those of a fine-tuned start.
        head: ``auto`` takes the start's classifier over, ``new`` does not.

    Raises:
        UserError: another architecture, or other classes than the start was fine-tuned on.
    """
    parameters = dict(network.named_parameters())
    score = score_name(model)
    takes_score = head == "auto" and score in start.weights.shapes
    unnamed = takes_score and start.released and start.classes is None  # then only their number can differ
    if takes_score:
        told, wanted = _shown(start.classes), _shown(classes)
        differ = start.classes != classes
        if unnamed:
            width, needed = start.weights.shapes[score][0], len(classes or ("score",))
            told, differ = f"{width} classes without names", width != needed
        if differ:
            raise UserError(
                f"{start.where} tells {told} apart, and the task has {wanted}: set head to new to put a fresh "
                "classifier on it, or start from the pretrained checkpoint"
            )
    averaged = False
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name == score and not takes_score:
                continue
            if name not in start.weights.shapes:
                if not parameter.requires_grad:
                    continue  # the embedder of a modality that a released model lacks
                raise UserError(f"{start.where} holds no {name}: it is no model of this architecture")
            tensor = start.weights.read(name)
            if name == PROJECTION and tensor.shape[1] == 3 * parameter.shape[1]:
                tensor, averaged = averaged_channels(tensor, model.patch_size), True
            if tensor.shape != parameter.shape:
                raise UserError(f"{start.where}: {name} is {list(tensor.shape)}, and {list(parameter.shape)} here")
            parameter.copy_(tensor)
    return Loaded(averaged, takes_score, unnamed)


def _shown(classes: list[str] | None) -> str:
    if not classes:
        return "a score"
    return ", ".join(classes) if len(classes) <= 6 else f"{len(classes)} classes"
