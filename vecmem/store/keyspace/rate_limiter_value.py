"""What was taken of a rate limit, and how much of it is back. All of it is whole numbers: nothing is rounded but where it is said.

A token bucket remembers how much is lacking and since when, in units of 1 / interval_ms permits, of which `refill_permits` come back in
each millisecond. A sliding window remembers what was taken when. Its grants of one millisecond are one entry; where the limit allows for
more entries than are kept, grants of one step of time are one entry, as if taken at the end of the step. So they come back late by
less than a step, and in no window there are more than the limit.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from itertools import pairwise
from typing import Final, Self

from vecmem import limits
from vecmem.store.keyspace.container import CONTAINER_BYTES, Container
from vecmem.v1 import keys_pb2

BUCKET_BYTES: Final = 140
"""About what a bucket takes."""
WINDOW_BYTES: Final = 250
"""About what a window without grants takes."""
GRANT_BYTES: Final = 16
"""What a grant takes."""
_BUCKET_KIND: Final = b"\x01"
_WINDOW_KIND: Final = b"\x02"
_BUCKET: Final = struct.Struct("<cQQQq16s")
_WINDOW: Final = struct.Struct("<cQQI")


class TokenBucket:
    """A bucket at the moment of the last permits taken. A new one is full."""

    __slots__ = ("capacity", "interval_ms", "lacking", "refill_permits", "since_unix_ms")

    def __init__(self, capacity: int, refill_permits: int, interval_ms: int) -> None:
        self.capacity = capacity
        self.refill_permits = refill_permits
        self.interval_ms = interval_ms
        self.lacking = 0
        """Of a full bucket, in 1 / interval_ms permits."""
        self.since_unix_ms = 0

    @property
    def definition(self) -> tuple[int, ...]:
        """What tells one bucket from another one."""
        return self.capacity, self.refill_permits, self.interval_ms

    @property
    def limit(self) -> int:
        """The largest cost."""
        return self.capacity

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return BUCKET_BYTES

    @property
    def full_at_unix_ms(self) -> int:
        """When all permits are back."""
        return self.since_unix_ms + _divide_up(self.lacking, self.refill_permits)

    def remaining(self, now_unix_ms: int) -> int:
        """Whole permits that are there."""
        return (self.capacity * self.interval_ms - self._lacking_at(now_unix_ms)) // self.interval_ms

    def wait_ms(self, cost: int, now_unix_ms: int) -> int:
        """How long until so many permits, at most the capacity, are there."""
        too_many = self.lacking - (self.capacity - cost) * self.interval_ms
        if too_many <= 0:
            return 0
        return max(0, self.since_unix_ms + _divide_up(too_many, self.refill_permits) - now_unix_ms)

    def take(self, cost: int, now_unix_ms: int) -> None:
        """Take permits that are there."""
        self.lacking = self._lacking_at(now_unix_ms) + cost * self.interval_ms
        self.since_unix_ms = now_unix_ms

    def carry(self, other: Meter) -> None:
        """Take over, into a full bucket, what another meter has given out; rounded up to whole units."""
        if isinstance(other, TokenBucket):
            lacking = _divide_up(other.lacking * self.interval_ms, other.interval_ms)
        else:
            lacking = other.used * self.interval_ms
        self.lacking = min(lacking, self.capacity * self.interval_ms)
        self.since_unix_ms = other.since_unix_ms

    def copy(self) -> TokenBucket:
        """One that changes by itself."""
        copied = TokenBucket(self.capacity, self.refill_permits, self.interval_ms)
        copied.lacking, copied.since_unix_ms = self.lacking, self.since_unix_ms
        return copied

    def dump(self) -> bytes:
        """Everything, in one form."""
        lacking = self.lacking.to_bytes(16, "little")
        return _BUCKET.pack(
            _BUCKET_KIND, self.capacity, self.refill_permits, self.interval_ms, self.since_unix_ms, lacking
        )

    @classmethod
    def load(cls, content: bytes) -> TokenBucket:
        """What was dumped. Raises ValueError."""
        if len(content) != _BUCKET.size:
            raise ValueError(f"a bucket has {_BUCKET.size} bytes, not {len(content)}")
        _, capacity, refill_permits, interval_ms, since_unix_ms, lacking_bytes = _BUCKET.unpack(content)
        loaded = cls(capacity, refill_permits, interval_ms)
        loaded.lacking, loaded.since_unix_ms = int.from_bytes(lacking_bytes, "little"), since_unix_ms
        if not capacity or not refill_permits or not interval_ms:
            raise ValueError(f"{loaded.definition} defines no bucket")
        if not 0 < loaded.lacking <= capacity * interval_ms:
            raise ValueError(f"a bucket of {capacity} lacks {loaded.lacking} / {interval_ms} permits")
        return loaded

    def _lacking_at(self, now_unix_ms: int) -> int:
        return max(0, self.lacking - self.refill_permits * max(0, now_unix_ms - self.since_unix_ms))


class SlidingWindow:
    """Grants by their times. A new one has none."""

    __slots__ = ("_permits", "_times", "limit", "used", "window_ms")

    def __init__(self, limit: int, window_ms: int) -> None:
        self.limit = limit
        self.window_ms = window_ms
        self.used = 0
        """Permits of all grants that are kept."""
        self._times = array("q")
        """Ascending. A grant is there until `window_ms` after its time."""
        self._permits = array("q")

    @property
    def definition(self) -> tuple[int, ...]:
        """What tells one window from another one."""
        return self.limit, self.window_ms

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return WINDOW_BYTES + GRANT_BYTES * len(self._times)

    @property
    def since_unix_ms(self) -> int:
        """When permits were last taken."""
        return self._times[-1]

    @property
    def full_at_unix_ms(self) -> int:
        """When all permits are back."""
        return self._times[-1] + self.window_ms if self._times else 0

    @property
    def step_ms(self) -> int:
        """Grants of so many milliseconds are one entry."""
        kept = limits.RATE_LIMIT_GRANTS_MAX
        return 1 if self.limit <= kept else _divide_up(self.window_ms, kept - 1)

    def remaining(self, now_unix_ms: int) -> int:
        """Permits that are there."""
        return max(0, self.limit - self.used + sum(self._permits[: self._gone_count(now_unix_ms)]))

    def wait_ms(self, cost: int, now_unix_ms: int) -> int:
        """How long until so many permits, at most the limit, are there."""
        place = self._gone_count(now_unix_ms)
        too_many = self.used - sum(self._permits[:place]) + cost - self.limit
        if too_many <= 0:
            return 0
        while too_many > self._permits[place]:
            too_many -= self._permits[place]
            place += 1
        return self._times[place] + self.window_ms - now_unix_ms

    def take(self, cost: int, now_unix_ms: int) -> None:
        """Take permits that are there."""
        gone_count = self._gone_count(now_unix_ms)
        self.used += cost - sum(self._permits[:gone_count])
        del self._times[:gone_count], self._permits[:gone_count]
        time_unix_ms = _divide_up(now_unix_ms, self.step_ms) * self.step_ms
        if self._times and time_unix_ms <= self._times[-1]:
            self._permits[-1] += cost
        else:
            self._times.append(time_unix_ms)
            self._permits.append(cost)
        if len(self._times) > limits.RATE_LIMIT_GRANTS_MAX:
            # Only the grants of another definition can be so many. The oldest come back with the next ones, which is late and never early.
            self._permits[1] += self._permits[0]
            del self._times[0], self._permits[0]

    def carry(self, other: Meter) -> None:
        """Take over, into an empty window, what another meter has given out; rounded up to whole permits."""
        if isinstance(other, SlidingWindow):
            self.used, self._times, self._permits = other.used, other._times[:], other._permits[:]
        else:
            self.used = _divide_up(other.lacking, other.interval_ms)
            self._times, self._permits = array("q", [other.since_unix_ms]), array("q", [self.used])

    def copy(self) -> SlidingWindow:
        """One that changes by itself."""
        copied = SlidingWindow(self.limit, self.window_ms)
        copied.carry(self)
        return copied

    def dump(self) -> bytes:
        """Everything, in one form."""
        head = _WINDOW.pack(_WINDOW_KIND, self.limit, self.window_ms, len(self._times))
        numbers = [*self._times, *self._permits]
        return head + struct.pack(f"<{len(numbers)}q", *numbers)

    @classmethod
    def load(cls, content: bytes) -> SlidingWindow:
        """What was dumped. Raises ValueError."""
        if len(content) < _WINDOW.size:
            raise ValueError(f"a window has at least {_WINDOW.size} bytes, not {len(content)}")
        _, limit, window_ms, count = _WINDOW.unpack_from(content)
        if len(content) != _WINDOW.size + GRANT_BYTES * count:
            raise ValueError(f"{len(content)} bytes are no {count} grants")
        numbers = struct.unpack_from(f"<{2 * count}q", content, _WINDOW.size)
        loaded = cls(limit, window_ms)
        loaded._times, loaded._permits = array("q", numbers[:count]), array("q", numbers[count:])
        loaded.used = sum(loaded._permits)
        if not limit or not window_ms or not count:
            raise ValueError(f"{count} grants of a limit of {limit} in {window_ms} ms")
        if any(time >= following for time, following in pairwise(loaded._times)):
            raise ValueError("grants are out of order")
        if min(loaded._permits) < 1:
            raise ValueError("a grant of no permits")
        return loaded

    def _gone_count(self, now_unix_ms: int) -> int:
        return bisect_right(self._times, now_unix_ms - self.window_ms)


Meter = TokenBucket | SlidingWindow


class RateLimiterValue(Container):
    """What was taken, by one of the meters. It is never full: without anything taken there is no key."""

    __slots__ = ("meter",)

    TYPE = keys_pb2.KEY_TYPE_RATE_LIMITER
    NAME = "rate limiter"

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.measure()

    def __len__(self) -> int:
        return 1

    def measure(self) -> None:
        """Tell of a meter that has changed or is another one."""
        self.size_bytes = CONTAINER_BYTES + self.meter.size_bytes

    def under(self, definition: Meter) -> Meter:
        """The meter as a definition judges it: itself, or that one with what was given out."""
        if type(definition) is type(self.meter) and definition.definition == self.meter.definition:
            return self.meter
        definition.carry(self.meter)
        return definition

    def dump(self) -> bytes:
        """The meter."""
        return self.meter.dump()

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)(self.meter.copy())
        copied.version = self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The limiter that was dumped. Raises ValueError."""
        kind = content[:1]
        if kind == _BUCKET_KIND:
            return cls(TokenBucket.load(content))
        if kind == _WINDOW_KIND:
            return cls(SlidingWindow.load(content))
        raise ValueError(f"a meter of kind {kind!r}")


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)
