"""Which stages of the model stand on which pipeline rank."""

from megatron_pixel.config.mixture import parse_mixture
from megatron_pixel.config.schema import RunConfig


def cut(layers: int, pipeline: int, first: float = 0.0, last: float = 0.0) -> list[int]:
    """Boundaries of the pipeline ranks in the list of stages (embedding, layers, final norm, heads).

    Decoder layers are shared out so that the most costly rank costs as little as it can; of ranks that cost the same,
    earlier ones take more. The embedding goes with the first rank, norm and heads with the last.

    Args:
        layers: decoder layers, at least as many as ranks.
        pipeline: pipeline ranks.
        first, last: what embedding and heads cost, in decoder layers; without them all ranks get as many layers as can
            be, and earlier ranks what is left over.

    Returns:
        ``pipeline + 1`` numbers, the first 0 and the last ``layers + 3``; rank ``r`` has the stages
        ``range(cut[r], cut[r + 1])``.
    """
    costs = [1.0] * pipeline
    costs[0] += first
    costs[-1] += last
    counts = [1] * pipeline
    for _ in range(layers - pipeline):
        cheapest = costs.index(min(costs))
        costs[cheapest] += 1
        counts[cheapest] += 1
    ends = [1 + sum(counts[:rank]) for rank in range(1, pipeline)]
    return [0, *ends, layers + 3]


def boundaries(config: RunConfig) -> list[int]:
    """The cut of a run, as ``parallel.pipeline_cut`` wants it."""
    layers, pipeline = config.model.layers, config.parallel.pipeline
    if config.parallel.pipeline_cut == "layers":
        return cut(layers, pipeline)
    return cut(layers, pipeline, *costs_at_the_ends(config))


def costs_at_the_ends(config: RunConfig) -> tuple[float, float]:
    """What embedding and heads compute for an average position of the mixture, as shares of a decoder layer.

    Multiply-adds forward and backward: a weight counts 3, the patch projection 2, as pixels need no gradient; a head
    works at the targets of its kind alone.
    """
    model, rows = config.model, parse_mixture(config.data.mixture)
    h, s, patch = model.hidden, model.seq_length, model.patch_size**2 * model.num_channels
    layer = h * (2 * h + 2 * h * model.kv_heads // model.heads + 3 * model.ffn + s)
    positions = sum(rows) * s
    tokens = (rows.text * s + rows.pair * config.pair.tokens) / positions
    patches = (rows.pixel * s + rows.pair * config.pair.patches) / positions
    embedding = 2 / 3 * patch * h * patches
    heads = h * (model.vocab_size * tokens + patch * patches)
    return embedding / layer, heads / layer
