"""One shard: a log, the state machine that it feeds, and the work in the background.

`Shard.write` is the only way to change anything: the command gets its time, becomes durable by group commit and is applied. Reads wait for
`settled` and then look at `state` until their next await. In the background: graphs are built, dead rows reclaimed,
expired points deleted (by records like any other), checkpoints taken and the log trimmed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from vecmem.clock import Clock
from vecmem.config import Settings
from vecmem.errors import CheckpointError, CollectionNotFoundError, PositionAheadError, UnavailableError, VecmemError
from vecmem.index.filter import CompiledFilter
from vecmem.index.vector_index import VectorIndex
from vecmem.log.checkpoints import CheckpointStore, sequence_of
from vecmem.log.group_commit import SLICE_SECONDS, GroupCommit
from vecmem.log.record import Record
from vecmem.store.checkpointing import CHECKPOINTS_KEPT, CheckpointReport, ForkedImage
from vecmem.store.collection import Collection
from vecmem.store.recovery import CHECKPOINT_DIRECTORY, Recovered
from vecmem.store.state_machine import COMMAND_RECORD, refusal_error, repeated_result
from vecmem.store.v1 import command_pb2

EXPIRY_SWEEP_SECONDS = 1.0
EXPIRY_SWEEP_POINTS = 1_000
CHECKPOINT_POLL_SECONDS = 0.5
CHECKPOINT_WORTH_BYTES = 1024 * 1024
CHECKPOINT_WORTH_ROWS = 2_000
MAINTENANCE_POLL_SECONDS = 0.05
SEARCHING_SECONDS = 1.0
"""For so long after a search there are thought to be more."""
SLICE_SECONDS_SEARCHING = 0.005
"""How long graph insertion keeps searches out at a time while there are any."""
SLICE_SECONDS_ALONE = 0.05
SLICE_ROWS_MIN = 8
SLICE_ROWS_MAX = 2_048
GRAPH_NICENESS = 5
"""Graph threads yield to the event loop and to searches. More would let a search wait for a slice that does not get the processor."""

_logger = logging.getLogger(__name__)


class Shard:
    """Made on the event loop that it lives on."""

    def __init__(self, recovered: Recovered, settings: Settings, clock: Clock) -> None:
        self.state = recovered.state
        self.log = recovered.log
        self.recovery = recovered.recovery
        self.clock = clock
        self.checkpoint_sequence = recovered.recovery.checkpoint_sequence
        self._settings = settings
        self._commit: GroupCommit[command_pb2.CommandResult] = GroupCommit(self.log, self.state.apply)
        self._store = CheckpointStore(settings.data_dir / CHECKPOINT_DIRECTORY)
        self._graph_threads = settings.graph_threads or os.cpu_count() or 1
        self._graph_executor = ThreadPoolExecutor(1, "vecmem-graph", initializer=_be_nice)
        self._maintaining = asyncio.Lock()
        self._checkpointing = asyncio.Lock()
        self._work = asyncio.Event()
        self._work.set()
        self._rows_per_second = 2_000.0
        self._drained_rows = 0
        self._checkpoint_bytes = 0
        self._last_write = self.last_search = time.monotonic()
        self._tasks = [
            asyncio.create_task(self._maintain(), name="maintain indexes"),
            asyncio.create_task(self._sweep_expired(), name="sweep expired points"),
            asyncio.create_task(self._take_checkpoints(), name="take checkpoints"),
        ]

    # -- writing and reading ------------------------------------------------------------------------------------------

    @property
    def applied_sequence(self) -> int:
        """Sequence of the last record that the state reflects."""
        return self._commit.applied_sequence

    @property
    def read_only_reason(self) -> str:
        """Why writes are refused; empty: they are not."""
        return self._commit.stopped_reason

    def repeated(self, request_id: str, fingerprint: int) -> command_pb2.CommandResult | None:
        """The result of a request that was applied before. Raises RequestIdReusedError for another one under the same id."""
        if not request_id:
            return None
        remembered = self.state.deduplication.find(request_id, self._now_unix_ms())
        return None if remembered is None else _accepted(repeated_result(remembered, fingerprint))

    async def write(self, command: command_pb2.Command) -> command_pb2.CommandResult:
        """Make a checked command durable and apply it.

        Raises what the command was refused for, OverloadedError, ShuttingDownError, or WritesStoppedError, after which the
        outcome is known when the server has restarted.
        """
        command.time_unix_ms = self._now_unix_ms()
        payload = command.SerializeToString()
        result = await self._commit.submit(Record(COMMAND_RECORD, payload))
        self._last_write = time.monotonic()
        self._checkpoint_bytes += len(payload)
        self._work.set()
        return _accepted(result)

    async def settled(self) -> None:
        """Return when no record is half applied; the state may then be read until the next await."""
        if not self._commit.is_settled:
            await self._commit.settled()

    async def at_least(self, sequence: int) -> None:
        """Settled, at a position. Raises PositionAheadError where the log has not come so far."""
        await self.settled()
        if sequence > self.applied_sequence:
            raise PositionAheadError(
                f"position {sequence} is ahead of the log, which ends at {self.applied_sequence}",
                applied_sequence=str(self.applied_sequence),
            )

    async def ensure_columns(self, collection: Collection, compiled: CompiledFilter) -> None:
        """Return settled, with every payload column that the filter reads complete; builds them in slices."""
        held_since = time.perf_counter()
        for _ in collection.payloads.ensure_columns(compiled.paths):
            if time.perf_counter() - held_since > SLICE_SECONDS:
                await asyncio.sleep(0)
                held_since = time.perf_counter()
        while not self._commit.is_settled:
            await self._commit.settled()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    async def checkpoint(self) -> CheckpointReport:
        """Take a checkpoint now and trim the log. Raises CheckpointError."""
        async with self._checkpointing:
            if self.state.damaged:
                names = ", ".join(map(repr, self.state.damaged))
                raise CheckpointError(f"a checkpoint would leave out damaged collections: {names}")
            async with self._maintaining:
                await self.settled()
                sequence = self.applied_sequence
                if sequence == self.checkpoint_sequence:
                    return CheckpointReport(sequence, 0, 0.0, 0.0)
                self._checkpoint_bytes = self._drained_rows = 0
                forked = ForkedImage(self._store, self.state, sequence, self._commit.applied_running_crc)
            report = await forked.publish()
            self.checkpoint_sequence = sequence
            await asyncio.to_thread(self._trim)
            _logger.info(
                "checkpoint at %d: %d bytes in %.0f ms, stalled %.1f ms",
                sequence,
                report.size_bytes,
                report.duration_ms,
                report.stall_ms,
            )
            return report

    def _trim(self) -> None:
        """Drop checkpoints and records that recovery does not need any more."""
        self._store.remove_older_than(CHECKPOINTS_KEPT)
        kept = self._store.list()
        if len(kept) == CHECKPOINTS_KEPT and self.log.size_bytes > self._settings.log_retention_bytes:
            self.log.trim(sequence_of(kept[-1]) + 1)

    async def _take_checkpoints(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_POLL_SECONDS)
            if not self._wants_checkpoint():
                continue
            try:
                await self.checkpoint()
            except (VecmemError, OSError):
                # Nothing is lost without it: the log has every record. The next one is due when as much again was written.
                _logger.exception("a checkpoint failed")

    def _wants_checkpoint(self) -> bool:
        if self.state.damaged or self.applied_sequence == self.checkpoint_sequence or self.read_only_reason:
            return False
        if self._checkpoint_bytes >= self._settings.checkpoint_log_bytes:
            return True
        idle_seconds = time.monotonic() - self._last_write
        worth = self._checkpoint_bytes >= CHECKPOINT_WORTH_BYTES or self._drained_rows >= CHECKPOINT_WORTH_ROWS
        return worth and idle_seconds >= self._settings.checkpoint_idle_seconds and not self._has_work()

    # -- background ---------------------------------------------------------------------------------------------------

    def _has_work(self) -> bool:
        return any(
            index.has_work() for collection in self.state.collections.values() for index in collection.vectors.values()
        )

    async def _maintain(self) -> None:
        while True:
            worked = False
            for collection in list(self.state.collections.values()):
                await self.settled()
                collection.reclaim()
                for index in collection.vectors.values():
                    if not index.has_work():
                        continue
                    worked |= await self._maintain_slice(index)
            if not worked:
                self._work.clear()
                try:
                    await asyncio.wait_for(self._work.wait(), MAINTENANCE_POLL_SECONDS)
                except TimeoutError:
                    continue

    async def _maintain_slice(self, index: VectorIndex) -> bool:
        """One slice of background work, as long as searches can wait for it; False when there was none."""
        searching = time.monotonic() - self.last_search < SEARCHING_SECONDS
        seconds = SLICE_SECONDS_SEARCHING if searching else SLICE_SECONDS_ALONE
        slice_rows = min(SLICE_ROWS_MAX, max(SLICE_ROWS_MIN, int(self._rows_per_second * seconds)))
        maintain = partial(index.maintain, threads=self._graph_threads, slice_rows=slice_rows)
        async with self._maintaining:
            began = time.perf_counter()
            row_count = index.statistics().graph_row_count
            worked = await asyncio.get_running_loop().run_in_executor(self._graph_executor, maintain)
            inserted = index.statistics().graph_row_count - row_count
        if inserted > 0:
            self._drained_rows += inserted
            self._rows_per_second += 0.2 * (inserted / (time.perf_counter() - began) - self._rows_per_second)
        return worked

    async def _sweep_expired(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SWEEP_SECONDS)
            await self.settled()
            for collection in list(self.state.collections.values()):
                ids = collection.expired_ids(self.clock.now_unix_ms(), EXPIRY_SWEEP_POINTS)
                if not ids:
                    continue
                command = command_pb2.Command()
                command.expire_points.collection_uid = collection.uid
                command.expire_points.ids.extend(ids)
                try:
                    await self.write(command)
                except (CollectionNotFoundError, UnavailableError):
                    # Deleted meanwhile, or no write is taken: expired points stay invisible either way.
                    break

    def _now_unix_ms(self) -> int:
        return max(self.clock.now_unix_ms(), self.state.time_unix_ms)

    # -- the end ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Close at the end of the block."""
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Answer all writes taken, take a last checkpoint if so configured, and close the log."""
        await self._commit.drain()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _logger.error("a background task had failed", exc_info=outcome)
        # A slice goes on in its thread when its task is cancelled, and a fork in the middle of it would save half an insertion.
        await asyncio.to_thread(self._graph_executor.shutdown)
        if self._settings.checkpoint_on_exit and not self.read_only_reason and not self.state.damaged:
            try:
                await self.checkpoint()
            except (VecmemError, OSError):
                _logger.exception("the last checkpoint failed; the next start replays the log instead")
        await self._commit.close()
        self.log.close()


def _accepted(result: command_pb2.CommandResult) -> command_pb2.CommandResult:
    if result.HasField("refusal"):
        raise refusal_error(result.refusal)
    return result


def _be_nice() -> None:
    # On Linux niceness belongs to the thread, and hnswlib's own threads inherit it.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GRAPH_NICENESS)
