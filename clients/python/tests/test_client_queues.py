"""Queues through both clients: operations, the class, deliveries, and the example."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vecmem_client import (
    AsyncClient,
    AsyncQueue,
    Client,
    ClientClosedError,
    InvalidArgumentError,
    Queue,
    WrongTypeError,
    keys,
    queues,
    strings,
)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def name(collection_name: str) -> str:
    """A key that no other test uses."""
    return collection_name


def queue_of(client: Any, name: str, **options: Any) -> Any:
    """A queue with the asynchronous face, of either client."""
    if hasattr(client, "sync_client"):
        return type(client)(Queue(client.sync_client, name, **options))
    return AsyncQueue(client, name, **options)


async def received(queue: Any) -> Any:
    """The next message, when it is due."""
    async with asyncio.timeout(60):
        while not (found := await queue.receive()):  # noqa: ASYNC110  (it is due after a while)
            await asyncio.sleep(0.005)
    return found[0]


async def test_operations_build_and_parse(client, name):
    ids = await client.run(queues.enqueue(name, ["a", b"b"]))
    assert ids == sorted(ids)
    at = datetime.now(UTC) + timedelta(hours=1)
    [late] = await client.run(queues.enqueue(name, ["late"], due_at=at))
    got = await client.run(queues.receive(name, 9, visibility_timeout_seconds=60))
    assert [(message.id, message.body, message.delivery_count) for message in got.messages] == [
        (ids[0], b"a", 1),
        (ids[1], b"b", 1),
    ]
    assert got.messages[0].due_at - got.messages[0].enqueued_at >= timedelta(seconds=60)
    assert (got.dead_count, 0 < got.next_due_in_seconds <= 60) == (0, True)
    described = await client.run(queues.describe(name))
    assert (described.ready_count, described.delayed_count, described.in_flight_count) == (0, 1, 2)
    assert described.next_due_at == got.messages[0].due_at
    first, second = got.messages
    assert await client.run(queues.extend(name, [first], visibility_timeout_seconds=90)) == [True]
    assert await client.run(queues.release(name, [second], delay_seconds=70)) == [True]
    assert await client.run(queues.acknowledge(name, [first, second])) == [True, False]
    page = await client.run(queues.peek(name, page_size=1))
    rest = await client.run(queues.peek(name, page_token=page.next_page_token))
    assert [(message.id, message.state) for message in page.messages + rest.messages] == [
        (second.id, "delayed"),
        (late, "delayed"),
    ]
    assert abs(rest.messages[0].due_at - at) < timedelta(milliseconds=2)
    assert await client.run(queues.remove(name, [second.id, late, 5])) == 2
    assert await client.run(keys.describe(name)) is None
    empty = await client.run(queues.receive(name))
    assert (empty.messages, empty.next_due_in_seconds) == ([], None)


async def test_what_was_delivered_too_often_is_dead_until_it_is_redriven(client, name):
    queue = queue_of(client, name, max_deliveries=1)
    message_id = await queue.put("poison")
    [message] = await queue.receive()
    assert await queue.release(message)
    assert await queue.receive() == []
    [dead] = (await queue.peek("dead")).messages
    assert (dead.id, dead.state, dead.body) == (message_id, "dead", b"poison")
    assert (await queue.describe()).dead_count == 1
    assert (await client.run(keys.describe(name))).type == "delayed_queue"
    back = await queue.redrive()
    assert (back.redriven_count, back.dead_count) == (1, 0)
    [message] = await queue.receive()
    assert message.delivery_count == 1
    assert (await queue.redrive([message_id])).redriven_count == 0
    assert await queue.remove([message_id]) == 1
    assert not await queue.purge()


async def test_a_message_comes_again_unless_it_is_acknowledged(client, name):
    queue = queue_of(client, name, visibility_timeout_seconds=0.02)
    await queue.put_many(["a", "b"], delay_seconds=0.01)
    first = await received(queue)
    other = await received(queue)
    while other.body != first.body:
        assert await queue.acknowledge(other)
        other = await received(queue)
    assert other.delivery_count > first.delivery_count
    assert not await queue.acknowledge(first), "it had come to somebody else"
    assert await queue.extend(other, 60)
    assert await queue.receive() == []
    assert await queue.extend(other)
    assert await queue.acknowledge_many([other, first]) == [True, False]
    await queue.put("c")
    assert await queue.purge()


async def test_a_delay_beyond_what_a_datetime_says_is_told_all_the_same(client, name):
    await client.run(queues.enqueue(name, ["a"], delay_seconds=2**52 / 1e3))
    assert (await client.run(queues.describe(name))).next_due_at.year == 9999
    assert (await client.run(queues.peek(name, "delayed"))).messages[0].due_at.year == 9999


async def test_what_is_wrong_is_refused(client, name):
    with pytest.raises(ValueError, match="one of"):
        queues.enqueue(name, ["a"], delay_seconds=1, due_at=datetime.now(UTC))
    with pytest.raises(ValueError, match="time zone"):
        queues.enqueue(name, ["a"], due_at=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="above 0"):
        queue_of(client, name, visibility_timeout_seconds=0)
    with pytest.raises(InvalidArgumentError):
        await client.run(queues.enqueue(name, []))
    with pytest.raises(InvalidArgumentError):
        await client.run(queues.redrive(name, []))
    with pytest.raises(KeyError):
        queues.peek(name, "lost")
    await client.run(strings.set(name, "text"))
    with pytest.raises(WrongTypeError):
        await queue_of(client, name).put("a")


class FailingError(Exception):
    pass


def fail() -> None:
    raise FailingError


async def test_deliveries_are_acknowledged_or_released(server, name):
    async with AsyncClient(server.address) as client:
        queue = AsyncQueue(client, name, max_deliveries=2)
        await queue.put_many(["good", "bad", "better"])
        seen = []
        told = []
        async for delivery in queue.deliveries(prefetch=2, until_empty=True):
            try:
                async with delivery as message:
                    seen.append((message.body, message.delivery_count))
                    if message.body == b"bad":
                        fail()
            except FailingError:
                assert delivery.acknowledged is None
            else:
                told.append(delivery.acknowledged)
        assert sorted(seen) == [(b"bad", 1), (b"bad", 2), (b"better", 1), (b"good", 1)]
        assert told == [True, True]
        assert [message.body for message in (await queue.peek("dead")).messages] == [b"bad"]
        await queue.purge()
    queue = AsyncQueue(client, name)
    with pytest.raises(ClientClosedError):
        await queue.put("a")


async def test_a_delivery_that_came_too_late_says_so(server, name):
    async with AsyncClient(server.address) as client:
        queue = AsyncQueue(client, name, visibility_timeout_seconds=0.01)
        await queue.put("a")
        async for delivery in queue.deliveries():
            async with delivery:
                again = await received(queue)
            break
        assert delivery.acknowledged is False
        await queue.acknowledge(again)
        await queue.purge()


async def test_deliveries_wait_for_what_is_not_due_yet(server, name):
    async with AsyncClient(server.address) as client:
        queue = AsyncQueue(client, name)
        before = (await client.server_info()).log_last_sequence

        async def consume() -> bytes:
            async for delivery in queue.deliveries():
                async with delivery as message:
                    return message.body
            raise AssertionError("it goes on for ever")

        consumer = asyncio.create_task(consume())
        await asyncio.sleep(0.1)
        assert (await client.server_info()).log_last_sequence - before <= 1, (
            "an idle consumer reads, and writes nothing"
        )
        await queue.put("a", delay_seconds=0.02)
        assert await consumer == b"a"


def test_deliveries_of_the_sync_client(server, name):
    with Client(server.address) as client:
        queue = Queue(client, name)
        queue.put_many(["good", "bad"])
        queue.put("late", delay_seconds=0.05)
        seen = []
        for delivery in queue.deliveries():
            try:
                with delivery as message:
                    seen.append(message.body)
                    if seen == [b"good", b"bad"]:
                        fail()
            except FailingError:
                continue
            assert delivery.acknowledged
            if len(seen) == 4:
                break
        assert seen[:2] == [b"good", b"bad"]
        assert sorted(seen[2:]) == [b"bad", b"late"]
        assert list(queue.deliveries(until_empty=True)) == []
        assert client.run(keys.describe(name)) is None


def test_the_example_runs(server):
    command = [sys.executable, str(EXAMPLES / "delayed_queue.py"), server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert sorted(lines[:-1]) == [
        "failed: busy@example.com",
        "failed: nobody@example.com",
        "failed: nobody@example.com",
        "sent to ada@example.com",
        "sent to busy@example.com",
        "sent to later@example.com",
    ]
    assert lines[-1] == "given up after 2 deliveries: nobody@example.com"
