"""Work that is done once, beside a model: who may do it, what is kept, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.keyspace import NOW, check_refusal, contents, do, outcome_of, refusal, reloaded
from vecmem import limits
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.idempotency import ATTEMPT_MAX, IdempotencyValue
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment
from vecmem.store.keyspace.packing import pack
from vecmem.v1 import idempotency_pb2 as api
from vecmem.v1 import keys_pb2, pipeline_pb2

STARTED = api.IDEMPOTENT_STATUS_STARTED
IN_PROGRESS = api.IDEMPOTENT_STATUS_IN_PROGRESS
COMPLETED = api.IDEMPOTENT_STATUS_COMPLETED
MISMATCH = api.IDEMPOTENT_STATUS_MISMATCH


def begin(
    keyspace: Keyspace, fingerprint: bytes = b"f", lease_ms: int = 10, retention_ms: int = 100, now: int = NOW
) -> Any:
    return do(
        keyspace,
        "begin_idempotent",
        key=b"i",
        fingerprint=fingerprint,
        lease_ms=lease_ms,
        retention_ms=retention_ms,
        now=now,
    )


def complete(keyspace: Keyspace, token: int, result: bytes = b"result", now: int = NOW) -> bool:
    completed: bool = do(keyspace, "complete_idempotent", key=b"i", token=token, result=result, now=now).completed
    return completed


def abandon(keyspace: Keyspace, token: int, now: int = NOW) -> bool:
    abandoned: bool = do(keyspace, "abandon_idempotent", key=b"i", token=token, now=now).abandoned
    return abandoned


def renew(keyspace: Keyspace, token: int, lease_ms: int = 10, now: int = NOW) -> bool:
    renewed: bool = do(keyspace, "renew_idempotent", key=b"i", token=token, lease_ms=lease_ms, now=now).renewed
    return renewed


# -- beside a model -----------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    fingerprint: bytes
    token: int
    attempt: int
    lease_ends_at: int
    retention_ms: int
    expires_at: int
    result: bytes | None = None


STEPS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from(
            ["begin", "begin", "begin", "complete", "abandon", "renew", "delete", "sweep", "other", "reload"]
        ),
        st.sampled_from([b"", b"f"]),
        st.integers(1, 40),
        st.integers(1, 60),
        st.integers(0, 2),
    ),
    max_size=60,
)


@given(STEPS)
def test_work_is_done_by_one_worker_at_a_time_and_once(steps: list[tuple[int, str, bytes, int, int, int]]) -> None:
    keyspace = Keyspace()
    now = NOW
    work: Work | None = None
    given_out = [0]
    for passed_ms, kind, text, lease_ms, retention_ms, place in steps:
        now += passed_ms
        if work is not None and work.expires_at <= now:
            work = None
        token = given_out[-1 - place % len(given_out)] or 1
        current = work is not None and work.token == token
        before = contents(keyspace)
        match kind:
            case "begin":
                found = begin(keyspace, text, lease_ms, retention_ms, now)
                expected = api.BeginIdempotentResponse()
                if work is not None and work.fingerprint != text:
                    expected.status = MISMATCH
                elif work is not None and work.result is not None:
                    expected.status, expected.result = COMPLETED, work.result
                elif work is not None and work.lease_ends_at > now:
                    expected.status, expected.retry_after_ms = IN_PROGRESS, work.lease_ends_at - now
                else:
                    attempt = 1 if work is None else work.attempt + 1
                    expected.status, expected.token, expected.attempt = STARTED, found.token, attempt
                    assert found.token > given_out[-1]
                    given_out.append(found.token)
                    expires_at = now + max(lease_ms, retention_ms)
                    work = Work(text, found.token, attempt, now + lease_ms, retention_ms, expires_at)
                assert found == expected
                if found.status != STARTED:
                    assert contents(keyspace) == before
            case "complete":
                result = text + b"!"
                done = complete(keyspace, token, result, now)
                if work is None or not current:
                    assert not done
                elif work.result is None:
                    assert done
                    work.result, work.expires_at = result, now + work.retention_ms
                else:
                    assert done == (work.result == result)
            case "abandon":
                open_ = work is not None and current and work.result is None
                assert abandon(keyspace, token, now) == open_
                if open_:
                    work = None
            case "renew":
                open_ = work is not None and current and work.result is None
                assert renew(keyspace, token, lease_ms, now) == open_
                if work is not None and open_:
                    work.lease_ends_at = now + lease_ms
                    work.expires_at = max(work.expires_at, work.lease_ends_at)
            case "delete":
                do(keyspace, "delete_keys", keys=[b"i"], now=now)
                work = None
            case "sweep":
                keyspace.remove_expired([b"i"], now)
            case "other":
                do(keyspace, "add_integer", key=b"n", delta=1, now=now)
            case _:
                keyspace = reloaded(keyspace)
        told = do(keyspace, "describe_idempotent", key=b"i", now=now)
        if work is None:
            assert told == api.DescribeIdempotentResponse()
            continue
        assert (told.attempt, told.fingerprint, told.result) == (work.attempt, work.fingerprint, work.result or b"")
        if work.result is not None:
            assert (told.status, told.remaining_ms) == (COMPLETED, 0)
        else:
            left_ms = max(0, work.lease_ends_at - now)
            assert (told.status, told.remaining_ms) == (IN_PROGRESS if left_ms else STARTED, left_ms)
        assert keyspace.expires_at(b"i") == work.expires_at
    reloaded(keyspace)


# -- what it does ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_late_completes_unless_another_has_started() -> None:
    keyspace = Keyspace()
    first = begin(keyspace)
    assert (first.status, first.attempt) == (STARTED, 1)
    described = do(keyspace, "describe_key", key=b"i")
    assert (described.type, described.size) == (keys_pb2.KEY_TYPE_IDEMPOTENCY_KEY, 1)
    assert complete(keyspace, first.token, now=NOW + 50)
    before = contents(keyspace)
    assert complete(keyspace, first.token, now=NOW + 60)
    assert not complete(keyspace, first.token, b"another result", now=NOW + 60)
    assert contents(keyspace) == before
    assert begin(keyspace, now=NOW + 149).result == b"result"
    second = begin(keyspace, now=NOW + 150)
    assert (second.status, second.attempt) == (STARTED, 1)
    third = begin(keyspace, now=NOW + 160)
    assert (third.status, third.attempt) == (STARTED, 2)
    assert not complete(keyspace, second.token, now=NOW + 161)
    assert not abandon(keyspace, second.token, now=NOW + 161)
    assert complete(keyspace, third.token, b"", now=NOW + 162)
    again = begin(keyspace, now=NOW + 163)
    assert (again.status, again.result) == (COMPLETED, b"")


def test_a_lease_longer_than_the_retention_keeps_the_record() -> None:
    keyspace = Keyspace()
    token = begin(keyspace, lease_ms=500, retention_ms=5).token
    assert begin(keyspace, now=NOW + 499).status == IN_PROGRESS
    assert complete(keyspace, token, now=NOW + 499)
    assert begin(keyspace, now=NOW + 503).status == COMPLETED
    assert begin(keyspace, now=NOW + 504).status == STARTED


def test_a_record_that_is_to_stay_stays_through_a_renewal() -> None:
    keyspace = Keyspace()
    token = begin(keyspace).token
    do(keyspace, "persist_key", key=b"i")
    assert renew(keyspace, token)
    assert keyspace.expires_at(b"i") == 0
    contents(keyspace)


def test_attempts_are_counted_as_far_as_they_go() -> None:
    keyspace = Keyspace()
    value = IdempotencyValue(b"f", 1, ATTEMPT_MAX, NOW, 5)
    keyspace.change(b"i", value, 0, NOW)
    assert begin(keyspace, now=NOW + 1).attempt == ATTEMPT_MAX


def test_results_are_counted_before_they_are_returned() -> None:
    keyspace = Keyspace()
    token = begin(keyspace).token
    complete(keyspace, token, bytes(limits.IDEMPOTENT_RESULT_BYTES_MAX))
    moment = Moment(NOW, result_bytes_left=limits.IDEMPOTENT_RESULT_BYTES_MAX + 5)
    results = [pipeline_pb2.OperationResult(), pipeline_pb2.OperationResult()]
    request = pipeline_pb2.Operation(
        begin_idempotent=api.BeginIdempotentRequest(key=b"i", fingerprint=b"f", lease_ms=1, retention_ms=1)
    )
    for result in results:
        operations.run(keyspace, request, result, moment)
    assert len(results[0].begin_idempotent.result) == limits.IDEMPOTENT_RESULT_BYTES_MAX
    assert results[1].error.reason == "LIMIT_EXCEEDED"


# -- what it refuses ----------------------------------------------------------------------------------------------------------

GOOD = {"key": b"i", "fingerprint": b"f", "lease_ms": 1, "retention_ms": 1, "token": 1, "result": b""}


def fields_of(kind: str) -> dict[str, Any]:
    names = pipeline_pb2.Operation.DESCRIPTOR.fields_by_name[kind].message_type.fields_by_name
    return {name: value for name, value in GOOD.items() if name in names}


@pytest.mark.parametrize(
    ("kind", "changed", "expected"),
    [
        ("begin_idempotent", {"key": b""}, ("INVALID_KEY", "key")),
        ("begin_idempotent", {"fingerprint": b"x" * 1_025}, ("LIMIT_EXCEEDED", "fingerprint")),
        ("begin_idempotent", {"lease_ms": 0}, ("INVALID_ARGUMENT", "lease_ms")),
        ("begin_idempotent", {"lease_ms": 2**53 + 1}, ("INVALID_ARGUMENT", "lease_ms")),
        ("begin_idempotent", {"retention_ms": -1}, ("INVALID_ARGUMENT", "retention_ms")),
        ("complete_idempotent", {"token": 0}, ("INVALID_ARGUMENT", "token")),
        (
            "complete_idempotent",
            {"result": bytes(limits.IDEMPOTENT_RESULT_BYTES_MAX + 1)},
            ("LIMIT_EXCEEDED", "result"),
        ),
        ("abandon_idempotent", {"token": 0}, ("INVALID_ARGUMENT", "token")),
        ("abandon_idempotent", {"key": b""}, ("INVALID_KEY", "key")),
        ("renew_idempotent", {"token": 0}, ("INVALID_ARGUMENT", "token")),
        ("renew_idempotent", {"lease_ms": 0}, ("INVALID_ARGUMENT", "lease_ms")),
        ("describe_idempotent", {"key": b""}, ("INVALID_KEY", "key")),
    ],
)
def test_bad_requests_are_refused(kind: str, changed: dict[str, Any], expected: tuple[str, str]) -> None:
    assert not outcome_of(Keyspace(), kind, **fields_of(kind)).HasField("error")
    assert check_refusal(kind, **fields_of(kind) | changed) == expected


@pytest.mark.parametrize(
    "kind",
    ["begin_idempotent", "complete_idempotent", "abandon_idempotent", "renew_idempotent", "describe_idempotent"],
)
def test_other_types_are_left_alone(kind: str) -> None:
    keyspace = Keyspace()
    do(keyspace, "set_string", key=b"i", value=b"x")
    assert refusal(keyspace, kind, **fields_of(kind)) == ("WRONG_TYPE", "key")


# -- dumps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, b"", b"done"])
def test_a_copy_changes_by_itself(result: bytes | None) -> None:
    value = IdempotencyValue(b"f", 3, 1, 10, 20, result)
    value.version = 5
    copied = value.copy()
    assert copied == value
    assert copied.size_bytes == value.size_bytes == IdempotencyValue.load(value.dump()).size_bytes
    assert IdempotencyValue.load(value.dump()).result == result
    value.token = 4
    assert copied != value


NUMBERS = bytes(range(1, 29))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pack([NUMBERS]),
        pack([NUMBERS, b"f", b"", b""]),
        pack([NUMBERS[:-1], b"f"]),
        pack([bytes(8) + NUMBERS[8:], b"f"]),
        pack([NUMBERS[:8] + bytes(4) + NUMBERS[12:], b"f"]),
        pack([NUMBERS[:12] + bytes(8) + NUMBERS[20:], b"f"]),
        pack([NUMBERS[:20] + bytes(8), b"f"]),
    ],
)
def test_damage_is_seen(content: bytes) -> None:
    assert IdempotencyValue.load(pack([NUMBERS, b"f"])).dump() == pack([NUMBERS, b"f"])
    with pytest.raises(ValueError, match=r"parts|attempt|bytes"):
        IdempotencyValue.load(content)
