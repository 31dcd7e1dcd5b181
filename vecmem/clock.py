"""The wall clock, as an object that tests replace. Only the primary reads it; applying a record never does."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall-clock time."""

    def now_unix_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_unix_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands until it is moved, for tests of expiry."""

    def __init__(self, now_unix_ms: int = 1_700_000_000_000) -> None:
        self._now_unix_ms = now_unix_ms

    def now_unix_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return self._now_unix_ms

    def advance(self, milliseconds: int) -> None:
        """Move the clock forward."""
        self._now_unix_ms += milliseconds
