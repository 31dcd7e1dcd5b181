"""The tail: rows that are not in the graph yet, oldest first.

The event loop appends and discards, one maintenance thread drops from the front, searches read.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from vecmem.index.arena import Rows

_HOLE = -1
_CAPACITY_MIN = 1024


class Tail:
    """A queue of distinct rows with removal from the middle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: NDArray[np.int64] = np.zeros(_CAPACITY_MIN, dtype=np.int64)
        self._begin = 0
        self._end = 0
        self._index_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._index_of)

    def append(self, rows: Rows) -> None:
        """Add rows, none of which is in the tail."""
        with self._lock:
            if self._end + len(rows) > self._rows.size:
                self._compact(len(rows))
            self._rows[self._end : self._end + len(rows)] = rows
            self._index_of.update(zip(rows.tolist(), range(self._end, self._end + len(rows)), strict=True))
            self._end += len(rows)

    def discard(self, rows: Rows) -> set[int]:
        """Remove rows and return them; those that are not in the tail are passed over."""
        removed: set[int] = set()
        with self._lock:
            if not self._index_of:
                return removed
            for row in rows.tolist():
                index = self._index_of.pop(row, None)
                if index is not None:
                    self._rows[index] = _HOLE
                    removed.add(row)
        return removed

    def rows(self) -> Rows:
        """A copy of the rows, oldest first."""
        with self._lock:
            rows = self._rows[self._begin : self._end]
            return np.asarray(rows[rows != _HOLE])

    def first(self, count: int) -> Rows:
        """A copy of the `count` oldest rows, or fewer."""
        with self._lock:
            while self._begin < self._end and self._rows[self._begin] == _HOLE:
                self._begin += 1
            rows = self._rows[self._begin : min(self._begin + count, self._end)]
            return np.asarray(rows[rows != _HOLE])

    def _compact(self, room: int) -> None:
        rows = self._rows[self._begin : self._end]
        rows = rows[rows != _HOLE]
        grown = np.zeros(max(_CAPACITY_MIN, 2 * (rows.size + room)), dtype=np.int64)
        grown[: rows.size] = rows
        self._rows, self._begin, self._end = grown, 0, rows.size
        self._index_of = {row: index for index, row in enumerate(rows.tolist())}
