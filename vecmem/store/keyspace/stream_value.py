"""A stream: its entries, what it remembers of those that are gone, and its groups."""

from __future__ import annotations

from itertools import pairwise
from typing import Final, Self

import numpy as np

from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.paging import ItemOrder
from vecmem.store.keyspace.stream_entries import Fields, StreamEntries, fields_bytes
from vecmem.store.keyspace.stream_groups import StreamGroup, dump_ids, load_ids
from vecmem.v1 import keys_pb2

STREAM_BYTES: Final = 400
"""About what a stream without entries takes beyond any container."""
NO_ID: Final = 0
"""Lower than any id there is."""

_COUNTS = np.dtype("<u8")


class StreamValue(Container):
    """Its length, as of other containers, would say when it has to go: a stream never has to. See `count_at` and `entries`."""

    __slots__ = ("appended_count", "entries", "group_names", "groups", "last_id", "max_deleted_id")

    TYPE = keys_pb2.KEY_TYPE_STREAM
    NAME = "stream"

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes += STREAM_BYTES
        self.entries = StreamEntries()
        self.last_id = NO_ID
        """The greatest id there has been."""
        self.max_deleted_id = NO_ID
        """The greatest id of those that were removed one by one."""
        self.appended_count = 0
        self.groups: dict[bytes, StreamGroup] = {}
        self.group_names = ItemOrder()

    def __len__(self) -> int:
        return len(self.entries) + 1

    def count_at(self, now_unix_ms: int) -> int:  # noqa: ARG002  (entries do not expire)
        """How many entries it has."""
        return len(self.entries)

    def append(self, entry_id: int, fields: Fields) -> None:
        """Add an entry whose id is greater than the last."""
        self.entries.append(entry_id, fields)
        self.size_bytes += fields_bytes(fields)
        self.last_id = entry_id
        self.appended_count += 1

    def delete(self, entry_id: int) -> bool:
        """Remove an entry; returns whether it was there."""
        old_size_bytes = self.entries.size_bytes
        if not self.entries.remove(entry_id):
            return False
        self.size_bytes += self.entries.size_bytes - old_size_bytes
        self.max_deleted_id = max(self.max_deleted_id, entry_id)
        return True

    def trim(self, count: int) -> None:
        """Remove the oldest entries, no more than there are."""
        old_size_bytes = self.entries.size_bytes
        self.entries.remove_first(count)
        self.size_bytes += self.entries.size_bytes - old_size_bytes

    def add_group(self, name: bytes, group: StreamGroup) -> None:
        """Add a group that is not there."""
        self.groups[name] = group
        self.group_names.added(name, self.groups)
        self.size_bytes += group.size_bytes + len(name)

    def remove_group(self, name: bytes) -> None:
        """Remove a group that is there."""
        self.size_bytes -= self.groups.pop(name).size_bytes + len(name)
        self.group_names.removed(name)

    def dump(self) -> bytes:
        """What is remembered, then ids and numbers of fields, then groups by name, then all fields and values."""
        ids, fields = [], []
        for entry_id, entry in self.entries.forward():
            ids.append(entry_id)
            fields.append(entry)
        names = sorted(self.groups)
        blobs = [
            dump_ids([self.last_id, self.max_deleted_id]),
            np.array([self.appended_count, len(names)], dtype=_COUNTS).tobytes(),
            dump_ids(ids),
            np.array([len(entry) for entry in fields], dtype="<u4").tobytes(),
        ]
        for name in names:
            blobs += [name, self.groups[name].dump()]
        for entry in fields:
            blobs += entry
        return pack(blobs)

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied.entries = self.entries.copy()
        copied.last_id, copied.max_deleted_id = self.last_id, self.max_deleted_id
        copied.appended_count = self.appended_count
        copied.groups = {name: group.copy() for name, group in self.groups.items()}
        copied.group_names = self.group_names.copy()
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The stream that was dumped. Raises ValueError."""
        blobs = unpack(content)
        if len(blobs) < 4 or len(blobs[1]) != 2 * _COUNTS.itemsize or len(blobs[3]) % 4:
            raise ValueError("it has no numbers")
        loaded = cls()
        loaded.last_id, loaded.max_deleted_id = load_ids(blobs[0], 2)
        loaded.appended_count, group_count = np.frombuffer(blobs[1], dtype=_COUNTS).tolist()
        ids, field_counts = load_ids(blobs[2]), np.frombuffer(blobs[3], dtype="<u4").tolist()
        begin = 4 + 2 * group_count
        if len(ids) != len(field_counts) or len(blobs) != begin + sum(field_counts):
            raise ValueError(f"{len(blobs)} byte strings are not {group_count} groups and {len(ids)} entries")
        if any(entry_id >= following for entry_id, following in pairwise([NO_ID, *ids])) or (
            ids and ids[-1] > loaded.last_id
        ):
            raise ValueError("entries are out of order")
        names = blobs[4:begin:2]
        if any(name >= following for name, following in pairwise(names)):
            raise ValueError("groups are out of order")
        for name, dumped in zip(names, blobs[5:begin:2], strict=True):
            loaded.add_group(name, StreamGroup.load(dumped))
        last_id, appended_count = loaded.last_id, loaded.appended_count
        for entry_id, field_count in zip(ids, field_counts, strict=True):
            if not field_count or field_count % 2:
                raise ValueError(f"{field_count} byte strings are no fields with values")
            loaded.append(entry_id, tuple(blobs[begin : begin + field_count]))
            begin += field_count
        loaded.last_id, loaded.appended_count = last_id, appended_count
        if appended_count < len(ids):
            raise ValueError(f"{appended_count} appended entries cannot be {len(ids)}")
        return loaded
