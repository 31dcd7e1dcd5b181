"""Which keys go: a clock that is never behind, samples of the right keys, and a state that stays within its limit and replays."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.support import Command, apply, dump, entries
from tests.support.keyspace import operation
from vecmem.config import Settings
from vecmem.errors import MemoryLimitError
from vecmem.store import eviction
from vecmem.store.eviction import LRU, PLACES_MIN, VOLATILE_LRU, VOLATILE_TTL, UseClock, Victims
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.memory import EVICTED_KEYS_MAX, Memory
from vecmem.store.state_machine import StateMachine

KEYS = [b"key%05d" % number for number in range(20_000)]
START_UNIX_MS = 1_000


def filled(count: int, *, expires_at: dict[int, int] | None = None) -> Keyspace:
    keyspace = Keyspace()
    for number, key in enumerate(KEYS[:count]):
        keyspace.put_string(key, b"x" * 10, (expires_at or {}).get(number, NEVER))
    return keyspace


# -- the clock -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(KEYS[:40]), max_size=5), st.sampled_from([0, 40, 2_000, 9_000]))),
    st.integers(0, 30),
)
def test_a_key_never_seems_to_be_used_earlier_than_it_was(touches: list[tuple[list[bytes], int]], left: int) -> None:
    """Whatever becomes of the number of keys, and of the clock when it is as late as it can be."""
    clock = UseClock()
    clock._now = eviction.TICKS_MAX - left
    order: OrderedDict[bytes, None] = OrderedDict()
    for keys, key_count in touches:
        clock.touch(keys, key_count)
        for key in keys:
            order.pop(key, None)
            order[key] = None
        assert len({clock.used_at(key) for key in keys}) <= 1
        assert clock.size_bytes >= 4 * max(PLACES_MIN, eviction.PLACES_PER_KEY * key_count)
    places: dict[int, bytes] = {}
    for key in order:
        places[hash(key) & (PLACES_MIN - 1)] = key
    # Those that share their place with no other are in the order of their use.
    times = [clock.used_at(key) for key in order if places[hash(key) & (PLACES_MIN - 1)] == key]
    assert times == sorted(times)


def test_a_clock_knows_when_most_keys_were_used_and_shrinks_with_them() -> None:
    clock = UseClock()
    for key in KEYS:
        clock.touch([key], len(KEYS))
    assert clock.size_bytes <= 32 * len(KEYS) * 2
    exact = sum(clock.used_at(key) == number + 1 for number, key in enumerate(KEYS))
    assert exact > 0.85 * len(KEYS)
    clock.touch([], 0)
    assert clock.size_bytes == 4 * PLACES_MIN
    assert clock.used_at(KEYS[-1]) == len(KEYS)


# -- choosing --------------------------------------------------------------------------------------------------------------


def test_keys_used_longest_ago_are_chosen() -> None:
    random.seed(1)
    keyspace, victims = filled(10_000), Victims(LRU)
    assert victims.clock is not None
    for key in KEYS[:10_000]:
        victims.clock.touch([key], 10_000)
    chosen = [key for _ in range(20) for key in victims.choose(keyspace, 50)]
    places = sorted(KEYS.index(key) for key in chosen)
    # Chosen blindly half of them would be from the younger half.
    assert places[-1] < 5_000
    assert places[len(places) // 2] < 2_000


def test_what_is_chosen_already_is_not_chosen_again() -> None:
    keyspace = filled(200, expires_at=dict.fromkeys(range(200), 10**6))
    for policy in (LRU, VOLATILE_LRU):
        victims = Victims(policy)
        chosen: dict[bytes, None] = {}
        while part := victims.choose(keyspace, 7, chosen):
            assert not chosen.keys() & set(part)
            assert len(part) == len(set(part)) <= 7
            chosen |= dict.fromkeys(part)
        assert len(chosen) > 150


@given(
    st.dictionaries(st.integers(0, 199), st.integers(1, 50), min_size=1),
    st.sets(st.integers(0, 199)),
    st.integers(1, 20),
)
def test_those_that_expire_first_are_chosen(expires_at: dict[int, int], persisted: set[int], count: int) -> None:
    keyspace = filled(200, expires_at=expires_at)
    for number in persisted:
        keyspace.set_expiry(KEYS[number], NEVER)
    left = {KEYS[number]: time for number, time in expires_at.items() if number not in persisted}
    chosen = Victims(VOLATILE_TTL).choose(keyspace, count)
    assert bool(chosen) == bool(left)
    assert sorted(left[key] for key in chosen) == sorted(left.values())[: len(chosen)]
    assert len(chosen) == len(set(chosen)) <= count


def test_a_key_whose_life_was_prolonged_goes_by_its_new_time() -> None:
    keyspace = filled(2, expires_at={0: 10_000, 1: 20_000})
    keyspace.set_expiry(KEYS[0], 10_000_000)
    assert Victims(VOLATILE_TTL).choose(keyspace, 1) == [KEYS[1]]
    assert Victims(VOLATILE_TTL).choose(keyspace, 2) == [KEYS[1], KEYS[0]]


@pytest.mark.parametrize("volatile_count", [1, 30, 5_000])
def test_only_keys_that_expire_are_chosen_by_volatile_policies(volatile_count: int) -> None:
    """Also where they are rare."""
    random.seed(2)
    volatile = random.sample(range(10_000), volatile_count)
    keyspace = filled(10_000, expires_at=dict.fromkeys(volatile, 10**9))
    names = {KEYS[number] for number in volatile}
    for policy in (VOLATILE_LRU, VOLATILE_TTL):
        chosen = Victims(policy).choose(keyspace, 10)
        assert chosen
        assert set(chosen) <= names
    for number in volatile:
        keyspace.set_expiry(KEYS[number], NEVER)
    for policy in (VOLATILE_LRU, VOLATILE_TTL):
        assert Victims(policy).choose(keyspace, 10) == []


# -- within the limit ------------------------------------------------------------------------------------------------------

KEY_NUMBERS = st.integers(0, 400)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEY_NUMBERS, st.integers(0, 3_000), st.booleans()),
        st.tuples(st.just("push"), KEY_NUMBERS, st.integers(1, 30), st.booleans()),
        st.tuples(st.just("delete"), KEY_NUMBERS, st.just(0), st.just(False)),
        st.tuples(st.just("use"), KEY_NUMBERS, st.just(0), st.just(False)),
        st.tuples(st.just("expire"), KEY_NUMBERS, st.integers(1, 10**6), st.just(False)),
    ),
    min_size=30,
    max_size=300,
)


@settings(deadline=None)
@given(STEPS, st.sampled_from([LRU, VOLATILE_LRU, VOLATILE_TTL]), st.randoms(use_true_random=False))
def test_the_state_stays_within_the_limit_and_one_record(steps: list[tuple], policy: str, rng: random.Random) -> None:
    """Whatever is written; it is refused only where no key may go, and a replay of what was logged gives the same state."""
    asyncio.run(_run(steps, policy, rng))


async def _run(steps: list[tuple], policy: str, rng: random.Random) -> None:
    random.seed(rng.random())
    limit_bytes = 40_000
    state = StateMachine()
    logged: list[Command] = []

    def log(command: Command) -> int:
        command.time_unix_ms = START_UNIX_MS + len(logged)
        logged.append(command)
        [entry] = entries([command], after=len(logged) - 1)
        return apply(state, entry).deleted_count

    async def evict(keys: list[bytes]) -> int:
        assert 1 <= len(keys) <= EVICTED_KEYS_MAX
        command = Command()
        command.evict_keys.keys.extend(keys)
        return log(command)

    memory = Memory(state, Settings(memory_limit_bytes=limit_bytes, eviction_policy=policy), evict)
    for what, number, size, expires in steps:
        key = KEYS[number]
        if memory.tracks_use:
            memory.touch([key])
        command = Command()
        match what:
            case "put":
                asked = operation("set_string", key=key, value=b"x" * size)
                if expires:
                    asked.set_string.expiry.ttl_ms = 10**6 + size
            case "push":
                key += b"list"
                asked = operation("push_list_items", key=key, items=[b"y" * 50] * size, end=1)
            case "delete":
                asked = operation("delete_keys", keys=[key])
            case "expire":
                asked = operation("expire_key", key=key, expiry={"ttl_ms": size})
            case _:
                continue
        if what in ("put", "push"):
            try:
                await memory.make_room()
            except MemoryLimitError:
                assert policy != LRU
                assert not state.keyspace.expiries
                assert memory.used_bytes() > limit_bytes
                continue
            assert memory.used_bytes() <= limit_bytes
        command.run_operations.operations.append(asked)
        log(command)
        if what in ("put", "push"):
            assert memory.used_bytes() <= limit_bytes + 6_000
    assert memory.evicted_key_count == sum(len(command.evict_keys.keys) for command in logged)
    again = StateMachine()
    for entry in entries(logged):
        apply(again, entry)
    assert dump(again) == dump(state)
