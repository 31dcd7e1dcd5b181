"""The checker of histories on random ones: what was executed is accepted, and small ones are judged as by trying every order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.every_order import any_order_explains
from tests.support.linearizability import (
    COUNTER,
    LOCK,
    NEVER,
    QUEUE,
    REGISTER,
    SET,
    UNKNOWN,
    Action,
    NotLinearizableError,
    Operation,
    check,
    resolved,
)

SPECIFICATIONS = {"r": REGISTER, "c": COUNTER, "s": SET, "q": QUEUE, "l": LOCK}


class Store:
    """What the specifications describe, written the plain way; it answers one action after the other."""

    def __init__(self) -> None:
        self.version = 0
        self.values: dict[str, Any] = {}

    def do(self, action: Action) -> Action:
        method = getattr(self, f"_{action.key}_{action.name}")
        return Action(action.key, action.name, action.arguments, method(*action.arguments))

    def _r_set(self, value: Any) -> int:
        self.version += 1
        self.values["r"] = value, self.version
        return self.version

    def _r_get(self) -> tuple[Any, int]:
        found: tuple[Any, int] = self.values.get("r", (None, 0))
        return found

    def _r_set_if_absent(self, value: Any) -> tuple[bool, int]:
        return self._r_set_if_version(value, 0)

    def _r_set_if_version(self, value: Any, expected: int) -> tuple[bool, int]:
        version = self._r_get()[1]
        return (True, self._r_set(value)) if version == expected else (False, version)

    def _r_delete(self) -> bool:
        return self.values.pop("r", None) is not None

    def _c_add(self, delta: int) -> int:
        self.values["c"] = self.values.get("c", 0) + delta
        return self._c_get()

    def _c_get(self) -> int:
        return int(self.values.get("c", 0))

    def _c_is_at_least(self, least: int) -> bool:
        return self._c_get() >= least

    def _s_add(self, member: Any) -> bool:
        members = self.values.setdefault("s", [])
        if member in members:
            return False
        members.append(member)
        return True

    def _s_remove(self, member: Any) -> bool:
        if not self._s_contains(member):
            return False
        self.values["s"].remove(member)
        return True

    def _s_contains(self, member: Any) -> bool:
        return member in self.values.get("s", [])

    def _s_size(self) -> int:
        return len(self.values.get("s", []))

    def _s_members(self) -> frozenset[Any]:
        return frozenset(self.values.get("s", []))

    def _q_push(self, item: Any) -> int:
        self.values.setdefault("q", []).append(item)
        return len(self.values["q"])

    def _q_pop(self) -> Any:
        return self.values["q"].pop(0) if self.values.get("q") else None

    def _q_items(self) -> tuple[Any, ...]:
        return tuple(self.values.get("q", ()))

    def _l_acquire(self, owner: str) -> tuple[str, int] | None:
        if "l" not in self.values:
            self.version += 1
            self.values["l"] = owner, self.version
        return self._l_holder()

    def _l_holder(self) -> tuple[str, int] | None:
        return self.values.get("l")

    def _l_release(self, owner: str, token: int) -> bool:
        if self._l_holder() != (owner, token):
            return False
        del self.values["l"]
        return True


def _random_action(rng: random.Random, keys: str) -> Action:
    small = rng.randrange(3)
    match rng.choice(keys):
        case "r":
            choices: list[tuple[str, tuple[Any, ...]]] = [
                ("set", (small,)),
                ("get", ()),
                ("get", ()),
                ("set_if_absent", (small,)),
                ("set_if_version", (small, rng.randrange(5))),
                ("delete", ()),
            ]
            return Action("r", *rng.choice(choices))
        case "c":
            return Action("c", *rng.choice([("add", (small,)), ("get", ()), ("is_at_least", (small,))]))
        case "s":
            choices = [("add", (small,)), ("remove", (small,)), ("contains", (small,)), ("size", ()), ("members", ())]
            return Action("s", *rng.choice(choices))
        case "q":
            return Action("q", *rng.choice([("push", (small,)), ("pop", ()), ("pop", ()), ("items", ())]))
        case _:
            owner = rng.choice("AB")
            choices = [("acquire", (owner,)), ("holder", ()), ("release", (owner, rng.randrange(1, 5)))]
            return Action("l", *rng.choice(choices))


def _executed(rng: random.Random, count: int, keys: str, *, unknown: float, spread: int) -> Iterator[Operation]:
    """Operations that took effect one after the other, with times around that; some of them with unknown outcome, and some of those not done."""
    store = Store()
    for moment in range(0, 10 * count, 10):
        actions = [_random_action(rng, keys) for _ in range(rng.choice([1, 1, 1, 2]))]
        called_ns, returned_ns = moment - rng.randrange(spread), moment + rng.randrange(spread)
        if rng.random() < unknown:
            if rng.random() < 0.5:
                for action in actions:
                    store.do(action)
                request_id = str(moment)
            else:
                request_id = f"{moment}, not done"
            yield Operation.unknown("client", called_ns, tuple(actions), request_id=request_id)
        else:
            done = [store.do(action) for action in actions]
            yield Operation.known("client", called_ns, returned_ns, *done, request_id=str(moment))


seeds = st.integers(0, 2**32)


@given(seeds, st.sampled_from(["r", "c", "s", "q", "l", "rcsql"]), st.sampled_from([5, 30, 60]))
@settings(deadline=None, max_examples=150)
def test_what_was_executed_is_accepted(seed: int, keys: str, spread: int) -> None:
    rng = random.Random(seed)
    history = list(_executed(rng, 40, keys, unknown=0.1, spread=spread))
    rng.shuffle(history)
    check(history, SPECIFICATIONS)


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_with_a_log_what_was_executed_is_accepted_at_once(seed: int) -> None:
    """However many outcomes are unknown, and however many calls were under way at a time."""
    rng = random.Random(seed)
    history = list(_executed(rng, 400, "rcsql", unknown=0.4, spread=300))
    rng.shuffle(history)
    places = {str(moment): place for place, moment in enumerate(range(0, 10 * 400, 10), 1)}
    assert check(resolved(history, places), SPECIFICATIONS) < 40_000


def _doctored(rng: random.Random, history: list[Operation], share: float) -> list[Operation]:
    """The history with the answers of some operations exchanged for those of others that did the like, or with later times."""
    found = list(history)
    for place, operation in enumerate(found):
        if operation.returned_ns == NEVER or rng.random() >= share:
            continue
        (first, *rest), late = operation.ways[0], rng.choice([0, 0, -30, 30])
        like = [
            action.result
            for other in history
            for action in other.ways[0]
            if (action.key, action.name) == (first.key, first.name) and action.result is not UNKNOWN
        ]
        action = Action(first.key, first.name, first.arguments, rng.choice(like))
        found[place] = Operation.known(
            "client", operation.called_ns + late, operation.returned_ns + late, action, *rest
        )
    return found


verdicts: list[bool] = []


@given(seeds, st.sampled_from(["r", "c", "s", "q", "l", "rc", "sl", "qc"]), st.sampled_from([0, 0.3, 0.7]))
@settings(deadline=None, max_examples=400)
def _agree(seed: int, keys: str, doctored: float) -> None:
    rng = random.Random(seed)
    history = list(_executed(rng, rng.randint(4, 7), keys, unknown=0.2, spread=rng.choice([8, 20, 40])))
    history = _doctored(rng, history, doctored)
    expected = any_order_explains(history, SPECIFICATIONS)
    verdicts.append(expected)
    try:
        check(history, SPECIFICATIONS)
    except NotLinearizableError:
        assert not expected, "an order explains what was rejected"
    else:
        assert expected, "no order explains what was accepted"


def test_small_histories_are_judged_as_by_trying_every_order() -> None:
    verdicts.clear()
    _agree()
    assert 20 < sum(verdicts) < len(verdicts) - 20, "nearly all histories were of one sort"
