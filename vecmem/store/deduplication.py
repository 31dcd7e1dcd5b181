"""Remembers results by request_id, so that a repeated write returns the first result and changes nothing.

Part of the state: what is remembered depends on the records alone, so a replay and a replica remember the same. Results are kept as bytes:
those of a pipeline have hundreds of small messages, which take ten times as much as objects.

Where the shard owns some slots of several shards', an entry knows the hash slots that its request named and that it was applied to. When
slots move, what is remembered of them moves along. A request whose slots were divided has an entry on each side: one of them has the
result, and the others an empty one, so that the results of all parts add up to the first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vecmem import limits
from vecmem.store.slot_sets import SlotMask, divide, union
from vecmem.store.v1 import command_pb2

STEP_ENTRIES = 512
"""Entries looked at between two yields: about a millisecond."""


class _Remembered(NamedTuple):
    time_unix_ms: int
    sequence: int
    slots: bytes
    content: bytes
    """The entry without its slots, which change while the rest stays."""

    @property
    def size_bytes(self) -> int:
        return len(self.slots) + len(self.content)

    def entry(self) -> command_pb2.DeduplicationEntry:
        entry = command_pb2.DeduplicationEntry.FromString(self.content)
        entry.slots = self.slots
        return entry


class DeduplicationWindow:
    """The last results with a request_id.

    At most `DEDUPLICATION_ENTRIES_MAX` and `DEDUPLICATION_BYTES_MAX`, none older than `DEDUPLICATION_WINDOW_MS` of record time; the
    newest is always remembered.
    """

    def __init__(self, entries: Iterable[command_pb2.DeduplicationEntry] = ()) -> None:
        self._entries = OrderedDict((entry.request_id, _remembered(entry)) for entry in entries)
        self._size_bytes = sum(remembered.size_bytes for remembered in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, request_id: str, time_unix_ms: int) -> command_pb2.DeduplicationEntry | None:
        """What is remembered of a request at a time; the caller's own."""
        remembered = self._entries.get(request_id)
        if remembered is None or remembered.time_unix_ms + limits.DEDUPLICATION_WINDOW_MS < time_unix_ms:
            return None
        return remembered.entry()

    def remember(self, entry: command_pb2.DeduplicationEntry) -> None:
        """Remember the result of a request, and forget what has left the window. The entry is the callee's."""
        self._forget(entry.request_id)
        remembered = self._entries[entry.request_id] = _remembered(entry)
        self._size_bytes += remembered.size_bytes
        oldest_time_unix_ms = entry.time_unix_ms - limits.DEDUPLICATION_WINDOW_MS
        while len(self._entries) > 1:
            first = next(iter(self._entries.values()))
            too_many = len(self._entries) > limits.DEDUPLICATION_ENTRIES_MAX
            too_large = self._size_bytes > limits.DEDUPLICATION_BYTES_MAX
            if not too_many and not too_large and first.time_unix_ms >= oldest_time_unix_ms:
                break
            self._entries.popitem(last=False)
            self._size_bytes -= first.size_bytes

    def entries(self) -> Iterator[command_pb2.DeduplicationEntry]:
        """All that is remembered, oldest first."""
        for remembered in self._entries.values():
            yield remembered.entry()

    # -- slots that move -------------------------------------------------------------------------------------------------

    def of_slots(self, slots: SlotMask, after: int = 0) -> Iterator[command_pb2.DeduplicationEntry | None]:
        """What of the entries that a record behind a sequence made is of some hash slots, newest first; None between two steps.

        An entry all of whose slots are among these comes with its result, others with an empty one.
        """
        for count, remembered in enumerate(reversed(list(self._entries.values())), start=1):
            if remembered.sequence <= after:
                return
            if remembered.slots:
                inside, outside = divide(remembered.slots, slots)
                if inside:
                    entry = remembered.entry()
                    entry.slots = inside
                    if outside:
                        entry.result.Clear()
                    yield entry
            if count % STEP_ENTRIES == 0:
                yield None

    def release(self, slots: SlotMask) -> Iterator[None]:
        """Forget what is of some hash slots: exactly what `of_slots` tells."""
        for count, (request_id, remembered) in enumerate(list(self._entries.items()), start=1):
            if remembered.slots:
                inside, outside = divide(remembered.slots, slots)
                if inside and outside:
                    self._entries[request_id] = remembered._replace(slots=outside)
                    self._size_bytes += len(outside) - len(remembered.slots)
                elif inside:
                    self._forget(request_id)
            if count % STEP_ENTRIES == 0:
                yield

    def take_over(self, entry: command_pb2.DeduplicationEntry, sequence: int) -> None:
        """Remember what a record has brought here from another shard. Another request under the same id that is known here stays."""
        known = self._entries.get(entry.request_id)
        if known is not None:
            here = known.entry()
            if here.request_fingerprint != entry.request_fingerprint:
                return
            add_result(entry.result, here.result)
            entry.slots = union(entry.slots, here.slots) if here.slots else b""
            entry.time_unix_ms = max(entry.time_unix_ms, here.time_unix_ms)
        entry.sequence = entry.result.sequence = sequence
        self.remember(entry)

    def _forget(self, request_id: str) -> None:
        forgotten = self._entries.pop(request_id, None)
        if forgotten is not None:
            self._size_bytes -= forgotten.size_bytes


def add_result(result: command_pb2.CommandResult, other: command_pb2.CommandResult) -> None:
    """Add the result of one part of a request to that of another part."""
    result.inserted_count += other.inserted_count
    result.updated_count += other.updated_count
    result.deleted_count += other.deleted_count
    result.conflicts.extend(other.conflicts)
    result.operation_results.extend(other.operation_results)
    if other.HasField("transaction"):
        result.transaction.CopyFrom(other.transaction)
    if other.HasField("refusal"):
        result.refusal.CopyFrom(other.refusal)
    result.version = max(result.version, other.version)


def _remembered(entry: command_pb2.DeduplicationEntry) -> _Remembered:
    slots = entry.slots
    if slots:
        entry.ClearField("slots")
    return _Remembered(entry.time_unix_ms, entry.sequence, slots, entry.SerializeToString())
