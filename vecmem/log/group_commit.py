"""Group commit: records that wait together become durable together, and then are applied in log order.

    submit --> queue --> append (one batch at a time) --> vecmem.log.applying --> the caller's result

While one batch is being made durable the next one gathers, and a durable batch is applied while the next is being made
durable. What it promises:

- Records get their sequences in the order of the submit calls, and are applied and answered in that order.
- A result is given only when its record is durable and applied.
- A caller cancelled before its batch is taken leaves no trace; after that its record is appended and applied regardless.
- When an append or an apply fails, nothing further is written: those waiting and those to come get WritesStoppedError.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from vecmem import limits
from vecmem.errors import LimitExceededError, OverloadedError, ShuttingDownError, WritesStoppedError
from vecmem.log.applying import Applier, Durable, wake
from vecmem.log.record import LogEntry, Record, frame_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vecmem.log.transaction_log import TransactionLog

R = TypeVar("R")
_logger = logging.getLogger(__name__)


class Appender(Protocol):
    """Where records become durable, without holding the event loop."""

    @property
    def record_bytes_max(self) -> int:
        """See TransactionLog."""

    async def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """See TransactionLog; a cancelled call's outcome is unknown."""

    async def close(self) -> None:
        """Nothing is appended any more: end what that took. The log stays."""


class ThreadAppender:
    """An Appender to a log whose calls block, in a thread of its own."""

    def __init__(self, log: TransactionLog) -> None:
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vecmem-append")

    @property
    def record_bytes_max(self) -> int:
        """See Appender."""
        return self._log.record_bytes_max

    async def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """See Appender."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._log.append, records, after)

    async def close(self) -> None:
        """See Appender."""
        self._thread.shutdown()


@dataclass(slots=True, eq=False)
class _Waiting(Generic[R]):
    record: Record
    size_bytes: int
    result: asyncio.Future[R]
    companion: Any


class GroupCommit(Generic[R]):
    """The only writer of a log. Made, used and closed on one event loop."""

    def __init__(
        self,
        appender: Appender,
        applier: Applier[R],
        *,
        queue_bytes_max: int = limits.COMMIT_QUEUE_BYTES_MAX,
        batch_bytes_max: int = limits.COMMIT_BATCH_BYTES_MAX,
        batch_records_max: int = limits.COMMIT_BATCH_RECORDS_MAX,
    ) -> None:
        """Begin behind the last record that is applied, which must be the log's last. Needs a running event loop.

        Args:
            appender: to the log, to which nobody else may append; it is closed with this.
            applier: of the state.
            queue_bytes_max: size of the records that may wait for durability, frames included.
            batch_bytes_max: a batch is closed at this size; a single larger record is a batch of its own.
            batch_records_max: a batch is closed at this count.
        """
        self._appender = appender
        self._applier = applier
        applier.on_failure = self._apply_failed
        self._queue_bytes_max = queue_bytes_max
        self._batch_bytes_max = batch_bytes_max
        self._batch_records_max = batch_records_max
        self._queue: deque[_Waiting[R]] = deque()
        self._queue_bytes = 0
        self._arrived = asyncio.Event()
        self._appended_sequence = applier.applied_sequence
        self._unfinished = 0
        self._idle: list[asyncio.Future[None]] = []
        self._wanting_room: list[asyncio.Future[None]] = []
        self._draining = False
        self._stopped_reason = ""
        self._task = asyncio.create_task(self._append_batches(), name="group commit")

    @property
    def stopped_reason(self) -> str:
        """Why writes have stopped; empty: they have not."""
        return self._stopped_reason

    @property
    def queue_bytes(self) -> int:
        """Size of the records that wait for durability."""
        return self._queue_bytes

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
        if size_bytes > self._appender.record_bytes_max:
            raise LimitExceededError(
                f"the request makes a log record of {size_bytes} bytes, which is over {self._appender.record_bytes_max}"
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

    async def drain(self) -> None:
        """Refuse new records from now on, and return when all that were queued are answered."""
        self._draining = True
        while self._unfinished:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter
        await self._applier.drained()

    async def close(self) -> None:
        """Drain, then end the task and the appender. The log and the applier stay: they belong to the caller."""
        await self.drain()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._appender.close()

    async def _append_batches(self) -> None:
        while not self._stopped_reason:
            await self._arrived.wait()
            batch = self._take_batch()
            if not batch:
                continue
            records = [waiting.record for waiting in batch]
            try:
                # Behind what was appended here before and nothing else. The log's own last sequence would not do: it
                # moves when records of others are read, which are not applied here.
                entries = await self._appender.append(records, self._appended_sequence)
            except Exception as error:  # noqa: BLE001 - whatever it was, the outcome is unknown and every waiter is told
                self._stop(f"an append to the log failed: {error}", error, batch)
                return
            self._appended_sequence = entries[-1].sequence
            if not self._stopped_reason:
                self._leave_queue(sum(waiting.size_bytes for waiting in batch))
            durable = [
                Durable(entry, waiting.result, waiting.companion) for entry, waiting in zip(entries, batch, strict=True)
            ]
            await self._applier.put(durable)
            self._finish(len(durable))

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
        self._finish(len(failed))

    def _apply_failed(self, reason: str, error: Exception) -> None:
        self._stop(reason, error, [])

    def _leave_queue(self, size_bytes: int) -> None:
        self._queue_bytes -= size_bytes
        wake(self._wanting_room)

    def _finish(self, count: int) -> None:
        self._unfinished -= count
        if not self._unfinished:
            wake(self._idle)
