"""What hash slots hold, in the form in which it moves to another shard, and a digest of it.

The digest is the same for what a shard holds and for what another one has put aside of it (vecmem.store.staging), so that no slot changes
hands unless both have the same, to the last version.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.index.rows import NEVER
from vecmem.store.collection import Collection, Steps
from vecmem.store.keyspace.image import dump_value
from vecmem.store.keyspace.keyspace import STRING, Keyspace
from vecmem.store.slot_sets import SlotMask
from vecmem.store.v1 import command_pb2

if TYPE_CHECKING:
    from vecmem.store.state_machine import StateMachine

STEP_POINTS: Final = 64
"""Points put together between two yields: about a millisecond."""
STEP_KEYS: Final = 64
_KEY: Final = struct.Struct("<cIBQQ")
_COLLECTION: Final = struct.Struct("<cI")
_POINT: Final = struct.Struct("<I")


class Digest:
    """Takes keys in order of their bytes, then collections in order of their names, each with its points in order of their ids."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add_key(self, key: bytes, kind: int, content: bytes | bytearray, expires_at_unix_ms: int) -> None:
        """Take a key; `content` as in StagedKey, all of it."""
        self._hash.update(_KEY.pack(b"k", len(key), kind, expires_at_unix_ms, len(content)))
        self._hash.update(key)
        self._hash.update(content)

    def begin_collection(self, name: str) -> None:
        """Take the name of the collection of the points that come. One without points is left out."""
        encoded = name.encode()
        self._hash.update(_COLLECTION.pack(b"c", len(encoded)))
        self._hash.update(encoded)

    def add_points(self, points: Iterable[bytes]) -> None:
        """Take points, as `encoded` gives them."""
        for point in points:
            self._hash.update(_POINT.pack(len(point)))
            self._hash.update(point)

    def result(self) -> bytes:
        """The digest of all that was taken."""
        return self._hash.digest()


def encoded(point: command_pb2.StagedPoint) -> bytes:
    """A point as bytes; equal points have equal ones, for its fields are written in order of their numbers and none is a map."""
    return point.SerializeToString(deterministic=True)


def digest_of(state: StateMachine, slots: SlotMask) -> Steps[bytes]:
    """The digest of what slots hold, in steps. Nothing may change them meanwhile."""
    digest = Digest()
    keyspace = state.keyspace
    for count, key in enumerate(keyspace.keys_of_slots(np.flatnonzero(slots).tolist()), start=1):
        value = keyspace.values[key]
        kind = STRING if isinstance(value, bytes) else value.TYPE
        digest.add_key(key, kind, dump_value(value), keyspace.expires_at(key))
        if count % STEP_KEYS == 0:
            yield
    for name in sorted(state.collections):
        collection = state.collections[name]
        rows = yield from collection.rows_of_slots(slots)
        if rows:
            digest.begin_collection(name)
        for start in range(0, len(rows), STEP_POINTS):
            digest.add_points(map(encoded, staged_points(collection, rows[start : start + STEP_POINTS])))
            yield
    return digest.result()


def staged_key(keyspace: Keyspace, key: bytes) -> command_pb2.StagedKey:
    """A key that is there, with all of its value."""
    value = keyspace.values[key]
    content = dump_value(value)
    return command_pb2.StagedKey(
        key=key,
        type=STRING if isinstance(value, bytes) else value.TYPE,
        content=content,
        size_bytes=len(content),
        expires_at_unix_ms=keyspace.expires_at(key),
    )


def staged_points(collection: Collection, rows: Sequence[int]) -> list[command_pb2.StagedPoint]:
    """The points of rows. All at once: mind STEP_POINTS."""
    table, payloads = collection.rows, collection.payloads
    points: list[command_pb2.StagedPoint] = []
    for row in rows:
        expires_at_unix_ms = table.expires_at(row)
        points.append(
            command_pb2.StagedPoint(
                id=table.ids[row],
                version=int(table.versions[row]),
                expires_at_unix_ms=0 if expires_at_unix_ms == NEVER else expires_at_unix_ms,
                payload_json=payloads.get(row),
            )
        )
    numbers = np.array(rows, dtype=np.int64)
    for name in sorted(collection.vectors):
        arena = collection.vectors[name].arena
        having = np.flatnonzero(arena.present(table.row_count)[numbers])
        if having.size:
            vectors = arena.gather(numbers[having]).astype("<f4", copy=False)
            for place, vector in zip(having.tolist(), vectors, strict=True):
                points[place].vectors.add(name=name, row=vector.tobytes())
    return points
