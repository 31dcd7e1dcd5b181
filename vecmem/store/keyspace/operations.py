"""All operations on keys, by the name of their arm in vecmem.v1.Operation, and how one runs."""

from __future__ import annotations

from typing import Any, Final

from vecmem.errors import InvalidArgumentError, VecmemError
from vecmem.store.keyspace import (
    bitmaps,
    counters,
    geo,
    hashes,
    hyperloglog,
    idempotency,
    json_arrays,
    json_documents,
    json_scalars,
    keys,
    leaderboards,
    lists,
    locks,
    queues,
    rate_limiters,
    sets,
    sorted_sets,
    stream_group_listings,
    stream_group_operations,
    streams,
    strings,
)
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment, Operation
from vecmem.store.validation import check_request_id
from vecmem.v1 import common_pb2, pipeline_pb2

OPERATIONS: Final[dict[str, Operation]] = {
    **keys.OPERATIONS,
    **strings.OPERATIONS,
    **bitmaps.OPERATIONS,
    **counters.OPERATIONS,
    **hashes.OPERATIONS,
    **hyperloglog.OPERATIONS,
    **sets.OPERATIONS,
    **lists.OPERATIONS,
    **sorted_sets.OPERATIONS,
    **geo.OPERATIONS,
    **streams.OPERATIONS,
    **stream_group_operations.OPERATIONS,
    **stream_group_listings.OPERATIONS,
    **leaderboards.OPERATIONS,
    **queues.OPERATIONS,
    **json_documents.OPERATIONS,
    **json_arrays.OPERATIONS,
    **json_scalars.OPERATIONS,
    **rate_limiters.OPERATIONS,
    **locks.OPERATIONS,
    **idempotency.OPERATIONS,
}


def check(operation: pipeline_pb2.Operation) -> tuple[str, Operation, Any]:
    """The kind of an operation, what it does, and its request.

    Raises InvalidArgumentError, LimitExceededError, ... with the path of the field from the request on.
    """
    kind = operation.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("is of a kind that this version does not know", field="kind")
    found = OPERATIONS[kind]
    request = getattr(operation, kind)
    options = "write" if found.writes else "read"
    if request.HasField(options):
        raise InvalidArgumentError("has to be that of the pipeline", field=options)
    found.check(request)
    if found.waits is not None and request.wait_ms:
        raise InvalidArgumentError(f"{request.wait_ms}: only a call of its own can wait", field="wait_ms")
    if operation.request_id:
        check_request_id(operation.request_id, "request_id")
    return kind, found, request


def run(
    keyspace: Keyspace, operation: pipeline_pb2.Operation, result: pipeline_pb2.OperationResult, moment: Moment
) -> None:
    """Run a checked operation and fill its result, which becomes an error without a gRPC code where it is refused."""
    kind: Any = operation.WhichOneof("kind")
    perform(OPERATIONS[kind], keyspace, kind, getattr(operation, kind), result, moment)


def perform(
    operation: Operation,
    keyspace: Keyspace,
    kind: str,
    request: Any,
    result: pipeline_pb2.OperationResult,
    moment: Moment,
) -> None:
    """Run an operation whose kind and request are at hand already; otherwise as `run`."""
    response = getattr(result, kind)
    response.SetInParent()
    try:
        operation.run(keyspace, request, response, moment)
    except VecmemError as error:
        result.error.CopyFrom(stored_error(error))


def stored_error(error: VecmemError) -> common_pb2.Error:
    """An error as a result has it, in replies and in what is remembered. The store knows no gRPC codes."""
    return common_pb2.Error(message=error.message, reason=error.reason, metadata=error.metadata)
