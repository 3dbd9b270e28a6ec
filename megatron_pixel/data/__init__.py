"""From documents to micro-batches: files on disk, rows, the sampler and the mixture."""
