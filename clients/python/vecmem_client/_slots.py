"""Which keys and points a request is about, and in which hash slots they are.

As the server counts them: CRC16 (XMODEM) modulo 16,384 of a key, or only of what stands between the first `{` and the next `}` where that
is not empty (Redis Cluster specification, "Hash tags"). A point's key is its id in UTF-8. Fields that hold keys have the same names in all
requests.
"""

from __future__ import annotations

import binascii
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from google.protobuf.descriptor import Descriptor

    from vecmem.v1 import channels_pb2, pipeline_pb2, points_pb2, transactions_pb2

SLOTS: Final = 16_384
_KEY_FIELDS: Final = frozenset({"key", "keys", "new_key", "destination"})


def slot_of(key: bytes) -> int:
    """Return the slot of a key."""
    start = key.find(b"{")
    if start >= 0:
        stop = key.find(b"}", start + 1)
        if stop > start + 1:
            key = key[start + 1 : stop]
    return binascii.crc_hqx(key, 0) % SLOTS


def keys_of_operation(request: Any) -> Iterator[bytes]:
    """All keys that the request of an operation on keys names."""
    for path in _key_paths(request.DESCRIPTOR):
        yield from _values(request, path)


def keys_of_pipeline(request: pipeline_pb2.PipelineRequest) -> Iterator[bytes]:
    """All keys of the operations; nothing where there is one among them that goes over all keys."""
    kinds = [operation.WhichOneof("kind") for operation in request.operations]
    if "scan_keys" in kinds:
        return
    for kind, operation in zip(kinds, request.operations, strict=True):
        if kind is not None:
            yield from keys_of_operation(getattr(operation, kind))


def keys_of_transaction(request: transactions_pb2.CommitRequest) -> Iterator[bytes]:
    """The keys of all comparisons and steps, of points as well."""
    for compare in request.compare:
        yield compare.point.id.encode() if compare.HasField("point") else compare.key
    for step in (*request.then, *request.otherwise):
        kind = step.WhichOneof("kind")
        if kind == "operation":
            operation = step.operation.WhichOneof("kind")
            if operation is not None:
                yield from keys_of_operation(getattr(step.operation, operation))
        elif kind == "upsert":
            yield from keys_of_points(step.upsert)
        elif kind is not None:
            yield from keys_of_targets(getattr(step, kind))


def keys_of_points(request: points_pb2.UpsertRequest) -> Iterator[bytes]:
    """The keys of points that are written."""
    return (point.id.encode() for point in request.points)


def keys_of_get(request: points_pb2.GetRequest) -> Iterator[bytes]:
    """The keys of points that are read."""
    return (point_id.encode() for point_id in request.ids)


def keys_of_targets(request: points_pb2.DeleteRequest | points_pb2.UpdatePayloadRequest) -> Iterator[bytes]:
    """The keys of points that are changed, where they are named by ids."""
    return (point_id.encode() for point_id in request.ids.ids)


def keys_of_publication(request: channels_pb2.PublishRequest) -> Iterable[bytes]:
    """A channel is where the key of its name would be."""
    return (request.channel,)


@cache
def _key_paths(descriptor: Descriptor) -> tuple[tuple[str, ...], ...]:
    """Where a request has keys: fields from the outside to the inside."""
    paths: list[tuple[str, ...]] = []
    for field in descriptor.fields:
        if field.type == field.TYPE_BYTES:
            if field.name in _KEY_FIELDS:
                paths.append((field.name,))
        elif field.message_type is not None and field.message_type.file is descriptor.file:
            paths += [(field.name, *path) for path in _key_paths(field.message_type)]
    return tuple(paths)


def _values(message: Any, path: tuple[str, ...]) -> Iterator[bytes]:
    name, *rest = path
    found = getattr(message, name)
    if not rest:
        if isinstance(found, bytes):
            if found:
                yield found
        else:
            yield from found
    elif message.DESCRIPTOR.fields_by_name[name].is_repeated:
        for part in found:
            yield from _values(part, tuple(rest))
    elif message.HasField(name):
        yield from _values(found, tuple(rest))
