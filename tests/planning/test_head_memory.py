"""What the token head takes for a moment, by the allocator's own record, beside what plans say."""

import pytest
import torch

from benchmarks.training_memory import most_allocated
from megatron_pixel.config import load_config
from megatron_pixel.model import token_loss
from megatron_pixel.model.token_loss import linear_cross_entropy
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.planning.activations import HEAD_ALIGNED, HEAD_CACHED, HEAD_CHUNK, head_transient
from megatron_pixel.planning.setting import Setting

HIDDEN, VOCABULARY = 512, 2000


def setting_of(precision: str) -> Setting:
    words = [f"--model.hidden={HIDDEN}", f"--model.vocab_size={VOCABULARY}", f"--training.precision={precision}"]
    return Setting.of(load_config("megatron_pixel/config/recipes/textgpt-debug.yaml", words), 1, 1)


def test_the_plan_cuts_the_head_as_the_model_does() -> None:
    sizes = token_loss.CHUNK, token_loss.CACHED, token_loss.ALIGNED
    assert sizes == (HEAD_CHUNK, HEAD_CACHED, HEAD_ALIGNED)


@pytest.mark.parametrize("targets", [700, 2048, 2500, 4100])
@pytest.mark.parametrize(
    ("precision", "cuda"),
    [("fp32", False), ("bf16", False), ("fp32", True)],
    ids=["fp32", "bf16", "fp32 as a GPU does it"],
)
def test_logits_and_their_gradients(
    one_process: Mesh, monkeypatch: pytest.MonkeyPatch, precision: str, cuda: bool, targets: int
) -> None:
    """CUDA devices turn a whole chunk into probabilities at once, which a CPU does where the stretch is long enough."""
    if cuda:
        monkeypatch.setattr(token_loss, "CACHED", targets * VOCABULARY)
    setting = setting_of(precision)
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    hidden = torch.randn(targets, HIDDEN).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN).to(dtype).requires_grad_()
    ids = torch.randint(VOCABULARY, (targets,))
    keeps = setting.width * (hidden.numel() + weight.numel())
    measured = most_allocated(lambda: linear_cross_entropy(hidden, weight, ids))
    assert keeps + head_transient(setting, targets, cuda) == pytest.approx(measured, rel=0.1)
