"""Streams whose clients do not read hold up neither the end of the server nor the calls that are being answered, on both engines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.api import DOT, connect, params
from tests.support.server import ServerProcess
from vecmem.config import GRPC_ENGINES
from vecmem.server import open_streams
from vecmem.server.calls import unary
from vecmem.server.engine import GRPCIO, NATIVE_MODULE, Engine, make_server
from vecmem.server.open_streams import OpenStreams
from vecmem.v1 import admin_pb2, channels_pb2, channels_pb2_grpc

ENGINES = [engine for engine in GRPC_ENGINES if engine != "auto"]
SECONDS_MAX = 60.0
BLOCK = b"x" * 100_000
BLOCKS = 100
"""More than what the engines and the kernel keep for a client that does not read."""


class Flooding(channels_pb2_grpc.ChannelServiceServicer):
    """Streams without end, and a call that is answered when it is let go."""

    def __init__(self) -> None:
        self.streams = OpenStreams()
        self.answering, self.let_go, self.flooding = asyncio.Event(), asyncio.Event(), 0

    @unary
    async def Publish(self, request, context):  # noqa: N802
        self.answering.set()
        await self.let_go.wait()
        return channels_pb2.PublishResponse(subscriber_count=7)

    async def Subscribe(self, request, context):  # noqa: N802
        with self.streams.open():
            while True:
                self.flooding += 1
                yield channels_pb2.SubscribeResponse(messages=[channels_pb2.ChannelMessage(message=BLOCK)])

    async def until_stuck(self) -> None:
        """Return when nothing goes out any more."""
        seen = -1
        while seen != self.flooding:
            seen = self.flooding
            await asyncio.sleep(0.2)


async def read_on(stream) -> None:
    """Read until the stream is cut off."""
    while True:
        await stream.read()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("answering", [False, True])
async def test_what_is_stuck_is_cut_off_once_nothing_else_is_answered(monkeypatch, engine, answering):
    if engine != GRPCIO:
        pytest.importorskip(NATIVE_MODULE)
    monkeypatch.setattr(open_streams, "STREAM_END_SECONDS_MAX", 0.05)
    server, servicer = make_server(Engine(engine, "")), Flooding()
    channels_pb2_grpc.add_ChannelServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = channels_pb2_grpc.ChannelServiceStub(channel)
        stream = stub.Subscribe(channels_pb2.SubscribeRequest(), timeout=SECONDS_MAX)
        await stream.read()
        await servicer.until_stuck()
        if answering:
            answer = asyncio.ensure_future(stub.Publish(channels_pb2.PublishRequest(), timeout=SECONDS_MAX))
            await servicer.answering.wait()
        stopping = asyncio.create_task(servicer.streams.stop(server, 600.0))
        if answering:
            await asyncio.sleep(0.5)
            assert not stopping.done()
            servicer.let_go.set()
            assert (await answer).subscriber_count == 7
        await asyncio.wait_for(stopping, SECONDS_MAX)
        with pytest.raises(grpc.RpcError):
            await read_on(stream)


@pytest.mark.parametrize("engine", ENGINES)
def test_many_subscribers_that_do_not_read_hold_up_neither_checkpoints_nor_the_end(tmp_path, engine):
    """More of them than threads that the event loop has by itself, each of which a stuck stream may hold."""
    arguments = ["--grpc-engine", engine, "--grace-seconds", "600"]
    count = min(32, os.cpu_count() + 4) + 2
    with (
        ServerProcess(tmp_path / "data", arguments=arguments) as process,
        connect(process.address) as api,
        contextlib.ExitStack() as stack,
    ):
        streams = []
        for _ in range(count):
            stuck = stack.enter_context(connect(process.address))
            request = channels_pb2.SubscribeRequest(channels=[b"c"])
            streams.append(channels_pb2_grpc.ChannelServiceStub(stuck.channel).Subscribe(request, timeout=SECONDS_MAX))
            next(streams[-1])
        stub = channels_pb2_grpc.ChannelServiceStub(api.channel)
        for _ in range(BLOCKS):
            stub.Publish(channels_pb2.PublishRequest(channel=b"c", messages=[BLOCK]), timeout=SECONDS_MAX)
        api.create("a", params(2, DOT))
        assert api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest()).sequence == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0
        for stream in streams:
            stream.cancel()


@pytest.mark.parametrize("engine", ENGINES)
def test_whoever_watches_the_health_does_not_hold_up_the_end(tmp_path, engine):
    arguments = ["--grpc-engine", engine, "--grace-seconds", "600"]
    with ServerProcess(tmp_path / "data", arguments=arguments) as process, connect(process.address) as api:
        watching = health_pb2_grpc.HealthStub(api.channel).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS_MAX)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0
        watching.cancel()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_ends_does_not_wait_for_a_subscriber_that_does_not_read(tmp_path, engine):
    arguments = ["--grpc-engine", engine, "--grace-seconds", "600"]
    with (
        ServerProcess(tmp_path / "data", arguments=arguments) as process,
        connect(process.address) as api,
        connect(process.address) as stuck,
    ):
        request = channels_pb2.SubscribeRequest(channels=[b"c"])
        stream = channels_pb2_grpc.ChannelServiceStub(stuck.channel).Subscribe(request, timeout=SECONDS_MAX)
        next(stream)
        stub = channels_pb2_grpc.ChannelServiceStub(api.channel)
        for _ in range(BLOCKS):
            stub.Publish(channels_pb2.PublishRequest(channel=b"c", messages=[BLOCK]), timeout=SECONDS_MAX)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0
        stream.cancel()
