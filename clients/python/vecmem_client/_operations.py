"""Operations on keys: what both clients run, one by one or in pipelines.

An operation is built by a function of a module of its type (`vecmem_client.strings`, `vecmem_client.counters`, ...) and run by `Client.run`
or `Client.pipeline`; building sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message_factory import GetMessageClass

from vecmem.v1 import keys_pb2, pipeline_pb2
from vecmem_client._errors import VecmemClientError, error_from_message
from vecmem_client._methods import Method
from vecmem_client._slots import keys_of_operation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
BytesLike = bytes | str
"""Keys and values are bytes; text is taken as its UTF-8."""
_UNIX_MS_MAX = 253_402_300_799_000

EXPIRY_CONDITIONS = {
    None: 0,
    "none": keys_pb2.EXPIRY_CONDITION_NONE,
    "some": keys_pb2.EXPIRY_CONDITION_SOME,
    "later": keys_pb2.EXPIRY_CONDITION_LATER,
    "earlier": keys_pb2.EXPIRY_CONDITION_EARLIER,
}


@dataclass(slots=True, eq=False)
class Operation(Generic[T]):
    """One operation and what its result becomes. `writes`: whether it may change something.

    Never changed; not `frozen`, which each of thousands in a pipeline would pay for.
    """

    kind: str
    message: pipeline_pb2.Operation
    writes: bool
    convert: Callable[[Any], T]
    wait_ms: int = 0
    """How long it waits for something to take, in a call of its own."""

    def result(self, outcome: pipeline_pb2.OperationResult) -> T | VecmemClientError:
        """Return the result, or the error, that a pipeline's reply has for it."""
        if outcome.HasField("error"):
            return error_from_message(outcome.error)
        return self.convert(getattr(outcome, self.kind))


def reads(kind: str, convert: Callable[[Any], T], **fields: Any) -> Operation[T]:
    """Build an operation that changes nothing."""
    return _build(kind, convert, fields, writes=False)


def writes(kind: str, convert: Callable[[Any], T], **fields: Any) -> Operation[T]:
    """Build an operation that may change something."""
    return _build(kind, convert, fields, writes=True)


def request_of(operations: Sequence[Operation[Any]]) -> pipeline_pb2.PipelineRequest:
    """Build the request of a pipeline."""
    return pipeline_pb2.PipelineRequest(operations=[operation.message for operation in operations])


@cache
def method_of(kind: str) -> Method[Any]:
    """The RPC that runs one operation of a kind alone."""
    request = pipeline_pb2.Operation.DESCRIPTOR.fields_by_name[kind].message_type
    assert request is not None
    [found] = (
        method
        for service in request.file.services_by_name.values()
        for method in service.methods
        if method.input_type is request
    )
    path = f"/{found.containing_service.full_name}/{found.name}"
    return Method(path, GetMessageClass(found.output_type).FromString, keys_of_operation)


def as_wait_ms(wait_seconds: float) -> int:
    """Return a wait in milliseconds. Raises ValueError for one below 0."""
    if not wait_seconds >= 0:
        raise ValueError(f"wait_seconds is at least 0, not {wait_seconds}")
    return ceil(wait_seconds * 1e3)


def as_bytes(value: BytesLike) -> bytes:
    """Return a key or a value as bytes."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"bytes or str, not {type(value).__name__}")


def as_expiry(ttl_seconds: float | None, expires_at: datetime | None, *, keep: bool = False) -> keys_pb2.Expiry | None:
    """Build an expiry of at most one of its forms. Raises ValueError for several, and for a datetime without a time zone."""
    if (ttl_seconds is not None) + (expires_at is not None) + keep > 1:
        raise ValueError("give one of ttl_seconds, expires_at and keep_expiry")
    if ttl_seconds is not None:
        return keys_pb2.Expiry(ttl_ms=round(ttl_seconds * 1e3))
    if expires_at is not None:
        if expires_at.tzinfo is None:
            raise ValueError(f"expires_at has no time zone: {expires_at}")
        return keys_pb2.Expiry(at_unix_ms=round(expires_at.timestamp() * 1e3))
    return keys_pb2.Expiry(keep=True) if keep else None


def as_datetime(unix_ms: int) -> datetime | None:
    """Return a time of a reply; None: never."""
    return as_time(unix_ms) if unix_ms else None


def as_time(unix_ms: int) -> datetime:
    """Return a time of a reply; one after the year 9999, which no datetime says, as the last second of that."""
    return datetime.fromtimestamp(min(unix_ms, _UNIX_MS_MAX) / 1e3, UTC)


def _build(kind: str, convert: Callable[[Any], T], fields: dict[str, Any], *, writes: bool) -> Operation[T]:
    message = pipeline_pb2.Operation()
    request = getattr(message, kind)
    request.SetInParent()
    for name, value in fields.items():
        if value is None:
            continue
        if isinstance(value, list):
            getattr(request, name).extend(value)
        elif hasattr(value, "DESCRIPTOR"):
            getattr(request, name).CopyFrom(value)
        else:
            setattr(request, name, value)
    return Operation(kind, message, writes, convert, fields.get("wait_ms") or 0)
