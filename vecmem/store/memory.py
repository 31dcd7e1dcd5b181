"""The memory limit: what the data takes, and what is done when it is as much as it may be.

Whatever can make the data grow asks for room first, before anything is logged. Where there is none, keys are evicted if the policy allows
it, by records like any deletion, and otherwise the write is refused. Vectors are never evicted. What counts is the data itself as the state
estimates it, not what the process takes beside it.

When a key was last used is known to this process alone and only where the policy asks for it: it is no part of the state, and begins anew
with a restart.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from vecmem.config import EVICTION_POLICIES, Settings
from vecmem.errors import MemoryLimitError
from vecmem.store.collection import Collection
from vecmem.store.state_machine import StateMachine

NONE, VOLATILE_TTL, VOLATILE_LRU, LRU = EVICTION_POLICIES

EVICTED_KEYS_MAX: Final = 256
"""Of one record."""
SAMPLES_PER_KEY: Final = 5
"""Keys looked at for each that is evicted, as in Redis's maxmemory-samples; the ones used longest ago go."""
VOLATILE_LOOKS_PER_KEY: Final = 50
"""Keys looked at for one that expires; where these are rarer the one that expires first goes."""
VOLATILE_LOOKS_MAX: Final = 2_000
FORGOTTEN_KEYS_MAX: Final = 2_048
"""Keys whose time of use is forgotten at once, where there are twice as many times as keys."""
ROOM_SHARE: Final = 0.005
"""Of the limit that eviction makes free beyond what is needed, so that not each write has to wait for it."""
COLLECTIONS_SECONDS: Final = 0.05
"""How old the sum over the collections may be."""
POINT_BYTES: Final = 400
"""About what a point takes beyond its vectors, graphs and payload: its id, versions, and places in tables and orders."""
_EVER_MS: Final = 2**62


class Memory:
    """What a shard's data takes, and the room that it may have. `evict` logs a removal and returns when it is applied."""

    def __init__(
        self, state: StateMachine, settings: Settings, evict: Callable[[list[bytes]], Awaitable[None]]
    ) -> None:
        self.limit_bytes = settings.memory_limit_bytes
        """0: none."""
        self.policy = settings.eviction_policy
        self.evicted_key_count = 0
        """Since the process started."""
        self.tracks_use = bool(self.limit_bytes) and self.policy in (LRU, VOLATILE_LRU)
        """Whether `touch` is to be told of keys that are used."""
        self._state = state
        self._evict = evict
        self._evicting = asyncio.Lock()
        self._used_at: dict[bytes, int] = {}
        self._ticks = itertools.count(1)
        self._collections_bytes = 0
        self._collections_summed_at = float("-inf")

    def used_bytes(self) -> int:
        """About what keys and collections take."""
        now = time.monotonic()
        if now - self._collections_summed_at > COLLECTIONS_SECONDS:
            self._collections_bytes = sum(map(collection_bytes, self._state.collections.values()))
            self._collections_summed_at = now
        key_bytes = 0 if self._state.keyspace_damage else self._state.keyspace.memory_bytes
        return self._collections_bytes + key_bytes

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note that keys are used now."""
        tick = next(self._ticks)
        used_at = self._used_at
        for key in keys:
            # The ones used last stand at the end.
            used_at.pop(key, None)
            used_at[key] = tick
        if len(used_at) > 2 * len(self._state.keyspace.values) + FORGOTTEN_KEYS_MAX:
            # Keys that were removed otherwise, and such as were asked for in vain, leave their times behind. The oldest go.
            for key in list(itertools.islice(used_at, FORGOTTEN_KEYS_MAX)):
                del used_at[key]

    async def make_room(self) -> None:
        """Return when there is room for more, having evicted keys if need be and allowed.

        Raises:
            MemoryLimitError: there is none.
        """
        if not self.limit_bytes or self.used_bytes() <= self.limit_bytes:
            return
        if self.policy == NONE:
            raise self._error()
        async with self._evicting:
            target_bytes = self.limit_bytes
            while self.used_bytes() > target_bytes:
                target_bytes = int(self.limit_bytes * (1 - ROOM_SHARE))
                victims = self._victims(self.used_bytes() - target_bytes)
                if not victims:
                    if self.used_bytes() <= self.limit_bytes:
                        return
                    raise self._error()
                await self._evict(victims)
                for key in victims:
                    self._used_at.pop(key, None)
                self.evicted_key_count += len(victims)

    def _error(self) -> MemoryLimitError:
        used_bytes = self.used_bytes()
        return MemoryLimitError(
            f"the data takes {used_bytes} bytes, more than the memory limit of {self.limit_bytes}",
            used_bytes=str(used_bytes),
            limit_bytes=str(self.limit_bytes),
        )

    def _victims(self, surplus_bytes: int) -> list[bytes]:
        """Keys to evict next: about as many as take so much."""
        keyspace = self._state.keyspace
        if not keyspace.values:
            return []
        average_bytes = max(1, keyspace.memory_bytes // len(keyspace.values))
        count = max(1, min(EVICTED_KEYS_MAX, surplus_bytes // average_bytes))
        if self.policy == VOLATILE_TTL:
            return self._first_to_expire(count)
        volatile = self.policy == VOLATILE_LRU
        sample = self._sample(SAMPLES_PER_KEY * count, volatile=volatile)
        if volatile and not sample:
            return self._first_to_expire(count)
        sample.sort(key=lambda key: self._used_at.get(key, 0))
        return sample[:count]

    def _first_to_expire(self, count: int) -> list[bytes]:
        more = True
        while more:
            # A look may meet nothing but the times of keys that are gone, and leave the others to the next one.
            found, more = self._state.keyspace.expired_keys(_EVER_MS, count)
            if found:
                return found
        return []

    def _sample(self, count: int, *, volatile: bool) -> list[bytes]:
        keys = self._state.keyspace.sorted_keys
        if not volatile and len(keys) <= count:
            return list(keys)
        looks = min(count * VOLATILE_LOOKS_PER_KEY, VOLATILE_LOOKS_MAX) if volatile else count
        if volatile and not self._state.keyspace.expiries:
            return []
        found: dict[bytes, None] = {}
        for _ in range(looks):
            key = keys[random.randrange(len(keys))]
            if not volatile or key in self._state.keyspace.expiries:
                found[key] = None
                if len(found) == count:
                    break
        return list(found)


def collection_bytes(collection: Collection) -> int:
    """About what a collection takes."""
    size_bytes = POINT_BYTES * len(collection.row_of) + collection.payloads.size_bytes
    for index in collection.vectors.values():
        statistics = index.statistics()
        size_bytes += statistics.arena_bytes + statistics.graph_bytes
    return size_bytes
