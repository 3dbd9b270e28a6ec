"""A released checkpoint as a source of our parameters, one at a time."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.interop import safetensors
from megatron_pixel.interop.config_json import CONFIG, MODEL_TYPES, Described, read_config
from megatron_pixel.interop.names import SCORE, head_name, parameters
from megatron_pixel.training.canonical import Source

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.model"
_SHOWN = 5
_LLAMA_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_BUFFERS = ("rotary_emb.inv_freq", "position_ids")
"""Endings of tensors that older programs saved and that are no weights."""


def is_released(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that :func:`open_released` is for (which may still find it damaged)."""
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type") in MODEL_TYPES
    except (OSError, ValueError, AttributeError):
        return False


def open_released(folder: Path) -> "Released":
    """Open a folder in the released layout or in plain Llama's.

    Raises:
        UserError: no checkpoint, a missing shard, an unknown dtype, or tensors that do not fit; the first are named.
    """
    return Released(folder)


class Released(Source):
    """The parameters of a released checkpoint under our names.

    Parameters that the checkpoint does not have (a Llama's patch embedder and pixel head, the two pretraining heads of
    a classifier) are absent from ``shapes``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"optimizer_steps": 0})
        self.described: Described = read_config(folder)
        self.model = self.described.model
        self.pair = self.described.pair
        self._entries = find_tensors(folder)
        labels = self._labels()
        self._parameters = {p.name: p for p in parameters(self.model, self.described.layout, labels)}
        self._alias = {}
        if self.described.tied and _LLAMA_HEAD not in self._entries:
            self._alias[_LLAMA_HEAD] = _EMBEDDING
        self._check()
        self.shapes = {name: parameter.shape for name, parameter in self._parameters.items()}

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer's sentencepiece model, if there is one in the folder."""
        path = self.folder / TOKENIZER
        return path if path.is_file() else None

    @property
    def score(self) -> Tensor | None:
        """The head of a classifier, fp32 [labels, hidden]."""
        name = head_name(self.model, SCORE)
        return self.read(name, "fp32") if name in self.shapes else None

    @property
    def dtype(self) -> str:
        """Precision of the largest part of the values: a key of :data:`megatron_pixel.interop.safetensors.DTYPES`."""
        counts: dict[str, int] = {}
        for parameter in self._parameters.values():
            for part in parameter.parts:
                dtype = self._entry(part.name).dtype
                counts[dtype] = counts.get(dtype, 0) + parameter.size
        return max(counts, key=lambda dtype: counts[dtype])

    def read(self, name: str, what: str) -> Tensor:
        """fp32 on the CPU, our layout; a checkpoint holds no moments, so ``what`` is ``fp32``."""
        if what != "fp32":
            raise ValueError(f"a released checkpoint holds weights, no {what}")
        parameter = self._parameters[name]
        full = torch.empty(parameter.shape)
        for part in parameter.parts:
            safetensors.read_into(self._entry(part.name), part.view(full))
        return full

    def _entry(self, name: str) -> safetensors.Entry:
        return self._entries[self._alias.get(name, name)]

    def _labels(self) -> int:
        score = self._entries.get("score.weight")
        if score is None:
            return 0
        return score.shape[0]

    def _check(self) -> None:
        """Refuse tensors that are missing, left over or of another shape."""
        wanted = {part.name: part.shape for p in self._parameters.values() for part in p.parts}
        problems = [f"{name} {list(shape)}: missing" for name, shape in wanted.items() if not self._has(name)]
        problems += [
            f"{name}: {list(self._entry(name).shape)} where config.json makes it {list(shape)}"
            for name, shape in wanted.items()
            if self._has(name) and self._entry(name).shape != shape
        ]
        problems += [
            f"{name} {list(entry.shape)}: no part of this architecture"
            for name, entry in self._entries.items()
            if name not in wanted and not name.endswith(_BUFFERS) and not (self.described.tied and name == _LLAMA_HEAD)
        ]
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise UserError("\n  ".join([f"{self.folder} does not fit its config.json:", *problems[:_SHOWN], *more]))

    def _has(self, name: str) -> bool:
        return self._alias.get(name, name) in self._entries


def find_tensors(folder: Path) -> dict[str, safetensors.Entry]:
    """Every tensor of a folder, from one file or from those that its index names.

    Raises:
        UserError: no such files, a shard that is missing, or an index that names tensors which are not there.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return safetensors.read_header(folder / SINGLE)
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))[:3])
        hint = f"; it has {others}: save it with safe_serialization=True first" if others else ""
        raise UserError(f"{folder} is no checkpoint: it has neither {SINGLE} nor {INDEX}{hint}")
    places = _weight_map(index)
    missing = sorted({file for file in places.values() if not (folder / file).is_file()})
    if missing:
        raise UserError(
            f"{folder} is not whole: {missing[0]} is missing ({len(missing)} of {len(set(places.values()))})"
        )
    found: dict[str, safetensors.Entry] = {}
    for file in sorted(set(places.values())):
        found |= safetensors.read_header(folder / file)
    absent = [name for name in places if name not in found]
    if absent:
        raise UserError(f"{folder} is not whole: {INDEX} names {absent[0]}, which {places[absent[0]]} does not hold")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        places: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not places or not all(isinstance(file, str) and Path(file).name == file for file in places.values()):
            raise ValueError("weight_map must name files of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be used: {type(error).__name__} {error}") from None
    return dict(places)
