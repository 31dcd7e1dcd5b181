"""What keys of every type have in common. Each function builds an operation for `Client.run` and `Client.pipeline`.

A key has 1 to 1,024 bytes. Keys that one operation names together share a hash slot: where a key has `{...}` in it, only that part counts.
"""

# `type` is the API's own word.
# ruff: noqa: A002

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vecmem.v1 import keys_pb2
from vecmem_client._operations import (
    EXPIRY_CONDITIONS,
    BytesLike,
    Operation,
    as_bytes,
    as_datetime,
    as_expiry,
    reads,
    writes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

_TYPE_PREFIX = "KEY_TYPE_"


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """`type` is `string`, ...; `size` is bytes of a string, the estimate of a HyperLogLog, items of everything else.

    `expires_at` None: never.
    """

    type: str
    version: int
    expires_at: datetime | None
    size: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One page of keys in order of their bytes. `next_page_token` empty: the last."""

    keys: list[bytes]
    next_page_token: str


def exist(keys: Iterable[BytesLike]) -> Operation[list[bool]]:
    """Return which of 1 to 1,024 keys of one slot exist."""
    return reads("check_keys", lambda response: list(response.existing), keys=[as_bytes(key) for key in keys])


def describe(key: BytesLike) -> Operation[KeyDescription | None]:
    """Return the type, version, expiry and size of a key; None: no such key."""
    return reads("describe_key", _description, key=as_bytes(key))


def delete(keys: Iterable[BytesLike]) -> Operation[int]:
    """Remove 1 to 1,024 keys of one slot; returns how many there were."""
    return writes("delete_keys", lambda response: response.deleted_count, keys=[as_bytes(key) for key in keys])


def rename(key: BytesLike, new_key: BytesLike, *, only_if_absent: bool = False) -> Operation[bool]:
    """Move a value to another key of the same slot; returns False where that was to be left. Raises KeyNotFoundError."""
    return writes(
        "rename_key",
        lambda response: response.renamed,
        key=as_bytes(key),
        new_key=as_bytes(new_key),
        only_if_absent=only_if_absent,
    )


def touch(keys: Iterable[BytesLike]) -> Operation[int]:
    """Count as a use of 1 to 1,024 keys of one slot; returns how many exist."""
    return reads("touch_keys", lambda response: response.touched_count, keys=[as_bytes(key) for key in keys])


def expire(
    key: BytesLike,
    *,
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
    condition: Literal["none", "some", "later", "earlier"] | None = None,
) -> Operation[bool]:
    """Set when a key is removed, if it has no expiry, some, or an earlier or later one; returns whether it was set."""
    return writes(
        "expire_key",
        lambda response: response.changed,
        key=as_bytes(key),
        expiry=as_expiry(ttl_seconds, expires_at),
        condition=EXPIRY_CONDITIONS[condition],
    )


def persist(key: BytesLike) -> Operation[bool]:
    """Take the expiry away; returns whether there was one."""
    return writes("persist_key", lambda response: response.changed, key=as_bytes(key))


def scan(
    pattern: BytesLike = b"",
    *,
    type: str = "",
    page_size: int = 0,
    page_token: str = "",
) -> Operation[KeyPage]:
    """Return one page of the keys that match a pattern (`*`, `?`, `[a-c]`) and are of a type.

    A key that exists during the whole walk is returned exactly once.
    """
    return reads(
        "scan_keys",
        lambda response: KeyPage(list(response.keys), response.next_page_token),
        pattern=as_bytes(pattern),
        type=keys_pb2.KeyType.Value(_TYPE_PREFIX + type.upper()) if type else 0,
        page_size=page_size,
        page_token=page_token,
    )


def _description(response: keys_pb2.DescribeKeyResponse) -> KeyDescription | None:
    if not response.type:
        return None
    name = keys_pb2.KeyType.Name(response.type).removeprefix(_TYPE_PREFIX).lower()
    return KeyDescription(
        name, response.version, as_datetime(response.expires_at_unix_ms), response.size, response.memory_bytes
    )
