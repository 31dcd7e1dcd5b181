"""Waiting for changes: whoever watches keys, prefixes or collections is woken by the records that touch them.

The hub is told of each record's changes as it is applied. What nobody watches costs it nothing, and a change costs a look-up by key, by the
lengths of the watched prefixes and by collection, however many watchers there are. A watcher that falls behind goes on from the window of
changes (vecmem.store.changes) until it has caught up; what has left the window by then it is told of with an error.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from vecmem.errors import ChangesNotRetainedError
from vecmem.store.changes import POINT, Change, ChangeWindow, RecordChanges

PENDING_RECORDS_MAX: Final = 1_024
PENDING_BYTES_MAX: Final = 1024 * 1024
"""What waits for a watcher, and would stay in memory for its sake; one with more of it reads the window again."""
CATCH_UP_RECORDS: Final = 256
"""Read from the window at once."""
INDEXED_BYTES_MAX: Final = 64 * 1024
"""Of the changes of one record that are looked up, about a millisecond; a larger one goes to every watcher, which looks for itself."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Watched:
    """What somebody watches."""

    keys: frozenset[bytes] = frozenset()
    prefixes: tuple[bytes, ...] = ()
    """Of keys; the empty one is that of all."""
    collections: frozenset[str] = frozenset()
    """Whatever has one of these names at the time."""

    def has(self, change: Change, collection: str | None) -> bool:
        """Whether a change is one of these; `collection` is the name of that which a point is in."""
        if change.holder == POINT:
            return collection in self.collections
        return change.name in self.keys or change.name.startswith(self.prefixes)


@dataclass(slots=True, eq=False)
class Watcher:
    """Made by `ChangeHub.watch`, at a position: what is behind it comes from `records`."""

    watched: Watched
    after: int
    """All changes up to this sequence have been given out."""
    _window: ChangeWindow
    pending: deque[RecordChanges] = field(default_factory=deque)
    pending_bytes: int = 0
    behind: bool = True
    """Whether the window may hold more than what is pending."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def records(self) -> list[RecordChanges]:
        """Records that come next, in order; some of their changes, or all, may be of no interest. Empty: there are none now.

        Raises:
            ChangesNotRetainedError: the next ones have left the window.
        """
        if self.behind:
            if self.after < self._window.complete_after:
                raise ChangesNotRetainedError(
                    f"changes behind sequence {self.after} are not kept any more, only those behind"
                    f" {self._window.complete_after}",
                    first_sequence=str(self._window.complete_after + 1),
                )
            found = self._window.after(self.after, CATCH_UP_RECORDS)
            if found:
                self.after = found[-1].sequence
                return found
            self.behind = False
        self.arrived.clear()
        found = list(self.pending)
        self._drop_pending()
        if found:
            self.after = found[-1].sequence
        return found

    def tell(self, record: RecordChanges) -> None:
        """Take a record that is of interest."""
        if not self.behind and (not self.pending or self.pending[-1] is not record):
            self.pending.append(record)
            self.pending_bytes += len(record.packed)
            if len(self.pending) > PENDING_RECORDS_MAX or self.pending_bytes > PENDING_BYTES_MAX:
                # What lies before these was of no interest, and need not be kept for this watcher.
                self.after = self.pending[0].sequence - 1
                self._drop_pending()
                self.behind = True
        self.arrived.set()

    def _drop_pending(self) -> None:
        self.pending.clear()
        self.pending_bytes = 0


class ChangeHub:
    """All watchers of a node."""

    def __init__(self, window: ChangeWindow, collection_name: Callable[[Change], str | None]) -> None:
        self._window = window
        self._collection_name = collection_name
        self._watchers: dict[int, Watcher] = {}
        self._by_key: dict[bytes, dict[int, Watcher]] = {}
        self._by_prefix: dict[bytes, dict[int, Watcher]] = {}
        self._by_collection: dict[str, dict[int, Watcher]] = {}
        self._prefix_lengths: list[int] = []

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(self, watched: Watched, after: int) -> Watcher:
        """Begin to watch. End it with `forget`."""
        watcher = Watcher(watched, after, self._window)
        self._watchers[id(watcher)] = watcher
        for key in watched.keys:
            self._by_key.setdefault(key, {})[id(watcher)] = watcher
        for prefix in watched.prefixes:
            self._by_prefix.setdefault(prefix, {})[id(watcher)] = watcher
        for name in watched.collections:
            self._by_collection.setdefault(name, {})[id(watcher)] = watcher
        if watched.prefixes:
            self._measure_prefixes()
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """Watch no longer."""
        del self._watchers[id(watcher)]
        for key in watcher.watched.keys:
            _take_out(self._by_key, key, watcher)
        for prefix in watcher.watched.prefixes:
            _take_out(self._by_prefix, prefix, watcher)
        for name in watcher.watched.collections:
            _take_out(self._by_collection, name, watcher)
        if watcher.watched.prefixes:
            self._measure_prefixes()

    def wake_all(self) -> None:
        """Wake every watcher, for another reason than a change."""
        for watcher in self._watchers.values():
            watcher.arrived.set()

    def told(self, record: RecordChanges) -> None:
        """Hear of a record that was applied."""
        if not self._watchers:
            return
        if len(record.packed) > INDEXED_BYTES_MAX:
            for watcher in self._watchers.values():
                watcher.tell(record)
            return
        for change in record.changes():
            if change.holder == POINT:
                if not self._by_collection:
                    continue
                interested = self._by_collection.get(self._collection_name(change) or "", _NOBODY)
            else:
                interested = self._by_key.get(change.name, _NOBODY)
                for length in self._prefix_lengths:
                    for watcher in self._by_prefix.get(change.name[:length], _NOBODY).values():
                        watcher.tell(record)
            for watcher in interested.values():
                watcher.tell(record)

    def _measure_prefixes(self) -> None:
        self._prefix_lengths = sorted({len(prefix) for prefix in self._by_prefix})


_NOBODY: Final[dict[int, Watcher]] = {}


def _take_out(places: dict[K, dict[int, Watcher]], place: K, watcher: Watcher) -> None:
    del places[place][id(watcher)]
    if not places[place]:
        del places[place]
