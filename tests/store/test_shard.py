"""A shard at work: checkpoints beside writes and searches, trimming, restarts, clocks, and writes that never show half."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.store.support import DIMENSION, create, drained, dump, hits_of, shard_at, upsert
from vecmem.clock import ManualClock
from vecmem.errors import CheckpointError, ShuttingDownError
from vecmem.log.checkpoints import CheckpointStore
from vecmem.store import checkpointing, sweeping
from vecmem.store import shard as shard_module
from vecmem.store.lanes import SearchLanes
from vecmem.store.search import compile_query
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.v1 import points_pb2

NUMBERS = [f"p{i:05d}" for i in range(3_000)]


async def find_all(shard: Shard, executor: ThreadPoolExecutor, limit: int = 10_000) -> list[points_pb2.Hit]:
    query = points_pb2.Query(collection="c", limit=limit)
    query.nearest.vector.dense.packed = np.zeros(DIMENSION, dtype="<f4").tobytes()
    _, outcomes = await SearchLanes(shard, executor, 2).run([compile_query(shard, query)], None)
    return hits_of(outcomes[0])


async def test_a_query_sees_each_write_wholly_or_not_at_all(tmp_path: Path) -> None:
    """Every write replaces all points by those of a new round; no query ever meets two rounds, or misses a point."""
    ids = NUMBERS[:1_200]
    rounds_seen = set()
    with ThreadPoolExecutor(2) as executor:
        async with shard_at(tmp_path / "data") as shard:
            await shard.write(create("c"))
            await shard.write(upsert(1, dict.fromkeys(ids, b'{"round":0}')))

            async def write() -> None:
                for number in range(1, 15):
                    await shard.write(upsert(1, dict.fromkeys(ids, b'{"round":%d}' % number), seed=number))

            writing = asyncio.create_task(write())
            while not writing.done():
                await asyncio.sleep(0)  # a quick search does not step back
                hits = await find_all(shard, executor)
                assert len(hits) == len(ids)
                payloads = {hit.point.payload_json for hit in hits}
                assert len(payloads) == 1
                assert len({hit.point.version for hit in hits}) == 1
                rounds_seen |= payloads
            await writing
    assert len(rounds_seen) > 2


async def test_searches_and_writes_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is held at its first step: until it is let go, everything else works; then its state is the old one."""
    gate, opened = os.pipe()
    write_image = checkpointing.image.write_image

    def held(*arguments: object) -> object:
        os.read(gate, 1)
        return write_image(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpointing.image, "write_image", held)
    with ThreadPoolExecutor(2) as executor:
        async with shard_at(tmp_path / "data") as shard:
            await shard.write(create("c"))
            await shard.write(upsert(1, dict.fromkeys(NUMBERS, b'{"n":1}')))
            before = dump(shard.state)
            checkpoint = asyncio.create_task(shard.checkpoint())
            while shard._forked is None:  # noqa: ASYNC110 - the fork is not announced
                await asyncio.sleep(0.001)
            for number in range(10):
                await shard.write(upsert(1, {f"new{number}": b""}, seed=number))
                assert len(await find_all(shard, executor)) == len(NUMBERS) + number + 1
            await drained(shard)  # graphs are built on as well
            assert not checkpoint.done()
            os.write(opened, b"x")
            report = await checkpoint
            assert (report.sequence, shard.checkpoint_sequence) == (2, 2)
            assert report.size_bytes > len(NUMBERS) * DIMENSION * 4
            after = dump(shard.state)
    os.close(gate)
    os.close(opened)
    async with shard_at(tmp_path / "data") as again:
        assert again.recovery.checkpoint_sequence == 2
        assert again.recovery.replayed_record_count == 10
        assert dump(again.state) == after != before


async def test_a_restart_takes_the_graph_from_the_checkpoint(tmp_path: Path) -> None:
    """Nothing is inserted again, and deletions stay deleted."""
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(NUMBERS, b"")))
        await drained(shard)
        await shard.write(upsert(1, dict.fromkeys(NUMBERS[:500], b""), seed=5))
        await drained(shard)
        await shard.checkpoint()
        await shard.write(upsert(1, {"tail": b""}, seed=9))
        was = shard.state.collections["c"].vectors[""].statistics()
    async with shard_at(tmp_path / "data") as again:
        now = again.state.collections["c"].vectors[""].statistics()
        assert again.recovery.replayed_record_count == 1
        assert now.graph_row_count == len(NUMBERS)
        assert now.tail_row_count == 1
        assert now.graph_deleted_row_count == was.graph_deleted_row_count == 500


async def test_a_graph_built_after_a_checkpoint_is_saved_by_the_next_though_nothing_was_written(tmp_path: Path) -> None:
    """The checkpoint came before the graph: without another one, every restart would build it again."""
    points = [f"p{i}" for i in range(3 * shard_module.CHECKPOINT_WORTH_ROWS)]
    async with shard_at(tmp_path / "data", checkpoint_idle_seconds=0.1) as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(points, b"")))
        await shard.checkpoint()
        await drained(shard)
        checkpoints = tmp_path / "data" / "checkpoints"
        while not list(checkpoints.glob("checkpoint-*-001")):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        assert shard.applied_sequence == 2
    async with shard_at(tmp_path / "data") as again:
        assert again.recovery.checkpoint_sequence == 2
        assert again.state.collections["c"].vectors[""].statistics().tail_row_count == 0


async def test_checkpoints_trim_the_log_to_the_older_of_the_two_that_stay(tmp_path: Path) -> None:
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        sequences, firsts = [], []
        for number in range(4):
            await shard.write(upsert(1, {f"p{number}": b""}, seed=number))
            sequences.append((await shard.checkpoint()).sequence)
            firsts.append(shard.log.first_sequence)
        assert sequences == [2, 3, 4, 5]
        assert firsts == [1, 3, 4, 5]
        names = [path.name for path in CheckpointStore(tmp_path / "data" / "checkpoints").list()]
        assert names == ["checkpoint-00000000000000000005", "checkpoint-00000000000000000004"]
        held = dump(shard.state)
    async with shard_at(tmp_path / "data") as again:
        assert dump(again.state) == held
        assert (await again.write(upsert(1, {"next": b""}))).sequence == 6


async def test_a_checkpoint_with_retention_keeps_the_log(tmp_path: Path) -> None:
    async with shard_at(tmp_path / "data", log_retention_bytes=2**40) as shard:
        await shard.write(create("c"))
        for number in range(3):
            await shard.write(upsert(1, {f"p{number}": b""}))
            await shard.checkpoint()
        assert shard.log.first_sequence == 1


async def test_a_caller_that_goes_away_neither_stops_a_checkpoint_nor_leaves_anything(tmp_path: Path) -> None:
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(NUMBERS, b"")))
        caller = asyncio.create_task(shard.checkpoint())
        while shard._forked is None:  # noqa: ASYNC110 - the fork is not announced
            await asyncio.sleep(0.001)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        async with shard._checkpointing:
            assert shard.checkpoint_sequence == 2
        assert [path.name[:4] for path in (tmp_path / "data" / "checkpoints").iterdir()] == ["chec"]


async def test_a_killed_child_fails_its_checkpoint_and_no_other(tmp_path: Path) -> None:
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        await shard.write(upsert(1, dict.fromkeys(NUMBERS, b"")))
        checkpoint = asyncio.create_task(shard.checkpoint())
        while shard._forked is None:  # noqa: ASYNC110 - the fork is not announced
            await asyncio.sleep(0.001)
        os.kill(shard._forked._pid, signal.SIGKILL)
        with pytest.raises(CheckpointError, match="ended with -9"):
            await checkpoint
        assert list((tmp_path / "data" / "checkpoints").iterdir()) == []
        await shard.write(upsert(1, {"more": b""}))
        assert (await shard.checkpoint()).sequence == 3


async def test_closing_ends_a_checkpoint_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for, leaves nothing behind, and the last one takes its place where it is wanted."""
    monkeypatch.setattr(checkpointing.image, "write_image", lambda *_: signal.pause())
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        checkpoint = asyncio.create_task(shard.checkpoint())
        while shard._forked is None:  # noqa: ASYNC110 - the fork is not announced
            await asyncio.sleep(0.001)
    with pytest.raises(CheckpointError):
        await checkpoint
    assert list((tmp_path / "data" / "checkpoints").iterdir()) == []
    with pytest.raises(ShuttingDownError):
        await shard.write(create("d"))
    monkeypatch.undo()
    async with shard_at(tmp_path / "data", checkpoint_on_exit=True) as again:
        assert list(again.state.collections) == ["c"]
    async with shard_at(tmp_path / "data") as third:
        assert (third.recovery.checkpoint_sequence, third.recovery.replayed_record_count) == (1, 0)


async def test_a_long_tail_found_at_the_start_is_worth_a_checkpoint(tmp_path: Path) -> None:
    """Else a server that dies again and again would replay more and more."""
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        for number in range(3):
            await shard.write(upsert(1, {f"p{number}": b'{"text":"' + b"x" * 500_000 + b'"}'}))
    async with shard_at(tmp_path / "data", checkpoint_idle_seconds=0.1) as again:
        while not again.checkpoint_sequence:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        assert again.checkpoint_sequence == 4


async def test_time_in_the_log_never_goes_back(tmp_path: Path) -> None:
    """Whatever the clock does, also between records that wait together."""
    clock = ManualClock()
    async with shard_at(tmp_path / "data", clock=clock) as shard:
        await shard.write(create("c"))
        writes = []
        for step in (5_000, -60_000, 1, -10, 7):
            clock.advance(step)
            writes.append(asyncio.ensure_future(shard.write(upsert(1, {"a": b""}))))
            await asyncio.sleep(0)
        await asyncio.gather(*writes)
        times = [command_pb2.Command.FromString(entry.record.payload).time_unix_ms for entry in shard.log.read(1)]
        assert times == sorted(times)
        assert times[-1] == times[1]
    async with shard_at(tmp_path / "data", clock=clock) as again:
        result = await again.write(upsert(1, {"a": b""}))
        assert result.updated_count == 1
        assert again.state.time_unix_ms == times[-1]


async def test_expired_points_are_deleted_by_a_record_even_after_the_queue_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "EXPIRY_SWEEP_SECONDS", 0.01)
    clock = ManualClock()
    async with shard_at(tmp_path / "data", clock=clock) as shard:
        await shard.write(create("c"))
        expires_at_unix_ms = clock.now_unix_ms() + 1_000
        await shard.write(upsert(1, {"a": b"", "b": b""}, expires_at_unix_ms=expires_at_unix_ms))
        await shard.write(upsert(1, {"c": b""}))
        commit = shard._commit
        real_bytes_max, commit._queue_bytes_max, commit._queue_bytes = commit._queue_bytes_max, 0, 1
        clock.advance(1_000)
        await asyncio.sleep(0.1)  # some sweeps meet the full queue
        assert len(shard.state.collections["c"].row_of) == 3
        commit._queue_bytes_max, commit._queue_bytes = real_bytes_max, 0
        while len(shard.state.collections["c"].row_of) > 1:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
        assert list(shard.state.collections["c"].row_of) == ["c"]
        assert shard.log.last_sequence == 4
