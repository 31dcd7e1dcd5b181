"""Locks: one holder at a time, until its lease ends. See proto/vecmem/v1/locks.proto.

A fencing token is the version that the key gets by the acquisition. Versions of the keyspace only grow, whatever becomes of a key, and so
do the tokens of each.
"""

from __future__ import annotations

import struct
from typing import Final, Self

from vecmem import limits
from vecmem.errors import InvalidArgumentError
from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.keyspace.operation import (
    Moment,
    Waits,
    check_member,
    check_request_key,
    check_wait,
    frees,
    reads,
    writes,
)
from vecmem.v1 import keys_pb2
from vecmem.v1 import locks_pb2 as api

LOCK_BYTES: Final = 70
"""About what a lock takes beyond any container and the owner's own bytes."""
_LOCK: Final = struct.Struct("<Qqq")


class LockValue(Container):
    """Who holds a lock. Whether the lease has ended, who looks has to ask: the key may live on by an expiry of its own."""

    __slots__ = ("acquired_at_unix_ms", "fencing_token", "lease_ends_at_unix_ms", "owner")

    TYPE = keys_pb2.KEY_TYPE_LOCK
    NAME = "lock"

    def __init__(self, owner: bytes, fencing_token: int, acquired_at_unix_ms: int, lease_ends_at_unix_ms: int) -> None:
        super().__init__()
        self.owner = owner
        self.fencing_token = fencing_token
        self.acquired_at_unix_ms = acquired_at_unix_ms
        self.lease_ends_at_unix_ms = lease_ends_at_unix_ms
        self.size_bytes += LOCK_BYTES + len(owner)

    def __len__(self) -> int:
        return 1

    def dump(self) -> bytes:
        """The token and the times, then the owner."""
        return _LOCK.pack(self.fencing_token, self.acquired_at_unix_ms, self.lease_ends_at_unix_ms) + self.owner

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)(self.owner, self.fencing_token, self.acquired_at_unix_ms, self.lease_ends_at_unix_ms)
        copied.version = self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The lock that was dumped. Raises ValueError."""
        if len(content) <= _LOCK.size:
            raise ValueError(f"{len(content)} bytes hold no owner")
        fencing_token, acquired_at_unix_ms, lease_ends_at_unix_ms = _LOCK.unpack_from(content)
        if not fencing_token or lease_ends_at_unix_ms <= acquired_at_unix_ms:
            raise ValueError(f"token {fencing_token}, held from {acquired_at_unix_ms} to {lease_ends_at_unix_ms}")
        return cls(content[_LOCK.size :], fencing_token, acquired_at_unix_ms, lease_ends_at_unix_ms)


def check_duration(duration_ms: int, field: str) -> None:
    """Raises InvalidArgumentError."""
    if not 1 <= duration_ms <= limits.TIME_MS_MAX:
        raise InvalidArgumentError(f"{duration_ms} is not within 1 to 2^53", field=field)


def check_token(token: int, field: str) -> None:
    """Raises InvalidArgumentError."""
    if not token:
        raise InvalidArgumentError("is no token that was ever given out", field=field)


def _check_owner(request: api.AcquireLockRequest | api.RenewLockRequest | api.ReleaseLockRequest) -> None:
    check_request_key(request)
    if not request.owner:
        raise InvalidArgumentError("is empty", field="owner")
    check_member(request.owner, "owner")


def _check_acquire(request: api.AcquireLockRequest) -> None:
    _check_owner(request)
    check_duration(request.lease_ms, "lease_ms")
    check_wait(request)


def _check_release(request: api.ReleaseLockRequest) -> None:
    _check_owner(request)
    check_token(request.fencing_token, "fencing_token")


def _check_renew(request: api.RenewLockRequest) -> None:
    _check_owner(request)
    check_token(request.fencing_token, "fencing_token")
    check_duration(request.lease_ms, "lease_ms")


def _held(keyspace: Keyspace, key: bytes, moment: Moment) -> LockValue | None:
    """The lock, if somebody holds it. Raises WrongTypeError."""
    found = keyspace.container(key, LockValue, moment.time_unix_ms)
    return None if found is None or found.lease_ends_at_unix_ms <= moment.time_unix_ms else found


def _held_by(
    keyspace: Keyspace, request: api.RenewLockRequest | api.ReleaseLockRequest, moment: Moment
) -> tuple[LockValue | None, bool]:
    """The lock, if somebody holds it, and whether that is who the request says."""
    held = _held(keyspace, request.key, moment)
    mine = held is not None and (held.owner, held.fencing_token) == (request.owner, request.fencing_token)
    return held, mine


def _tell(held: LockValue, holder: api.LockHolder, moment: Moment) -> None:
    holder.owner = held.owner
    holder.fencing_token = held.fencing_token
    holder.acquired_at_unix_ms = held.acquired_at_unix_ms
    holder.remaining_ms = held.lease_ends_at_unix_ms - moment.time_unix_ms


def _changed(keyspace: Keyspace, key: bytes, value: LockValue, old_size_bytes: int, moment: Moment) -> None:
    keyspace.change(key, value, old_size_bytes, moment.time_unix_ms)
    keyspace.set_expiry(key, value.lease_ends_at_unix_ms)


def _acquire(
    keyspace: Keyspace, request: api.AcquireLockRequest, response: api.AcquireLockResponse, moment: Moment
) -> None:
    held = _held(keyspace, request.key, moment)
    if held is not None and held.owner != request.owner:
        moment.spend(len(held.owner), "key")
        _tell(held, response.holder, moment)
        return
    now_unix_ms = moment.time_unix_ms
    lease_ends_at_unix_ms = now_unix_ms + request.lease_ms
    if held is None:
        held = LockValue(request.owner, keyspace.version + 1, now_unix_ms, lease_ends_at_unix_ms)
        _changed(keyspace, request.key, held, 0, moment)
    else:
        held.lease_ends_at_unix_ms = lease_ends_at_unix_ms
        _changed(keyspace, request.key, held, held.size_bytes, moment)
    response.acquired = True
    response.fencing_token = held.fencing_token
    _tell(held, response.holder, moment)


def _is_free(keyspace: Keyspace, request: api.AcquireLockRequest, moment: Moment) -> bool:
    held = _held(keyspace, request.key, moment)
    return held is None or held.owner == request.owner


def _is_owner(keyspace: Keyspace, request: api.AcquireLockRequest, moment: Moment) -> bool:
    held = _held(keyspace, request.key, moment)
    return held is not None and held.owner == request.owner


def _lease_ends_at_unix_ms(keyspace: Keyspace, request: api.AcquireLockRequest, moment: Moment) -> int:
    held = _held(keyspace, request.key, moment)
    return NEVER if held is None else held.lease_ends_at_unix_ms


def _renew(keyspace: Keyspace, request: api.RenewLockRequest, response: api.RenewLockResponse, moment: Moment) -> None:
    held, mine = _held_by(keyspace, request, moment)
    if held is None:
        return
    if mine:
        held.lease_ends_at_unix_ms = moment.time_unix_ms + request.lease_ms
        _changed(keyspace, request.key, held, held.size_bytes, moment)
        response.renewed = True
    else:
        moment.spend(len(held.owner), "key")
    _tell(held, response.holder, moment)


def _release(
    keyspace: Keyspace, request: api.ReleaseLockRequest, response: api.ReleaseLockResponse, moment: Moment
) -> None:
    _, mine = _held_by(keyspace, request, moment)
    if mine:
        keyspace.remove(request.key)
        response.released = True


def _describe(
    keyspace: Keyspace, request: api.DescribeLockRequest, response: api.DescribeLockResponse, moment: Moment
) -> None:
    held = _held(keyspace, request.key, moment)
    if held is not None:
        _tell(held, response.holder, moment)


OPERATIONS = {
    "acquire_lock": writes(
        _check_acquire,
        _acquire,
        Waits(
            lambda response: response.acquired,
            _is_free,
            needs_no_turn=_is_owner,
            due_unix_ms=_lease_ends_at_unix_ms,
        ),
    ),
    "renew_lock": frees(_check_renew, _renew),
    "release_lock": frees(_check_release, _release),
    "describe_lock": reads(check_request_key, _describe),
}
