"""Row numbers, and who may see which row: snapshots for searches that run in threads.

Every stored version of a point's vectors occupies one row. A row is *born* at the sequence of the record that wrote it and
*dies* at the sequence of the record that replaced or deleted it; a search at snapshot S sees exactly the rows with
born <= S < died, whatever is applied while it runs. That is what makes searches linearizable without locks.

Rows are reused, but never under a reader: a dead row waits until every search that may still see it has ended, is
then retired (indexes forget it), and waits once more for the searches that ran at that moment before it is free.

All methods run on the event loop, but for `Readers`, which threads use as well.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Rows

NEVER = np.iinfo(np.int64).max
"""Stands for a death or an expiry that does not come, and for the birth of a row that nobody may see."""

RECLAIM_SLICE_ROWS = 512
"""Rows retired between two chances for others: about a millisecond."""

Int64Array = NDArray[np.int64]


class Readers:
    """Counts who is reading: tickets in rising order, so that one can wait for all that began before a moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_ticket = 0
        self._active: set[int] = set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Rows visible now stay what they are inside this block."""
        ticket = self.begin()
        try:
            yield
        finally:
            self.end(ticket)

    def begin(self) -> int:
        """Start reading; returns the ticket to give to `end`."""
        with self._lock:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._active.add(ticket)
            return ticket

    def end(self, ticket: int) -> None:
        """Stop reading."""
        with self._lock:
            self._active.discard(ticket)

    def next_ticket(self) -> int:
        """The ticket of the next reader: all that read now have smaller ones."""
        with self._lock:
            return self._next_ticket

    def all_ended_before(self, ticket: int) -> bool:
        """Whether every reader with a smaller ticket has ended."""
        with self._lock:
            return not self._active or min(self._active) >= ticket


@dataclass(slots=True, eq=False)
class RowView:
    """What one search sees: the rows alive at `sequence` and not expired at `now_unix_ms`.

    Never changed; not `frozen`, which each search would pay for.
    """

    sequence: int
    now_unix_ms: int
    row_count: int
    born: Int64Array
    died: Int64Array
    expires_at: Int64Array | None
    ids: list[str]

    def native(self) -> tuple[int, int, int, Int64Array, Int64Array, Int64Array | None]:
        """What the kernel's searches take as `view`."""
        return self.sequence, self.now_unix_ms, self.row_count, self.born, self.died, self.expires_at

    def visible(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of `rows` this view sees; shape (n,)."""
        # `born` must be read before `died`: a row being reused is hidden by its birth first (see RowTable.allocate).
        mask = self.born[rows] <= self.sequence
        mask &= self.died[rows] > self.sequence
        if self.expires_at is not None:
            mask &= self.expires_at[rows] > self.now_unix_ms
        return mask

    def visible_mask(self) -> NDArray[np.bool_]:
        """Which of all rows this view sees; shape (row_count,), the caller's own."""
        mask = self.born[: self.row_count] <= self.sequence
        mask &= self.died[: self.row_count] > self.sequence
        if self.expires_at is not None:
            mask &= self.expires_at[: self.row_count] > self.now_unix_ms
        return mask


class RowTable:
    """Birth, death, version and expiry of every row, and the id of the point that it belongs to."""

    def __init__(self) -> None:
        self.row_count = 0
        self.ids: list[str] = []
        self.versions = np.zeros(0, dtype=np.int64)
        self.slots: NDArray[np.uint16] | None = None
        """The hash slot of each row's point, of which the store makes use where a shard owns some of several. None: it does not."""
        self.readers = Readers()
        self.dead_count = 0
        """Rows that died and that indexes still know."""
        self.change_count = 0
        """Grows whenever a row is born, dies, or is hidden."""
        self.last_sequence = 0
        """The greatest sequence at which a row was born or died: views from there on differ in their time alone."""
        self._born = np.zeros(0, dtype=np.int64)
        self._died = np.zeros(0, dtype=np.int64)
        self._expires_at = np.zeros(0, dtype=np.int64)
        self._any_expiry = False
        self._free: list[int] = []
        self._dead: deque[tuple[int, Rows]] = deque()
        self._retired: deque[tuple[int, Rows]] = deque()

    def allocate(self, count: int) -> Rows:
        """Give out rows, invisible until `publish`; shape (count,)."""
        reused = min(count, len(self._free))
        rows = np.empty(count, dtype=np.int64)
        if reused:
            rows[:reused] = self._free[-reused:]
            del self._free[-reused:]
        fresh = count - reused
        if fresh:
            self._grow(self.row_count + fresh)
            rows[reused:] = np.arange(self.row_count, self.row_count + fresh)
            self.ids.extend([""] * fresh)
            self.row_count += fresh
        # Their birth is NEVER since they were retired or made, so that setting the death early shows them to nobody.
        self._died[rows] = NEVER
        self.change_count += 1
        return rows

    def publish(self, row: int, point_id: str, sequence: int, expires_at_unix_ms: int, version: int = 0) -> None:
        """Make a row visible from `sequence` on. `expires_at_unix_ms` 0: never. `version` 0: as the sequence."""
        self.ids[row] = point_id
        self.versions[row] = version or sequence
        if expires_at_unix_ms:
            self._any_expiry = True
        self._expires_at[row] = expires_at_unix_ms or NEVER
        self._born[row] = sequence
        self.last_sequence = sequence
        self.change_count += 1

    def kill(self, rows: Rows, sequence: int) -> None:
        """End the life of rows at `sequence`; searches at earlier snapshots that have begun go on seeing them.

        Those that begin later must be at `sequence` or after it: they do not keep these rows from being reclaimed, and at an earlier
        sequence would see some of them go. So no search may begin between the kill and the moment when the record that killed them counts
        as applied (`settled` of the store sees to it).
        """
        self._died[rows] = sequence
        self.last_sequence = sequence
        self.change_count += 1
        self.dead_count += len(rows)
        ticket = self.readers.next_ticket()
        for start in range(0, len(rows), RECLAIM_SLICE_ROWS):
            self._dead.append((ticket, rows[start : start + RECLAIM_SLICE_ROWS]))

    def expires_at(self, row: int) -> int:
        """Milliseconds since the Unix epoch, or NEVER."""
        return int(self._expires_at[row])

    def any_expiry(self) -> bool:
        """Whether any row was ever given an expiry."""
        return self._any_expiry

    def view(self, sequence: int, now_unix_ms: int) -> RowView:
        """What a search beginning now sees. The caller holds a ticket of `readers` while it uses the view."""
        return RowView(
            sequence=sequence,
            now_unix_ms=now_unix_ms,
            row_count=self.row_count,
            born=self._born,
            died=self._died,
            expires_at=self._expires_at if self._any_expiry else None,
            ids=self.ids,
        )

    def live_rows(self) -> Rows:
        """All rows that have not died, rising, expired ones included."""
        return np.flatnonzero((self._born[: self.row_count] != NEVER) & (self._died[: self.row_count] == NEVER))

    @property
    def awaits_reclaim(self) -> bool:
        """Whether rows wait to be retired or freed."""
        return bool(self._dead or self._retired)

    def reclaim(self, forget: Callable[[Rows], None]) -> bool:
        """Retire a slice of the dead rows that nobody sees any more, calling `forget` for them, and free those retired before.

        Returns whether another call would find more to retire now.
        """
        if self._dead and self.readers.all_ended_before(self._dead[0][0]):
            _, rows = self._dead.popleft()
            forget(rows)
            self.dead_count -= len(rows)
            self._born[rows] = NEVER
            self.change_count += 1
            for row in rows.tolist():
                self.ids[row] = ""
            self._retired.append((self.readers.next_ticket(), rows))
        while self._retired and self.readers.all_ended_before(self._retired[0][0]):
            self._free.extend(self._retired.popleft()[1].tolist())
        return bool(self._dead) and self.readers.all_ended_before(self._dead[0][0])

    def load(self, ids: list[str], versions: Int64Array, expires_at: Int64Array, live: NDArray[np.bool_]) -> None:
        """Fill an empty table from a checkpoint; rows that are not live become free. All of shape (row_count,)."""
        self._grow(len(ids))
        self.row_count = len(ids)
        self.ids = ids
        self.versions[: len(ids)] = versions
        self._expires_at[: len(ids)] = expires_at
        self._any_expiry = bool((expires_at[live] != NEVER).any())
        # Versions may be ahead of sequences, and whoever looks now looks behind the checkpoint.
        self._born[np.flatnonzero(live)] = 0
        self.change_count += 1
        self._died[: len(ids)] = NEVER
        self._free = np.flatnonzero(~live)[::-1].tolist()

    def expiry_times(self) -> Int64Array:
        """Expiry of every row, NEVER where there is none; shape (row_count,)."""
        return self._expires_at[: self.row_count]

    def _grow(self, row_count: int) -> None:
        if self._born.size >= row_count:
            return
        size = max(row_count, 2 * self._born.size, 1024)
        self._born = _grown(self._born, size, NEVER)
        self._died = _grown(self._died, size, NEVER)
        self._expires_at = _grown(self._expires_at, size, NEVER)
        self.versions = _grown(self.versions, size, 0)
        if self.slots is not None:
            self.note_slots()

    def note_slots(self) -> None:
        """Have a place for the slot of each row. Those of rows that have a point are the caller's to fill in."""
        slots = np.zeros(self.versions.size, dtype=np.uint16)
        if self.slots is not None:
            slots[: self.slots.size] = self.slots
        self.slots = slots


def row_array(row: int) -> Rows:
    """One row as an array."""
    return np.array([row], dtype=np.int64)


def _grown(array: Int64Array, size: int, fill: int) -> Int64Array:
    # A new array, not a resize: views of searches under way keep the one they have.
    grown = np.full(size, fill, dtype=np.int64)
    grown[: array.size] = array
    return grown
