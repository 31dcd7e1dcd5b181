"""The tail: rows that are not in the graph yet, oldest first, the first of them perhaps as codes.

Every search compares the tail. Where it is long, most of a search's time would go there, so the maintenance thread puts codes beside the
oldest rows, piece by piece (`code`); they go when their last row has left. Places of rows are kept by row number, 4 bytes for each row of
the collection: a dictionary would hold the event loop for longer than the arena does.

The event loop appends and discards, one maintenance thread codes and drops from the front, searches read.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecmem.index._kernel import Codes
from vecmem.index.arena import Rows

_HOLE = -1
_CAPACITY_MIN = 1024
_HOLES_SKIPPED = 4_096
"""Looked at in one step."""


@dataclass(frozen=True, slots=True)
class TailView:
    """The tail at one moment: pieces that have codes, some of whose rows may have left it, and the rows behind them."""

    coded: tuple[Codes, ...]
    rest: Rows
    count: int
    """Rows in the tail."""


@dataclass(frozen=True, slots=True)
class _Piece:
    codes: Codes
    rows: Rows


class Tail:
    """A queue of distinct rows with removal from the middle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: NDArray[np.int64] = np.zeros(_CAPACITY_MIN, dtype=np.int64)
        self._places: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        """By row: its index in `_rows`, or _HOLE."""
        self._begin = 0
        self._coded_end = 0
        self._end = 0
        self._count = 0
        self._pieces: tuple[_Piece, ...] = ()
        self._view: TailView | None = None
        """Until the tail changes."""

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Rows) -> None:
        """Add rows, none of which is in the tail."""
        if not rows.size:
            return
        with self._lock:
            if self._end + len(rows) > self._rows.size:
                self._compact(len(rows))
            self._view = None
            top = int(rows.max()) + 1
            if top > self._places.size:
                places = np.full(max(top, 2 * self._places.size), _HOLE, dtype=np.int32)
                places[: self._places.size] = self._places
                self._places = places
            self._rows[self._end : self._end + len(rows)] = rows
            self._places[rows] = np.arange(self._end, self._end + len(rows), dtype=np.int32)
            self._end += len(rows)
            self._count += len(rows)

    def discard(self, rows: Rows) -> NDArray[np.bool_]:
        """Remove distinct rows; which of them were in the tail, shape (n,)."""
        with self._lock:
            self._view = None
            places = self._places_of(rows)
            removed = places != _HOLE
            self._rows[places[removed]] = _HOLE
            self._places[rows[removed]] = _HOLE
            self._count -= int(np.count_nonzero(removed))
            return np.asarray(removed)

    def forget(self, rows: Rows) -> None:
        """Remove distinct rows whose numbers may be given out again: from codes as well, in which rows stay that left for the graph."""
        self.discard(rows)
        for piece in self._pieces:
            piece.codes.discard(rows)

    def rows(self) -> Rows:
        """A copy of the rows, oldest first."""
        with self._lock:
            return self._between(self._begin, self._end)

    def first(self, count: int) -> Rows:
        """A copy of the `count` oldest rows, or fewer, but never none while there are any."""
        with self._lock:
            while self._begin < self._end:
                held = self._rows[self._begin : min(self._begin + _HOLES_SKIPPED, self._end)] != _HOLE
                first = int(held.argmax())
                if held[first]:
                    self._begin += first
                    break
                self._begin += len(held)
            return self._between(self._begin, min(self._begin + count, self._end))

    # -- codes ------------------------------------------------------------------------------------------------------------

    def view(self) -> TailView:
        """The tail now. Whoever compares the rows of both parts compares all of it."""
        with self._lock:
            if self._view is None:
                rest = self._between(max(self._begin, self._coded_end), self._end)
                self._view = TailView(tuple(piece.codes for piece in self._pieces), rest, self._count)
            return self._view

    def uncoded_first(self, count: int) -> Rows:
        """A copy of the `count` oldest rows without codes, or fewer."""
        with self._lock:
            return self._between(max(self._begin, self._coded_end), self._end)[:count]

    def code(self, codes: Codes, rows: Rows) -> None:
        """Take the codes of what `uncoded_first` returned last, in any order; nothing has left for the graph meanwhile."""
        with self._lock:
            self._view = None
            places = self._places_of(rows)
            held = places != _HOLE
            # Forgotten meanwhile, and not in the tail again, since a reader holds on to their numbers.
            codes.discard(rows[~held])
            if held.any():
                self._pieces += (_Piece(codes, rows),)
                self._coded_end = int(places[held].max()) + 1

    def drop_codes(self, *, drained: bool) -> None:
        """Let codes go: of the oldest pieces as far as all their rows have left (`drained`), or all, whose rows are then without."""
        with self._lock:
            self._view = None
            if not drained:
                self._pieces, self._coded_end = (), 0
            while self._pieces and not (self._places_of(self._pieces[0].rows) != _HOLE).any():
                self._pieces = self._pieces[1:]

    # -- inside, with the lock ---------------------------------------------------------------------------------------------

    def _between(self, begin: int, end: int) -> Rows:
        rows = self._rows[begin:end]
        return np.asarray(rows[rows != _HOLE])

    def _places_of(self, rows: Rows) -> NDArray[np.int32]:
        inside = rows < self._places.size
        if inside.all():
            return self._places[rows]
        places = np.full(len(rows), _HOLE, dtype=np.int32)
        places[inside] = self._places[rows[inside]]
        return places

    def _compact(self, room: int) -> None:
        rows = self._between(self._begin, self._end)
        self._coded_end = len(self._between(self._begin, self._coded_end))
        grown = np.zeros(max(_CAPACITY_MIN, 2 * (rows.size + room)), dtype=np.int64)
        grown[: rows.size] = rows
        self._places[rows] = np.arange(rows.size, dtype=np.int32)
        self._rows, self._begin, self._end = grown, 0, rows.size
