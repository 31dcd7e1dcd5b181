# Generated from _async/rate_limiter.py by scripts/generate_sync.py: change that one and run the script.
"""A rate limiter as an object."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vecmem_client import keys, rate_limiters
from vecmem_client._block_errors import RateLimitedError
from vecmem_client._operations import BytesLike, as_bytes
from vecmem_client._sync.background import sleep

if TYPE_CHECKING:
    from vecmem_client._sync.client import Client
    from vecmem_client.rate_limiters import RateDecision, RateLimit, RateLimiterDescription


class RateLimiter:
    """Permits of one limit, for everybody together or for each subject (a user, an address) by itself.

    What was taken is kept by the server under the key `name`, or `name:subject`, so all who use the same name share it; a key goes when
    all is back. `limit` is a `TokenBucket` or a `SlidingWindow`; another one from then on judges what was taken by its own terms.

    All methods raise InvalidArgumentError for a cost beyond the limit, which would never be allowed.
    """

    def __init__(self, client: Client, name: BytesLike, limit: RateLimit) -> None:
        self._client = client
        self._name = as_bytes(name)
        self.limit = limit

    def acquire(self, cost: int = 1, *, subject: BytesLike = b"") -> RateDecision:
        """Take permits if they are there; the decision says so. Otherwise nothing is changed."""
        return self._client.run(rate_limiters.acquire(self._key(subject), self.limit, cost))

    def acquire_or_raise(self, cost: int = 1, *, subject: BytesLike = b"") -> RateDecision:
        """Take permits. Raises RateLimitedError, with the decision, if they are not there."""
        decision = self.acquire(cost, subject=subject)
        if not decision.allowed:
            raise _limited(cost, decision)
        return decision

    def wait(self, cost: int = 1, *, subject: BytesLike = b"", timeout_seconds: float | None = None) -> RateDecision:
        """Take permits as soon as they are there; there is no order among those who wait.

        Raises RateLimitedError as soon as it is clear that they are not there within `timeout_seconds`; None: wait as long as it takes.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            decision = self.acquire(cost, subject=subject)
            if decision.allowed:
                return decision
            if deadline is not None and time.monotonic() + decision.retry_after_seconds > deadline:
                raise _limited(cost, decision)
            sleep(decision.retry_after_seconds)

    def peek(self, cost: int = 1, *, subject: BytesLike = b"") -> RateLimiterDescription:
        """Return what `acquire` would, and take nothing."""
        return self._client.run(rate_limiters.peek(self._key(subject), self.limit, cost))

    def reset(self, *, subject: BytesLike = b"") -> None:
        """Give everything back."""
        self._client.run(keys.delete([self._key(subject)]))

    def _key(self, subject: BytesLike) -> bytes:
        return self._name + b":" + as_bytes(subject) if subject else self._name


def _limited(cost: int, decision: RateDecision) -> RateLimitedError:
    message = f"{decision.remaining} permits are there, and {cost} after {decision.retry_after_seconds:g} s"
    return RateLimitedError(message, decision)
