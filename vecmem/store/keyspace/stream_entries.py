"""The entries of a stream: blocks of up to 512, each in order of ids.

Appending takes constant time, finding an id a search among blocks and one within a block, and whole blocks go at once when the oldest
entries do. An id is one number here, its time times 2^64 and its sequence, so that a bound that leaves an id out is the number beside it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Final

from vecmem.v1 import streams_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_ENTRIES: Final = 512
ENTRY_BYTES: Final = 130
"""About what an entry takes beyond its fields: its id, the tuple of them, and their places in a block."""
FIELD_BYTES: Final = 50
"""About what a field or a value takes beyond its own bytes."""
SEQUENCE_BITS: Final = 64
SEQUENCE_MAX: Final = 2**SEQUENCE_BITS - 1
ID_MAX: Final = 2 ** (2 * SEQUENCE_BITS) - 1

Fields = tuple[bytes, ...]
"""Field, value, field, value and so on."""


def number_of(stream_id: api.StreamId) -> int:
    """An id as one number."""
    return stream_id.time_unix_ms << SEQUENCE_BITS | stream_id.sequence


def write_id(target: api.StreamId, number: int) -> None:
    """Fill in an id."""
    target.time_unix_ms, target.sequence = number >> SEQUENCE_BITS, number & SEQUENCE_MAX
    target.SetInParent()


def shown_id(number: int) -> str:
    """An id for messages, as redis-server writes it."""
    return f"{number >> SEQUENCE_BITS}-{number & SEQUENCE_MAX}"


def fields_bytes(fields: Fields) -> int:
    """About what an entry with these fields takes."""
    return ENTRY_BYTES + FIELD_BYTES * len(fields) + sum(map(len, fields))


class _Block:
    __slots__ = ("fields", "ids", "size_bytes")

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.fields: list[Fields] = []
        self.size_bytes = 0


class StreamEntries:
    """Entries in order of their ids. No block is empty."""

    __slots__ = ("_blocks", "_bounds", "_length", "size_bytes")

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._bounds: list[int] = []
        """Of each block the greatest id that it has had: no less than its last one, and less than the first one of the next."""
        self._length = 0
        self.size_bytes = 0
        """About what they take."""

    def __len__(self) -> int:
        return self._length

    @property
    def first_id(self) -> int | None:
        """The id of the first entry."""
        return self._blocks[0].ids[0] if self._blocks else None

    @property
    def last_id(self) -> int | None:
        """The id of the last entry."""
        return self._blocks[-1].ids[-1] if self._blocks else None

    def append(self, entry_id: int, fields: Fields) -> None:
        """Add an entry whose id is greater than all others."""
        if not self._blocks or len(self._blocks[-1].ids) >= BLOCK_ENTRIES:
            self._blocks.append(_Block())
            self._bounds.append(entry_id)
        block = self._blocks[-1]
        self._bounds[-1] = entry_id
        block.ids.append(entry_id)
        block.fields.append(fields)
        self._length += 1
        size_bytes = fields_bytes(fields)
        block.size_bytes += size_bytes
        self.size_bytes += size_bytes

    def get(self, entry_id: int) -> Fields | None:
        """The fields of an entry."""
        place = self._place_of(entry_id)
        return None if place is None else self._blocks[place[0]].fields[place[1]]

    def __contains__(self, entry_id: int) -> bool:
        return self._place_of(entry_id) is not None

    def remove(self, entry_id: int) -> bool:
        """Remove an entry; returns whether it was there."""
        place = self._place_of(entry_id)
        if place is None:
            return False
        at, index = place
        block = self._blocks[at]
        size_bytes = fields_bytes(block.fields[index])
        del block.ids[index], block.fields[index]
        block.size_bytes -= size_bytes
        self.size_bytes -= size_bytes
        self._length -= 1
        if not block.ids:
            del self._blocks[at], self._bounds[at]
        else:
            self._merge(at)
            self._merge(at - 1)
        return True

    def remove_first(self, count: int) -> None:
        """Remove the oldest entries, no more than there are."""
        self._length -= count
        whole_count = 0
        for block in self._blocks:
            if len(block.ids) > count:
                break
            count -= len(block.ids)
            self.size_bytes -= block.size_bytes
            whole_count += 1
        del self._blocks[:whole_count], self._bounds[:whole_count]
        if count:
            block = self._blocks[0]
            size_bytes = sum(map(fields_bytes, islice(block.fields, count)))
            del block.ids[:count], block.fields[:count]
            block.size_bytes -= size_bytes
            self.size_bytes -= size_bytes

    def count_before(self, entry_id: int) -> int:
        """How many entries have lower ids. Looks at each block that does."""
        count = 0
        for block in self._blocks:
            if block.ids[-1] >= entry_id:
                return count + bisect_left(block.ids, entry_id)
            count += len(block.ids)
        return count

    def counter_after(self) -> Callable[[int], int]:
        """What tells how many entries have greater ids than one, for many of them: until something changes."""
        left = [0] * (len(self._blocks) + 1)
        for at in reversed(range(len(self._blocks))):
            left[at] = left[at + 1] + len(self._blocks[at].ids)

        def count(entry_id: int) -> int:
            at = bisect_right(self._bounds, entry_id)
            return left[at] - (bisect_right(self._blocks[at].ids, entry_id) if at < len(self._blocks) else 0)

        return count

    def forward(self, minimum: int = 0, maximum: int = ID_MAX) -> Iterator[tuple[int, Fields]]:
        """Entries with ids from one to another, both inclusive."""
        at = bisect_left(self._bounds, minimum)
        start = bisect_left(self._blocks[at].ids, minimum) if at < len(self._blocks) else 0
        while at < len(self._blocks):
            block = self._blocks[at]
            stop = len(block.ids) if block.ids[-1] <= maximum else bisect_right(block.ids, maximum)
            for index in range(start, stop):
                yield block.ids[index], block.fields[index]
            if stop < len(block.ids):
                return
            at, start = at + 1, 0

    def backward(self, minimum: int = 0, maximum: int = ID_MAX) -> Iterator[tuple[int, Fields]]:
        """The same, the last one first."""
        at = min(bisect_left(self._bounds, maximum), len(self._blocks) - 1)
        while at >= 0:
            block = self._blocks[at]
            start = 0 if block.ids[0] >= minimum else bisect_left(block.ids, minimum)
            stop = len(block.ids) if block.ids[-1] <= maximum else bisect_right(block.ids, maximum)
            for index in reversed(range(start, stop)):
                yield block.ids[index], block.fields[index]
            if start:
                return
            at -= 1

    def copy(self) -> StreamEntries:
        """One with equal entries that changes by itself."""
        copied = StreamEntries()
        for block in self._blocks:
            twin = _Block()
            twin.ids, twin.fields, twin.size_bytes = block.ids.copy(), block.fields.copy(), block.size_bytes
            copied._blocks.append(twin)
        copied._bounds = self._bounds.copy()
        copied._length, copied.size_bytes = self._length, self.size_bytes
        return copied

    def _place_of(self, entry_id: int) -> tuple[int, int] | None:
        """Block and place within it."""
        at = bisect_left(self._bounds, entry_id)
        if at == len(self._blocks):
            return None
        ids = self._blocks[at].ids
        index = bisect_left(ids, entry_id)
        return (at, index) if index < len(ids) and ids[index] == entry_id else None

    def _merge(self, at: int) -> None:
        """Make one block of two neighbours that removals have left small: otherwise a block might be left for each entry."""
        if not 0 <= at < len(self._blocks) - 1:
            return
        block, behind = self._blocks[at], self._blocks[at + 1]
        if len(block.ids) + len(behind.ids) <= BLOCK_ENTRIES // 2:
            block.ids += behind.ids
            block.fields += behind.fields
            block.size_bytes += behind.size_bytes
            # The bound that goes is the lower one.
            del self._blocks[at + 1], self._bounds[at]
