"""The checker of histories: what it accepts and rejects, by example, and what the search costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.every_order import any_order_explains
from tests.support.linearizability import (
    COUNTER,
    LOCK,
    QUEUE,
    REGISTER,
    SET,
    UNKNOWN,
    Action,
    NotLinearizableError,
    Operation,
    SearchTooLargeError,
    Specification,
    check,
    partitions,
    resolved,
)

SPECIFICATIONS = {"r": REGISTER, "c": COUNTER, "s": SET, "q": QUEUE, "l": LOCK, "d": COUNTER}


def did(called: int, returned: int, key: str, name: str, *arguments: Any, result: Any) -> Operation:
    """An operation that was answered."""
    return Operation.known("client", called, returned, Action(key, name, arguments, result))


def may_have(called: int, key: str, name: str, *arguments: Any) -> Operation:
    """An operation of unknown outcome."""
    return Operation.unknown("client", called, (Action(key, name, arguments),))


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [
        did(0, 1, "r", "set", "a", result=3),
        did(2, 3, "r", "get", result=("a", 3)),
        did(4, 5, "r", "set_if_version", "b", 3, result=(True, 9)),
        did(6, 7, "r", "set_if_absent", "c", result=(False, 9)),
        did(8, 9, "r", "delete", result=True),
        did(10, 11, "r", "get", result=(None, 0)),
        did(12, 13, "r", "set_if_version", "d", 0, result=(True, 10)),
    ],
    "a read during a write sees it or not, and later ones see it": [
        did(0, 1, "r", "set", "a", result=1),
        did(2, 20, "r", "set", "b", result=2),
        did(3, 4, "r", "get", result=("a", 1)),
        did(5, 6, "r", "get", result=("b", 2)),
        did(7, 8, "r", "get", result=("b", 2)),
    ],
    "times that touch are no order": [did(0, 5, "c", "get", result=1), did(5, 6, "c", "add", 1, result=1)],
    "the order of effects is not that of calls": [
        did(0, 10, "c", "add", 1, result=3),
        did(1, 9, "c", "add", 2, result=2),
        did(11, 12, "c", "get", result=3),
    ],
    "an unknown write that happens long after": [
        did(0, 1, "r", "set", "a", result=1),
        may_have(2, "r", "set", "b"),
        did(3, 4, "r", "get", result=("a", 1)),
        did(5, 6, "r", "get", result=("b", 7)),
        did(7, 8, "r", "set_if_version", "c", 7, result=(True, 8)),
    ],
    "several actions that leave some states as they are and change others": [
        did(0, 1, "q", "push", 1, result=1),
        did(2, 3, "q", "push", 1, result=2),
        Operation.known("client", 4, 9, Action("q", "push", (1,), 3), Action("q", "pop", (), 1)),
        did(5, 6, "q", "pop", result=1),
        did(7, 8, "q", "push", 0, result=2),
        did(10, 11, "q", "items", result=(0, 1)),
    ],
    "a write of unknown version that leaves some states as they are and changes others": [
        did(0, 1, "r", "set", "a", result=UNKNOWN),
        did(2, 9, "r", "set", "a", result=UNKNOWN),
        did(3, 4, "r", "set", "b", result=UNKNOWN),
        did(10, 11, "r", "get", result=("a", 3)),
    ],
    "an unknown write that never happens": [
        may_have(0, "r", "set", "b"),
        did(3, 4, "r", "get", result=(None, 0)),
    ],
    "two unknown additions of three happen": [
        *(may_have(0, "c", "add", 1) for _ in range(3)),
        did(1, 2, "c", "add", 10, result=11),
        did(3, 4, "c", "get", result=12),
    ],
    "an unknown pop took the first": [
        did(0, 1, "q", "push", "a", result=1),
        did(2, 3, "q", "push", "b", result=2),
        may_have(4, "q", "pop"),
        did(5, 6, "q", "pop", result="b"),
        did(7, 8, "q", "pop", result=None),
    ],
    "a lock whose taker was not told": [
        did(0, 1, "l", "acquire", "A", result=("A", 3)),
        did(2, 3, "l", "acquire", "B", result=("A", 3)),
        did(4, 5, "l", "release", "A", 3, result=True),
        may_have(6, "l", "acquire", "B"),
        did(7, 8, "l", "acquire", "A", result=("B", 8)),
        did(9, 10, "l", "release", "B", 8, result=True),
        did(11, 12, "l", "holder", result=None),
        did(13, 14, "l", "release", "B", 8, result=False),
    ],
    "a transaction on two keys at once": [
        Operation.known("client", 0, 9, Action("c", "add", (1,), 1), Action("d", "add", (1,), 1)),
        did(1, 2, "c", "get", result=0),
        did(3, 4, "d", "get", result=1),
        did(5, 6, "c", "get", result=1),
    ],
    "a transaction that took one of two ways": [
        Operation.unknown(
            "client",
            0,
            (Action("c", "is_at_least", (1,), True), Action("d", "add", (1,))),
            (Action("c", "is_at_least", (1,), False), Action("s", "add", ("low",))),
        ),
        did(1, 2, "s", "members", result=frozenset({"low"})),
        did(3, 4, "d", "get", result=0),
    ],
}

VIOLATIONS = {
    "a stale read": [
        did(0, 1, "r", "set", "a", result=1),
        did(2, 3, "r", "set", "b", result=2),
        did(4, 5, "r", "get", result=("a", 1)),
    ],
    "an old value after a new one, both during the write": [
        did(0, 1, "r", "set", "a", result=1),
        did(2, 20, "r", "set", "b", result=2),
        did(3, 4, "r", "get", result=("b", 2)),
        did(5, 6, "r", "get", result=("a", 1)),
    ],
    "a lost update": [did(0, 3, "c", "add", 1, result=1), did(1, 4, "c", "add", 1, result=1)],
    "an update lost between": [
        did(0, 1, "r", "set", "a", result=1),
        did(2, 9, "r", "set_if_version", "b", 1, result=(True, 2)),
        did(3, 8, "r", "set_if_version", "c", 1, result=(True, 3)),
    ],
    "an item popped twice": [
        did(0, 1, "q", "push", "a", result=1),
        did(2, 4, "q", "pop", result="a"),
        did(3, 5, "q", "pop", result="a"),
    ],
    "a value from the future": [did(0, 1, "r", "get", result=("a", 1)), did(2, 3, "r", "set", "a", result=1)],
    "an unknown value from the future": [did(0, 1, "r", "get", result=("a", 1)), may_have(2, "r", "set", "a")],
    "a counter that goes back": [
        did(0, 9, "c", "add", 1, result=1),
        did(1, 2, "c", "get", result=1),
        did(3, 4, "c", "get", result=0),
    ],
    "pops in another order": [
        did(0, 1, "q", "push", "a", result=1),
        did(2, 3, "q", "push", "b", result=2),
        did(4, 5, "q", "pop", result="b"),
        did(6, 7, "q", "pop", result="a"),
    ],
    "two holders of a lock": [
        did(0, 1, "l", "acquire", "A", result=("A", 1)),
        did(2, 3, "l", "acquire", "B", result=("B", 2)),
    ],
    "two holders of a lock at the same time": [
        did(0, 9, "l", "acquire", "A", result=("A", 1)),
        did(0, 9, "l", "acquire", "B", result=("B", 2)),
    ],
    "a token given out again": [
        did(0, 1, "l", "acquire", "A", result=("A", 5)),
        did(2, 3, "l", "release", "A", 5, result=True),
        did(4, 5, "l", "acquire", "B", result=("B", 5)),
    ],
    "a token smaller than one that was not told": [
        did(0, 1, "l", "acquire", "A", result=("A", 5)),
        did(2, 3, "l", "release", "A", 5, result=True),
        may_have(4, "l", "acquire", "B"),
        did(5, 6, "l", "holder", result=("B", 4)),
    ],
    "a version that goes back": [
        did(0, 1, "r", "set", "a", result=5),
        did(2, 3, "r", "delete", result=True),
        did(4, 5, "r", "set", "b", result=5),
    ],
    "an unknown addition that happens twice": [
        may_have(0, "c", "add", 1),
        did(1, 2, "c", "get", result=1),
        did(3, 4, "c", "get", result=2),
    ],
    "an unknown push that happens twice": [
        may_have(0, "q", "push", "a"),
        did(1, 2, "q", "pop", result="a"),
        did(3, 4, "q", "pop", result="a"),
    ],
    "an unknown write that is undone": [
        did(0, 1, "r", "set", "a", result=1),
        may_have(2, "r", "set", "b"),
        did(3, 4, "r", "get", result=("b", 2)),
        did(5, 6, "r", "get", result=("a", 1)),
    ],
    "a member that is gone": [did(0, 1, "s", "add", "a", result=True), did(2, 3, "s", "contains", "a", result=False)],
    "a member removed twice": [
        did(0, 1, "s", "add", "a", result=True),
        did(2, 5, "s", "remove", "a", result=True),
        did(3, 4, "s", "remove", "a", result=True),
    ],
    "a set of another size": [did(0, 1, "s", "add", "a", result=True), did(2, 3, "s", "size", result=2)],
    "half of a transaction": [
        Operation.known("client", 0, 9, Action("c", "add", (1,), 1), Action("d", "add", (1,), 1)),
        did(1, 2, "c", "get", result=1),
        did(3, 4, "d", "get", result=0),
    ],
    "both ways of a transaction": [
        Operation.unknown("client", 0, (Action("c", "add", (1,)),), (Action("d", "add", (1,)),)),
        did(1, 2, "c", "get", result=1),
        did(3, 4, "d", "get", result=1),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_what_an_order_explains_is_accepted(name: str) -> None:
    check(LINEARIZABLE[name], SPECIFICATIONS)
    assert any_order_explains(LINEARIZABLE[name], SPECIFICATIONS)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_no_order_explains_is_rejected(name: str) -> None:
    with pytest.raises(NotLinearizableError):
        check(VIOLATIONS[name], SPECIFICATIONS)
    assert not any_order_explains(VIOLATIONS[name], SPECIFICATIONS)


def test_the_message_names_the_operation_and_what_could_have_been() -> None:
    before = [did(10 * i, 10 * i + 5, "c", "add", 1, result=i + 1) for i in range(100)]
    stale = Operation.known("reader", 1_000_000, 3_000_000, Action("c", "get", (), 42))
    during = did(2_000_000, 4_000_000, "c", "add", 1, result=101)
    after = [did(5_000_000 + i, 5_000_000 + i, "c", "get", result=101) for i in range(100)]
    with pytest.raises(NotLinearizableError) as raised:
        check([*before, stale, during, *after], SPECIFICATIONS)
    assert str(raised.value).splitlines() == [
        "no order of the operations explains what was observed:",
        "cannot be explained:",
        "  1.000 to 3.000 ms  reader: c.get() -> 42",
        "while there were under way:",
        "  2.000 to 4.000 ms  client: c.add(1) -> 101",
        "just before:",
        *(f"  0.001 to 0.001 ms  client: c.add(1) -> {value}" for value in range(95, 101)),
        "so that, of all orders that explain the rest, each leaves one of 2 states:",
        "  c: 100",
        "  c: 101",
    ]


def test_a_search_that_would_not_end_is_no_verdict() -> None:
    """Twenty different additions at once, and a sum that none of the million selections has."""
    history = [may_have(0, "c", "add", 2**i * 2) for i in range(20)]
    with pytest.raises(SearchTooLargeError, match=r"(?s)1000 steps.*c.get\(\) -> 1"):
        check([*history, did(1, 2, "c", "get", result=1)], SPECIFICATIONS, steps_max=1_000)


def test_the_bound_is_that_of_all_parts_together() -> None:
    history = [did(i, i, key, "add", 1, result=i + 1) for i in range(50) for key in "cd"]
    assert check(history, SPECIFICATIONS) == 100
    with pytest.raises(SearchTooLargeError):
        check(history, SPECIFICATIONS, steps_max=99)


def test_alike_operations_of_unknown_outcome_cost_little() -> None:
    """Of 30 additions alike 15 happened: it does not matter which."""
    history: list[Operation] = []
    for i in range(30):
        history += [may_have(10 * i, "c", "add", 1), did(10 * i + 5, 10 * i + 6, "c", "get", result=(i + 1) // 2)]
    assert check(history, SPECIFICATIONS) < 20_000
    with pytest.raises(NotLinearizableError):
        check([*history, did(400, 401, "c", "get", result=31)], SPECIFICATIONS)


def test_unknown_writes_that_overwrite_each_other_cost_little() -> None:
    history: list[Operation] = []
    for i in range(40):
        history += [may_have(10 * i, "r", "set", i), did(10 * i + 5, 10 * i + 6, "r", "set", -i, result=100 * i + 1)]
    assert check(history, SPECIFICATIONS) < 1_000
    with pytest.raises(NotLinearizableError):
        check([*history, did(500, 501, "r", "get", result=("other", 1))], SPECIFICATIONS, steps_max=200_000)


def test_what_a_log_has_has_happened_and_nothing_else() -> None:
    maybe = [replace(may_have(2, "c", "add", delta), request_id=f"add {delta}") for delta in (1, 2)]
    history = [*maybe, did(10, 11, "c", "get", result=1)]
    check(history, SPECIFICATIONS)
    check(resolved(history, {"add 1": 7}), SPECIFICATIONS)
    check(resolved(history, {"add 1": 7, "add 2": 8}), SPECIFICATIONS)  # the other one came behind the read
    for places in ({}, {"add 2": 7}, {"add 3": 7}):
        with pytest.raises(NotLinearizableError):
            check(resolved(history, places), SPECIFICATIONS)


def test_the_order_of_a_log_is_not_believed_against_what_was_answered() -> None:
    history = [
        replace(did(0, 1, "r", "set", "a", result=1), request_id="a"),
        replace(did(2, 3, "r", "set", "b", result=2), request_id="b"),
        did(4, 5, "r", "get", result=("b", 2)),
    ]
    check(resolved(history, {"a": 2, "b": 1}), SPECIFICATIONS)
    stale = did(6, 7, "r", "get", result=("a", 1))
    with pytest.raises(NotLinearizableError):
        check(resolved([*history, stale], {"a": 2, "b": 1}), SPECIFICATIONS)


def test_keys_that_a_transaction_joins_are_one_part() -> None:
    both = Operation.known("client", 3, 4, Action("c", "get", (), 1), Action("d", "get", (), 1))
    single = [did(0, 1, key, "add", 1, result=1) for key in "cds"]
    assert sorted(map(len, partitions([*single, both]))) == [1, 3]


@pytest.mark.parametrize("specification", [REGISTER, COUNTER, SET, QUEUE, LOCK])
def test_an_action_that_a_value_does_not_know_is_an_error(specification: Specification) -> None:
    with pytest.raises(ValueError, match="has no"):
        specification.step(specification.initial, Action("x", "fly"))


_actions = {
    "r": [
        Action("r", name, arguments, result)
        for name, arguments in [
            ("set", ("a",)),
            ("get", ()),
            ("set_if_absent", ("a",)),
            ("set_if_version", ("a", 2)),
            ("delete", ()),
        ]
        for result in [
            0,
            1,
            2,
            3,
            True,
            False,
            ("a", 1),
            ("a", 2),
            (None, 0),
            (True, 2),
            (True, 3),
            (False, 0),
            (False, 1),
            (False, 2),
        ]
        if isinstance(result, tuple) == (name in ("get", "set_if_absent", "set_if_version"))
    ],
    "c": [
        Action("c", name, arguments, result)
        for name, arguments in [("add", (0,)), ("add", (1,)), ("get", ()), ("is_at_least", (1,))]
        for result in range(3)
    ],
    "s": [
        Action("s", name, arguments, result)
        for name, arguments in [
            ("add", (1,)),
            ("add", (2,)),
            ("remove", (1,)),
            ("contains", (1,)),
            ("size", ()),
            ("members", ()),
        ]
        for result in [True, False, 0, 2, frozenset(), frozenset({1})]
    ],
    "q": [
        Action("q", name, arguments, result)
        for name, arguments in [("push", (0,)), ("push", (1,)), ("pop", ()), ("items", ())]
        for result in [None, 0, 1, 2, 3, (), (0,), (1, 0)]
    ],
    "l": [
        Action("l", name, arguments, result)
        for name, arguments in [
            ("acquire", ("A",)),
            ("acquire", ("B",)),
            ("holder", ()),
            ("release", ("A", 1)),
            ("release", ("A", 2)),
        ]
        for result in ([True, False] if name == "release" else [None, ("A", 1), ("A", 2), ("B", 1), ("B", 2)])
    ],
}


def _reachable(specification: Specification, actions: Sequence[Action], depth: int) -> set[Any]:
    """States after a few of the actions, told their results or not."""
    found, new = {specification.initial}, {specification.initial}
    for _ in range(depth):
        untold = [replace(action, result=UNKNOWN) for action in actions]
        new = {after for state in new for action in [*actions, *untold] for after in specification.step(state, action)}
        found |= new
    return found


@pytest.mark.parametrize("key", _actions)
def test_a_told_action_leaves_all_states_alone_or_none_on_the_way_there(key: str) -> None:
    """The search relies on it: what changes nothing here may come at once, for it would change nothing later."""
    specification = SPECIFICATIONS[key]
    states = _reachable(specification, _actions[key], 3)
    assert len(states) > 2
    for action in _actions[key]:
        for state in states:
            if specification.step(state, action) == (state,):
                later = {after for other in _actions[key] for after in specification.step(state, other)}
                assert all(specification.step(one, action) in ((), (one,)) for one in later), (action, state)
