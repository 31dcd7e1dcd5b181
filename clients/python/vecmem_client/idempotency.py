"""Work that is done once. Each function builds an operation for `Client.run` and `Client.pipeline`.

All raise WrongTypeError, when they run, for a key that holds a value of another type. `Idempotency` and `AsyncIdempotency` do the work as
well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vecmem.v1 import idempotency_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, reads, writes

if TYPE_CHECKING:
    from typing import TypeAlias

BeginStatus: TypeAlias = Literal["started", "in_progress", "completed", "mismatch"]
_BEGIN_STATUSES: dict[int, BeginStatus] = {
    idempotency_pb2.IDEMPOTENT_STATUS_STARTED: "started",
    idempotency_pb2.IDEMPOTENT_STATUS_IN_PROGRESS: "in_progress",
    idempotency_pb2.IDEMPOTENT_STATUS_COMPLETED: "completed",
    idempotency_pb2.IDEMPOTENT_STATUS_MISMATCH: "mismatch",
}


@dataclass(frozen=True, slots=True)
class Begun:
    """What to do.

    started: the work, which `token` then completes. in_progress: come again; another worker is at it until `retry_after_seconds` at the
    longest. completed: take `result`. mismatch: the name stands for other work.
    """

    status: BeginStatus
    token: int
    attempt: int
    """Where started: 1 for the first worker; more: workers before let their leases end, and may have done part of the work."""
    retry_after_seconds: float
    result: bytes


@dataclass(frozen=True, slots=True)
class WorkDescription:
    """What has become of work: `result` None: it is not completed. `remaining_seconds`: of its worker's lease; 0: that has ended."""

    attempt: int
    fingerprint: bytes
    remaining_seconds: float
    result: bytes | None


def begin(
    key: BytesLike, *, lease_seconds: float, retention_seconds: float, fingerprint: BytesLike = b""
) -> Operation[Begun]:
    """Start work, or learn what has become of it. The record is kept for the retention, counted anew from the completion."""
    return writes(
        "begin_idempotent",
        _begun,
        key=as_bytes(key),
        fingerprint=as_bytes(fingerprint),
        lease_ms=round(lease_seconds * 1e3),
        retention_ms=round(retention_seconds * 1e3),
    )


def complete(key: BytesLike, token: int, result: BytesLike) -> Operation[bool]:
    """Store a result of up to 1 MiB; returns False where another worker has started since, or the record is gone."""
    return writes(
        "complete_idempotent",
        lambda response: response.completed,
        key=as_bytes(key),
        token=token,
        result=as_bytes(result),
    )


def abandon(key: BytesLike, token: int) -> Operation[bool]:
    """Forget work that is not completed: whoever begins it next starts it. Returns False as `complete` does."""
    return writes("abandon_idempotent", lambda response: response.abandoned, key=as_bytes(key), token=token)


def renew(key: BytesLike, token: int, lease_seconds: float) -> Operation[bool]:
    """Let the lease of work that takes long begin anew. Returns False as `complete` does."""
    return writes(
        "renew_idempotent",
        lambda response: response.renewed,
        key=as_bytes(key),
        token=token,
        lease_ms=round(lease_seconds * 1e3),
    )


def describe(key: BytesLike) -> Operation[WorkDescription | None]:
    """Return what has become of work; None: nobody has begun it."""
    return reads("describe_idempotent", _description, key=as_bytes(key))


def _begun(response: idempotency_pb2.BeginIdempotentResponse) -> Begun:
    return Begun(
        _BEGIN_STATUSES[response.status],
        response.token,
        response.attempt,
        response.retry_after_ms / 1e3,
        response.result,
    )


def _description(response: idempotency_pb2.DescribeIdempotentResponse) -> WorkDescription | None:
    if not response.status:
        return None
    completed = response.status == idempotency_pb2.IDEMPOTENT_STATUS_COMPLETED
    return WorkDescription(
        response.attempt,
        response.fingerprint,
        response.remaining_ms / 1e3,
        response.result if completed else None,
    )
