"""The keyspace as a file of a checkpoint, `keyspace.npz`, which is also its canonical form: equal keyspaces have equal bytes.

Keys in order of their bytes, each with its type, version, value and expiry: bytes back to back, and where each ends.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.errors import CorruptionError, UnsupportedFormatError
from vecmem.store.blobs import join, split
from vecmem.store.keyspace.hashes import HashValue
from vecmem.store.keyspace.hyperloglog_value import HyperLogLogValue
from vecmem.store.keyspace.idempotency import IdempotencyValue
from vecmem.store.keyspace.json_value import JsonValue
from vecmem.store.keyspace.keyspace import STRING, VERSION_BYTES
from vecmem.store.keyspace.lists import ListValue
from vecmem.store.keyspace.locks import LockValue
from vecmem.store.keyspace.queue_value import QueueValue
from vecmem.store.keyspace.rate_limiter_value import RateLimiterValue
from vecmem.store.keyspace.sets import SetValue
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.store.keyspace.stream_value import StreamValue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vecmem.store.keyspace.container import Container
    from vecmem.store.keyspace.keyspace import Keyspace, Value

FILE: Final = "keyspace.npz"
CONTAINERS: Final[dict[int, type[Container]]] = {
    HashValue.TYPE: HashValue,
    SetValue.TYPE: SetValue,
    ListValue.TYPE: ListValue,
    SortedSetValue.TYPE: SortedSetValue,
    StreamValue.TYPE: StreamValue,
    HyperLogLogValue.TYPE: HyperLogLogValue,
    JsonValue.TYPE: JsonValue,
    RateLimiterValue.TYPE: RateLimiterValue,
    LockValue.TYPE: LockValue,
    IdempotencyValue.TYPE: IdempotencyValue,
    QueueValue.TYPE: QueueValue,
}
"""By their type on disk, which never changes and is never reused."""


def write_keyspace(keyspace: Keyspace, directory: Path) -> None:
    """Write the file into a directory."""
    keys = list(keyspace.sorted_keys)
    key_bytes, key_ends = join(keys)
    values = [keyspace.values[key] for key in keys]
    value_bytes, value_ends = join([dump_value(value) for value in values])
    np.savez(
        directory / FILE,
        allow_pickle=False,
        version=np.int64(keyspace.version),
        keys=key_bytes,
        key_ends=key_ends,
        types=np.array([STRING if isinstance(value, bytes) else value.TYPE for value in values], dtype=np.uint8),
        values=value_bytes,
        value_ends=value_ends,
        expires_at=np.array([keyspace.expires_at(key) for key in keys], dtype=np.int64),
    )


def load_keyspace(keyspace: Keyspace, content: bytes) -> None:
    """Fill an empty keyspace from the bytes of the file. Raises CorruptionError."""
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    types = arrays["types"]
    unknown = set(np.unique(types).tolist()) - {STRING, *CONTAINERS}
    if unknown:
        raise UnsupportedFormatError(
            f"{FILE} holds values of types {sorted(unknown)}, which this version does not know"
        )
    keys = list(split(arrays["keys"], arrays["key_ends"]))
    expires_at = arrays["expires_at"]
    expiring = np.flatnonzero(expires_at).tolist()
    keyspace.load(
        zip(keys, _values(split(arrays["values"], arrays["value_ends"]), types.tolist()), strict=True),
        {keys[place]: int(expires_at[place]) for place in expiring},
        int(arrays["version"]),
    )


def dump_value(value: Value) -> bytes:
    """A string as it is; a container behind its version, which stands where that of a string does."""
    return value if isinstance(value, bytes) else value.version.to_bytes(VERSION_BYTES, "big") + value.dump()


def load_value(content: bytes, kind: int) -> Value:
    """The value of a type that was dumped. Raises CorruptionError."""
    if kind == STRING:
        return content
    try:
        value = CONTAINERS[kind].load(content[VERSION_BYTES:])
    except ValueError as error:
        raise CorruptionError(f"a {CONTAINERS[kind].NAME} cannot be read: {error}", path=FILE) from error
    value.version = int.from_bytes(content[:VERSION_BYTES], "big")
    return value


def _values(dumped: Iterator[bytes], types: list[int]) -> Iterator[Value]:
    for content, kind in zip(dumped, types, strict=True):
        yield load_value(content, kind)
