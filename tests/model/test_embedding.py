import math

import torch
from torch import nn

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Kind, Modality
from megatron_pixel.model.embedding import PatchEmbedder
from tests.model.helpers import batch_of, build


def test_the_projection_equals_a_convolution(small: ModelConfig) -> None:
    torch.manual_seed(0)
    embedder = PatchEmbedder(small)
    nn.init.normal_(embedder.projection.bias)
    p, c, n = small.patch_size, small.num_channels, 5
    strip = torch.randint(0, 256, (p, n * p, c), dtype=torch.uint8)  # an image as PIL has it: height, width, channels
    convolution = nn.Conv2d(c, small.hidden, kernel_size=p, stride=p)
    with torch.no_grad():
        kernel = embedder.projection.weight.view(small.hidden, p, p, c).permute(0, 3, 1, 2)
        convolution.weight.copy_(kernel)
        convolution.bias.copy_(embedder.projection.bias)
    image = strip.permute(2, 0, 1)[None].float() / 255
    expected = nn.functional.layer_norm(convolution(image).squeeze(2).squeeze(0).t(), (small.hidden,), eps=1e-5)
    patches = strip.view(p, n, p, c).transpose(0, 1).reshape(n, -1)  # row, column, channel
    torch.testing.assert_close(embedder(patches), expected, rtol=1e-5, atol=1e-5)


def test_the_projection_is_drawn_xavier_uniform_over_the_flattened_kernel() -> None:
    model = ModelConfig(hidden=256)
    torch.manual_seed(0)
    weight = PatchEmbedder(model).projection.weight
    bound = math.sqrt(6 / (16 * 16 * 3 + 256))
    assert 0.999 * bound < weight.abs().max() <= bound
    assert abs(weight.std().item() - bound / math.sqrt(3)) < 1e-3 * bound


def test_rows_of_a_pair_take_each_position_from_its_own_embedder(small: ModelConfig) -> None:
    network, objectives = build(small)
    batch = batch_of(Kind.PAIR, small, objectives)
    embedding = network[0]
    hidden = embedding(batch.inputs)[0].transpose(0, 1)
    tokens, patches = embedding.tokens.weight, embedding.patches
    for row in range(2):
        for i in range(small.seq_length):
            modality = batch.inputs.modality[row, i]
            if modality == Modality.TOKEN:
                torch.testing.assert_close(hidden[row, i], tokens[batch.inputs.tokens[row, i]])
            elif modality == Modality.PATCH:
                torch.testing.assert_close(hidden[row, i], patches(batch.inputs.patches[row, i]))


def test_pixel_values_survive_bfloat16(small: ModelConfig) -> None:
    embedder = PatchEmbedder(small).bfloat16()
    values = torch.arange(256, dtype=torch.uint8)
    seen = []
    embedder.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedder(values[: 16 * 15].view(5, 48))
    assert torch.equal(seen[0].flatten(), (values[: 16 * 15].double() / 255).bfloat16())
