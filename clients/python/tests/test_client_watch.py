"""The change feed with both clients over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.server import ServerProcess
from tests.support.tcp_proxy import Proxy
from vecmem_client import (
    AsyncClient,
    AsyncWatch,
    ChangeKind,
    ChangesNotRetainedError,
    Client,
    ClientClosedError,
    InvalidIdError,
    Point,
    PositionAheadError,
    RetryPolicy,
    counters,
    keys,
    strings,
    transactions,
)
from vecmem_client.watching import ChangePosition

if TYPE_CHECKING:
    from collections.abc import Callable


class Feed:
    """Either kind of feed with one asynchronous face."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch

    async def started(self) -> ChangePosition:
        if isinstance(self.watch, AsyncWatch):
            return await self.watch.started()
        return await asyncio.to_thread(self.watch.started)

    async def take(self, count: int) -> list[Any]:
        if isinstance(self.watch, AsyncWatch):
            return [await anext(self.watch) for _ in range(count)]
        return await asyncio.to_thread(lambda: [next(self.watch) for _ in range(count)])

    async def close(self) -> None:
        if isinstance(self.watch, AsyncWatch):
            await self.watch.close()
        else:
            await asyncio.to_thread(self.watch.close)


@pytest.fixture
async def watch(client):
    """Opens feeds of the client; all are closed at the end."""
    opened: list[Feed] = []

    async def open_feed(of: Any = None, **arguments: Any) -> Feed:
        of = of or client
        made = of.watch(**arguments) if isinstance(of, AsyncClient) else of.sync_client.watch(**arguments)
        opened.append(Feed(made))
        return opened[-1]

    yield open_feed
    for feed in opened:
        await feed.close()


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


async def test_changes_of_keys_and_points(client, watch, collection, key):
    feed = await watch(keys=[key], prefixes=[key + ":"], collections=[collection], with_content=True)
    start = await feed.started()
    point = Point(key + "p", [1.0, 0.0, 0.0, 0.0], payload={"n": 1})
    committed = await client.commit(
        then=[strings.set(key, "v"), strings.set(key + "x", "v"), transactions.upsert(collection, [point])]
    )
    await client.run(keys.expire(key, ttl_seconds=1000))
    await client.update_payload(collection, ids=[key + "p"], merge={"n": 2})
    await client.run(counters.add(key + ":count"))
    await client.run(keys.delete([key]))
    changes = await feed.take(6)
    assert [(change.kind, change.key, change.point_id) for change in changes] == [
        (ChangeKind.WRITTEN, key.encode(), None),
        (ChangeKind.WRITTEN, None, key + "p"),
        (ChangeKind.EXPIRY_SET, key.encode(), None),
        (ChangeKind.WRITTEN, None, key + "p"),
        (ChangeKind.WRITTEN, f"{key}:count".encode(), None),
        (ChangeKind.DELETED, key.encode(), None),
    ]
    assert changes[0].sequence == changes[1].sequence == committed.position.sequence
    assert [change.key_type for change in changes] == ["string", None, "string", None, "string", None]
    assert changes[0].operation.set_string.value == b"v"
    assert (changes[1].collection, changes[1].point.payload) == (collection, {"n": 1})
    assert changes[1].point.vector.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert changes[3].payload_update.merge_json == b'{"n":2}'
    assert (changes[4].version > 0, changes[5].version) == (True, 0)
    assert changes[0].time.tzinfo is not None
    for told, change in enumerate(changes, start=1):
        rest = await watch(keys=[key], prefixes=[key + ":"], collections=[collection], after=change.position)
        assert [one.position for one in await rest.take(6 - told)] == [one.position for one in changes[told:]]
    again = await watch(keys=[key], after=start)
    assert [change.kind for change in await again.take(3)] == ["written", "expiry_set", "deleted"]


async def test_a_feed_outlasts_restarts_and_lost_connections(make_client, own_server, watch):
    retry = RetryPolicy(attempts_max=1_000, backoff_seconds_max=0.1)
    with contextlib.closing(Proxy(own_server.address)) as proxy:
        watching = make_client(proxy.address, retry=retry)
        writing = make_client(own_server.address, retry=retry)
        feed = await watch(watching, prefixes=["{k}"], heartbeat_seconds=0.5)
        await feed.started()
        written = []
        for number in range(12):
            if number in (4, 8):
                await asyncio.to_thread(own_server.kill)
                await asyncio.to_thread(own_server.start)
            elif number % 3 == 2:
                proxy.cut()
            await writing.run(strings.set(f"{{k}}{number}", "v"))
            written.append(b"{k}%d" % number)
        assert [change.key for change in await feed.take(12)] == written


async def test_what_a_feed_is_refused_for(client, watch, key):
    misnamed = await watch(collections=[".none"])
    with pytest.raises(InvalidIdError):
        await misnamed.take(1)
    ahead = await watch(keys=[key], after=ChangePosition(2**62))
    with pytest.raises(PositionAheadError):
        await ahead.started()
    with pytest.raises(ValueError, match="nothing to watch"):
        await watch()
    with pytest.raises(ValueError, match="one of"):
        await watch(keys=[key], after=ChangePosition(1), earliest=True)
    with pytest.raises(TypeError):
        await watch(keys=key)


async def test_who_is_too_slow_hears_of_it(make_client, own_server, watch):
    client = make_client(own_server.address)
    feed = await watch(client, prefixes=["{k}"])
    start = await feed.started()
    name = "x" * 1_000
    for _ in range(60):
        await client.pipeline([strings.set(f"{{k}}{number:04d}{name}", "v") for number in range(1_000)])
    with pytest.raises(ChangesNotRetainedError) as told:
        await feed.take(60_000)
    first = int(told.value.metadata["first_sequence"])
    rest = await watch(client, prefixes=["{k}"], earliest=True)
    [oldest] = await rest.take(1)
    assert oldest.sequence == first > start.sequence


def _end_from_another_thread(end: Callable[[], None]) -> threading.Thread:
    thread = threading.Timer(0.2, end)
    thread.start()
    return thread


def test_a_feed_that_another_thread_closes_ends(server):
    with Client(server.address) as client:
        feed = client.watch(keys=["none"])
        feed.started()
        thread = _end_from_another_thread(feed.close)
        assert list(feed) == []
        thread.join()
        left = client.watch(keys=["none"])
        left.started()
        left.close()
    with pytest.raises(ClientClosedError):
        client.watch(keys=["none"]).started()


async def test_a_cancelled_step_leaves_the_feed_as_it_is(server, key):
    async with AsyncClient(server.address) as client, client.watch(keys=[key]) as feed:
        await feed.started()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(feed), 0.1)
        await client.run(strings.set(key, "v"))
        assert (await anext(feed)).key == key.encode()
        await feed.close()
        assert [change async for change in feed] == []


def test_the_server_of_these_tests_is_real(server):
    assert isinstance(server, ServerProcess)
