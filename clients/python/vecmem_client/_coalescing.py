"""Which calls may share an RPC, how their requests become one and how its reply is taken apart: shared by both clients.

A *lane* gathers calls of one method that may share RPCs. Calls with a demand on the position (`min_position`) and
calls without never share, nor do exact searches and others: neither shall wait for what it did not ask for.

Requests are serialized once, when the call is made, and joined as bytes: a protobuf message may be written in pieces,
and a repeated field is its elements one after another (protobuf.dev, "Encoding", on merging and on field order).
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import grpc

from vecmem.v1 import pipeline_pb2, points_pb2
from vecmem_client import _methods
from vecmem_client._errors import (
    LimitExceededError,
    OverloadedError,
    UnimplementedError,
    VecmemClientError,
    build_error,
    error_from_message,
)
from vecmem_client._types import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vecmem.v1 import common_pb2
    from vecmem_client._methods import Method
    from vecmem_client._types import Demand

RPCS_MAX: Final = 2
"""RPCs under way before calls begin to wait for each other: one at the server while the other is on its way.

Measured with 16, 64 and 256 callers: 1 leaves either side idle in turns, 4 makes the batches smaller for nothing.
"""
PATIENCE_SECONDS: Final = 0.05
"""Longest time that a call waits for others' RPCs; then it goes, with what has gathered, in a further one.

So a slow call, or a server that hangs, holds up nobody for longer than that.
"""
BATCH_CALLS_MAX: Final = 256
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
REQUEST_BYTES_MAX: Final = 64 * 1024
"""A larger request is a batch by itself: it goes alone, at once, and holds up no lane."""
REPLY_BYTES_SUSPICIOUS: Final = _methods.MESSAGE_BYTES_MAX // 4
"""When a batch has a LIMIT_EXCEEDED in it and its reply is as large as that, the reply may have been full."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, eq=False)
class SharedMethod(Generic[ResultT]):
    """A method whose calls may share an RPC: the single method, its batch twin, and how to join requests."""

    single: Method[Any]
    batch: Method[Any]
    join: Callable[[Sequence[bytes], Position | None], bytes]
    field: str
    """What a query of the batch is called in the paths of offending fields; empty where paths begin in the request."""
    field_alone: str
    outcomes_of: Callable[[Any], Sequence[Any]] = attrgetter("outcomes")
    """The outcomes in a reply of the batch, in the order of its calls: each a result with `error` beside it, or a result itself."""
    result_of: Callable[[Any], Any] = attrgetter("result")


SEVERAL: Final = -1


class LaneKey(NamedTuple):
    """Calls with the same key may share RPCs."""

    method: SharedMethod[Any]
    demanded: int | None
    """The shard whose position is demanded, SEVERAL for those of several shards; None: no demand."""
    exact: bool
    shard: int | None = None
    """Which they are about; None: several, or it is not known."""
    spread: bool = False
    """They read, and any node may answer."""


class Alone:
    """In place of an outcome: the shared RPC says nothing about this call, which has to be made by itself."""


ALONE: Final = Alone()


def _join_queries(requests: Sequence[bytes], min_position: Position | None) -> bytes:
    """A QueryRequest with its one query is a piece of a QueryBatchRequest; the last `read` written is the one that counts."""
    joined = b"".join(requests)
    if min_position is not None:
        last = points_pb2.QueryBatchRequest()
        last.read.min_position.shard = min_position.shard
        last.read.min_position.sequence = min_position.sequence
        joined += last.SerializeToString()
    return joined


def _join_operations(requests: Sequence[bytes], min_position: Position | None) -> bytes:
    """A PipelineRequest with its one operation is a piece of another one; the last `read` written is the one that counts."""
    joined = b"".join(requests)
    if min_position is not None:
        last = pipeline_pb2.PipelineRequest()
        last.read.min_position.shard = min_position.shard
        last.read.min_position.sequence = min_position.sequence
        joined += last.SerializeToString()
    return joined


def _join_framed(requests: Sequence[bytes], min_position: Position | None) -> bytes:  # noqa: ARG001  (each request has its own)
    """Each whole request is an element of field 1: tag, length as a varint, bytes."""
    return b"".join([framed(1, request) for request in requests])


def framed(number: int, content: bytes) -> bytes:
    """A message as a field of another one, whose number is at most 15."""
    size = len(content)
    frame = bytearray((number << 3 | 2,))
    while size > 0x7F:
        frame.append(size & 0x7F | 0x80)
        size >>= 7
    frame.append(size)
    return bytes(frame) + content


QUERY: Final[SharedMethod[points_pb2.QueryResponse | points_pb2.QueryResult]] = SharedMethod(
    _methods.QUERY, _methods.QUERY_BATCH, _join_queries, "queries", "query"
)
GET: Final[SharedMethod[points_pb2.GetResponse]] = SharedMethod(_methods.GET, _methods.GET_BATCH, _join_framed, "", "")
UPSERT: Final[SharedMethod[points_pb2.UpsertResponse]] = SharedMethod(
    _methods.UPSERT, _methods.UPSERT_BATCH, _join_framed, "", ""
)


OPERATIONS: Final[SharedMethod[Any]] = SharedMethod(
    _methods.PIPELINE, _methods.PIPELINE, _join_operations, "", "", attrgetter("results"), lambda outcome: outcome
)


def lane_key(
    method: SharedMethod[Any], min_position: Demand = None, shard: int | None = None, *, exact: bool, spread: bool
) -> LaneKey:
    """Return what a call shares RPCs by."""
    demanded = min_position.shard if isinstance(min_position, Position) else None if min_position is None else SEVERAL
    return _lane_key(method, demanded, exact, shard, spread)


_lane_key = functools.cache(LaneKey)  # there are few, and each call needs one


class Call:
    """What lanes of either client know of one call."""

    __slots__ = ("deadline", "min_position", "patient_until", "request")

    def __init__(self, request: bytes, min_position: Demand, timeout_seconds: float) -> None:
        now = time.monotonic()
        self.request = request
        self.min_position = min_position
        self.deadline = now + timeout_seconds
        self.patient_until = now + PATIENCE_SECONDS


class BatchSize:
    """How many calls the next RPC of a lane takes."""

    def __init__(self) -> None:
        self._calls_max = BATCH_CALLS_MAX

    def calls_max(self, waiting_count: int, under_way_count: int) -> int:
        """An even share of all calls there are, so that RPCs under way do not end up very unequal."""
        share = -(-(waiting_count + under_way_count) // RPCS_MAX)
        return min(self._calls_max, max(1, share))

    def succeeded(self) -> None:
        """Grow again, slowly."""
        self._calls_max = min(BATCH_CALLS_MAX, self._calls_max + 1)

    def overflowed(self, call_count: int) -> None:
        """The results of that many calls were too much for one message."""
        self._calls_max = max(1, call_count // 2)


def join(method: SharedMethod[Any], calls: Sequence[Call]) -> bytes:
    """Return the request of a batch. The latest position demanded serves all: what reflects it reflects the earlier ones."""
    # Those of several shards need nothing: their lists become one list.
    demands = [call.min_position for call in calls if isinstance(call.min_position, Position)]
    latest = max(demands, key=lambda demand: demand.sequence) if demands else None
    return method.join([call.request for call in calls], latest)


def outcomes(
    method: SharedMethod[ResultT], reply: Any, call_count: int, size: BatchSize
) -> list[ResultT | VecmemClientError | Alone]:
    """Take a reply apart, in the order of the calls; errors are what each call alone would have got."""
    found = method.outcomes_of(reply)
    if len(found) != call_count:
        return [
            VecmemClientError(f"the server sent {len(found)} outcomes for {call_count} requests")
            for _ in range(call_count)
        ]
    results: list[ResultT | VecmemClientError | Alone] = []
    over_limit = False
    for index, outcome in enumerate(found):
        if not outcome.HasField("error"):
            results.append(method.result_of(outcome))
            continue
        error = _error_alone(method, outcome.error, index)
        # It may be the batch's reply that was too large, and not this call's.
        over_limit = over_limit or isinstance(error, LimitExceededError)
        results.append(ALONE if isinstance(error, LimitExceededError) else error)
    if over_limit and reply.ByteSize() > REPLY_BYTES_SUSPICIOUS:
        size.overflowed(call_count)
    else:
        size.succeeded()
    return results


def outcomes_of_failure(
    failure: VecmemClientError, cause: grpc.RpcError | None, call_count: int, size: BatchSize
) -> list[VecmemClientError | Alone]:
    """What the failure of a shared RPC means for each of its calls, an exception of its own where it means the failure.

    A status that would have come to each of them is passed on. Any other may be the fault of one call or of their
    number, so each is made by itself: all are reads, or writes with a request id.
    """
    if call_count > 1 and not _is_common(failure):
        if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            size.overflowed(call_count)
        return [ALONE] * call_count
    return [copy_of(failure, cause) for _ in range(call_count)]


def tells_of_an_older_server(failure: VecmemClientError) -> bool:
    """Whether the server does not know the batch twin."""
    return isinstance(failure, UnimplementedError)


def copy_of(failure: VecmemClientError, cause: BaseException | None) -> VecmemClientError:
    """Return an exception for one more caller: tracebacks and notes are a caller's own."""
    error = build_error(failure.code, failure.message, failure.reason, failure.metadata)
    error.__cause__ = cause
    return error


def _is_common(failure: VecmemClientError) -> bool:
    common = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
    return failure.code in common or isinstance(failure, OverloadedError)


def _error_alone(method: SharedMethod[Any], message: common_pb2.Error, index: int) -> VecmemClientError:
    """Return the error of one part with fields named as the single method names them."""
    error = error_from_message(message)
    there, alone = f"{method.field}[{index}]", method.field_alone
    field = error.metadata.get("field", "")
    if not method.field or not field.startswith(there):
        return error
    metadata = {**error.metadata, "field": alone + field.removeprefix(there)}
    message_alone = alone + error.message.removeprefix(there) if error.message.startswith(there) else error.message
    return build_error(error.code, message_alone, error.reason, metadata)
