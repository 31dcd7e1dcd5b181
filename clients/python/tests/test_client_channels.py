"""Publish and subscribe with both clients over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from tests.support.tcp_proxy import Proxy
from vecmem_client import (
    AsyncClient,
    ChannelMessage,
    Client,
    LimitExceededError,
    RetryPolicy,
    SlowConsumerError,
    UnavailableError,
)

PUBLICATIONS_MAX = 500
"""Of 1 MB; whoever does not read is not kept waiting for by then."""


async def test_messages_reach_those_who_listen(server, collection_name):
    name = collection_name
    async with AsyncClient(server.address) as client:
        assert await client.publish(name, "lost") == 0
        async with client.subscribe(name) as one, client.subscribe(patterns=[name + "*"]) as several:
            assert await client.publish(name, "1", b"2") == 2
            assert await client.publish(name + ".x", "3") == 1
            assert [await anext(one) for _ in range(2)] == [
                ChannelMessage(name.encode(), b"1"),
                ChannelMessage(name.encode(), b"2"),
            ]
            pattern = name.encode() + b"*"
            assert [await anext(several) for _ in range(2)] == [
                ChannelMessage(name.encode(), b"1", pattern),
                ChannelMessage(name.encode(), b"2", pattern),
            ]
            assert (await anext(several)).message == b"3"
            assert await client.list_channels(name + "*") == {name.encode(): 1}
        assert [message async for message in one] == []
        with pytest.raises(LimitExceededError):
            await client.publish(name, bytes(2**20 + 1))
        with pytest.raises(TypeError):
            client.subscribe(patterns=name)


def test_the_synchronous_twin(server, collection_name):
    with Client(server.address) as client, client.subscribe(collection_name) as subscription:
        assert client.publish(collection_name, "a", "b") == 1
        assert next(subscription).message == b"a"
        assert next(subscription).message == b"b"
        ending = threading.Timer(0.2, subscription.close)
        ending.start()
        assert list(subscription) == []
        ending.join()
        assert client.list_channels(collection_name) == {}


@pytest.mark.parametrize("reconnect", [False, True])
async def test_a_lost_connection_is_told_or_mended(own_server, reconnect):
    retry = RetryPolicy(attempts_max=1_000, backoff_seconds_max=0.1)
    with contextlib.closing(Proxy(own_server.address)) as proxy:
        async with (
            AsyncClient(proxy.address, retry=retry) as client,
            AsyncClient(own_server.address) as publishing,
            client.subscribe("c", reconnect=reconnect, heartbeat_seconds=0.5) as subscription,
        ):
            await publishing.publish("c", "before")
            assert (await anext(subscription)).message == b"before"
            proxy.cut()
            if not reconnect:
                with pytest.raises(UnavailableError):
                    await anext(subscription)
                return
            coming = asyncio.create_task(anext(subscription))
            while not coming.done():
                await publishing.publish("c", "after")
                await asyncio.sleep(0.01)
            assert coming.result().message == b"after"
            assert subscription.gap_count == 1


async def test_who_is_too_slow_hears_of_it(server, collection_name):
    async with AsyncClient(server.address) as client, client.subscribe(collection_name) as subscription:
        # A cluster holds more for whoever does not read: the node that is asked has room of its own.
        for _ in range(PUBLICATIONS_MAX):
            if not await client.publish(collection_name, *[b"x" * 10_000] * 100):
                break

        async def read() -> None:
            async for _ in subscription:
                pass

        with pytest.raises(SlowConsumerError) as told:
            await read()
        assert int(told.value.metadata["missed_count"]) > 0
