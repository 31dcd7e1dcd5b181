"""Hashes: fields with values under a key. Each function builds an operation for `Client.run` and `Client.pipeline`.

All raise WrongTypeError, when they run, for a key that holds a value of another type. A hash without fields is no key.
"""

# ruff: noqa: A001  (the API's own words)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import hashes_pb2
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
from vecmem_client.counters import Counted, addition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

_CONDITIONS = {
    None: 0,
    "absent": hashes_pb2.HASH_FIELD_CONDITION_ABSENT,
    "present": hashes_pb2.HASH_FIELD_CONDITION_PRESENT,
}
FieldOutcome = Literal["absent", "unchanged", "changed", "removed"]
"""What became of a field: there is none; a condition did not hold; done; its time was past, so it is gone."""


@dataclass(frozen=True, slots=True)
class HashWritten:
    """`written` False: a condition did not hold, and nothing was changed. `new_count` fields did not exist before."""

    written: bool
    new_count: int


@dataclass(frozen=True, slots=True)
class HashPage:
    """One page of fields in order of their bytes. `next_page_token` empty: the last."""

    fields: dict[bytes, bytes]
    next_page_token: str
    field_count: int
    """Of the whole hash."""


def set(
    key: BytesLike,
    fields: Mapping[BytesLike, BytesLike],
    *,
    condition: Literal["absent", "present"] | None = None,
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
    keep_expiry: bool = False,
) -> Operation[HashWritten]:
    """Write 1 to 1,024 fields, if all of them are absent or present. The expiry is that of each field; without one it stays."""
    written = [hashes_pb2.HashField(field=as_bytes(field), value=as_bytes(value)) for field, value in fields.items()]
    return writes(
        "set_hash_fields",
        lambda response: HashWritten(response.written, response.new_count),
        key=as_bytes(key),
        fields=written,
        condition=_CONDITIONS[condition],
        expiry=as_expiry(ttl_seconds, expires_at, keep=keep_expiry),
    )


def get(key: BytesLike, fields: Iterable[BytesLike]) -> Operation[list[bytes | None]]:
    """Return the values of 1 to 1,024 fields; None for those that are not there."""
    return reads("get_hash_fields", _values, key=as_bytes(key), fields=[as_bytes(field) for field in fields])


def page(key: BytesLike, *, page_size: int = 0, page_token: str = "") -> Operation[HashPage]:
    """Return a page of all fields; 0: 100 of them."""
    return reads(
        "get_hash",
        lambda response: HashPage(
            {item.field: item.value for item in response.fields}, response.next_page_token, response.field_count
        ),
        key=as_bytes(key),
        page_size=page_size,
        page_token=page_token,
    )


def exist(key: BytesLike, fields: Iterable[BytesLike]) -> Operation[list[bool]]:
    """Return which of 1 to 1,024 fields exist."""
    return reads(
        "check_hash_fields",
        lambda response: list(response.existing),
        key=as_bytes(key),
        fields=[as_bytes(field) for field in fields],
    )


def delete(key: BytesLike, fields: Iterable[BytesLike]) -> Operation[int]:
    """Remove 1 to 1,024 fields; returns how many there were."""
    return writes(
        "delete_hash_fields",
        lambda response: response.deleted_count,
        key=as_bytes(key),
        fields=[as_bytes(field) for field in fields],
    )


def add(
    key: BytesLike,
    field: BytesLike,
    delta: int = 1,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    beyond: Literal["refuse", "clamp"] = "refuse",
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
) -> Operation[Counted[int]]:
    """Add to a field that is a counter of 64 bits, as `counters.add`."""
    return addition(
        "add_hash_integer", key, delta, minimum, maximum, beyond, ttl_seconds, expires_at, field=as_bytes(field)
    )


def add_float(
    key: BytesLike,
    field: BytesLike,
    delta: float,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    beyond: Literal["refuse", "clamp"] = "refuse",
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
) -> Operation[Counted[float]]:
    """Add to a field that is a double, as `counters.add_float`."""
    return addition(
        "add_hash_float", key, delta, minimum, maximum, beyond, ttl_seconds, expires_at, field=as_bytes(field)
    )


def expire(
    key: BytesLike,
    fields: Iterable[BytesLike],
    *,
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
    condition: Literal["none", "some", "later", "earlier"] | None = None,
) -> Operation[list[FieldOutcome]]:
    """Set when 1 to 1,024 fields are removed; returns what became of each."""
    return writes(
        "expire_hash_fields",
        _outcomes,
        key=as_bytes(key),
        fields=[as_bytes(field) for field in fields],
        expiry=as_expiry(ttl_seconds, expires_at),
        condition=EXPIRY_CONDITIONS[condition],
    )


def persist(key: BytesLike, fields: Iterable[BytesLike]) -> Operation[list[FieldOutcome]]:
    """Take the expiry of 1 to 1,024 fields away; returns what became of each."""
    return writes("persist_hash_fields", _outcomes, key=as_bytes(key), fields=[as_bytes(field) for field in fields])


def expiries(key: BytesLike, fields: Iterable[BytesLike]) -> Operation[list[datetime | None]]:
    """Return when 1 to 1,024 fields are removed; None for those that stay or are not there."""
    return reads(
        "get_hash_field_expiries",
        lambda response: [as_datetime(found.expires_at_unix_ms) for found in response.expiries],
        key=as_bytes(key),
        fields=[as_bytes(field) for field in fields],
    )


def random_fields(key: BytesLike, count: int = 1, *, with_repetition: bool = False) -> Operation[list[bytes]]:
    """Return up to so many different fields at random, or with repetition exactly so many, unless there is no such hash."""
    return reads(
        "get_hash_random_fields",
        lambda response: [found.field for found in response.fields],
        key=as_bytes(key),
        count=count,
        with_repetition=with_repetition,
    )


def random_items(
    key: BytesLike, count: int = 1, *, with_repetition: bool = False
) -> Operation[list[tuple[bytes, bytes]]]:
    """Return fields at random with their values."""
    return reads(
        "get_hash_random_fields",
        lambda response: [(found.field, found.value) for found in response.fields],
        key=as_bytes(key),
        count=count,
        with_repetition=with_repetition,
        with_values=True,
    )


def _values(response: hashes_pb2.GetHashFieldsResponse) -> list[bytes | None]:
    return [found.value if found.HasField("value") else None for found in response.values]


def _outcomes(response: Any) -> list[Any]:
    names = hashes_pb2.HashFieldOutcome
    return [names.Name(outcome).removeprefix("HASH_FIELD_OUTCOME_").lower() for outcome in response.outcomes]
