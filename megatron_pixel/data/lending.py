"""Memory that is used again: arrays that tell when nobody refers to them any more.

New memory costs more than what is written into it here: the system clears 200 pages for a row of RGB patches.
"""

import weakref
from collections import deque
from collections.abc import Callable

import numpy as np


def lend(memory: np.ndarray, give_back: Callable[[], object]) -> np.ndarray:
    """``memory`` (uint8 [n]) as an array with an end.

    ``give_back`` is called, in whichever thread, when neither the array nor any made from it is referred to any more.
    """
    lease = _Lease(memory)
    weakref.finalize(lease, give_back).atexit = False
    return np.asarray(lease)


class _Lease:
    """The owner of lent memory as numpy sees it: arrays, and views of views of them, all refer to it and not to the
    memory itself."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__


class MemoryPool:
    """Lends pieces of memory of one size, uint8 [size] each."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[np.ndarray] = deque()

    def take(self) -> np.ndarray:
        """A piece, whatever it holds: the last one given back, which may still be in a cache, or a new one."""
        memory = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        return lend(memory, lambda: self._free.append(memory))
