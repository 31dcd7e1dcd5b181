"""Sets of rows as packed bits, the form in which the kernel takes what a search may return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vecmem.index.column import Mask


@dataclass(frozen=True, slots=True, eq=False)
class RowSet:
    """Which of the rows 0 to row_count - 1 are in a set. It never changes, so it may be handed to threads and kept."""

    bits: NDArray[np.uint8]
    """uint8 ((row_count + 7) // 8,); bit i % 8 of byte i // 8, lowest first, is row i's. Read-only; bits beyond row_count are 0."""
    count: int
    """Rows in the set."""
    row_count: int

    @staticmethod
    def of_mask(mask: Mask) -> RowSet:
        """The rows where a mask, bool (row_count,), is true."""
        bits = np.packbits(mask, bitorder="little")
        bits.setflags(write=False)
        return RowSet(bits, int(np.count_nonzero(mask)), len(mask))

    def mask(self) -> Mask:
        """Bool (row_count,), the caller's own."""
        return np.unpackbits(self.bits, count=self.row_count, bitorder="little").view(np.bool_)

    def rows(self) -> NDArray[np.int64]:
        """int64 (count,); the rows in the set, rising."""
        return np.flatnonzero(self.mask())

    def contains(self, rows: NDArray[np.int64]) -> Mask:
        """Which of some rows, 0 or more, are in the set; bool (n,). Rows from row_count on are not."""
        inside = rows < self.row_count
        if inside.all():
            return self._bits_of(rows)
        found = np.zeros(len(rows), dtype=np.bool_)
        found[inside] = self._bits_of(rows[inside])
        return found

    def _bits_of(self, rows: NDArray[np.int64]) -> Mask:
        return np.asarray(self.bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1, dtype=np.bool_)
