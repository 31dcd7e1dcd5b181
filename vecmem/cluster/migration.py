"""Moving hash slots to other shards, by the primary of the shard that has them.

A group of slots moves at a time, small enough that what its writers wait for is short:

    copy, and copy again what changed, until little is left      the target's log: StageSlots
    block writes to the group                                    the source's log: BLOCK
    copy what is left; compare digests
    give the group away                                          the source's log: RELEASE
    take it over                                                 the target's log: OWN
    say so to everybody                                          the slot map, by compare-and-set

Up to RELEASE the group can go back, and does when anything takes too long or fails: UNBLOCK, and from the beginning. From RELEASE on it
only goes forward. The source's log remembers what has to be said to the target, so whoever leads the source next finds it and goes on.
What is blocked when a primary begins is what another one left behind: it is unblocked. So a crash anywhere is followed by the same steps as
no crash, and nothing of where a move stands is kept but in the two logs and the slot map.

Writes of a group wait from BLOCK until it is known who has it, reads from RELEASE: whoever gave it away must not answer for it, since the
other shard may have taken writes by then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from vecmem.cluster.migration_target import MigrationTarget, definitions
from vecmem.cluster.v1 import migration_pb2
from vecmem.errors import SlotStateError, UnavailableError, VecmemError
from vecmem.slots import SLOTS
from vecmem.store.shard import Shard
from vecmem.store.slot_copy import CopyOverrunError, SlotCopy, slot_sizes
from vecmem.store.slot_sets import SlotMask, ranges_of, shown
from vecmem.store.slot_table import Release
from vecmem.store.v1 import command_pb2

GROUP_BYTES: Final = 192 * 1024
"""Of a group, about: what its writers wait for grows with it. A slot that holds more is a group of its own."""
GROUP_SLOTS_MAX: Final = 512
PART_BYTES: Final = 512 * 1024
"""Of a part, about; one more value or point may be larger. Far below the largest record of any log."""
ROUNDS_MAX: Final = 20
"""Copies of what changed before writes are blocked in any case."""
LEFT_MAX: Final = 16
"""Keys and points that may be left to copy while writes are blocked."""
BLOCKED_SECONDS_MAX: Final = 0.2
"""How long writes may be blocked before the group is given away; then it goes back. Twice as long for each try that this has ended."""
DOUBLINGS_MAX: Final = 8
"""So that a slot whose one large value changes all the time moves in the end."""
RELEASES_MAX: Final = 3
"""Tries to give a blocked group away that something expires from."""
REST_FACTOR: Final = 3.0
"""Of the time that a group took, that the next one is put off while this node answers calls."""
REST_SECONDS_MAX: Final = 10.0
REST_SLICE_SECONDS: Final = 0.05
"""A rest is over when so long no call has come."""
POLL_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.02
RETRY_SECONDS_MAX: Final = 2.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Migration:
    """Slots that are to move from one shard to another: those of them that have not yet."""

    source: int
    target: int
    slots: SlotMask
    bytes_per_second_max: int = 0
    """Copied at most, whatever else goes on; 0: as fast as leaves room for calls."""


class SlotMap(Protocol):
    """Who owns which slot, as the whole cluster sees it. All raise UnavailableError where it cannot be reached."""

    async def migrations(self) -> Sequence[Migration]:
        """What is to be moved now."""

    async def slots_of(self, shard: int) -> SlotMask:
        """The slots that are a shard's by the map."""

    async def moved(self, slots: SlotMask, source: int, target: int) -> None:
        """Make slots the target's, by compare-and-set; nothing where they are."""


CallShard = Callable[[int], Awaitable[MigrationTarget]]
"""Reaches the primary that a shard has now. Raises UnavailableError."""


@dataclass(slots=True)
class MigrationProgress:
    """How far the moves to one shard have come, since this node leads."""

    target: int
    slots_left: int = 0
    slots_moved: int = 0
    points_copied: int = 0
    """Those that were copied again are counted again."""
    keys_copied: int = 0
    bytes_copied: int = 0
    restarts: int = 0
    """Groups that were begun again."""
    mismatches: int = 0
    """Of these, because source and target had not the same."""
    last_error: str = ""
    blocked_ms: deque[float] = field(default_factory=lambda: deque(maxlen=4_096))
    """How long writes were blocked, for each of the last groups."""


class Migrator:
    """Moves slots away from the shard of this node while it leads."""

    def __init__(
        self,
        shard: Shard,
        number: int,
        slot_map: SlotMap,
        call_shard: CallShard,
        *,
        group_bytes: int = GROUP_BYTES,
        calls_count: Callable[[], int] = int,
    ) -> None:
        """`number`: of the shard; `calls_count`: how many calls this node was asked so far."""
        self._shard = shard
        self._number = number
        self._slot_map = slot_map
        self._call_shard = call_shard
        self._group_bytes = group_bytes
        self._calls_count = calls_count
        self.progress: dict[int, MigrationProgress] = {}
        """By target."""
        self._wake = asyncio.Event()
        self._too_long_count = 0

    def wake(self) -> None:
        """Look at the slot map now."""
        self._wake.set()

    async def run(self) -> None:
        """Move what is to be moved, for ever."""
        pause_seconds = RETRY_SECONDS
        while True:
            began = time.monotonic()
            try:
                moved_of = await self.advance() if self._shard.leads else None
                pause_seconds = RETRY_SECONDS
            except (VecmemError, OSError) as error:
                _logger.warning("moving slots: %s", error)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)
                continue
            if moved_of is None:
                self._wake.clear()
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            elif not moved_of.bytes_per_second_max:
                await self._rest(REST_FACTOR * (time.monotonic() - began))

    async def _rest(self, seconds: float) -> None:
        """Leave the processors to calls, as long as there are any: what a group takes is taken from them."""
        ends_at = time.monotonic() + min(seconds, REST_SECONDS_MAX)
        while (left_seconds := ends_at - time.monotonic()) > 0:
            before = self._calls_count()
            await asyncio.sleep(min(REST_SLICE_SECONDS, left_seconds))
            if self._calls_count() == before:
                return

    async def advance(self) -> Migration | None:
        """Bring to its end what was begun, then move one group; returns what that was of, if any. Raises what keeps it from that."""
        table = self._shard.state.slots
        if table is None:
            return None
        await self._finish_releases()
        if table.blocked_count:
            # Nothing is under way now: it was left behind.
            await self._change(command_pb2.SLOT_CHANGE_UNBLOCK, table.blocked)
        for migration in await self._slot_map.migrations():
            if migration.source != self._number:
                continue
            slots = migration.slots & table.owned
            progress = self.progress.setdefault(migration.target, MigrationProgress(migration.target))
            progress.slots_left = int(np.count_nonzero(slots))
            if slots.any():
                await self._move_group(self._next_group(slots), migration, progress)
                return migration
        return None

    # -- one group -------------------------------------------------------------------------------------------------------

    def _next_group(self, slots: SlotMask) -> SlotMask:
        """The first slots that together hold little enough."""
        sizes, _ = slot_sizes(self._shard.state, slots)
        candidates = np.flatnonzero(slots)[:GROUP_SLOTS_MAX]
        ends = np.cumsum(sizes[candidates])
        count = max(1, int(np.searchsorted(ends, self._group_bytes, side="right")))
        group = np.zeros(SLOTS, dtype=np.bool_)
        group[candidates[:count]] = True
        return group

    async def _move_group(self, slots: SlotMask, migration: Migration, progress: MigrationProgress) -> None:
        target = migration.target
        group = _Group(slots, target, progress, migration.bytes_per_second_max)
        try:
            # Its sequence is greater than those of all attempts before, whoever made them.
            group.attempt = (await self._change(command_pb2.SLOT_CHANGE_UNBLOCK, slots)).sequence
            await self._shard.settled()
            copy = SlotCopy(
                self._shard.state,
                source_shard=self._number,
                attempt=group.attempt,
                slots=slots,
                applied_sequence=self._shard.applied_sequence,
            )
            await self._steps(copy.begin())
            await self._copy_until_little_is_left(copy, group)
            described = await self._describe(group)
            if described.differing_collections:
                names = ", ".join(map(repr, described.differing_collections[:8]))
                raise SlotStateError(f"collections are not defined at shard {target} as here: {names}")
            blocked_at = time.monotonic()
            await self._give_away(copy, group, blocked_at)
        except (VecmemError, CopyOverrunError, TimeoutError) as error:
            self._too_long_count += isinstance(error, TimeoutError)
            progress.restarts += 1
            progress.last_error = str(error) or "writes would have been blocked for too long"
            _logger.warning("slots %s do not move to shard %d yet: %s", shown(slots), target, progress.last_error)
            await self._go_back(group)
            if isinstance(error, VecmemError):
                raise
            raise UnavailableError(progress.last_error) from error
        self._too_long_count = 0
        table = self._shard.state.slots
        assert table is not None
        for release in [one for one in table.releases if one.attempt == group.attempt]:
            await self._finish(release)
        progress.blocked_ms.append((time.monotonic() - blocked_at) * 1e3)
        progress.slots_moved += int(np.count_nonzero(slots))
        progress.slots_left -= int(np.count_nonzero(slots))
        progress.points_copied += copy.copied_points
        progress.keys_copied += copy.copied_keys
        progress.last_error = ""

    async def _copy_until_little_is_left(self, copy: SlotCopy, group: _Group) -> None:
        for _ in range(ROUNDS_MAX):
            # The first part comes even where there is nothing to copy: it begins the attempt at the target.
            await self._send_all(copy, group, throttled=True)
            await self._catch_up(copy)
            if copy.left <= LEFT_MAX:
                return

    async def _give_away(self, copy: SlotCopy, group: _Group, blocked_at: float) -> None:
        """Block the group, copy what is left, compare, and release it."""
        blocked_until = blocked_at + BLOCKED_SECONDS_MAX * 2 ** min(self._too_long_count, DOUBLINGS_MAX)
        async with asyncio.timeout(blocked_until - time.monotonic()):
            await self._change(command_pb2.SLOT_CHANGE_BLOCK, group.slots)
        for _ in range(RELEASES_MAX):
            async with asyncio.timeout(blocked_until - time.monotonic()):
                await self._catch_up(copy)
                if copy.left:
                    await self._send_all(copy, group, throttled=False)
                # What the target has now, even where nothing was left to copy: behind this there is no way back.
                digest = (await self._describe(group)).digest
            group.may_be_released = True
            try:
                await self._change(command_pb2.SLOT_CHANGE_RELEASE, group.slots, group.target, group.attempt, digest)
            except SlotStateError:
                group.may_be_released = False
                await self._catch_up(copy)
                if not copy.left:
                    group.progress.mismatches += 1
                    _logger.exception(
                        "slots %s: shard %d has not what is here, and they are copied again",
                        shown(group.slots),
                        group.target,
                    )
                    raise
            else:
                return
            # Something has expired, or was evicted, since it was copied.
        raise UnavailableError(f"slots {shown(group.slots)} go on changing while their writes are blocked")

    async def _go_back(self, group: _Group) -> None:
        """Take writes again, and have the target forget the attempt. What fails of it the next attempt makes good.

        Where it is not known whether the log has the release, nothing is done: it may be what the target has alone.
        """
        table = self._shard.state.slots
        if group.may_be_released or table is None:
            return
        try:
            if (table.blocked & group.slots).any():
                await self._change(command_pb2.SLOT_CHANGE_UNBLOCK, table.blocked & group.slots)
            if group.attempt:
                request = migration_pb2.DropStagedRequest(source_shard=self._number, attempt=group.attempt)
                await (await self._call_shard(group.target)).drop(request)
        except VecmemError as error:
            _logger.warning("what is left of an attempt at moving slots stays for now: %s", error)

    # -- what was given away ---------------------------------------------------------------------------------------------

    async def _finish_releases(self) -> None:
        """Have all slots that were given away owned by who they were given to, and tell everybody."""
        table = self._shard.state.slots
        assert table is not None
        if not table.releases:
            return
        mine = await self._slot_map.slots_of(self._number)
        for release in list(table.releases):
            if (release.slots & mine & ~table.owned).any():
                await self._finish(release)

    async def _finish(self, release: Release) -> None:
        """Go on until it is done: nobody takes writes of these slots meanwhile."""
        pause_seconds = RETRY_SECONDS
        request = migration_pb2.OwnSlotsRequest(
            source_shard=self._number,
            release=command_pb2.SlotRelease(
                slots=ranges_of(release.slots),
                peer_shard=release.peer_shard,
                attempt=release.attempt,
                version_floor=release.version_floor,
                keyspace_version_floor=release.keyspace_version_floor,
                digest=release.digest,
            ),
        )
        while True:
            try:
                await self._finish_once(release, request)
            except VecmemError as error:
                if not self._shard.leads:
                    raise
                level = logging.WARNING if isinstance(error, UnavailableError) else logging.ERROR
                _logger.log(
                    level, "shard %d has not taken slots %s over: %s", release.peer_shard, shown(release.slots), error
                )
                progress = self.progress.setdefault(release.peer_shard, MigrationProgress(release.peer_shard))
                progress.last_error = str(error)
            else:
                return
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)

    async def _finish_once(self, release: Release, request: migration_pb2.OwnSlotsRequest) -> None:
        self._shard.check_leads()
        del request.collections[:]
        request.collections.extend(definitions(self._shard.state))
        await (await self._call_shard(release.peer_shard)).own(request)
        await self._slot_map.moved(release.slots, self._number, release.peer_shard)

    # -- inside ----------------------------------------------------------------------------------------------------------

    async def _send_all(self, copy: SlotCopy, group: _Group, *, throttled: bool) -> None:
        while copy.left or not group.began:
            part = await self._next_part(copy)
            group.began = True
            size_bytes = part.ByteSize()
            sent_at = time.monotonic()
            await self._stage(group, part)
            group.progress.bytes_copied += size_bytes
            if throttled and group.bytes_per_second_max:
                due_at = sent_at + size_bytes / group.bytes_per_second_max
                await asyncio.sleep(max(0.0, due_at - time.monotonic()))

    async def _next_part(self, copy: SlotCopy) -> command_pb2.StageSlots:
        await self._shard.settled()
        for made in copy.next_part(PART_BYTES):
            if made is not None:
                return made
            await self._pause()
        raise AssertionError("a part comes last")

    async def _stage(self, group: _Group, part: command_pb2.StageSlots) -> None:
        """Have a part put aside. Once more where it is not known whether it was: it is passed over if so."""
        request = migration_pb2.StageSlotsRequest(part=part)
        try:
            await (await self._call_shard(group.target)).stage(request)
        except UnavailableError:
            await asyncio.sleep(RETRY_SECONDS)
            await (await self._call_shard(group.target)).stage(request)

    async def _describe(self, group: _Group) -> migration_pb2.DescribeSlotsResponse:
        request = migration_pb2.DescribeSlotsRequest(
            source_shard=self._number,
            attempt=group.attempt,
            slots=ranges_of(group.slots),
            collections=definitions(self._shard.state),
        )
        return await (await self._call_shard(group.target)).describe(request)

    async def _catch_up(self, copy: SlotCopy) -> None:
        await self._shard.settled()
        await self._steps(copy.catch_up(self._shard.applied_sequence))

    async def _change(
        self,
        change: command_pb2.SlotChange.ValueType,
        slots: SlotMask,
        target: int = 0,
        attempt: int = 0,
        digest: bytes = b"",
    ) -> command_pb2.CommandResult:
        command = command_pb2.Command()
        command.set_slots.change = change
        command.set_slots.slots.extend(ranges_of(slots))
        command.set_slots.peer_shard, command.set_slots.attempt = target, attempt
        command.set_slots.digest = digest
        return await self._shard.write(command)

    async def _steps(self, steps: Iterator[None]) -> None:
        for _ in steps:
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(0)
        await self._shard.settled()


@dataclass(slots=True, eq=False)
class _Group:
    """One group on its way."""

    slots: SlotMask
    target: int
    progress: MigrationProgress
    bytes_per_second_max: int = 0
    attempt: int = 0
    began: bool = False
    """Whether the target knows of the attempt."""
    may_be_released: bool = False
