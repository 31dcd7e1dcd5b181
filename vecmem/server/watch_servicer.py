"""WatchService: see proto/vecmem/v1/watch.proto for what it promises."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vecmem import limits
from vecmem.errors import (
    ChangesNotRetainedError,
    CorruptionError,
    InvalidArgumentError,
    LimitExceededError,
    NotFoundError,
    ShuttingDownError,
)
from vecmem.server import calls
from vecmem.server.calls import Context, arrival, heartbeat_ms, server_streaming
from vecmem.server.open_streams import OpenStreams
from vecmem.store.change_content import add_content
from vecmem.store.changes import POINT, Change, ChangeKind, RecordChanges
from vecmem.store.configuration import check_collection_name
from vecmem.store.keyspace.operation import check_key
from vecmem.store.own_thread import in_own_thread
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.store.watching import Watched
from vecmem.v1 import keys_pb2, watch_pb2_grpc
from vecmem.v1 import watch_pb2 as api

RESPONSE_CHANGES_MAX = 1_000
RESPONSE_BYTES_MAX = 4 * 1024 * 1024
"""Of content; a change that has more by itself comes alone."""
STEP_CHANGES = 256
"""Changes looked at between two looks at the time."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Behind `change_count` changes of a record; 0: behind all of them."""

    sequence: int
    change_count: int = 0


class WatchServicer(watch_pb2_grpc.WatchServiceServicer):
    """The change feed of one shard."""

    ANY_NODE = True

    def __init__(self, shard: Shard, streams: OpenStreams) -> None:
        self._shard = shard
        self.streams = streams

    @server_streaming
    async def Watch(self, request: api.WatchRequest, context: Context) -> AsyncIterator[api.WatchResponse]:
        """See the proto."""
        watched = _watched(request)
        if watched.keys or watched.prefixes:
            _ = self._shard.state.keyspace  # raises where it is damaged
        heartbeat_seconds = heartbeat_ms(request) / 1e3
        place = self._start(request)
        # Of a record that was told in part the rest is to come.
        watcher = self._shard.changes.watch(watched, place.sequence - bool(place.change_count))
        try:
            records, looked_at = watcher.records(), self._shard.applied_sequence
            yield self._response([], place)
            told_at = time.monotonic()
            pause = calls.Pause()
            while True:
                for record in records:
                    await pause.when_due()
                    skipped = place.change_count if record.sequence == place.sequence else 0
                    async for changes, place in self._told(record, skipped, watched, with_content=request.with_content):
                        yield self._response(changes, place)
                        told_at = time.monotonic()
                    place = _Place(record.sequence)
                if not records:
                    # All that had been applied when nothing was found has been looked through.
                    place = _Place(max(place.sequence, looked_at))
                    await arrival(watcher.arrived, told_at + heartbeat_seconds - time.monotonic())
                if self._shard.ending:
                    raise ShuttingDownError("the server is about to end")
                if time.monotonic() - told_at >= heartbeat_seconds:
                    yield self._response([], place)
                    told_at = time.monotonic()
                records, looked_at = watcher.records(), self._shard.applied_sequence
        finally:
            self._shard.changes.forget(watcher)

    def _response(self, changes: list[api.Change], place: _Place) -> api.WatchResponse:
        return api.WatchResponse(
            header=calls.header(self._shard, self._shard.applied_sequence),
            changes=changes,
            position=api.ChangePosition(
                sequence=place.sequence, change_count=place.change_count, shard=self._shard.number
            ),
        )

    def _start(self, request: api.WatchRequest) -> _Place:
        """Where to begin. Raises PositionAheadError."""
        match request.WhichOneof("start"):
            case "after":
                self._shard.at_least(request.after.sequence)
                return _Place(request.after.sequence, request.after.change_count if request.after.sequence else 0)
            case "earliest" if request.earliest:
                return _Place(self._shard.state.changes.complete_after)
            case _:
                return _Place(self._shard.applied_sequence)

    async def _told(
        self, record: RecordChanges, skipped: int, watched: Watched, *, with_content: bool
    ) -> AsyncIterator[tuple[list[api.Change], _Place]]:
        """What is told of a record behind its first `skipped` changes, in parts, each with the place behind it."""
        pause = calls.Pause()
        part: list[api.Change] = []
        part_bytes = 0
        command: command_pb2.Command | None = None
        count, place = 0, -1
        for count, change in enumerate(record.changes(), start=1):
            if count % STEP_CHANGES == 0:
                await pause.when_due()
            collection = None
            if change.holder == POINT and watched.collections:
                collection = self._shard.state.collection_name(change)
                if collection is None:
                    raise ChangesNotRetainedError(
                        f"the collection of a change of sequence {record.sequence} was deleted, and that is not kept any more",
                        first_sequence=str(self._shard.state.changes.complete_after + 1),
                    )
            if not watched.has(change, collection):
                continue
            # An operation on several keys comes with the first of its changes: it may be large.
            first_of_operation, place = change.place != place or change.holder == POINT, change.place
            if count <= skipped:
                continue
            told = _message(record, change, collection, self._shard.state.version_at(record.sequence))
            told.change_count, told.shard = count, self._shard.number
            if with_content and first_of_operation:
                if command is None:
                    command = await self._command(record.sequence)
                add_content(told, change, command)
            size_bytes = told.ByteSize()
            if part and (len(part) == RESPONSE_CHANGES_MAX or part_bytes + size_bytes > RESPONSE_BYTES_MAX):
                yield part, _Place(record.sequence, count - 1)
                part, part_bytes = [], 0
            part.append(told)
            part_bytes += size_bytes
        if part:
            yield part, _Place(record.sequence)

    async def _command(self, sequence: int) -> command_pb2.Command:
        """The command of a record. Raises ChangesNotRetainedError where the log has been trimmed."""

        def read() -> command_pb2.Command:
            [entry] = self._shard.log.read(sequence, sequence + 1)
            return command_pb2.Command.FromString(entry.record.payload)

        await self._shard.copied(sequence)
        try:
            return await in_own_thread(read)
        except (NotFoundError, CorruptionError) as error:
            first = self._shard.log.first_sequence
            if sequence >= first:
                raise
            # Dropped before it was read, or while it was.
            raise ChangesNotRetainedError(
                f"the log has dropped record {sequence}, whose content was asked for; it begins with {first}",
                first_sequence=str(first),
            ) from error


def _watched(request: api.WatchRequest) -> Watched:
    """What is watched. Raises InvalidArgumentError, LimitExceededError, InvalidKeyError, InvalidIdError, with the path of the field."""
    if not request.targets:
        raise InvalidArgumentError("names nothing to watch", field="targets")
    if len(request.targets) > limits.WATCH_TARGETS_MAX:
        raise LimitExceededError(
            f"{len(request.targets)} targets, more than {limits.WATCH_TARGETS_MAX}", field="targets"
        )
    keys: set[bytes] = set()
    prefixes: dict[bytes, None] = {}
    collections: set[str] = set()
    for index, target in enumerate(request.targets):
        path = f"targets[{index}]"
        match target.WhichOneof("kind"):
            case "key":
                check_key(target.key, f"{path}.key")
                keys.add(target.key)
            case "key_prefix":
                if target.key_prefix:
                    check_key(target.key_prefix, f"{path}.key_prefix")
                prefixes[target.key_prefix] = None
            case "collection":
                check_collection_name(target.collection, f"{path}.collection")
                collections.add(target.collection)
            case _:
                raise InvalidArgumentError("is of a kind that this version does not know", field=f"{path}.kind")
    return Watched(frozenset(keys), tuple(prefixes), frozenset(collections))


def _message(record: RecordChanges, change: Change, collection: str | None, point_version: int) -> api.Change:
    told = api.Change(
        sequence=record.sequence, time_unix_ms=record.time_unix_ms, kind=api.ChangeKind.ValueType(change.kind)
    )
    if change.holder != POINT:
        told.key = change.name
        told.version = change.number
        told.key_type = keys_pb2.KeyType.ValueType(change.holder)
    elif change.of_collection:
        told.collection = change.name.decode()
    else:
        told.point.collection, told.point.id = collection or "", change.name.decode()
        told.version = point_version if change.kind == ChangeKind.WRITTEN else 0
    return told
