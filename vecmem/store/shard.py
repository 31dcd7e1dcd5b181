"""One shard: a log, the state machine that it feeds, and the work in the background.

`Shard.write` is the only way to change anything: the command gets its time, becomes durable by group commit and is applied. Reads wait for
`settled` and then look at `state` until their next await. In the background: graphs are built, dead rows reclaimed,
expired points deleted (by records like any other), checkpoints taken and the log trimmed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from vecmem.clock import Clock
from vecmem.config import Settings
from vecmem.errors import (
    CheckpointError,
    CorruptionError,
    MovedError,
    PositionAheadError,
    VecmemError,
    WritesStoppedError,
)
from vecmem.index.field_path import FieldPath
from vecmem.log.applying import SLICE_SECONDS, Applier, Durable
from vecmem.log.checkpoints import CheckpointStore, sequence_of
from vecmem.log.group_commit import Appender, GroupCommit, ThreadAppender
from vecmem.log.record import LogEntry, Record
from vecmem.store.channels import Channels
from vecmem.store.checkpointing import CHECKPOINTS_KEPT, CheckpointReport, ForkedImage
from vecmem.store.collection import Collection
from vecmem.store.eviction import LRU
from vecmem.store.maintenance import Maintenance
from vecmem.store.memory import Memory
from vecmem.store.own_thread import in_own_thread
from vecmem.store.recovery import Recovered
from vecmem.store.replacing import CHECKPOINT_DIRECTORY
from vecmem.store.state_machine import COMMAND_RECORD, Observer, refusal_error, repeated_result
from vecmem.store.sweeping import sweep_expired
from vecmem.store.v1 import command_pb2
from vecmem.store.watching import ChangeHub

APPLIED_POLL_SECONDS = 0.001
COPIED_POLL_SECONDS = 0.001
CHECKPOINT_POLL_SECONDS = 0.5
CHECKPOINT_WORTH_BYTES = 1024 * 1024
CHECKPOINT_WORTH_SHARE = 0.02
"""Of the last checkpoint's size: a large state is not written anew for every trickle."""
CHECKPOINT_WORTH_ROWS = 2_000
BACKGROUND_RETRY_SECONDS = 1.0
BACKGROUND_RETRY_SECONDS_MAX = 60.0
RECORD_OVERHEAD_BYTES = 64
"""More than a record's frame and the time that is put into its command."""

_logger = logging.getLogger(__name__)


class Shard:
    """Made on the event loop that it lives on."""

    def __init__(self, recovered: Recovered, settings: Settings, clock: Clock, *, leads: bool = True) -> None:
        """`leads`: whether it takes writes and answers for ever. Otherwise `lead` and `follow` are called as it comes to that."""
        self.state = recovered.state
        self.log = recovered.log
        self.recovery = recovered.recovery
        self.clock = clock
        self.number = settings.shard
        """Its number in a cluster."""
        self.in_cluster = settings.in_cluster
        self.leading_changed: Callable[[], None] = _nothing
        """Called when it begins or ceases to take writes."""
        self.checkpoint_sequence = recovered.recovery.checkpoint_sequence
        self.changes = ChangeHub(self.state.changes, self.state.collection_name)
        self.state.listener = self.changes.told
        self.state.slots_listener = self.changes.wake_all
        self.memory = Memory(self.state, settings, self._evict_keys)
        self.channels = Channels()
        self.ending = False
        """Set when the node is about to end: calls that wait for something end with ShuttingDownError."""
        self._settings = settings
        self._applier = Applier(self.state.apply, self.log.last_sequence, self.log.running_crc)
        self._commit: GroupCommit[command_pb2.CommandResult] | None = None
        self.leads_until = -math.inf
        """Until when it may answer for the shard, of time.monotonic(): nobody else does before."""
        self.answers_from = 0.0
        """Sequence that has to be applied before reads are answered: where a replicated log ended when this node came.

        It is inf until that is known. So who asks a node again that has started anew is not shown less than before."""
        if leads:
            self.lead(ThreadAppender(self.log), math.inf)
        self._store = CheckpointStore(settings.data_dir / CHECKPOINT_DIRECTORY)
        self._maintenance = Maintenance(self, settings)
        self._checkpointing = asyncio.Lock()
        self._checkpoint_bytes = recovered.recovery.replayed_bytes
        self._checkpoint_size_bytes = 0
        self._forked: ForkedImage | None = None
        self._running_checkpoints: set[asyncio.Task[CheckpointReport]] = set()
        self._last_time_unix_ms = 0
        self.last_write = time.monotonic()
        self.failures: dict[str, str] = {}
        """Background work whose last run failed, by name: why. It is tried again."""
        self._tasks = [
            asyncio.create_task(self._supervise(name, work), name=name)
            for name, work in (
                ("maintain indexes", self._maintenance.maintain),
                ("measure recall", self._maintenance.measure),
                ("sweep what has expired", partial(sweep_expired, self)),
                ("take checkpoints", self._take_checkpoints),
            )
        ]

    # -- writing and reading ------------------------------------------------------------------------------------------

    @property
    def applied_sequence(self) -> int:
        """Sequence of the last record that the state reflects."""
        return self._applier.applied_sequence

    @property
    def read_only_reason(self) -> str:
        """Why writes are refused; empty: they are not."""
        return "" if self._commit is None else self._commit.stopped_reason

    @property
    def leads(self) -> bool:
        """Whether it takes writes."""
        return self._commit is not None

    def check_leads(self) -> None:
        """Raises MovedError where another node may answer for the shard by now."""
        if time.monotonic() >= self.leads_until:
            raise self._moved()

    def lead(self, appender: Appender, until: float) -> None:
        """Take writes, and append them to a log whose last record is applied here; answer until a time of time.monotonic()."""
        self._commit = GroupCommit(appender, self._applier)
        self.leads_until = until
        self.leading_changed()

    async def stop_leading(self) -> None:
        """Take no more writes; returns when those under way are decided."""
        self.leads_until = -math.inf
        commit, self._commit = self._commit, None
        if commit is not None:
            self.leading_changed()
            # Who waits here for what only comes to whoever leads is told to go there.
            self.changes.wake_all()
            self.channels.wake_all()
            await commit.close()

    async def take(self, entries: Sequence[LogEntry]) -> None:
        """Keep and apply records that another node has appended. Raises CorruptionError where they do not continue the copy here."""
        copied = await asyncio.to_thread(self.log.append, [entry.record for entry in entries], entries[0].sequence - 1)
        if copied[-1] != entries[-1]:
            raise CorruptionError(
                f"the log and the copy of it here differ: after sequence {entries[-1].sequence} the running CRC is"
                f" {entries[-1].running_crc:#010x} there and {copied[-1].running_crc:#010x} here",
                path=str(self.log.path),
            )
        self._checkpoint_bytes += sum(len(entry.record.payload) for entry in entries)
        await self._applier.put([Durable(entry) for entry in entries])
        self._maintenance.work.set()

    async def all_applied(self) -> None:
        """Return when all that was taken is applied. Raises WritesStoppedError where that has failed."""
        await self._applier.drained()
        if self._applier.failed_reason:
            raise WritesStoppedError(self._applier.failed_reason)

    async def copied(self, sequence: int) -> None:
        """Return when the log here has a record that is applied: of a replicated log it is a copy, which comes behind.

        Raises WritesStoppedError where it never will.
        """
        while self.log.last_sequence < sequence:
            if self.log.stopped_reason:
                raise WritesStoppedError(self.log.stopped_reason)
            await asyncio.sleep(COPIED_POLL_SECONDS)

    async def applied(self, sequence: int, seconds_max: float) -> None:
        """Return when a record is applied, and all that reads wait for (`answers_from`), or the time is up."""
        deadline = time.monotonic() + seconds_max
        while self.applied_sequence < max(sequence, self.answers_from) and time.monotonic() < deadline:  # noqa: ASYNC110 - an event for each record would cost all of them
            await asyncio.sleep(APPLIED_POLL_SECONDS)

    @property
    def owner(self) -> str:
        """Address of the node that leads; empty: that is not known."""
        lease = self.state.lease
        return lease.address if lease is not None and lease.duration_ms else ""

    def _moved(self) -> MovedError:
        owner = self.owner
        return MovedError(f"this node does not lead the shard; {owner or 'nobody is known to'} does", owner=owner)

    def repeated(self, request_id: str, fingerprint: int) -> command_pb2.CommandResult | None:
        """The result of a request that was applied before. Raises RequestIdReusedError for another one under the same id.

        Of one that may have been applied to some of its hash slots alone it is known when it is applied: it is none here.
        """
        if not request_id:
            return None
        remembered = self.state.deduplication.find(request_id, self.now_unix_ms())
        if remembered is None or _is_part(remembered, fingerprint):
            return None
        return _accepted(repeated_result(remembered, fingerprint))

    async def write(self, command: command_pb2.Command, observer: Observer | None = None) -> command_pb2.CommandResult:
        """Make a checked command durable and apply it, with an observer if it runs operations on keys.

        Raises what the command was refused for, OverloadedError, ShuttingDownError, or WritesStoppedError, after which the
        outcome is known when the server has restarted.
        """
        return await self._written(*self._submit(command, observer))

    async def write_in_turn(self, command: command_pb2.Command) -> asyncio.Task[command_pb2.CommandResult]:
        """Like write, but wait for room in the queue, and return when the command is queued, with its result to come.

        So commands that one caller writes one after the other come into the log in that order. Raises ShuttingDownError or
        WritesStoppedError.
        """
        if self._commit is not None:
            await self._commit.room(command.ByteSize() + RECORD_OVERHEAD_BYTES)
        return asyncio.create_task(self._written(*self._submit(command)))

    def _submit(
        self, command: command_pb2.Command, observer: Observer | None = None
    ) -> tuple[asyncio.Future[command_pb2.CommandResult], int]:
        """Queue a command; its result to come, and the size of its record."""
        if self._commit is None:
            raise self._moved()
        # Never smaller than in a record before, those included that are not applied yet.
        command.time_unix_ms = self._last_time_unix_ms = max(self.now_unix_ms(), self._last_time_unix_ms)
        payload = command.SerializeToString()
        return self._commit.submit(Record(COMMAND_RECORD, payload), observer), len(payload)

    async def _written(
        self, queued: asyncio.Future[command_pb2.CommandResult], size_bytes: int
    ) -> command_pb2.CommandResult:
        result = await queued
        self.last_write = time.monotonic()
        self._checkpoint_bytes += size_bytes
        self._maintenance.work.set()
        return _accepted(result)

    async def settled(self, collection: Collection | None = None) -> None:
        """Return when a collection (None: each of them) is not changed in part; it may then be read until the next await."""
        if collection is None:
            if not self._applier.is_settled:
                await self._applier.settled()
            return
        while collection.changing or self.state.committing:
            await self._applier.settled()

    async def uncommitted(self) -> None:
        """Return when no transaction is applied in part; keys may then be read until the next await."""
        while self.state.committing:
            await self._applier.settled()

    def at_least(self, sequence: int) -> None:
        """Raises PositionAheadError where the log has not come so far."""
        if sequence > self.applied_sequence:
            raise PositionAheadError(
                f"position {sequence} is ahead of the log, which ends at {self.applied_sequence}",
                applied_sequence=str(self.applied_sequence),
            )

    def now_unix_ms(self) -> int:
        """The time that reads and records go by: the clock's, but never before that of a record applied already."""
        return max(self.clock.now_unix_ms(), self.state.time_unix_ms)

    async def ensure_columns(self, collection: Collection, paths: Iterable[FieldPath]) -> None:
        """Return with the collection settled and the payload columns of all paths complete; builds them in slices."""
        held_since = time.perf_counter()
        for _ in collection.payloads.ensure_columns(paths):
            if time.perf_counter() - held_since > SLICE_SECONDS:
                await asyncio.sleep(0)
                held_since = time.perf_counter()
        await self.settled(collection)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    async def checkpoint(self) -> CheckpointReport:
        """Take a checkpoint now and trim the log; goes on when the caller is cancelled. Raises CheckpointError."""
        task = asyncio.create_task(self._checkpoint(), name="checkpoint")
        self._running_checkpoints.add(task)
        task.add_done_callback(self._checkpoint_ended)
        return await asyncio.shield(task)

    def _checkpoint_ended(self, task: asyncio.Task[CheckpointReport]) -> None:
        self._running_checkpoints.discard(task)
        # Whoever waited may be gone, at exit above all, where a checkpoint under way is abandoned.
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.info("no checkpoint: %s", error)

    async def _checkpoint(self) -> CheckpointReport:
        async with self._checkpointing:
            if self.state.keyspace_damage:
                raise CheckpointError("a checkpoint would leave out the keys, which are damaged")
            if self.state.damaged:
                names = ", ".join(map(repr, self.state.damaged))
                raise CheckpointError(f"a checkpoint would leave out damaged collections: {names}")
            async with self._maintenance.pausing:
                await self.settled()
                sequence = self.applied_sequence
                if not self._has_something_new():
                    return CheckpointReport(sequence, 0, 0.0, 0.0)
                self._checkpoint_bytes = self._maintenance.drained_rows = 0
                self._forked = ForkedImage(self._store, self.state, sequence, self._applier.applied_running_crc)
            try:
                try:
                    await self.copied(sequence)  # a checkpoint must not be ahead of the log beside it
                except BaseException:
                    self._forked.abandon()
                    raise
                report = await self._forked.publish()
            finally:
                self._forked = None
            self.checkpoint_sequence = sequence
            self._checkpoint_size_bytes = report.size_bytes
            self.failures.pop("take checkpoints", None)
            await in_own_thread(self._trim)
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
        self._store.remove(self.recovery.damaged_checkpoints)
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
            except (VecmemError, OSError) as error:
                # Nothing is lost without it: the log has every record. The next one is due when as much again was written.
                _logger.exception("a checkpoint failed")
                self.failures["take checkpoints"] = repr(error)

    def _has_something_new(self) -> bool:
        """Whether a checkpoint would save records, or so much more of the graphs that a restart would notice."""
        return (
            self.applied_sequence != self.checkpoint_sequence or self._maintenance.drained_rows >= CHECKPOINT_WORTH_ROWS
        )

    def _wants_checkpoint(self) -> bool:
        if self.state.damaged or self.state.keyspace_damage or self.read_only_reason or not self._has_something_new():
            return False
        if self._checkpoint_bytes >= self._settings.checkpoint_log_bytes:
            return True
        idle_seconds = time.monotonic() - self.last_write
        worth_bytes = max(CHECKPOINT_WORTH_BYTES, int(CHECKPOINT_WORTH_SHARE * self._checkpoint_size_bytes))
        worth = self._checkpoint_bytes >= worth_bytes or self._maintenance.drained_rows >= CHECKPOINT_WORTH_ROWS
        return worth and idle_seconds >= self._settings.checkpoint_idle_seconds and not self._maintenance.has_work()

    # -- background ---------------------------------------------------------------------------------------------------

    async def _supervise(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run background work for ever; a failure is told at once and the work begun again, later each time."""
        pause_seconds = BACKGROUND_RETRY_SECONDS
        while True:
            try:
                await work()
            except Exception as error:
                _logger.exception("background work failed: %s", name)
                self.failures[name] = repr(error)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, BACKGROUND_RETRY_SECONDS_MAX)

    async def _evict_keys(self, keys: list[bytes]) -> int:
        command = command_pb2.Command()
        command.evict_keys.keys.extend(keys)
        command.evict_keys.only_expiring = self.memory.policy != LRU
        return (await self.write(command)).deleted_count

    # -- the end ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Close at the end of the block."""
        try:
            yield
        finally:
            await self.close()

    def end_waiting(self) -> None:
        """Let calls that wait for something end, which would hold up the end of the node."""
        self.ending = True
        self.changes.wake_all()
        self.channels.wake_all()

    async def close(self) -> None:
        """Answer all writes taken, take a last checkpoint if so configured, and close the log."""
        if self._commit is not None:
            await self._commit.drain()
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                _logger.error("a background task had failed", exc_info=outcome)
        # A cancelled task may have left a slice running in its thread; a fork in the middle of it would save half an insertion.
        await self._maintenance.idle()
        if self._forked is not None:
            self._forked.abandon()
        async with self._checkpointing:
            pass  # the one under way ends before the log is closed under it
        if (
            self._settings.checkpoint_on_exit
            and not self.read_only_reason
            and not self.state.damaged
            and not self.state.keyspace_damage
        ):
            try:
                await self.checkpoint()
            except (VecmemError, OSError):
                _logger.exception("the last checkpoint failed; the next start replays the log instead")
        if self._commit is not None:
            await self._commit.close()
        await self._applier.close()
        self._maintenance.close()
        self.log.close()


def _nothing() -> None:
    """Nobody wants to know."""


def _is_part(remembered: command_pb2.DeduplicationEntry, fingerprint: int) -> bool:
    """Whether a request on points may have slots that it was not applied to here."""
    result = remembered.result
    on_keys = bool(result.operation_results) or result.HasField("transaction")
    return bool(remembered.slots) and not on_keys and remembered.request_fingerprint == fingerprint


def _accepted(result: command_pb2.CommandResult) -> command_pb2.CommandResult:
    if result.HasField("refusal"):
        raise refusal_error(result.refusal)
    return result
