"""The one table from errors to gRPC: status code by class, most specific first; reason and metadata go into ErrorInfo."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from vecmem import errors
from vecmem.v1 import common_pb2

DOMAIN = "vecmem"
DETAILS_KEY = "grpc-status-details-bin"
METADATA_BYTES_MAX = 4_096
"""gRPC's default limit on all metadata of a reply is 8 KiB; a longer message is cut."""

CODES: tuple[tuple[type[errors.VecmemError], grpc.StatusCode], ...] = (
    (errors.InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.CollectionExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (errors.StreamGroupExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (errors.ValueMismatchError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.VersionConflictError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.NumberOverflowError, grpc.StatusCode.OUT_OF_RANGE),
    (errors.PositionAheadError, grpc.StatusCode.OUT_OF_RANGE),
    (errors.ChangesNotRetainedError, grpc.StatusCode.OUT_OF_RANGE),
    (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.MemoryLimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.SlowConsumerError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceededError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.DataLossError, grpc.StatusCode.DATA_LOSS),
    (errors.LogConflictError, grpc.StatusCode.ABORTED),
    (errors.SlotStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.CheckpointError, grpc.StatusCode.INTERNAL),
    (errors.TopologyConflictError, grpc.StatusCode.ABORTED),
    (errors.InvalidTopologyError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.NotInClusterError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.ConfigurationError, grpc.StatusCode.FAILED_PRECONDITION),
)


def status_code(error: errors.VecmemError) -> grpc.StatusCode:
    """The gRPC code of an error; INTERNAL for a class that the table lacks."""
    for kind, code in CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def error_message(error: errors.VecmemError) -> common_pb2.Error:
    """An error as part of a batch's reply."""
    return common_pb2.Error(
        code=status_code(error).value[0], message=error.message, reason=error.reason, metadata=error.metadata
    )


async def abort(context: grpc.aio.ServicerContext, error: errors.VecmemError) -> NoReturn:  # type: ignore[type-arg]  # of any call
    """End a call with an error. Raises CancelledError where it has ended already, as after its deadline: nobody is left to be told."""
    code = status_code(error)
    message = error.message.encode()[:METADATA_BYTES_MAX].decode(errors="ignore")
    detail = AnyMessage()
    metadata = {key: value[:256] for key, value in error.metadata.items()}
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    status = status_pb2.Status(code=code.value[0], message=message[:1024], details=[detail])
    try:
        await context.abort(code, message, ((DETAILS_KEY, status.SerializeToString()),))
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone
    raise AssertionError("abort raises")
