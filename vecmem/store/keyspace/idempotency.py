"""Work that is done once: who is at it, and what came of it. See proto/vecmem/v1/idempotency.proto.

A token is the version that the key gets when a worker starts: no two workers ever have the same.
"""

from __future__ import annotations

import struct
from typing import Any, Final, Self

from vecmem import limits
from vecmem.errors import LimitExceededError
from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.locks import check_duration, check_token
from vecmem.store.keyspace.operation import Moment, check_member, check_request_key, frees, reads, writes
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.v1 import idempotency_pb2 as api
from vecmem.v1 import keys_pb2

RECORD_BYTES: Final = 110
"""About what a record takes beyond any container, the fingerprint and the result."""
ATTEMPT_MAX: Final = 2**32 - 1
"""It is counted no further."""
_RECORD: Final = struct.Struct("<QIqq")


class IdempotencyValue(Container):
    """What has become of work. Its expiry is the key's."""

    __slots__ = ("attempt", "fingerprint", "lease_ends_at_unix_ms", "result", "retention_ms", "token")

    TYPE = keys_pb2.KEY_TYPE_IDEMPOTENCY_KEY
    NAME = "idempotency key"

    def __init__(
        self,
        fingerprint: bytes,
        token: int,
        attempt: int,
        lease_ends_at_unix_ms: int,
        retention_ms: int,
        result: bytes | None = None,
    ) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.token = token
        self.attempt = attempt
        self.lease_ends_at_unix_ms = lease_ends_at_unix_ms
        """Of no matter once there is a result."""
        self.retention_ms = retention_ms
        self.result = result
        self.size_bytes += RECORD_BYTES + len(fingerprint) + len(result or b"")

    def __len__(self) -> int:
        return 1

    def complete(self, result: bytes) -> None:
        """Store the result."""
        self.result = result
        self.size_bytes += len(result)

    def remaining_ms(self, now_unix_ms: int) -> int:
        """How long the worker's lease goes on; 0: it does not."""
        return 0 if self.result is not None else max(0, self.lease_ends_at_unix_ms - now_unix_ms)

    def dump(self) -> bytes:
        """Numbers, the fingerprint, and the result where there is one."""
        numbers = _RECORD.pack(self.token, self.attempt, self.lease_ends_at_unix_ms, self.retention_ms)
        return pack([numbers, self.fingerprint, *([] if self.result is None else [self.result])])

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)(
            self.fingerprint, self.token, self.attempt, self.lease_ends_at_unix_ms, self.retention_ms, self.result
        )
        copied.version = self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The record that was dumped. Raises ValueError."""
        parts = unpack(content)
        if len(parts) not in (2, 3) or len(parts[0]) != _RECORD.size:
            raise ValueError(f"{len(parts)} parts are no record")
        token, attempt, lease_ends_at_unix_ms, retention_ms = _RECORD.unpack(parts[0])
        if not token or not attempt or lease_ends_at_unix_ms < 1 or retention_ms < 1:
            raise ValueError(f"attempt {attempt} of token {token}, kept for {retention_ms} ms")
        return cls(parts[1], token, attempt, lease_ends_at_unix_ms, retention_ms, parts[2] if len(parts) == 3 else None)


def _check_begin(request: api.BeginIdempotentRequest) -> None:
    check_request_key(request)
    check_member(request.fingerprint, "fingerprint")
    check_duration(request.lease_ms, "lease_ms")
    check_duration(request.retention_ms, "retention_ms")


def _check_token(request: Any) -> None:
    check_request_key(request)
    check_token(request.token, "token")


def _check_complete(request: api.CompleteIdempotentRequest) -> None:
    _check_token(request)
    if len(request.result) > limits.IDEMPOTENT_RESULT_BYTES_MAX:
        raise LimitExceededError(
            f"has {len(request.result)} bytes, more than {limits.IDEMPOTENT_RESULT_BYTES_MAX}", field="result"
        )


def _check_renew(request: api.RenewIdempotentRequest) -> None:
    _check_token(request)
    check_duration(request.lease_ms, "lease_ms")


def _find(keyspace: Keyspace, key: bytes, moment: Moment) -> IdempotencyValue | None:
    return keyspace.container(key, IdempotencyValue, moment.time_unix_ms)


def _of_token(keyspace: Keyspace, request: Any, moment: Moment) -> IdempotencyValue | None:
    """The record, if the worker with the token of a request is the last that started."""
    found = _find(keyspace, request.key, moment)
    return None if found is None or found.token != request.token else found


def _begin(
    keyspace: Keyspace, request: api.BeginIdempotentRequest, response: api.BeginIdempotentResponse, moment: Moment
) -> None:
    now_unix_ms = moment.time_unix_ms
    found = _find(keyspace, request.key, moment)
    if found is not None:
        if found.fingerprint != request.fingerprint:
            response.status = api.IDEMPOTENT_STATUS_MISMATCH
            return
        if found.result is not None:
            moment.spend(len(found.result), "key")
            response.status = api.IDEMPOTENT_STATUS_COMPLETED
            response.result = found.result
            return
        response.retry_after_ms = found.remaining_ms(now_unix_ms)
        if response.retry_after_ms:
            response.status = api.IDEMPOTENT_STATUS_IN_PROGRESS
            return
    token = keyspace.version + 1
    attempt = 1 if found is None else min(found.attempt + 1, ATTEMPT_MAX)
    value = IdempotencyValue(request.fingerprint, token, attempt, now_unix_ms + request.lease_ms, request.retention_ms)
    # In place of the record of a worker that is taken for dead, if there is one.
    keyspace.change(request.key, value, 0, now_unix_ms)
    keyspace.set_expiry(request.key, now_unix_ms + max(request.lease_ms, request.retention_ms))
    response.status = api.IDEMPOTENT_STATUS_STARTED
    response.token = token
    response.attempt = attempt


def _complete(
    keyspace: Keyspace,
    request: api.CompleteIdempotentRequest,
    response: api.CompleteIdempotentResponse,
    moment: Moment,
) -> None:
    found = _of_token(keyspace, request, moment)
    if found is None:
        return
    if found.result is None:
        old_size_bytes = found.size_bytes
        found.complete(request.result)
        keyspace.change(request.key, found, old_size_bytes, moment.time_unix_ms)
        keyspace.set_expiry(request.key, moment.time_unix_ms + found.retention_ms)
    response.completed = found.result == request.result


def _abandon(
    keyspace: Keyspace, request: api.AbandonIdempotentRequest, response: api.AbandonIdempotentResponse, moment: Moment
) -> None:
    found = _of_token(keyspace, request, moment)
    if found is not None and found.result is None:
        keyspace.remove(request.key)
        response.abandoned = True


def _renew(
    keyspace: Keyspace, request: api.RenewIdempotentRequest, response: api.RenewIdempotentResponse, moment: Moment
) -> None:
    found = _of_token(keyspace, request, moment)
    if found is None or found.result is not None:
        return
    found.lease_ends_at_unix_ms = moment.time_unix_ms + request.lease_ms
    keyspace.change(request.key, found, found.size_bytes, moment.time_unix_ms)
    expires_at_unix_ms = keyspace.expires_at(request.key)
    if expires_at_unix_ms:
        keyspace.set_expiry(request.key, max(expires_at_unix_ms, found.lease_ends_at_unix_ms))
    response.renewed = True


def _describe(
    keyspace: Keyspace,
    request: api.DescribeIdempotentRequest,
    response: api.DescribeIdempotentResponse,
    moment: Moment,
) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    response.attempt = found.attempt
    response.fingerprint = found.fingerprint
    response.remaining_ms = found.remaining_ms(moment.time_unix_ms)
    if found.result is not None:
        response.status = api.IDEMPOTENT_STATUS_COMPLETED
        response.result = found.result
    elif response.remaining_ms:
        response.status = api.IDEMPOTENT_STATUS_IN_PROGRESS
    else:
        response.status = api.IDEMPOTENT_STATUS_STARTED


OPERATIONS = {
    "begin_idempotent": writes(_check_begin, _begin),
    "complete_idempotent": frees(_check_complete, _complete),
    "abandon_idempotent": frees(_check_token, _abandon),
    "renew_idempotent": frees(_check_renew, _renew),
    "describe_idempotent": reads(check_request_key, _describe),
}
