"""Group commit: records that wait together become durable together, and then are applied in log order.

    submit --> queue --> append in a thread (one batch at a time) --> apply on the event loop --> the caller's result

While one batch is being made durable the next one gathers, and a durable batch is applied while the next is being made
durable. What it promises:

- Records get their sequences in the order of the submit calls, and are applied and answered in that order.
- A result is given only when its record is durable and applied.
- A caller cancelled before its batch is taken leaves no trace; after that its record is appended and applied regardless.
- When an append or an apply fails, nothing further is written: those waiting and those to come get WritesStoppedError.
- Applying holds the event loop for about SLICE_SECONDS at most, provided that no single step of `apply` is longer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from vecmem import limits
from vecmem.errors import LimitExceededError, OverloadedError, ShuttingDownError, WritesStoppedError
from vecmem.log.record import LogEntry, Record, frame_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from vecmem.log.transaction_log import TransactionLog

R = TypeVar("R")
SLICE_SECONDS: Final = 0.001
_logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[R]):
    record: Record
    size_bytes: int
    result: asyncio.Future[R]
    companion: Any


class GroupCommit(Generic[R]):
    """The only writer of a log. Made, used and closed on one event loop; only the append runs in a thread of its own."""

    def __init__(
        self,
        log: TransactionLog,
        apply: Callable[[LogEntry, Any], Generator[None, None, R]],
        *,
        queue_bytes_max: int = limits.COMMIT_QUEUE_BYTES_MAX,
        batch_bytes_max: int = limits.COMMIT_BATCH_BYTES_MAX,
        batch_records_max: int = limits.COMMIT_BATCH_RECORDS_MAX,
    ) -> None:
        """Begin behind the log's last record, which the state must reflect already. Needs a running event loop.

        Args:
            log: where records become durable; nobody else may append to it.
            apply: applies one entry to the state, given its companion; each step of the generator is one slice, its return value
                the result.
            queue_bytes_max: size of the records that may wait for durability, frames included.
            batch_bytes_max: a batch is closed at this size; a single larger record is a batch of its own.
            batch_records_max: a batch is closed at this count.
        """
        self._log = log
        self._apply = apply
        self._queue_bytes_max = queue_bytes_max
        self._batch_bytes_max = batch_bytes_max
        self._batch_records_max = batch_records_max
        self._queue: deque[_Waiting[R]] = deque()
        self._queue_bytes = 0
        self._arrived = asyncio.Event()
        # One durable batch may wait for its apply: enough for the overlap, and a bound on what is ahead of the state.
        self._durable: asyncio.Queue[list[tuple[LogEntry, _Waiting[R]]]] = asyncio.Queue(maxsize=1)
        self._appended_sequence = log.last_sequence
        self._applied_sequence = log.last_sequence
        self._applied_running_crc = log.running_crc
        self._unfinished = 0
        self._idle: list[asyncio.Future[None]] = []
        self._settling: list[asyncio.Future[None]] = []
        self._wanting_room: list[asyncio.Future[None]] = []
        self._half_applied = False
        self._apply_failed = False
        self._draining = False
        self._stopped_reason = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vecmem-append")
        self._tasks = [
            asyncio.create_task(self._append_batches(), name="group commit: append"),
            asyncio.create_task(self._apply_batches(), name="group commit: apply"),
        ]

    @property
    def applied_sequence(self) -> int:
        """Sequence of the last record that the state reflects wholly."""
        return self._applied_sequence

    @property
    def applied_running_crc(self) -> int:
        """Running CRC32C of the log at applied_sequence."""
        return self._applied_running_crc

    @property
    def stopped_reason(self) -> str:
        """Why writes have stopped; empty: they have not."""
        return self._stopped_reason

    @property
    def queue_bytes(self) -> int:
        """Size of the records that wait for durability."""
        return self._queue_bytes

    @property
    def is_settled(self) -> bool:
        """Whether no record is half applied, so that the state may be read until the next await."""
        return not self._half_applied

    def submit(self, record: Record, companion: Any = None) -> asyncio.Future[R]:
        """Queue a record, at once and in the order of the calls. Await the future for the result of its apply.

        Whatever its companion is, it is given to `apply` beside the entry, and is not in the log.

        Raises (here, or out of the future if it happens later):
            LimitExceededError: the log takes no record so large.
            OverloadedError: too much waits already.
            ShuttingDownError: the queue drains.
            WritesStoppedError: an append or an apply failed. Out of the future: whether the record is in the log will
                be known after a restart.
        """
        if self._stopped_reason:
            raise WritesStoppedError(f"writes have stopped: {self._stopped_reason}")
        if self._draining:
            raise ShuttingDownError("the server drains and takes no more writes")
        size_bytes = frame_bytes(record)
        if size_bytes > self._log.record_bytes_max:
            raise LimitExceededError(
                f"the request makes a log record of {size_bytes} bytes, which is over {self._log.record_bytes_max}"
            )
        if self._queue_bytes and self._queue_bytes + size_bytes > self._queue_bytes_max:
            raise OverloadedError(
                f"{self._queue_bytes} bytes wait for durability; {size_bytes} more are over {self._queue_bytes_max}"
            )
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(record, size_bytes, result, companion))
        self._queue_bytes += size_bytes
        self._unfinished += 1
        self._arrived.set()
        return result

    async def room(self, size_bytes: int) -> None:
        """Return when a record of at most this size, frame included, may be submitted without waiting in between.

        Callers are let in in the order of their calls, but for smaller records that fit where a larger one does not.
        Returns as well when writes have stopped: `submit` then tells why.
        """
        while self._queue_bytes and self._queue_bytes + size_bytes > self._queue_bytes_max:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wanting_room.append(waiter)
            await waiter

    async def settled(self) -> None:
        """Return when no record is half applied; the state may then be read until the next await.

        Raises:
            WritesStoppedError: an apply failed in the middle, so the state cannot be trusted.
        """
        while self._half_applied:
            if self._apply_failed:
                raise WritesStoppedError(f"the state is half changed: {self._stopped_reason}")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settling.append(waiter)
            await waiter

    async def drain(self) -> None:
        """Refuse new records from now on, and return when all that were queued are answered."""
        self._draining = True
        while self._unfinished:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    async def close(self) -> None:
        """Drain, then end the tasks and the thread. The log stays open: it belongs to the caller."""
        await self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown()

    async def _append_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopped_reason:
            await self._arrived.wait()
            batch = self._take_batch()
            if not batch:
                continue
            records = [waiting.record for waiting in batch]
            try:
                entries = await loop.run_in_executor(self._thread, self._append, records)
            except Exception as error:  # noqa: BLE001 - whatever it was, the outcome is unknown and every waiter is told
                self._stop(f"an append to the log failed: {error}", error, batch)
                return
            if not self._stopped_reason:
                self._leave_queue(sum(waiting.size_bytes for waiting in batch))
            await self._durable.put(list(zip(entries, batch, strict=True)))

    def _take_batch(self) -> list[_Waiting[R]]:
        """The next records to append, without those whose callers have gone. Their bytes count until durable."""
        batch: list[_Waiting[R]] = []
        batch_bytes = 0
        while self._queue and len(batch) < self._batch_records_max:
            waiting = self._queue[0]
            if waiting.result.done():
                self._queue.popleft()
                self._leave_queue(waiting.size_bytes)
                self._finish(1)
                continue
            if batch and batch_bytes + waiting.size_bytes > self._batch_bytes_max:
                break
            batch.append(self._queue.popleft())
            batch_bytes += waiting.size_bytes
        if not self._queue:
            self._arrived.clear()
        return batch

    def _append(self, records: list[Record]) -> list[LogEntry]:
        """In the thread: make a batch durable, behind what was appended here before and nothing else.

        The log's own last sequence would not do: it moves when records of others are read, which are not applied here.
        """
        entries = self._log.append(records, self._appended_sequence)
        self._appended_sequence = entries[-1].sequence
        return entries

    async def _apply_batches(self) -> None:
        held_since = time.perf_counter()
        while True:
            if self._durable.empty():
                durable = await self._durable.get()
                held_since = time.perf_counter()
            else:
                durable = self._durable.get_nowait()
            for place, (entry, waiting) in enumerate(durable):
                self._half_applied = True
                try:
                    steps = self._apply(entry, waiting.companion)
                    while True:
                        next(steps)
                        if time.perf_counter() - held_since > SLICE_SECONDS:
                            await asyncio.sleep(0)
                            held_since = time.perf_counter()
                except StopIteration as stop:
                    result: R = stop.value
                except Exception as error:
                    _logger.critical("applying record %d failed; writes stop", entry.sequence, exc_info=error)
                    unapplied = [waiting for _, waiting in durable[place:]]
                    self._apply_failed = True
                    reason = f"applying record {entry.sequence} failed: {error!r}"
                    while True:
                        self._stop(reason, error, unapplied)
                        # What is being appended at this moment must be answered as well.
                        unapplied = [waiting for _, waiting in await self._durable.get()]
                self._applied_sequence, self._applied_running_crc = entry.sequence, entry.running_crc
                self._half_applied = False
                if not waiting.result.done():
                    waiting.result.set_result(result)
                self._finish(1)
                # Those who wait for a settled state are let in before the next record unsettles it.
                if self._settling or time.perf_counter() - held_since > SLICE_SECONDS:
                    self._wake(self._settling)
                    await asyncio.sleep(0)
                    held_since = time.perf_counter()

    def _stop(self, reason: str, cause: Exception, batch: list[_Waiting[R]]) -> None:
        """Stop writing for good. Batches made durable before go on being applied, unless it is the apply that failed."""
        first_stop = not self._stopped_reason
        self._stopped_reason = self._stopped_reason or reason
        if first_stop:
            _logger.critical("writes stop: %s", reason)
        failed = [*batch, *self._queue]
        self._queue.clear()
        self._leave_queue(self._queue_bytes)
        for waiting in failed:
            if not waiting.result.done():
                error = WritesStoppedError(f"writes have stopped: {self._stopped_reason}")
                error.__cause__ = cause
                waiting.result.set_exception(error)
        self._wake(self._settling)
        self._finish(len(failed))

    def _leave_queue(self, size_bytes: int) -> None:
        self._queue_bytes -= size_bytes
        self._wake(self._wanting_room)

    def _finish(self, count: int) -> None:
        self._unfinished -= count
        if not self._unfinished:
            self._wake(self._idle)

    @staticmethod
    def _wake(waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        waiters.clear()
