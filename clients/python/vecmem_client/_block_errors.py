"""What `RateLimiter`, `Lock` and `Idempotency` raise by themselves; to the server these are results.

VecmemClientError
├── RateLimitedError       too many permits were asked for in too short a time
├── LockHeldError          another owner holds the lock
├── LockLostError          the lease has ended: somebody else may hold the lock
├── WorkInProgressError    another worker does it
├── WorkMismatchError      the name stands for other work
└── WorkLostError          the lease had ended, and another worker has started
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from vecmem_client._errors import VecmemClientError

if TYPE_CHECKING:
    from vecmem_client.locks import LockHolder
    from vecmem_client.rate_limiters import RateDecision


class RateLimitedError(VecmemClientError):
    """Permits are not there, or not in the time that could be waited for; `decision` says when they are."""

    reason = "RATE_LIMITED"
    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, decision: RateDecision | None = None) -> None:
        super().__init__(message)
        self.decision = decision


class LockHeldError(VecmemClientError):
    """Another owner holds the lock, `holder`, and did so all the time that could be waited for."""

    reason = "LOCK_HELD"
    code = grpc.StatusCode.ABORTED

    def __init__(self, message: str, holder: LockHolder | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class LockLostError(VecmemClientError):
    """The lease has ended before the lock was released. Somebody else may have held it, or may hold it now."""

    reason = "LOCK_LOST"
    code = grpc.StatusCode.ABORTED


class WorkInProgressError(VecmemClientError):
    """Another worker is at it, and was all the time that could be waited for; it is no longer after `retry_after_seconds`."""

    reason = "WORK_IN_PROGRESS"
    code = grpc.StatusCode.ABORTED

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class WorkMismatchError(VecmemClientError):
    """The name stands for work with another fingerprint."""

    reason = "WORK_MISMATCH"
    code = grpc.StatusCode.FAILED_PRECONDITION


class WorkLostError(VecmemClientError):
    """The work was done, but its lease had ended, and another worker has started it, or the record is gone: the result is not kept."""

    reason = "WORK_LOST"
    code = grpc.StatusCode.ABORTED
