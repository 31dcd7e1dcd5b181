"""A server's life over the raw API: health, reflection, one directory each, drain at SIGTERM, and what a crash leaves."""

from __future__ import annotations

import queue
import signal
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.api import DOT, connect, expect_refusal, params, point, query_message
from tests.support.server import ServerProcess
from vecmem.server.open_streams import STREAM_END_SECONDS_MAX
from vecmem.v1 import admin_pb2, common_pb2, points_pb2

SERVICES = {
    f"vecmem.v1.{name}Service"
    for name in (
        *("Admin", "Cluster", "Collection", "Point", "Pipeline", "Transaction", "Watch", "Channel"),
        *("Key", "String", "Counter", "Hash", "Set", "List", "SortedSet", "Queue", "Stream"),
        *("Bitmap", "HyperLogLog", "Geo"),
        *("RateLimiter", "Lock", "Idempotency"),
        "Json",
    )
}
HEALTH = health_pb2.HealthCheckResponse


def batch(number):
    return points_pb2.UpsertStreamRequest(
        collection="c", points=[point(f"{number:04d}-{i:03d}", [1.0, float(i)]) for i in range(100)]
    )


def test_every_service_says_that_it_serves(api):
    health = health_pb2_grpc.HealthStub(api.channel)
    for service in ("", *SERVICES):
        assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status == HEALTH.SERVING
    refusal = expect_refusal(lambda: health.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=30))
    assert refusal.code == "NOT_FOUND"


def test_reflection_lists_the_services_and_knows_their_messages(api):
    reflection = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="vecmem.v1.PointService"),
    ]
    listed, file = reflection.ServerReflectionInfo(iter(asked), timeout=30)
    names = {service.name for service in listed.list_services_response.service}
    assert names == SERVICES | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert any(b"QueryBatchRequest" in one for one in file.file_descriptor_response.file_descriptor_proto)


def test_an_unknown_method_is_unimplemented_and_the_server_serves_on(api):
    call = api.channel.unary_unary("/vecmem.v1.PointService/Nonsense", bytes, bytes)
    assert expect_refusal(lambda: call(b"", timeout=30)).code == "UNIMPLEMENTED"
    assert api.info().version


def test_a_second_server_on_a_data_directory_is_refused_and_the_first_serves_on(own_server, own_api):
    own_api.create("c", params(2, DOT))
    second = ServerProcess(own_server.data_dir)
    second.log_path = own_server.data_dir.with_name("second.stderr")
    with pytest.raises(RuntimeError, match="before it was ready") as refused:
        second.start()
    assert str(own_server.data_dir) in str(refused.value)
    assert not second.running
    assert own_api.upsert("c", [point("a", [1.0, 0.0])]).inserted_count == 1


@pytest.mark.parametrize("watched", [False, True])
def test_a_drain_answers_what_is_in_flight_and_turns_away_what_comes_after(own_server, watched):
    """A stream is in flight at SIGTERM: health says so at once, what is sent on it is still acknowledged, the exit code is 0."""
    with connect(own_server.address) as api, connect(own_server.address) as watching:
        api.create("c", params(2, DOT))
        states = health_pb2_grpc.HealthStub(watching.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(states).status == HEALTH.SERVING
        waiting: queue.Queue = queue.Queue()
        replies = api.points.UpsertStream(iter(waiting.get, None), timeout=60)
        waiting.put(batch(0))
        assert next(replies).acknowledged_batch_count == 1
        own_server.send_signal(signal.SIGTERM)
        assert next(states).status == HEALTH.NOT_SERVING
        if watched:
            # Longer than what only watches is left alone.
            time.sleep(2 * STREAM_END_SECONDS_MAX)
        else:
            states.cancel()
        waiting.put(batch(1))
        assert next(replies).acknowledged_batch_count == 2
        waiting.put(None)
        assert list(replies) == []
        assert own_server.wait(60) == 0
    own_server.start()
    with connect(own_server.address) as api:
        assert api.count("c") == 200


def test_sigterm_under_load_loses_nothing_acknowledged_and_exits_0(own_server):
    acknowledged, codes = [], set()
    with connect(own_server.address) as api:
        api.create("c", params(2, DOT))
        started = threading.Barrier(5)

        def write(worker):
            for number in range(10_000):
                if number == 20:
                    started.wait(60)
                name = f"{worker}-{number}"
                try:
                    api.upsert("c", [point(name, [1.0, 0.0])])
                except grpc.RpcError as error:
                    codes.add(error.code())
                    return
                acknowledged.append(name)

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        started.wait(60)
        own_server.stop()  # raises unless the exit code is 0
        for thread in threads:
            thread.join()
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert len(acknowledged) >= 80
    own_server.start()
    with connect(own_server.address) as api:
        found = {one.id for one in api.scroll("c", page_size=10_000)}
    assert set(acknowledged) <= found
    # Each writer had one call in flight, whose answer may have been lost.
    assert len(found) <= len(acknowledged) + 4


def test_a_stream_that_never_ends_is_cut_off_after_the_grace(tmp_path):
    with (
        ServerProcess(tmp_path / "data", arguments=["--grace-seconds", "0.2"]) as server,
        connect(server.address) as api,
    ):
        api.create("c", params(2, DOT))
        waiting: queue.Queue = queue.Queue()
        replies = api.points.UpsertStream(iter(waiting.get, None), timeout=60)
        waiting.put(batch(0))
        assert next(replies).acknowledged_batch_count == 1
        server.stop()
        with pytest.raises(grpc.RpcError) as cut:
            next(replies)
        assert cut.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        waiting.put(None)


def test_request_ids_answers_and_versions_survive_a_crash(own_server):
    with connect(own_server.address) as api:
        api.create("c", params(2, DOT))
        first = api.upsert("c", [point("a", [1.0, 0.0], payload_json=b'{"k":1}'), point("b", [0.5, 0.0])], "once")
        api.delete("c", "b")
        before = api.everything()
        hits = api.query("c", [1.0, 0.0])
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        assert api.everything() == before
        assert api.query("c", [1.0, 0.0]) == hits
        again = api.upsert("c", [point("a", [1.0, 0.0], payload_json=b'{"k":1}'), point("b", [0.5, 0.0])], "once")
        assert (again.version, again.inserted_count) == (first.version, first.inserted_count)
        assert api.everything() == before
        assert expect_refusal(lambda: api.upsert("c", [point("z", [1.0, 0.0])], "once")).reason == "REQUEST_ID_REUSED"


def test_the_server_tells_what_it_is_and_how_it_came_up(own_server):
    with connect(own_server.address) as api:
        info = api.info()
        assert (info.log_first_sequence, info.log_last_sequence, info.collection_count, info.point_count) == (
            0,
            0,
            0,
            0,
        )
        api.create("c", params(2, DOT))
        api.upsert("c", [point("a", [1.0, 0.0])])
        report = api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest())
        assert report.sequence == 2
        assert report.size_bytes > 0
        api.upsert("c", [point("b", [1.0, 0.0])])
        api.upsert("c", [point("c", [1.0, 0.0])])
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        info = api.info()
        assert (info.log_last_sequence, info.collection_count, info.point_count) == (4, 1, 3)
        assert info.header.position.sequence == 4
        assert (info.recovery.checkpoint_sequence, info.recovery.replayed_record_count) == (2, 2)
        assert info.recovery.torn_tail_bytes == 0
        assert info.read_only_reason == ""
        assert info.resident_memory_bytes > 10_000_000


def test_positions_stay_reachable_after_a_restart(own_server):
    with connect(own_server.address) as api:
        api.create("c", params(2, DOT))
        position = api.upsert("c", [point("a", [1.0, 0.0])]).header.position
    own_server.stop()
    own_server.start()
    with connect(own_server.address) as api:
        read = common_pb2.ReadOptions(min_position=position)
        request = points_pb2.QueryRequest(query=query_message("c", [1.0, 0.0]), read=read)
        assert [hit.point.id for hit in api.call("Query", request).hits] == ["a"]
        read.min_position.sequence += 1
        refusal = expect_refusal(lambda: api.call("Query", request.__class__(query=request.query, read=read)))
        assert refusal.reason == "POSITION_AHEAD"
