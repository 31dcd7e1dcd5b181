"""Every error that vecmem raises on purpose, classed by what the caller can do about it.

    VecmemError
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
    ├── NotFoundError                what it names is not there
    │   ├── CollectionNotFoundError
    │   ├── PointNotFoundError
    │   ├── KeyNotFoundError
    │   └── StreamGroupNotFoundError
    ├── CollectionExistsError        what it makes is there already
    ├── StreamGroupExistsError
    ├── ValueMismatchError           what is stored is not what the request takes it for
    │   ├── WrongTypeError           ... but a value of another type
    │   ├── NotANumberError          ... or spells no number
    │   ├── MixedScoresError         ... or a sorted set whose scores are not all the same
    │   └── StreamIdTooSmallError    ... or a stream that has gone further than the new id
    ├── VersionConflictError         what is stored has changed since the caller looked
    ├── TopologyConflictError        the layout of the cluster has changed since the caller looked
    ├── InvalidTopologyError         the layout of the cluster does not allow it
    ├── NotInClusterError            this node is alone
    ├── NumberOverflowError          the sum is no number of its kind
    ├── PositionAheadError           the log has not reached the position asked for
    ├── ChangesNotRetainedError      changes so old are kept no longer
    ├── OverloadedError              too much at once: slow down
    ├── MemoryLimitError             there is no room for more data
    ├── SlowConsumerError            a subscriber that was too slow missed messages
    ├── UnavailableError             not now: the same request may succeed later
    │   ├── WritesStoppedError       an append failed; reads go on
    │   ├── MovedError               another node of the cluster leads, or another shard owns the slot
    │   ├── SlotMovingError          a slot takes no writes while it moves to another shard
    │   └── ShuttingDownError
    ├── DeadlineExceededError        the caller's time ran out before the work began
    ├── DataLossError                stored data is damaged: an operator is needed
    │   ├── CorruptionError          ... in a file, at a position
    │   ├── UnsupportedFormatError   ... or written by a newer version
    │   ├── CollectionDamagedError   one collection could not be loaded; the others serve
    │   └── KeyspaceDamagedError     the keys could not be loaded; collections serve
    ├── LogConflictError             somebody else appended to the log
    ├── SlotStateError               slots cannot change hands so now
    ├── CheckpointError              a checkpoint could not be written; nothing is lost
    └── ConfigurationError           the server's settings are wrong

Domain errors know nothing of gRPC: `vecmem.server.error_table` maps each class to a status code. `reason` is the
machine-readable identity that clients see (google.rpc.ErrorInfo.reason); it is never parsed out of a message.
"""

from __future__ import annotations

from typing import ClassVar


class VecmemError(Exception):
    """Root of the tree. `metadata` holds string details for programs, for instance the offending `field`."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


def located(error: VecmemError, path: str) -> VecmemError:
    """The same error, with a path put before that of its field: it is about a part of a larger request."""
    field = error.metadata.get("field", "")
    # Whoever names a field begins the message with it.
    separator = "." if field and error.message.startswith(field) else ": "
    error.message = f"{path}{separator}{error.message}"
    error.args = (error.message,)
    error.metadata["field"] = f"{path}.{field}" if field else path
    return error


class InvalidArgumentError(VecmemError):
    """The request is wrong. `field` is the path of the offending field, as in `points[3].vector`."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, field: str = "", **metadata: str) -> None:
        super().__init__(f"{field}: {message}" if field else message, **metadata)
        if field:
            self.metadata["field"] = field


class LimitExceededError(InvalidArgumentError):
    """A size or count in the request is over its limit (vecmem.limits)."""

    reason = "LIMIT_EXCEEDED"


class DimensionMismatchError(InvalidArgumentError):
    """A vector does not have the collection's dimension."""

    reason = "DIMENSION_MISMATCH"


class InvalidVectorError(InvalidArgumentError):
    """A vector holds NaN or infinity, is zero under cosine, or its bytes do not make up whole elements."""

    reason = "INVALID_VECTOR"


class InvalidIdError(InvalidArgumentError):
    """A point id or a name is empty, too long, or has characters that are not allowed."""

    reason = "INVALID_ID"


class InvalidPayloadError(InvalidArgumentError):
    """A payload is not a JSON object within the limits."""

    reason = "INVALID_PAYLOAD"


class InvalidFilterError(InvalidArgumentError):
    """A filter is malformed."""

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
    """The keys of one operation belong to several hash slots; `slots` names them."""

    reason = "CROSS_SLOT"


class NotFoundError(VecmemError):
    """What the request names is not there."""

    reason = "NOT_FOUND"


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


class CollectionExistsError(VecmemError):
    """A collection of that name exists."""

    reason = "COLLECTION_EXISTS"


class StreamGroupExistsError(VecmemError):
    """The stream has a group of that name."""

    reason = "STREAM_GROUP_EXISTS"


class ValueMismatchError(VecmemError):
    """What is stored is not what the request takes it for."""

    reason = "VALUE_MISMATCH"


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
    """The id of a new entry is not greater than the last id of the stream, which `last_id` says, as in `17-3`."""

    reason = "STREAM_ID_TOO_SMALL"


class VersionConflictError(VecmemError):
    """A version is not the one that the request demands."""

    reason = "VERSION_CONFLICT"


class NumberOverflowError(VecmemError):
    """The sum is no int64, or no finite double."""

    reason = "OVERFLOW"


class PositionAheadError(VecmemError):
    """`min_position` lies beyond the end of the log."""

    reason = "POSITION_AHEAD"


class ChangesNotRetainedError(VecmemError):
    """The changes asked for are not kept any more. `first_sequence` is the first that are."""

    reason = "CHANGES_NOT_RETAINED"


class OverloadedError(VecmemError):
    """A queue is full."""

    reason = "OVERLOADED"


class MemoryLimitError(VecmemError):
    """The data takes as much memory as it may. `used_bytes` and `limit_bytes` tell how much that is."""

    reason = "MEMORY_LIMIT_EXCEEDED"


class SlowConsumerError(VecmemError):
    """A subscriber has not read its messages for too long, and further ones found no room. `missed_count`: how many."""

    reason = "SLOW_CONSUMER"


class UnavailableError(VecmemError):
    """Not now; the same request may succeed later."""

    reason = "UNAVAILABLE"


class WritesStoppedError(UnavailableError):
    """An append to the log failed, so its outcome is unknown; no write is taken until the server has restarted."""

    reason = "WRITES_STOPPED"


class MovedError(UnavailableError):
    """This node does not lead the shard, or the shard does not own the hash slot.

    `owner` in the metadata is the address of the node that leads, where that is known. `slot` is the slot, and `shard` its owner, where
    that is known.
    """

    reason = "MOVED"


class SlotMovingError(UnavailableError):
    """A hash slot is about to be another shard's and takes no writes for a moment; `slot` in the metadata. Nothing was changed."""

    reason = "SLOT_MOVING"


class TopologyConflictError(VecmemError):
    """The layout of the cluster, or what goes by it, was changed by somebody else meanwhile: look again."""

    reason = "TOPOLOGY_CONFLICT"


class InvalidTopologyError(VecmemError):
    """What was asked for makes no valid layout of the cluster."""

    reason = "INVALID_TOPOLOGY"


class NotInClusterError(VecmemError):
    """This node is in no cluster."""

    reason = "NOT_IN_CLUSTER"


class ShuttingDownError(UnavailableError):
    """The server drains."""

    reason = "SHUTTING_DOWN"


class DeadlineExceededError(VecmemError):
    """The caller's deadline passed before the work began; nothing was done."""

    reason = "DEADLINE_EXCEEDED"


class DataLossError(VecmemError):
    """Stored data is damaged."""

    reason = "DATA_LOSS"


class CorruptionError(DataLossError):
    """Damage in `path`, at `position` (a byte offset or a log sequence, as the message says)."""

    reason = "CORRUPTION"

    def __init__(self, message: str, *, path: str, position: str = "") -> None:
        where = f"{path}, {position}" if position else path
        super().__init__(f"{where}: {message}", path=path, position=position)
        self.path = path
        self.position = position


class UnsupportedFormatError(DataLossError):
    """The data was written by a newer version of vecmem, or is not vecmem's."""

    reason = "UNSUPPORTED_FORMAT"


class CollectionDamagedError(DataLossError):
    """The collection could not be loaded from any checkpoint; its data is kept on disk untouched."""

    reason = "COLLECTION_DAMAGED"


class KeyspaceDamagedError(DataLossError):
    """The keys could not be loaded from any checkpoint; their data is kept on disk untouched."""

    reason = "KEYSPACE_DAMAGED"


class LogConflictError(VecmemError):
    """An append did not follow the log's last record: another writer is at work."""

    reason = "LOG_CONFLICT"


class SlotStateError(VecmemError):
    """Hash slots cannot change hands so now: they are not owned, not blocked, or do not hold what was expected."""

    reason = "SLOT_STATE"


class CheckpointError(VecmemError):
    """A checkpoint could not be written or did not verify; it was not published."""

    reason = "CHECKPOINT_FAILED"


class ConfigurationError(VecmemError):
    """The server's settings are wrong."""

    reason = "CONFIGURATION"
