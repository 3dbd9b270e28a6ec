"""The same weights in Hugging Face's Llama give the same hidden states, logits and losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.llama_config import llama_config
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Kind, Modality
from megatron_pixel.model.batch import Batch
from megatron_pixel.model.objectives import losses
from tests.model.helpers import batch_of, build, hidden_states


def as_llama(model: ModelConfig, network: nn.Sequential) -> LlamaForCausalLM:
    """Megatron's fused matrices taken apart: linear_qkv holds, group by group, its queries, its key and its value."""
    llama = LlamaForCausalLM(llama_config(model, attn_implementation="eager"))
    width, per_group = model.hidden // model.heads, model.heads // model.kv_heads
    state: dict[str, Tensor] = {
        "model.embed_tokens.weight": network[0].tokens.weight,
        "model.norm.weight": network[-2].norm.weight,
        "lm_head.weight": network[-1].heads["token"].linear.weight,
    }
    for i in range(model.layers):
        ours, theirs = network[i + 1].layer, f"model.layers.{i}."
        grouped = ours.self_attention.linear_qkv.weight.view(model.kv_heads, per_group + 2, width, model.hidden)
        state[theirs + "self_attn.q_proj.weight"] = grouped[:, :per_group].reshape(-1, model.hidden)
        state[theirs + "self_attn.k_proj.weight"] = grouped[:, per_group].reshape(-1, model.hidden)
        state[theirs + "self_attn.v_proj.weight"] = grouped[:, per_group + 1].reshape(-1, model.hidden)
        state[theirs + "self_attn.o_proj.weight"] = ours.self_attention.linear_proj.weight
        gate, up = ours.mlp.linear_fc1.weight.chunk(2)
        state[theirs + "mlp.gate_proj.weight"] = gate
        state[theirs + "mlp.up_proj.weight"] = up
        state[theirs + "mlp.down_proj.weight"] = ours.mlp.linear_fc2.weight
        state[theirs + "input_layernorm.weight"] = ours.input_layernorm.weight
        state[theirs + "post_attention_layernorm.weight"] = ours.pre_mlp_layernorm.weight
    llama.load_state_dict(state)
    return llama.eval()


@pytest.fixture
def network(small: ModelConfig) -> nn.Sequential:
    """Weights ten times as large as at the start, so that attention is far from uniform and norms are not 1."""
    small.rope_theta = 1000.0
    network, _ = build(small)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("0."):
                continue
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.mul_(10)
    return network


def compare(small: ModelConfig, network: nn.Sequential, batch: Batch) -> LlamaForCausalLM:
    llama = as_llama(small, network)
    content = batch.inputs.modality != Modality.PADDING
    embedded = network[0](batch.inputs)[0].transpose(0, 1)
    with torch.no_grad():
        expected = llama.model(
            inputs_embeds=embedded, attention_mask=content.long(), position_ids=batch.inputs.position_ids.long()
        ).last_hidden_state
        ours = hidden_states(network, batch)
    assert expected[content].abs().max() > 1
    torch.testing.assert_close(ours[content], expected[content], rtol=1e-5, atol=1e-5)
    return llama


@pytest.mark.parametrize("kind", Kind)
def test_hidden_states_equal_llamas(small: ModelConfig, network: nn.Sequential, kind: Kind) -> None:
    _, objectives = build(small)
    compare(small, network, batch_of(kind, small, objectives))


def test_positions_are_taken_from_the_row(small: ModelConfig, network: nn.Sequential) -> None:
    _, objectives = build(small)
    batch = batch_of(Kind.PAIR, small, objectives)
    straight = hidden_states(network, batch)
    batch.inputs.position_ids.copy_(torch.randint(0, 500, (3, small.seq_length)))
    compare(small, network, batch)
    assert (hidden_states(network, batch) - straight).abs().max() > 0.1


def test_padding_between_image_and_text_is_not_seen(small: ModelConfig, network: nn.Sequential) -> None:
    _, objectives = build(small)
    batch = batch_of(Kind.PAIR, small, objectives, layout="released")
    assert batch.inputs.header[1] == -1
    compare(small, network, batch)


def test_logits_and_cross_entropy_equal_llamas(small: ModelConfig, network: nn.Sequential) -> None:
    _, objectives = build(small)
    batch = batch_of(Kind.TEXT, small, objectives, padded=False)
    llama = compare(small, network, batch)
    with torch.no_grad():
        outputs = network(batch.inputs)
        network[-1].closes[0] = False
        own_logits = network(batch.inputs)[0]
        logits = llama(input_ids=batch.inputs.tokens).logits
    predicting = batch.labels.targets[0, : batch.counts["token"]]
    torch.testing.assert_close(own_logits, logits.flatten(0, 1)[predicting], rtol=1e-5, atol=1e-5)
    expected = F.cross_entropy(
        logits.flatten(0, 1)[predicting], batch.inputs.tokens.flatten()[predicting + 1], reduction="sum"
    )
    torch.testing.assert_close(losses(outputs, batch.labels, objectives)["token"].sum, expected, rtol=1e-5, atol=0)
