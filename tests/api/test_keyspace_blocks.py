"""Rate limiters, locks and work that is done once over a real server: what is refused, what is logged, what a kill leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.api import connect, expect_refusal
from vecmem.v1 import (
    admin_pb2,
    common_pb2,
    idempotency_pb2,
    idempotency_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    locks_pb2,
    locks_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    rate_limiters_pb2,
    rate_limiters_pb2_grpc,
    strings_pb2,
    strings_pb2_grpc,
)

SECONDS_MAX = 60.0
HOUR_MS = 3_600_000
BUCKET = rate_limiters_pb2.TokenBucket(capacity=10, refill_permits=1, interval_ms=HOUR_MS)


class Blocks:
    """The services of one channel."""

    def __init__(self, api) -> None:
        self.stubs = [
            rate_limiters_pb2_grpc.RateLimiterServiceStub(api.channel),
            locks_pb2_grpc.LockServiceStub(api.channel),
            idempotency_pb2_grpc.IdempotencyServiceStub(api.channel),
            keys_pb2_grpc.KeyServiceStub(api.channel),
            strings_pb2_grpc.StringServiceStub(api.channel),
            pipeline_pb2_grpc.PipelineServiceStub(api.channel),
        ]

    def call(self, method, request):
        stub = next(stub for stub in self.stubs if hasattr(stub, method))
        return getattr(stub, method)(request, timeout=SECONDS_MAX)

    def permits(self, key: bytes, cost: int = 0, **rest):
        request = rate_limiters_pb2.AcquirePermitsRequest(key=key, cost=cost, token_bucket=BUCKET, **rest)
        return self.call("AcquirePermits", request)

    def lock(self, key: bytes, owner: bytes, lease_ms: int = HOUR_MS, **rest):
        return self.call("AcquireLock", locks_pb2.AcquireLockRequest(key=key, owner=owner, lease_ms=lease_ms, **rest))

    def begin(self, key: bytes, **rest):
        request = idempotency_pb2.BeginIdempotentRequest(key=key, lease_ms=HOUR_MS, retention_ms=HOUR_MS, **rest)
        return self.call("BeginIdempotent", request)

    def delete(self, key: bytes):
        return self.call("DeleteKeys", keys_pb2.DeleteKeysRequest(keys=[key]))


@pytest.fixture
def blocks(api):
    return Blocks(api)


@pytest.fixture
def key(collection_name) -> bytes:
    """A key that no other test uses."""
    return b"{%s}" % collection_name.encode()


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "field"),
    [
        (
            "AcquirePermits",
            rate_limiters_pb2.AcquirePermitsRequest(key=b"k"),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "definition",
        ),
        (
            "AcquirePermits",
            rate_limiters_pb2.AcquirePermitsRequest(key=b"k", token_bucket=BUCKET, cost=11),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "cost",
        ),
        (
            "GetRateLimit",
            rate_limiters_pb2.GetRateLimitRequest(key=b"no such key"),
            "NOT_FOUND",
            "KEY_NOT_FOUND",
            "key",
        ),
        (
            "AcquireLock",
            locks_pb2.AcquireLockRequest(key=b"k", owner=b"a"),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "lease_ms",
        ),
        (
            "RenewLock",
            locks_pb2.RenewLockRequest(key=b"k", owner=b"a", lease_ms=1),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "fencing_token",
        ),
        (
            "ReleaseLock",
            locks_pb2.ReleaseLockRequest(key=b"k", fencing_token=1),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "owner",
        ),
        ("DescribeLock", locks_pb2.DescribeLockRequest(), "INVALID_ARGUMENT", "INVALID_KEY", "key"),
        (
            "BeginIdempotent",
            idempotency_pb2.BeginIdempotentRequest(key=b"k", lease_ms=1),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
            "retention_ms",
        ),
        (
            "CompleteIdempotent",
            idempotency_pb2.CompleteIdempotentRequest(key=b"k", token=1, result=bytes(1024 * 1024 + 1)),
            "INVALID_ARGUMENT",
            "LIMIT_EXCEEDED",
            "result",
        ),
    ],
)
def test_bad_requests_are_refused_and_log_nothing(api, blocks, method, request_, code, reason, field):
    before = api.info().log_last_sequence
    refusal = expect_refusal(lambda: blocks.call(method, request_))
    assert (refusal.code, refusal.reason, refusal.field) == (code, reason, field)
    assert api.info().log_last_sequence == before


def test_other_types_are_left_alone(blocks, key):
    blocks.call("SetString", strings_pb2.SetStringRequest(key=key, value=b"x"))
    for take in (lambda: blocks.permits(key), lambda: blocks.lock(key, b"a"), lambda: blocks.begin(key)):
        refusal = expect_refusal(take)
        assert (refusal.code, refusal.reason, refusal.field) == ("FAILED_PRECONDITION", "WRONG_TYPE", "key")


def test_repeats_take_nothing_twice(blocks, key):
    write = common_pb2.WriteOptions(request_id=key.decode())
    first = blocks.permits(key, 4, write=write)
    assert (first.allowed, first.remaining) == (True, 6)
    again = blocks.permits(key, 4, write=write)
    assert (again.allowed, again.remaining, again.header.position) == (True, 6, first.header.position)
    found = blocks.call("GetRateLimit", rate_limiters_pb2.GetRateLimitRequest(key=key))
    assert (found.remaining, found.token_bucket) == (6, BUCKET)


def test_of_many_at_once_one_gets_the_lock_and_the_permits_go_round_once(blocks, key):
    with ThreadPoolExecutor(8) as pool:
        limiter = key + b"r"
        decisions = list(pool.map(lambda _: blocks.permits(limiter, 3), range(24)))
        holders = list(pool.map(lambda number: blocks.lock(key, b"%d" % number), range(24)))
        starts = list(pool.map(lambda _: blocks.begin(key + b"i"), range(24)))
    assert sum(decision.allowed for decision in decisions) == 3
    [winner] = [found for found in holders if found.acquired]
    assert {found.holder.fencing_token for found in holders} == {winner.fencing_token}
    assert (
        sorted(found.status for found in starts)
        == [idempotency_pb2.IDEMPOTENT_STATUS_STARTED] + [idempotency_pb2.IDEMPOTENT_STATUS_IN_PROGRESS] * 23
    )


def test_a_pipeline_takes_everything_in_its_order(blocks, key):
    operations = [
        pipeline_pb2.Operation(
            acquire_permits=rate_limiters_pb2.AcquirePermitsRequest(key=key + b"r", cost=6, token_bucket=BUCKET)
        )
    ] * 2
    operations += [
        pipeline_pb2.Operation(acquire_lock=locks_pb2.AcquireLockRequest(key=key, owner=owner, lease_ms=HOUR_MS))
        for owner in (b"a", b"b")
    ]
    operations.append(pipeline_pb2.Operation(describe_lock=locks_pb2.DescribeLockRequest(key=key)))
    results = blocks.call("Pipeline", pipeline_pb2.PipelineRequest(operations=operations)).results
    assert [results[place].acquire_permits.allowed for place in (0, 1)] == [True, False]
    assert results[1].acquire_permits.remaining == 4
    assert [results[place].acquire_lock.acquired for place in (2, 3)] == [True, False]
    assert results[4].describe_lock.holder.owner == b"a"


def test_tokens_grow_through_kills_checkpoints_and_deletions(own_server):
    tokens = []
    for round_ in range(4):
        with connect(own_server.address) as api:
            blocks = Blocks(api)
            if round_ < 3:
                blocks.delete(b"l")
            found = blocks.lock(b"l", b"owner %d" % min(round_, 2))
            assert found.acquired
            tokens.append(found.fencing_token)
            if round_ == 1:
                api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest())
        if round_ < 3:
            own_server.kill()
            own_server.start()
    assert tokens[0] < tokens[1] < tokens[2] == tokens[3], "the last one is the same owner's"


def test_what_is_held_and_taken_outlives_a_kill(own_server):
    with connect(own_server.address) as api:
        blocks = Blocks(api)
        blocks.permits(b"r", 7)
        blocks.begin(b"i", fingerprint=b"f")
        token = blocks.begin(b"j").token
        blocks.call("CompleteIdempotent", idempotency_pb2.CompleteIdempotentRequest(key=b"j", token=token, result=b"!"))
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        blocks = Blocks(api)
        assert not blocks.permits(b"r", 4).allowed
        assert blocks.permits(b"r", 3).remaining == 0
        assert blocks.begin(b"i", fingerprint=b"g").status == idempotency_pb2.IDEMPOTENT_STATUS_MISMATCH
        assert blocks.begin(b"i", fingerprint=b"f").status == idempotency_pb2.IDEMPOTENT_STATUS_IN_PROGRESS
        assert blocks.begin(b"j").result == b"!"
