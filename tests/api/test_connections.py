"""Connections end when they are old and nothing is lost by it; requests may come compressed; health."""

from __future__ import annotations

import gzip
import queue
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.api.tweaked import TweakedServer
from tests.support import http2
from tests.support.api import DOT, connect, expect_refusal, params, point, refusal_of
from tests.support.server import ServerProcess
from vecmem.v1 import points_pb2
from vecmem_client import Client, Point

POINTS = 60
SHORT_AGE = (
    "from vecmem.server import engine; engine.CONNECTION_AGE_MS_MAX = 2_000; engine.CONNECTION_AGE_GRACE_MS = 500"
)


@pytest.fixture
def ageing(tmp_path) -> Iterator[ServerProcess]:
    """A server whose connections live for about two seconds, which grpcio alone can see to."""
    with TweakedServer(tmp_path / "data", SHORT_AGE, arguments=["--grpc-engine", "grpcio"]) as server:
        yield server


def test_a_bulk_load_outlives_its_connections(ageing):
    with connect(ageing.address) as api, Client(ageing.address) as client:
        api.create("c", params(2, DOT, flat=True))

        def slowly() -> Iterator[Point]:
            for number in range(POINTS):
                time.sleep(0.1)
                yield Point(f"p{number:03d}", np.array([float(number), 1.0]))

        result = client.upsert_stream("c", slowly(), batch_size=1)
        assert result.reconnect_count >= 1
        assert (result.point_count, result.conflicts) == (POINTS, [])
        found = api.scroll("c")
        assert [one.id for one in found] == [f"p{number:03d}" for number in range(POINTS)]
        assert len({one.version for one in found}) == POINTS  # each written by a record of its own, and by one only
        assert api.info().log_last_sequence == POINTS + 1


def test_a_stream_without_a_client_that_reconnects_is_told_to_try_again(ageing):
    with connect(ageing.address) as api:
        api.create("c", params(2, DOT, flat=True))
        waiting: queue.Queue = queue.Queue()
        replies = api.points.UpsertStream(iter(waiting.get, None), timeout=60)
        waiting.put(points_pb2.UpsertStreamRequest(collection="c", points=[point("a", [1.0, 0.0])]))
        assert next(replies).acknowledged_batch_count == 1
        with pytest.raises(grpc.RpcError) as raised:
            next(replies)
        waiting.put(None)
        assert refusal_of(raised.value).code == "UNAVAILABLE"
        assert api.count("c") == 1


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("accept_encoding", ["", "identity,gzip"])
def test_replies_are_not_compressed(api, server, collection_name, encoding, accept_encoding):
    api.create(collection_name, params(2, DOT, flat=True))
    api.upsert(collection_name, [point(f"p{i}", [1.0, 0.0], payload_json=b'{"k":"v"}') for i in range(500)])
    message = points_pb2.ScrollRequest(collection=collection_name, page_size=500).SerializeToString()
    outcome = http2.call(
        server.address,
        "/vecmem.v1.PointService/Scroll",
        gzip.compress(message) if encoding else message,
        encoding=encoding,
        accept_encoding=accept_encoding,
    )
    assert outcome.headers["grpc-status"] == "0"
    assert outcome.data[0] == 0
    assert len(points_pb2.ScrollResponse.FromString(outcome.data[5:]).points) == 500


def test_a_compressed_request_is_taken_like_any_other(api, collection_name):
    api.create(collection_name, params(2, DOT, flat=True))
    request = points_pb2.UpsertRequest(
        collection=collection_name, points=[point(f"p{i}", [1.0, 0.0], payload_json=b'{"k":"v"}') for i in range(500)]
    )
    reply = api.points.Upsert(request, compression=grpc.Compression.Gzip, timeout=60)
    assert reply.inserted_count == 500
    if api.info().grpc_engine == "grpcio":
        assert api.points.Upsert(request, compression=grpc.Compression.Deflate, timeout=60).updated_count == 500
    else:
        refusal = expect_refusal(lambda: api.points.Upsert(request, compression=grpc.Compression.Deflate, timeout=60))
        assert refusal.code == "UNIMPLEMENTED"
        assert "deflate" in refusal.message
    scroll = points_pb2.ScrollRequest(collection=collection_name, page_size=1_000)
    assert len(api.points.Scroll(scroll, compression=grpc.Compression.Gzip, timeout=60).points) == 500


def test_the_limit_of_a_message_holds_for_what_it_is_when_decompressed(api):
    """A hundred million bytes of nothing are small on the way."""
    before = api.info().log_last_sequence
    upsert = api.channel.unary_unary("/vecmem.v1.PointService/Upsert")
    with pytest.raises(grpc.RpcError) as raised:
        upsert(bytes(100_000_000), compression=grpc.Compression.Gzip, timeout=60)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert api.info().log_last_sequence == before


def test_health_says_serving_for_the_server_and_each_service(api):
    stub = health_pb2_grpc.HealthStub(api.channel)
    for service in ("", "vecmem.v1.CollectionService", "vecmem.v1.PointService", "vecmem.v1.AdminService"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
