"""Changes of keys and points, as `Client.watch` gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from vecmem.v1 import keys_pb2, watch_pb2
from vecmem_client import _replies
from vecmem_client._channel_messages import names
from vecmem_client._requests import strings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vecmem.v1 import pipeline_pb2, points_pb2
    from vecmem_client._operations import BytesLike
    from vecmem_client._types import StoredPoint


class ChangeKind(StrEnum):
    """What became of a key, a point or a collection."""

    WRITTEN = "written"
    EXPIRY_SET = "expiry_set"
    DELETED = "deleted"
    EXPIRED = "expired"
    EVICTED = "evicted"
    COLLECTION_CHANGED = "collection_changed"
    COLLECTION_DELETED = "collection_deleted"
    COLLECTION_CREATED = "collection_created"


@dataclass(frozen=True, slots=True)
class ChangePosition:
    """A place in the change feed, behind a change: keep it to go on from there."""

    sequence: int
    change_count: int = 0
    """Of the changes of that record, how many come before; 0: all."""
    shard: int = 0
    """Whose log is meant."""
    others: tuple[ChangePosition, ...] = ()
    """Places in the feeds of the other shards of a cluster."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one key or point by one record. Changes of one transaction have the same `sequence` and `shard`."""

    kind: ChangeKind
    sequence: int
    time: datetime
    version: int
    """Of the key or the point now; 0 where it is gone."""
    key: bytes | None
    key_type: str | None
    """Of the key's value now: `string`, `hash` and so on; None where it is gone."""
    collection: str | None
    point_id: str | None
    """None for a key, and for a change of the collection itself."""
    operation: pipeline_pb2.Operation | None = None
    """With `with_content`: the operation on keys that did it, as the API has it."""
    point: StoredPoint | None = None
    """With `with_content`: the point that was written by an upsert."""
    payload_update: points_pb2.UpdatePayloadRequest | None = None
    """With `with_content`: how its payload was changed, as the API has it."""
    change_count: int = 0
    shard: int = 0
    """Of a cluster: the sequence is one of its log. Changes of different shards come in no order between them."""
    others: tuple[ChangePosition, ...] = field(default=(), repr=False)
    """How far the feed had come in the other shards."""

    @property
    def position(self) -> ChangePosition:
        """Behind this change: `after` of a feed that goes on with the next one."""
        return ChangePosition(self.sequence, self.change_count, self.shard, self.others)


def request_of(
    keys: Iterable[BytesLike],
    prefixes: Iterable[BytesLike],
    collections: Iterable[str],
    after: ChangePosition | None,
    *,
    earliest: bool,
    with_content: bool,
    heartbeat_seconds: float,
) -> watch_pb2.WatchRequest:
    """Build the request. Raises ValueError for two starts, or for nothing to watch."""
    if earliest and after is not None:
        raise ValueError("give one of after and earliest")
    request = watch_pb2.WatchRequest(with_content=with_content, heartbeat_ms=round(heartbeat_seconds * 1e3))
    request.targets.extend(watch_pb2.WatchTarget(key=key) for key in names(keys, "keys"))
    request.targets.extend(watch_pb2.WatchTarget(key_prefix=prefix) for prefix in names(prefixes, "prefixes"))
    request.targets.extend(watch_pb2.WatchTarget(collection=name) for name in strings(collections, "collections"))
    if not request.targets:
        raise ValueError("there is nothing to watch: give keys, prefixes or collections")
    if earliest:
        request.earliest = True
    elif after is not None:
        request.after.CopyFrom(_message_of(after))
    return request


def position_of(message: watch_pb2.ChangePosition) -> ChangePosition:
    """Return a position of a reply."""
    others = tuple(position_of(other) for other in message.others)
    return ChangePosition(message.sequence, message.change_count, message.shard, others)


def _message_of(position: ChangePosition) -> watch_pb2.ChangePosition:
    return watch_pb2.ChangePosition(
        sequence=position.sequence,
        change_count=position.change_count,
        shard=position.shard,
        others=[_message_of(other) for other in position.others],
    )


def change_of(message: watch_pb2.Change, others: tuple[ChangePosition, ...]) -> Change:
    """Return a change of a reply, and how far the feed had come in other shards."""
    subject, content = message.WhichOneof("subject"), message.WhichOneof("content")
    named = keys_pb2.KeyType.Name(message.key_type) if message.key_type in keys_pb2.KeyType.values() else ""
    return Change(
        kind=_KINDS[message.kind],
        sequence=message.sequence,
        time=datetime.fromtimestamp(message.time_unix_ms / 1e3, UTC),
        version=message.version,
        key=message.key if subject == "key" else None,
        key_type=named.removeprefix("KEY_TYPE_").lower() if message.key_type else None,
        collection={"point": message.point.collection, "collection": message.collection}.get(subject or ""),
        point_id=message.point.id if subject == "point" else None,
        operation=message.operation if content == "operation" else None,
        point=_replies.points([message.written_point])[0] if content == "written_point" else None,
        payload_update=message.payload_update if content == "payload_update" else None,
        change_count=message.change_count,
        shard=message.shard,
        others=others,
    )


_KINDS = {
    watch_pb2.CHANGE_KIND_WRITTEN: ChangeKind.WRITTEN,
    watch_pb2.CHANGE_KIND_EXPIRY_SET: ChangeKind.EXPIRY_SET,
    watch_pb2.CHANGE_KIND_DELETED: ChangeKind.DELETED,
    watch_pb2.CHANGE_KIND_EXPIRED: ChangeKind.EXPIRED,
    watch_pb2.CHANGE_KIND_EVICTED: ChangeKind.EVICTED,
    watch_pb2.CHANGE_KIND_COLLECTION_CHANGED: ChangeKind.COLLECTION_CHANGED,
    watch_pb2.CHANGE_KIND_COLLECTION_DELETED: ChangeKind.COLLECTION_DELETED,
    watch_pb2.CHANGE_KIND_COLLECTION_CREATED: ChangeKind.COLLECTION_CREATED,
}
