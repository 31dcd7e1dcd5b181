"""How records change which hash slots a shard owns, and what becomes of what the slots hold.

    INITIAL                    joins a cluster of shards
    BLOCK, UNBLOCK             no writes for a moment; and back
    RELEASE                    the slots are another shard's: what they hold goes
    StageSlots, DROP_STAGED    what another shard's slots hold is put aside; and dropped
    OWN                        the slots are owned, with what was put aside

A slot changes hands only where source and target have the same of it: RELEASE and OWN name a digest and are refused for anything else. What
they remove and bring is the same data as before, so no change of it is told. All are refused as a whole, or done as a whole, and a repeat
of what is done is no error. Readers of keys and points wait while one is done in part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.errors import CollectionDamagedError, SlotStateError, VecmemError
from vecmem.index.parameters import Storage
from vecmem.slots import slot_of
from vecmem.store.changes import ChangeKind, Noted
from vecmem.store.collection import Changes, Stamp, Steps
from vecmem.store.keyspace.image import load_value
from vecmem.store.slot_content import digest_of
from vecmem.store.slot_sets import SlotMask, mask_of_ranges, shown
from vecmem.store.slot_table import Release, SlotTable
from vecmem.store.v1 import command_pb2

if TYPE_CHECKING:
    from vecmem.store.staging import StagedGroup
    from vecmem.store.state_machine import StateMachine

STEP_POINTS: Final = 128
"""Points written by one command: putting it together takes about a millisecond."""
STEP_KEYS: Final = 32
"""Keys removed or put between two yields: well below a millisecond."""


def set_slots(state: StateMachine, command: command_pb2.SetSlots, stamp: Stamp) -> Steps[Changes]:
    """Apply a change of slots."""
    try:
        slots = mask_of_ranges(command.slots)
    except ValueError as error:
        return Changes(refused=SlotStateError(str(error)))
    if command.change == command_pb2.SLOT_CHANGE_INITIAL:
        return Changes(refused=(yield from _initial(state, slots, stamp)))
    table = state.slots
    if table is None:
        return Changes(refused=SlotStateError("this is no shard of a cluster of several"))
    refused: VecmemError | None
    match command.change:
        case command_pb2.SLOT_CHANGE_BLOCK | command_pb2.SLOT_CHANGE_UNBLOCK:
            refused = _not_owned(table, slots)
            if refused is None:
                table.set_blocked(slots, blocked=command.change == command_pb2.SLOT_CHANGE_BLOCK)
                table.revision = stamp.sequence
        case command_pb2.SLOT_CHANGE_RELEASE:
            refused = yield from _release(state, table, command, slots, stamp)
        case command_pb2.SLOT_CHANGE_OWN:
            refused = yield from _own(state, table, command, slots, stamp)
        case command_pb2.SLOT_CHANGE_DROP_STAGED:
            refused = None
            group = state.staging.groups.get(command.peer_shard)
            if group is not None and group.attempt <= command.attempt:
                del state.staging.groups[command.peer_shard]
            _end_attempt(table, command)
            table.revision = stamp.sequence
        case _:
            refused = SlotStateError(f"{command.change} is no change of slots that this version knows")
    return Changes(refused=refused)


def stage_slots(state: StateMachine, command: command_pb2.StageSlots) -> Steps[Changes]:
    """Put a part of what another shard's slots hold aside."""
    table = state.slots
    if table is None:
        return Changes(refused=SlotStateError("this is no shard of a cluster of several"))
    ended = table.ended_attempts.get(command.source_shard, 0)
    return Changes(refused=(yield from state.staging.take(command, table.owned, ended, state.collections)))


def _initial(state: StateMachine, slots: SlotMask, stamp: Stamp) -> Steps[VecmemError | None]:
    table = state.slots
    if table is not None:
        # A repeat: nothing has moved since.
        if np.array_equal(table.owned, slots):
            return None
        return SlotStateError(f"this shard has its slots already: {shown(table.owned)}")
    if (damage := _damage(state)) is not None:
        return damage
    for count, name in enumerate(_names(state), start=1):
        if not slots[slot_of(name)]:
            return SlotStateError(f"{name[:80]!r} is here, and slot {slot_of(name)} would not be")
        if count % 1_024 == 0:
            yield
    yield from state.keyspace.index_slots()
    for collection in state.collections.values():
        yield from collection.index_slots()
    state.slots = SlotTable(slots)
    state.slots.revision = stamp.sequence
    return None


def _names(state: StateMachine) -> Iterator[bytes]:
    yield from state.keyspace.values
    for collection in state.collections.values():
        for point_id in collection.row_of:
            yield point_id.encode()


def _release(
    state: StateMachine, table: SlotTable, command: command_pb2.SetSlots, slots: SlotMask, stamp: Stamp
) -> Steps[VecmemError | None]:
    done = (release for release in table.releases if np.array_equal(release.slots, slots))
    if any((one.peer_shard, one.attempt) == (command.peer_shard, command.attempt) for one in done):
        return None
    if not slots.any() or not table.blocked[slots].all():
        return SlotStateError(f"slots {shown(slots)} are not all blocked, only {shown(slots & table.blocked)}")
    if (damage := _damage(state)) is not None:
        return damage
    if (yield from digest_of(state, slots)) != command.digest:
        return SlotStateError(f"slots {shown(slots)} do not hold what was copied")
    release = Release(
        slots=slots,
        peer_shard=command.peer_shard,
        attempt=command.attempt,
        version_floor=stamp.version,
        keyspace_version_floor=state.keyspace.version,
        digest=command.digest,
    )
    state.committing = True
    try:
        yield from _clear(state, slots, stamp.sequence)
    finally:
        state.committing = False
    table.release(release)
    table.revision = stamp.sequence
    return None


def _clear(state: StateMachine, slots: SlotMask, sequence: int) -> Steps[None]:
    """Remove all that slots hold."""
    keyspace = state.keyspace
    for count, key in enumerate(keyspace.keys_of_slots(np.flatnonzero(slots).tolist()), start=1):
        keyspace.remove(key)
        if count % STEP_KEYS == 0:
            yield
    keyspace.changed.clear()
    for collection in state.collections.values():
        rows = yield from collection.rows_of_slots(slots)
        yield from collection.remove(rows, sequence, ChangeKind.DELETED, Noted())
    yield from state.deduplication.release(slots)


def _own(
    state: StateMachine, table: SlotTable, command: command_pb2.SetSlots, slots: SlotMask, stamp: Stamp
) -> Steps[VecmemError | None]:
    group = state.staging.staged(command.peer_shard, command.attempt, slots)
    if group is None:
        if slots.any() and table.owned[slots].all():
            return None
        return SlotStateError(
            f"nothing of slots {shown(slots)} was put aside by attempt {command.attempt} of shard {command.peer_shard}"
        )
    if (damage := _damage(state)) is not None:
        return damage
    if (yield from group.digest(state.name_of)) != command.digest:
        return SlotStateError(f"what was put aside of slots {shown(slots)} is not what they held")
    for uid in sorted(group.points):
        collection = state.by_uid[uid]
        if all(index.parameters.storage is Storage.FLOAT32 for index in collection.vectors.values()):
            continue
        for upsert, _ in group.upserts(collection, STEP_POINTS):
            refused = collection.beyond_storage(upsert)
            if refused is not None:
                return refused
            yield
    table.raise_versions(stamp.sequence, command.version_floor)
    state.committing = True
    try:
        yield from _bring(state, group, command, stamp)
    finally:
        state.committing = False
    table.own(slots)
    table.revision = stamp.sequence
    del state.staging.groups[command.peer_shard]
    _end_attempt(table, command)
    return None


def _bring(state: StateMachine, group: StagedGroup, command: command_pb2.SetSlots, stamp: Stamp) -> Steps[None]:
    """Make all that was put aside a part of the state."""
    keyspace = state.keyspace
    keyspace.version = max(keyspace.version, command.keyspace_version_floor)
    for count, key in enumerate(sorted(group.keys), start=1):
        staged = group.keys[key]
        keyspace.put(key, load_value(bytes(staged.content), staged.kind), staged.expires_at_unix_ms)
        if count % STEP_KEYS == 0:
            yield
    keyspace.changed.clear()
    for uid in sorted(group.points):
        collection = state.by_uid[uid]
        for upsert, versions in group.upserts(collection, STEP_POINTS):
            yield from collection.upsert(upsert, stamp, Noted(), versions)
    for count, content in enumerate(group.deduplication.values(), start=1):
        state.deduplication.take_over(command_pb2.DeduplicationEntry.FromString(content), stamp.sequence)
        if count % STEP_KEYS == 0:
            yield


def _end_attempt(table: SlotTable, command: command_pb2.SetSlots) -> None:
    ended = table.ended_attempts
    ended[command.peer_shard] = max(ended.get(command.peer_shard, 0), command.attempt)


def _not_owned(table: SlotTable, slots: SlotMask) -> VecmemError | None:
    if slots.any() and table.owned[slots].all():
        return None
    return SlotStateError(f"slots {shown(slots)} are not all owned here, only {shown(slots & table.owned)}")


def _damage(state: StateMachine) -> VecmemError | None:
    """Why slots cannot change hands: it is not known what they hold."""
    if state.keyspace_damage:
        return state.damaged_keys_error()
    for name, (_, damage) in state.damaged.items():
        return CollectionDamagedError(f"collection {name!r} is damaged: {damage}")
    return None
