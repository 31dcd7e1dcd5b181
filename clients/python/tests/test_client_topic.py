"""Topics with both clients over a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from vecmem_client import AsyncClient, AsyncTopic, Client, Topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def client(server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address) as made:
        yield made


@pytest.fixture
def topic(client, collection_name) -> AsyncTopic:
    return AsyncTopic(client, collection_name)


async def bodies_of(messages: AsyncIterator[Any]) -> list[bytes]:
    return [message.body async for message in messages]


async def fail(delivery: Any) -> None:
    async with delivery:
        raise RuntimeError


async def test_readers_get_everything_and_what_comes_later(topic):
    start = await topic.end()
    ids = [await topic.publish("a", {"h": "1"}), *await topic.publish_many(["b", "c"])]
    assert ids == sorted(ids)
    assert await bodies_of(topic.messages(until_end=True)) == [b"a", b"b", b"c"]
    assert await bodies_of(topic.messages(ids[0], until_end=True)) == [b"b", b"c"]
    reader = topic.messages(start)
    first = await anext(reader)
    assert (first.id, first.body, first.headers, first.delivery_count) == (ids[0], b"a", {b"h": b"1"}, 0)
    assert [(await anext(reader)).body for _ in range(2)] == [b"b", b"c"]
    coming = asyncio.create_task(anext(reader))
    await topic.publish("d")
    assert (await coming).body == b"d"
    assert await topic.end() > ids[-1]


async def test_the_consumers_of_a_group_share_and_what_fails_comes_again(topic):
    await topic.publish_many([str(number) for number in range(6)])
    ada, bob = topic.consume("g", "ada"), topic.consume("g", "bob")
    async with await anext(ada) as message:
        assert (message.body, message.delivery_count) == (b"0", 1)
    failing = await anext(bob)
    assert failing.message.body == b"1"
    with pytest.raises(RuntimeError):
        await fail(failing)
    assert failing.acknowledged is None
    # Bob begins anew, and has it again; then what is new.
    seen = []
    async for delivery in topic.consume("g", "bob", until_empty=True, prefetch=2):
        async with delivery as message:
            seen.append((message.body, message.delivery_count))
        assert delivery.acknowledged
    assert seen == [(b"1", 2), (b"2", 1), (b"3", 1), (b"4", 1), (b"5", 1)]
    assert [delivery async for delivery in topic.consume("g", "ada", until_empty=True)] == []
    assert await bodies_of(topic.messages(until_end=True)) == [b"%d" % number for number in range(6)]


async def test_what_a_consumer_that_died_had_comes_to_another_one(topic):
    await topic.publish("x")
    lost = await anext(topic.consume("g", "dead"))
    assert lost.message.body == b"x"
    patient = topic.consume("g", "living", claim_idle_seconds=1000, until_empty=True)
    assert [delivery async for delivery in patient] == []
    claiming = topic.consume("g", "living", claim_idle_seconds=0.01)
    await asyncio.sleep(0.02)
    async with await anext(claiming) as message:
        assert (message.body, message.delivery_count) == (b"x", 2)
    assert not await topic.acknowledge("g", lost.message)


async def test_a_consumer_waits_for_what_is_published(topic):
    waiting = asyncio.create_task(anext(topic.consume("g", "c")))
    while not waiting.done():
        await topic.publish("late")
        await asyncio.sleep(0.01)
    assert waiting.result().message.body == b"late"


async def test_a_topic_is_trimmed(client, collection_name):
    topic = AsyncTopic(client, collection_name, max_length=3)
    await topic.publish_many([str(number) for number in range(10)])
    assert await bodies_of(topic.messages(until_end=True)) == [b"7", b"8", b"9"]
    with pytest.raises(ValueError, match="body"):
        await topic.publish("x", {"body": "y"})


def test_the_synchronous_twin(server, collection_name):
    with Client(server.address) as client:
        topic = Topic(client, collection_name)
        topic.publish("a")
        assert [message.body for message in topic.messages(until_end=True)] == [b"a"]
        for delivery in topic.consume("g", "c", until_empty=True):
            with delivery as message:
                assert message.body == b"a"
            assert delivery.acknowledged
