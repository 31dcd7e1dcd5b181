"""Strings: bytes under keys. Each function builds an operation for `Client.run` and `Client.pipeline`.

Any of them, but for `write` and `get_several`, raises WrongTypeError, when it runs, for a key that holds a value of another type.
"""

# ruff: noqa: A001  (the API's own words)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vecmem.v1 import pipeline_pb2, strings_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, as_expiry, reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime


_CONDITIONS = {"absent": strings_pb2.SET_CONDITION_ABSENT, "present": strings_pb2.SET_CONDITION_PRESENT}


@dataclass(frozen=True, slots=True)
class StringValue:
    """A value and the version of its key, to pass as `expected_version`."""

    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class SetResult:
    """`written` False: a condition did not hold. `version` is the key's now, 0 without one; `previous` is set if asked for."""

    written: bool
    version: int
    previous: bytes | None


def get(key: BytesLike) -> Operation[bytes | None]:
    """Return a value; None: no such key."""
    message = pipeline_pb2.Operation()
    message.get_string.key = as_bytes(key)
    return Operation("get_string", message, False, _value)


def get_versioned(key: BytesLike) -> Operation[StringValue | None]:
    """Return a value with its version; None: no such key."""
    return reads("get_string", _versioned, key=as_bytes(key))


def get_several(keys: Iterable[BytesLike]) -> Operation[list[bytes | None]]:
    """Return the values of 1 to 1,024 keys of one hash slot as they are at one moment; None where there is no string."""
    return reads("get_strings", _values, keys=[as_bytes(key) for key in keys])


def set(
    key: BytesLike,
    value: BytesLike,
    *,
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
    keep_expiry: bool = False,
    condition: Literal["absent", "present"] | None = None,
    expected_version: int | None = None,
    return_previous: bool = False,
) -> Operation[SetResult]:
    """Write a value, whatever the key held, if the conditions hold. Without an expiry it stays for ever.

    `expected_version` 0: only if there is no such key.
    """
    message = pipeline_pb2.Operation()
    request = message.set_string
    request.key = as_bytes(key)
    request.value = as_bytes(value)
    if condition is not None:
        request.condition = _CONDITIONS[condition]
    if expected_version is not None:
        request.expected_version = expected_version
    if return_previous:
        request.return_previous = True
    expiry = as_expiry(ttl_seconds, expires_at, keep=keep_expiry)
    if expiry is not None:
        request.expiry.CopyFrom(expiry)
    return Operation("set_string", message, True, _set_result)


def set_several(values: Mapping[BytesLike, BytesLike], *, only_if_all_absent: bool = False) -> Operation[bool]:
    """Write the values of 1 to 1,024 keys of one hash slot, all or none; returns whether they were written."""
    items = [strings_pb2.KeyValue(key=as_bytes(key), value=as_bytes(value)) for key, value in values.items()]
    return writes("set_strings", lambda response: response.written, values=items, only_if_all_absent=only_if_all_absent)


def take(key: BytesLike) -> Operation[bytes | None]:
    """Return a value and remove its key; None: there was none."""
    return writes("take_string", _value, key=as_bytes(key))


def append(key: BytesLike, value: BytesLike) -> Operation[int]:
    """Put bytes behind a value; returns how many it has now."""
    return writes("append_string", lambda response: response.size_bytes, key=as_bytes(key), value=as_bytes(value))


def get_range(key: BytesLike, start: int = 0, stop: int | None = None) -> Operation[bytes]:
    """Return the bytes from `start` to `stop`, both inclusive, counted from the end where below 0; None: to the end."""
    return reads("get_string_range", lambda response: response.value, key=as_bytes(key), start=start, stop=stop)


def set_range(key: BytesLike, offset: int, value: BytesLike) -> Operation[int]:
    """Overwrite the bytes from an offset on; returns how many the value has now."""
    return writes(
        "set_string_range",
        lambda response: response.size_bytes,
        key=as_bytes(key),
        offset=offset,
        value=as_bytes(value),
    )


def _value(response: strings_pb2.GetStringResponse | strings_pb2.TakeStringResponse) -> bytes | None:
    return response.value if response.HasField("value") else None


def _versioned(response: strings_pb2.GetStringResponse) -> StringValue | None:
    return StringValue(response.value, response.version) if response.HasField("value") else None


def _values(response: strings_pb2.GetStringsResponse) -> list[bytes | None]:
    return [found.value if found.HasField("value") else None for found in response.values]


def _set_result(response: strings_pb2.SetStringResponse) -> SetResult:
    previous = response.previous if response.HasField("previous") else None
    return SetResult(response.written, response.version, previous)
