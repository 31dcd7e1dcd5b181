"""The window of a stream: bounded in number and in bytes, answered from the oldest on; and work in slices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.support.api import packed, point
from vecmem import limits
from vecmem.errors import InvalidVectorError, RequestIdReusedError
from vecmem.server.calls import run_in_slices
from vecmem.server.stream_window import OutstandingBatch, StreamWindow
from vecmem.store.collection import Collection
from vecmem.store.configuration import complete_config
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import upsert_command
from vecmem.v1 import collections_pb2, common_pb2


def outstanding(size_bytes: int, request_id: str = "", fingerprint: int = 0) -> OutstandingBatch:
    return OutstandingBatch(1, size_bytes, request_id, fingerprint, asyncio.get_running_loop().create_future())


async def is_held_back(window: StreamWindow, size_bytes: int) -> bool:
    """Whether room is given only once the oldest batch is out; it is taken out."""
    waiting = asyncio.create_task(window.room(size_bytes))
    for _ in range(3):
        await asyncio.sleep(0)
    held_back = not waiting.done()
    window.remove_oldest()
    await waiting
    return held_back


async def test_the_window_is_bounded_in_number() -> None:
    window = StreamWindow(count_max=3, size_bytes_max=100)
    for _ in range(3):
        await window.room(1)
        window.add(outstanding(1))
    assert await is_held_back(window, 1)
    assert not await is_held_back(window, 1)


async def test_the_window_is_bounded_in_bytes_and_a_larger_batch_waits_alone() -> None:
    window = StreamWindow(count_max=10, size_bytes_max=100)
    await window.room(1_000)
    window.add(outstanding(60))
    await window.room(40)
    window.add(outstanding(40))
    assert await is_held_back(window, 60)
    assert await is_held_back(window, 1_000)
    await window.room(1_000)


async def test_batches_are_answered_from_the_oldest_on_until_the_end() -> None:
    window = StreamWindow()
    answering = asyncio.create_task(window.oldest())
    await asyncio.sleep(0)
    first, second = outstanding(1), outstanding(1)
    window.add(first)
    window.add(second)
    window.end()
    assert await answering is first
    window.remove_oldest()
    assert await window.oldest() is second
    window.remove_oldest()
    assert await window.oldest() is None


async def test_a_request_id_may_come_twice_with_the_same_content_only() -> None:
    window = StreamWindow()
    window.add(outstanding(1, "one", 11))
    window.add(outstanding(1))
    window.check_request_id(command_pb2.Command(request_id="one", request_fingerprint=11))
    window.check_request_id(command_pb2.Command(request_id="two", request_fingerprint=12))
    window.check_request_id(command_pb2.Command())
    with pytest.raises(RequestIdReusedError, match="another batch of this stream"):
        window.check_request_id(command_pb2.Command(request_id="one", request_fingerprint=12))


async def test_work_in_slices_lets_other_work_in() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def steps() -> Iterator[None]:
        for _ in range(10):
            time.sleep(0.003)
            yield

    running = asyncio.create_task(other())
    await run_in_slices(steps())
    running.cancel()
    assert turns >= 10


@pytest.mark.parametrize("bad", [None, 0, 4_321, limits.POINTS_PER_REQUEST_MAX - 1])
def test_the_check_of_a_large_upsert_can_be_left_at_every_point_and_names_the_bad_one(bad: int | None) -> None:
    vector = collections_pb2.VectorParams(dimension=2, metric=common_pb2.METRIC_COSINE)
    collection = Collection("c", 1, 1, complete_config(collections_pb2.CollectionConfig(vector=vector)))
    points = [point(f"p{i}", [1.0, float(i)]) for i in range(limits.POINTS_PER_REQUEST_MAX)]
    if bad is not None:
        points[bad].vector.CopyFrom(packed([0.0, 0.0]))
    command = command_pb2.UpsertPoints()
    steps = upsert_command(collection, points, command)
    for _ in points:
        next(steps)
    if bad is None:
        assert sum(1 for _ in steps) >= 100  # the vectors, in parts
        assert len(command.points) == len(points)
        assert len(command.vectors[0].rows) == 8 * len(points)
    else:
        with pytest.raises(InvalidVectorError) as raised:
            list(steps)
        assert raised.value.metadata["field"] == f"points[{bad}].vector"
