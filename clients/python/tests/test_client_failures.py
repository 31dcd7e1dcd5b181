"""What both clients do when the server is killed, hangs, refuses, or loses a reply on the way."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from tests.support.tcp_proxy import Proxy
from vecmem.v1 import filter_pb2
from vecmem_client import (
    CallCancelledError,
    Client,
    ClientClosedError,
    CollectionExistsError,
    CollectionNotFoundError,
    DeadlineExceededError,
    DimensionMismatchError,
    InvalidFilterError,
    InvalidIdError,
    InvalidPayloadError,
    InvalidVectorError,
    LimitExceededError,
    Point,
    PointNotFoundError,
    Position,
    PositionAheadError,
    RequestIdReusedError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
    UnknownVectorError,
    VectorConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR = [1.0, 0, 0, 0]
PATIENT = RetryPolicy(attempts_max=100, backoff_seconds_max=0.5)


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    proxy = Proxy(server.address)
    yield proxy
    proxy.close()


async def until_stored(client, collection, point_id):
    while not (points := await client.get(collection, [point_id])):  # noqa: ASYNC110  (another process)
        await asyncio.sleep(0.01)
    return points


async def test_a_write_whose_reply_was_lost_is_retried_and_happens_once(client, make_client, proxy, collection):
    """The reply to the first try never arrives; the second try carries the same request id and gets the same result."""
    behind = make_client(proxy.address)
    assert await behind.count(collection) == 0
    proxy.mute.set()
    write = asyncio.create_task(behind.upsert(collection, [Point("a", NEAR, {"n": 1}, expected_version=0)]))
    stored = await until_stored(client, collection, "a")
    proxy.mute.clear()
    proxy.cut()
    result = await write
    assert (result.inserted_count, result.updated_count, list(result.conflicts)) == (1, 0, [])
    assert result.version == stored[0].version
    assert (await client.get(collection, ["a"]))[0].version == result.version


async def test_a_write_without_request_id_is_not_retried(client, make_client, proxy, collection):
    """Nobody can tell whether it happened, so the client does not do it again."""
    behind = make_client(proxy.address)
    assert await behind.count(collection) == 0
    proxy.mute.set()
    write = asyncio.create_task(behind.upsert(collection, [Point("a", NEAR)], request_id=""))
    await until_stored(client, collection, "a")
    proxy.mute.clear()
    proxy.cut()
    with pytest.raises(UnavailableError):
        await write


async def test_calls_go_on_through_a_kill_and_restart(own_server, make_client):
    """A write repeated by hand after the restart gives its first result; calls made while the server is away succeed."""
    client = make_client(own_server.address, retry=PATIENT, timeout_seconds=60)
    await client.create_collection("c", VectorConfig(4))
    first = await client.upsert("c", [Point("a", NEAR, expected_version=0)], request_id="write-1")
    own_server.kill()
    during = asyncio.create_task(client.upsert("c", [Point("b", NEAR, expected_version=0)]))
    query = asyncio.create_task(client.query("c", NEAR))
    await asyncio.sleep(0.3)
    assert not during.done()
    await asyncio.to_thread(own_server.start)
    assert (await during).inserted_count == 1
    assert "a" in [hit.id for hit in await query]
    again = await client.upsert("c", [Point("a", NEAR, expected_version=0)], request_id="write-1")
    assert (again.version, again.inserted_count, list(again.conflicts)) == (first.version, 1, [])
    assert sorted([point.id async for point in client.scroll("c")]) == ["a", "b"]


async def test_a_bulk_load_goes_on_through_a_kill_and_restart(own_server, make_client):
    """Each point is written only if it does not exist: a batch applied twice would show as conflicts."""
    client = make_client(own_server.address, retry=PATIENT)
    await client.create_collection("c", VectorConfig(4))
    kills = []

    def progress(state):
        if state.point_count >= 2_000 * (len(kills) + 1) and len(kills) < 2:
            kills.append(state.point_count)
            own_server.kill()
            own_server.start()

    points = (Point(f"p{n}", NEAR, {"n": n}, expected_version=0) for n in range(8_000))
    result = await client.upsert_stream("c", points, batch_size=100, progress=progress)
    assert len(kills) == 2
    assert result.reconnect_count >= 2
    assert result.point_count == 8_000
    assert list(result.conflicts) == []
    assert sorted([point.payload["n"] async for point in client.scroll("c", page_size=1_000)]) == list(range(8_000))


async def test_a_bulk_load_gives_up_when_the_server_stays_away(own_server, make_client):
    client = make_client(own_server.address, retry=RetryPolicy(attempts_max=3))
    await client.create_collection("c", VectorConfig(4))

    def progress(state):
        if state.point_count >= 1_000 and own_server.running:
            own_server.kill()

    points = (Point(f"p{n}", NEAR) for n in range(4_000))
    with pytest.raises(UnavailableError) as caught:
        await client.upsert_stream("c", points, batch_size=100, progress=progress)
    acknowledged = int(caught.value.__notes__[0].split()[0].replace(",", ""))
    own_server.start()
    assert acknowledged >= 1_000
    assert await make_client(own_server.address).count("c") >= acknowledged


async def test_a_server_that_hangs_runs_into_the_deadline(own_server, make_client):
    """The default deadline and the one of the call hold, for calls and for the wait for an acknowledgement."""
    client = make_client(own_server.address, timeout_seconds=0.3)
    await client.create_collection("c", VectorConfig(4), timeout_seconds=30)
    own_server.send_signal(signal.SIGSTOP)
    try:
        for call in (
            client.count("c"),
            client.query("c", NEAR, timeout_seconds=0.1),
            client.upsert_stream("c", [Point("a", NEAR)]),
            client.upsert_stream("c", [Point("a", NEAR, {"more than flow control lets out": "x" * 900_000})]),
        ):
            began = time.monotonic()
            with pytest.raises(DeadlineExceededError) as caught:
                await call
            assert time.monotonic() - began < 20, "the server hangs for good: only the deadline can end the call"
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        own_server.send_signal(signal.SIGCONT)


async def test_nobody_there_is_unavailable_after_the_tries_allowed(make_client):
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
    client = make_client(address, retry=RetryPolicy(attempts_max=3, backoff_seconds_first=0.01))
    with pytest.raises(UnavailableError) as caught:
        await client.server_info()
    assert (caught.value.reason, caught.value.code) == ("UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)
    assert caught.value.__notes__ == ["tried 3 times"]


async def test_retries_end_before_the_deadline(make_client):
    """The failure is told at once when the next wait would pass the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
    patient = RetryPolicy(attempts_max=2, backoff_seconds_first=1000, backoff_seconds_max=1000)
    with pytest.raises(UnavailableError):
        await make_client(address, retry=patient, timeout_seconds=60).server_info()


async def test_a_closed_client_says_so(make_client, server):
    client = make_client(server.address)
    await client.server_info()
    await client.close()
    await client.close()
    for call in (client.server_info(), client.upsert_stream("c", [Point("a", NEAR)])):
        with pytest.raises(ClientClosedError):
            await call


async def test_closing_cancels_what_is_under_way(own_server, make_client):
    client = make_client(own_server.address)
    await client.server_info()
    own_server.send_signal(signal.SIGSTOP)
    try:
        call = asyncio.create_task(client.server_info())
        await asyncio.sleep(0.2)
        await client.close()
        with pytest.raises(CallCancelledError):
            await call
    finally:
        own_server.send_signal(signal.SIGCONT)


@pytest.mark.one_shard(reason="each shard remembers its own request ids")
async def test_every_refusal_has_its_class(client, collection):
    """Reasons that a caller can bring about on purpose, from the server itself."""
    await client.upsert(collection, [Point("a", NEAR)], request_id=f"{collection}-once")
    ahead = Position(0, 2**40)
    for refusal, call in [
        (CollectionNotFoundError, client.count("no-such-collection")),
        (CollectionExistsError, client.create_collection(collection, VectorConfig(4))),
        (DimensionMismatchError, client.query(collection, [1.0])),
        (InvalidVectorError, client.query(collection, [float("nan"), 0, 0, 0])),
        (InvalidVectorError, client.upsert(collection, [Point("a", np.zeros(4))])),
        (InvalidVectorError, client.upsert(collection, [Point("a", [1e300, 0, 0, 0])])),
        (UnknownVectorError, client.query(collection, NEAR, using="other")),
        (InvalidIdError, client.upsert(collection, [Point("", NEAR)])),
        (InvalidPayloadError, client.upsert(collection, [Point("a", NEAR, "[1, 2]")])),
        (InvalidFilterError, client.count(collection, filter=filter_pb2.Filter())),
        (LimitExceededError, client.query(collection, NEAR, limit=10_001)),
        (PointNotFoundError, client.query(collection, id="nobody")),
        (PositionAheadError, client.count(collection, min_position=ahead)),
        (RequestIdReusedError, client.upsert(collection, [Point("b", NEAR)], request_id=f"{collection}-once")),
    ]:
        with pytest.raises(refusal) as caught:
            await call
        assert type(caught.value) is refusal
        assert caught.value.reason == refusal.reason
        assert caught.value.message


async def test_messages_over_the_limit_are_refused_on_either_side(client, make_client, server, collection):
    huge = b'{"x":"' + b"x" * (64 * 1024 * 1024) + b'"}'
    with pytest.raises(LimitExceededError):
        await client.upsert(collection, [Point("a", NEAR, huge)])
    await client.upsert(collection, [Point("a", NEAR, {"x": "x" * 10_000})])
    small = make_client(server.address, channel_options=[("grpc.max_receive_message_length", 1_000)])
    with pytest.raises(ResourceExhaustedError):
        await small.get(collection, ["a"])


async def test_an_async_client_belongs_to_one_event_loop(server):
    """The sync client, by contrast, serves any number of threads."""
    from vecmem_client import AsyncClient

    client = AsyncClient(server.address)
    await client.server_info()

    def elsewhere():
        with pytest.raises(RuntimeError, match="event loop"):
            asyncio.run(client.server_info())

    await asyncio.to_thread(elsewhere)
    await client.close()


def test_threads_share_a_client(server, collection_name):
    with Client(server.address) as client:
        client.create_collection(collection_name, VectorConfig(4))

        def work(worker: int) -> None:
            for n in range(20):
                client.upsert(collection_name, [Point(f"{worker}-{n}", NEAR)])

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.count(collection_name, min_position=client.last_position) == 80
        client.delete_collection(collection_name)
