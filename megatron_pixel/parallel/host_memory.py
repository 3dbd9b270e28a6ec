"""The host's memory between steps: what a step frees stays with the process, for the next step to take."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of ``mallopt``, from glibc's ``malloc.h``."""
GROWTH = 64 << 20
"""Bytes by which the heap grows at least."""


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, where training runs on the CPU; returns whether it does.

    By default every tensor of more than 32 MiB comes fresh from the system and goes back to it, and at every step the
    system clears millions of pages once more: gradients, logits and DeepSpeed's buffers are such tensors. Settings that
    the environment makes itself (``MALLOC_*`` variables, ``GLIBC_TUNABLES``) or another allocator (``LD_PRELOAD``)
    stay.
    """
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or "LD_PRELOAD" in os.environ
    if chosen or any(name.startswith("MALLOC_") for name in os.environ) or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    done = [mallopt(*setting) for setting in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GROWTH))]
    return all(done)
