"""A leading node's log: what decides is JetStream, and the copy beside it comes behind, in order and whole."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.support import create, settings_for, upsert
from tests.support.nats import settings_for as log_settings_for
from vecmem.clock import ManualClock
from vecmem.cluster.nats_server import NatsServers
from vecmem.cluster.replicated_log import ReplicatedLog
from vecmem.errors import CheckpointError, WritesStoppedError
from vecmem.log.jetstream import JetStreamLog
from vecmem.log.record import LogEntry, Record
from vecmem.log.rocks import RocksLog
from vecmem.store.recovery import recover
from vecmem.store.shard import Shard


class HeldUp:
    """A copy whose disk is slow for as long as a test wants, or fails."""

    def __init__(self, copy: RocksLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = threading.Event()
        self.fails = False
        append = copy.append

        def slow(records: Sequence[Record], after: int) -> list[LogEntry]:
            self.goes_on.wait()
            if self.fails:
                raise copy._stop("a write", OSError("no space left"))
            return append(records, after)

        monkeypatch.setattr(copy, "append", slow)


@contextmanager
def log_at(nats_server: NatsServers) -> Iterator[JetStreamLog]:
    log = JetStreamLog.open(log_settings_for(nats_server), create=True)
    try:
        yield log
    finally:
        log.close()


async def test_an_append_does_not_wait_for_the_copy_which_becomes_the_same(
    nats_server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RocksLog.open(tmp_path / "copy")
    held = HeldUp(copy, monkeypatch)
    with log_at(nats_server) as log:
        replicated = ReplicatedLog(log, copy)
        for number in range(5):
            await replicated.append([Record(1, b"%d" % number), Record(1, b"and another")], 2 * number)
        assert (log.last_sequence, copy.last_sequence) == (10, 0)
        held.goes_on.set()
        await replicated.close()
        assert copy.last_sequence == 10
        assert copy.running_crc == log.running_crc
        assert list(copy.read(1)) == list(log.read(1))
    copy.close()


async def test_where_the_copy_has_failed_nothing_more_is_appended(
    nats_server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RocksLog.open(tmp_path / "copy")
    held = HeldUp(copy, monkeypatch)
    with log_at(nats_server) as log:
        replicated = ReplicatedLog(log, copy)
        await replicated.append([Record(1, b"in the log")], 0)
        held.fails = True
        held.goes_on.set()
        await replicated.close()
        with pytest.raises(WritesStoppedError, match="no space left"):
            await replicated.append([Record(1, b"not in the log")], 1)
        assert [entry.record.payload for entry in log.read(1)] == [b"in the log"]
    copy.close()


async def test_nobody_waits_for_a_copy_that_fails_in_whatever_way(
    nats_server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RocksLog.open(tmp_path / "copy")
    monkeypatch.setattr("vecmem.cluster.replicated_log.PENDING_BATCHES_MAX", 1)
    goes_on = threading.Event()

    def broken(records: Sequence[Record], after: int) -> list[LogEntry]:
        goes_on.wait()
        raise RuntimeError("a defect")

    monkeypatch.setattr(copy, "append", broken)
    with log_at(nats_server) as log:
        replicated = ReplicatedLog(log, copy)
        await replicated.append([Record(1, b"fails")], 0)
        more = asyncio.create_task(replicated.append([Record(1, b"fills the queue")], 1))
        last = asyncio.create_task(_behind(more, replicated))
        while log.last_sequence < 3:  # noqa: ASYNC110 - the log tells nobody
            await asyncio.sleep(0.001)
        goes_on.set()
        await last
        with pytest.raises(WritesStoppedError, match="a defect"):
            await replicated.append([Record(1, b"not in the log")], 3)
        await replicated.close()
    copy.close()


async def _behind(before: asyncio.Task[list[LogEntry]], replicated: ReplicatedLog) -> None:
    await before
    await replicated.append([Record(1, b"waits for room")], 2)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_checkpoint_is_never_ahead_of_the_copy(
    nats_server: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    settings = replace(settings_for(tmp_path), checkpoint_on_exit=False)
    shard = Shard(recover(settings.data_dir), settings, ManualClock(), leads=False)
    held = HeldUp(shard.log, monkeypatch)
    with log_at(nats_server) as log:
        shard.lead(ReplicatedLog(log, shard.log), math.inf)
        await shard.write(create("c"))
        await shard.write(upsert(1, {"a": b""}))
        assert (shard.applied_sequence, shard.log.last_sequence) == (2, 0)
        checkpoint = asyncio.create_task(shard.checkpoint())
        while shard._forked is None:  # noqa: ASYNC110 - the fork is not announced
            await asyncio.sleep(0.001)
        # Longer than the child takes for two records.
        await asyncio.wait([checkpoint], timeout=1.0)
        assert not checkpoint.done()
        assert shard.checkpoint_sequence == 0
        held.fails = fails
        held.goes_on.set()
        if fails:
            with pytest.raises((WritesStoppedError, CheckpointError)):
                await checkpoint
        else:
            await checkpoint
        assert shard.checkpoint_sequence == (0 if fails else 2)
        await shard.stop_leading()
        await shard.close()
