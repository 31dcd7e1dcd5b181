"""Applying durable records to a state: on the event loop, in log order, in slices, whoever made them durable.

A primary's group commit (vecmem.log.group_commit) and a replica that follows a log hand their batches to the one applier of the state.
What it promises:

- Entries are applied and answered in the order in which they are put.
- The event loop is held for about SLICE_SECONDS at most, provided that no single step of `apply` is longer.
- When an apply fails the state is half changed: nothing further is applied, and whoever waits is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from vecmem.errors import WritesStoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from vecmem.log.record import LogEntry

R = TypeVar("R")
SLICE_SECONDS: Final = 0.001
_logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Durable(Generic[R]):
    """An entry to apply, and who waits for the result of that."""

    entry: LogEntry
    result: asyncio.Future[R] | None = None
    companion: Any = None
    """Given to `apply` beside the entry."""


class Applier(Generic[R]):
    """The only one who changes a state. Made, used and closed on one event loop."""

    def __init__(
        self,
        apply: Callable[[LogEntry, Any], Generator[None, None, R]],
        applied_sequence: int,
        applied_running_crc: int,
    ) -> None:
        """Begin with a state that reflects the log up to a sequence. Needs a running event loop.

        Args:
            apply: applies one entry to the state, given its companion; each step of the generator is one slice, its return value
                the result.
            applied_sequence: of the last record that the state reflects.
            applied_running_crc: running CRC32C of the log at that sequence.
        """
        self._apply = apply
        # One durable batch may wait for its apply: enough for the overlap, and a bound on what is ahead of the state.
        self._batches: asyncio.Queue[Sequence[Durable[R]]] = asyncio.Queue(maxsize=1)
        self._applied_sequence = applied_sequence
        self._applied_running_crc = applied_running_crc
        self._unapplied = 0
        self._half_applied = False
        self._failed_reason = ""
        self._settling: list[asyncio.Future[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self.on_failure: Callable[[str, Exception], None] | None = None
        """Called once, when an apply fails."""
        self._task = asyncio.create_task(self._apply_batches(), name="apply records")

    @property
    def applied_sequence(self) -> int:
        """Sequence of the last record that the state reflects wholly."""
        return self._applied_sequence

    @property
    def applied_running_crc(self) -> int:
        """Running CRC32C of the log at applied_sequence."""
        return self._applied_running_crc

    @property
    def failed_reason(self) -> str:
        """Why nothing is applied any more; empty: it is."""
        return self._failed_reason

    @property
    def is_settled(self) -> bool:
        """Whether no record is half applied, so that the state may be read until the next await."""
        return not self._half_applied

    async def put(self, batch: Sequence[Durable[R]]) -> None:
        """Have a batch applied behind those before; returns when there is room for another one.

        After a failed apply nobody is left waiting: each result becomes WritesStoppedError.
        """
        self._unapplied += len(batch)
        await self._batches.put(batch)

    async def settled(self) -> None:
        """Return when no record is half applied; the state may then be read until the next await.

        Raises:
            WritesStoppedError: an apply failed in the middle, so the state cannot be trusted.
        """
        while self._half_applied:
            if self._failed_reason:
                raise WritesStoppedError(f"the state is half changed: {self._failed_reason}")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._settling.append(waiter)
            await waiter

    async def drained(self) -> None:
        """Return when all that was put is applied, or given up."""
        while self._unapplied:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    async def close(self) -> None:
        """End; what was put and is not applied yet stays so."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _apply_batches(self) -> None:
        held_since = time.perf_counter()
        while True:
            if self._batches.empty():
                batch = await self._batches.get()
                held_since = time.perf_counter()
            else:
                batch = self._batches.get_nowait()
            for place, durable in enumerate(batch):
                self._half_applied = True
                try:
                    steps = self._apply(durable.entry, durable.companion)
                    while True:
                        next(steps)
                        if time.perf_counter() - held_since > SLICE_SECONDS:
                            await asyncio.sleep(0)
                            held_since = time.perf_counter()
                except StopIteration as stop:
                    result: R = stop.value
                except Exception as error:
                    _logger.critical("applying record %d failed", durable.entry.sequence, exc_info=error)
                    await self._give_up(
                        f"applying record {durable.entry.sequence} failed: {error!r}", error, batch[place:]
                    )
                self._applied_sequence, self._applied_running_crc = durable.entry.sequence, durable.entry.running_crc
                self._half_applied = False
                if durable.result is not None and not durable.result.done():
                    durable.result.set_result(result)
                self._finish(1)
                # Those who wait for a settled state are let in before the next record unsettles it.
                if self._settling or time.perf_counter() - held_since > SLICE_SECONDS:
                    wake(self._settling)
                    await asyncio.sleep(0)
                    held_since = time.perf_counter()

    async def _give_up(self, reason: str, error: Exception, batch: Sequence[Durable[R]]) -> None:
        """Tell everybody, and those who come, that nothing is applied any more. Never returns."""
        self._failed_reason = reason
        if self.on_failure is not None:
            self.on_failure(reason, error)
        wake(self._settling)
        while True:
            for durable in batch:
                if durable.result is not None and not durable.result.done():
                    told = WritesStoppedError(f"writes have stopped: {reason}")
                    told.__cause__ = error
                    durable.result.set_exception(told)
            self._finish(len(batch))
            batch = await self._batches.get()

    def _finish(self, count: int) -> None:
        self._unapplied -= count
        if not self._unapplied:
            wake(self._idle)


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Let all go who wait."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()
