"""UpsertStream, deadlines and cancellation: whole batches or none, in order, and what was acknowledged stays."""

from __future__ import annotations

import itertools
import queue
import random
import threading

import grpc
import pytest

from tests.api.tweaked import TweakedServer
from tests.support import http2
from tests.support.api import DOT, connect, params, point, refusal_of
from vecmem.v1 import collections_pb2, common_pb2, points_pb2

BATCH_POINTS = 50


def batch(number, collection="", size=BATCH_POINTS, dimension=2, write=None):
    points = [point(f"{number:04d}-{i:04d}", [1.0] * dimension) for i in range(size)]
    return points_pb2.UpsertStreamRequest(collection=collection, points=points, write=write)


def counts_by_batch(api, collection):
    counts: dict[int, int] = {}
    for found in api.scroll(collection, page_size=10_000):
        number = int(found.id.partition("-")[0])
        counts[number] = counts.get(number, 0) + 1
    return counts


def run(api, requests):
    """All acknowledgements, and the error at the end or None."""
    acknowledged = []
    try:
        acknowledged.extend(api.points.UpsertStream(iter(requests), timeout=60))
    except grpc.RpcError as error:
        return acknowledged, refusal_of(error)
    return acknowledged, None


@pytest.fixture
def stored(api, collection_name):
    api.create(collection_name, params(2, DOT))
    return collection_name


def test_every_batch_is_acknowledged_in_order(api, stored):
    acknowledged, error = run(api, [batch(i, stored if i == 0 else "") for i in range(20)])
    assert error is None
    assert [reply.acknowledged_batch_count for reply in acknowledged] == list(range(1, 21))
    assert [reply.acknowledged_point_count for reply in acknowledged] == [BATCH_POINTS * i for i in range(1, 21)]
    positions = [reply.header.position.sequence for reply in acknowledged]
    assert positions == sorted(set(positions))
    assert api.count(stored) == 20 * BATCH_POINTS


def test_an_acknowledged_batch_can_be_read_while_the_stream_goes_on(api, stored):
    """Ping-pong: the next batch is sent only after the last one's acknowledgement and a look at its points."""
    waiting: queue.Queue = queue.Queue()
    replies = api.points.UpsertStream(iter(waiting.get, None), timeout=60)
    for number in range(5):
        waiting.put(batch(number, stored))
        assert next(replies).acknowledged_batch_count == number + 1
        assert len(api.get(stored, *[f"{number:04d}-{i:04d}" for i in range(BATCH_POINTS)])) == BATCH_POINTS
    waiting.put(None)
    assert list(replies) == []


def test_later_batches_win_over_earlier_ones_whether_or_not_they_carry_a_request_id(api, stored):
    """Batches are written in the order of the stream, though checking a request id takes a step more."""
    requests = []
    for number in range(60):
        write = common_pb2.WriteOptions(request_id=f"{stored}-{number}") if number % 2 == 0 else None
        requests.append(
            points_pb2.UpsertStreamRequest(collection=stored, points=[point("same", [float(number), 0.0])], write=write)
        )
    acknowledged, error = run(api, requests)
    assert error is None
    assert len(acknowledged) == 60
    (found,) = api.get(
        stored, "same", with_vectors=common_pb2.VectorSelector(all=True, encoding="VECTOR_ENCODING_VALUES")
    )
    assert list(found.vector.dense.values) == [59.0, 0.0]
    assert found.version == acknowledged[-1].header.position.sequence


def test_a_refused_batch_ends_the_stream_and_nothing_behind_it_is_written(api, stored):
    requests = [batch(number, stored) for number in range(10)]
    requests[4] = batch(4, stored, dimension=3)
    before = api.info().log_last_sequence
    acknowledged, error = run(api, requests)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "DIMENSION_MISMATCH")
    assert error.field == "points[0].vector"
    assert [reply.acknowledged_batch_count for reply in acknowledged] == [1, 2, 3, 4]
    assert counts_by_batch(api, stored) == dict.fromkeys(range(4), BATCH_POINTS)
    assert api.info().log_last_sequence == before + 4


@pytest.mark.parametrize("bad", ["empty", "no collection"])
def test_a_stream_that_begins_badly_writes_nothing(api, stored, bad):
    first = points_pb2.UpsertStreamRequest(collection=stored) if bad == "empty" else batch(0, "")
    acknowledged, error = run(api, [first, batch(1, stored)])
    assert acknowledged == []
    assert error.reason == {"empty": "INVALID_ARGUMENT", "no collection": "COLLECTION_NOT_FOUND"}[bad]
    assert api.count(stored) == 0


def test_a_stream_without_a_batch_is_no_error(api):
    assert run(api, []) == ([], None)


@pytest.mark.one_shard(reason="a shard looks at its part of a repeated batch in its log")
def test_a_batch_that_came_before_is_acknowledged_again_and_changes_nothing(api, stored):
    requests = [batch(i, stored, write=common_pb2.WriteOptions(request_id=f"{stored}:{i}")) for i in range(5)]
    first, _ = run(api, requests)
    before = api.info().log_last_sequence
    again, error = run(api, requests)
    assert error is None
    assert [reply.acknowledged_point_count for reply in again] == [reply.acknowledged_point_count for reply in first]
    assert api.info().log_last_sequence == before


def test_batches_of_different_collections_are_told_apart_though_they_leave_the_collection_out(api, stored):
    """The second batch of both streams has the same bytes; what it means is another thing in each."""
    other = f"{stored}-other"
    api.create(other, params(2, DOT))
    same = batch(1, write=common_pb2.WriteOptions(request_id=f"{stored}-same"))
    _, error = run(api, [batch(0, stored), same])
    assert error is None
    acknowledged, error = run(api, [batch(0, other), same])
    assert len(acknowledged) == 1
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert (api.count(stored), api.count(other)) == (2 * BATCH_POINTS, BATCH_POINTS)
    api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=other))


@pytest.mark.one_shard(reason="a shard looks at its part of a repeated batch in its log")
@pytest.mark.parametrize("again", ["stream", "unary"])
def test_a_batch_that_left_the_collection_out_is_known_when_it_comes_again_with_it(api, stored, again):
    """A load that goes on over a new stream, or point by point, sends the same batch under its collection's name."""
    write = common_pb2.WriteOptions(request_id=f"{stored}-1")
    acknowledged, _ = run(api, [batch(0, stored), batch(1, write=write)])
    before = api.info().log_last_sequence
    named = batch(1, stored, write=write)
    if again == "stream":
        replies, error = run(api, [named])
        assert error is None
        sequence = replies[0].header.position.sequence
    else:
        upsert = points_pb2.UpsertRequest(collection=stored, points=named.points, write=write)
        reply = api.call("Upsert", upsert)
        assert reply.inserted_count == BATCH_POINTS
        sequence = reply.header.position.sequence
    assert sequence == acknowledged[1].header.position.sequence
    assert api.info().log_last_sequence == before


def test_a_request_id_used_twice_in_a_stream_ends_it_before_anything_behind_is_written(api, stored):
    """The first batch under the id is large, so that it is not applied yet when the other one is looked at."""
    write = common_pb2.WriteOptions(request_id=f"{stored}-twice")
    requests = [batch(0, stored, size=5_000, write=write), batch(1, size=1, write=write), batch(2, size=1)]
    acknowledged, error = run(api, requests)
    assert [reply.acknowledged_batch_count for reply in acknowledged] == [1]
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "write.request_id")
    assert counts_by_batch(api, stored) == {0: 5_000}


@pytest.mark.one_shard(reason="each shard gives its own versions")
def test_a_batch_sent_twice_in_a_stream_is_acknowledged_twice_and_written_once(api, stored):
    twice = batch(0, stored, size=2_000, write=common_pb2.WriteOptions(request_id=f"{stored}-twice"))
    acknowledged, error = run(api, [twice, twice, batch(1)])
    assert error is None
    assert [reply.acknowledged_batch_count for reply in acknowledged] == [1, 2, 3]
    assert {point.version for point in api.scroll(stored)} == {
        acknowledged[0].header.position.sequence,
        acknowledged[2].header.position.sequence,
    }


def test_conflicts_of_a_batch_come_with_its_acknowledgement(api, stored):
    fresh = points_pb2.UpsertStreamRequest(collection=stored, points=[point("a", [1.0, 1.0], expected_version=0)])
    acknowledged, error = run(api, [fresh, fresh, batch(1)])
    assert error is None
    assert [[conflict.id for conflict in reply.conflicts] for reply in acknowledged] == [[], ["a"], []]


def test_a_collection_deleted_under_a_stream_ends_it_by_name(api, stored):
    waiting: queue.Queue = queue.Queue()
    replies = api.points.UpsertStream(iter(waiting.get, None), timeout=60)
    waiting.put(batch(0, stored))
    assert next(replies).acknowledged_batch_count == 1
    api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=stored))
    waiting.put(batch(1, stored))
    with pytest.raises(grpc.RpcError) as raised:
        next(replies)
    waiting.put(None)
    refusal = refusal_of(raised.value)
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "COLLECTION_NOT_FOUND")


@pytest.mark.one_shard(reason="all or none holds for each shard")
def test_a_cancelled_stream_leaves_whole_batches_and_all_that_were_acknowledged(api, stored):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    first = 0
    acknowledged = []
    for _ in range(8):
        numbers = range(first, first + 200)
        first += 200
        replies = api.points.UpsertStream((batch(number, stored) for number in numbers), timeout=60)
        some = itertools.islice(replies, rng.randrange(12))
        acknowledged += [numbers[reply.acknowledged_batch_count - 1] for reply in some]
        replies.cancel()
        with pytest.raises(grpc.RpcError) as raised:
            list(replies)
        assert raised.value.code() is grpc.StatusCode.CANCELLED
    counts = counts_by_batch(api, stored)
    assert set(acknowledged) <= set(counts)
    assert set(counts.values()) <= {BATCH_POINTS}
    # And the server takes the next write as if nothing had been.
    assert api.upsert(stored, [point("9999-0", [1.0, 1.0])]).inserted_count == 1


@pytest.mark.parametrize("timeout", ["1n", "5m"])
def test_a_request_that_comes_after_its_deadline_is_not_carried_out(api, server, stored, timeout):
    """Over HTTP/2 by hand: a gRPC library would not even send it."""
    message = points_pb2.UpsertRequest(collection=stored, points=[point("late", [1.0, 1.0])]).SerializeToString()
    upsert = "/vecmem.v1.PointService/Upsert"
    for _ in range(5):
        late = http2.call(server.address, upsert, message, timeout=timeout, wait_seconds=0.05)
        assert late.was_reset or late.headers["grpc-status"] == "4"
        assert late.data == b""
    assert api.count(stored) == 0
    in_time = http2.call(server.address, upsert, message, timeout="30S", wait_seconds=0.05)
    assert in_time.headers["grpc-status"] == "0"
    assert api.count(stored) == 1


def test_a_client_that_gives_up_at_any_moment_finds_its_write_whole_or_not_at_all(api, stored):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = 20 * BATCH_POINTS  # takes longer than some are waited for, on any machine
    acknowledged, given_up = set(), {}
    for number in range(150):
        request = points_pb2.UpsertRequest(collection=stored, points=batch(number, size=size).points)
        try:
            api.points.Upsert(request, timeout=rng.uniform(0.0, 0.006))
            acknowledged.add(number)
        except grpc.RpcError as error:
            given_up[number] = error.code()
    assert set(given_up.values()) == {grpc.StatusCode.DEADLINE_EXCEEDED}
    counts = counts_by_batch(api, stored)
    assert acknowledged <= set(counts)
    assert set(counts.values()) <= {size}


def test_streams_wait_where_the_queue_of_writes_is_full(tmp_path):
    """All streams together have far more outstanding than the queue holds; none is refused, and a batch larger than it gets in."""
    tweaks = "from vecmem import limits; limits.COMMIT_QUEUE_BYTES_MAX = 100_000"
    with TweakedServer(tmp_path / "data", tweaks) as server, connect(server.address) as api:
        api.create("c", params(256, DOT, flat=True))
        outcomes = {}

        def load(worker):
            sizes = [BATCH_POINTS, 1, 2 * BATCH_POINTS, 3 * BATCH_POINTS]
            requests = [batch(worker * 100 + i, "c", size=sizes[i % 4], dimension=256) for i in range(24)]
            outcomes[worker] = run(api, requests)

        threads = [threading.Thread(target=load, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for acknowledged, error in outcomes.values():
            assert error is None
            assert len(acknowledged) == 24
        assert api.count("c") == 6 * 6 * (6 * BATCH_POINTS + 1)


def test_streams_side_by_side_do_not_mix(api, stored):
    outcomes = {}

    def load(worker):
        outcomes[worker] = run(api, [batch(worker * 1_000 + i, stored) for i in range(20)])

    threads = [threading.Thread(target=load, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for acknowledged, error in outcomes.values():
        assert error is None
        assert [reply.acknowledged_batch_count for reply in acknowledged] == list(range(1, 21))
    assert set(counts_by_batch(api, stored).values()) == {BATCH_POINTS}
    assert api.count(stored) == 4 * 20 * BATCH_POINTS
