"""Calls that wait for something to take, on a shard in this process: who is served, in which order, and what a repeat gets."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.store.support import shard_at
from vecmem.clock import ManualClock, SystemClock
from vecmem.errors import InvalidArgumentError, LimitExceededError, StreamGroupNotFoundError, WrongTypeError
from vecmem.server.keyspace_servicer import _Servicer
from vecmem.server.waiting import Lines
from vecmem.store.shard import Shard
from vecmem.v1 import keys_pb2, lists_pb2, locks_pb2, queues_pb2, sorted_sets_pb2, streams_pb2, strings_pb2

LEFT, RIGHT = lists_pb2.LIST_END_LEFT, lists_pb2.LIST_END_RIGHT
LONG_MS = 60_000


class Server:
    """What the servicers of one node share."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.lines = Lines()
        self.servicer = _Servicer(shard, self.lines)

    async def push(self, key: bytes, *items: bytes):
        request = lists_pb2.PushListItemsRequest(key=key, items=items, end=RIGHT)
        return await self.servicer.run("push_list_items", request)

    def pop(self, *keys: bytes, wait_ms: int = LONG_MS, request_id: str = "", count: int = 0):
        request = lists_pb2.PopListItemsRequest(keys=keys, end=LEFT, wait_ms=wait_ms, count=count)
        request.write.request_id = request_id
        return asyncio.create_task(self.servicer.run("pop_list_items", request))

    async def waiting(self, count: int) -> None:
        """Return when so many calls wait."""
        while len(self.shard.changes) != count:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)

    def at_rest(self) -> None:
        assert len(self.shard.changes) == 0
        assert len(self.lines) == 0


@pytest.fixture
async def server(tmp_path):
    async with shard_at(tmp_path) as shard:
        yield Server(shard)


async def test_those_who_wait_are_served_in_the_order_in_which_they_came(server):
    waiting = []
    for number in range(1, 6):
        waiting.append(server.pop(b"k"))
        await server.waiting(number)
    await server.push(b"k", b"a", b"b")
    await server.push(b"k", b"c")
    for task, item in zip(waiting[:3], [b"a", b"b", b"c"], strict=True):
        reply = await task
        assert list(reply.items) == [item]
        assert reply.key == b"k"
    assert not waiting[3].done()
    sequence = server.shard.applied_sequence
    await server.push(b"k", b"d", b"e", b"f")
    assert [(await task).items[0] for task in waiting[3:]] == [b"d", b"e"]
    # A push and two pops: nobody tried in vain.
    assert server.shard.applied_sequence == sequence + 3
    assert (await server.pop(b"k", wait_ms=0)).items == [b"f"]
    server.at_rest()


async def test_the_first_of_several_keys_that_has_something(server):
    both, other = server.pop(b"{k}1", b"{k}2"), server.pop(b"{k}2")
    await server.waiting(2)
    await server.push(b"{k}2", b"x", b"y")
    replies = [await both, await other]
    assert [(reply.key, list(reply.items)) for reply in replies] == [(b"{k}2", [b"x"]), (b"{k}2", [b"y"])]
    first = server.pop(b"{k}1")
    await server.waiting(1)
    second = server.pop(b"{k}1", b"{k}3")
    await server.waiting(2)
    await server.push(b"{k}3", b"z")
    # The one in front waits for another key, which has nothing.
    assert (await second).key == b"{k}3"
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    server.at_rest()


async def test_who_leaves_the_line_lets_the_next_one_in(server):
    gone, left = server.pop(b"k"), None
    await server.waiting(1)
    left = server.pop(b"k")
    await server.waiting(2)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await server.push(b"k", b"a")
    assert (await left).items == [b"a"]
    server.at_rest()


async def test_nothing_came_in_time(server):
    reply = await server.pop(b"k", wait_ms=1)
    assert not reply.items
    assert reply.header.position.sequence == server.shard.applied_sequence == 1
    server.at_rest()


async def test_a_repeat_gets_what_the_first_call_got(server):
    first = server.pop(b"k", request_id="a")
    await server.waiting(1)
    await server.push(b"k", b"1", b"2")
    assert (await first).items == [b"1"]
    assert (await server.pop(b"k", request_id="a")).items == [b"1"]
    assert (await server.pop(b"none", request_id="b", wait_ms=1)).items == []
    await server.push(b"none", b"3")
    assert (await server.pop(b"none", request_id="b", wait_ms=1)).items == []
    assert (await server.pop(b"none", wait_ms=1)).items == [b"3"]
    server.at_rest()


async def test_a_try_that_others_overtook_does_not_use_up_the_request_id(server):
    """The item is gone when the record of the try is applied: the call waits on, and takes the next one."""
    waiting = server.pop(b"k", request_id="a")
    await server.waiting(1)
    overtaking = asyncio.create_task(server.servicer.run("delete_keys", keys_pb2.DeleteKeysRequest(keys=[b"k"])))
    pushed = asyncio.create_task(server.push(b"k", b"1"))
    deleted = asyncio.create_task(server.servicer.run("delete_keys", keys_pb2.DeleteKeysRequest(keys=[b"k"])))
    await asyncio.gather(overtaking, pushed, deleted)
    if not waiting.done():
        await server.push(b"k", b"2")
    assert (await waiting).items[0] in (b"1", b"2")
    assert list((await server.pop(b"k", request_id="a")).items) == list(waiting.result().items)
    server.at_rest()


async def test_a_key_of_another_type_is_an_error_at_once_or_when_it_comes(server):
    await server.servicer.run("set_string", strings_pb2.SetStringRequest(key=b"s", value=b"1"))
    with pytest.raises(WrongTypeError):
        await server.pop(b"s")
    waiting = server.pop(b"{s}2")
    await server.waiting(1)
    await server.servicer.run("set_string", strings_pb2.SetStringRequest(key=b"{s}2", value=b"1"))
    with pytest.raises(WrongTypeError):
        await waiting
    server.at_rest()


async def test_moves_and_sorted_sets_wait_as_well(server):
    move = lists_pb2.MoveListItemRequest(
        key=b"{k}a", destination=b"{k}b", end=LEFT, destination_end=RIGHT, wait_ms=LONG_MS
    )
    moved = asyncio.create_task(server.servicer.run("move_list_item", move))
    pop = sorted_sets_pb2.PopSortedSetMembersRequest(
        key=b"{k}z", end=sorted_sets_pb2.SORTED_SET_END_LOWEST, wait_ms=LONG_MS
    )
    popped = asyncio.create_task(server.servicer.run("pop_sorted_set_members", pop))
    waiting_for_the_moved = server.pop(b"{k}b")
    await server.waiting(3)
    await server.push(b"{k}a", b"item")
    add = sorted_sets_pb2.AddSortedSetMembersRequest(key=b"{k}z")
    add.members.add(member=b"m", score=2.5)
    await server.servicer.run("add_sorted_set_members", add)
    assert (await moved).item == b"item"
    assert (await waiting_for_the_moved).items == [b"item"]
    [member] = (await popped).members
    assert (member.member, member.score) == (b"m", 2.5)
    server.at_rest()


async def test_an_hour_is_the_longest_wait(server):
    with pytest.raises(LimitExceededError) as refused:
        await server.pop(b"k", wait_ms=3_600_001)
    assert refused.value.metadata["field"] == "wait_ms"


async def test_every_item_goes_to_one_of_many_who_wait(tmp_path):
    values = random.Random(11)
    async with shard_at(tmp_path, clock=ManualClock()) as shard:
        server = Server(shard)
        keys = [b"{k}%d" % number for number in range(3)]
        taken: list[bytes] = []

        async def consume() -> None:
            while True:
                chosen = values.sample(keys, values.randint(1, 3))
                reply = await server.pop(*chosen, wait_ms=20, count=values.randint(1, 3))
                taken.extend(reply.items)
                if b"end" in reply.items:
                    return

        consumers = [asyncio.create_task(consume()) for _ in range(8)]
        pushed = []
        for number in range(200):
            items = [b"%d-%d" % (number, place) for place in range(values.randint(1, 4))]
            pushed += items
            await server.push(values.choice(keys), *items)
            if values.random() < 0.3:
                await asyncio.sleep(0)
        while len(taken) < len(pushed):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
        for consumer in consumers:
            consumer.cancel()
        await asyncio.gather(*consumers, return_exceptions=True)
        assert sorted(taken) == sorted(pushed)
        for _ in range(10):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_coro().__qualname__ == "_Servicer.run":
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        server.at_rest()


async def append(server, key, value=b"v"):
    request = streams_pb2.AppendStreamEntryRequest(key=key)
    request.fields.add(field=b"f", value=value)
    return await server.servicer.run("append_stream_entry", request)


def read_group(server, group, consumer, **rest):
    request = streams_pb2.ReadStreamGroupRequest(
        key=b"{k}s", group=group, consumer=consumer, count=1, wait_ms=LONG_MS, **rest
    )
    return asyncio.create_task(server.servicer.run("read_stream_group", request))


async def test_readers_of_streams_wait_all_and_consumers_of_a_group_in_turn(server):
    first = await append(server, b"{k}s")
    for group in (b"g", b"h"):
        request = streams_pb2.CreateStreamGroupRequest(key=b"{k}s", group=group, at_end=True)
        await server.servicer.run("create_stream_group", request)
    position = streams_pb2.StreamPosition(key=b"{k}s", after=first.id)
    read = streams_pb2.ReadStreamsRequest(positions=[position, {"key": b"{k}none"}], wait_ms=LONG_MS)
    readers = [asyncio.create_task(server.servicer.run("read_streams", read)) for _ in range(2)]
    await server.waiting(2)
    consumers = []
    for number, group in enumerate([b"g", b"g", b"h"], start=1):
        consumers.append(read_group(server, group, b"c%d" % number))
        await server.waiting(2 + number)
    second = await append(server, b"{k}s")
    for reader in readers:
        reply = await reader
        assert [len(found.entries) for found in reply.streams] == [1, 0]
        assert reply.streams[0].entries[0].id == second.id
    # One of each group: groups do not take from each other.
    assert [(await consumers[place]).entries[0].id for place in (0, 2)] == [second.id, second.id]
    assert not consumers[1].done()
    third = await append(server, b"{k}s")
    assert (await consumers[1]).entries[0].id == third.id
    with pytest.raises(StreamGroupNotFoundError):
        await read_group(server, b"none", b"c")
    with pytest.raises(InvalidArgumentError) as refused:
        await read_group(server, b"g", b"c", pending_after=streams_pb2.StreamId())
    assert refused.value.metadata["field"] == "wait_ms"
    server.at_rest()


async def test_a_group_that_is_deleted_ends_the_wait(server):
    await append(server, b"{k}s")
    create = streams_pb2.CreateStreamGroupRequest(key=b"{k}s", group=b"g", at_end=True)
    await server.servicer.run("create_stream_group", create)
    waiting = read_group(server, b"g", b"c")
    await server.waiting(1)
    delete = streams_pb2.DeleteStreamGroupRequest(key=b"{k}s", group=b"g")
    await server.servicer.run("delete_stream_group", delete)
    with pytest.raises(StreamGroupNotFoundError):
        await waiting
    server.at_rest()


async def test_messages_are_waited_for_until_they_are_due(tmp_path):
    async with shard_at(tmp_path, clock=SystemClock()) as shard:
        server = Server(shard)

        def receive(**rest):
            request = queues_pb2.ReceiveMessagesRequest(
                key=b"q", visibility_timeout_ms=LONG_MS, wait_ms=LONG_MS, **rest
            )
            return asyncio.create_task(server.servicer.run("receive_messages", request))

        async def enqueue(body, delay_ms=0):
            request = queues_pb2.EnqueueMessagesRequest(key=b"q", messages=[{"body": body, "delay_ms": delay_ms}])
            await server.servicer.run("enqueue_messages", request)

        first = receive()
        await server.waiting(1)
        second = receive()
        await server.waiting(2)
        await enqueue(b"later", delay_ms=30)
        await enqueue(b"now")
        assert [message.body for message in (await first).messages] == [b"now"]
        assert not second.done()
        # Nothing is written when it becomes due: time alone brings it.
        assert [message.body for message in (await second).messages] == [b"later"]
        # Four records for all of it: nobody tried in vain.
        assert shard.applied_sequence == 4
        server.at_rest()


async def test_locks_go_to_those_who_wait_in_turn_or_when_the_lease_ends(tmp_path):
    async with shard_at(tmp_path, clock=SystemClock()) as shard:
        server = Server(shard)

        def acquire(owner, lease_ms=LONG_MS, wait_ms=LONG_MS):
            request = locks_pb2.AcquireLockRequest(key=b"l", owner=owner, lease_ms=lease_ms, wait_ms=wait_ms)
            return asyncio.create_task(server.servicer.run("acquire_lock", request))

        async def release(owner, token):
            request = locks_pb2.ReleaseLockRequest(key=b"l", owner=owner, fencing_token=token)
            assert (await server.servicer.run("release_lock", request)).released

        first = await acquire(b"a")
        waiting = []
        for number, owner in enumerate([b"b", b"c", b"d"], start=1):
            waiting.append(acquire(owner, lease_ms=30 if owner == b"c" else LONG_MS))
            await server.waiting(number)
        sequence = shard.applied_sequence
        await release(b"a", first.fencing_token)
        second = await waiting[0]
        assert second.acquired
        await release(b"b", second.fencing_token)
        third = await waiting[1]
        # Nobody gives this one back: its lease ends.
        fourth = await waiting[2]
        tokens = [reply.fencing_token for reply in (first, second, third, fourth)]
        assert tokens == sorted(set(tokens))
        # Two releases, three acquisitions, perhaps the sweep of the lease that ended: nobody tried in vain.
        assert shard.applied_sequence - sequence in (5, 6)
        refused = await acquire(b"e", wait_ms=1)
        assert (refused.acquired, refused.holder.owner) == (False, b"d")
        server.at_rest()


async def test_who_moves_to_a_list_is_in_nobodys_way_there(server):
    move = lists_pb2.MoveListItemRequest(
        key=b"{q}a", destination=b"{q}b", end=LEFT, destination_end=RIGHT, wait_ms=LONG_MS
    )
    moving = asyncio.create_task(server.servicer.run("move_list_item", move))
    await server.waiting(1)
    popping = server.pop(b"{q}b")
    await server.waiting(2)
    await server.push(b"{q}b", b"item")
    assert (await popping).items == [b"item"]
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)
    server.at_rest()


async def test_a_repeat_that_waits_beside_the_first_call_gets_its_result(server):
    first = server.pop(b"k", request_id="a")
    await server.waiting(1)
    repeat = server.pop(b"k", request_id="a")
    await server.waiting(2)
    await server.push(b"k", b"1", b"2")
    assert (await first).items == (await repeat).items == [b"1"]
    assert (await server.pop(b"k", wait_ms=0)).items == [b"2"]
    server.at_rest()


async def test_the_holder_of_a_lock_prolongs_it_whoever_waits(server):
    def acquire(owner):
        request = locks_pb2.AcquireLockRequest(key=b"l", owner=owner, lease_ms=LONG_MS, wait_ms=LONG_MS)
        return asyncio.create_task(server.servicer.run("acquire_lock", request))

    held = await acquire(b"a")
    waiting = acquire(b"b")
    await server.waiting(1)
    again = await acquire(b"a")
    assert again.fencing_token == held.fencing_token
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    server.at_rest()
