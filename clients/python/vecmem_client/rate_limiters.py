"""Rate limiters: permits that are taken and come back with time. Each function builds an operation for `Client.run` and `Client.pipeline`.

The definition comes with each operation. All raise WrongTypeError, when they run, for a key that holds a value of another type, and
InvalidArgumentError for more permits than can ever be there. `RateLimiter` and `AsyncRateLimiter` are limiters as objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vecmem.v1 import rate_limiters_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, reads, writes

if TYPE_CHECKING:
    from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Bursts of up to `capacity` permits; `refill_permits` come back in each interval, evenly. Whole numbers, to the millisecond."""

    capacity: int
    refill_permits: int
    interval_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """At most so many permits within any stretch of time of that length."""

    limit: int
    window_seconds: float = 1.0


RateLimit: TypeAlias = "TokenBucket | SlidingWindow"


@dataclass(frozen=True, slots=True)
class RateDecision:
    """Whether permits were taken (or would be), and how things stand after it."""

    allowed: bool
    remaining: int
    """Whole permits that are there."""
    retry_after_seconds: float
    """When the same is allowed if nobody else takes any; 0: now."""
    reset_after_seconds: float
    """When the limiter is full if nobody takes any; 0: it is."""


@dataclass(frozen=True, slots=True)
class RateLimiterDescription(RateDecision):
    """Also the definition that was judged by."""

    limit: RateLimit


def acquire(key: BytesLike, limit: RateLimit, cost: int = 1) -> Operation[RateDecision]:
    """Take permits if so many are there; otherwise nothing is changed."""
    return writes("acquire_permits", _decision, key=as_bytes(key), cost=cost, **_definition(limit))


def peek(key: BytesLike, limit: RateLimit | None = None, cost: int = 1) -> Operation[RateLimiterDescription]:
    """Return what `acquire` would, and take nothing. None: by the definition that was last acquired by.

    Raises KeyNotFoundError where there is neither a definition nor the key: nothing is taken then.
    """
    definition = {} if limit is None else _definition(limit)
    return reads("get_rate_limit", _description, key=as_bytes(key), cost=cost, **definition)


def _definition(limit: RateLimit) -> dict[str, Any]:
    match limit:
        case TokenBucket():
            return {
                "token_bucket": rate_limiters_pb2.TokenBucket(
                    capacity=limit.capacity,
                    refill_permits=limit.refill_permits,
                    interval_ms=round(limit.interval_seconds * 1e3),
                )
            }
        case SlidingWindow():
            return {
                "sliding_window": rate_limiters_pb2.SlidingWindow(
                    limit=limit.limit, window_ms=round(limit.window_seconds * 1e3)
                )
            }
        case _:
            raise TypeError(f"a TokenBucket or a SlidingWindow, not {type(limit).__name__}")


def _decision(response: Any) -> RateDecision:
    return RateDecision(
        response.allowed, response.remaining, response.retry_after_ms / 1e3, response.reset_after_ms / 1e3
    )


def _description(response: rate_limiters_pb2.GetRateLimitResponse) -> RateLimiterDescription:
    limit: RateLimit
    if response.WhichOneof("definition") == "token_bucket":
        bucket = response.token_bucket
        limit = TokenBucket(bucket.capacity, bucket.refill_permits, bucket.interval_ms / 1e3)
    else:
        limit = SlidingWindow(response.sliding_window.limit, response.sliding_window.window_ms / 1e3)
    return RateLimiterDescription(
        response.allowed, response.remaining, response.retry_after_ms / 1e3, response.reset_after_ms / 1e3, limit
    )
