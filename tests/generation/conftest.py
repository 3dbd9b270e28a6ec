"""The small checkpoints of the interop tests."""

from tests.interop.conftest import exported, run, tokenizer

__all__ = ["exported", "run", "tokenizer"]
