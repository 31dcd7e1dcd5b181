"""Which keys go where there is no more room: some are looked at, and of these the ones that will be missed least go.

Nothing here is part of the state, and nothing is decided for good: the keys go into a record, and the record removes them.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import numpy as np

from vecmem.config import EVICTION_POLICIES
from vecmem.store.keyspace.keyspace import Keyspace

NONE, VOLATILE_TTL, VOLATILE_LRU, LRU = EVICTION_POLICIES

SAMPLES_PER_KEY: Final = 5
"""Keys looked at for each that is evicted, as in Redis's maxmemory-samples; the ones used longest ago go."""
SAMPLES_MIN: Final = 64
CANDIDATES_MAX: Final = 64
"""Keys of a sample that are remembered for the next one: those used longest ago that did not have to go."""
PLACES_PER_KEY: Final = 4
"""At least, in a clock, and up to four times as many. More: fewer keys are taken for one that was used later."""
PLACES_MIN: Final = 4_096
TICKS_MAX: Final = 2**32 - 1
_EVER_MS: Final = 2**62


class UseClock:
    """When keys were used last, in calls of `touch`. Each has a place by its hash, and the last to use a place is the one that counts.

    So it takes 16 to 64 bytes a key, holds no key, and has nothing to forget when one is removed. A key that shares its place with a busy
    one stays as long as that one does: where half of the keys are busy, one of eight of the others at most.
    """

    def __init__(self) -> None:
        self._ticks = array("I", bytes(4 * PLACES_MIN))
        self._now = 0

    @property
    def size_bytes(self) -> int:
        """What it takes."""
        return len(self._ticks) * self._ticks.itemsize

    def touch(self, keys: Iterable[bytes], key_count: int) -> None:
        """Note that keys are used now; there are `key_count` keys in all."""
        if not PLACES_PER_KEY * key_count <= len(self._ticks) <= max(PLACES_MIN, 4 * PLACES_PER_KEY * key_count):
            self._fit(key_count)
        if self._now == TICKS_MAX:
            self._halve_times()
        self._now += 1
        now, ticks, mask = self._now, self._ticks, len(self._ticks) - 1
        for key in keys:
            ticks[hash(key) & mask] = now

    def used_at(self, key: bytes) -> int:
        """When a key was used last; 0: never."""
        return self._ticks[hash(key) & (len(self._ticks) - 1)]

    def _fit(self, key_count: int) -> None:
        # The number of places is a power of two: twice as many begin as two copies, and half as many take the later of two times.
        while len(self._ticks) < PLACES_PER_KEY * key_count:
            self._ticks += self._ticks
        while len(self._ticks) > max(PLACES_MIN, 4 * PLACES_PER_KEY * key_count):
            lower, upper = np.frombuffer(self._ticks, np.uint32).reshape(2, -1)
            self._ticks = array("I", np.maximum(lower, upper).tobytes())

    def _halve_times(self) -> None:
        self._now >>= 1
        self._ticks = array("I", (np.frombuffer(self._ticks, np.uint32) >> 1).tobytes())


class Victims:
    """Chooses keys by a policy other than none."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self.clock = UseClock() if policy in (LRU, VOLATILE_LRU) else None
        """None: it does not matter when a key was used."""
        self._candidates: list[bytes] = []

    def choose(self, keyspace: Keyspace, count: int, chosen: Collection[bytes] = ()) -> list[bytes]:
        """Up to `count` keys to evict next, none of those chosen already; none where more are found only when these are gone."""
        if self.clock is None:
            return [] if chosen else _first_to_expire(keyspace, count)
        sample = [*self._candidates, *_sample(keyspace, max(SAMPLES_MIN, SAMPLES_PER_KEY * count), self._policy)]
        found = [key for key in dict.fromkeys(sample) if key not in chosen and self._may_go(keyspace, key)]
        if not found and self._policy == VOLATILE_LRU:
            return [] if chosen else _first_to_expire(keyspace, count)
        found.sort(key=self.clock.used_at)
        self._candidates = found[count : count + CANDIDATES_MAX]
        return found[:count]

    def _may_go(self, keyspace: Keyspace, key: bytes) -> bool:
        return keyspace.expires(key) if self._policy == VOLATILE_LRU else key in keyspace.values


def _sample(keyspace: Keyspace, count: int, policy: str) -> Iterator[bytes]:
    """Keys at random, some of them perhaps twice, or gone."""
    if policy == VOLATILE_LRU:
        return keyspace.some_expiring(random.random() for _ in range(count))
    keys = keyspace.sorted_keys
    if len(keys) <= count:
        return iter(keys)
    return (keys[random.randrange(len(keys))] for _ in range(count))


def _first_to_expire(keyspace: Keyspace, count: int) -> list[bytes]:
    more = True
    while more:
        # A look may meet nothing but the times of keys that are gone, and leave the others to the next one.
        found, more = keyspace.expired_keys(_EVER_MS, count)
        if found:
            return found
    return []
