"""Released checkpoints in and out: the Hugging Face layout of the paper's models, and plain Llama's."""
