import numpy as np
import pytest
import torch

from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind, target_masks
from megatron_pixel.model.batch import Header, to_tensors
from megatron_pixel.model.objectives import pretraining_objectives
from tests.model.helpers import rows_of


@pytest.mark.parametrize("kind", Kind)
def test_tensors_hold_the_arrays(small: ModelConfig, kind: Kind) -> None:
    rows = rows_of(kind, small)
    batch = to_tensors(rows, pretraining_objectives(small, LossConfig()))
    for name in ("tokens", "patches", "modality", "position_ids", "segment_ids"):
        array = getattr(rows, name)
        expected = np.empty(0, np.uint8) if array is None else array
        np.testing.assert_array_equal(getattr(batch.inputs, name).numpy(), expected)
        assert getattr(batch.inputs, name).numpy().dtype == expected.dtype


@pytest.mark.parametrize("kind", Kind)
def test_targets_are_the_positions_that_predict(small: ModelConfig, kind: Kind) -> None:
    rows = rows_of(kind, small)
    batch = to_tensors(rows, pretraining_objectives(small, LossConfig()))
    header = Header.read(batch.inputs.header)
    for line, count, mask in zip(
        batch.inputs.targets, header.counts, target_masks(rows.modality, rows.segment_ids), strict=True
    ):
        np.testing.assert_array_equal(line[:count].numpy(), np.flatnonzero(mask))
        assert not line[count:].any()
    assert set(batch.counts) == {Kind.TEXT: {"token"}, Kind.PIXEL: {"patch"}, Kind.PAIR: {"token", "patch"}}[kind]


def test_shapes_that_travel_do_not_depend_on_the_kind(small: ModelConfig) -> None:
    objectives = pretraining_objectives(small, LossConfig())
    shapes = {
        tuple(getattr(to_tensors(rows_of(kind, small), objectives).inputs, name).shape for name in names)
        for kind in Kind
        for names in [("position_ids", "segment_ids", "targets", "header")]
    }
    assert len(shapes) == 1


@pytest.mark.parametrize(("layout", "inner"), [("compact", False), ("released", True)])
def test_padding_between_content_is_noticed(small: ModelConfig, layout: str, inner: bool) -> None:
    batch = to_tensors(rows_of(Kind.PAIR, small, layout=layout), pretraining_objectives(small, LossConfig()))
    assert Header.read(batch.inputs.header).inner_padding is inner


def test_a_header_survives_its_tensor() -> None:
    header = Header(Kind.PAIR, True, (3, 70_000))
    assert Header.read(header.tensor()) == header
    assert header.tensor().dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_header_stays_on_the_host(small: ModelConfig) -> None:
    batch = to_tensors(rows_of(Kind.PAIR, small), pretraining_objectives(small, LossConfig()), "cuda")
    assert {tensor.device.type for tensor in batch.inputs[:-1]} == {"cuda"}
    assert batch.inputs.header.device.type == "cpu"
