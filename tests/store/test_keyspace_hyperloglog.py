"""HyperLogLog sketches: estimates against true counts and beside redis-server, and registers as they are kept."""

from __future__ import annotations

import random
from hashlib import blake2b
from math import sqrt

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import NOW, check_refusal, contents, do, refusal, reloaded
from tests.support.redis_server import redis_client  # noqa: F401  (a fixture)
from vecmem import limits
from vecmem.store.keyspace import hyperloglog_value
from vecmem.store.keyspace.hyperloglog_value import (
    RANK_MAX,
    REGISTER_COUNT,
    SPARSE_REGISTERS_MAX,
    HyperLogLogValue,
    estimate,
    register_of,
)
from vecmem.store.keyspace.keyspace import Keyspace

KEY, OTHER, STRING = b"{t}a", b"{t}b", b"{t}string"
STANDARD_ERROR = 1.04 / sqrt(REGISTER_COUNT)


@pytest.fixture
def keyspace() -> Keyspace:
    return Keyspace()


def add(keyspace: Keyspace, *items: bytes, key: bytes = KEY) -> bool:
    changed = False
    for begin in range(0, len(items), limits.MEMBERS_PER_REQUEST_MAX):
        part = items[begin : begin + limits.MEMBERS_PER_REQUEST_MAX]
        changed |= do(keyspace, "add_hyper_log_log_items", key=key, items=part).changed
    return changed


def count(keyspace: Keyspace, *keys: bytes, now: int = NOW) -> int:
    return do(keyspace, "count_hyper_log_log", keys=keys, now=now).count


def merge(keyspace: Keyspace, destination: bytes, *keys: bytes) -> bool:
    return do(keyspace, "merge_hyper_log_logs", destination=destination, keys=keys).changed


def sketch(keyspace: Keyspace, key: bytes = KEY) -> HyperLogLogValue:
    found = keyspace.container(key, HyperLogLogValue, NOW)
    assert found is not None
    return found


def random_sketch(values: np.random.Generator, item_count: int) -> HyperLogLogValue:
    """What so many distinct items leave behind, their hashes being taken from a generator instead of from items."""
    hashes = values.integers(0, 2**64, item_count, dtype=np.uint64)
    indexes, rest = hashes & np.uint64(REGISTER_COUNT - 1), hashes >> np.uint64(14)
    lowest = rest & (~rest + np.uint64(1))
    ranks = np.where(rest == 0, RANK_MAX, np.log2(np.maximum(lowest, 1).astype(float)) + 1).astype(np.uint8)
    registers = np.zeros(REGISTER_COUNT, dtype=np.uint8)
    np.maximum.at(registers, indexes.astype(np.int64), ranks)
    value = HyperLogLogValue()
    value.merge(registers)
    return value


# -- what it says ----------------------------------------------------------------------------------------------------------


def test_few_items_are_counted_exactly(keyspace: Keyspace) -> None:
    assert count(keyspace, KEY) == 0
    for number in range(1, 60):
        assert add(keyspace, b"item %d" % number)
        assert not add(keyspace, b"item %d" % number, b"item 1")
        assert count(keyspace, KEY) == number


def test_estimates_stay_within_three_standard_errors_of_true_counts(keyspace: Keyspace) -> None:
    """Of real items through the whole operation, at every size on the way to a million."""
    done = 0
    for true_count in (1, 10, 100, 1_000, 2_000, 5_000, 20_000, 50_000, 100_000, 1_000_000):
        items = [b"visitor-%08d" % number for number in range(done, true_count)]
        if true_count < 1_000_000:
            add(keyspace, *items)
        else:
            # A request of each thousand would be most of the test's time.
            value = sketch(keyspace)
            old_size_bytes = value.size_bytes
            for item in items:
                value.add(*register_of(item))
            keyspace.change(KEY, value, old_size_bytes, NOW)
        done = true_count
        # An estimate is a whole number as well.
        assert abs(count(keyspace, KEY) - true_count) <= 3 * STANDARD_ERROR * true_count + 0.5
    assert do(keyspace, "describe_key", key=KEY).size == count(keyspace, KEY)
    reloaded(keyspace)


@pytest.mark.parametrize("true_count", [300, 3_000, 12_000, 40_000, 80_000, 300_000])
def test_the_error_is_what_is_promised(true_count: int) -> None:
    """Over many sketches: no bias to speak of, and a spread of at most 0.81 % with what 200 sketches leave to chance."""
    values = np.random.default_rng(true_count)
    errors = [random_sketch(values, true_count).count_at(NOW) / true_count - 1 for _ in range(200)]
    assert abs(np.mean(errors)) <= 4 * STANDARD_ERROR / sqrt(200)
    assert np.std(errors) <= STANDARD_ERROR * (1 + 4 / sqrt(2 * 200))


def test_registers_full_to_the_brim_still_give_a_number() -> None:
    """Far beyond what anybody counts: the estimator has a term for registers at their highest rank."""
    values = np.random.default_rng(8)
    for true_count in (2.0**40, 2.0**60, 2.0**62, 2.0**63):
        # A register is at most at a rank if none of its items has a longer run of zero bits.
        chances = np.exp(-true_count / REGISTER_COUNT * 0.5 ** np.arange(RANK_MAX))
        registers = np.searchsorted(chances, values.random(REGISTER_COUNT)).astype(np.uint8)
        assert estimate(registers) == pytest.approx(true_count, rel=4 * STANDARD_ERROR)
    assert estimate(np.full(REGISTER_COUNT, RANK_MAX, dtype=np.uint8)) == 2**64 - 1
    value = HyperLogLogValue()
    value.merge(np.full(REGISTER_COUNT, RANK_MAX, dtype=np.uint8))
    keyspace = Keyspace()
    keyspace.change(KEY, value, 0, NOW)
    assert count(keyspace, KEY) == do(keyspace, "describe_key", key=KEY).size == 2**64 - 1


def test_redis_estimates_the_same_within_the_errors_of_both(redis_client: redis.Redis) -> None:  # noqa: F811
    redis_client.flushall()
    keyspace = Keyspace()
    values = random.Random(11)
    overlapping: list[list[bytes]] = []
    for key, item_count in ((KEY, 30_000), (OTHER, 50_000)):
        items = [b"%d" % values.randrange(100_000) for _ in range(item_count)]
        overlapping.append(items)
        add(keyspace, *items, key=key)
        redis_client.pfadd(key, *items)
    for keys, true_count in (
        ((KEY,), len(set(overlapping[0]))),
        ((OTHER,), len(set(overlapping[1]))),
        ((KEY, OTHER), len(set(overlapping[0] + overlapping[1]))),
    ):
        mine, theirs = count(keyspace, *keys), redis_client.pfcount(*keys)
        assert abs(mine - true_count) <= 3 * STANDARD_ERROR * true_count
        assert abs(theirs - true_count) <= 3 * STANDARD_ERROR * true_count
        assert abs(mine - theirs) <= 3 * sqrt(2) * STANDARD_ERROR * true_count


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "count", "merge"]),
            st.lists(st.sampled_from([KEY, OTHER, b"{t}c"]), min_size=1, max_size=3),
            st.lists(st.integers(0, 60).map(b"%d".__mod__), min_size=1, max_size=20),
        ),
        max_size=20,
    )
)
def test_redis_answers_the_same_for_few_items(redis_client: redis.Redis, steps: list) -> None:  # noqa: F811
    """So few that both are exact, or off by one where a register holds two."""
    redis_client.flushall()
    keyspace = Keyspace()
    sets: dict[bytes, set[bytes]] = {}
    for kind, keys, items in steps:
        held = sets.setdefault(keys[0], set())
        match kind:
            case "add":
                new = not held.issuperset(items)
                held.update(items)
                assert add(keyspace, *items, key=keys[0]) == new == bool(redis_client.pfadd(keys[0], *items))
            case "count":
                true_count = len(set().union(*(sets.get(key, set()) for key in keys)))
                assert count(keyspace, *keys) == true_count
                assert abs(redis_client.pfcount(*keys) - true_count) <= 1
            case "merge":
                others = set().union(*(sets.get(key, set()) for key in keys))
                assert merge(keyspace, keys[0], *keys[1:], keys[-1]) == (not held.issuperset(others))
                held.update(others)
                redis_client.pfmerge(*keys)
    for key, held in sets.items():
        assert count(keyspace, key) == len(held)
        assert abs(redis_client.pfcount(key) - len(held)) <= 1
    reloaded(keyspace)


# -- what is kept ----------------------------------------------------------------------------------------------------------


def test_registers_of_items_never_change() -> None:
    """A log that was written by an older version has to give the same registers."""
    assert register_of(b"") == (9_956, 2)
    assert register_of(b"visitor") == (16_215, 1)
    assert register_of(b"\xff" * 1_024) == (1_571, 1)
    for number in range(200):
        hashed = int.from_bytes(blake2b(b"%d" % number, digest_size=8).digest(), "little")
        bits = f"{hashed >> 14:050b}"[::-1]
        assert register_of(b"%d" % number) == (hashed % 2**14, bits.index("1") + 1)


def test_a_hash_without_a_bit_has_the_highest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        def digest(self) -> bytes:
            return b"\x05" + bytes(7)

    monkeypatch.setattr(hyperloglog_value, "blake2b", lambda item, digest_size: Zeros())
    assert register_of(b"anything") == (5, RANK_MAX)


def test_a_sketch_of_few_items_is_small_and_one_of_many_is_no_larger_than_its_registers(keyspace: Keyspace) -> None:
    add(keyspace, *(b"%d" % number for number in range(100)))
    few = sketch(keyspace)
    assert few.size_bytes < 700
    assert len(few.dump()) <= 401
    add(keyspace, *(b"%d" % number for number in range(100_000)))
    many = sketch(keyspace)
    assert REGISTER_COUNT <= many.size_bytes < REGISTER_COUNT + 300
    assert len(many.dump()) == REGISTER_COUNT + 1
    reloaded(keyspace)


def test_equal_contents_are_equal_bytes_however_they_came_about() -> None:
    """Item by item in any order, or by merging, below and above the number from which all registers are kept."""
    values = random.Random(2)
    for item_count in (1, 500, SPARSE_REGISTERS_MAX, 2_300, 2_400, 10_000):
        items = [b"%d" % number for number in range(item_count)]
        one, other = Keyspace(), Keyspace()
        add(one, *items)
        values.shuffle(items)
        half = item_count // 2
        add(other, *items[:half], key=KEY) if half else None
        add(other, *items[half:], key=OTHER)
        merge(other, KEY, OTHER)
        mine, theirs = sketch(one), sketch(other)
        assert mine.dump() == theirs.dump()
        assert (len(mine), mine.size_bytes) == (len(theirs), theirs.size_bytes)
        assert np.count_nonzero(mine.registers()) == len(mine)
        loaded = HyperLogLogValue.load(mine.dump())
        assert (loaded.dump(), len(loaded), loaded.size_bytes) == (mine.dump(), len(mine), mine.size_bytes)
        contents(one)
        contents(other)


@pytest.mark.parametrize("item_count", [50, 20_000])
def test_a_copy_equals_and_changes_by_itself(item_count: int) -> None:
    keyspace = Keyspace()
    add(keyspace, *(b"%d" % number for number in range(item_count)))
    value = sketch(keyspace)
    copied = value.copy()
    assert copied == value
    assert copied.size_bytes == value.size_bytes
    before = value.dump()
    assert copied.add(5, RANK_MAX)
    assert value.dump() == before != copied.dump()
    assert value.add(5, RANK_MAX)
    assert (copied.dump(), len(copied), copied.size_bytes) == (value.dump(), len(value), value.size_bytes)


def test_damage_is_told() -> None:
    value = HyperLogLogValue()
    for item in range(10):
        value.add(*register_of(b"%d" % item))
    few = value.dump()
    dense = bytearray(b"\1" + bytes([1]) * REGISTER_COUNT)
    assert HyperLogLogValue.load(bytes(dense)).dump() == dense
    too_high, too_few = dense[:], dense[:]
    too_high[7] = RANK_MAX + 1
    too_few[SPARSE_REGISTERS_MAX + 1 :] = bytes(REGISTER_COUNT - SPARSE_REGISTERS_MAX)
    entry = (5 << 8 | 1).to_bytes(4, "little")
    for damaged in (
        b"", b"\0", b"\2" + few[1:], few[:-1], few + few[-4:], few[:1] + few[5:9] + few[1:5],
        b"\0" + entry + entry, b"\0" + (5 << 8).to_bytes(4, "little"), b"\0" + (5 << 8 | RANK_MAX + 1).to_bytes(4, "little"),
        b"\0" + (REGISTER_COUNT << 8 | 1).to_bytes(4, "little"),
        b"\0" + b"".join((index << 8 | 1).to_bytes(4, "little") for index in range(SPARSE_REGISTERS_MAX + 1)),
        bytes(dense[:-1]), bytes(dense) + b"\1", bytes(too_high), bytes(too_few), b"\1",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"regist|rank|form|multiple"):
            HyperLogLogValue.load(damaged)


# -- versions, expiry, refusals --------------------------------------------------------------------------------------------


def test_what_changes_nothing_leaves_the_version(keyspace: Keyspace) -> None:
    add(keyspace, b"a", b"b")
    add(keyspace, b"a", key=OTHER)
    before = contents(keyspace)
    assert not add(keyspace, b"b", b"a")
    assert not merge(keyspace, KEY, OTHER, KEY, b"{t}none")
    assert not merge(keyspace, b"{t}none", b"{t}nothing")
    assert contents(keyspace) == before
    assert merge(keyspace, OTHER, KEY)
    assert count(keyspace, OTHER) == 2


def test_the_expiry_of_a_key_stays_and_what_has_expired_is_not_counted(keyspace: Keyspace) -> None:
    add(keyspace, b"a")
    do(keyspace, "expire_key", key=KEY, expiry={"ttl_ms": 10})
    add(keyspace, b"b")
    assert keyspace.expires_at(KEY) == NOW + 10
    assert count(keyspace, KEY, now=NOW + 9) == 2
    assert count(keyspace, KEY, now=NOW + 10) == 0
    assert do(keyspace, "add_hyper_log_log_items", key=KEY, items=[b"a"], now=NOW + 10).changed
    assert count(keyspace, KEY, now=NOW + 10) == 1


def test_requests_that_are_wrong_whatever_the_state() -> None:
    assert check_refusal("add_hyper_log_log_items", key=KEY) == ("INVALID_ARGUMENT", "items")
    many = [b"x"] * (limits.MEMBERS_PER_REQUEST_MAX + 1)
    assert check_refusal("add_hyper_log_log_items", key=KEY, items=many) == ("LIMIT_EXCEEDED", "items")
    long = [b"x", b"x" * (limits.MEMBER_BYTES_MAX + 1)]
    assert check_refusal("add_hyper_log_log_items", key=KEY, items=long) == ("LIMIT_EXCEEDED", "items[1]")
    assert check_refusal("count_hyper_log_log") == ("INVALID_ARGUMENT", "keys")
    assert check_refusal("count_hyper_log_log", keys=[KEY, b"elsewhere"]) == ("CROSS_SLOT", "keys")
    assert check_refusal("merge_hyper_log_logs", destination=b"", keys=[KEY]) == ("INVALID_KEY", "destination")
    assert check_refusal("merge_hyper_log_logs", destination=b"elsewhere", keys=[KEY]) == ("CROSS_SLOT", "destination")


def test_keys_of_other_types_are_refused(keyspace: Keyspace) -> None:
    do(keyspace, "set_string", key=STRING, value=b"v")
    add(keyspace, b"a")
    assert refusal(keyspace, "add_hyper_log_log_items", key=STRING, items=[b"a"]) == ("WRONG_TYPE", "key")
    assert refusal(keyspace, "count_hyper_log_log", keys=[KEY, STRING]) == ("WRONG_TYPE", "keys[1]")
    assert refusal(keyspace, "merge_hyper_log_logs", destination=KEY, keys=[STRING]) == ("WRONG_TYPE", "keys[0]")
    assert refusal(keyspace, "merge_hyper_log_logs", destination=STRING, keys=[KEY]) == ("WRONG_TYPE", "destination")
    assert refusal(keyspace, "get_string", key=KEY) == ("WRONG_TYPE", "key")
