"""Groups of a stream: how far each has read, and what its consumers have not acknowledged."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from sortedcontainers import SortedList

from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.paging import ItemOrder
from vecmem.store.keyspace.sorting import copy_sorted
from vecmem.store.keyspace.stream_entries import SEQUENCE_BITS, SEQUENCE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_BYTES: Final = 700
"""About what a group takes without consumers: its tables."""
CONSUMER_BYTES: Final = 400
PENDING_BYTES: Final = 190
"""About what a pending entry takes: an object, its numbers, and places in a table and two orders."""
NEVER_ACTIVE: Final = 0

_ID = np.dtype([("time_unix_ms", "<u8"), ("sequence", "<u8")])
_PENDING = np.dtype([("id", _ID), ("delivered_at_unix_ms", "<i8"), ("delivery_count", "<u8")])
_SEEN = np.dtype([("seen_at_unix_ms", "<i8"), ("active_at_unix_ms", "<i8")])


class Pending(NamedTuple):
    """An entry that was delivered. What changes takes its place, so that copies share all that has not."""

    consumer: bytes
    delivered_at_unix_ms: int
    delivery_count: int


class Consumer:
    """One of a group."""

    __slots__ = ("active_at_unix_ms", "name", "pending", "seen_at_unix_ms")

    def __init__(self, name: bytes, now_unix_ms: int) -> None:
        self.name = name
        """The one object that all that is pending here shares."""
        self.seen_at_unix_ms = now_unix_ms
        self.active_at_unix_ms = NEVER_ACTIVE
        self.pending: SortedList[int] = SortedList()
        """Ids of what is pending here."""


class StreamGroup:
    """Everything that is pending is so at one consumer."""

    __slots__ = ("_name_bytes", "consumers", "ids", "last_delivered_id", "names", "pending")

    def __init__(self, last_delivered_id: int) -> None:
        self.last_delivered_id = last_delivered_id
        self.consumers: dict[bytes, Consumer] = {}
        self.names = ItemOrder()
        self.pending: dict[int, Pending] = {}
        self.ids: SortedList[int] = SortedList()
        """Of what is pending."""
        self._name_bytes = 0

    @property
    def size_bytes(self) -> int:
        """About what it takes beyond its name."""
        consumers_bytes = CONSUMER_BYTES * len(self.consumers) + self._name_bytes
        return GROUP_BYTES + consumers_bytes + PENDING_BYTES * len(self.pending)

    def consumer(self, name: bytes, now_unix_ms: int) -> Consumer:
        """A consumer, which is made where it is not there, and was seen just now."""
        found = self.consumers.get(name)
        if found is None:
            found = self.consumers[name] = Consumer(name, now_unix_ms)
            self.names.added(name, self.consumers)
            self._name_bytes += len(name)
        found.seen_at_unix_ms = now_unix_ms
        return found

    def remove_consumer(self, name: bytes) -> int:
        """Remove a consumer that is there; returns how much was pending."""
        consumer = self.consumers.pop(name)
        self.names.removed(name)
        self._name_bytes -= len(name)
        for entry_id in consumer.pending:
            del self.pending[entry_id]
        if len(consumer.pending) > len(self.pending):
            self.ids = SortedList(self.pending)
        else:
            for entry_id in consumer.pending:
                self.ids.remove(entry_id)
        return len(consumer.pending)

    def deliver(self, entry_id: int, pending: Pending) -> None:
        """Make an entry pending at a consumer that is there, whether it was pending or not."""
        old = self.pending.get(entry_id)
        if old is None:
            self.ids.add(entry_id)
        if old is None or old.consumer != pending.consumer:
            if old is not None:
                self.consumers[old.consumer].pending.remove(entry_id)
            self.consumers[pending.consumer].pending.add(entry_id)
        self.pending[entry_id] = pending

    def acknowledge(self, entry_id: int) -> bool:
        """End what is pending; returns whether it was."""
        old = self.pending.pop(entry_id, None)
        if old is None:
            return False
        self.ids.remove(entry_id)
        self.consumers[old.consumer].pending.remove(entry_id)
        return True

    def copy(self) -> StreamGroup:
        """One with equal contents that changes by itself."""
        copied = StreamGroup(self.last_delivered_id)
        copied.names, copied._name_bytes = self.names.copy(), self._name_bytes
        copied.pending, copied.ids = self.pending.copy(), copy_sorted(self.ids)
        for name, consumer in self.consumers.items():
            twin = copied.consumers[name] = Consumer(name, consumer.seen_at_unix_ms)
            twin.active_at_unix_ms, twin.pending = consumer.active_at_unix_ms, copy_sorted(consumer.pending)
        return copied

    def dump(self) -> bytes:
        """Its position, then consumers in order of their names: name, times and what is pending in order of ids."""
        blobs = [dump_ids([self.last_delivered_id])]
        for name in sorted(self.consumers):
            consumer = self.consumers[name]
            seen = np.array([(consumer.seen_at_unix_ms, consumer.active_at_unix_ms)], dtype=_SEEN)
            rows = np.array(list(self._rows(consumer)), dtype=_PENDING)
            blobs += [name, seen.tobytes(), rows.tobytes()]
        return pack(blobs)

    def _rows(self, consumer: Consumer) -> Iterator[tuple[tuple[int, int], int, int]]:
        for entry_id in consumer.pending:
            pending = self.pending[entry_id]
            yield _parts(entry_id), pending.delivered_at_unix_ms, pending.delivery_count

    @classmethod
    def load(cls, content: bytes) -> StreamGroup:
        """The group that was dumped. Raises ValueError."""
        position, *blobs = unpack(content) or [b""]
        if len(blobs) % 3:
            raise ValueError(f"{len(blobs)} byte strings are no consumers")
        [last_delivered_id] = load_ids(position, 1)
        loaded = cls(last_delivered_id)
        names = blobs[::3]
        if any(name >= following for name, following in pairwise(names)):
            raise ValueError("consumers are out of order")
        for name, seen, rows in zip(names, blobs[1::3], blobs[2::3], strict=True):
            if len(seen) != _SEEN.itemsize or len(rows) % _PENDING.itemsize:
                raise ValueError(f"{len(seen)} and {len(rows)} bytes are no consumer")
            [(seen_at_unix_ms, active_at_unix_ms)] = np.frombuffer(seen, dtype=_SEEN).tolist()
            consumer = loaded.consumers[name] = Consumer(name, seen_at_unix_ms)
            consumer.active_at_unix_ms = active_at_unix_ms
            ids: list[int] = []
            for (time_unix_ms, sequence), delivered_at_unix_ms, count in np.frombuffer(rows, dtype=_PENDING).tolist():
                entry_id = time_unix_ms << SEQUENCE_BITS | sequence
                if entry_id in loaded.pending or (ids and entry_id <= ids[-1]):
                    raise ValueError("what is pending is out of order")
                ids.append(entry_id)
                loaded.pending[entry_id] = Pending(name, delivered_at_unix_ms, count)
            consumer.pending = SortedList(ids)
        loaded.ids = SortedList(loaded.pending)
        loaded.names.loaded(loaded.consumers)
        loaded._name_bytes = sum(map(len, names))
        return loaded


def dump_ids(ids: list[int]) -> bytes:
    """Ids back to back."""
    return np.array([_parts(entry_id) for entry_id in ids], dtype=_ID).tobytes()


def load_ids(content: bytes, count: int | None = None) -> list[int]:
    """Ids that were dumped, just so many if it is said. Raises ValueError."""
    if len(content) % _ID.itemsize or count not in (None, len(content) // _ID.itemsize):
        raise ValueError(f"{len(content)} bytes are not the ids that there have to be")
    pairs = np.frombuffer(content, dtype=_ID).tolist()
    return [time_unix_ms << SEQUENCE_BITS | sequence for time_unix_ms, sequence in pairs]


def _parts(entry_id: int) -> tuple[int, int]:
    return entry_id >> SEQUENCE_BITS, entry_id & SEQUENCE_MAX
