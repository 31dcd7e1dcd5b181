"""Rate limiters, sessions and work that is done once, with both clients over a real server."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import vecmem_client
from tests.support.client_blocks import LONG, SECONDS_MAX, block, work_of
from vecmem_client import (
    AsyncClient,
    InvalidArgumentError,
    KeyNotFoundError,
    LimitExceededError,
    RateLimitedError,
    SlidingWindow,
    TokenBucket,
    WorkInProgressError,
    WorkLostError,
    WorkMismatchError,
    WrongTypeError,
    idempotency,
    keys,
    locks,
    rate_limiters,
    strings,
)


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses."""
    return collection_name


# -- operations ------------------------------------------------------------------------------------------------------------


async def test_rate_limit_operations(client, key):
    limit = TokenBucket(10, 1, LONG)
    with pytest.raises(KeyNotFoundError):
        await client.run(rate_limiters.peek(key))
    assert await client.run(rate_limiters.peek(key, limit, 4)) == rate_limiters.RateLimiterDescription(
        True, 10, 0.0, 0.0, limit
    )
    first = await client.run(rate_limiters.acquire(key, limit, 7))
    assert (first.allowed, first.remaining, first.retry_after_seconds) == (True, 3, 0.0)
    assert first.reset_after_seconds == 7 * LONG
    refused = await client.run(rate_limiters.acquire(key, limit, 4))
    assert (refused.allowed, refused.remaining) == (False, 3)
    assert 0 < refused.retry_after_seconds <= LONG
    found = await client.run(rate_limiters.peek(key))
    assert (found.allowed, found.remaining, found.limit) == (True, 3, limit)
    window = SlidingWindow(8, LONG)
    assert (await client.run(rate_limiters.acquire(key, window))).remaining == 0
    assert (await client.run(rate_limiters.peek(key))).limit == window
    described = await client.run(keys.describe(key))
    assert (described.type, described.size) == ("rate_limiter", 1)
    with pytest.raises(InvalidArgumentError, match="never"):
        await client.run(rate_limiters.acquire(key, window, 9))
    with pytest.raises(InvalidArgumentError) as mistake:
        await client.run(rate_limiters.acquire(key, TokenBucket(1, 1, 0)))
    assert mistake.value.metadata["field"] == "token_bucket.interval_ms"
    with pytest.raises(TypeError):
        rate_limiters.acquire(key, 5)
    await client.run(strings.set(key, "text"))
    with pytest.raises(WrongTypeError):
        await client.run(rate_limiters.acquire(key, window))


async def test_lock_operations(client, key):
    taken = await client.run(locks.acquire(key, "a", LONG))
    assert (taken.acquired, taken.holder.owner, taken.holder.fencing_token) == (True, b"a", taken.fencing_token)
    assert abs(taken.holder.acquired_at - datetime.now(UTC)) < timedelta(minutes=5)
    refused = await client.run(locks.acquire(key, "b", LONG))
    assert (refused.acquired, refused.fencing_token, refused.holder.owner) == (False, 0, b"a")
    assert 0 < refused.holder.remaining_seconds <= LONG
    assert (await client.run(locks.acquire(key, "a", LONG))).fencing_token == taken.fencing_token
    assert (await client.run(locks.renew(key, "a", taken.fencing_token, LONG))).renewed
    lost = await client.run(locks.renew(key, "b", taken.fencing_token, LONG))
    assert (lost.renewed, lost.holder.owner) == (False, b"a")
    assert (await client.run(locks.describe(key))).owner == b"a"
    assert (await client.run(keys.describe(key))).type == "lock"
    assert not await client.run(locks.release(key, "a", taken.fencing_token + 1))
    assert await client.run(locks.release(key, "a", taken.fencing_token))
    assert await client.run(locks.describe(key)) is None
    assert (await client.run(locks.renew(key, "a", taken.fencing_token, LONG))).holder is None
    assert (await client.run(locks.acquire(key, "a", LONG))).fencing_token > taken.fencing_token
    with pytest.raises(InvalidArgumentError):
        await client.run(locks.acquire(key, "", LONG))


async def test_idempotency_operations(client, key):
    def begin(fingerprint="f", lease_seconds=LONG):
        return idempotency.begin(key, fingerprint=fingerprint, lease_seconds=lease_seconds, retention_seconds=LONG)

    assert await client.run(idempotency.describe(key)) is None
    begun = await client.run(begin())
    assert (begun.status, begun.attempt) == ("started", 1)
    busy = await client.run(begin())
    assert (busy.status, busy.token) == ("in_progress", 0)
    assert 0 < busy.retry_after_seconds <= LONG
    assert (await client.run(begin("other"))).status == "mismatch"
    assert await client.run(idempotency.renew(key, begun.token, LONG))
    described = await client.run(idempotency.describe(key))
    assert (described.attempt, described.fingerprint, described.result) == (1, b"f", None)
    assert await client.run(idempotency.abandon(key, begun.token))
    assert not await client.run(idempotency.abandon(key, begun.token))
    again = await client.run(begin())
    assert again.token > begun.token
    assert not await client.run(idempotency.complete(key, begun.token, "old"))
    assert await client.run(idempotency.complete(key, again.token, "result"))
    assert not await client.run(idempotency.renew(key, again.token, LONG))
    completed = await client.run(begin())
    assert (completed.status, completed.result) == ("completed", b"result")
    assert (await client.run(idempotency.describe(key))).result == b"result"
    assert (await client.run(keys.describe(key))).type == "idempotency_key"
    with pytest.raises(LimitExceededError):
        await client.run(idempotency.complete(key, 1, bytes(1024 * 1024 + 1)))


# -- rate limiters ---------------------------------------------------------------------------------------------------------


async def test_a_limiter_counts_each_subject_by_itself(client, key):
    limiter = block(client, "RateLimiter", key, SlidingWindow(2, LONG))
    assert [(await limiter.acquire(subject="ada")).allowed for _ in range(3)] == [True, True, False]
    assert (await limiter.acquire(2, subject="bob")).allowed
    assert (await limiter.acquire()).remaining == 1
    with pytest.raises(RateLimitedError) as limited:
        await limiter.acquire_or_raise(subject="ada")
    assert limited.value.decision.remaining == 0
    assert 0 < limited.value.decision.retry_after_seconds <= LONG
    assert not (await limiter.peek(subject="bob")).allowed
    await limiter.reset(subject="bob")
    assert (await limiter.acquire_or_raise(2, subject="bob")).allowed


async def test_who_waits_gets_permits_or_learns_at_once_that_there_are_none_in_time(client, key):
    quick = block(client, "RateLimiter", key, TokenBucket(1, 1, 0.05))
    decisions = [await quick.wait() for _ in range(4)]
    assert all(decision.allowed for decision in decisions)
    slow = block(client, "RateLimiter", key + "2", TokenBucket(1, 1, LONG))
    assert (await slow.wait(timeout_seconds=0)).allowed
    with pytest.raises(RateLimitedError):
        await slow.wait(timeout_seconds=SECONDS_MAX)


async def test_many_at_once_get_no_more_than_there_is(client, key):
    limiter = block(client, "RateLimiter", key, SlidingWindow(7, LONG))
    decisions = await asyncio.gather(*(limiter.acquire() for _ in range(40)))
    assert sum(decision.allowed for decision in decisions) == 7
    assert sorted(decision.remaining for decision in decisions if decision.allowed) == list(range(7))


# -- work that is done once ------------------------------------------------------------------------------------------------


async def test_work_is_done_once_and_its_result_is_everybodys(client, key):
    once = block(client, "Idempotency", key, lease_seconds=LONG)
    calls = []

    def work():
        calls.append(len(calls))
        return f"result {len(calls)}"

    tasks = [once.run_once("w", work_of(client, work), wait_seconds=None) for _ in range(8)]
    assert set(await asyncio.gather(*tasks)) == {b"result 1"}
    assert calls == [0]
    with pytest.raises(WorkMismatchError):
        await once.run_once("w", work_of(client, work), fingerprint="another request")
    assert await once.run_once("x", work_of(client, work)) == b"result 2"


async def test_work_that_fails_is_done_by_the_next(client, key):
    once = block(client, "Idempotency", key, lease_seconds=LONG)

    def fail():
        raise LookupError("not yet")

    with pytest.raises(LookupError):
        await once.run_once("w", work_of(client, fail))
    with pytest.raises(TypeError):
        await once.run_once("w", work_of(client, lambda: 5))
    assert await once.run_once("w", work_of(client, lambda: "done")) == b"done"


async def test_who_comes_meanwhile_is_told_or_waits_or_takes_over(client, key):
    once = block(client, "Idempotency", key, lease_seconds=LONG)
    name = key + "w"
    begun = await client.run(idempotency.begin(name, lease_seconds=LONG, retention_seconds=LONG))
    with pytest.raises(WorkInProgressError) as busy:
        await once.run_once("w", work_of(client, lambda: "mine"), wait_seconds=0.15)
    assert 0 < busy.value.retry_after_seconds <= LONG
    waiting = asyncio.create_task(once.run_once("w", work_of(client, lambda: "mine"), wait_seconds=None))
    await asyncio.sleep(0.2)
    assert await client.run(idempotency.complete(name, begun.token, "theirs"))
    assert await asyncio.wait_for(waiting, SECONDS_MAX) == b"theirs"
    await client.run(idempotency.begin(key + "v", lease_seconds=0.05, retention_seconds=LONG))
    assert await once.run_once("v", work_of(client, lambda: "mine"), wait_seconds=None) == b"mine"


async def test_a_result_that_comes_too_late_is_not_kept(client, server, key):
    once = block(client, "Idempotency", key, lease_seconds=LONG)

    def lose():
        with vecmem_client.Client(server.address) as other:
            other.run(keys.delete([key + "w"]))
            assert other.run(idempotency.begin(key + "w", lease_seconds=LONG, retention_seconds=LONG)).token
        return "late"

    with pytest.raises(WorkLostError):
        await once.run_once("w", work_of(client, lose))


async def test_long_work_keeps_its_lease(client, server, key):
    once = block(client, "Idempotency", key, lease_seconds=3)

    def wait_for_renewal():
        """Until the lease goes on for longer than a moment ago."""
        with vecmem_client.Client(server.address) as other:
            before = 3.0
            while (found := other.run(idempotency.describe(key + "w"))).remaining_seconds <= before:
                before = found.remaining_seconds
        return str(found.attempt)

    async def waiting():
        return await asyncio.to_thread(wait_for_renewal)

    work = waiting if isinstance(client, AsyncClient) else wait_for_renewal
    assert await asyncio.wait_for(once.run_once("w", work), SECONDS_MAX) == b"1"


# -- sessions --------------------------------------------------------------------------------------------------------------


async def test_sessions(client, key):
    sessions = block(client, "SessionStore", key, ttl_seconds=LONG)
    session_id = await sessions.create({"user": "Ada", "cart": [1]})
    assert await sessions.get(session_id) == {"user": "Ada", "cart": [1]}
    assert await sessions.update(session_id, {"cart": [1, 2], "seen": True}, remove=["user"]) == {
        "cart": [1, 2],
        "seen": True,
    }
    assert await sessions.get(session_id, touch=False) == {"cart": [1, 2], "seen": True}
    assert await sessions.touch(session_id)
    assert await sessions.delete(session_id)
    assert not await sessions.delete(session_id)
    assert not await sessions.touch(session_id)
    assert await sessions.get(session_id) is None
    assert await sessions.update(session_id, {"user": "Ada"}) is None
    assert await sessions.get(session_id, touch=False) is None
    assert await sessions.create() != await sessions.create()
    for wrong in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            await sessions.create(wrong)


async def test_a_session_that_is_used_stays(client, key):
    sessions = block(client, "SessionStore", key, ttl_seconds=LONG)
    session_id = await sessions.create({"n": 0})

    async def expires_at():
        return (await client.run(keys.describe(key + session_id))).expires_at

    async def make_old():
        await client.run(keys.expire(key + session_id, ttl_seconds=LONG / 2))
        return await expires_at()

    for use in (sessions.get, sessions.touch, lambda session_id: sessions.update(session_id, {"n": 1})):
        old = await make_old()
        await use(session_id)
        assert await expires_at() - old > timedelta(seconds=LONG / 4)
    old = await make_old()
    await sessions.get(session_id, touch=False)
    assert await expires_at() == old


async def test_updates_at_the_same_time_are_all_done(client, key):
    sessions = block(client, "SessionStore", key, ttl_seconds=LONG)
    session_id = await sessions.create()
    await asyncio.gather(*(sessions.update(session_id, {f"entry {number}": number}) for number in range(12)))
    assert await sessions.get(session_id) == {f"entry {number}": number for number in range(12)}


async def test_ids_that_were_never_given_out_are_not_asked_for(make_client):
    nobody = make_client("127.0.0.1:1")
    sessions = block(nobody, "SessionStore")
    for session_id in ("", "x" * 42, "x" * 44, "../" + "x" * 40, "ä" * 43, "x" * 43 + "\n", "x" * 5_000):
        assert await sessions.get(session_id) is None
        assert await sessions.update(session_id, {}) is None
        assert not await sessions.touch(session_id)
        assert not await sessions.delete(session_id)
