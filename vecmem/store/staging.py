"""What other shards' slots hold, put aside here until they are owned: part of the state, and seen by nobody.

A shard that gives slots away moves one group of them at a time, in numbered parts, by an attempt whose number is greater than those of all
attempts before. So a part that comes twice, or late, changes nothing: an earlier attempt is refused, a part that is there is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from vecmem.errors import CollectionNotFoundError, SlotStateError, UnsupportedFormatError, VecmemError
from vecmem.slots import slot_of
from vecmem.store.keyspace.image import CONTAINERS
from vecmem.store.keyspace.keyspace import STRING
from vecmem.store.slot_content import Digest, encoded
from vecmem.store.slot_sets import SlotMask, mask_of_ranges, ranges_of, shown
from vecmem.store.v1 import command_pb2

if TYPE_CHECKING:
    from vecmem.store.collection import Collection, Steps

STEP_ITEMS: Final = 128
"""Keys or points taken between two yields: about a millisecond."""
ITEM_BYTES: Final = 200
"""About what a key or a point takes here beyond its own bytes."""
PART_BYTES: Final = 1024 * 1024
"""Of a part in a checkpoint, about."""


class StagedValue(NamedTuple):
    """The value of a key, or as much of it as has come."""

    kind: int
    content: bytes | bytearray
    """A bytearray while parts of it are missing."""
    expires_at_unix_ms: int
    size_bytes: int


class StagedGroup:
    """A group of slots that one shard moves here."""

    def __init__(self, source_shard: int, attempt: int, slots: SlotMask) -> None:
        self.source_shard = source_shard
        self.attempt = attempt
        self.slots = slots
        self.next_number = 1
        """Of the next part."""
        self.keys: dict[bytes, StagedValue] = {}
        self.points: dict[int, dict[str, bytes]] = {}
        """By collection and id, as `slot_content.encoded` gives them."""
        self.deduplication: dict[str, bytes] = {}
        self.size_bytes = 0
        """About what it takes."""

    @property
    def point_count(self) -> int:
        """Points put aside."""
        return sum(map(len, self.points.values()))

    def foreign(self, part: command_pb2.StageSlots) -> bool:
        """Whether something of a part is not of these slots."""
        names: list[bytes] = [key.key for key in part.keys]
        names += (point.id.encode() for points in part.points for point in points.points)
        return not all(self.slots[slot_of(name)] for name in names)

    def take(self, part: command_pb2.StageSlots, uids: dict[str, int]) -> Iterator[None]:
        """Put a part aside, in steps. `uids`: of the collections that it names."""
        count = 0
        for key in part.keys:
            self._take_key(key)
            count += 1
            if count % STEP_ITEMS == 0:
                yield
        for deleted_key in part.deleted_keys:
            self._drop_key(deleted_key)
        for points in part.points:
            into = self.points.setdefault(uids[points.collection], {})
            for point in points.points:
                content = encoded(point)
                self._count_out(into.get(point.id))
                self.size_bytes += len(content) + ITEM_BYTES
                into[point.id] = content
                count += 1
                if count % STEP_ITEMS == 0:
                    yield
            for point_id in points.deleted_ids:
                self._count_out(into.pop(point_id, None))
        for entry in part.deduplication:
            content = entry.SerializeToString()
            self._count_out(self.deduplication.get(entry.request_id))
            self.size_bytes += len(content) + ITEM_BYTES
            self.deduplication[entry.request_id] = content

    def drop_collection(self, uid: int) -> None:
        """Forget the points of a collection that was deleted."""
        for content in self.points.pop(uid, {}).values():
            self._count_out(content)

    def digest(self, name_of: Callable[[int], str]) -> Steps[bytes]:
        """As `slot_content.digest_of` gives it for the source. Values that have come in part are left out."""
        digest = Digest()
        for count, key in enumerate(sorted(self.keys), start=1):
            value = self.keys[key]
            digest.add_key(key, value.kind, value.content, value.expires_at_unix_ms)
            if count % STEP_ITEMS == 0:
                yield
        for name, uid in sorted((name_of(uid), uid) for uid in self.points):
            points = self.points[uid]
            if not points:
                continue
            digest.begin_collection(name)
            ids = sorted(points)
            for start in range(0, len(ids), STEP_ITEMS):
                digest.add_points(points[point_id] for point_id in ids[start : start + STEP_ITEMS])
                yield
        return digest.result()

    def upserts(self, collection: Collection, count_max: int) -> Iterator[tuple[command_pb2.UpsertPoints, list[int]]]:
        """Commands that write all points of a collection, so many each, and the versions of these points."""
        points = self.points.get(collection.uid, {})
        ids = sorted(points)
        for start in range(0, len(ids), count_max):
            command = command_pb2.UpsertPoints(collection_uid=collection.uid)
            versions: list[int] = []
            rows: dict[str, list[bytes]] = {}
            places: dict[str, list[int]] = {}
            for place, point_id in enumerate(ids[start : start + count_max]):
                point = command_pb2.StagedPoint.FromString(points[point_id])
                command.points.add(
                    id=point.id, payload_json=point.payload_json, expires_at_unix_ms=point.expires_at_unix_ms
                )
                versions.append(point.version)
                for vector in point.vectors:
                    rows.setdefault(vector.name, []).append(vector.row)
                    places.setdefault(vector.name, []).append(place)
            for name in sorted(rows):
                command.vectors.add(name=name, point_indexes=places[name], rows=b"".join(rows[name]))
            yield command, versions

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def dump(self, name_of: Callable[[int], str]) -> Iterator[command_pb2.StageSlots]:
        """All of it as parts, for a checkpoint: equal groups give equal ones. The first one has the number of the next part."""
        part = command_pb2.StageSlots(
            source_shard=self.source_shard,
            attempt=self.attempt,
            number=self.next_number,
            slots=ranges_of(self.slots),
        )
        for message in self._items(name_of):
            if part.ByteSize() > PART_BYTES:
                yield part
                part = command_pb2.StageSlots(source_shard=self.source_shard, attempt=self.attempt)
            part.MergeFrom(message)
        yield part

    @classmethod
    def load(cls, parts: Iterable[command_pb2.StageSlots], uid_of: Callable[[str], int]) -> dict[int, StagedGroup]:
        """The groups that were dumped, one after the other, by their sources. Raises ValueError, or what `uid_of` raises."""
        groups: dict[int, StagedGroup] = {}
        for part in parts:
            if part.number:
                group = cls(part.source_shard, part.attempt, mask_of_ranges(part.slots))
                group.next_number = part.number
                groups[part.source_shard] = group
            uids = {points.collection: uid_of(points.collection) for points in part.points}
            for _ in groups[part.source_shard].take(part, uids):
                pass
        return groups

    def _items(self, name_of: Callable[[int], str]) -> Iterator[command_pb2.StageSlots]:
        for key in sorted(self.keys):
            value = self.keys[key]
            staged = command_pb2.StagedKey(
                key=key,
                type=value.kind,
                content=bytes(value.content),
                size_bytes=value.size_bytes,
                expires_at_unix_ms=value.expires_at_unix_ms,
            )
            yield command_pb2.StageSlots(keys=[staged])
        for name, uid in sorted((name_of(uid), uid) for uid in self.points):
            points = self.points[uid]
            ids = sorted(points)
            for start in range(0, len(ids), STEP_ITEMS):
                made = command_pb2.StagedPoints(collection=name)
                made.points.extend(
                    command_pb2.StagedPoint.FromString(points[point_id]) for point_id in ids[start : start + STEP_ITEMS]
                )
                yield command_pb2.StageSlots(points=[made])
        for content in self.deduplication.values():
            yield command_pb2.StageSlots(deduplication=[command_pb2.DeduplicationEntry.FromString(content)])

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _take_key(self, key: command_pb2.StagedKey) -> None:
        content: bytes | bytearray = key.content
        begun = self.keys.get(key.key)
        if key.offset:
            if begun is None or not isinstance(begun.content, bytearray) or len(begun.content) != key.offset:
                return  # the digest will tell
            self._drop_key(key.key)
            begun.content.extend(content)
            content = begun.content
        else:
            self._drop_key(key.key)
        if len(content) == key.size_bytes:
            content = bytes(content)
        elif not key.offset:
            content = bytearray(content)
        self.size_bytes += len(content) + ITEM_BYTES
        self.keys[key.key] = StagedValue(key.type, content, key.expires_at_unix_ms, key.size_bytes)

    def _drop_key(self, key: bytes) -> None:
        dropped = self.keys.pop(key, None)
        self._count_out(None if dropped is None else dropped.content)

    def _count_out(self, content: bytes | bytearray | None) -> None:
        if content is not None:
            self.size_bytes -= len(content) + ITEM_BYTES


class Staging:
    """All groups that are on their way here, by the shard that moves them."""

    def __init__(self) -> None:
        self.groups: dict[int, StagedGroup] = {}

    @property
    def size_bytes(self) -> int:
        """About what they take."""
        return sum(group.size_bytes for group in self.groups.values())

    def take(
        self,
        part: command_pb2.StageSlots,
        owned: SlotMask,
        ended_attempt: int,
        by_name: dict[str, Collection],
    ) -> Steps[VecmemError | None]:
        """Put a part aside, or say why not. `ended_attempt`: the last one of its source that has ended."""
        group = self.groups.get(part.source_shard)
        latest = max(ended_attempt, 0 if group is None else group.attempt - 1)
        if part.attempt <= latest:
            return SlotStateError(f"attempt {part.attempt} of shard {part.source_shard} is over: {latest} came later")
        begins = group is None or part.attempt > group.attempt
        if begins:
            if part.number:
                return SlotStateError(f"part {part.number} comes before the first one")
            try:
                slots = mask_of_ranges(part.slots)
            except ValueError as error:
                return SlotStateError(str(error))
            taken = owned.copy()
            for source, other in self.groups.items():
                if source != part.source_shard:
                    taken |= other.slots
            if not slots.any() or (slots & taken).any():
                return SlotStateError(f"slots {shown(slots)} cannot move here: {shown(slots & taken)} are here already")
            group = StagedGroup(part.source_shard, part.attempt, slots)
        assert group is not None
        if not begins and part.number < group.next_number:
            return None
        if not begins and part.number > group.next_number:
            return SlotStateError(f"part {part.number} comes before part {group.next_number}")
        missing = [points.collection for points in part.points if points.collection not in by_name]
        if missing:
            return CollectionNotFoundError(f"no collection {missing[0]!r} to put points of")
        unknown = {key.type for key in part.keys} - {STRING, *CONTAINERS}
        if unknown:
            return UnsupportedFormatError(f"keys of types {sorted(unknown)}, which this version does not know")
        if group.foreign(part):
            return SlotStateError(f"part {part.number} holds something of other slots than {shown(group.slots)}")
        yield from group.take(part, {name: collection.uid for name, collection in by_name.items()})
        group.next_number = part.number + 1
        self.groups[part.source_shard] = group
        return None

    def drop_collection(self, uid: int) -> None:
        """Forget the points of a collection that was deleted."""
        for group in self.groups.values():
            group.drop_collection(uid)

    def staged(self, source_shard: int, attempt: int, slots: SlotMask) -> StagedGroup | None:
        """The group that a shard has put aside by an attempt; None: it is not there."""
        group = self.groups.get(source_shard)
        if group is None or group.attempt != attempt or not np.array_equal(group.slots, slots):
            return None
        return group
