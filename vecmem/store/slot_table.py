"""Which hash slots a shard owns: part of its state, and decided by its log alone.

A slot is owned or not; one that is owned may be blocked for a moment, while it moves away: it is read, but takes no write. What was
given away is remembered for as long as it does not come back, with all that its new owner has to be told, so that a move that was
interrupted between two logs can be brought to its end by whoever leads then.

Versions of points are the sequence of the record that wrote them, plus an offset that grows when points of a shard with a longer log move
in: so a point's versions grow through all moves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecmem.errors import MovedError, SlotMovingError
from vecmem.slots import SLOTS, slot_of
from vecmem.store.slot_sets import SlotMask, mask_of_ranges, ranges_of
from vecmem.store.v1 import command_pb2


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """Slots that were given away, and what their new owner has to be told: see SetSlots in command.proto."""

    slots: SlotMask
    peer_shard: int
    attempt: int
    version_floor: int
    keyspace_version_floor: int
    digest: bytes


class SlotTable:
    """The slots of one shard. Changed by applying records alone (vecmem.store.slot_moves)."""

    def __init__(self, owned: SlotMask) -> None:
        self.owned: SlotMask = owned.copy()
        self.blocked: SlotMask = np.zeros(SLOTS, dtype=np.bool_)
        self.blocked_count = 0
        """How many slots are blocked."""
        self.releases: list[Release] = []
        """What was given away, oldest first; a slot that came back is in none."""
        self.released_to: dict[int, int] = {}
        """The shard that a slot was given to."""
        self.revision = 0
        """Sequence of the record that changed the table last."""
        self.ended_attempts: dict[int, int] = {}
        """By source: the greatest attempt at moving slots here that has come to its end."""
        self.version_offsets: list[tuple[int, int]] = []
        """From which record on versions are how much ahead of sequences, rising."""

    def owns(self, slot: int) -> bool:
        """Whether a slot is owned here."""
        return bool(self.owned[slot])

    def ranges(self) -> list[tuple[int, int]]:
        """The slots owned, as first and last of each run."""
        return [(part.first, part.last) for part in ranges_of(self.owned)]

    @property
    def version_offset(self) -> int:
        """How much the version of a record's points is ahead of its sequence now."""
        return self.version_offsets[-1][1] if self.version_offsets else 0

    def version_at(self, sequence: int) -> int:
        """The version of the points that a record wrote."""
        place = bisect_right(self.version_offsets, (sequence, 1 << 63))
        return sequence + (self.version_offsets[place - 1][1] if place else 0)

    def check(self, slot: int, *, writes: bool = False) -> None:
        """Raises MovedError for a slot that is not owned here, and for a write SlotMovingError for one that is blocked."""
        if not self.owned[slot]:
            raise self.moved_error(slot)
        if writes and self.blocked_count and self.blocked[slot]:
            raise moving_error(slot)

    def check_names(self, names: Iterable[bytes]) -> None:
        """Before a read, in the same turn of the event loop. Raises MovedError for keys, or ids of points, that are not owned here."""
        for name in names:
            self.check(slot_of(name))

    def not_owned(self, slots: NDArray[np.int64]) -> MovedError | None:
        """Why a request that names these slots does not belong here; None: all are owned."""
        owned = self.owned[slots]
        return None if owned.all() else self.moved_error(int(slots[np.argmin(owned)]))

    def first_blocked(self, slots: NDArray[np.int64]) -> SlotMovingError | None:
        """Why a write to these slots has to wait; None: it need not."""
        if not self.blocked_count:
            return None
        blocked = self.blocked[slots]
        return moving_error(int(slots[np.argmax(blocked)])) if blocked.any() else None

    def moved_error(self, slot: int) -> MovedError:
        """What to raise for a slot that is not owned here."""
        shard = self.released_to.get(slot)
        if shard is None:
            return MovedError(f"slot {slot} is not this shard's", slot=str(slot))
        return MovedError(f"slot {slot} is shard {shard}'s", slot=str(slot), shard=str(shard))

    # -- applying records ------------------------------------------------------------------------------------------------

    def set_blocked(self, slots: SlotMask, *, blocked: bool) -> None:
        """Let slots take writes or not."""
        self.blocked[slots] = blocked
        self.blocked_count = int(np.count_nonzero(self.blocked))

    def release(self, release: Release) -> None:
        """Give slots away."""
        self.owned[release.slots] = False
        self.set_blocked(release.slots, blocked=False)
        self.releases.append(release)
        self.released_to.update(dict.fromkeys(np.flatnonzero(release.slots).tolist(), release.peer_shard))

    def own(self, slots: SlotMask) -> None:
        """Take slots over."""
        self.owned[slots] = True
        for slot in np.flatnonzero(slots).tolist():
            self.released_to.pop(slot, None)
        kept: list[Release] = []
        for release in self.releases:
            if not (release.slots & slots).any():
                kept.append(release)
            elif (left := release.slots & ~slots).any():
                kept.append(_without(release, left))
        self.releases = kept

    def raise_versions(self, sequence: int, floor: int) -> None:
        """From a record on, give versions that are greater than a floor."""
        if floor > sequence + self.version_offset:
            self.version_offsets.append((sequence, floor - sequence))

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def dump(self) -> command_pb2.SlotTableImage:
        """All of it, for a checkpoint."""
        image = command_pb2.SlotTableImage(
            owned=ranges_of(self.owned),
            blocked=ranges_of(self.blocked),
            revision=self.revision,
            ended_attempts=self.ended_attempts,
        )
        for release in self.releases:
            image.releases.add(
                slots=ranges_of(release.slots),
                peer_shard=release.peer_shard,
                attempt=release.attempt,
                version_floor=release.version_floor,
                keyspace_version_floor=release.keyspace_version_floor,
                digest=release.digest,
            )
        for sequence, offset in self.version_offsets:
            image.version_offsets.add(sequence=sequence, offset=offset)
        return image

    @classmethod
    def load(cls, image: command_pb2.SlotTableImage) -> SlotTable:
        """The table that was dumped. Raises ValueError."""
        table = cls(mask_of_ranges(image.owned))
        for release in image.releases:
            table.release(
                Release(
                    slots=mask_of_ranges(release.slots),
                    peer_shard=release.peer_shard,
                    attempt=release.attempt,
                    version_floor=release.version_floor,
                    keyspace_version_floor=release.keyspace_version_floor,
                    digest=release.digest,
                )
            )
        table.set_blocked(mask_of_ranges(image.blocked), blocked=True)
        table.revision = image.revision
        table.ended_attempts = dict(image.ended_attempts)
        table.version_offsets = [(one.sequence, one.offset) for one in image.version_offsets]
        return table


def moving_error(slot: int | None) -> SlotMovingError:
    """What to raise for a write to a slot that is blocked; None: by whatever a filter selects."""
    if slot is None:
        return SlotMovingError(
            "slots of this shard are moving to another one, and take no write by filter for a moment"
        )
    return SlotMovingError(f"slot {slot} is moving to another shard, and takes no writes for a moment", slot=str(slot))


def _without(release: Release, left: SlotMask) -> Release:
    """A release of which some slots came back: what its digest was of is gone."""
    return Release(
        left, release.peer_shard, release.attempt, release.version_floor, release.keyspace_version_floor, b""
    )
