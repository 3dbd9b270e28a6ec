"""Which stages of the model stand on which pipeline rank."""


def cut(layers: int, pipeline: int) -> list[int]:
    """Boundaries of the pipeline ranks in the list of stages (embedding, layers, final norm, heads).

    Decoder layers are shared out evenly, earlier ranks take what is left over: the last one has the heads to run. The
    embedding goes with the first rank, norm and heads with the last.

    Args:
        layers: decoder layers, at least as many as ranks.
        pipeline: pipeline ranks.

    Returns:
        ``pipeline + 1`` numbers, the first 0 and the last ``layers + 3``; rank ``r`` has the stages
        ``range(cut[r], cut[r + 1])``.
    """
    whole, rest = divmod(layers, pipeline)
    ends = [1 + rank * whole + min(rank, rest) for rank in range(1, pipeline)]
    return [0, *ends, layers + 3]
