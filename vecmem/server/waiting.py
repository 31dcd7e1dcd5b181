"""Operations that wait until there is something to take: those whose request has a `wait_ms`.

Whoever waits watches the keys, and tries when there is something. Those who wait for the same key try in the order in which they came,
one at a time, so that each try but those that others overtake finds something; one that finds nothing does not use up the request id.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from vecmem.errors import ShuttingDownError
from vecmem.server.calls import arrival
from vecmem.store.keyspace.keyspace import NEVER
from vecmem.store.keyspace.operation import Moment, Operation
from vecmem.store.keyspace.operation_keys import sources_of
from vecmem.store.shard import Shard
from vecmem.store.watching import Watched, Watcher

DUE_SECONDS_MIN = 0.001
"""Waited at least for what is due by its time alone."""
Place = tuple[bytes, bytes]
"""A key, and the line within it."""


class Lines:
    """Who waits for what, those who came first in front."""

    def __init__(self) -> None:
        self._lines: dict[Place, dict[int, Watcher]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    @contextlib.contextmanager
    def join(self, places: list[Place], watcher: Watcher) -> Iterator[None]:
        """Stand in some lines. At the end of the block those who are then in front are woken."""
        for place in places:
            self._lines.setdefault(place, {})[id(watcher)] = watcher
        try:
            yield
        finally:
            for place in places:
                line = self._lines[place]
                del line[id(watcher)]
                if line:
                    next(iter(line.values())).arrived.set()
                else:
                    del self._lines[place]

    def is_first(self, places: list[Place], watcher: Watcher) -> bool:
        """Whether nobody came before in any of these."""
        return all(next(iter(self._lines[place].values())) is watcher for place in places)


async def wait_for(
    shard: Shard,
    lines: Lines,
    operation: Operation,
    request: Any,
    attempt: Callable[[], Awaitable[Any]],
    is_repeated: Callable[[], bool],
) -> Any | None:
    """Try until something is found, and return the response that has it; None: the time is over. Raises what an attempt raises.

    `is_repeated`: whether the request has its result meanwhile, through another call: an attempt returns it.
    """
    waits = operation.waits
    assert waits is not None
    deadline = time.monotonic() + request.wait_ms / 1e3
    places = [(key, waits.line(request)) for key in dict.fromkeys(sources_of(request))]
    watcher = shard.changes.watch(Watched(keys=frozenset(key for key, _ in places)), shard.applied_sequence)
    try:
        # What is read is there for all.
        with lines.join(places if operation.writes else [], watcher):
            while True:
                watcher.arrived.clear()
                if shard.ending:
                    raise ShuttingDownError("the server is about to end, and nothing has come")
                if shard.state.committing:
                    await shard.uncommitted()
                if operation.writes:
                    shard.check_leads()
                shard.state.check_names(key for key, _ in places)
                if is_repeated():
                    return await attempt()
                keyspace, moment = shard.state.keyspace, Moment(shard.now_unix_ms())
                # Who waits for several keys stands behind nobody at those that have nothing.
                there = [
                    place for place in places if keyspace.find(place[0], moment.time_unix_ms) is not None
                ] or places
                first = (
                    not operation.writes
                    or lines.is_first(there, watcher)
                    or waits.needs_no_turn(keyspace, request, moment)
                )
                if first and waits.ready(keyspace, request, moment):
                    response = await attempt()
                    if waits.found(response):
                        return response
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                due_unix_ms = waits.due_unix_ms(keyspace, request, moment) if first else NEVER
                if due_unix_ms != NEVER:
                    due_seconds = (due_unix_ms - shard.now_unix_ms()) / 1e3
                    remaining = min(remaining, max(due_seconds, DUE_SECONDS_MIN))
                await arrival(watcher.arrived, remaining)
    finally:
        shard.changes.forget(watcher)
