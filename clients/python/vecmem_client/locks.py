"""Locks with leases and fencing tokens. Each function builds an operation for `Client.run` and `Client.pipeline`.

All raise WrongTypeError, when they run, for a key that holds a value of another type. `Lock` and `AsyncLock` are locks as objects, which
renew their leases by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vecmem_client._operations import BytesLike, Operation, as_bytes, as_wait_ms, reads, writes

if TYPE_CHECKING:
    from vecmem.v1 import locks_pb2


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a lock, since when, and for how long by its lease."""

    owner: bytes
    fencing_token: int
    acquired_at: datetime
    remaining_seconds: float


@dataclass(frozen=True, slots=True)
class LockAcquisition:
    """`fencing_token` is 0 where it was not acquired; `holder` is who holds it now."""

    acquired: bool
    fencing_token: int
    holder: LockHolder


@dataclass(frozen=True, slots=True)
class LockRenewal:
    """`renewed` False: the lease had ended, or the lock is another's. `holder` is who holds it now; None: nobody."""

    renewed: bool
    holder: LockHolder | None


def acquire(
    key: BytesLike, owner: BytesLike, lease_seconds: float, *, wait_seconds: float = 0
) -> Operation[LockAcquisition]:
    """Take a lock that nobody holds; wait so long, at most an hour, where another one does.

    The same owner again prolongs its lease and keeps its token, so no two may share a name.
    """
    return writes(
        "acquire_lock",
        _acquisition,
        key=as_bytes(key),
        owner=as_bytes(owner),
        lease_ms=round(lease_seconds * 1e3),
        wait_ms=as_wait_ms(wait_seconds),
    )


def renew(key: BytesLike, owner: BytesLike, fencing_token: int, lease_seconds: float) -> Operation[LockRenewal]:
    """Let a lease that has not ended begin anew."""
    return writes(
        "renew_lock",
        lambda response: LockRenewal(response.renewed, _holder(response)),
        key=as_bytes(key),
        owner=as_bytes(owner),
        fencing_token=fencing_token,
        lease_ms=round(lease_seconds * 1e3),
    )


def release(key: BytesLike, owner: BytesLike, fencing_token: int) -> Operation[bool]:
    """Give a lock back; returns whether it was still held."""
    return writes(
        "release_lock",
        lambda response: response.released,
        key=as_bytes(key),
        owner=as_bytes(owner),
        fencing_token=fencing_token,
    )


def describe(key: BytesLike) -> Operation[LockHolder | None]:
    """Return who holds a lock; None: nobody."""
    return reads("describe_lock", _holder, key=as_bytes(key))


def _acquisition(response: locks_pb2.AcquireLockResponse) -> LockAcquisition:
    return LockAcquisition(response.acquired, response.fencing_token, _told(response.holder))


def _holder(response: locks_pb2.RenewLockResponse | locks_pb2.DescribeLockResponse) -> LockHolder | None:
    return _told(response.holder) if response.HasField("holder") else None


def _told(holder: locks_pb2.LockHolder) -> LockHolder:
    acquired_at = datetime.fromtimestamp(holder.acquired_at_unix_ms / 1e3, UTC)
    return LockHolder(holder.owner, holder.fencing_token, acquired_at, holder.remaining_ms / 1e3)
