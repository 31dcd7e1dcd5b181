"""Publish and subscribe over a real server, on both engines."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.store.support import shard_at
from tests.support.api import connect, expect_refusal
from tests.support.server import ServerProcess
from vecmem.config import GRPC_ENGINES
from vecmem.v1 import channels_pb2, channels_pb2_grpc

SECONDS_MAX = 60.0
ENGINES = [engine for engine in GRPC_ENGINES if engine != "auto"]


class Listener:
    """An open subscription."""

    def __init__(self, channel, **request) -> None:
        stub = channels_pb2_grpc.ChannelServiceStub(channel)
        self.call = stub.Subscribe(channels_pb2.SubscribeRequest(**request), timeout=SECONDS_MAX)
        assert not next(self.call).messages

    def take(self, count: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        while len(found) < count:
            found += [(one.channel, one.message) for one in next(self.call).messages]
        assert len(found) == count
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call.cancel()


def publish(channel, name: bytes, *messages: bytes) -> int:
    stub = channels_pb2_grpc.ChannelServiceStub(channel)
    request = channels_pb2.PublishRequest(channel=name, messages=messages)
    return stub.Publish(request, timeout=SECONDS_MAX).subscriber_count


@pytest.fixture
def name(collection_name) -> bytes:
    """A channel that no other test uses."""
    return collection_name.encode()


@pytest.mark.one_shard(reason="messages of several shards are in no order")
def test_messages_reach_those_who_listen(api, name):
    with (
        Listener(api.channel, channels=[name]) as one,
        Listener(api.channel, patterns=[name + b"*", b"*" + name]) as several,
    ):
        assert publish(api.channel, name, b"1", b"2") == 2
        assert publish(api.channel, name + b".x", b"3") == 1
        assert publish(api.channel, b"x" + name + b"x", b"lost") == 0
        assert one.take(2) == [(name, b"1"), (name, b"2")]
        assert several.take(3) == [(name, b"1"), (name, b"2"), (name + b".x", b"3")]
        stub = channels_pb2_grpc.ChannelServiceStub(api.channel)
        listed = stub.ListChannels(channels_pb2.ListChannelsRequest(pattern=name + b"*"), timeout=SECONDS_MAX)
        assert [(found.channel, found.subscriber_count) for found in listed.channels] == [(name, 1)]
        assert listed.pattern_subscriber_count >= 1
        assert not listed.more


def test_heartbeats(api, name):
    with Listener(api.channel, channels=[name], heartbeat_ms=100) as listener:
        assert not next(listener.call).messages
        publish(api.channel, name, b"1")
        assert listener.take(1) == [(name, b"1")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slow_subscriber_is_told_and_nobody_else_notices(tmp_path, engine):
    with (
        ServerProcess(tmp_path / "data", arguments=["--grpc-engine", engine]) as process,
        connect(process.address) as api,
        connect(process.address) as slow,
    ):
        message = b"x" * 100_000
        with Listener(slow.channel, channels=[b"c"]) as lagging, Listener(api.channel, channels=[b"c"]) as quick:
            got = []
            for _ in range(400):
                got.append(publish(api.channel, b"c", message))
                assert quick.take(1) == [(b"c", message)]
            refusal = expect_refusal(lambda: lagging.take(401))
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER")
            missed_count = int(refusal.metadata["missed_count"])
            assert 0 < missed_count < 400
            assert got == [2] * (400 - missed_count) + [1] * missed_count


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_ends_does_not_wait_for_subscribers(tmp_path, engine):
    arguments = ["--grpc-engine", engine, "--grace-seconds", "600"]
    with ServerProcess(tmp_path / "data", arguments=arguments) as process:
        with connect(process.address) as api, Listener(api.channel, channels=[b"c"]) as listener:
            process.stop()
            refusal = expect_refusal(lambda: listener.take(1))
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        process.start()


@pytest.mark.parametrize("engine", ENGINES)
def test_subscribers_that_go_are_forgotten(tmp_path, engine):
    """However they go: cancelled, with their connection, or by their deadline."""
    with (
        ServerProcess(tmp_path / "data", arguments=["--grpc-engine", engine]) as process,
        connect(process.address) as api,
    ):
        with connect(process.address) as other, Listener(api.channel, channels=[b"c"]):
            Listener(other.channel, channels=[b"c"])
            stub = channels_pb2_grpc.ChannelServiceStub(api.channel)
            late = stub.Subscribe(channels_pb2.SubscribeRequest(channels=[b"c"]), timeout=0.5)
            with pytest.raises(grpc.RpcError):
                list(late)
        while publish(api.channel, b"c", b"m"):
            pass  # the test's timeout bounds it


async def test_many_subscribers(tmp_path):
    """Each of them gets everything, whatever the others do."""
    async with shard_at(tmp_path) as shard:
        listening = [
            shard.channels.subscribe([b"c%d" % (number % 10)], [b"c*"] if number % 3 == 0 else [])
            for number in range(500)
        ]
        for number in range(20):
            shard.channels.publish(b"c%d" % (number % 10), [b"m"])
            await asyncio.sleep(0)
        counts = [len(one.messages(10**6)) for one in listening]
        assert counts == [20 if number % 3 == 0 else 2 for number in range(500)]


@pytest.mark.parametrize(
    ("method", "request_", "reason", "field"),
    [
        ("Publish", channels_pb2.PublishRequest(messages=[b"m"]), "INVALID_KEY", "channel"),
        ("Publish", channels_pb2.PublishRequest(channel=bytes(1_025), messages=[b"m"]), "LIMIT_EXCEEDED", "channel"),
        ("Publish", channels_pb2.PublishRequest(channel=b"c"), "INVALID_ARGUMENT", "messages"),
        ("Publish", channels_pb2.PublishRequest(channel=b"c", messages=[b""] * 1_025), "LIMIT_EXCEEDED", "messages"),
        (
            "Publish",
            channels_pb2.PublishRequest(channel=b"c", messages=[b"", bytes(2**20 + 1)]),
            "LIMIT_EXCEEDED",
            "messages[1]",
        ),
        (
            "Publish",
            channels_pb2.PublishRequest(channel=b"c", messages=[bytes(2**20)] * 8 + [b"m"]),
            "LIMIT_EXCEEDED",
            "messages",
        ),
        ("Subscribe", channels_pb2.SubscribeRequest(), "INVALID_ARGUMENT", "channels"),
        ("Subscribe", channels_pb2.SubscribeRequest(channels=[b"c"] * 1_025), "LIMIT_EXCEEDED", "channels"),
        ("Subscribe", channels_pb2.SubscribeRequest(channels=[b"c", b""]), "INVALID_KEY", "channels[1]"),
        ("Subscribe", channels_pb2.SubscribeRequest(patterns=[bytes(1_025)]), "LIMIT_EXCEEDED", "patterns[0]"),
        ("Subscribe", channels_pb2.SubscribeRequest(patterns=[b"x" * 1_000] * 9), "LIMIT_EXCEEDED", "patterns"),
        ("ListChannels", channels_pb2.ListChannelsRequest(after=bytes(1_025)), "LIMIT_EXCEEDED", "after"),
        ("Subscribe", channels_pb2.SubscribeRequest(channels=[b"c"], heartbeat_ms=1), "INVALID_ARGUMENT", "heartbeat_ms"),
        ("ListChannels", channels_pb2.ListChannelsRequest(page_size=10_001), "LIMIT_EXCEEDED", "page_size"),
        ("ListChannels", channels_pb2.ListChannelsRequest(pattern=bytes(1_025)), "LIMIT_EXCEEDED", "pattern"),
    ],
)  # fmt: skip
def test_bad_requests(api, method, request_, reason, field):
    call = getattr(channels_pb2_grpc.ChannelServiceStub(api.channel), method)

    def attempt():
        answer = call(request_, timeout=SECONDS_MAX)
        return list(answer) if method == "Subscribe" else answer

    refusal = expect_refusal(attempt)
    assert (refusal.code, refusal.reason, refusal.field) == ("INVALID_ARGUMENT", reason, field)
