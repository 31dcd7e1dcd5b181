"""Group commit: batches form, order holds, answers come after durability and apply, and failures stop writes for good."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vecmem.errors import LimitExceededError, OverloadedError, ShuttingDownError, WritesStoppedError
from vecmem.log.applying import Applier
from vecmem.log.group_commit import GroupCommit, ThreadAppender
from vecmem.log.record import LogEntry, Record, frame_bytes
from vecmem.log.rocks import RocksLog


class GatedLog(RocksLog):
    """A RocksLog whose appends wait for a gate and are counted; `fail` makes the disk fail."""

    gate: threading.Event
    batches: list[int]
    fail: bool

    def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        self.batches.append(len(records))
        assert self.gate.wait(20)
        return super().append(records, after)

    def _make_durable(self) -> None:
        if self.fail:
            raise OSError(5, "Input/output error")
        super()._make_durable()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[GatedLog]:
    opened = GatedLog.open(tmp_path / "log")
    assert isinstance(opened, GatedLog)
    opened.gate, opened.batches, opened.fail = threading.Event(), [], False
    opened.gate.set()
    yield opened
    opened.gate.set()
    opened.close()


class State:
    """What was applied; each record's payload tells in how many slices."""

    def __init__(self) -> None:
        self.applied: list[LogEntry] = []
        self.companions: list[object] = []

    def apply(self, entry: LogEntry, companion: object) -> Generator[None, None, int]:
        self.companions.append(companion)
        for _ in range(entry.record.record_type - 1):
            yield
        self.applied.append(entry)
        return entry.sequence * 10


@asynccontextmanager
async def committing(
    log: RocksLog, apply: Callable[[LogEntry, Any], Generator[None, None, int]], **limits: int
) -> AsyncIterator[GroupCommit[int]]:
    applier = Applier(apply, log.last_sequence, log.running_crc)
    commit = GroupCommit(ThreadAppender(log), applier, **limits)
    try:
        yield commit
    finally:
        await commit.close()
        await applier.close()


def record(payload: bytes = b"x", slices: int = 1) -> Record:
    return Record(slices, payload)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the condition is set in another thread, which has no event to give
        await asyncio.sleep(0.001)


async def test_a_result_comes_when_the_record_is_durable_and_applied(log: GatedLog) -> None:
    state = State()
    async with committing(log, state.apply) as commit:
        assert await commit.submit(record(b"first")) == 10
        assert [entry.record.payload for entry in log.read(1)] == [b"first"]
        assert state.applied == list(log.read(1))
        assert (commit._applier.applied_sequence, commit._applier.applied_running_crc) == (1, log.running_crc)


async def test_a_companion_comes_with_its_record_and_is_not_in_the_log(log: GatedLog) -> None:
    state = State()
    companion = object()
    async with committing(log, state.apply) as commit:
        await asyncio.gather(
            commit.submit(record(b"0")), commit.submit(record(b"1"), companion), commit.submit(record(b"2"))
        )
    assert state.companions == [None, companion, None]
    assert [entry.record.payload for entry in log.read(1)] == [b"0", b"1", b"2"]


async def test_what_waits_together_is_one_batch_in_the_order_of_submission(log: GatedLog) -> None:
    state = State()
    log.gate.clear()
    async with committing(log, state.apply) as commit:
        first = commit.submit(record(b"0"))
        await until(lambda: len(log.batches) == 1)
        others = [commit.submit(record(b"%d" % n)) for n in range(1, 100)]
        assert not first.done()
        log.gate.set()
        assert await first == 10
        assert await asyncio.gather(*others) == [n * 10 for n in range(2, 101)]
    assert log.batches == [1, 99]
    assert [entry.record.payload for entry in state.applied] == [b"%d" % n for n in range(100)]


async def test_a_batch_is_closed_by_count_and_by_size(log: GatedLog) -> None:
    async with committing(log, State().apply, batch_records_max=4, batch_bytes_max=1_000) as commit:
        await asyncio.gather(*[commit.submit(record()) for _ in range(6)])
        await asyncio.gather(*[commit.submit(record(bytes(400))) for _ in range(3)])
        await asyncio.gather(*[commit.submit(record(bytes(5_000))) for _ in range(2)])
    assert log.batches == [4, 2, 2, 1, 1, 1]


async def test_answers_are_given_in_log_order(log: GatedLog) -> None:
    order: list[int] = []
    async with committing(log, State().apply) as commit:
        futures = [commit.submit(record(slices=1 + n % 3)) for n in range(50)]
        for future in futures:
            future.add_done_callback(lambda done: order.append(done.result()))
        await asyncio.gather(*futures)
    assert order == [n * 10 for n in range(1, 51)]


async def test_a_caller_cancelled_before_its_batch_is_taken_leaves_no_trace(log: GatedLog) -> None:
    state = State()
    log.gate.clear()
    async with committing(log, state.apply) as commit:
        taken = commit.submit(record(b"taken"))
        await until(lambda: len(log.batches) == 1)
        waiting = commit.submit(record(b"waiting"))
        kept = commit.submit(record(b"kept"))
        waiting.cancel()
        taken.cancel()
        log.gate.set()
        assert await kept == 20
        assert commit.queue_bytes == 0
    assert [entry.record.payload for entry in state.applied] == [b"taken", b"kept"]
    assert [entry.record.payload for entry in log.read(1)] == [b"taken", b"kept"]


async def test_a_record_too_large_for_the_log_is_refused_and_stops_nothing(
    log: GatedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RocksLog, "record_bytes_max", 1_000)
    async with committing(log, State().apply) as commit:
        with pytest.raises(LimitExceededError, match="over 1000"):
            commit.submit(record(bytes(977)))
        assert await commit.submit(record(bytes(976))) == 10


async def test_too_much_waiting_is_refused_and_taken_again_later(log: GatedLog) -> None:
    log.gate.clear()
    async with committing(log, State().apply, queue_bytes_max=1_000) as commit:
        first = commit.submit(record(bytes(900)))
        await until(lambda: len(log.batches) == 1)
        with pytest.raises(OverloadedError):
            commit.submit(record(bytes(900)))
        log.gate.set()
        assert await first == 10
        assert await commit.submit(record(bytes(5_000))) == 20  # over the limit by itself, but nothing else waits


async def test_those_who_wait_for_room_submit_in_their_order_and_are_never_refused(log: GatedLog) -> None:
    state = State()
    log.gate.clear()
    async with committing(log, state.apply, queue_bytes_max=1_000, batch_records_max=2) as commit:
        await commit.room(5_000)  # nothing else waits
        first = commit.submit(record(bytes(900)))

        async def write(number: int) -> int:
            await commit.room(frame_bytes(record(bytes([number]) * 400)))
            return await commit.submit(record(bytes([number]) * 400))

        waiting = [asyncio.create_task(write(number)) for number in range(20)]
        await until(lambda: len(log.batches) == 1)
        assert commit.queue_bytes < 1_000
        assert not any(task.done() for task in waiting)
        log.gate.set()
        assert await first == 10
        assert await asyncio.gather(*waiting) == [n * 10 for n in range(2, 22)]
        assert commit.queue_bytes == 0
    assert [entry.record.payload[0] for entry in state.applied[1:]] == list(range(20))


async def test_who_waits_for_room_when_writes_stop_is_told_why(log: GatedLog) -> None:
    log.gate.clear()
    log.fail = True
    async with committing(log, State().apply, queue_bytes_max=1_000) as commit:
        first = commit.submit(record(bytes(900)))
        waiting = asyncio.create_task(commit.room(900))
        await until(lambda: len(log.batches) == 1)
        assert not waiting.done()
        log.gate.set()
        await waiting
        with pytest.raises(WritesStoppedError, match="Input/output error"):
            commit.submit(record(bytes(900)))
        with pytest.raises(WritesStoppedError):
            await first


async def test_the_apply_of_a_batch_overlaps_the_append_of_the_next(log: GatedLog) -> None:
    """The second batch is being appended while the first one is still half applied."""
    overlapped = False

    def apply(entry: LogEntry, _: object) -> Generator[None, None, int]:
        nonlocal overlapped
        deadline = time.monotonic() + 20
        while entry.sequence == 1 and len(log.batches) < 2 and time.monotonic() < deadline:
            time.sleep(0.003)
            yield
        overlapped = overlapped or entry.sequence == 1
        return len(log.batches)

    async with committing(log, apply, batch_records_max=1) as commit:
        first, second = commit.submit(record()), commit.submit(record())
        assert await first == 2
        await second


async def test_a_long_apply_lets_the_loop_breathe_and_readers_wait_for_its_end(log: GatedLog) -> None:
    """Other tasks run between slices, see that the state is unsettled, and settled() returns at the record's end."""
    state = State()
    seen_unsettled = 0

    def apply(entry: LogEntry, _: object) -> Generator[None, None, int]:
        for _ in range(10):
            time.sleep(0.003)
            yield
        state.applied.append(entry)
        return 0

    async with committing(log, apply) as commit:
        assert commit._applier.is_settled
        futures = [commit.submit(record()) for _ in range(3)]
        while not futures[0].done():
            await asyncio.sleep(0)
            if not commit._applier.is_settled:
                seen_unsettled += 1
                await commit._applier.settled()
                assert commit._applier.is_settled
                assert len(state.applied) == commit._applier.applied_sequence
        await asyncio.gather(*futures)
    assert seen_unsettled >= 1


async def test_a_failed_append_stops_writes_but_not_reads(log: GatedLog) -> None:
    state = State()
    async with committing(log, state.apply) as commit:
        assert await commit.submit(record(b"good")) == 10
        log.gate.clear()
        log.fail = True
        taken = commit.submit(record(b"taken"))
        await until(lambda: len(log.batches) == 2)
        waiting = commit.submit(record(b"waiting"))
        log.gate.set()
        for future in (taken, waiting):
            with pytest.raises(WritesStoppedError, match="Input/output error"):
                await future
        log.fail = False
        with pytest.raises(WritesStoppedError):
            commit.submit(record(b"later"))
        assert "Input/output error" in commit.stopped_reason
        await commit._applier.settled()
        assert [entry.record.payload for entry in log.read(1)] == [b"good"]
        await commit.drain()
    assert [entry.record.payload for entry in state.applied] == [b"good"]


async def test_another_writer_stops_writes(log: GatedLog) -> None:
    async with committing(log, State().apply) as commit:
        log.gate.clear()
        future = commit.submit(record())
        await until(lambda: len(log.batches) == 1)
        RocksLog.append(log, [record(b"theirs")], 0)
        log.gate.set()
        with pytest.raises(WritesStoppedError):
            await future
    assert [entry.record.payload for entry in log.read(1)] == [b"theirs"]


async def test_records_that_were_not_applied_here_are_never_appended_behind(log: GatedLog) -> None:
    """Though the log knows of another writer's records, as one does that a follower reads on."""
    async with committing(log, State().apply) as commit:
        RocksLog.append(log, [record(b"theirs")], 0)
        assert log.last_sequence == 1
        with pytest.raises(WritesStoppedError):
            await commit.submit(record())
    assert [entry.record.payload for entry in log.read(1)] == [b"theirs"]


async def test_an_apply_that_raises_stops_everything_loudly(log: GatedLog, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the records behind it in its batch nor those being appended are applied, and every caller is told."""
    applied: list[int] = []

    def apply(entry: LogEntry, _: object) -> Generator[None, None, int]:
        yield
        if entry.sequence == 3:
            raise ZeroDivisionError("broken invariant")
        applied.append(entry.sequence)
        return entry.sequence

    async with committing(log, apply, batch_records_max=4) as commit:
        futures = [commit.submit(record()) for _ in range(12)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert results[:2] == [1, 2]
        assert all(isinstance(result, WritesStoppedError) for result in results[2:])
        assert applied == [1, 2]
        assert commit._applier.applied_sequence == 2
        assert not commit._applier.is_settled
        with pytest.raises(WritesStoppedError, match="broken invariant"):
            await commit._applier.settled()
        with pytest.raises(WritesStoppedError):
            commit.submit(record())
    assert "applying record 3 failed" in caplog.text


async def test_draining_answers_all_that_wait_and_refuses_the_rest(log: GatedLog) -> None:
    state = State()
    log.gate.clear()
    async with committing(log, state.apply, batch_records_max=3) as commit:
        futures = [commit.submit(record()) for _ in range(10)]
        draining = asyncio.create_task(commit.drain())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDownError):
            commit.submit(record())
        assert not draining.done()
        log.gate.set()
        await draining
        assert all(future.done() for future in futures)
    assert len(state.applied) == log.last_sequence == 10
