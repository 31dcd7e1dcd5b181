"""What the last records changed: the window that a change feed reads.

Conditions are decided when a record is applied, so that the log alone does not say what came of it. Each record's changes are noted as it
is applied and kept here as long as there is room. The window is part of the state: it follows from the records alone, is saved with a
checkpoint, and so a feed goes on after a restart where it was.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from vecmem import limits

RECORD_OVERHEAD_BYTES: Final = 160
"""About what a record takes in the window beyond its changes: places in two lists, a tuple, numbers and an object header."""
_DROPPED_MIN: Final = 1_024
"""Records that have left the window before the lists are shortened."""
_CHANGE: Final = struct.Struct("<IBBQH")
_RECORD: Final = struct.Struct("<QqI")


class ChangeKind(IntEnum):
    """What became of a key or a point. The numbers are those of vecmem.v1.ChangeKind, and stand in checkpoints."""

    WRITTEN = 1
    EXPIRY_SET = 2
    DELETED = 3
    EXPIRED = 4
    EVICTED = 5
    COLLECTION_CHANGED = 6
    COLLECTION_DELETED = 7
    COLLECTION_CREATED = 8


POINT: Final = 255
"""Stands for a key's type where the change is one of a point, or of a collection."""


class Change(NamedTuple):
    """One change by a record."""

    place: int
    """Which operation or point of the record did it."""
    kind: int
    holder: int
    """The KeyType of the value that the key has now; 0: it has none. POINT: it is none of a key."""
    number: int
    """The key's version, 0 where it is gone; of points and collections the collection's uid."""
    name: bytes
    """The key, the point's id in UTF-8, or the collection's name where the change is one of the collection itself."""

    @property
    def of_collection(self) -> bool:
        """Whether it is one of a collection itself."""
        return self.kind >= ChangeKind.COLLECTION_CHANGED


class Noted:
    """Takes the changes of one record as it is applied."""

    __slots__ = ("base", "packed")

    def __init__(self) -> None:
        self.packed = bytearray()
        self.base = 0
        """Added to places."""

    def add(self, place: int, kind: ChangeKind, holder: int, number: int, name: bytes) -> None:
        """Note a change; see Change."""
        self.packed += _CHANGE.pack(self.base + place, kind, holder, number, len(name)) + name

    def add_point(self, place: int, kind: ChangeKind, collection_uid: int, point_id: str) -> None:
        """Note a change of a point."""
        self.add(place, kind, POINT, collection_uid, point_id.encode())

    def add_collection(self, kind: ChangeKind, uid: int, name: str) -> None:
        """Note a change of a collection itself: nothing else is in its record."""
        self.add(0, kind, POINT, uid, name.encode())


class RecordChanges(NamedTuple):
    """The changes of one record."""

    sequence: int
    time_unix_ms: int
    packed: bytes

    def changes(self) -> Iterator[Change]:
        """All of them, in their order."""
        position = 0
        while position < len(self.packed):
            place, kind, holder, number, length = _CHANGE.unpack_from(self.packed, position)
            position += _CHANGE.size
            yield Change(place, kind, holder, number, self.packed[position : position + length])
            position += length


class ChangeWindow:
    """Changes of the newest records, at most CHANGES_BYTES_MAX of them; those of the last record are always there."""

    def __init__(self, records: Iterable[RecordChanges] = (), complete_after: int = 0) -> None:
        self._records: list[RecordChanges] = list(records)
        self._sequences = [record.sequence for record in self._records]
        self._first = 0
        self._size_bytes = sum(map(_size_bytes, self._records))
        self.complete_after = complete_after
        """Of records with a greater sequence all changes are here."""
        self.deleted_collections = {
            deleted.number: deleted.name.decode() for deleted in map(_deletion, self._records) if deleted is not None
        }
        """Names by uid, of those whose deletion is here: what was told of their points is told of no living collection."""

    def add(self, record: RecordChanges) -> None:
        """Keep the changes of the newest record."""
        self._records.append(record)
        self._sequences.append(record.sequence)
        self._size_bytes += _size_bytes(record)
        if (deleted := _deletion(record)) is not None:
            self.deleted_collections[deleted.number] = deleted.name.decode()
        while self._size_bytes > limits.CHANGES_BYTES_MAX and self._first < len(self._records) - 1:
            dropped = self._records[self._first]
            self._size_bytes -= _size_bytes(dropped)
            self.complete_after = dropped.sequence
            if (deleted := _deletion(dropped)) is not None:
                del self.deleted_collections[deleted.number]
            self._records[self._first] = _DROPPED
            self._first += 1
        if self._first > _DROPPED_MIN and 2 * self._first > len(self._records):
            del self._records[: self._first], self._sequences[: self._first]
            self._first = 0

    def __len__(self) -> int:
        return len(self._records) - self._first

    def after(self, sequence: int, count_max: int) -> list[RecordChanges]:
        """Up to so many records behind a sequence that is not before `complete_after`."""
        begin = bisect_right(self._sequences, sequence, self._first)
        return self._records[begin : begin + count_max]

    def dump(self) -> Iterator[bytes]:
        """All that is kept, for a checkpoint: equal windows give equal bytes."""
        yield self.complete_after.to_bytes(8, "little")
        for record in self._records[self._first :]:
            yield _RECORD.pack(record.sequence, record.time_unix_ms, len(record.packed))
            yield record.packed

    @classmethod
    def load(cls, content: bytes) -> ChangeWindow:
        """The window that was dumped. Raises ValueError."""
        if len(content) < 8:
            raise ValueError(f"{len(content)} bytes are no window")
        position = 8
        records: list[RecordChanges] = []
        while position < len(content):
            if len(content) - position < _RECORD.size:
                raise ValueError(f"{len(content) - position} bytes at the end are no record")
            sequence, time_unix_ms, size_bytes = _RECORD.unpack_from(content, position)
            position += _RECORD.size + size_bytes
            if position > len(content):
                raise ValueError(f"the changes of record {sequence} run past the end")
            records.append(RecordChanges(sequence, time_unix_ms, content[position - size_bytes : position]))
        return cls(records, int.from_bytes(content[:8], "little"))


_KIND_PLACE: Final = 4
"""Of a change's kind in its packed form."""


def _deletion(record: RecordChanges) -> Change | None:
    """The deletion of a collection, if that is what the record did."""
    packed = record.packed
    if len(packed) <= _KIND_PLACE or packed[_KIND_PLACE] != ChangeKind.COLLECTION_DELETED:
        return None
    return next(record.changes())


_DROPPED: Final = RecordChanges(0, 0, b"")


def _size_bytes(record: RecordChanges) -> int:
    return RECORD_OVERHEAD_BYTES + len(record.packed)
