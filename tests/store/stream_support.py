"""A stream `s` with a group `g`, and what tests ask of it."""

from __future__ import annotations

from typing import Any

from tests.support.keyspace import NOW, do
from vecmem.store.keyspace.keyspace import Keyspace

SEQUENCE_MAX = 2**64 - 1
FIELDS = [{"field": b"f", "value": b"v"}]


def sid(time: int, sequence: int = 0) -> dict[str, int]:
    return {"time_unix_ms": time, "sequence": sequence}


def parts(found: Any) -> tuple[int, int]:
    return found.time_unix_ms, found.sequence


def append(keyspace: Keyspace, *, key: bytes = b"s", now: int = NOW, **fields: Any) -> tuple[int, int]:
    response = do(keyspace, "append_stream_entry", key=key, now=now, **{"fields": FIELDS, **fields})
    return parts(response.id)


def filled(count: int = 5, group: bytes = b"g") -> Keyspace:
    """A stream `s` of entries 1-0, 2-0 and so on, with a group."""
    keyspace = Keyspace()
    for time in range(1, count + 1):
        append(keyspace, explicit_id=sid(time))
    do(keyspace, "create_stream_group", key=b"s", group=group, create_stream=True)
    return keyspace


def read(keyspace: Keyspace, consumer: bytes = b"ada", *, now: int = NOW, **fields: Any) -> Any:
    return do(keyspace, "read_stream_group", key=b"s", group=b"g", consumer=consumer, now=now, **fields)


def times(response: Any) -> list[int]:
    return [entry.id.time_unix_ms for entry in response.entries]


def pending(keyspace: Keyspace, *, now: int = NOW, **fields: Any) -> list[tuple[int, bytes, int, int]]:
    found = do(keyspace, "list_stream_pending", key=b"s", group=b"g", now=now, **fields).entries
    return [(one.id.time_unix_ms, one.consumer, one.idle_ms, one.delivery_count) for one in found]
