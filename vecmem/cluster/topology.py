"""Which shard has which slots: the topology as values, what makes one valid, and the changes that it may undergo.

Nothing here asks or tells anybody: a change takes a topology and gives the next one, with the next epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.errors import InvalidTopologyError, LimitExceededError, TopologyConflictError
from vecmem.slots import SLOTS
from vecmem.v1.cluster_pb2 import Migration, ShardInfo, SlotRange, Topology

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

SHARDS_MAX: Final = 1_024
SLOT_BYTES_MIN: Final = 4_096
"""What a slot counts for at least when slots are shared out."""
BALANCED_SHARE: Final = 0.01
"""Of what a shard should hold: a smaller difference is not worth moving slots for."""


@dataclass(frozen=True, slots=True, eq=False)
class SlotMap:
    """A valid topology, made for looking up."""

    topology: Topology
    shard_of: NDArray[np.int32]
    """By slot; shape (SLOTS,)."""
    numbers: tuple[int, ...]
    """Of the shards that have slots, rising."""

    @property
    def epoch(self) -> int:
        """Of the topology."""
        return self.topology.epoch

    @property
    def is_single(self) -> bool:
        """Whether one shard has all slots."""
        return len(self.numbers) == 1


def slot_map(topology: Topology) -> SlotMap:
    """Check a topology and make it a map.

    Raises:
        InvalidTopologyError: a slot belongs to no shard or to several, two shards have one number, or a migration is about slots that
            its source does not have, or about a shard that is not there.
    """
    shard_of = np.full(SLOTS, -1, dtype=np.int32)
    numbers = [shard.number for shard in topology.shards]
    if sorted(set(numbers)) != numbers:
        raise InvalidTopologyError(f"the shards {numbers} are not rising", field="shards")
    for shard in topology.shards:
        for place, slot_range in enumerate(shard.slots):
            field = f"shards[{shard.number}].slots[{place}]"
            first, stop = _checked(slot_range, field)
            taken = np.flatnonzero(shard_of[first:stop] >= 0)
            if taken.size:
                slot = first + int(taken[0])
                raise InvalidTopologyError(
                    f"slot {slot} belongs to shard {shard_of[slot]} and to shard {shard.number}", field=field
                )
            shard_of[first:stop] = shard.number
    missing = np.flatnonzero(shard_of < 0)
    if missing.size:
        raise InvalidTopologyError(f"slot {missing[0]} and {missing.size - 1} more belong to no shard", field="shards")
    moving = np.zeros(SLOTS, dtype=np.bool_)
    for place, migration in enumerate(topology.migrations):
        _check_migration(migration, f"migrations[{place}]", shard_of, numbers, moving)
    return SlotMap(topology, shard_of, tuple(np.unique(shard_of).tolist()))


def _check_migration(
    migration: Migration, field: str, shard_of: NDArray[np.int32], numbers: Collection[int], moving: NDArray[np.bool_]
) -> None:
    for number in (migration.source, migration.target):
        if number not in numbers:
            raise InvalidTopologyError(f"there is no shard {number}", field=field)
    if migration.source == migration.target:
        raise InvalidTopologyError(f"shard {migration.source} is source and target", field=field)
    if not migration.slots:
        raise InvalidTopologyError("no slots are named", field=f"{field}.slots")
    for slot_range in migration.slots:
        first, stop = _checked(slot_range, f"{field}.slots")
        if moving[first:stop].any():
            slot = first + int(np.flatnonzero(moving[first:stop])[0])
            raise InvalidTopologyError(f"slot {slot} is on its way already", field=f"{field}.slots")
        others = np.flatnonzero(shard_of[first:stop] != migration.source)
        if others.size:
            slot = first + int(others[0])
            raise InvalidTopologyError(
                f"slot {slot} is not shard {migration.source}'s but shard {shard_of[slot]}'s", field=f"{field}.slots"
            )
        moving[first:stop] = True


def _checked(slot_range: SlotRange, field: str) -> tuple[int, int]:
    if not slot_range.first <= slot_range.last < SLOTS:
        raise InvalidTopologyError(
            f"{slot_range.first} to {slot_range.last} is no range of slots from 0 to {SLOTS - 1}", field=field
        )
    return slot_range.first, slot_range.last + 1


def initial(cluster: str, shard_count: int) -> Topology:
    """The first topology of a cluster: slots in even ranges. Raises LimitExceededError."""
    if not 1 <= shard_count <= SHARDS_MAX:
        raise LimitExceededError(f"{shard_count} shards are not 1 to {SHARDS_MAX}", field="shards")
    bounds = [number * SLOTS // shard_count for number in range(shard_count + 1)]
    shards = [
        ShardInfo(number=number, slots=[SlotRange(first=first, last=stop - 1)])
        for number, (first, stop) in enumerate(pairwise(bounds))
    ]
    return Topology(cluster=cluster, epoch=1, shards=shards, next_shard_number=shard_count)


def alone() -> Topology:
    """Of a node that is in no cluster."""
    return initial("", 1)


def check_epoch(topology: Topology, expected_epoch: int) -> None:
    """Raises TopologyConflictError where a change was made for another one; 0 is made for any."""
    if expected_epoch not in (0, topology.epoch):
        raise TopologyConflictError(
            f"the epoch is {topology.epoch}, not {expected_epoch}", field="expected_epoch", epoch=str(topology.epoch)
        )


def with_shard_added(topology: Topology) -> Topology:
    """One more shard, without slots; it is the last one. Raises LimitExceededError."""
    if len(topology.shards) >= SHARDS_MAX:
        raise LimitExceededError(f"there are {SHARDS_MAX} shards already")
    changed = _next(topology)
    changed.shards.add(number=changed.next_shard_number)
    changed.next_shard_number += 1
    return changed


def with_shard_removed(topology: Topology, number: int) -> Topology:
    """Without a shard that has no slots. Raises InvalidTopologyError."""
    shard = _shard(topology, number, "shard")
    if shard.slots:
        raise InvalidTopologyError(
            f"shard {number} has {slot_count(shard.slots)} slots: move them first", field="shard"
        )
    if any(number in (migration.source, migration.target) for migration in topology.migrations):
        raise InvalidTopologyError(f"slots are on their way to shard {number}", field="shard")
    changed = _next(topology)
    del changed.shards[:]
    changed.shards.extend(other for other in topology.shards if other.number != number)
    return changed


def with_migrations(topology: Topology, migrations: Iterable[Migration]) -> Topology:
    """With slots on their way. Raises InvalidTopologyError."""
    changed = _next(topology)
    changed.migrations.extend(migrations)
    slot_map(changed)
    return changed


def with_migrations_cancelled(topology: Topology, source: int | None) -> Topology:
    """Without the migrations from a shard; None: from any."""
    changed = _next(topology)
    del changed.migrations[:]
    if source is not None:
        changed.migrations.extend(migration for migration in topology.migrations if migration.source != source)
    return changed


def with_slots_moved(topology: Topology, slots: Collection[int], source: int, target: int) -> Topology:
    """With slots given from one shard to another, and no longer on their way. Raises InvalidTopologyError."""
    changed = _next(topology)
    shard_of = slot_map(topology).shard_of.copy()
    places = np.array(sorted(slots), dtype=np.int64)
    strangers = places[shard_of[places] != source]
    if strangers.size:
        raise InvalidTopologyError(f"slot {strangers[0]} is not shard {source}'s")
    _shard(topology, target, "target")
    shard_of[places] = target
    for shard in changed.shards:
        del shard.slots[:]
        shard.slots.extend(ranges_of(np.flatnonzero(shard_of == shard.number).tolist()))
    gone = set(slots)
    del changed.migrations[:]
    for migration in topology.migrations:
        left = [slot for slot in slots_in(migration.slots) if slot not in gone]
        if left:
            kept = changed.migrations.add()
            kept.CopyFrom(migration)
            del kept.slots[:]
            kept.slots.extend(ranges_of(left))
    return changed


def plan_rebalance(
    topology: Topology,
    slot_bytes: Mapping[int, Sequence[float]],
    leaving: Collection[int],
) -> tuple[list[Migration], dict[int, float]]:
    """Which slots have to move so that all shards hold about as much, and what each then holds.

    Args:
        topology: as it is, without migrations.
        slot_bytes: by shard: what each of the SLOTS slots takes there, bytes, 0 for those of others.
        leaving: shards that are to keep nothing.

    Raises InvalidTopologyError where nobody would be left, a shard is not there, or slots are on their way.
    """
    if topology.migrations:
        raise InvalidTopologyError("slots are on their way already: wait for the end of that, or cancel it")
    for number in leaving:
        _shard(topology, number, "leaving_shards")
    staying = [shard.number for shard in topology.shards if shard.number not in leaving]
    if not staying:
        raise InvalidTopologyError("no shard would be left", field="leaving_shards")
    owned = {shard.number: slots_in(shard.slots) for shard in topology.shards}
    # A slot counts even when it is empty: a cluster that holds little is shared out by slots, and not by its few keys.
    weight_of = {slot: slot_bytes[number][slot] + SLOT_BYTES_MIN for number, slots in owned.items() for slot in slots}
    held = {number: sum(weight_of[slot] for slot in slots) for number, slots in owned.items()}
    wanted = sum(held.values()) / len(staying)
    moves: dict[tuple[int, int], list[int]] = {}
    for source in sorted(held, key=lambda number: (number not in leaving, -held[number])):
        floor = 0.0 if source in leaving else wanted
        # From the end of its ranges, so that few ranges come of it.
        for slot in reversed(owned[source]):
            target = min(staying, key=lambda number: (held[number], number))
            weight = weight_of[slot]
            if source not in leaving:
                if held[source] - floor <= BALANCED_SHARE * wanted:
                    break
                if held[target] + weight >= held[source]:
                    continue
            held[source] -= weight
            held[target] += weight
            moves.setdefault((source, target), []).append(slot)
    migrations = [
        Migration(source=source, target=target, slots=ranges_of(sorted(slots)), total_slot_count=len(slots))
        for (source, target), slots in sorted(moves.items())
    ]
    held_bytes = {number: weight - SLOT_BYTES_MIN * len(owned[number]) for number, weight in held.items()}
    for (source, target), slots in moves.items():
        held_bytes[source] += SLOT_BYTES_MIN * len(slots)
        held_bytes[target] -= SLOT_BYTES_MIN * len(slots)
    return migrations, held_bytes


def slots_in(ranges: Iterable[SlotRange]) -> list[int]:
    """All slots of ranges, in their order."""
    return [slot for slot_range in ranges for slot in range(slot_range.first, slot_range.last + 1)]


def slot_count(ranges: Iterable[SlotRange]) -> int:
    """How many slots ranges have."""
    return sum(slot_range.last - slot_range.first + 1 for slot_range in ranges)


def ranges_of(slots: Sequence[int]) -> list[SlotRange]:
    """Rising slots as ranges that do not touch."""
    found: list[SlotRange] = []
    for slot in slots:
        if found and found[-1].last + 1 == slot:
            found[-1].last = slot
        else:
            found.append(SlotRange(first=slot, last=slot))
    return found


def _shard(topology: Topology, number: int, field: str) -> ShardInfo:
    for shard in topology.shards:
        if shard.number == number:
            return shard
    raise InvalidTopologyError(f"there is no shard {number}", field=field)


def _next(topology: Topology) -> Topology:
    changed = Topology()
    changed.CopyFrom(topology)
    changed.epoch += 1
    return changed
