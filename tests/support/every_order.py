"""Linearizability by trying every order of every selection: for small histories, to compare `linearizability` with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.support.linearizability import NEVER, Operation, Specification


def any_order_explains(history: Sequence[Operation], specifications: Mapping[str, Specification]) -> bool:
    """Try every order of every selection of the operations of unknown outcome."""
    known = [one for one in history if one.returned_ns != NEVER]
    unknown = [one for one in history if one.returned_ns == NEVER]
    return any(
        _explains(order, specifications)
        for count in range(len(unknown) + 1)
        for chosen in itertools.combinations(unknown, count)
        for order in _orders([*known, *chosen])
    )


def _orders(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """All orders in which none comes after one that was called when it had returned."""
    if not operations:
        yield []
    for place, one in enumerate(operations):
        others = [*operations[:place], *operations[place + 1 :]]
        if all(other.returned_ns >= one.called_ns for other in others):
            yield from ([one, *order] for order in _orders(others))


def _explains(order: Sequence[Operation], specifications: Mapping[str, Specification]) -> bool:
    for ways in itertools.product(*(one.ways for one in order)):
        states: list[dict[str, Any]] = [{key: one.initial for key, one in specifications.items()}]
        for action in itertools.chain.from_iterable(ways):
            step = specifications[action.key].step
            states = [{**state, action.key: after} for state in states for after in step(state[action.key], action)]
        if states:
            return True
    return False
