"""A rank that cannot compile the layers ends the start of all ranks, which name it; none waits for it."""

import socket
from typing import Any


def test_a_rank_without_a_compiler_is_named_by_all(two_ranks: list[dict[str, Any]]) -> None:
    told = {result["compiling"]["compiler"] for result in two_ranks}
    assert len(told) == 1
    ((kind, message),) = told
    assert kind == "UserError"
    assert message.startswith(f"rank 1 on {socket.gethostname()}: training.compile: a decoder layer cannot be compiled")
    assert "RuntimeError: No working C++ compiler found" in message
    assert "set --training.compile none" in message
    assert "and more" not in message


def test_a_rank_without_memory_keeps_its_error_and_is_named_by_the_others(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (result["compiling"]["memory"] for result in two_ranks)
    assert second == ("OutOfMemoryError", "out of memory")
    assert first == ("UserError", f"rank 1 on {socket.gethostname()}: OutOfMemoryError: out of memory")
