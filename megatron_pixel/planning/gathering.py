"""Which weights ZeRO 3 gathers, and how often: its coordinator (DeepSpeed 0.19) retraced without tensors.

It gathers a module's parameters when the module runs, forward or backward, and lets them go afterwards, but not always:
small parameters stay; in a pass whose modules come as in the pass before it looks ahead, gathers what comes next and
keeps what comes again soon. Any other order of modules (rows of another kind begin with another embedder) makes it
forget what it knew: it then spends one pass without looking ahead and another one on learning the order.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.modules import met_in_a_pass
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
    compared: int
    """Numbers that ranks compare while they learn an order of modules."""


@dataclass(frozen=True)
class Event:
    """A module's parameters are wanted, or may go."""

    module: str
    wanted: bool


@lru_cache(maxsize=64)
def gathered_in_a_step(setting: Setting) -> Gathered:
    """Of a model without a pipeline, at ZeRO 3."""
    coordinator = _Coordinator(setting)
    passes = {kind: list(_events(setting, kind)) for kind in dict.fromkeys(setting.kinds)}
    found = Gathered(0, 0, 0, 0)
    for _ in range(STEPS):
        found, before = coordinator.step(setting.kinds, passes), found
        if found == before:
            break
    # One rank has all of its weights; it goes through the same motions.
    return found if setting.data > 1 else Gathered(0, 0, 0, found.compared)


def _events(setting: Setting, kind: Kind) -> Iterator[Event]:
    """A forward and a backward pass, in the order in which DeepSpeed's hooks are called."""
    last = setting.model.layers + 1
    token, patch = ["0.tokens"], ["0.patches.projection", "0.patches.norm"]
    tail = [f"{last}.norm", f"{last + 1}.heads.token.linear", f"{last + 1}.heads.patch.linear"]
    for part in (token, patch) if kind == Kind.TEXT else (patch, token):
        if part is patch:
            yield Event("0.patches", True)
        yield from _one_by_one(part)
        if part is patch:
            yield Event("0.patches", False)
    yield from _one_by_one([*(module for i in range(1, last) for module in _layer(i)), *tail])
    yield from _one_by_one(tail[::-1])
    for i in range(last - 1, 0, -1):
        modules = _layer(i)
        if i in setting.recompute:
            # The backward pass of the last matrix finds that its input is missing: the layer runs forward again, as far
            # as this matrix, whose forward pass is then broken off.
            yield Event(modules[-1], True)
            yield from _one_by_one(modules[:-1])
            yield Event(modules[-1], True)
            yield Event(modules[-1], False)
            modules = modules[:-1]
        yield from _one_by_one(modules[::-1])
    # Inputs of the embedders have no gradient, so no hook tells that these are done.
    for part in (patch, token) if kind == Kind.TEXT else (token, patch):
        if part is patch:
            yield Event("0.patches", True)
            yield from _one_by_one(["0.patches.norm"])
        yield Event(part[0], True)


def _layer(i: int) -> list[str]:
    """Modules of a decoder layer that own parameters, as they run."""
    names = ("input_layernorm", "self_attention.linear_qkv", "self_attention.linear_proj", "pre_mlp_layernorm")
    return [f"{i}.layer.{name}" for name in (*names, "mlp.linear_fc1", "mlp.linear_fc2")]


def _one_by_one(modules: Sequence[str]) -> Iterator[Event]:
    for module in modules:
        yield Event(module, True)
        yield Event(module, False)


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
        # The embedder looks at this weight's dtype, which DeepSpeed takes for a use.
        self._owned["0.patches"] = self._owned["0.patches.projection"][:1]
        self._modules = len(met_in_a_pass(setting.model.layers, setting.recompute))
        self._knows = UNKNOWN
        self._order: list[str] = []
        self._queue: deque[tuple[Parameter, int]] = deque()
        self._available: set[Parameter] = set()
        self._in_use: dict[Parameter, set[str]] = {p: set() for p in self._sizes}
        self._place = 0
        self._passed: list[int] = []
        self._uses: dict[Parameter, list[int]] = {}
        self._live = self._whole = 0
        self._seen: dict[Parameter, int] = {}
        self._unused: set[Parameter] = set()
        # DeepSpeed remembers its answers for good, also when it forgets the order that they rest on.
        self._answers: dict[tuple[str, int], frozenset[Parameter]] = {}
        self._known_passes: dict[Any, Any] = {}
        self._values = self._messages = self._most = self._compared = 0

    def step(self, kinds: Sequence[Kind], passes: Mapping[Kind, Sequence[Event]]) -> Gathered:
        """The micro-batches of a step, then the optimizer."""
        self._values = self._messages = self._most = self._compared = 0
        for kind in kinds:
            self._pass(kind, passes[kind])
        self._available.clear()
        self._whole = 0
        self._unused.clear()
        self._gather(sorted(self._persistent, key=lambda p: p.name), count=False)
        return Gathered(self._values, self._messages, self._most, self._compared)

    def _pass(self, kind: Kind, events: Sequence[Event]) -> None:
        """A micro-batch; one that begins as another one of its kind has begun goes on like it."""
        answers = len(self._answers)
        key = kind, answers, self._state()
        if key not in self._known_passes:
            before = self._values, self._messages, self._compared
            most, self._most = self._most, 0
            self._go_through(events)
            counts = tuple(b - a for a, b in zip(before, (self._values, self._messages, self._compared), strict=True))
            if len(self._answers) == answers:
                self._known_passes[key] = *counts, self._most, self._state(), self._whole
            self._most = max(most, self._most)
            return
        values, messages, compared, most, state, self._whole = self._known_passes[key]
        self._values += values
        self._messages += messages
        self._compared += compared
        self._most = max(self._most, most)
        self._knows, self._order = state[0], list(state[1])
        self._available, self._unused = set(state[2]), set(state[3])

    def _state(self) -> tuple[int, tuple[str, ...], frozenset[Parameter], frozenset[Parameter]]:
        """What a pass leaves to the next one."""
        return self._knows, tuple(self._order), frozenset(self._available), frozenset(self._unused)

    def _go_through(self, events: Sequence[Event]) -> None:
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

    def _begin(self) -> None:
        for parameter in list(self._unused):
            self._release(parameter)
        self._unused.clear()
        if self._knows == UNKNOWN:
            self._compared += 1
        if self._knows == LEARNING:
            used = sum(len(self._owned[module]) for module in self._order)
            self._compared += (1 + self._modules) + 2 * (1 + used)
        if self._knows != KNOWN:
            self._knows += 1
            if self._knows == LEARNING:
                self._order = []
        self._queue = deque((p, place) for place, module in enumerate(self._order) for p in self._owned[module])
        self._passed = list(accumulate((self._values_of(module) for module in self._order), initial=0))
        self._uses = {p: [] for p in self._sizes}
        for p, place in self._queue:
            self._uses[p].append(place)
        self._seen = {}
        self._place = self._live = 0

    def _values_of(self, module: str) -> int:
        return sum(self._sizes[p] for p in self._owned[module])

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
            self._answers[key] = frozenset(p for p in found if not self._comes_again_soon(p))
        return self._answers[key]

    def _comes_again_soon(self, parameter: Parameter) -> bool:
        """Whether fewer values than ``max_reuse`` are passed until a module wants it again."""
        uses = self._uses[parameter]
        number = bisect_left(uses, self._place)
        return number < len(uses) and self._passed[uses[number]] - self._passed[self._place] < self._max_reuse

    def _release(self, parameter: Parameter) -> None:
        if parameter in self._available and not self._in_use[parameter]:
            self._available.discard(parameter)
            self._whole -= self._sizes[parameter]
            self._live -= self._sizes[parameter]

    def _gather(self, wanted: Sequence[Parameter], count: bool = True) -> None:
        if not wanted:
            return
        self._values += sum(self._padded[p] for p in wanted)
        self._messages += 1
        self._available.update(wanted)
        values = sum(self._sizes[p] for p in wanted)
        self._live += values if count else 0
        self._whole += values
        self._most = max(self._most, self._whole)
