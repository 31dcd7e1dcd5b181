"""Locks beside a model: leases that end, tokens that only grow, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import NOW, check_refusal, contents, do, outcome_of, refusal, reloaded
from vecmem import limits
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.locks import LockValue
from vecmem.store.keyspace.operation import Moment
from vecmem.v1 import keys_pb2, locks_pb2, pipeline_pb2

OWNERS = [b"a", b"b", b"c" * 1_024]


def acquire(keyspace: Keyspace, owner: bytes, lease_ms: int = 100, now: int = NOW, key: bytes = b"l") -> Any:
    return do(keyspace, "acquire_lock", key=key, owner=owner, lease_ms=lease_ms, now=now)


def renew(keyspace: Keyspace, owner: bytes, token: int, lease_ms: int = 100, now: int = NOW) -> Any:
    return do(keyspace, "renew_lock", key=b"l", owner=owner, fencing_token=token, lease_ms=lease_ms, now=now)


def release(keyspace: Keyspace, owner: bytes, token: int, now: int = NOW) -> bool:
    released: bool = do(keyspace, "release_lock", key=b"l", owner=owner, fencing_token=token, now=now).released
    return released


def holder(owner: bytes, token: int, acquired_at: int, remaining_ms: int) -> locks_pb2.LockHolder:
    return locks_pb2.LockHolder(
        owner=owner, fencing_token=token, acquired_at_unix_ms=acquired_at, remaining_ms=remaining_ms
    )


# -- beside a model -----------------------------------------------------------------------------------------------------------


@dataclass
class Held:
    owner: bytes
    token: int
    acquired_at: int
    ends_at: int


STEPS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.sampled_from(
            ["acquire", "acquire", "acquire", "renew", "release", "delete", "sweep", "persist", "other", "reload"]
        ),
        st.sampled_from(OWNERS),
        st.integers(1, 60),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(STEPS)
def test_one_holder_at_a_time_and_tokens_that_only_grow(steps: list[tuple[int, str, bytes, int, int]]) -> None:
    keyspace = Keyspace()
    now = NOW
    held: Held | None = None
    given_out = [0]
    for passed_ms, kind, owner, lease_ms, place in steps:
        now += passed_ms
        if held is not None and held.ends_at <= now:
            held = None
        # One of the tokens that there have been, the newest first.
        token = given_out[-1 - place % len(given_out)] or 1
        before = contents(keyspace)
        match kind:
            case "acquire":
                found = acquire(keyspace, owner, lease_ms, now)
                if held is None:
                    assert found.fencing_token > given_out[-1]
                    held = Held(owner, found.fencing_token, now, now + lease_ms)
                    given_out.append(held.token)
                elif held.owner == owner:
                    held.ends_at = now + lease_ms
                else:
                    assert contents(keyspace) == before
                assert found.acquired == (held.owner == owner)
                assert found.fencing_token == (held.token if held.owner == owner else 0)
                assert found.holder == holder(held.owner, held.token, held.acquired_at, held.ends_at - now)
            case "renew":
                found = renew(keyspace, owner, token, lease_ms, now)
                mine = held is not None and (held.owner, held.token) == (owner, token)
                assert found.renewed == mine
                if held is not None and mine:
                    held.ends_at = now + lease_ms
                else:
                    assert contents(keyspace) == before
                assert found.HasField("holder") == (held is not None)
            case "release":
                mine = held is not None and (held.owner, held.token) == (owner, token)
                assert release(keyspace, owner, token, now) == mine
                if mine:
                    held = None
                else:
                    assert contents(keyspace) == before
            case "delete":
                do(keyspace, "delete_keys", keys=[b"l"], now=now)
                held = None
            case "sweep":
                keyspace.remove_expired([b"l"], now)
            case "persist":
                do(keyspace, "persist_key", key=b"l", now=now)
            case "other":
                do(keyspace, "add_integer", key=b"n", delta=1, now=now)
            case _:
                keyspace = reloaded(keyspace)
        told = do(keyspace, "describe_lock", key=b"l", now=now)
        assert told.HasField("holder") == (held is not None)
        if held is not None:
            assert told.holder == holder(held.owner, held.token, held.acquired_at, held.ends_at - now)
    reloaded(keyspace)


# -- what it does ----------------------------------------------------------------------------------------------------------


def test_the_key_expires_with_the_lease() -> None:
    keyspace = Keyspace()
    token = acquire(keyspace, b"a", 100).fencing_token
    described = do(keyspace, "describe_key", key=b"l")
    assert (described.type, described.size, described.version) == (keys_pb2.KEY_TYPE_LOCK, 1, token)
    assert described.expires_at_unix_ms == NOW + 100
    assert renew(keyspace, b"a", token, 300, NOW + 50).renewed
    assert do(keyspace, "describe_key", key=b"l").expires_at_unix_ms == NOW + 350
    assert do(keyspace, "describe_lock", key=b"l", now=NOW + 349).holder.remaining_ms == 1
    assert not do(keyspace, "describe_lock", key=b"l", now=NOW + 350).HasField("holder")
    assert keyspace.expired_keys(NOW + 350, 10) == ([b"l"], False)
    assert not renew(keyspace, b"a", token, 100, NOW + 350).renewed
    assert not release(keyspace, b"a", token, NOW + 350)


def test_an_expiry_by_hand_ends_a_lease_and_does_not_prolong_it() -> None:
    keyspace = Keyspace()
    token = acquire(keyspace, b"a", 100).fencing_token
    do(keyspace, "persist_key", key=b"l")
    assert not renew(keyspace, b"a", token, 100, NOW + 100).renewed
    newer = acquire(keyspace, b"b", 100, NOW + 100)
    assert newer.acquired
    assert newer.fencing_token > token
    do(keyspace, "expire_key", key=b"l", expiry=keys_pb2.Expiry(ttl_ms=10), now=NOW + 100)
    assert acquire(keyspace, b"a", 100, NOW + 110).acquired


def test_tokens_grow_through_a_rename() -> None:
    keyspace = Keyspace()
    first = acquire(keyspace, b"a", key=b"{l}1").fencing_token
    do(keyspace, "rename_key", key=b"{l}1", new_key=b"{l}2")
    second = acquire(keyspace, b"a", key=b"{l}1").fencing_token
    assert second > first
    assert acquire(keyspace, b"a", key=b"{l}2").fencing_token == first


def test_other_types_are_left_alone() -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"l", value=b"x")
    assert refusal(keyspace, "acquire_lock", key=b"l", owner=b"a", lease_ms=1) == ("WRONG_TYPE", "key")
    assert refusal(keyspace, "renew_lock", key=b"l", owner=b"a", fencing_token=1, lease_ms=1) == ("WRONG_TYPE", "key")
    assert refusal(keyspace, "release_lock", key=b"l", owner=b"a", fencing_token=1) == ("WRONG_TYPE", "key")
    assert refusal(keyspace, "describe_lock", key=b"l") == ("WRONG_TYPE", "key")


def test_what_is_told_of_others_is_counted() -> None:
    keyspace = Keyspace()
    acquire(keyspace, OWNERS[2])
    moment = Moment(NOW, result_bytes_left=1_500)
    outcomes = []
    for kind in ("acquire_lock", "renew_lock"):
        request = pipeline_pb2.Operation()
        getattr(request, kind).key, getattr(request, kind).owner, getattr(request, kind).lease_ms = b"l", b"a", 1
        result = pipeline_pb2.OperationResult()
        operations.run(keyspace, request, result, moment)
        outcomes.append(result)
    assert outcomes[0].acquire_lock.holder.owner == OWNERS[2]
    assert outcomes[1].error.reason == "LIMIT_EXCEEDED"
    assert moment.result_bytes_left == 476


# -- what it refuses ----------------------------------------------------------------------------------------------------------

TOO_LONG = b"x" * (limits.MEMBER_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("kind", "changed", "expected"),
    [
        ("acquire_lock", {"key": b""}, ("INVALID_KEY", "key")),
        ("acquire_lock", {"owner": b""}, ("INVALID_ARGUMENT", "owner")),
        ("acquire_lock", {"owner": TOO_LONG}, ("LIMIT_EXCEEDED", "owner")),
        ("acquire_lock", {"lease_ms": 0}, ("INVALID_ARGUMENT", "lease_ms")),
        ("acquire_lock", {"lease_ms": -1}, ("INVALID_ARGUMENT", "lease_ms")),
        ("acquire_lock", {"lease_ms": 2**53 + 1}, ("INVALID_ARGUMENT", "lease_ms")),
        ("renew_lock", {"owner": b""}, ("INVALID_ARGUMENT", "owner")),
        ("renew_lock", {"fencing_token": 0}, ("INVALID_ARGUMENT", "fencing_token")),
        ("renew_lock", {"lease_ms": 0}, ("INVALID_ARGUMENT", "lease_ms")),
        ("release_lock", {"key": b"k" * 1_025}, ("LIMIT_EXCEEDED", "key")),
        ("release_lock", {"owner": TOO_LONG}, ("LIMIT_EXCEEDED", "owner")),
        ("release_lock", {"fencing_token": 0}, ("INVALID_ARGUMENT", "fencing_token")),
        ("describe_lock", {"key": b""}, ("INVALID_KEY", "key")),
    ],
)
def test_bad_requests_are_refused(kind: str, changed: dict[str, Any], expected: tuple[str, str]) -> None:
    names = pipeline_pb2.Operation.DESCRIPTOR.fields_by_name[kind].message_type.fields_by_name
    good = {"key": b"l", "owner": b"a", "fencing_token": 1, "lease_ms": 1}
    fields = {name: value for name, value in good.items() if name in names}
    assert not outcome_of(Keyspace(), kind, **fields).HasField("error")
    assert check_refusal(kind, **fields | changed) == expected


def test_the_longest_lease_works() -> None:
    keyspace = Keyspace()
    assert acquire(keyspace, b"a", 2**53).holder.remaining_ms == 2**53
    reloaded(keyspace)


# -- dumps -----------------------------------------------------------------------------------------------------------------


def test_a_copy_changes_by_itself() -> None:
    value = LockValue(b"a", 3, 10, 20)
    value.version = 5
    copied = value.copy()
    assert copied == value
    assert copied.size_bytes == value.size_bytes
    value.lease_ends_at_unix_ms = 21
    assert copied != value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(25),
        LockValue(b"", 3, 10, 20).dump(),
        LockValue(b"a", 0, 10, 20).dump(),
        LockValue(b"a", 3, 10, 10).dump(),
    ],
)
def test_damage_is_seen(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"owner|token"):
        LockValue.load(content)
