"""Concurrent calls share RPCs, and nobody can tell but by the speed: over a real server, both clients alike."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from tests.support.fixtures import SHARDS
from tests.support.tcp_proxy import Proxy
from vecmem.v1 import points_pb2
from vecmem_client import (
    AsyncClient,
    CallCancelledError,
    Client,
    CollectionNotFoundError,
    DeadlineExceededError,
    Exclude,
    Flat,
    Point,
    Position,
    PositionAheadError,
    RetryPolicy,
    UnavailableError,
    VecmemClientError,
    VectorConfig,
    _coalescing,
    _methods,
    field,
)
from vecmem_client._async import lanes as async_lanes
from vecmem_client._sync import lanes as sync_lanes

if TYPE_CHECKING:
    from collections.abc import Iterator

NEAR = [1.0, 0, 0, 0]
PATIENT = RetryPolicy(attempts_max=100, backoff_seconds_max=0.5)
CALLERS = 64
POINT_COUNT = 200
SEED = 20261123


@pytest.fixture(autouse=True)
async def many_threads():
    """The sync client's calls run in threads: as many as there are callers."""
    with ThreadPoolExecutor(CALLERS + 8) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        yield


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    proxy = Proxy(server.address)
    yield proxy
    proxy.close()


@pytest.fixture
async def filled(client, collection_name):
    """A collection searched exactly, so that equal queries have equal hits."""
    vectors = np.random.default_rng(SEED).normal(size=(POINT_COUNT, 4)).astype(np.float32)
    await client.create_collection(collection_name, VectorConfig(4, index=Flat()))
    payloads = [{"n": n, "even": n % 2 == 0} for n in range(POINT_COUNT)]
    await client.upsert_bulk(collection_name, [f"p{n}" for n in range(POINT_COUNT)], vectors, payloads)
    yield collection_name
    await client.delete_collection(collection_name)


def count_rpcs(client) -> Counter[str]:
    """Counts the client's RPCs by method from now on, but for those by which it learns where the shards of a cluster are."""
    transport = getattr(client, "sync_client", client)._transport
    counts: Counter[str] = Counter()
    unary = transport.unary

    def counting(method, *arguments):
        if method is not _methods.GET_TOPOLOGY:
            counts[method.path.rpartition("/")[2]] += 1
        return unary(method, *arguments)

    transport.unary = counting
    return counts


async def outcomes_of(calls):
    return await asyncio.gather(*calls, return_exceptions=True)


def shown(outcome):
    """A result or an error as something to compare."""
    if isinstance(outcome, VecmemClientError):
        return type(outcome), outcome.code, outcome.reason, outcome.message, outcome.metadata
    if isinstance(outcome, BaseException):
        raise outcome
    return [
        (
            one.id,
            one.version,
            dict(one.payload),
            getattr(one, "score", None),
            None if one.vector is None else list(one.vector),
        )
        for one in outcome
    ]


async def all_waiting(client, count):
    """Return when that many calls are queued or under way."""
    lanes = getattr(client, "sync_client", client)._lanes._lanes
    while sum(len(lane._queue) + lane._under_way_count for lane in list(lanes.values())) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@pytest.mark.one_shard(reason="each shard gives its own positions")
async def test_concurrent_calls_return_what_they_return_alone_over_fewer_rpcs(client, make_client, server, filled):
    """Filters, selections, limits, ids and errors in one crowd: each call gets its own answer."""
    plain = make_client(server.address, coalesce=False)

    def crowd(of):
        for n in range(48):
            vector = [np.sin(n), np.cos(n), n % 3, 1.0]
            yield of.query(filled, vector, limit=n % 7 + 1)
            yield of.query(filled, vector, filter=field("even") == bool(n % 2), with_vectors=True, offset=n % 3)
            yield of.query(filled, id=f"p{n}", exact=n % 5 == 0, with_payload=Exclude(["even"]))
            yield of.get(filled, [f"p{n}", "nobody", f"p{n + 1}"], with_vectors=n % 2 == 0)
            yield of.get("nobody" if n % 8 == 0 else filled, [f"p{n}"], with_payload=["n"])
            if n % 8 == 0:
                yield of.query(filled, [1.0, 2.0])
                yield of.query(filled, id=f"nobody-{n}")
                yield of.query(filled, vector, limit=10_001)
                yield of.query(filled, vector, using="other")
                yield of.query(f"no-such-{n}", vector)

    expected = [shown(outcome) for outcome in await outcomes_of(crowd(plain))]
    counts = count_rpcs(client)
    assert [shown(outcome) for outcome in await outcomes_of(crowd(client))] == expected
    assert sum(isinstance(outcome, tuple) for outcome in expected) == 36, "the bad ones failed, and only they"
    assert counts["QueryBatch"] > 0
    assert counts["GetBatch"] > 0
    assert counts.total() < len(expected) / 2


@pytest.mark.parametrize("coalesce", [True, False])
async def test_one_caller_alone_and_a_client_told_not_to_make_single_rpcs(make_client, server, filled, coalesce):
    client = make_client(server.address, coalesce=coalesce)
    counts = count_rpcs(client)
    for n in range(5):
        await client.query(filled, NEAR)
        await client.get(filled, ["p1"])
        await client.upsert(filled, [Point(f"p{n}", NEAR)])
    assert counts == {"Query": 5, "Get": 5, "Upsert": 5}
    if not coalesce:
        await asyncio.gather(*(client.query(filled, NEAR) for _ in range(20)))
        assert counts == {"Query": 25, "Get": 5, "Upsert": 5}


async def test_an_awaited_upsert_is_seen_by_the_queries_and_gets_after_it(client, filled):
    """32 callers each write a point of their own and look for it, over the same lanes."""

    async def caller(number):
        for n in range(5):
            result = await client.upsert(filled, [Point(f"own-{number}", NEAR, {"n": n, "owner": number})])
            (stored,) = await client.get(filled, [f"own-{number}"])
            assert (stored.version, stored.payload["n"]) == (result.version, n)
            (hit,) = await client.query(filled, NEAR, filter=field("owner") == number)
            assert (hit.version, hit.payload["n"]) == (result.version, n)

    counts = count_rpcs(client)
    await asyncio.gather(*(caller(number) for number in range(32)))
    assert counts["UpsertBatch"] > 0
    assert SHARDS != "1" or counts.total() < 32 * 5 * 3 / 2, "what is about several shards goes in as many RPCs"


async def test_the_timeout_of_one_call_is_its_own(own_server, make_client):
    """The server hangs: calls with little time end, those with them in the RPC and in the queue do not.

    The hasty ones are the first in the queue: in threads it falls to them to lead.
    """
    client = make_client(own_server.address)
    await client.create_collection("c", VectorConfig(4))
    await client.upsert("c", [Point("a", NEAR)])
    own_server.send_signal(signal.SIGSTOP)
    try:
        calls = [asyncio.create_task(client.query("c", NEAR)) for _ in range(_coalescing.RPCS_MAX)]
        await all_waiting(client, len(calls))
        hasty = [asyncio.create_task(client.query("c", NEAR, timeout_seconds=0.4)) for _ in range(5)]
        await all_waiting(client, len(calls) + len(hasty))
        calls += [asyncio.create_task(client.query("c", NEAR)) for _ in range(40 - len(calls))]
        for outcome in await outcomes_of(hasty):
            assert type(outcome) is DeadlineExceededError
        assert not any(call.done() for call in calls)
    finally:
        own_server.send_signal(signal.SIGCONT)
    assert [hit.id for hits in await asyncio.gather(*calls) for hit in hits] == ["a"] * 40


async def test_cancelled_calls_leave_the_others_alone_and_an_rpc_without_calls_ends(own_server):
    """In the queue and under way; asyncio alone, since threads cannot be cancelled."""
    async with AsyncClient(own_server.address) as client:
        await client.create_collection("c", VectorConfig(4))
        await client.upsert("c", [Point("a", NEAR)])
        own_server.send_signal(signal.SIGSTOP)
        try:
            calls = [asyncio.create_task(client.query("c", NEAR)) for _ in range(30)]
            doomed = [asyncio.create_task(client.get("c", ["a"])) for _ in range(30)]
            await asyncio.sleep(2 * _coalescing.PATIENCE_SECONDS)  # all are under way
            calls += [asyncio.create_task(client.query("c", NEAR)) for _ in range(30)]
            await asyncio.sleep(0)
            for call in calls[::3] + doomed:
                call.cancel()
            for outcome in await outcomes_of(calls[::3] + doomed):
                assert isinstance(outcome, asyncio.CancelledError)
            (gets,) = [lane for key, lane in client._lanes._lanes.items() if key.method is _coalescing.GET]
            await gets.finished()
            assert gets._under_way_count == 0, "nothing of the cancelled gets is left, though the server hangs"
        finally:
            own_server.send_signal(signal.SIGCONT)
        kept = [call for call in calls if not call.cancelled()]
        assert len(kept) == 40
        assert [hit.id for hits in await asyncio.gather(*kept) for hit in hits] == ["a"] * 40


async def test_upserts_whose_replies_were_lost_are_retried_and_happen_once(client, make_client, proxy, collection):
    """Each carries its own request id through all its RPCs; one applied twice would be a conflict."""
    behind = make_client(proxy.address, retry=PATIENT)
    counts = count_rpcs(behind)
    assert await behind.count(collection) == 0
    proxy.mute.set()
    points = [Point(f"p{n}", NEAR, {"n": n}, expected_version=0) for n in range(CALLERS)]
    writes = [asyncio.create_task(behind.upsert(collection, [point])) for point in points]
    while await client.count(collection) < CALLERS:  # noqa: ASYNC110  (another process)
        await asyncio.sleep(0.01)
    proxy.mute.clear()
    proxy.cut()
    results = await asyncio.gather(*writes)
    assert [(result.inserted_count, list(result.conflicts)) for result in results] == [(1, [])] * CALLERS
    stored = await client.get(collection, [point.id for point in points])
    assert [result.version for result in results] == [point.version for point in stored]
    assert counts["UpsertBatch"] >= 2


async def test_calls_go_on_through_a_kill_and_restart(own_server, make_client):
    """64 callers write and read while the server is killed twice; every write happens exactly once."""
    client = make_client(own_server.address, retry=PATIENT, timeout_seconds=60)
    await client.create_collection("c", VectorConfig(4))
    results = []

    async def caller(number):
        for n in range(6):
            name = f"{number}-{n}"
            results.append(await client.upsert("c", [Point(name, NEAR, expected_version=0)]))
            assert [point.id for point in await client.get("c", [name])] == [name]

    async def killer():
        for count in (60, 180):
            while len(results) < count:  # noqa: ASYNC110  (progress of the others)
                await asyncio.sleep(0.002)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.start)

    await asyncio.gather(killer(), *(caller(number) for number in range(CALLERS)))
    assert [(result.inserted_count, list(result.conflicts)) for result in results] == [(1, [])] * (CALLERS * 6)
    assert len({result.version for result in results}) == CALLERS * 6
    assert await client.count("c") == CALLERS * 6


async def test_each_call_counts_its_own_tries(make_client):
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
    client = make_client(address, retry=RetryPolicy(attempts_max=3, backoff_seconds_first=0.01))
    errors = await outcomes_of([client.query("c", NEAR) for _ in range(20)])
    assert {type(error) for error in errors} == {UnavailableError}
    assert [error.__notes__ for error in errors] == [["tried 3 times"]] * 20
    assert len({id(error) for error in errors}) == 20


async def test_closing_ends_calls_that_wait_and_calls_under_way(own_server, make_client):
    client = make_client(own_server.address)
    await client.create_collection("c", VectorConfig(4))
    own_server.send_signal(signal.SIGSTOP)
    try:
        calls = [asyncio.create_task(client.query("c", NEAR)) for _ in range(30)]
        await asyncio.sleep(2 * _coalescing.PATIENCE_SECONDS)
        calls += [asyncio.create_task(client.query("c", NEAR)) for _ in range(30)]
        await all_waiting(client, 60)
        await client.close()
        assert {type(outcome) for outcome in await outcomes_of(calls)} == {CallCancelledError}
    finally:
        own_server.send_signal(signal.SIGCONT)


@pytest.mark.one_shard(reason="a position is demanded of its own shard alone")
async def test_a_position_ahead_fails_only_the_calls_that_demand_it(client, filled):
    reached, ahead = client.last_position, Position(0, 2**40)
    demands = [None, reached, ahead, Position(0, 1)] * 15
    calls = [client.query(filled, NEAR, limit=1, min_position=demand) for demand in demands]
    calls += [client.get(filled, ["p1"], min_position=demand) for demand in demands]
    for outcome, demand in zip(await outcomes_of(calls), demands * 2, strict=True):
        if demand is ahead:
            assert type(outcome) is PositionAheadError
        else:
            assert len(outcome) == 1
    lanes = getattr(client, "sync_client", client)._lanes._lanes
    assert {(key.method, key.demanded) for key in lanes} >= {(_coalescing.QUERY, None), (_coalescing.QUERY, 0)}


async def test_results_too_large_for_one_message_come_one_by_one(make_client, server, filled):
    client = make_client(server.address, channel_options=[("grpc.max_receive_message_length", 20_000)])
    await client.upsert(filled, [Point(f"large-{n}", NEAR, {"x": "x" * 5_000}) for n in range(40)])
    calls = [client.get(filled, [f"large-{n}", f"large-{(n + 1) % 40}"]) for n in range(40)]
    counts = count_rpcs(client)
    results = await asyncio.gather(*calls)
    assert [[point.id for point in points] for points in results] == [
        [f"large-{n}", f"large-{(n + 1) % 40}"] for n in range(40)
    ]
    assert counts["GetBatch"] > 0


async def test_results_too_large_for_one_reply_of_the_server_come_one_by_one(client, filled):
    """Each get has 20 MiB, and a reply at most 64 MiB."""
    names = [f"huge-{n}" for n in range(20)]
    for name in names:
        await client.upsert(filled, [Point(name, NEAR, {"x": "x" * (1024 * 1024 - 100)})])
    counts = count_rpcs(client)
    for points in await asyncio.gather(*(client.get(filled, names) for _ in range(10))):
        assert [point.id for point in points] == names
    assert counts["GetBatch"] > 0


async def test_upserts_that_must_not_be_repeated_travel_alone(client, collection):
    counts = count_rpcs(client)
    await asyncio.gather(*(client.upsert(collection, [Point(f"p{n}", NEAR)], request_id="") for n in range(20)))
    assert counts == {"Upsert": 20}
    assert await client.count(collection) == 20


class OlderServer(grpc.GenericRpcHandler):
    """Passes calls on to a server, but knows no batches."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details):
        if handler_call_details.method.endswith("Batch"):
            return None
        forward = self._channel.unary_unary(handler_call_details.method)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: forward(request, timeout=30))


@pytest.mark.one_shard(reason="of a cluster the client finds the nodes that are newer")
async def test_an_older_server_gets_single_calls(make_client, server, filled):
    with grpc.insecure_channel(server.address) as channel:
        older = grpc.server(ThreadPoolExecutor(4), handlers=[OlderServer(channel)])
        port = older.add_insecure_port("127.0.0.1:0")
        older.start()
        try:
            client = make_client(f"127.0.0.1:{port}")
            counts = count_rpcs(client)
            for _ in range(2):
                results = await asyncio.gather(*(client.get(filled, [f"p{n}"]) for n in range(40)))
                assert [points[0].id for points in results] == [f"p{n}" for n in range(40)]
            tried = counts["GetBatch"]
            assert tried > 0
            await asyncio.gather(*(client.get(filled, [f"p{n}"]) for n in range(40)))
            assert counts["GetBatch"] == tried, "once it is known, nothing is tried in vain"
        finally:
            older.stop(None).wait()


async def test_impatient_callers_get_in_nobodys_way(client, filled, monkeypatch):
    """With no patience at all a call may be appointed by two at once; results stay right and nobody is forgotten."""
    monkeypatch.setattr(_coalescing, "PATIENCE_SECONDS", 0.0)
    for module in (async_lanes, sync_lanes):
        if hasattr(module, "PATIENCE_SECONDS"):
            monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    for _ in range(10):
        results = await asyncio.gather(*(client.get(filled, [f"p{n}"]) for n in range(CALLERS)))
        assert [points[0].id for points in results] == [f"p{n}" for n in range(CALLERS)]


def test_a_thread_appointed_while_its_patience_ends_leads_and_answers(server):
    """It looks up by itself and finds that it leads, without having been woken."""
    with Client(server.address) as client:
        key = _coalescing.LaneKey(_coalescing.GET, None, False)
        lane = sync_lanes._Lane(key, client._transport, client._sender)
        request = points_pb2.GetRequest(collection="no-such-collection", ids=["a"]).SerializeToString()
        leader, *followers = (sync_lanes._Call(request, None, 30.0) for _ in range(4))
        lane._queue.extend([leader, *followers])
        with lane._mutex:
            lane._appoint(leader)
            leader.wake.release()
        lane._lead(leader)
        assert [type(call.outcome) for call in (leader, followers[0])] == [CollectionNotFoundError] * 2
        assert sync_lanes._State.LEADS in {call.state for call in followers}, "the next one was appointed"


@pytest.mark.parametrize("size", [1, 127, 128, 300, 16_383, 16_384, 70_000])
def test_requests_are_joined_as_protobuf_writes_them(size):
    requests = [points_pb2.GetRequest(collection="x" * size), points_pb2.GetRequest(ids=["a", "b"])]
    pieces = [request.SerializeToString() for request in requests]
    assert _coalescing.GET.join(pieces, None) == points_pb2.GetBatchRequest(requests=requests).SerializeToString()
