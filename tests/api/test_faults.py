"""Clients that are slow, gone, late, too large or no gRPC clients at all hold up nobody, cost nothing that lasts, and end no server.

Over both engines, with servers of their own: what is counted is what a server's process holds.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.api.tweaked import TweakedServer
from tests.support import http2
from tests.support.api import DOT, Api, connect, params, point, query_message
from tests.support.server import ServerProcess
from vecmem import limits
from vecmem.server import engine
from vecmem.v1 import points_pb2

DIMENSION = 64
POINTS = 2_000
PAYLOAD = b'{"text":"%s"}' % (b"x" * 2_000)
GET, SCROLL, QUERY_BATCH, UPSERT = (
    f"/vecmem.v1.PointService/{name}" for name in ("Get", "Scroll", "QueryBatch", "Upsert")
)
WATCH = "/grpc.health.v1.Health/Watch"
IMPATIENT = "from vecmem.server import engine; engine.KEEPALIVE_MS = 1_000; engine.KEEPALIVE_TIMEOUT_MS = 1_000"
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module", params=["native", "grpcio"])
def served(request, tmp_path_factory) -> Iterator[ServerProcess]:
    """A server with a collection `c` of POINTS points with large payloads, that soon asks whether a silent client is still there."""
    data_dir = tmp_path_factory.mktemp("faults") / "data"
    with TweakedServer(data_dir, IMPATIENT, arguments=["--grpc-engine", request.param]) as server:
        with connect(server.address) as api:
            api.create("c", params(DIMENSION, DOT, flat=True))
            for start in range(0, POINTS, 500):
                api.upsert("c", [point(f"p{i}", vector(i), payload_json=PAYLOAD) for i in range(start, start + 500)])
        yield server
        assert errors_of(server) == []


@pytest.fixture
def api(served) -> Iterator[Api]:
    with connect(served.address) as connected:
        yield connected


def vector(number: int) -> list[float]:
    return [1.0 + (number * 31 % 97) / 97] * DIMENSION


def errors_of(server: ServerProcess) -> list[str]:
    """What the server logged as an error. grpcio logs one of its own for each reply that finds nobody there any more."""
    lines = server.log_path.read_text().splitlines()
    return [line for line in lines if " ERROR " in line and " grpc._cython.cygrpc: ExecuteBatchError " not in line]


def descriptor_count(server: ServerProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())


def resident_bytes(server: ServerProcess) -> int:
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_ticks(server: ServerProcess) -> int:
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def wait_for_descriptors(server: ServerProcess, count_max: int) -> None:
    wait_until(
        lambda: descriptor_count(server) <= count_max, f"{descriptor_count(server)} descriptors, not {count_max}"
    )


def large_reply() -> bytes:
    """A request that is answered with about 4 MB."""
    return points_pb2.ScrollRequest(collection="c", page_size=POINTS).SerializeToString()


def long_batch(queries: int = limits.QUERIES_PER_BATCH_MAX) -> points_pb2.QueryBatchRequest:
    query = query_message("c", vector(1), limit=1, params=points_pb2.SearchParams(exact=True))
    return points_pb2.QueryBatchRequest(queries=[query] * queries)


def test_a_client_that_does_not_read_holds_up_nobody_and_what_it_is_owed_is_bounded(served, api):
    before = resident_bytes(served)
    with http2.Connection(served.address, window_bytes=16) as slow:
        settings = next(frame for frame in iter(slow.read, None) if frame.kind == http2.SETTINGS and frame.payload)
        told = dict(struct.iter_unpack(">HI", settings.payload))
        assert told[http2.SETTINGS_MAX_CONCURRENT_STREAMS] == engine.CALLS_PER_CONNECTION_MAX
        for stream in range(1, 41, 2):
            slow.call(stream, SCROLL, large_reply())
        for number in range(20):
            assert api.get("c", f"p{number}")[0].payload_json == PAYLOAD
            assert len(api.query("c", vector(number), limit=3)) == 3
        # Twenty replies of 4 MB wait, each of them once or twice: in Python's hands and in the engine's.
        assert resident_bytes(served) - before < 20 * 3 * 4.5 * MEBIBYTE
    # Nothing of them stays: as many again find room in what these took.
    for _ in range(5):
        with http2.Connection(served.address, window_bytes=16) as slow:
            for stream in range(1, 41, 2):
                slow.call(stream, SCROLL, large_reply())
            assert api.count("c") == POINTS
    assert resident_bytes(served) - before < 20 * 3 * 4.5 * MEBIBYTE


def test_a_client_that_reads_little_by_little_gets_all_of_it(served, api):
    with http2.Connection(served.address, window_bytes=1_000) as slow:
        slow.call(1, SCROLL, points_pb2.ScrollRequest(collection="c", page_size=100).SerializeToString())
        outcome = slow.outcome(1)
    assert outcome.headers["grpc-status"] == "0"
    assert len(points_pb2.ScrollResponse.FromString(outcome.data[5:]).points) == 100
    assert api.count("c") == POINTS


def test_work_stops_when_the_callers_are_gone(served, api):
    request = long_batch()
    start = cpu_ticks(served)
    for _ in range(8):
        assert len(api.call("QueryBatch", request).outcomes) == len(request.queries)
    whole = cpu_ticks(served) - start
    start = cpu_ticks(served)
    begun = [api.points.QueryBatch.future(request, timeout=60) for _ in range(8)]
    api.info()
    for call in begun:
        call.cancel()
    for _ in range(100):
        api.info()
    wait_until_idle(served)
    assert cpu_ticks(served) - start < 0.7 * whole


def wait_until_idle(server: ServerProcess) -> None:
    def is_idle() -> bool:
        before = cpu_ticks(server)
        time.sleep(0.5)
        return cpu_ticks(server) - before <= 2

    wait_until(is_idle, "the server is still at work")


def test_many_calls_that_are_reset_at_once_leave_nothing_behind(served, api):
    message = points_pb2.GetRequest(collection="c", ids=["p1"]).SerializeToString()
    descriptors = descriptor_count(served)
    for _ in range(5):
        with http2.Connection(served.address) as rapid:
            # A server may close the connection of a client that does only this.
            try:
                for stream in range(1, 400, 2):
                    rapid.call(stream, GET, message)
                    rapid.send(http2.RST_STREAM, 0, stream, struct.pack(">I", 8))
            except OSError:
                pass
        assert api.get("c", "p1")[0].id == "p1"
    wait_for_descriptors(served, descriptors)


def test_deadlines_that_have_passed_cost_no_work(served, api):
    before = api.info().log_last_sequence
    message = points_pb2.UpsertRequest(collection="c", points=[point("late", vector(1))]).SerializeToString()
    with http2.Connection(served.address) as late:
        for stream in range(1, 100, 2):
            late.begin(stream, UPSERT, timeout="1n")
        # Engines count in milliseconds: within the first of them such a call is in time.
        time.sleep(0.05)
        for stream in range(1, 100, 2):
            late.send(http2.DATA, http2.END_STREAM, stream, http2.framed(message))
        last = late.outcome(99)
    assert last.was_reset or last.headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    assert api.info().log_last_sequence == before
    assert api.get("c", "late") == []


def test_a_message_over_the_limit_is_refused_and_its_memory_given_back(served, api):
    before = api.info().log_last_sequence
    upsert = api.channel.unary_unary(UPSERT)
    sizes = []
    for _ in range(4):
        with pytest.raises(grpc.RpcError) as raised:
            upsert(bytes(limits.MESSAGE_BYTES_MAX + 1), timeout=60)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        sizes.append(resident_bytes(served))
    assert sizes[-1] - sizes[0] < limits.MESSAGE_BYTES_MAX
    assert api.info().log_last_sequence == before


def test_a_message_that_says_it_is_enormous_takes_no_memory_before_it_comes(served, api):
    before = resident_bytes(served)
    with http2.Connection(served.address) as liar:
        for stream in range(1, 41, 2):
            liar.begin(stream, UPSERT)
            liar.send(http2.DATA, 0, stream, struct.pack(">BI", 0, 2**32 - 1) + b"x" * 100)
        assert api.count("c") == POINTS
        assert resident_bytes(served) - before < 64 * MEBIBYTE
    assert api.count("c") == POINTS


def test_a_peer_that_vanished_is_found_out_and_its_connection_closed(served, api):
    """Native now and then (2 of 100 connections) asks and then forgets that it did: those last until the kernel gives the peer up."""
    descriptors = descriptor_count(served)
    gone = [http2.Connection(served.address, answers_pings=False) for _ in range(20)]
    for connection in gone:
        connection.socket.settimeout(10)
        connection.call(1, WATCH, b"")  # a call that lasts
    forgotten = 0
    for connection in gone:
        try:
            connection.wait_until_closed()
        except TimeoutError:
            forgotten += 1
        connection.close()
    assert forgotten <= (5 if api.info().grpc_engine == "native" else 0)
    wait_for_descriptors(served, descriptors)


def test_a_silent_peer_that_answers_pings_stays(served):
    with http2.Connection(served.address) as quiet:
        pings = 0
        while pings < 3:
            pings += quiet.read().kind == http2.PING
        quiet.call(1, GET, points_pb2.GetRequest(collection="c", ids=["p1"]).SerializeToString())
        assert quiet.outcome(1).headers["grpc-status"] == "0"


HEADER_BLOCK = b"\x00\x00\xff"  # a literal whose name is longer than the block
NO_HTTP2 = {
    "nothing": b"",
    "http/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(197),
    "zeros": bytes(10_000),
    "text": b"SELECT 1;\n" * 1_000,
    "half a preface": http2.PREFACE[:10],
    "a preface and garbage": http2.PREFACE + b"\xff" * 5_000,
    "a frame larger than allowed": http2.PREFACE + bytes.fromhex("ffffff0000000000 01") + bytes(100_000),
}
BAD_FRAMES = {
    "data on stream 0": (http2.DATA, 0, 0, b"x"),
    "data on an idle stream": (http2.DATA, 0, 1, b"x"),
    "headers on stream 0": (http2.HEADERS, http2.END_HEADERS, 0, b""),
    "headers that do not decode": (http2.HEADERS, http2.END_HEADERS, 1, HEADER_BLOCK),
    "headers that never end": (http2.HEADERS, 0, 1, b"\x82" * 100),
    "an even stream": (http2.HEADERS, http2.END_HEADERS, 2, b"\x82"),
    "settings of a wrong size": (http2.SETTINGS, 0, 0, b"12345"),
    "a ping of a wrong size": (http2.PING, 0, 0, b"1"),
    "a window that overflows": (http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    "a window update of zero": (http2.WINDOW_UPDATE, 0, 0, bytes(4)),
    "a reset of an idle stream": (http2.RST_STREAM, 0, 99, bytes(4)),
    "an unknown kind of frame": (200, 255, 1, b"x" * 1_000),
}
BAD_MESSAGES = {
    "no frame": b"",
    "part of a frame's head": b"\x00\x00",
    "less than the frame says": struct.pack(">BI", 0, 100) + b"x",
    "more than the frame says": struct.pack(">BI", 0, 0) + b"xyz",
    "two messages": struct.pack(">BI", 0, 0) * 2,
    "compressed, but not said how": struct.pack(">BI", 1, 4) + b"abcd",
    "an unknown flag": struct.pack(">BI", 7, 0),
}


@pytest.mark.parametrize("name", NO_HTTP2)
def test_bytes_that_are_no_http2_end_their_own_connection_only(served, api, name):
    descriptors = descriptor_count(served)
    host, _, port = served.address.rpartition(":")
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=60) as stranger:
            try:
                stranger.sendall(NO_HTTP2[name])
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(65_536):
                    pass
            except OSError:
                pass  # the server was the first to close
        assert api.get("c", "p1")[0].id == "p1"
    wait_for_descriptors(served, descriptors)


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_malformed_frames_end_their_own_connection_at_most(served, api, name):
    descriptors = descriptor_count(served)
    for _ in range(3):
        with http2.Connection(served.address) as broken:
            broken.send(*BAD_FRAMES[name])
            assert api.get("c", "p1")[0].id == "p1"
    wait_for_descriptors(served, descriptors)


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_message_that_is_no_grpc_frame_is_an_error_of_its_call(served, api, name):
    before = api.info().log_last_sequence
    with http2.Connection(served.address) as broken:
        # grpcio waits for the rest of a cut message until the call's deadline, though none can come.
        broken.begin(1, UPSERT, timeout="2S")
        broken.send(http2.DATA, http2.END_STREAM, 1, BAD_MESSAGES[name])
        outcome = broken.outcome(1)
        assert outcome.was_reset or outcome.headers["grpc-status"] != "0"
        # The connection is as good as it was.
        broken.call(3, GET, points_pb2.GetRequest(collection="c", ids=["p1"]).SerializeToString())
        assert broken.outcome(3).headers["grpc-status"] == "0"
    assert api.info().log_last_sequence == before


def test_resets_in_the_middle_of_requests_and_of_replies_leave_nothing_behind(served, api):
    before = api.info().log_last_sequence
    descriptors = descriptor_count(served)
    upsert = points_pb2.UpsertRequest(collection="c", points=[point("half", vector(1))]).SerializeToString()
    sizes = []
    for _ in range(30):
        asking = http2.Connection(served.address)
        asking.begin(1, UPSERT)
        asking.send(http2.DATA, 0, 1, http2.framed(upsert)[:-1])
        asking.reset()
        reading = http2.Connection(served.address)
        reading.call(1, SCROLL, large_reply())
        while reading.read().kind != http2.DATA:
            pass
        reading.reset()
        sizes.append(resident_bytes(served))
    wait_for_descriptors(served, descriptors)
    assert api.info().log_last_sequence == before
    assert sizes[-1] - sizes[9] < 64 * MEBIBYTE


def test_many_connections_opened_and_dropped_leave_nothing_behind(served, api):
    descriptors = descriptor_count(served)
    before = resident_bytes(served)
    for _ in range(5):
        connections = [http2.Connection(served.address) for _ in range(150)]
        connections[-1].call(1, GET, points_pb2.GetRequest(collection="c", ids=["p1"]).SerializeToString())
        assert connections[-1].outcome(1).headers["grpc-status"] == "0"
        for number, connection in enumerate(connections):
            connection.reset() if number % 2 else connection.close()
    wait_for_descriptors(served, descriptors)
    assert resident_bytes(served) - before < 64 * MEBIBYTE
    assert api.count("c") == POINTS


@pytest.mark.parametrize("name", ["native", "grpcio"])
def test_unary_calls_in_flight_at_sigterm_are_answered_and_the_server_exits_with_0(tmp_path, name):
    with ServerProcess(tmp_path / "data", arguments=["--grpc-engine", name]) as server:
        with connect(server.address) as api:
            api.create("c", params(DIMENSION, DOT, flat=True))
            api.upsert("c", [point(f"p{i}", vector(i)) for i in range(10_000)])
            queries = threading.Event()
            begun = [api.points.QueryBatch.future(long_batch(), timeout=60) for _ in range(4)]
            begun[0].add_done_callback(lambda _: queries.set())
            assert queries.wait(60)
            # One is answered, so the others have arrived: they came over the same connection before it was.
            server.send_signal(signal.SIGTERM)
            for call in begun:
                assert len(call.result().outcomes) == limits.QUERIES_PER_BATCH_MAX
        assert server.wait(60) == 0
    assert errors_of(server) == []
