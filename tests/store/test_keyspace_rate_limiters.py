"""Rate limiters beside exact models: fractions for a bucket, a list of all grants for a window."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import NOW, check_refusal, contents, do, refusal, reloaded
from vecmem import limits
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.rate_limiter_value import RateLimiterValue, SlidingWindow, TokenBucket
from vecmem.v1 import keys_pb2, rate_limiters_pb2

LARGEST = 2**53


def bucket(capacity: int, refill_permits: int, interval_ms: int) -> dict[str, Any]:
    return {
        "token_bucket": rate_limiters_pb2.TokenBucket(
            capacity=capacity, refill_permits=refill_permits, interval_ms=interval_ms
        )
    }


def window(limit: int, window_ms: int) -> dict[str, Any]:
    return {"sliding_window": rate_limiters_pb2.SlidingWindow(limit=limit, window_ms=window_ms)}


def acquire(keyspace: Keyspace, definition: dict[str, Any], cost: int = 0, now: int = NOW) -> Any:
    return do(keyspace, "acquire_permits", key=b"r", cost=cost, now=now, **definition)


def answer(response: Any) -> tuple[bool, int, int, int]:
    return response.allowed, response.remaining, response.retry_after_ms, response.reset_after_ms


# -- beside models -----------------------------------------------------------------------------------------------------------


def first_ms(tokens: Fraction, wanted: int, rate: Fraction) -> int:
    """Whole milliseconds until so many tokens are there."""
    return max(0, ceil((wanted - tokens) / rate))


@given(
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=60),
)
def test_a_bucket_is_exact(capacity: int, refill: int, interval: int, requests: list[tuple[int, int]]) -> None:
    keyspace = Keyspace()
    rate = Fraction(refill, interval)
    tokens, now = Fraction(capacity), NOW
    for passed_ms, wish in requests:
        cost = min(wish, capacity)
        now += passed_ms
        tokens = min(Fraction(capacity), tokens + rate * passed_ms)
        peeked = do(keyspace, "get_rate_limit", key=b"r", cost=cost, now=now, **bucket(capacity, refill, interval))
        wait = first_ms(tokens, cost, rate)
        assert answer(peeked) == (wait == 0, floor(tokens), wait, first_ms(tokens, capacity, rate))
        before = contents(keyspace)
        found = acquire(keyspace, bucket(capacity, refill, interval), cost, now)
        if wait == 0:
            tokens -= cost
            assert keyspace.expires_at(b"r") == now + first_ms(tokens, capacity, rate)
        else:
            assert contents(keyspace) == before
        assert answer(found) == (wait == 0, floor(tokens), wait, first_ms(tokens, capacity, rate))
    reloaded(keyspace)


@given(
    st.integers(1, 12),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=60),
)
def test_a_window_is_exact(limit: int, window_ms: int, requests: list[tuple[int, int]]) -> None:
    keyspace = Keyspace()
    grants: list[tuple[int, int]] = []
    now = NOW

    def used(at: int) -> int:
        return sum(cost for time, cost in grants if time > at - window_ms)

    for passed_ms, wish in requests:
        cost = min(wish, limit)
        now += passed_ms
        wait = next(ms for ms in range(window_ms + 1) if used(now + ms) + cost <= limit)
        before = contents(keyspace)
        found = acquire(keyspace, window(limit, window_ms), cost, now)
        if wait == 0:
            grants.append((now, cost))
            assert keyspace.expires_at(b"r") == now + window_ms
        else:
            assert contents(keyspace) == before
        reset = max((time + window_ms - now for time, _ in grants), default=0)
        assert answer(found) == (wait == 0, limit - used(now), wait, max(0, reset))
    reloaded(keyspace)


@given(
    st.integers(9, 60),
    st.integers(1, 200),
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), max_size=80),
)
def test_a_window_of_bounded_memory_is_never_over_its_limit_and_late_by_less_than_a_step(
    limit: int, window_ms: int, requests: list[tuple[int, int]]
) -> None:
    """With a bound of 8 grants, where the real one is 1,024."""
    keyspace = Keyspace()
    grants: list[tuple[int, int]] = []
    now = NOW
    step_ms = ceil(window_ms / 7)
    with mock.patch.object(limits, "RATE_LIMIT_GRANTS_MAX", 8):
        for passed_ms, cost in requests:
            now += passed_ms
            found = acquire(keyspace, window(limit, window_ms), cost, now)
            if found.allowed:
                grants.append((now, cost))
                value = keyspace.values[b"r"]
                assert isinstance(value, RateLimiterValue)
                assert len(value.dump()) <= 21 + 16 * 8
                assert sum(cost for time, cost in grants if time > now - window_ms) <= limit
            else:
                assert sum(cost for time, cost in grants if time > now - window_ms - step_ms) + cost > limit
            check_promises(keyspace, window(limit, window_ms), cost, now, found)
    reloaded(keyspace)


def check_promises(keyspace: Keyspace, definition: dict[str, Any], cost: int, now: int, found: Any) -> None:
    """What a denied request was told comes true to the millisecond, and so does when all is back."""

    def peek(at: int, wanted: int) -> Any:
        return do(keyspace, "get_rate_limit", key=b"r", cost=wanted, now=at, **definition)

    if found.allowed:
        assert found.retry_after_ms == 0
    else:
        assert found.retry_after_ms > 0
        assert peek(now + found.retry_after_ms, cost).allowed
        assert not peek(now + found.retry_after_ms - 1, cost).allowed
    [limit] = definition.values()
    largest = limit.capacity if isinstance(limit, rate_limiters_pb2.TokenBucket) else limit.limit
    assert peek(now + found.reset_after_ms, largest).allowed
    assert peek(now + found.reset_after_ms, largest).remaining == largest
    assert peek(now, 1).remaining == found.remaining


DEFINITIONS = [bucket(5, 1, 10), bucket(3, 2, 7), bucket(20, 1, 1), window(5, 40), window(3, 90), window(20, 15)]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3), st.sampled_from(DEFINITIONS)), max_size=40),
    st.booleans(),
)
def test_promises_are_kept_through_other_definitions(
    requests: list[tuple[int, int, dict[str, Any]]], small: bool
) -> None:
    keyspace = Keyspace()
    now = NOW
    with mock.patch.object(limits, "RATE_LIMIT_GRANTS_MAX", 4 if small else 1_024):
        for passed_ms, cost, definition in requests:
            now += passed_ms
            before = contents(keyspace)
            found = acquire(keyspace, definition, cost, now)
            if not found.allowed:
                assert contents(keyspace) == before
            check_promises(keyspace, definition, cost, now, found)
            copied = {key: value.copy() for key, value in keyspace.values.items() if not isinstance(value, bytes)}
            assert copied == keyspace.values
    reloaded(keyspace)


def test_grants_of_several_definitions_stay_within_the_bound_and_all_come_back() -> None:
    keyspace = Keyspace()
    with mock.patch.object(limits, "RATE_LIMIT_GRANTS_MAX", 4):
        for now in (NOW, NOW + 1, NOW + 2):
            assert acquire(keyspace, window(3, 90), 1, now).allowed
        for now in (NOW + 3, NOW + 20):
            assert acquire(keyspace, window(5, 40), 1, now).allowed
        value = keyspace.values[b"r"]
        assert isinstance(value, RateLimiterValue)
        assert len(value.dump()) == 21 + 16 * 4
        remaining = [
            do(keyspace, "get_rate_limit", key=b"r", now=NOW + passed_ms).remaining
            for passed_ms in (39, 40, 41, 42, 45, 46, 59)
        ]
        # The first one comes back with the second one; that of NOW + 3 was kept as of the end of its step, NOW + 6.
        assert remaining == [0, 0, 2, 3, 3, 4, 4]
        assert acquire(keyspace, window(5, 40), 5, NOW + 60).allowed


# -- what it does ----------------------------------------------------------------------------------------------------------


def test_a_limiter_that_is_full_takes_no_memory() -> None:
    keyspace = Keyspace()
    assert answer(acquire(keyspace, bucket(10, 10, 1_000), 3)) == (True, 7, 0, 300)
    described = do(keyspace, "describe_key", key=b"r")
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_RATE_LIMITER, 1)
    assert described.expires_at_unix_ms == NOW + 300
    assert keyspace.expired_keys(NOW + 299, 10) == ([], False)
    assert keyspace.expired_keys(NOW + 300, 10) == ([b"r"], False)
    assert keyspace.remove_expired([b"r"], NOW + 300) == 1
    assert (keyspace.values, keyspace.memory_bytes) == ({}, 0)


def test_deletion_makes_it_full() -> None:
    keyspace = Keyspace()
    assert acquire(keyspace, window(1, 1_000)).allowed
    assert answer(acquire(keyspace, window(1, 1_000))) == (False, 0, 1_000, 1_000)
    do(keyspace, "delete_keys", keys=[b"r"])
    assert acquire(keyspace, window(1, 1_000)).allowed


def test_an_expiry_by_hand_changes_nothing_but_when_the_key_goes() -> None:
    keyspace = Keyspace()
    acquire(keyspace, bucket(2, 1, 100), 2)
    do(keyspace, "persist_key", key=b"r")
    assert answer(acquire(keyspace, bucket(2, 1, 100), 2, NOW + 5_000)) == (True, 0, 0, 200)
    assert keyspace.expires_at(b"r") == NOW + 5_200


def test_a_peek_without_a_definition_goes_by_the_last_one() -> None:
    keyspace = Keyspace()
    assert refusal(keyspace, "get_rate_limit", key=b"r") == ("KEY_NOT_FOUND", "key")
    acquire(keyspace, bucket(10, 10, 1_000), 4)
    found = do(keyspace, "get_rate_limit", key=b"r", cost=7)
    assert answer(found) == (False, 6, 100, 400)
    assert found.token_bucket == bucket(10, 10, 1_000)["token_bucket"]
    assert refusal(keyspace, "get_rate_limit", key=b"r", cost=11) == ("INVALID_ARGUMENT", "cost")
    acquire(keyspace, window(10, 1_000), 1)
    found = do(keyspace, "get_rate_limit", key=b"r")
    assert found.sliding_window == window(10, 1_000)["sliding_window"]
    assert answer(found) == (True, 5, 0, 1_000)


def test_what_is_taken_is_carried_to_another_definition() -> None:
    keyspace = Keyspace()
    acquire(keyspace, bucket(10, 1, 100), 6)
    assert acquire(keyspace, bucket(8, 1, 50), 1).remaining == 1
    assert acquire(keyspace, window(20, 1_000), 1).remaining == 12
    assert acquire(keyspace, window(9, 1_000), 1).remaining == 0
    assert answer(acquire(keyspace, bucket(3, 1, 1), 1)) == (False, 0, 1, 3)
    assert answer(acquire(keyspace, bucket(3, 1, 1), 1, NOW + 1)) == (True, 0, 0, 3)


def test_other_types_are_left_alone() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"r", value=b"x")
    assert refusal(keyspace, "acquire_permits", key=b"r", **bucket(1, 1, 1)) == ("WRONG_TYPE", "key")
    assert refusal(keyspace, "get_rate_limit", key=b"r") == ("WRONG_TYPE", "key")


def test_a_denied_request_is_no_change_of_the_key() -> None:
    keyspace = Keyspace()
    acquire(keyspace, bucket(1, 1, 1_000))
    keyspace.changed.clear()
    assert not acquire(keyspace, bucket(1, 1, 1_000)).allowed
    assert keyspace.changed == {}


# -- what it refuses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"key": b"", **bucket(1, 1, 1)}, ("INVALID_KEY", "key")),
        ({"key": b"r"}, ("INVALID_ARGUMENT", "definition")),
        ({"key": b"r", **bucket(0, 1, 1)}, ("INVALID_ARGUMENT", "token_bucket.capacity")),
        ({"key": b"r", **bucket(LARGEST + 1, 1, 1)}, ("INVALID_ARGUMENT", "token_bucket.capacity")),
        ({"key": b"r", **bucket(1, 0, 1)}, ("INVALID_ARGUMENT", "token_bucket.refill_permits")),
        ({"key": b"r", **bucket(1, 1, 0)}, ("INVALID_ARGUMENT", "token_bucket.interval_ms")),
        ({"key": b"r", **bucket(1, 1, -5)}, ("INVALID_ARGUMENT", "token_bucket.interval_ms")),
        ({"key": b"r", **bucket(LARGEST, 1, 2)}, ("INVALID_ARGUMENT", "token_bucket")),
        ({"key": b"r", **window(0, 1)}, ("INVALID_ARGUMENT", "sliding_window.limit")),
        ({"key": b"r", **window(1, 0)}, ("INVALID_ARGUMENT", "sliding_window.window_ms")),
        ({"key": b"r", **window(1, LARGEST + 1)}, ("INVALID_ARGUMENT", "sliding_window.window_ms")),
        ({"key": b"r", "cost": 6, **bucket(5, 1, 1)}, ("INVALID_ARGUMENT", "cost")),
        ({"key": b"r", "cost": 6, **window(5, 1)}, ("INVALID_ARGUMENT", "cost")),
    ],
)
def test_bad_requests_are_refused(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    assert check_refusal("acquire_permits", **fields) == expected
    if expected[1] != "definition":
        assert check_refusal("get_rate_limit", **fields) == expected


def test_the_largest_numbers_work() -> None:
    keyspace = Keyspace()
    now = 2**43
    assert answer(acquire(keyspace, bucket(LARGEST, LARGEST, LARGEST), LARGEST, now)) == (True, 0, 0, LARGEST)
    reloaded(keyspace)
    do(keyspace, "delete_keys", keys=[b"r"], now=now)
    found = acquire(keyspace, window(LARGEST, LARGEST), LARGEST, now)
    assert (found.allowed, found.remaining) == (True, 0)
    assert 0 <= found.reset_after_ms - LARGEST <= LARGEST // 1_023
    reloaded(keyspace)


# -- dumps -----------------------------------------------------------------------------------------------------------------


def used_bucket() -> bytes:
    meter = TokenBucket(5, 1, 10)
    meter.take(3, NOW)
    return meter.dump()


def used_window() -> bytes:
    meter = SlidingWindow(5, 1_000)
    for number in range(3):
        meter.take(1, NOW + number)
    return meter.dump()


def test_equal_limiters_have_equal_dumps() -> None:
    for content in (used_bucket(), used_window()):
        loaded = RateLimiterValue.load(content)
        assert loaded.dump() == content
        assert loaded.size_bytes == RateLimiterValue(loaded.meter.copy()).size_bytes


@pytest.mark.parametrize("made", [used_bucket, used_window])
def test_a_copy_changes_by_itself(made: Any) -> None:
    value = RateLimiterValue.load(made())
    value.version = 4
    copied = value.copy()
    assert copied == value
    value.meter.take(1, NOW + 10)
    value.measure()
    assert copied != value
    assert copied.dump() == made()


def replaced(content: bytes, start: int, part: bytes) -> bytes:
    return content[:start] + part + content[start + len(part) :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x03" + used_bucket()[1:],
        used_bucket()[:-1],
        used_bucket() + b"\0",
        replaced(used_bucket(), 1, bytes(8)),
        replaced(used_bucket(), 9, bytes(8)),
        replaced(used_bucket(), 17, bytes(8)),
        replaced(used_bucket(), 33, bytes(16)),
        replaced(used_bucket(), 33, (51).to_bytes(16, "little")),
        used_window()[:15],
        used_window()[:-8],
        replaced(used_window(), 1, bytes(8)),
        replaced(used_window(), 9, bytes(8)),
        replaced(used_window(), 17, bytes(4))[:21],
        replaced(used_window(), 21, (NOW + 2).to_bytes(8, "little")),
        replaced(used_window(), 45, bytes(8)),
    ],
)
def test_damage_is_seen(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"meter|bucket|window|grant"):
        RateLimiterValue.load(content)
