"""The memory limit: what the data takes, and what is done when it is as much as it may be.

Whatever can make the data grow asks for room first, before anything is logged. Where there is none, keys are evicted if the policy allows
it, by records like any deletion, and otherwise the write is refused. Points are never evicted. What counts is the data itself as the state
estimates it, not what the process takes beside it.

When a key was last used is known to this process alone and only where the policy asks for it: it is no part of the state, and begins anew
with a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from vecmem.config import Settings
from vecmem.errors import MemoryLimitError
from vecmem.store.collection import Collection
from vecmem.store.eviction import NONE, Victims
from vecmem.store.state_machine import StateMachine

EVICTED_KEYS_MAX: Final = 256
"""Of one record."""
SAMPLED_KEYS_MAX: Final = 64
"""Chosen from samples between two yields: about a millisecond. Those that expire first are found faster."""
ROOM_SHARE: Final = 0.005
"""Of the limit that eviction makes free beyond what is needed, so that not each write has to wait for it."""
COLLECTIONS_PAUSE_FACTOR: Final = 20.0
"""How old the sum over the collections may be, in times of what it took: with few collections it is hardly ever old."""
POINT_BYTES: Final = 400
"""About what a point takes beyond its vectors, graphs and payload: its id, versions, and places in tables and orders."""
EXPIRY_BYTES: Final = 190
"""About what it takes to know when a key expires: an entry of a table, and one of a heap."""


class Memory:
    """What a shard's data takes, and the room that it may have.

    `evict` logs the removal of keys, and returns when it is applied how many there were.
    """

    def __init__(self, state: StateMachine, settings: Settings, evict: Callable[[list[bytes]], Awaitable[int]]) -> None:
        self.limit_bytes = settings.memory_limit_bytes
        """0: none."""
        self.policy = settings.eviction_policy
        self.evicted_key_count = 0
        """Since the process started."""
        self._state = state
        self._evict = evict
        self._victims = Victims(self.policy) if self.limit_bytes and self.policy != NONE else None
        self._clock = None if self._victims is None else self._victims.clock
        self._evicting: asyncio.Task[None] | None = None
        self._collections_bytes = 0
        self._collections_old_at = float("-inf")

    @property
    def tracks_use(self) -> bool:
        """Whether `touch` is to be told of keys that are used."""
        return self._clock is not None

    def used_bytes(self) -> int:
        """About what keys and collections take."""
        size_bytes = self._all_collections_bytes() + self._state.staging.size_bytes
        if not self._state.keyspace_damage:
            keyspace = self._state.keyspace
            expiry_count = len(keyspace.expiries) + len(keyspace.endings)
            size_bytes += keyspace.memory_bytes + EXPIRY_BYTES * expiry_count
        return size_bytes if self._clock is None else size_bytes + self._clock.size_bytes

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note that keys are used now."""
        if self._clock is not None and not self._state.keyspace_damage:
            self._clock.touch(keys, len(self._state.keyspace.values))

    async def make_room(self) -> None:
        """Return when there is room for more, having evicted keys if need be and allowed.

        Raises:
            MemoryLimitError: there is none.
        """
        if not self.limit_bytes or self.used_bytes() <= self.limit_bytes:
            return
        if self._victims is None:
            raise self._error()
        if self._evicting is None or self._evicting.done():
            # A task of its own, for all who wait: it goes on, and counts what it does, when one of them goes away.
            self._evicting = asyncio.create_task(self._evict_down(self._victims), name="evict keys")
            self._evicting.add_done_callback(_look_at)
        await asyncio.shield(self._evicting)

    async def _evict_down(self, victims: Victims) -> None:
        target_bytes = int(self.limit_bytes * (1 - ROOM_SHARE))
        self.touch(())  # what tells their use shrinks with the keys, here and below
        while (surplus_bytes := self.used_bytes() - target_bytes) > 0:
            keys = await self._choose(victims, surplus_bytes)
            if keys:
                self.evicted_key_count += await self._evict(keys)
                self.touch(())
            elif self.used_bytes() <= self.limit_bytes:
                return
            else:
                raise self._error()

    async def _choose(self, victims: Victims, surplus_bytes: int) -> list[bytes]:
        """Keys to evict next: about as many as take so much. None where it would be in vain, since the collections alone take too much."""
        if self._state.keyspace_damage or self._all_collections_bytes() > self.limit_bytes:
            return []
        keyspace = self._state.keyspace
        if not keyspace.values:
            return []
        average_bytes = max(1, keyspace.memory_bytes // len(keyspace.values))
        count = max(1, min(EVICTED_KEYS_MAX, surplus_bytes // average_bytes))
        chosen: dict[bytes, None] = {}
        at_once_max = SAMPLED_KEYS_MAX if self.tracks_use else EVICTED_KEYS_MAX
        while len(chosen) < count:
            part = victims.choose(keyspace, min(at_once_max, count - len(chosen)), chosen)
            if not part:
                break
            chosen.update(dict.fromkeys(part))
            await asyncio.sleep(0)
        return list(chosen)

    def _all_collections_bytes(self) -> int:
        began = time.monotonic()
        if began >= self._collections_old_at:
            self._collections_bytes = sum(map(collection_bytes, self._state.collections.values()))
            ended = time.monotonic()
            self._collections_old_at = ended + COLLECTIONS_PAUSE_FACTOR * (ended - began)
        return self._collections_bytes

    def _error(self) -> MemoryLimitError:
        used_bytes = self.used_bytes()
        return MemoryLimitError(
            f"the data takes {used_bytes} bytes, more than the memory limit of {self.limit_bytes}",
            used_bytes=str(used_bytes),
            limit_bytes=str(self.limit_bytes),
        )


def collection_bytes(collection: Collection) -> int:
    """About what a collection takes."""
    size_bytes = POINT_BYTES * len(collection.row_of) + collection.payloads.size_bytes
    size_bytes += sum(column.size_bytes for column in collection.payloads.columns().values())
    for index in collection.vectors.values():
        statistics = index.statistics()
        size_bytes += statistics.arena_bytes + statistics.graph_bytes
    return size_bytes


def _look_at(evicting: asyncio.Task[None]) -> None:
    """Keep asyncio from reporting the error of a task whose callers have all gone."""
    if not evicting.cancelled():
        evicting.exception()
