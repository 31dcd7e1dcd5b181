"""What is going on in a shard does not hold up what has nothing to do with it, and what fails is told and tried again."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store.support import DIMENSION, create, delete_ids, drained, hits_of, shard_at, upsert
from vecmem.clock import ManualClock
from vecmem.index.kernel import KernelIndex
from vecmem.store import lanes, sweeping
from vecmem.store import shard as shard_module
from vecmem.store.lanes import Answer, SearchLanes
from vecmem.store.search import CompiledQuery, compile_query
from vecmem.store.shard import Shard
from vecmem.store.v1.command_pb2 import Command
from vecmem.v1 import points_pb2

IDS = [f"p{i:05d}" for i in range(4_000)]


def nearest(shard: Shard, name: str) -> CompiledQuery:
    query = points_pb2.Query(collection=name, limit=1)
    query.nearest.vector.dense.packed = np.zeros(DIMENSION, dtype="<f4").tobytes()
    return compile_query(shard, query)


async def test_a_collection_that_changes_holds_up_its_own_reads_alone(tmp_path: Path) -> None:
    """While a large record is half applied to one collection, the other one is read at the position before."""
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("large"))
        await shard.write(create("small"))
        await shard.write(upsert(2, {"a": b"{}"}))
        large, small = shard.state.collections["large"], shard.state.collections["small"]
        before = shard.applied_sequence
        writing = asyncio.ensure_future(shard.write(upsert(1, dict.fromkeys(IDS, b"{}"))))
        while not large.changing:
            assert not writing.done(), "the record was applied in one step: nothing was tested"
            await asyncio.sleep(0)
        await shard.settled(small)
        assert (large.changing, shard.applied_sequence) == (True, before)
        assert small.find("a", shard.now_unix_ms()) is not None
        await shard.settled(large)
        assert (large.changing, len(large.row_of)) == (False, len(IDS))
        await writing


async def test_a_query_by_vector_does_not_wait_for_points_that_come_and_go(tmp_path: Path) -> None:
    """Half of them replaced, deleted or expired, it sees all as they were; what changes payloads in place it waits for."""

    async def ask(into: SearchLanes) -> tuple[int, set[bytes]]:
        query = points_pb2.Query(collection="c", limit=len(IDS))
        query.nearest.vector.dense.packed = np.zeros(DIMENSION, dtype="<f4").tobytes()
        sequence, outcomes = await into.run([compile_query(shard, query)], None)
        hits = hits_of(outcomes[0])
        assert len(hits) == len(IDS)
        return sequence, {hit.point.payload_json for hit in hits}

    async def begun(command: Command) -> asyncio.Future[Any]:
        writing = asyncio.ensure_future(shard.write(command))
        while not collection.changing:
            assert not writing.done(), "the record was applied in one step: nothing was tested"
            await asyncio.sleep(0)
        return writing

    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(IDS, b'{"round":0}')))
        collection = shard.state.collections["c"]
        with ThreadPoolExecutor(2) as executor:
            into = SearchLanes(shard, executor, 2)
            before = shard.applied_sequence
            writing = await begun(upsert(1, dict.fromkeys(IDS, b'{"round":1}')))
            assert await ask(into) == (before, {b'{"round":0}'})
            assert collection.changing
            await writing
            update = Command()
            update.update_payloads.collection_uid = 1
            update.update_payloads.ids.ids.extend(IDS)
            update.update_payloads.replace_json = b'{"round":2}'
            before = shard.applied_sequence
            writing = await begun(update)
            assert await ask(into) == (before + 1, {b'{"round":2}'})
            await writing
            before = shard.applied_sequence
            writing = await begun(delete_ids(1, IDS))
            assert await ask(into) == (before, {b'{"round":2}'})
            assert collection.changing
            await writing


async def test_a_failure_of_the_maintenance_is_told_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The tail is drained all the same, and the failure is forgotten when it is."""
    monkeypatch.setattr(shard_module, "BACKGROUND_RETRY_SECONDS", 0.3)
    maintain = KernelIndex.maintain
    failures = [MemoryError("none left")]

    def failing(self: KernelIndex, *, threads: int, slice_rows: int) -> bool:
        if failures:
            raise failures.pop()
        return maintain(self, threads=threads, slice_rows=slice_rows)

    monkeypatch.setattr(KernelIndex, "maintain", failing)
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(IDS[:500], b"{}")))
        while not shard.failures:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        assert shard.failures == {"maintain indexes": "MemoryError('none left')"}
        assert "background work failed: maintain indexes" in caplog.text
        await drained(shard)
        while shard.failures:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def test_a_batch_stops_when_its_caller_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is under way is searched to the end."""
    searched: list[int] = []
    release = threading.Event()
    search_index = lanes._search_index

    def held(index: Any, requests: list[Any], *rest: Any) -> Any:
        searched.append(len(requests))
        release.wait(60)
        return search_index(index, requests, *rest)

    monkeypatch.setattr(lanes, "_search_index", held)
    monkeypatch.setattr(SearchLanes, "_search_quickly", lambda *_: False)
    with ThreadPoolExecutor(2) as executor:
        async with shard_at(tmp_path / "data") as shard:
            await shard.write(create("c"))
            await shard.write(upsert(1, dict.fromkeys(IDS[:100], b"{}")))
            queries = [nearest(shard, "c") for _ in range(320)]
            batch = asyncio.ensure_future(SearchLanes(shard, executor, 2).run(queries, None))
            while not searched:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
            release.set()
            # The readers are gone as well, so that rows can be reused.
            await shard.write(delete_ids(1, IDS[:100]))
            while shard.state.collections["c"].rows.awaits_reclaim:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
    assert sum(searched) <= lanes.BATCH_QUERIES_MAX


async def test_a_large_batch_answers_each_query_in_its_place(tmp_path: Path) -> None:
    """Chunks run side by side; every query gets its own hits or its own error."""
    with ThreadPoolExecutor(2) as executor:
        async with shard_at(tmp_path / "data") as shard:
            await shard.write(create("c"))
            await shard.write(upsert(1, dict.fromkeys(IDS[:200], b"{}")))
            queries = []
            for number in range(100):
                query = points_pb2.Query(collection="c", limit=1)
                query.nearest.id = IDS[number] if number % 7 else "missing"
                queries.append(compile_query(shard, query))
            _, outcomes = await SearchLanes(shard, executor, 2).run(queries, None)
    assert [not isinstance(outcome, Answer) for outcome in outcomes] == [number % 7 == 0 for number in range(100)]
    found = [hits_of(outcome) if isinstance(outcome, Answer) else [] for outcome in outcomes]
    assert all(len(hits) == (number % 7 != 0) for number, hits in enumerate(found))
    assert all(hit.point.id != IDS[number] for number, hits in enumerate(found) for hit in hits)


async def test_reads_and_writes_go_by_one_time_though_the_clock_was_mended(tmp_path: Path) -> None:
    """A point that a read shows can be deleted; one that a record holds expired is not shown."""
    clock = ManualClock()
    async with shard_at(tmp_path / "data", clock=clock) as shard:
        await shard.write(create("c"))
        clock.advance(60_000)
        await shard.write(upsert(1, {"a": b"{}"}))
        clock.advance(-60_000)
        expires_at_unix_ms = clock.now_unix_ms() + 30_000
        await shard.write(upsert(1, {"b": b"{}"}, expires_at_unix_ms=expires_at_unix_ms))
        shown = shard.state.collections["c"].find("b", shard.now_unix_ms()) is not None
        result = await shard.write(delete_ids(1, ["b"]))
        assert result.deleted_count == shown == 0


async def test_more_points_than_a_slice_expire_in_one_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted by bounded records, one after the other."""
    monkeypatch.setattr(sweeping, "EXPIRY_SWEEP_SECONDS", 0.05)
    clock = ManualClock()
    async with shard_at(tmp_path / "data", clock=clock) as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(IDS[:2_500], b"{}"), expires_at_unix_ms=clock.now_unix_ms() + 1_000))
        before = shard.log.last_sequence
        clock.advance(2_000)
        while shard.state.collections["c"].row_of:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        assert shard.log.last_sequence - before == 3


async def test_filters_on_more_paths_than_columns_are_kept(tmp_path: Path) -> None:
    """One query may read more columns than are kept, and is answered right."""
    with ThreadPoolExecutor(1) as executor:
        async with shard_at(tmp_path / "data") as shard:
            await shard.write(create("c"))
            payloads = {f"p{number}": b'{"k%d":1}' % number for number in range(100)}
            await shard.write(upsert(1, payloads))
            query = points_pb2.Query(collection="c", limit=200)
            query.nearest.vector.dense.packed = np.zeros(DIMENSION, dtype="<f4").tobytes()
            for number in range(0, 100, 2):
                query.filter.any_of.filters.add().field.path = f"k{number}"
                query.filter.any_of.filters[-1].field.exists = True
            for number in range(1, 100, 2):
                query.filter.any_of.filters.add().field.path = f"k{number}"
                query.filter.any_of.filters[-1].field.match.integer = 2
            _, outcomes = await SearchLanes(shard, executor, 2).run([compile_query(shard, query)], None)
            assert {hit.point.id for hit in hits_of(outcomes[0])} == {f"p{number}" for number in range(0, 100, 2)}
