"""Decides whether what concurrent clients observed can be explained by one order of their operations.

    history = [Operation.known("client 1", called_ns, returned_ns, Action("x", "add", (1,), 1)), ...]
    check(history, {"x": COUNTER})                 # raises NotLinearizableError, or SearchTooLargeError: neither yes nor no

An operation takes effect at one moment between its call and its return. One whose outcome the client was not told (`Operation.unknown`) may take
effect at any time after its call, or never, with any result. An operation may act on several keys at once, as a transaction does.

The search is that of Wing and Gong (Testing and verifying concurrent objects, 1993), which does not enter a configuration, of operations done and
state reached, twice (Lowe, Testing for linearizability, 2017). Keys that no operation has in common are searched apart (Horn and Kroening, Faster
linearizability checking via P-compositionality, 2015). An operation none of whose actions changes anything comes as soon as it can; one of unknown outcome comes
where nothing else explains what follows. Where a log tells in which order operations were done, `resolved` says so of them, and that order is tried first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

NEVER: Final = 2**63
"""Return time of an operation whose outcome is unknown."""
STEPS_MAX: Final = 5_000_000
"""Of one check: operations tried on a state."""
SHOWN_MAX: Final = 12


class _Unknown:
    def __repr__(self) -> str:
        return "?"

    def __reduce__(self) -> str:
        return "UNKNOWN"  # the one object, out of a pickle as well


UNKNOWN: Final = _Unknown()
"""A result, or a part of one, that the client was not told."""


class NotLinearizableError(AssertionError):
    """No order explains the history; the message shows where."""


class SearchTooLargeError(RuntimeError):
    """The bound on work was reached: the history is neither accepted nor rejected."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing done to one key, and what came of it."""

    key: str
    name: str
    arguments: tuple[Any, ...] = ()
    result: Any = UNKNOWN

    @property
    def told(self) -> bool:
        """Whether the client was told all of the result."""
        parts = self.result if isinstance(self.result, tuple) else (self.result,)
        return UNKNOWN not in parts

    def __str__(self) -> str:
        return f"{self.key}.{self.name}({', '.join(map(repr, self.arguments))}) -> {self.result!r}"


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client did between two times: all actions of one of the ways, at one moment."""

    client: str
    called_ns: int
    returned_ns: int
    ways: tuple[tuple[Action, ...], ...]
    """More than one where it is not known which way a transaction took."""
    request_id: str = ""
    """Under which a log may have it."""
    place: int = 0
    """Where a log has it, from 1; 0: that is not known."""

    @classmethod
    def known(cls, client: str, called_ns: int, returned_ns: int, *actions: Action, request_id: str = "") -> Operation:
        """One that was answered."""
        if not called_ns <= returned_ns < NEVER:
            raise ValueError(f"called at {called_ns}, returned at {returned_ns}")
        return cls(client, called_ns, returned_ns, (actions,), request_id)

    @classmethod
    def unknown(cls, client: str, called_ns: int, *ways: tuple[Action, ...], request_id: str = "") -> Operation:
        """One that ended with an error, and may have happened in any of these ways or not at all."""
        return cls(client, called_ns, NEVER, ways, request_id)

    @property
    def keys(self) -> set[str]:
        return {action.key for way in self.ways for action in way}

    def __str__(self) -> str:
        return f"{self.client}: {' or '.join('; '.join(map(str, way)) for way in self.ways)}"


@dataclass(frozen=True, slots=True)
class Specification:
    """What a value does when one client after the other uses it. States are hashable, and equal ones behave equally."""

    initial: Hashable
    step: Callable[[Any, Action], tuple[Hashable, ...]]
    """The states that a state can become by an action that has this result; none: the result is not possible.
    A result that is told in full and leaves one state as it is leaves every state as it is that can give it."""


def check(
    history: Iterable[Operation], specifications: Mapping[str, Specification], *, steps_max: int = STEPS_MAX
) -> int:
    """Return how many operations were tried on a state. Raises NotLinearizableError and SearchTooLargeError."""
    steps = 0
    for part in partitions(history):
        search = _Search(part, specifications, steps_max - steps)
        search.run()
        steps += search.steps
    return steps


def resolved(history: Iterable[Operation], places: Mapping[str, int]) -> list[Operation]:
    """What a log says, by the places of requests in it from 1: of those of unknown outcome, the ones that it has have happened, and no other one.

    That leaves fewer orders than there are without the log, and never more: an answered operation stays, whatever the log says.
    """
    placed = [replace(operation, place=places.get(operation.request_id, 0)) for operation in history]
    happened = [operation for operation in placed if operation.place or operation.returned_ns != NEVER]
    return [replace(operation, returned_ns=min(operation.returned_ns, NEVER - 1)) for operation in happened]


def partitions(history: Iterable[Operation]) -> list[list[Operation]]:
    """Split a history so that no two parts have a key in common."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    operations = list(history)
    for operation in operations:
        first, *others = operation.keys
        for key in others:
            parent[root(key)] = root(first)
    parts = defaultdict(list)
    for operation in operations:
        parts[root(next(iter(operation.keys)))].append(operation)
    return list(parts.values())


@dataclass(frozen=True, slots=True)
class _Configuration:
    first: int
    """All known operations before this one are done."""
    done: int
    """Bit i: so is the known operation first + i."""
    used: int
    """Bit i: so is the unknown operation i."""
    state: tuple[Hashable, ...]


class _Search:
    """Through the orders of one part."""

    def __init__(
        self, history: Sequence[Operation], specifications: Mapping[str, Specification], steps_max: int
    ) -> None:
        self.steps = 0
        self._steps_max = steps_max
        self._keys = sorted({key for operation in history for key in operation.keys})
        self._places = {key: place for place, key in enumerate(self._keys)}
        self._specifications = [specifications[key] for key in self._keys]
        in_order = sorted(history, key=lambda operation: operation.called_ns)
        self._known = [operation for operation in in_order if operation.returned_ns != NEVER]
        self._unknown = [operation for operation in in_order if operation.returned_ns == NEVER]
        self._twins = [
            next((j for j in reversed(range(i)) if self._unknown[j].ways == operation.ways), None)
            for i, operation in enumerate(self._unknown)
        ]
        """Of each unknown operation, the one called last before it that does the same. That is used first: it can stand wherever the later one can."""
        self._seen: dict[tuple[int, int, tuple[Hashable, ...]], list[int]] = defaultdict(list)
        """Sets of unknown operations that were used, none a part of another, by what else makes a configuration."""
        self._later: list[tuple[int, int, int, _Configuration]] = []
        """A heap of those that use a further unknown operation, the ones that have got furthest first. They wait until all without it is tried."""
        self._numbers = itertools.count()
        self._blocked_at = -NEVER
        self._blocked: list[_Configuration] = []
        """The configurations that have got furthest: all that returned before `_blocked_at` is explained."""

    def run(self) -> None:
        initial = tuple(specification.initial for specification in self._specifications)
        stack = [_Configuration(0, 0, 0, initial)]
        while stack or self._later:
            configuration = stack.pop() if stack else heapq.heappop(self._later)[-1]
            if configuration.first == len(self._known):
                return
            if self._is_new(configuration):
                self._expand(configuration, stack)
        raise NotLinearizableError(f"no order of the operations explains what was observed:\n{self._explanation()}")

    def _is_new(self, configuration: _Configuration) -> bool:
        """Whether none has been seen that can do as much: one with the same done and the same state, and none used but what this one has used too."""
        seen = self._seen[configuration.first, configuration.done, configuration.state]
        if any(used & configuration.used == used for used in seen):
            return False
        seen[:] = [used for used in seen if used & configuration.used != configuration.used]
        seen.append(configuration.used)
        return True

    def _expand(self, configuration: _Configuration, stack: list[_Configuration]) -> None:
        candidates, returned_ns = self._candidates(configuration)
        if returned_ns >= self._blocked_at:
            if returned_ns > self._blocked_at:
                self._blocked_at, self._blocked = returned_ns, []
            self._blocked.append(configuration)
        further = []
        # Pushed last and so tried first: the one that a log has first, and of those that are in none the one that returned first.
        for place in sorted(
            candidates, key=lambda place: (self._known[place].place, self._known[place].returned_ns), reverse=True
        ):
            done = configuration.done | 1 << (place - configuration.first)
            first = configuration.first
            while done & 1:
                done >>= 1
                first += 1
            after = [
                _Configuration(first, done, configuration.used, state)
                for state in self._after(configuration.state, self._known[place])
            ]
            if self._changes_nothing(configuration.state, self._known[place]):
                stack += after  # whatever continues this configuration may as well begin with it
                return
            further += after
        stack += further
        for place, operation in enumerate(self._unknown):
            if operation.called_ns > returned_ns:
                break
            twin = self._twins[place]
            if configuration.used >> place & 1 or (twin is not None and not configuration.used >> twin & 1):
                continue
            used = configuration.used | 1 << place
            for state in self._after(configuration.state, operation):
                if state != configuration.state:  # otherwise it may as well be left out
                    later = _Configuration(configuration.first, configuration.done, used, state)
                    heapq.heappush(self._later, (-returned_ns, used.bit_count(), next(self._numbers), later))

    def _candidates(self, configuration: _Configuration) -> tuple[list[int], int]:
        """Known operations that may come next, and when the first of those that are not done returned: nothing called later may come before."""
        candidates = []
        returned_ns = NEVER
        done = configuration.done
        for place in range(configuration.first, len(self._known)):
            operation = self._known[place]
            if operation.called_ns > returned_ns:
                break
            if not done & 1:
                candidates.append(place)
                returned_ns = min(returned_ns, operation.returned_ns)
            done >>= 1
        return candidates, returned_ns

    def _changes_nothing(self, state: tuple[Hashable, ...], operation: Operation) -> bool:
        """Whether an operation leaves this state as it is, and every other in which it has the same results.

        One action that is told all of its result and leaves one state alone leaves alone every state that gives that result: a specification's promise.
        It does not hold of several together: push(1) and pop() -> 1 exchange equal items of one queue and turn round another.
        """
        return all(
            action.told and self._specifications[place].step(state[place], action) == (state[place],)
            for way in operation.ways
            for action in way
            for place in [self._places[action.key]]
        )

    def _after(self, state: tuple[Hashable, ...], operation: Operation) -> list[tuple[Hashable, ...]]:
        self.steps += 1
        if self.steps > self._steps_max:
            raise SearchTooLargeError(
                f"not decided within {self._steps_max} steps; the furthest:\n{self._explanation()}"
            )
        found: list[tuple[Hashable, ...]] = []
        for way in operation.ways:
            states = [state]
            for action in way:
                place = self._places[action.key]
                states = [
                    (*before[:place], after, *before[place + 1 :])
                    for before in states
                    for after in self._specifications[place].step(before[place], action)
                ]
            found += states
        return found

    def _explanation(self) -> str:
        """The operation that cannot be explained, what overlaps it, and what could be there, of its keys, when it was to happen."""
        furthest = self._blocked[0]
        offending = min(
            (self._known[place] for place in self._candidates(furthest)[0]), key=lambda one: one.returned_ns
        )
        start_ns = self._known[0].called_ns
        related = [one for one in [*self._known, *self._unknown] if one.keys & offending.keys and one is not offending]
        before = [one for one in related if one.returned_ns < offending.called_ns]
        before.sort(key=lambda one: one.returned_ns)
        window = [
            one
            for one in related
            if offending.called_ns <= one.returned_ns and one.called_ns <= offending.returned_ns
            if one.returned_ns != NEVER or self._matters(one)
        ]
        lines = ["cannot be explained:", _line(offending, start_ns), "while there were under way:"]
        lines += [_line(one, start_ns) for one in window[-SHOWN_MAX:]] or ["  nothing"]
        lines += ["just before:", *(_line(one, start_ns) for one in before[-SHOWN_MAX // 2 :])]
        states = list(dict.fromkeys(self._text(one.state, offending.keys) for one in self._blocked))
        lines += [f"so that, of all orders that explain the rest, each leaves one of {len(states)} states:"]
        lines += [f"  {state}" for state in states[:SHOWN_MAX]]
        return "\n".join(lines)

    def _matters(self, unknown: Operation) -> bool:
        """Whether some of the furthest configurations have used it, or would be changed by it."""
        return any(
            set(self._after_uncounted(configuration.state, unknown)) - {configuration.state}
            for configuration in self._blocked[:SHOWN_MAX]
        )

    def _after_uncounted(self, state: tuple[Hashable, ...], operation: Operation) -> list[tuple[Hashable, ...]]:
        steps, self.steps = self.steps, -1
        try:
            return self._after(state, operation)
        finally:
            self.steps = steps

    def _text(self, state: tuple[Hashable, ...], keys: set[str]) -> str:
        """What a state says of some keys."""
        return ", ".join(f"{key}: {part!r}" for key, part in zip(self._keys, state, strict=True) if key in keys)


def _line(operation: Operation, start_ns: int) -> str:
    ended = "?" if operation.returned_ns == NEVER else f"{(operation.returned_ns - start_ns) / 1e6:.3f}"
    return f"  {(operation.called_ns - start_ns) / 1e6:.3f} to {ended} ms  {operation}"


def _is(told: Any, value: Any) -> bool:
    return told is UNKNOWN or bool(told == value)


# Register. State: value and version, both of the last write, and a number that is smaller than every version still to come. The version is None where
# the client was not told; then it is above that number. A key that is not there has the value None and the version 0.

_RegisterState = tuple[Any, int | None, int]


def _told_version(state: _RegisterState, told: Any) -> tuple[_RegisterState, ...]:
    """The state, its version known from now on."""
    value, version, floor = state
    if version is None and told is not UNKNOWN:
        return ((value, told, told),) if told > floor else ()
    return (state,) if _is(told, version) else ()


def _written(state: _RegisterState, value: Any, told: Any) -> tuple[_RegisterState, ...]:
    return _told_version((value, None, state[2]), told)


def _has_version(state: _RegisterState, expected: int) -> tuple[tuple[bool, _RegisterState], ...]:
    """Whether a register has a version, which may be open."""
    value, version, floor = state
    if version is not None:
        return ((version == expected, state),)
    return ((True, (value, expected, expected)), (False, state)) if expected > floor else ((False, state),)


def _register(state: _RegisterState, action: Action) -> tuple[_RegisterState, ...]:
    result: Any = action.result
    match action.name, action.arguments:
        case "set", (value,):  # -> version
            return _written(state, value, result)
        case "get", ():  # -> value, version
            value, version = (UNKNOWN, UNKNOWN) if result is UNKNOWN else result
            return _told_version(state, version) if _is(value, state[0]) else ()
        case "set_if_absent", (value,):  # -> written, version
            cases: Sequence[tuple[bool, _RegisterState]] = [(state[0] is None, state)]
        case "set_if_version", (value, expected):  # -> written, version
            cases = _has_version(state, expected)
        case "delete", ():  # -> deleted
            if not _is(result, state[0] is not None):
                return ()
            return ((None, 0, state[2]),)
        case other:
            raise ValueError(f"a register has no {other}")
    written, version = (UNKNOWN, UNKNOWN) if result is UNKNOWN else result
    return tuple(
        after
        for holds, before in cases
        if _is(written, holds)
        for after in (_written(before, value, version) if holds else _told_version(before, version))
    )


REGISTER: Final = Specification((None, 0, 0), _register)


def _counter(state: int, action: Action) -> tuple[int, ...]:
    match action.name, action.arguments:
        case "add", (delta,):  # -> the sum
            return (state + delta,) if _is(action.result, state + delta) else ()
        case "get", ():
            return (state,) if _is(action.result, state) else ()
        case "is_at_least", (least,):
            return (state,) if _is(action.result, state >= least) else ()
        case other:
            raise ValueError(f"a counter has no {other}")


COUNTER: Final = Specification(0, _counter)


def _set(state: frozenset[Any], action: Action) -> tuple[frozenset[Any], ...]:
    match action.name, action.arguments:
        case "add", (member,):  # -> whether it was not there
            after, result = state | {member}, member not in state
        case "remove", (member,):  # -> whether it was there
            after, result = state - {member}, member in state
        case "contains", (member,):
            after, result = state, member in state
        case "size", ():
            return (state,) if _is(action.result, len(state)) else ()
        case "members", ():
            return (state,) if _is(action.result, state) else ()
        case other:
            raise ValueError(f"a set has no {other}")
    return (after,) if _is(action.result, result) else ()


SET: Final = Specification(frozenset(), _set)


def _queue(state: tuple[Any, ...], action: Action) -> tuple[tuple[Any, ...], ...]:
    match action.name, action.arguments:
        case "push", (item,):  # -> the length
            return ((*state, item),) if _is(action.result, len(state) + 1) else ()
        case "pop", ():  # -> the item; None: there is none
            return (state[1:],) if _is(action.result, state[0] if state else None) else ()
        case "items", ():
            return (state,) if _is(action.result, state) else ()
        case other:
            raise ValueError(f"a queue has no {other}")


QUEUE: Final = Specification((), _queue)


# Lock, whose leases outlast the history. State: owner, token and a number smaller than every token still to come. The token is None where it was not told.

_LockState = tuple[Any, int | None, int]


def _told_holder(state: _LockState, told: Any) -> tuple[_LockState, ...]:
    """The state, if it can be what a client was told: owner and token, or None for nobody."""
    owner, token, floor = state
    if told is UNKNOWN:
        return (state,)
    if owner is None or told is None:
        return (state,) if owner is None and told is None else ()
    if owner != told[0]:
        return ()
    if token is None:
        return ((owner, told[1], told[1]),) if told[1] > floor else ()
    return (state,) if token == told[1] else ()


def _lock(state: _LockState, action: Action) -> tuple[_LockState, ...]:
    held_by, token, floor = state
    match action.name, action.arguments:
        case "acquire", (owner,):  # -> owner and token of who holds it now
            return _told_holder((owner, None, floor) if held_by is None else state, action.result)
        case "holder", ():
            return _told_holder(state, action.result)
        case "release", (owner, of_token):  # -> whether it was held so
            found: list[_LockState] = []
            if (
                _is(action.result, True)
                and held_by == owner
                and (of_token > floor if token is None else of_token == token)
            ):
                found.append((None, 0, of_token))
            if _is(action.result, False) and (held_by != owner or token is None or token != of_token):
                found.append(state)
            return tuple(found)
        case other:
            raise ValueError(f"a lock has no {other}")


LOCK: Final = Specification((None, 0, 0), _lock)
