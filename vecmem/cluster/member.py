"""A node's part in a shard whose log is replicated: it follows the log, and leads while it holds the lease.

The lease is in the shard's own log (the mechanism of Amazon MemoryDB, SIGMOD 2024, section 4.1). A node that leads
appends HoldLease again and again, and answers until the lease has run out since the *beginning* of the last such append
that succeeded. A node that follows waits from when it has *applied* such a record, and longer than the lease; then it
appends one itself, on condition that the log ends with the last record it has applied. So whoever wins has applied the
whole log, the node that led before can append nothing more, and by then it has ceased to answer reads by its own clock.
Clocks are monotonic, and never compared with those of other nodes.

Each node keeps a copy of what it applies in its own RocksDB log, with the running CRC: a log service that has lost or
changed a record is noticed when the two differ, and not followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from vecmem.cluster.replicated_log import ReplicatedLog
from vecmem.errors import CorruptionError, LogConflictError, NotFoundError, OverloadedError, UnavailableError
from vecmem.log.jetstream import JetStreamLog
from vecmem.log.jetstream_stream import STALE_SECONDS_MAX
from vecmem.log.record import LogEntry, Record
from vecmem.log.transaction_log import Follower
from vecmem.store.shard import Shard
from vecmem.store.state_machine import COMMAND_RECORD
from vecmem.store.v1 import command_pb2

BACKOFF_FACTOR: Final = 1.25
"""Of a lease, that a follower waits from when it has applied it: strictly longer than the one who holds it counts."""
BACKOFF_JITTER_FACTOR: Final = 0.25
"""Of a lease, at most, on top: so that not all followers claim at once."""
RENEWALS_PER_LEASE: Final = 4
RETRY_SECONDS: Final = 0.2
PENDING_ENTRIES_MAX: Final = 1_024
"""Read and not taken yet."""

_logger = logging.getLogger(__name__)


class Member:
    """Made on the shard's event loop; `run` is its life."""

    def __init__(
        self,
        shard: Shard,
        open_log: Callable[[], JetStreamLog],
        node: str,
        lease_seconds: float,
        beside: Callable[[JetStreamLog, str], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """`beside` is run with the open log and the node's name for as long as that log is used, and then cancelled."""
        self._shard = shard
        shard.answers_from = math.inf
        self._beside = beside
        self._open_log = open_log
        self.node = node
        self._lease_seconds = lease_seconds
        self._address = ""
        self._released = asyncio.Event()
        self._follows = asyncio.Event()
        self._follows.set()
        self._seen: command_pb2.HoldLease | None = None
        self._seen_at = -math.inf
        self._log: JetStreamLog | None = None
        self._behind_since = math.inf
        self._claims_at = time.monotonic() + self._backoff_seconds(lease_seconds)

    @property
    def lease_age_seconds(self) -> float:
        """Since the last renewal of the lease was applied here; 0: there was none."""
        return 0.0 if self._seen is None else time.monotonic() - self._seen_at

    @property
    def lag(self) -> int:
        """Records that are known to be in the log and not applied here."""
        return 0 if self._log is None else max(0, self._log.last_sequence - self._shard.applied_sequence)

    async def run(self, address: str) -> None:
        """Take part until cancelled; `address` is where others find this node.

        Raises CorruptionError where the log and the copy of it here differ, NotFoundError where the log was trimmed beyond the copy,
        which a restart mends (vecmem.cluster.restoring), and what an apply or the copy fails with.
        """
        self._address = address
        while True:
            try:
                log = await asyncio.to_thread(self._open_log)
            except UnavailableError as error:
                _logger.warning("the replicated log cannot be opened: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                if self._is_behind_copy(log):
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                await self._check_copy(log)
                self._log = log
                self._shard.answers_from = min(self._shard.answers_from, log.last_sequence)
                async with self._with_beside(log):
                    while not log.stopped_reason:
                        await self._follow(log)
                        await self._claim(log)
            except NotFoundError as error:
                raise NotFoundError(
                    f"the log was trimmed and no longer continues the copy here, which ends with sequence {self._shard.log.last_sequence}:"
                    f" this node ends, and its next start restores it from a published checkpoint ({error})"
                ) from error
            except UnavailableError as error:
                if self._shard.log.stopped_reason:
                    raise
                _logger.warning("the replicated log is opened anew: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                self._log = None
                await asyncio.to_thread(log.close)

    async def release(self) -> None:
        """Let somebody else lead at once, if this node does; returns when this one does not any more."""
        self._released.set()
        await self._follows.wait()

    async def hang_up(self) -> None:
        """Let go of the log: whatever waits for it ends."""
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    def _is_behind_copy(self, log: JetStreamLog) -> bool:
        """Whether the log is said to end before the copy here, for now. Raises CorruptionError where it goes on being said."""
        sequence = self._shard.log.last_sequence
        if sequence <= log.last_sequence:
            self._behind_since = math.inf
            return False
        text = f"the log ends at sequence {log.last_sequence}, before the copy here, which ends with {sequence}"
        self._behind_since = min(self._behind_since, time.monotonic())
        if time.monotonic() - self._behind_since > STALE_SECONDS_MAX:
            raise CorruptionError(f"{text}: records are lost", path=log.path)
        _logger.warning("%s; it is asked again", text)
        return True

    async def _check_copy(self, log: JetStreamLog) -> None:
        """Raises CorruptionError where the copy here is no beginning of the log, NotFoundError where the log begins behind it."""
        copy = self._shard.log
        sequence = copy.last_sequence
        running_crc = await asyncio.to_thread(log.running_crc_at, sequence)
        if running_crc != copy.running_crc:
            raise CorruptionError(
                f"the log and the copy of it here differ at or before sequence {sequence}: the running CRC is {running_crc:#010x} there"
                f" and {copy.running_crc:#010x} here",
                path=log.path,
            )

    @asynccontextmanager
    async def _with_beside(self, log: JetStreamLog) -> AsyncIterator[None]:
        if self._beside is None:
            yield
            return
        task = asyncio.create_task(self._beside(log, self.node or self._address), name="beside the log")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, log: JetStreamLog) -> None:
        """Apply what others append, until nobody holds the lease any more."""
        async with _read_beside(log, self._shard.log.last_sequence + 1) as feed:
            while True:
                entries = await feed.next(self._claims_at - time.monotonic())
                if entries:
                    await self._shard.take(entries)
                    await self._shard.all_applied()
                    self._look_at_lease()
                elif time.monotonic() >= self._claims_at:
                    return

    def _look_at_lease(self) -> None:
        lease = self._shard.state.lease
        if lease is not self._seen:
            self._seen, self._seen_at = lease, time.monotonic()
            seconds = 0.0 if lease is None else lease.duration_ms / 1e3
            self._claims_at = time.monotonic() + self._backoff_seconds(seconds)

    def _backoff_seconds(self, lease_seconds: float) -> float:
        jitter_seconds = random.uniform(0.0, BACKOFF_JITTER_FACTOR * self._lease_seconds)
        return BACKOFF_FACTOR * lease_seconds + (jitter_seconds if lease_seconds else jitter_seconds / 4)

    async def _claim(self, log: JetStreamLog) -> None:
        """Append a lease of one's own, and lead as long as it can be renewed."""
        began = time.monotonic()
        claim = self._lease(self._lease_seconds)
        claim.time_unix_ms = self._shard.now_unix_ms()
        record = Record(COMMAND_RECORD, claim.SerializeToString())
        try:
            entries = await asyncio.to_thread(log.append, [record], self._shard.applied_sequence)
        except LogConflictError:
            # Somebody else was faster, and is read next.
            self._claims_at = time.monotonic() + self._backoff_seconds(self._lease_seconds)
            return
        await self._shard.take(entries)
        await self._shard.all_applied()
        self._look_at_lease()
        _logger.info("leads the shard from sequence %d on", entries[-1].sequence)
        self._shard.lead(ReplicatedLog(log, self._shard.log), began + self._lease_seconds)
        self._released.clear()
        self._follows.clear()
        try:
            await self._renew()
        except UnavailableError as error:
            _logger.warning("leads the shard no longer: %s", error)
        finally:
            await self._shard.stop_leading()
            # Somebody else was faster, or is to be.
            self._claims_at = time.monotonic() + self._backoff_seconds(self._lease_seconds)
            self._follows.set()

    async def _renew(self) -> None:
        """Renew the lease until it is released. Raises UnavailableError when that cannot be."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lease_seconds / RENEWALS_PER_LEASE):
                    await self._released.wait()
            began = time.monotonic()
            seconds = 0.0 if self._released.is_set() else self._lease_seconds
            try:
                await self._shard.write(self._lease(seconds))
            except OverloadedError:
                continue
            self._shard.leads_until = began + seconds
            self._look_at_lease()
            if not seconds:
                return

    def _lease(self, seconds: float) -> command_pb2.Command:
        command = command_pb2.Command()
        command.hold_lease.node, command.hold_lease.address = self.node or self._address, self._address
        command.hold_lease.duration_ms = round(seconds * 1e3)
        return command


class _Feed:
    """Entries from a thread that reads them."""

    def __init__(self, follower: Follower) -> None:
        self._loop = asyncio.get_running_loop()
        self._follower = follower
        self._entries: deque[LogEntry] = deque()
        self._room = threading.Semaphore(PENDING_ENTRIES_MAX)
        self._arrived = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="vecmem-follow", daemon=True)
        self._thread.start()

    async def next(self, timeout_seconds: float) -> list[LogEntry]:
        """What has come; waits for something. Empty: nothing came in time. Raises what reading has failed with."""
        if not self._entries and self._error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, timeout_seconds)):
                    await self._arrived.wait()
        self._arrived.clear()
        entries = [self._entries.popleft() for _ in range(len(self._entries))]
        if entries:
            self._room.release(len(entries))
        if not entries and self._error is not None:
            raise self._error
        return entries

    def close(self) -> None:
        """End the thread; blocks until it has ended."""
        self._follower.close()
        self._room.release(PENDING_ENTRIES_MAX)
        self._thread.join()

    def _read(self) -> None:
        try:
            for entry in self._follower:
                self._room.acquire()
                self._entries.append(entry)
                self._loop.call_soon_threadsafe(self._arrived.set)
        except BaseException as error:  # noqa: BLE001 - handed to the event loop
            self._error = error
            self._loop.call_soon_threadsafe(self._arrived.set)


@asynccontextmanager
async def _read_beside(log: JetStreamLog, start: int) -> AsyncIterator[_Feed]:
    feed = _Feed(await asyncio.to_thread(log.follow, start))
    try:
        yield feed
    finally:
        await asyncio.to_thread(feed.close)
