"""When a failed call is tried again, and after how long.

Only UNAVAILABLE is retried, because only it says that the same request may succeed later. Waits grow exponentially
with "equal jitter": half of each is fixed and half is random, so that many clients do not come back at once
(Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How calls that fail with UNAVAILABLE are retried, always within the deadline of the call.

    With the defaults a call outlasts a server restart of about six seconds. `RetryPolicy(attempts_max=1)` retries
    nothing. Raises ValueError for values out of range.
    """

    attempts_max: int = 10
    """Tries in all, at least 1."""
    backoff_seconds_first: float = 0.05
    """Longest wait before the second try, at least 0."""
    backoff_seconds_max: float = 2.0
    """Longest wait before any try."""
    backoff_multiplier: float = 2.0
    """Growth of the wait from one try to the next, at least 1."""

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ValueError(f"attempts_max is at least 1, not {self.attempts_max}")
        if not 0 <= self.backoff_seconds_first <= self.backoff_seconds_max:
            raise ValueError("0 <= backoff_seconds_first <= backoff_seconds_max does not hold")
        if self.backoff_multiplier < 1:
            raise ValueError(f"backoff_multiplier is at least 1, not {self.backoff_multiplier}")

    def wait_seconds(self, attempts: int, remaining_seconds: float) -> float | None:
        """Return how long to wait after `attempts` failed tries; None when no further try is due.

        A wait that would use up `remaining_seconds` is not begun: the caller learns of the failure at once.
        """
        if attempts >= self.attempts_max:
            return None
        # The exponent is bounded so that thousands of tries cannot overflow a float.
        longest = self.backoff_seconds_first * self.backoff_multiplier ** min(attempts - 1, 64)
        wait = min(longest, self.backoff_seconds_max) * random.uniform(0.5, 1.0)
        return wait if wait < remaining_seconds else None
