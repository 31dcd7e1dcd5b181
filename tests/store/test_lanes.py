"""Queries that meet in a lane are searched together; nobody is forgotten, starved, or searched for in vain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from tests.store.support import DIMENSION, create, hits_of, shard_at, upsert
from vecmem import limits
from vecmem.errors import DeadlineExceededError, OverloadedError, PointNotFoundError, VecmemError
from vecmem.store import lanes
from vecmem.store.lanes import Answer, SearchLanes
from vecmem.store.search import compile_query
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.v1 import points_pb2

IDS = [f"p{number:03d}" for number in range(200)]


class Gate:
    """Holds every native call until it is opened, and notes which collections were searched for how many queries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, int]] = []
        self.opened = threading.Event()
        search_index = lanes._search_index

        def held(index: Any, requests: list[Any], *rest: Any) -> Any:
            self.calls.append((index, len(requests)))
            self.opened.wait(60)
            return search_index(index, requests, *rest)

        monkeypatch.setattr(lanes, "_search_index", held)
        # No query is quick: all of them come past the gate.
        monkeypatch.setattr(SearchLanes, "_search_quickly", lambda *_: False)

    async def until(self, count: int) -> None:
        while len(self.calls) < count:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest_asyncio.fixture
async def shard(tmp_path: Path) -> AsyncIterator[Shard]:
    async with shard_at(tmp_path / "data") as made:
        for uid, name in enumerate(("a", "b"), 1):
            await made.write(create(name))
            await made.write(upsert(uid if uid == 1 else 3, dict.fromkeys(IDS, b'{"round":0}')))
        yield made


async def ask(
    into: SearchLanes, shard: Shard, name: str, deadline: float | None = None, payload: int | None = None
) -> list[str]:
    """Ids of the five nearest; raises the query's error."""
    query = points_pb2.Query(collection=name, limit=5)
    query.nearest.vector.dense.packed = np.zeros(DIMENSION, dtype="<f4").tobytes()
    if payload is not None:
        query.filter.field.path = "round"
        query.filter.field.match.integer = payload
    _, outcomes = await into.run([compile_query(shard, query)], deadline)
    return [hit.point.id for hit in hits_of(outcomes[0])]


def asked(*arguments: Any, **options: Any) -> asyncio.Task[list[str]]:
    return asyncio.ensure_future(ask(*arguments, **options))


async def test_queries_that_come_during_a_search_are_searched_together(
    shard: Shard, executor: Executor, gate: Gate
) -> None:
    """One goes at once, the thirty that come while it runs go in one call, each with its own answer."""
    into = SearchLanes(shard, executor, 1)
    first = asked(into, shard, "a")
    await gate.until(1)
    others = [asked(into, shard, "a") for _ in range(30)]
    await asyncio.sleep(0.02)
    gate.opened.set()
    answers = await asyncio.gather(first, *others)
    assert [count for _, count in gate.calls] == [1, 30]
    assert all(answer == answers[0] and len(answer) == 5 for answer in answers)


async def test_collections_take_turns(shard: Shard, executor: Executor, gate: Gate) -> None:
    """A query of one collection waits for one batch of another, not for all that is queued there."""
    into = SearchLanes(shard, executor, 1)
    crowd = [asked(into, shard, "a") for _ in range(4 * lanes.BATCH_QUERIES_MAX)]
    await gate.until(1)
    lone = asked(into, shard, "b")
    await asyncio.sleep(0.02)
    gate.opened.set()
    await asyncio.gather(lone, *crowd)
    order = [index for index, _ in gate.calls]
    assert order.index(shard.state.collections["b"].vectors[""]) == 1
    assert max(count for _, count in gate.calls) == lanes.BATCH_QUERIES_MAX


async def test_a_full_queue_refuses_and_goes_on(
    shard: Shard, executor: Executor, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries beyond the bound get OVERLOADED at once; those in the queue are answered, and later ones are taken again."""
    monkeypatch.setattr(limits, "SEARCH_QUEUE_MAX", 10)
    into = SearchLanes(shard, executor, 1)
    first = asked(into, shard, "a")
    await gate.until(1)
    waiting = [asked(into, shard, "a") for _ in range(10)]
    await asyncio.sleep(0)
    for name in ("a", "b"):
        with pytest.raises(OverloadedError, match="10 queries wait"):
            await ask(into, shard, name)
    gate.opened.set()
    assert all(len(answer) == 5 for answer in await asyncio.gather(first, *waiting))
    assert len(await ask(into, shard, "a")) == 5


async def test_what_nobody_waits_for_is_not_searched(shard: Shard, executor: Executor, gate: Gate) -> None:
    """Callers that went, and deadlines that passed in the queue, cost no search."""
    into = SearchLanes(shard, executor, 1)
    first = asked(into, shard, "a")
    await gate.until(1)
    gone = [asked(into, shard, "a") for _ in range(5)]
    late = [asked(into, shard, "a", deadline=time.monotonic() + 0.01) for _ in range(5)]
    wanted = asked(into, shard, "a", deadline=time.monotonic() + 60)
    await asyncio.sleep(0.05)
    for call in gone:
        call.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    assert len(await wanted) == 5
    for call in late:
        with pytest.raises(DeadlineExceededError):
            await call
    assert [count for _, count in gate.calls] == [1, 1]


async def test_a_failed_search_is_told_to_its_callers_alone(
    shard: Shard, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane is there for the next ones."""
    search_index = lanes._search_index
    failures = [MemoryError("none left")]

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return search_index(*arguments)

    monkeypatch.setattr(lanes, "_search_index", failing)
    monkeypatch.setattr(SearchLanes, "_search_quickly", lambda *_: False)
    into = SearchLanes(shard, executor, 1)
    with pytest.raises(MemoryError):
        await ask(into, shard, "a")
    assert len(await ask(into, shard, "a")) == 5


async def test_a_lone_quick_query_takes_no_thread(shard: Shard) -> None:
    """It is searched where it is; after it was, nothing of it is left."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    into = SearchLanes(shard, executor, 1)
    assert len(await ask(into, shard, "a")) == 5
    assert not into._lanes
    assert shard.state.collections["a"].rows.readers.all_ended_before(10**9)


async def test_a_small_burst_takes_no_thread_either(shard: Shard) -> None:
    """Each query of it gets its own answer or its own error."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    into = SearchLanes(shard, executor, 1)
    queries = []
    for nearest in (IDS[0], "missing", IDS[2]):
        query = points_pb2.Query(collection="a", limit=2)
        query.nearest.id = nearest
        queries.append(compile_query(shard, query))
    _, (first, missing, third) = await into.run(queries, None)
    assert isinstance(missing, PointNotFoundError)
    assert isinstance(first, Answer)
    assert isinstance(third, Answer)
    assert [len(answer.hits) for answer in (first, third)] == [2, 2]
    assert not into._lanes
    assert shard.state.collections["a"].rows.readers.all_ended_before(10**9)


async def test_a_query_that_a_write_overtakes_runs_again(shard: Shard, executor: Executor, gate: Gate) -> None:
    """The payloads of its hits change while it is searched: the answer is of the state after, and hits match the filter."""
    into = SearchLanes(shard, executor, 1)
    query = asked(into, shard, "a", payload=0)
    await gate.until(1)
    command = command_pb2.Command()
    command.update_payloads.collection_uid = 1
    command.update_payloads.ids.ids.extend(IDS[:195])
    command.update_payloads.replace_json = b'{"round":1}'
    await shard.write(command)
    gate.opened.set()
    assert sorted(await query) == IDS[195:]
    assert [count for _, count in gate.calls] == [1, 1]


async def test_a_large_call_lets_others_in_between(shard: Shard, executor: Executor, gate: Gate) -> None:
    """A batch of hundreds waits in the lanes part by part; every part answers in its place."""
    into = SearchLanes(shard, executor, 1)
    count = 3 * lanes.BATCH_QUERIES_MAX
    queries = []
    for number in range(count):
        query = points_pb2.Query(collection="a", limit=1)
        query.nearest.id = IDS[number] if number % 5 else "missing"
        queries.append(compile_query(shard, query))
    large = asyncio.ensure_future(into.run(queries, None))
    await gate.until(1)
    small = asked(into, shard, "a")
    await asyncio.sleep(0.02)
    gate.opened.set()
    await small
    assert not large.done() or len(gate.calls) == 4
    _, outcomes = await large
    assert [isinstance(outcome, VecmemError) for outcome in outcomes] == [number % 5 == 0 for number in range(count)]
    assert all(len(hits_of(outcome)) == 1 for outcome in outcomes if not isinstance(outcome, VecmemError))
