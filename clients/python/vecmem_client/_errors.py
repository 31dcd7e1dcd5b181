"""What the client raises, rebuilt from the machine-readable reason that the server sends.

VecmemClientError
├── InvalidArgumentError         the request is wrong whatever the state: mend it
│   ├── LimitExceededError       ... because it is too large
│   ├── DimensionMismatchError
│   ├── InvalidVectorError
│   ├── InvalidIdError
│   ├── InvalidPayloadError
│   ├── InvalidFilterError
│   ├── InvalidPageTokenError
│   ├── UnknownVectorError
│   ├── InvalidKeyError
│   ├── CrossSlotError           ... or names keys of several hash slots
│   └── RequestIdReusedError
├── NotFoundError                what the request names is not there
│   ├── CollectionNotFoundError
│   ├── PointNotFoundError
│   ├── KeyNotFoundError
│   └── StreamGroupNotFoundError
├── CollectionExistsError        what the request makes is there already
├── StreamGroupExistsError
├── ValueMismatchError           what is stored is not what the request takes it for
│   ├── WrongTypeError           ... but a value of another type
│   ├── NotANumberError          ... or spells no number
│   ├── MixedScoresError         ... or a sorted set whose scores are not all the same
│   └── StreamIdTooSmallError    ... or a stream that has gone further than the new id
├── VersionConflictError         what is stored has changed since the caller looked
├── NumberOverflowError          the sum is no number of its kind
├── PositionAheadError           `min_position` lies beyond the end of the log
├── ChangesNotRetainedError      changes so old are kept no longer
├── ResourceExhaustedError       gRPC itself refused, for instance a reply over 64 MiB
│   ├── MemoryLimitError         there is no room for more data
│   ├── SlowConsumerError        a subscriber that was too slow missed messages
│   └── OverloadedError          too much at once: slow down
├── UnavailableError             not now; the client has already retried
│   ├── WritesStoppedError       the server takes no writes until it has restarted; reads go on
│   ├── MovedError               another node of the cluster leads, or another shard owns the slot; the client has looked for it
│   ├── SlotMovingError          a slot takes no writes while it moves to another shard
│   └── ShuttingDownError
├── TopologyConflictError        the layout of the cluster was changed by somebody else meanwhile
├── InvalidTopologyError         what was asked for makes no valid layout of the cluster
├── NotInClusterError            the server is alone
├── DeadlineExceededError        the time given ran out; a write may or may not have happened
├── CallCancelledError           the call was cancelled
├── DataLossError                stored data is damaged: an operator is needed
│   ├── CorruptionError
│   ├── UnsupportedFormatError
│   ├── CollectionDamagedError   one collection could not be loaded; the others serve
│   └── KeyspaceDamagedError     the keys could not be loaded; collections serve
├── LogConflictError             somebody else appended to the server's log
├── InternalError                a bug in the server
│   └── CheckpointError          a checkpoint could not be written; nothing is lost
├── UnimplementedError           the server is older than this client
└── ClientClosedError            the client was closed before the call

Mistakes that the client itself sees before it sends anything (a wrong type, a wrong shape, two selectors at once)
are `TypeError` and `ValueError`. A reason unknown to this version becomes the class of its status code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vecmem.v1 import common_pb2

_DOMAIN: Final = "vecmem"
_DETAILS_KEY: Final = "grpc-status-details-bin"


class VecmemClientError(Exception):
    """Root of the tree.

    `message` is for people. `code` is the gRPC status code, `reason` the identity for programs (for instance
    `DIMENSION_MISMATCH`; the name of the code where gRPC itself failed), `metadata` string details such as `field`,
    the path of the offending field.
    """

    reason: str = "UNKNOWN"
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    metadata: Mapping[str, str]

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if reason is not None:
            self.reason = reason
        self.metadata = dict(metadata or {})


class InvalidArgumentError(VecmemClientError):
    """The request is wrong; `metadata["field"]` names the offending field where one is to blame."""

    reason = "INVALID_ARGUMENT"
    code = grpc.StatusCode.INVALID_ARGUMENT


class LimitExceededError(InvalidArgumentError):
    """A size or count in the request is over its limit."""

    reason = "LIMIT_EXCEEDED"


class DimensionMismatchError(InvalidArgumentError):
    """A vector does not have the collection's dimension."""

    reason = "DIMENSION_MISMATCH"


class InvalidVectorError(InvalidArgumentError):
    """A vector holds NaN or infinity, or is zero under cosine."""

    reason = "INVALID_VECTOR"


class InvalidIdError(InvalidArgumentError):
    """A point id or a name is empty, too long, or has characters that are not allowed."""

    reason = "INVALID_ID"


class InvalidPayloadError(InvalidArgumentError):
    """A payload is not a JSON object within the limits."""

    reason = "INVALID_PAYLOAD"


class InvalidFilterError(InvalidArgumentError):
    """A filter is malformed or too large."""

    reason = "INVALID_FILTER"


class InvalidPageTokenError(InvalidArgumentError):
    """A page token was not issued for this request."""

    reason = "INVALID_PAGE_TOKEN"


class UnknownVectorError(InvalidArgumentError):
    """The collection declares no vector of that name."""

    reason = "UNKNOWN_VECTOR"


class RequestIdReusedError(InvalidArgumentError):
    """A request_id came back with another request than the first time."""

    reason = "REQUEST_ID_REUSED"


class InvalidKeyError(InvalidArgumentError):
    """A key is empty."""

    reason = "INVALID_KEY"


class CrossSlotError(InvalidArgumentError):
    """The keys of one operation belong to several hash slots, which `metadata["slots"]` names."""

    reason = "CROSS_SLOT"


class NotFoundError(VecmemClientError):
    """What the request names is not there."""

    reason = "NOT_FOUND"
    code = grpc.StatusCode.NOT_FOUND


class CollectionNotFoundError(NotFoundError):
    """No collection has that name."""

    reason = "COLLECTION_NOT_FOUND"


class PointNotFoundError(NotFoundError):
    """No point has that id."""

    reason = "POINT_NOT_FOUND"


class KeyNotFoundError(NotFoundError):
    """No such key exists."""

    reason = "KEY_NOT_FOUND"


class StreamGroupNotFoundError(NotFoundError):
    """The stream has no group of that name, or there is no such key."""

    reason = "STREAM_GROUP_NOT_FOUND"


class CollectionExistsError(VecmemClientError):
    """A collection of that name exists."""

    reason = "COLLECTION_EXISTS"
    code = grpc.StatusCode.ALREADY_EXISTS


class StreamGroupExistsError(VecmemClientError):
    """The stream has a group of that name."""

    reason = "STREAM_GROUP_EXISTS"
    code = grpc.StatusCode.ALREADY_EXISTS


class ValueMismatchError(VecmemClientError):
    """What is stored is not what the request takes it for."""

    reason = "VALUE_MISMATCH"
    code = grpc.StatusCode.FAILED_PRECONDITION


class WrongTypeError(ValueMismatchError):
    """The key holds a value of another type."""

    reason = "WRONG_TYPE"


class NotANumberError(ValueMismatchError):
    """The string spells no number."""

    reason = "NOT_A_NUMBER"


class MixedScoresError(ValueMismatchError):
    """The members of the sorted set have different scores, so that they are not in order of their bytes."""

    reason = "MIXED_SCORES"


class StreamIdTooSmallError(ValueMismatchError):
    """The id of a new entry is not greater than the last id of the stream, which `metadata["last_id"]` says, as in `17-3`."""

    reason = "STREAM_ID_TOO_SMALL"


class VersionConflictError(VecmemClientError):
    """A version is not the one that the request demands."""

    reason = "VERSION_CONFLICT"
    code = grpc.StatusCode.FAILED_PRECONDITION


class NumberOverflowError(VecmemClientError):
    """The sum is no int64, or no finite double."""

    reason = "OVERFLOW"
    code = grpc.StatusCode.OUT_OF_RANGE


class PositionAheadError(VecmemClientError):
    """`min_position` lies beyond the end of the log."""

    reason = "POSITION_AHEAD"
    code = grpc.StatusCode.OUT_OF_RANGE


class ChangesNotRetainedError(VecmemClientError):
    """Changes so old are kept no longer: read what there is now, and watch from there. `metadata` names the `first_sequence`."""

    reason = "CHANGES_NOT_RETAINED"
    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhaustedError(VecmemClientError):
    """GRPC refused for size or number, for instance a reply beyond the message limit of 64 MiB."""

    reason = "RESOURCE_EXHAUSTED"
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class MemoryLimitError(ResourceExhaustedError):
    """The data takes as much memory as it may: delete something. `metadata` names `used_bytes` and `limit_bytes`."""

    reason = "MEMORY_LIMIT_EXCEEDED"


class SlowConsumerError(ResourceExhaustedError):
    """The subscriber has not read its messages for too long. `metadata` names the `missed_count`."""

    reason = "SLOW_CONSUMER"


class OverloadedError(ResourceExhaustedError):
    """A queue of the server is full."""

    reason = "OVERLOADED"


class UnavailableError(VecmemClientError):
    """The server was not there or would not take the call, and retries did not help in time."""

    reason = "UNAVAILABLE"
    code = grpc.StatusCode.UNAVAILABLE


class WritesStoppedError(UnavailableError):
    """An append to the server's log failed; it takes no writes until it has restarted."""

    reason = "WRITES_STOPPED"


class MovedError(UnavailableError):
    """The node does not lead, or its shard does not own the hash slot.

    `metadata["owner"]` is the address of the node that leads, or empty where that is not known; `metadata["shard"]` is the slot's owner.
    """

    reason = "MOVED"


class SlotMovingError(UnavailableError):
    """A hash slot was about to be another shard's and took no writes for longer than usual. Nothing was changed."""

    reason = "SLOT_MOVING"


class TopologyConflictError(VecmemClientError):
    """The layout of the cluster was changed by somebody else meanwhile: look again."""

    reason = "TOPOLOGY_CONFLICT"
    code = grpc.StatusCode.ABORTED


class InvalidTopologyError(VecmemClientError):
    """What was asked for makes no valid layout of the cluster, or not now; `metadata["field"]` names what is to blame."""

    reason = "INVALID_TOPOLOGY"
    code = grpc.StatusCode.FAILED_PRECONDITION


class NotInClusterError(VecmemClientError):
    """The server is alone."""

    reason = "NOT_IN_CLUSTER"
    code = grpc.StatusCode.FAILED_PRECONDITION


class ShuttingDownError(UnavailableError):
    """The server drains."""

    reason = "SHUTTING_DOWN"


class DeadlineExceededError(VecmemClientError):
    """The time given ran out.

    A write may or may not have happened: repeat it with the same `request_id` to be sure that it happens once.
    """

    reason = "DEADLINE_EXCEEDED"
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CallCancelledError(VecmemClientError):
    """The call was cancelled, for instance because the client was closed meanwhile."""

    reason = "CANCELLED"
    code = grpc.StatusCode.CANCELLED


class DataLossError(VecmemClientError):
    """Stored data is damaged."""

    reason = "DATA_LOSS"
    code = grpc.StatusCode.DATA_LOSS


class CorruptionError(DataLossError):
    """A file of the server is damaged."""

    reason = "CORRUPTION"


class UnsupportedFormatError(DataLossError):
    """Stored data was written by a newer version of vecmem."""

    reason = "UNSUPPORTED_FORMAT"


class CollectionDamagedError(DataLossError):
    """The collection could not be loaded."""

    reason = "COLLECTION_DAMAGED"


class KeyspaceDamagedError(DataLossError):
    """The keys could not be loaded; their data is kept on disk untouched."""

    reason = "KEYSPACE_DAMAGED"


class InternalError(VecmemClientError):
    """The server failed in a way that it does not explain."""

    reason = "INTERNAL"
    code = grpc.StatusCode.INTERNAL


class CheckpointError(InternalError):
    """A checkpoint could not be written or did not verify; it was not published."""

    reason = "CHECKPOINT_FAILED"


class LogConflictError(VecmemClientError):
    """Another writer appended to the server's log."""

    reason = "LOG_CONFLICT"
    code = grpc.StatusCode.ABORTED


class UnimplementedError(VecmemClientError):
    """The server does not know the method."""

    reason = "UNIMPLEMENTED"
    code = grpc.StatusCode.UNIMPLEMENTED


class ClientClosedError(VecmemClientError):
    """The client was closed before the call."""

    reason = "CLIENT_CLOSED"
    code = grpc.StatusCode.CANCELLED


def _tree(root: type[VecmemClientError]) -> list[type[VecmemClientError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


class _Tables:
    """The tree by reason, and the class that stands for each status code when the reason is unknown."""

    by_reason: ClassVar[Mapping[str, type[VecmemClientError]]] = {cls.reason: cls for cls in _tree(VecmemClientError)}
    by_code: ClassVar[Mapping[grpc.StatusCode, type[VecmemClientError]]] = {
        cls.code: cls
        for cls in (
            InvalidArgumentError,
            NotFoundError,
            CollectionExistsError,
            ValueMismatchError,
            PositionAheadError,
            ResourceExhaustedError,
            UnavailableError,
            DeadlineExceededError,
            CallCancelledError,
            DataLossError,
            InternalError,
            UnimplementedError,
        )
    }
    by_number: ClassVar[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def build_error(code: grpc.StatusCode, message: str, reason: str, metadata: Mapping[str, str]) -> VecmemClientError:
    """Return the exception for a status; an unknown or empty `reason` falls back to the class of `code`."""
    kind = _Tables.by_reason.get(reason) or _Tables.by_code.get(code, VecmemClientError)
    return kind(message, code=code, reason=reason or code.name, metadata=metadata)


def error_from_message(error: common_pb2.Error) -> VecmemClientError:
    """Return the exception for the failed part of a batch."""
    code = _Tables.by_number.get(error.code, grpc.StatusCode.UNKNOWN)
    return build_error(code, error.message, error.reason, error.metadata)


def error_from_rpc(error: grpc.RpcError) -> VecmemClientError:
    """Return the exception for a failed call; without vecmem's ErrorInfo it was gRPC itself that failed."""
    status: Any = error  # both the sync and the asyncio class have these methods, but no common base declares them
    code, message = status.code(), status.details() or status.code().name
    for key, value in status.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes) and (info := _error_info(value)) is not None:
            return build_error(code, message, info.reason, info.metadata)
    return build_error(code, message, "", {})


def _error_info(details: bytes) -> error_details_pb2.ErrorInfo | None:
    for detail in status_pb2.Status.FromString(details).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == _DOMAIN:
            return info
    return None
