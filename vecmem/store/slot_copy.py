"""Copies what hash slots hold to where they are to be owned: first all of it, then again whatever has changed since, until nothing is left.

What has changed is read from the window of changes that the change feed goes by, so that copying costs the writers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.slots import slot_of
from vecmem.store.changes import POINT
from vecmem.store.collection import Collection, Steps
from vecmem.store.keyspace.keyspace import entry_bytes
from vecmem.store.slot_content import staged_key, staged_points
from vecmem.store.slot_sets import SlotMask, ranges_of
from vecmem.store.v1 import command_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vecmem.store.state_machine import StateMachine

SLICE_POINTS: Final = 64
"""Points put together at once: about half a millisecond."""
SLICE_BYTES: Final = 256 * 1024
"""A slice ends when it has grown to this; one more key or point may be larger."""
CHUNK_BYTES: Final = 1024 * 1024
"""Of a value that is sent in parts."""
STEP_CHANGES: Final = 1_024
WINDOW_RECORDS: Final = 256
POINT_BYTES: Final = 64
"""About what a point takes in a slice beyond its id, its payload and its vectors."""


class CopyOverrunError(Exception):
    """What has changed since the copy began is not known any more, or was more than data: it has to begin again."""


class SlotCopy:
    """One copy of a group of slots. The state must be settled whenever a method is called or goes on."""

    def __init__(
        self, state: StateMachine, *, source_shard: int, attempt: int, slots: SlotMask, applied_sequence: int
    ) -> None:
        self._state = state
        self._source_shard = source_shard
        self._attempt = attempt
        self._slots = slots
        self._number = 0
        self._seen_sequence = applied_sequence
        """All changes up to here are copied or noted."""
        self._remembered_sequence = 0
        """Results of requests up to here are copied."""
        self._keys: dict[bytes, None] = {}
        self._points: dict[int, dict[str, None]] = {}
        self._results: list[command_pb2.DeduplicationEntry] = []
        self._value: tuple[command_pb2.StagedKey, int] | None = None
        """A value that is being sent in parts, and how much of it was."""
        self.copied_keys = 0
        self.copied_points = 0

    def begin(self) -> Steps[None]:
        """Note all that the slots hold."""
        state = self._state
        self._keys = dict.fromkeys(state.keyspace.keys_of_slots(np.flatnonzero(self._slots).tolist()))
        for collection in list(state.collections.values()):
            rows = yield from collection.rows_of_slots(self._slots)
            if rows:
                self._points[collection.uid] = dict.fromkeys(map(collection.rows.ids.__getitem__, rows))

    def catch_up(self, applied_sequence: int) -> Steps[None]:
        """Note what has changed since, in steps. Raises CopyOverrunError."""
        window = self._state.changes
        count = 0
        while True:
            if self._seen_sequence < window.complete_after:
                raise CopyOverrunError("slots change faster than they are copied")
            records = window.after(self._seen_sequence, WINDOW_RECORDS)
            for record in records:
                for change in record.changes():
                    count += 1
                    if change.of_collection:
                        raise CopyOverrunError("a collection was created, changed or deleted while slots were copied")
                    if not self._slots[slot_of(change.name)]:
                        continue
                    if change.holder == POINT:
                        self._points.setdefault(change.number, {})[change.name.decode()] = None
                    else:
                        self._keys[change.name] = None
                self._seen_sequence = record.sequence
                if count >= STEP_CHANGES:
                    count = 0
                    yield
            if len(records) < WINDOW_RECORDS:
                break
        remembered_sequence, self._remembered_sequence = self._remembered_sequence, applied_sequence
        for entry in self._state.deduplication.of_slots(self._slots, remembered_sequence):
            if entry is None:
                yield
            else:
                self._results.append(entry)

    @property
    def left(self) -> int:
        """How many keys, points and results are noted and not copied."""
        return len(self._keys) + sum(map(len, self._points.values())) + len(self._results) + (self._value is not None)

    def next_part(self, bytes_max: int) -> Iterator[command_pb2.StageSlots | None]:
        """Put the next part together, in steps; the last thing that comes is the part. The first part comes even if there is nothing."""
        part = command_pb2.StageSlots(source_shard=self._source_shard, attempt=self._attempt, number=self._number)
        if not self._number:
            part.slots.extend(ranges_of(self._slots))
        self._number += 1
        size_bytes = 0
        while size_bytes < bytes_max and self.left:
            slice_ = self._next_slice()
            size_bytes += slice_.ByteSize()
            part.MergeFrom(slice_)
            yield None
        yield part

    def _next_slice(self) -> command_pb2.StageSlots:
        slice_ = command_pb2.StageSlots()
        if self._value is not None:
            self._add_chunk(slice_)
        elif self._keys:
            self._add_keys(slice_)
        elif self._points:
            self._add_points(slice_)
        else:
            size_bytes = 0
            while self._results and size_bytes < SLICE_BYTES:
                # They were noted newest first.
                entry = self._results.pop()
                size_bytes += entry.ByteSize()
                slice_.deduplication.append(entry)
        return slice_

    def _add_keys(self, slice_: command_pb2.StageSlots) -> None:
        keyspace = self._state.keyspace
        size_bytes = 0
        while self._keys and size_bytes < SLICE_BYTES:
            key = next(iter(self._keys))
            del self._keys[key]
            if key not in keyspace.values:
                slice_.deleted_keys.append(key)
                size_bytes += len(key)
                continue
            staged = staged_key(keyspace, key)
            self.copied_keys += 1
            size_bytes += len(key) + staged.size_bytes
            if staged.size_bytes > CHUNK_BYTES:
                self._value = staged, 0
                return
            slice_.keys.append(staged)

    def _add_chunk(self, slice_: command_pb2.StageSlots) -> None:
        assert self._value is not None
        whole, offset = self._value
        chunk = slice_.keys.add(
            key=whole.key,
            type=whole.type,
            content=whole.content[offset : offset + CHUNK_BYTES],
            offset=offset,
            size_bytes=whole.size_bytes,
            expires_at_unix_ms=whole.expires_at_unix_ms,
        )
        offset += len(chunk.content)
        self._value = None if offset == whole.size_bytes else (whole, offset)

    def _add_points(self, slice_: command_pb2.StageSlots) -> None:
        uid, ids = next(iter(self._points.items()))
        collection = self._state.by_uid.get(uid)
        if collection is None:
            raise CopyOverrunError("a collection was deleted while slots were copied")
        points = slice_.points.add(collection=collection.name)
        rows: list[int] = []
        size_bytes = 0
        per_point_bytes = POINT_BYTES + _vector_bytes(collection)
        while ids and len(rows) < SLICE_POINTS and size_bytes < SLICE_BYTES:
            point_id = next(iter(ids))
            del ids[point_id]
            row = collection.row_of.get(point_id)
            size_bytes += len(point_id)
            if row is None:
                points.deleted_ids.append(point_id)
            else:
                rows.append(row)
                size_bytes += per_point_bytes + len(collection.payloads.get(row))
        points.points.extend(staged_points(collection, rows))
        self.copied_points += len(rows)
        if not ids:
            del self._points[uid]


def slot_sizes(state: StateMachine, slots: SlotMask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """About how many bytes each of some slots holds, and how many points; both of shape (SLOTS,)."""
    sizes = np.zeros(slots.size, dtype=np.int64)
    counts = np.zeros(slots.size, dtype=np.int64)
    by_slot = state.keyspace.by_slot or {}
    values = state.keyspace.values
    for slot in np.flatnonzero(slots).tolist():
        keys = by_slot.get(slot)
        if keys:
            sizes[slot] = sum(entry_bytes(key, values[key]) for key in keys)
    for collection in state.collections.values():
        table = collection.rows
        if table.slots is None or not collection.row_of:
            continue
        found = np.bincount(table.slots[table.live_rows()], minlength=slots.size)
        payload_bytes = collection.payloads.size_bytes // len(collection.row_of)
        counts += found
        sizes += found * (POINT_BYTES + payload_bytes + _vector_bytes(collection))
    sizes[~slots] = counts[~slots] = 0
    return sizes, counts


def _vector_bytes(collection: Collection) -> int:
    return sum(4 * index.parameters.dimension for index in collection.vectors.values())
