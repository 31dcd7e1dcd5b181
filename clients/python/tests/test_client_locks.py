"""Locks as objects, with both clients over a real server: holders, leases, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

import vecmem_client
from tests.support.client_blocks import LONG, SECONDS_MAX, block, done, until, work_of
from vecmem_client import (
    AsyncClient,
    AsyncLock,
    LockHeldError,
    LockLostError,
    TokenBucket,
    UnavailableError,
    keys,
    locks,
)


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses."""
    return collection_name


async def test_a_lock_is_one_holders_at_a_time(client, key):
    first = block(client, "Lock", key, lease_seconds=LONG)
    second = block(client, "Lock", key, lease_seconds=LONG, wait_seconds=0)
    token = await first.acquire()
    assert first.held
    assert first.fencing_token == token
    assert first.remaining_seconds <= LONG
    await done(first.check())
    with pytest.raises(LockHeldError) as held:
        await second.acquire()
    assert held.value.holder.fencing_token == token
    with pytest.raises(RuntimeError):
        await first.acquire()
    await first.release()
    assert not first.held
    assert await second.acquire() > token
    await second.release()
    with pytest.raises(RuntimeError):
        await second.release()


async def test_who_waits_gets_the_lock_when_it_is_released(client, key):
    first = block(client, "Lock", key, lease_seconds=LONG)
    token = await first.acquire()
    waiting = [block(client, "Lock", key, lease_seconds=LONG) for _ in range(3)]
    holders = []

    async def hold(lock):
        newer = await lock.acquire()
        holders.append(newer)
        assert len({*holders}) == len(holders)
        await lock.release()

    tasks = [asyncio.create_task(hold(lock)) for lock in waiting]
    await asyncio.sleep(0.2)
    assert not holders
    await first.release()
    await asyncio.wait_for(asyncio.gather(*tasks), SECONDS_MAX)
    assert holders == sorted(holders)
    assert holders[0] > token


async def test_a_lease_is_renewed_beside_the_work(client, key):
    lock = block(client, "Lock", key, lease_seconds=6)
    token = await lock.acquire()
    remaining_seconds = 6.0
    async with asyncio.timeout(SECONDS_MAX):
        while (found := await client.run(locks.describe(key))).remaining_seconds <= remaining_seconds:
            remaining_seconds = found.remaining_seconds
            await asyncio.sleep(0.05)
    assert found.fencing_token == token
    assert lock.held
    await lock.release()
    assert await client.run(locks.describe(key)) is None


async def test_a_lease_that_was_lost_is_told_of(client, key):
    lock = block(client, "Lock", key, lease_seconds=LONG)
    token = await lock.acquire()
    await client.run(keys.delete([key]))
    other = block(client, "Lock", key, lease_seconds=LONG, wait_seconds=0)
    await other.acquire()
    with pytest.raises(LockLostError, match="another"):
        await lock.renew()
    with pytest.raises(LockLostError):
        await done(lock.check())
    assert not lock.held
    assert lock.fencing_token == token
    with pytest.raises(LockLostError):
        await lock.release()
    await other.release()
    unrenewed = block(client, "Lock", key, lease_seconds=0.05, renew=False)
    await unrenewed.acquire()
    await until(lambda: not unrenewed.held)
    with pytest.raises(LockLostError, match="ended"):
        await done(unrenewed.check())
    with pytest.raises(LockLostError):
        await unrenewed.release()


async def test_the_background_sees_the_loss(client, key):
    lock = block(client, "Lock", key, lease_seconds=1.5)
    await lock.acquire()
    await client.run(keys.delete([key]))
    await until(lambda: not lock.held)
    with pytest.raises(LockLostError):
        await lock.release()


async def test_a_block_holds_the_lock_and_ends_with_what_went_wrong_in_it(make_client, server, key):
    client = make_client(server.address)
    name, face = ("AsyncLock", client) if isinstance(client, AsyncClient) else ("Lock", client.sync_client)
    lock_class = getattr(vecmem_client, name)

    async def enter(body):
        """Run a block in the way of each client."""
        if name == "AsyncLock":
            async with lock_class(face, key, lease_seconds=LONG) as lock:
                await body(lock)
            return lock

        def run():
            with lock_class(face, key, lease_seconds=LONG) as lock:
                asyncio.run(body(lock))
            return lock

        return await asyncio.to_thread(run)

    async def look(lock):
        assert lock.held

    async def fail(lock):
        raise LookupError(lock.fencing_token)

    lock = await enter(look)
    assert not lock.held
    with pytest.raises(LookupError) as first:
        await enter(fail)
    assert await client.run(locks.describe(key)) is None

    async def steal(lock):
        steal_client = vecmem_client.Client(server.address)
        with steal_client:
            await asyncio.to_thread(steal_client.run, keys.delete([key]))

    async def steal_and_fail(lock):
        await steal(lock)
        raise LookupError(lock.fencing_token)

    with pytest.raises(LockLostError):
        await enter(steal)
    with pytest.raises(LookupError) as second:
        await enter(steal_and_fail)
    assert second.value.args > first.value.args
    assert any("lost" in note for note in second.value.__notes__)


async def test_locks_and_limits_outlive_a_kill(make_client, own_server):
    client = make_client(own_server.address)
    lock = block(client, "Lock", "l", lease_seconds=LONG)
    limiter = block(client, "RateLimiter", "r", TokenBucket(5, 1, LONG))
    once = block(client, "Idempotency", lease_seconds=LONG)
    token = await lock.acquire()
    await limiter.acquire(3)
    await client.create_checkpoint()
    await limiter.acquire(1)
    assert await once.run_once("work", work_of(client, lambda: "result")) == b"result"
    own_server.kill()
    own_server.start()
    assert not (await limiter.acquire(2)).allowed
    assert (await limiter.acquire()).allowed
    assert await once.run_once("work", work_of(client, lambda: "another")) == b"result"
    with pytest.raises(LockHeldError):
        await block(client, "Lock", "l", wait_seconds=0).acquire()
    await lock.renew()
    assert lock.fencing_token == token
    await lock.release()
    assert await block(client, "Lock", "l", renew=False).acquire() > token


async def test_a_lease_is_given_up_where_the_server_is_gone(make_client, own_server):
    client = make_client(own_server.address, retry=vecmem_client.RetryPolicy(attempts_max=1))
    lock = block(client, "Lock", "l", lease_seconds=1)
    await lock.acquire()
    own_server.kill()
    await until(lambda: not lock.held)
    with pytest.raises(UnavailableError):
        await lock.release()
    own_server.start()


async def test_an_acquisition_that_is_cancelled_leaves_the_lock_free(server, key):
    async with AsyncClient(server.address) as client:
        for number in range(30):
            acquiring = asyncio.create_task(AsyncLock(client, key, lease_seconds=LONG).acquire())
            # From before the request is sent until after the reply has come.
            await asyncio.sleep(number * 0.0001)
            acquiring.cancel()
            try:
                await acquiring
            except asyncio.CancelledError:
                lock = AsyncLock(client, key, lease_seconds=LONG, wait_seconds=0)
                assert await lock.acquire(), "nobody holds it"
                await lock.release()
            else:
                await client.run(keys.delete([key]))


async def test_holders_exclude_each_other_through_kills(make_client, own_server):
    client = make_client(own_server.address)
    inside, tokens = [], []
    killed = asyncio.Event()

    async def hold(name):
        while not killed.is_set():
            lock = block(client, "Lock", "l", lease_seconds=4)
            try:
                tokens.append(await lock.acquire())
            except UnavailableError:
                continue
            assert inside == []
            inside.append(name)
            await asyncio.sleep(0.01)
            inside.remove(name)
            # Where the server is gone the lease ends by itself.
            with contextlib.suppress(UnavailableError, LockLostError):
                await lock.release()

    async with asyncio.TaskGroup() as group:
        for name in range(3):
            group.create_task(hold(name))
        for _ in range(2):
            count = len(tokens)
            await until(lambda count=count: len(tokens) > count + 5)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.start)
        count = len(tokens)
        await until(lambda: len(tokens) > count + 5)
        killed.set()
    assert tokens == sorted(set(tokens))


async def test_an_answer_that_comes_when_the_lease_has_ended_is_none(client, key):
    """As after a lost connection: the call is repeated, and told how it was answered the first time."""
    other = AsyncLock(client, key, lease_seconds=LONG)
    overtaken = asyncio.Event()

    class Late:
        """The client of a holder whose first answer comes when another one has the lock."""

        def __init__(self):
            self.first_owner = None

        async def run(self, operation, **parameters):
            result = await client.run(operation, **parameters)
            if self.first_owner is None:
                self.first_owner = operation.message.acquire_lock.owner
                assert result.acquired
                await other.acquire()
                overtaken.set()
            return result

    late = Late()
    lock = AsyncLock(late, key, lease_seconds=0.2)
    acquiring = asyncio.create_task(lock.acquire())
    await overtaken.wait()  # not only held: whoever has waited looks once more whether it is
    token = other.fencing_token
    assert not acquiring.done()
    await other.release()
    assert await acquiring > token
    await lock.release()
