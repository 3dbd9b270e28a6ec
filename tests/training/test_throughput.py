import torch

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.training.throughput import flops_per_step, memory_gb, peak_tflops


def test_flops_count_every_weight_six_times_per_position() -> None:
    """The weights counted one by one: q, k, v, o, gate, up, down of 2 layers, embedder and heads."""
    model = ModelConfig(
        layers=2, hidden=8, heads=4, kv_heads=2, ffn=16, vocab_size=32, seq_length=10, patch_size=2, num_channels=3
    )
    layer = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16
    pairs = sum(range(1, 5)) + sum(
        range(1, 4)
    )  # rows of 4 and of 3 positions, each attending to itself and those before
    attention = 2 * 8 * pairs  # one product of queries and keys, one of weights and values
    expected = 6 * (2 * (7 * layer + attention) + 3 * 12 * 8 + 2 * 12 * 8 + 4 * 32 * 8)
    assert flops_per_step(model, positions=7, token_targets=4, patch_targets=2, patches=3, attended=pairs) == expected


def test_the_paper_model_needs_six_times_its_weights() -> None:
    model = ModelConfig()
    per_token = flops_per_step(model, 1, 1, 0, 0)
    weights = 24 * (1024 * (2 * 1024 + 2 * 512) + 3 * 1024 * 2816) + 32000 * 1024
    assert per_token == 6 * (weights + 24 * 2 * 1024 * 512)  # 1 * 1025 // 2 pairs


def test_a_cpu_has_memory_but_no_known_peak() -> None:
    assert peak_tflops(torch.device("cpu"), "bf16") is None
    assert 0.01 < memory_gb(torch.device("cpu")) < 1000
