"""Transactions: comparisons and steps for `Client.commit`. Each function builds one; building sends nothing.

Steps are operations on keys, as built by `strings.set` and the like, and `upsert`, `delete` and `update_payload` of this module. All
keys and points of a transaction share a hash slot: give them a common part in braces, as in `{user:7}session`.
"""

# ruff: noqa: A002  (`id` is the API's own word)

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import keys_pb2, points_pb2, transactions_pb2
from vecmem_client import _replies, _requests
from vecmem_client._operations import BytesLike, Operation, as_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vecmem_client._types import Point, Position
    from vecmem_client._values import PayloadLike

Comparison = Literal["==", "!=", "<", "<=", ">", ">="]
_COMPARISONS: dict[str, transactions_pb2.Comparison.ValueType] = {
    "==": transactions_pb2.COMPARISON_EQUAL,
    "!=": transactions_pb2.COMPARISON_NOT_EQUAL,
    "<": transactions_pb2.COMPARISON_LESS,
    "<=": transactions_pb2.COMPARISON_LESS_OR_EQUAL,
    ">": transactions_pb2.COMPARISON_GREATER,
    ">=": transactions_pb2.COMPARISON_GREATER_OR_EQUAL,
}


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction."""

    message: transactions_pb2.Compare


@dataclass(frozen=True, slots=True)
class PointStep:
    """One change of points, and what its result becomes."""

    message: transactions_pb2.TransactionStep
    kind: str
    convert: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a transaction did. `results` has, for each step that was done, what the step alone would have returned."""

    succeeded: bool
    """Whether all comparisons held, so that `then` was done, and not `otherwise`."""
    results: Sequence[Any]
    position: Position


Step = Operation[Any] | PointStep


def key_exists(key: BytesLike) -> Compare:
    """Hold where the key exists."""
    return Compare(transactions_pb2.Compare(key=as_bytes(key), exists=True))


def key_absent(key: BytesLike) -> Compare:
    """Hold where it does not."""
    return Compare(transactions_pb2.Compare(key=as_bytes(key), exists=False))


def key_version(key: BytesLike, comparison: Comparison, version: int) -> Compare:
    """Compare the version of a key; that of one that is not there is 0."""
    compared = transactions_pb2.CompareVersion(comparison=_COMPARISONS[comparison], version=version)
    return Compare(transactions_pb2.Compare(key=as_bytes(key), version=compared))


def key_type(key: BytesLike, type: str) -> Compare:
    """Hold where the key has a value of a type, named as `keys.describe` names it."""
    value = keys_pb2.KeyType.Value(f"KEY_TYPE_{type.upper()}")
    return Compare(transactions_pb2.Compare(key=as_bytes(key), type=value))


def string_value(key: BytesLike, comparison: Comparison, value: BytesLike) -> Compare:
    """Compare a string with bytes; does not hold for a key that is not there. The commit raises WrongTypeError for other types."""
    compared = transactions_pb2.CompareValue(comparison=_COMPARISONS[comparison], value=as_bytes(value))
    return Compare(transactions_pb2.Compare(key=as_bytes(key), value=compared))


def integer_value(key: BytesLike, comparison: Comparison, value: int) -> Compare:
    """Compare a counter with a number; a key that is not there has 0. The commit raises WrongTypeError, NotANumberError."""
    compared = transactions_pb2.CompareInteger(comparison=_COMPARISONS[comparison], value=value)
    return Compare(transactions_pb2.Compare(key=as_bytes(key), integer=compared))


def hash_field(key: BytesLike, field: BytesLike, comparison: Comparison, value: BytesLike) -> Compare:
    """Compare a field of a hash with bytes; does not hold where there is none. The commit raises WrongTypeError for other types."""
    compared = transactions_pb2.CompareField(
        field=as_bytes(field), comparison=_COMPARISONS[comparison], value=as_bytes(value)
    )
    return Compare(transactions_pb2.Compare(key=as_bytes(key), field=compared))


def point_exists(collection: str, id: str) -> Compare:
    """Hold where the point exists."""
    return Compare(transactions_pb2.Compare(point=_point(collection, id), exists=True))


def point_absent(collection: str, id: str) -> Compare:
    """Hold where it does not."""
    return Compare(transactions_pb2.Compare(point=_point(collection, id), exists=False))


def point_version(collection: str, id: str, comparison: Comparison, version: int) -> Compare:
    """Compare the version of a point; that of one that is not there is 0."""
    compared = transactions_pb2.CompareVersion(comparison=_COMPARISONS[comparison], version=version)
    return Compare(transactions_pb2.Compare(point=_point(collection, id), version=compared))


def upsert(collection: str, points: Iterable[Point]) -> PointStep:
    """Insert or replace points, as `Client.upsert` does; a wrong `expected_version` refuses the whole transaction."""
    request = _requests.upsert(collection, points, "")
    request.ClearField("write")
    return PointStep(transactions_pb2.TransactionStep(upsert=request), "upsert", _replies.upserted)


def delete(collection: str, ids: Iterable[str]) -> PointStep:
    """Delete points by id, as `Client.delete` does."""
    request = _requests.delete(collection, ids, None, "")
    request.ClearField("write")
    return PointStep(transactions_pb2.TransactionStep(delete=request), "delete", _replies.deleted)


def update_payload(
    collection: str,
    ids: Iterable[str],
    *,
    merge: PayloadLike | None = None,
    replace: PayloadLike | None = None,
    remove: Iterable[str] | None = None,
) -> PointStep:
    """Change payloads by id, as `Client.update_payload` does."""
    request = _requests.update_payload(collection, ids, None, merge, replace, remove, "")
    request.ClearField("write")
    step = transactions_pb2.TransactionStep(update_payload=request)
    return PointStep(step, "update_payload", _replies.payload_updated)


def request_of(
    compare: Sequence[Compare], then: Sequence[Step], otherwise: Sequence[Step]
) -> transactions_pb2.CommitRequest:
    """Build the request of a transaction."""
    return transactions_pb2.CommitRequest(
        compare=[one.message for one in compare],
        then=[_message(step) for step in then],
        otherwise=[_message(step) for step in otherwise],
    )


def result_of(reply: transactions_pb2.CommitResponse, then: Sequence[Step], otherwise: Sequence[Step]) -> CommitResult:
    """Return what the reply to a transaction says."""
    results: list[Any] = []
    for step, result in zip(then if reply.succeeded else otherwise, reply.results, strict=True):
        if isinstance(step, Operation):
            results.append(step.result(result.operation))
            continue
        done = getattr(result, step.kind)
        done.header.CopyFrom(reply.header)
        results.append(step.convert(done))
    return CommitResult(reply.succeeded, results, _replies.position(reply.header))


def _message(step: Step) -> transactions_pb2.TransactionStep:
    if isinstance(step, Operation):
        return transactions_pb2.TransactionStep(operation=step.message)
    return step.message


def _point(collection: str, id: str) -> points_pb2.PointReference:
    return points_pb2.PointReference(collection=collection, id=id)
