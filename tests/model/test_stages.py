import pytest
import torch
from torch import nn

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind, Modality
from megatron_pixel.model.attention import MaskKind
from megatron_pixel.model.batch import Batch
from megatron_pixel.model.objectives import NextPatch, NextToken, Objective, losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages, stage_specs
from tests.model.helpers import batch_of, build


def total_loss(network: nn.Sequential, batch: Batch, objectives: tuple[Objective, ...]) -> torch.Tensor:
    return sum(part.sum for part in losses(network(batch.inputs), batch.labels, objectives).values())


def gradients(
    network: nn.Sequential, batch: Batch, objectives: tuple[Objective, ...]
) -> dict[str, torch.Tensor | None]:
    network.zero_grad()
    total_loss(network, batch, objectives).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def test_the_papers_model_has_its_number_of_parameters() -> None:
    """Tables 8 and 9: 317M without heads; about 350M with both."""
    model = ModelConfig()
    with torch.device("meta"):
        stages = build_stages(model, pretraining_objectives(model, LossConfig()), seed=0)
    count = [sum(parameter.numel() for parameter in stage.parameters()) for stage in stages]
    assert round(sum(count[:-1]) / 1e6) == 317
    assert round(sum(count) / 1e6) == 350
    # The same by hand: qkv, projection, gate and up, down, two norms; 24 times.
    h, f = 1024, 2816
    assert sum(count[1:-2]) == 24 * (h * (h + 2 * h // 2) + h * h + h * 2 * f + f * h + 2 * h)
    assert count[0] == 32000 * h + 768 * h + h + 2 * h
    assert count[-1] == 32000 * h + 768 * h


def test_parameter_names_are_those_of_the_list(small: ModelConfig) -> None:
    network, _ = build(small)
    names = list(dict(network.named_parameters()))
    assert names == list(network.state_dict()), "the state dict holds parameters and nothing else"
    assert names[0] == "0.tokens.weight"
    assert "2.layer.self_attention.linear_qkv.weight" in names
    assert names[-3:] == ["3.norm.weight", "4.heads.token.linear.weight", "4.heads.patch.linear.weight"]


def test_a_state_dict_goes_into_another_model(small: ModelConfig) -> None:
    first, objectives = build(small, seed=1)
    second, _ = build(small, seed=2)
    batch = batch_of(Kind.PAIR, small, objectives)
    assert total_loss(first, batch, objectives) != total_loss(second, batch, objectives)
    second.load_state_dict(first.state_dict())
    assert total_loss(first, batch, objectives) == total_loss(second, batch, objectives)


def test_weights_depend_on_seed_and_stage_alone(small: ModelConfig) -> None:
    objectives = pretraining_objectives(small, LossConfig())
    whole = build_stages(small, objectives, seed=5)
    state = torch.get_rng_state()
    specs = stage_specs(small, objectives, seed=5)
    for i in (3, 1, 4, 0, 2):  # in any order, as the ranks of a pipeline build them
        alone = specs[i].build()
        for (name, ours), theirs in zip(alone.named_parameters(), whole[i].parameters(), strict=True):
            assert torch.equal(ours, theirs), (i, name)
    assert torch.equal(torch.get_rng_state(), state), "building leaves the global generator alone"
    weight = [stage.layer.mlp.linear_fc1.weight for stage in whole[1:3]]
    assert not torch.equal(*weight)
    assert not torch.equal(weight[0], build_stages(small, objectives, seed=6)[1].layer.mlp.linear_fc1.weight)


def test_matrices_are_drawn_with_init_std() -> None:
    model = ModelConfig(layers=1, hidden=128, heads=4, kv_heads=2, ffn=256, vocab_size=1000, init_std=0.05)
    network, _ = build(model)
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and "norm" not in name and "patches" not in name:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.002, name


@pytest.mark.parametrize("kind", Kind)
def test_rows_run_only_what_they_need(small: ModelConfig, kind: Kind) -> None:
    network, objectives = build(small)
    batch = batch_of(kind, small, objectives)
    outputs = network(batch.inputs)
    expected = [batch.counts.get("token", 0), batch.counts.get("patch", 0)]
    assert [len(getattr(output, "each", output)) for output in outputs] == expected
    untouched = {name for name, gradient in gradients(network, batch, objectives).items() if gradient is None}
    patches = {name for name in dict(network.named_parameters()) if "patch" in name}
    tokens = {"0.tokens.weight", "4.heads.token.linear.weight"}
    assert untouched == {Kind.TEXT: patches, Kind.PIXEL: tokens, Kind.PAIR: set()}[kind]


@pytest.mark.parametrize("kind", Kind)
def test_touching_all_parameters_changes_no_loss_and_no_gradient(small: ModelConfig, kind: Kind) -> None:
    plain, objectives = build(small)
    touched, _ = build(small, touch_all=True)
    batch = batch_of(kind, small, objectives)
    assert total_loss(plain, batch, objectives) == total_loss(touched, batch, objectives)
    expected = gradients(plain, batch, objectives)
    for name, gradient in gradients(touched, batch, objectives).items():
        assert gradient is not None, name
        reference = expected[name]
        assert torch.equal(gradient, torch.zeros_like(gradient) if reference is None else reference), name


@pytest.mark.parametrize("layout", ["compact", "released"])
@pytest.mark.parametrize("kind", Kind)
def test_padding_gets_no_gradient_and_changes_nothing(small: ModelConfig, kind: Kind, layout: str) -> None:
    network, objectives = build(small)
    batch = batch_of(kind, small, objectives, layout=layout)
    embedded: list[torch.Tensor] = []
    hook = network[0].register_forward_hook(lambda _, inputs, outputs: embedded.append(outputs[0]))
    loss = total_loss(network, batch, objectives)
    embedded[0].retain_grad()
    loss.backward()
    hook.remove()
    padding = batch.inputs.modality == Modality.PADDING
    gradient = embedded[0].grad.transpose(0, 1)
    assert padding.any()
    assert (gradient[padding] == 0).all()
    # The last position of a segment predicts nothing, but earlier ones of every row with content do.
    assert (gradient[:2, 0].abs().sum(-1) > 0).all()
    batch.inputs.tokens[padding] = 7
    if kind != Kind.TEXT:
        batch.inputs.patches[padding] = 99
    assert total_loss(network, batch, objectives) == loss


def test_the_first_patch_and_the_other_segment_are_no_targets(small: ModelConfig) -> None:
    network, objectives = build(small)
    batch = batch_of(Kind.PAIR, small, objectives)
    modality = batch.inputs.modality[0].tolist()
    border = modality.index(Modality.TOKEN)
    outputs = network(batch.inputs)
    token, patch = (line[:n].tolist() for line, n in zip(batch.labels.targets, batch.counts.values(), strict=True))
    assert border - 1 not in patch
    assert border - 1 not in token
    assert border in token
    assert len(outputs[0].each) == len(token)


def test_norms_reduce_in_fp32(small: ModelConfig) -> None:
    network, _ = build(small)
    states = 300 + torch.randn(4, 2, small.hidden)  # the squares of these lose everything in bfloat16
    inputs = (states.bfloat16(), *(torch.zeros(1) for _ in range(5)))
    norm = network[-2].bfloat16()
    values = states.bfloat16().double()
    expected = values / (values.square().mean(-1, keepdim=True) + small.norm_eps).sqrt()
    torch.testing.assert_close(norm(inputs)[0].double(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "model.hidden is 32, which model.heads 3 does not divide"),
        ({"kv_heads": 3}, "model.heads is 4, which model.kv_heads 3 does not divide"),
        ({"hidden": 36, "heads": 12, "kv_heads": 4}, "rotary positions"),
    ],
)
def test_shapes_that_do_not_divide_are_refused(small: ModelConfig, change: dict[str, int], message: str) -> None:
    for name, value in change.items():
        setattr(small, name, value)
    with pytest.raises(UserError, match=message):
        build(small)


def test_shapes_that_do_not_divide_over_ranks_are_refused(small: ModelConfig) -> None:
    objectives = pretraining_objectives(small, LossConfig())
    with pytest.raises(UserError, match=r"model.kv_heads is 2, which parallel.tensor 4 does not divide"):
        stage_specs(small, objectives, seed=0, tensor_parallel=4)


def test_objectives_must_agree_on_the_mask(small: ModelConfig) -> None:
    class SeesAll(NextPatch):
        mask_kind = MaskKind.BIDIRECTIONAL

    with pytest.raises(ValueError, match="bidirectional"):
        stage_specs(small, (NextToken(), SeesAll()), seed=0)


@pytest.mark.parametrize(("patch_size", "channels"), [(8, 1), (32, 3)])
def test_other_patch_sizes_and_channels(small: ModelConfig, patch_size: int, channels: int) -> None:
    small.patch_size, small.num_channels = patch_size, channels
    network, objectives = build(small)
    batch = batch_of(Kind.PAIR, small, objectives)
    assert network(batch.inputs)[1].shape == (batch.counts["patch"], patch_size**2 * channels)
    assert torch.isfinite(total_loss(network, batch, objectives))
