"""Which weights ZeRO 3 gathers, and how often: its coordinator (DeepSpeed 0.19) retraced without tensors.

It gathers a module's parameters when the module runs, forward or backward, and lets them go afterwards, but not always:
small parameters stay; in a pass whose modules come as in the pass before it looks ahead, gathers what comes next and
keeps what comes again soon. Any other order of modules (rows of another kind begin with another embedder) makes it
forget what it knew: it then spends one pass without looking ahead and another one on learning the order.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.parameters import Parameter
from megatron_pixel.planning.setting import Setting

STEPS = 4
"""Steps to go through before the one that counts: by then every step is like the one before."""
UNKNOWN, LEARNING, KNOWN = range(3)
"""What the coordinator knows of the order of modules."""


@dataclass(frozen=True)
class Gathered:
    """Of one rank, in one step."""

    values: int
    """Gathered over all data-parallel ranks, padding included."""
    messages: int
    most: int
    """Values that are whole at a time, at the most."""


@dataclass(frozen=True)
class Event:
    """A module's parameters are wanted, or may go."""

    module: str
    wanted: bool
    forward: bool


@lru_cache(maxsize=256)
def gathered_in_a_step(setting: Setting) -> Gathered:
    """Of a model without a pipeline, at ZeRO 3."""
    coordinator = _Coordinator(setting)
    passes = {kind: list(_events(setting, kind)) for kind in set(setting.kinds)}
    found = Gathered(0, 0, 0)
    for _ in range(STEPS):
        found, before = coordinator.step([passes[kind] for kind in setting.kinds]), found
        if found == before:
            break
    return found


def _events(setting: Setting, kind: Kind) -> Iterator[Event]:
    """A forward and a backward pass, in the order in which DeepSpeed's hooks are called."""
    embedders = [["0.tokens"], ["0.patches.projection", "0.patches.norm"]]
    first = [module for part in (embedders if kind == Kind.TEXT else embedders[::-1]) for module in part]
    last = setting.model.layers + 1
    tail = [f"{last}.norm", f"{last + 1}.heads.token.linear", f"{last + 1}.heads.patch.linear"]
    for module in [*first, *(m for i in range(1, last) for m in _layer(i)), *tail]:
        yield Event(module, True, True)
        yield Event(module, False, True)
    yield from _backward(tail[::-1])
    for i in range(last - 1, 0, -1):
        modules = _layer(i)
        if i in setting.recompute:
            # The backward pass of the last matrix finds that its input is missing: the layer runs forward again, as far
            # as this matrix, whose forward pass is then broken off.
            yield Event(modules[-1], True, False)
            for module in modules:
                yield Event(module, True, True)
                if module != modules[-1]:
                    yield Event(module, False, True)
            yield Event(modules[-1], False, False)
            modules = modules[:-1]
        yield from _backward(modules[::-1])
    # Inputs of the embedders have no gradient, so no hook tells that these are done.
    for module in first[::-1]:
        yield Event(module, True, False)
        if module == "0.patches.norm":
            yield Event(module, False, False)


def _layer(i: int) -> list[str]:
    """Modules of a decoder layer that own parameters, as they run."""
    names = ("input_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj", "pre_mlp_layernorm")
    return [f"{i}.layer.{name}" for name in (*names, "mlp.linear_fc1", "mlp.linear_fc2")]


def _backward(modules: Sequence[str]) -> Iterator[Event]:
    for module in modules:
        yield Event(module, True, False)
        yield Event(module, False, False)


class _Coordinator:
    """``PartitionedParameterCoordinator``: names and rules are those of DeepSpeed's class."""

    def __init__(self, setting: Setting) -> None:
        zero = setting.zero
        self._bucket, self._max_live, self._max_reuse = zero.prefetch, zero.max_live, zero.max_reuse
        self._sizes = {p: p.share(setting.tensor) for p in setting.parameters}
        self._padded = {p: -(-size // setting.data) * setting.data for p, size in self._sizes.items()}
        self._persistent = {p for p, size in self._sizes.items() if size <= zero.persistent}
        self._owned: dict[str, list[Parameter]] = {}
        for parameter in setting.parameters:
            self._owned.setdefault(parameter.module, []).append(parameter)
        self._knows = UNKNOWN
        self._order: list[str] = []
        self._queue: deque[tuple[Parameter, int]] = deque()
        self._available: set[Parameter] = set()
        self._in_use: dict[Parameter, set[str]] = {p: set() for p in self._sizes}
        self._place = 0
        self._live = 0
        self._seen: dict[Parameter, int] = {}
        self._unused: set[Parameter] = set()
        # DeepSpeed remembers its answers for good, also when it forgets the order that they rest on.
        self._answers: dict[tuple[str, int], frozenset[Parameter]] = {}
        self._values = self._messages = self._most = 0

    def step(self, passes: Sequence[Sequence[Event]]) -> Gathered:
        """The micro-batches of a step, then the optimizer."""
        self._values = self._messages = self._most = 0
        for events in passes:
            self._begin()
            for event in events:
                if event.wanted:
                    self._want(event.module)
                else:
                    self._done_with(event.module)
            for parameter in self._sizes:
                # What no hook has released.
                self._in_use[parameter].clear()
            for parameter in self._available - self._persistent - self._unused:
                if parameter.stage == 0:
                    self._release(parameter)
        self._available.clear()
        self._unused.clear()
        self._gather(sorted(self._persistent, key=lambda p: p.name), count=False)
        return Gathered(self._values, self._messages, self._most)

    def _begin(self) -> None:
        for parameter in list(self._unused):
            self._release(parameter)
        self._unused.clear()
        if self._knows != KNOWN:
            self._knows += 1
            if self._knows == LEARNING:
                self._order = []
        self._queue = deque((p, place) for place, module in enumerate(self._order) for p in self._owned[module])
        self._seen = {}
        self._place = self._live = 0

    def _want(self, module: str) -> None:
        if self._knows == KNOWN and (self._place >= len(self._order) or self._order[self._place] != module):
            self._knows, self._order, self._queue, self._seen = UNKNOWN, [], deque(), {}
            for parameter in list(self._unused):
                self._release(parameter)
            self._unused.clear()
        if self._knows == LEARNING:
            self._order.append(module)
        wanted = self._owned[module]
        self._gather([p for p in wanted if p not in self._available])
        for parameter in wanted:
            self._in_use[parameter].add(module)
            self._unused.discard(parameter)
        if self._knows == KNOWN:
            self._look_ahead(wanted)
        self._place += 1

    def _look_ahead(self, wanted: Sequence[Parameter]) -> None:
        left = sum(1 for p in wanted if self._seen.get(p, -1) < self._place)
        for _ in range(left):
            parameter, place = self._queue.popleft()
            self._seen[parameter] = place
        room = min(self._max_live - self._live, self._bucket)
        ahead: list[Parameter] = []
        values = 0
        while self._queue and values < room:
            parameter, place = self._queue.popleft()
            self._seen[parameter] = max(self._seen.get(parameter, -1), place)
            if parameter not in self._available and parameter not in ahead:
                ahead.append(parameter)
                values += self._sizes[parameter]
        self._gather(ahead)
        self._unused.update(ahead)

    def _done_with(self, module: str) -> None:
        free = self._may_go(module) if self._knows == KNOWN else frozenset(self._owned[module])
        for parameter in self._owned[module]:
            self._in_use[parameter].discard(module)
            if parameter in free:
                self._release(parameter)

    def _may_go(self, module: str) -> frozenset[Parameter]:
        key = module, self._place
        if key not in self._answers:
            found = {p for p in self._owned[module] if p not in self._persistent}
            found -= {p for p in found if self._seen.get(p, -1) > self._place}
            passed = 0
            for later in self._order[self._place :]:
                if passed >= self._max_reuse:
                    break
                found -= set(self._owned[later])
                passed += sum(self._sizes[p] for p in self._owned[later])
            self._answers[key] = frozenset(found)
        return self._answers[key]

    def _release(self, parameter: Parameter) -> None:
        if parameter in self._available and not self._in_use[parameter]:
            self._available.discard(parameter)
            self._live -= self._sizes[parameter]

    def _gather(self, wanted: Sequence[Parameter], count: bool = True) -> None:
        if not wanted:
            return
        self._values += sum(self._padded[p] for p in wanted)
        self._messages += 1
        self._available.update(wanted)
        if count:
            self._live += sum(self._sizes[p] for p in wanted)
        self._most = max(self._most, sum(self._sizes[p] for p in self._available))
