"""ReplicatedLog: where a leading node appends. The log that decides comes first, and this node's own copy of it behind.

A write is answered when a quorum of the log's servers has it. The copy is for this node's next start, and its disk would only add to
what writers wait for. A thread copies in order, each batch synced, so that the copy is a beginning of the log whatever happens. What it
lacks after a crash is read from the log like anything that others have appended.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Final

from vecmem.errors import WritesStoppedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vecmem.log.jetstream import JetStreamLog
    from vecmem.log.record import LogEntry, Record
    from vecmem.log.rocks import RocksLog

PENDING_BATCHES_MAX: Final = 64
"""Appended and not copied; a disk that is slower than the log holds up its writers from here on."""

PAUSE_SECONDS: Final = 0.002
"""Before a batch that no other one waits behind, so that its apply and its answer come first: all of them are in Python."""

_logger = logging.getLogger(__name__)


class ReplicatedLog:
    """An Appender. Made when the copy has all of the log; nobody else appends to the copy until `close`."""

    def __init__(self, log: JetStreamLog, copy: RocksLog) -> None:
        self._log = log
        self._copy = copy
        self._pending: queue.Queue[tuple[Sequence[Record], int] | None] = queue.Queue(PENDING_BATCHES_MAX)
        self._failed_reason = ""
        self._thread = threading.Thread(target=self._copy_all, name="vecmem-copy", daemon=True)
        self._thread.start()

    @property
    def record_bytes_max(self) -> int:
        """See TransactionLog."""
        return min(self._log.record_bytes_max, self._copy.record_bytes_max)

    async def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """See TransactionLog. Raises WritesStoppedError, and appends nothing, where the copy has failed."""
        if why := self._copy.stopped_reason or self._failed_reason:
            raise WritesStoppedError(f"this node's copy of the log takes no writes: {why}")
        entries = await self._log.append_from_loop(records, after)
        try:
            self._pending.put_nowait((records, after))
        except queue.Full:
            await asyncio.to_thread(self._pending.put, (records, after))
        return entries

    async def close(self) -> None:
        """Return when everything is copied, or the copy has failed, which it then says itself."""
        await asyncio.to_thread(self._pending.put, None)
        await asyncio.to_thread(self._thread.join)

    def _copy_all(self) -> None:
        while (batch := self._pending.get()) is not None:
            if self._failed_reason:
                continue  # taken all the same, so that nobody waits for room
            if self._pending.empty():
                time.sleep(PAUSE_SECONDS)
            try:
                self._copy.append(*batch)
            except Exception as error:
                # It takes no more, and the next append here says so.
                self._failed_reason = repr(error)
                _logger.exception("this node's copy of the log has failed")
