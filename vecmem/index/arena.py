"""The arena: rows of raw float32 vectors in chunks that never move.

Row numbers are given out by `vecmem.index.rows.RowTable`. A row is written once, before it becomes visible, and not again
until the row table has given it out anew; so threads may read visible rows while the event loop writes others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecmem.index import metric as metrics
from vecmem.index.metric import Float32Array, Metric

CHUNK_BYTES = 16 * 1024 * 1024
"""Size of a chunk. Pages that were never written take no memory."""
GATHER_ONE_BY_ONE_MAX = 64
"""Up to so many rows, as the hits of a query, a loop is cheaper than sorting them by chunk."""
SCORE_VALUES = 256 * 1024
"""Vector elements scored together: 2 MiB in float64."""

Rows = NDArray[np.int64]


class Arena:
    """Vectors of one dimension and metric by row number."""

    def __init__(self, dimension: int, metric: Metric) -> None:
        self.dimension = dimension
        self.metric = metric
        self.present_count = 0
        self._chunk_shift = max(6, int(CHUNK_BYTES // (4 * dimension)).bit_length() - 1)
        self._chunk_rows = 1 << self._chunk_shift
        self._chunks: list[Float32Array] = []
        self._terms: list[Float32Array] = []
        self._present = np.zeros(0, dtype=np.bool_)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the rows that hold or held a vector."""
        return int(self._present.size) * self.dimension * 4

    def present(self, row_count: int) -> NDArray[np.bool_]:
        """Which of the first `row_count` rows hold a vector; shape (row_count,)."""
        mask = self._present[:row_count]
        if mask.size < row_count:
            mask = np.concatenate([mask, np.zeros(row_count - mask.size, dtype=np.bool_)])
        return mask

    def write(self, rows: Rows, vectors: Float32Array) -> None:
        """Store the rows of an (n, dimension) array under `rows`, shape (n,). Finite values only: the caller has checked."""
        if not rows.size:
            return
        self._grow(int(rows.max()) + 1)
        terms = metrics.row_terms(self.metric, vectors)
        for chunk, within, selected in self._by_chunk(rows):
            self._chunks[chunk][within] = vectors[selected]
            self._terms[chunk][within] = terms[selected]
        self._present[rows] = True
        self.present_count += len(rows)

    def clear(self, rows: Rows) -> None:
        """Forget the vectors of rows; those that have none are passed over."""
        rows = rows[rows < self._present.size]
        self.present_count -= int(np.count_nonzero(self._present[rows]))
        self._present[rows] = False

    def gather(self, rows: Rows) -> Float32Array:
        """Copy the vectors of `rows` into an (n, dimension) array."""
        out = np.empty((len(rows), self.dimension), dtype=np.float32)
        if len(rows) <= GATHER_ONE_BY_ONE_MAX:
            for index, row in enumerate(rows.tolist()):
                out[index] = self._chunks[row >> self._chunk_shift][row & (self._chunk_rows - 1)]
            return out
        for chunk, within, selected in self._by_chunk(rows):
            out[selected] = self._chunks[chunk][within]
        return out

    def ranks(self, query: Float32Array, rows: Rows) -> tuple[Float32Array, Float32Array]:
        """Ranks of `rows` for `query` (float32, shape (dimension,)), and how far each may be from the true one; both of shape (n,).

        Reads contiguous rows in place.
        """
        scan = metrics.scan_query(self.metric, query)
        ranks = np.empty(len(rows), dtype=np.float32)
        terms = np.empty(len(rows), dtype=np.float32)
        for chunk, within, selected in self._by_chunk(rows):
            terms[selected] = self._terms[chunk][within]
            ranks[selected] = metrics.ranks(self.metric, self._chunks[chunk][within] @ scan, terms[selected])
        return ranks, metrics.rank_errors(self.metric, query, terms)

    def scores(self, query: Float32Array, rows: Rows) -> Float32Array:
        """Exact scores of `rows`; shape (n,). Takes little memory, however many rows."""
        out = np.empty(len(rows), dtype=np.float32)
        step = max(1, SCORE_VALUES // self.dimension)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            out[start : start + step] = metrics.scores(self.metric, query, self.gather(part))
        return out

    def chunks(self, row_count: int) -> Iterator[Float32Array]:
        """The first `row_count` rows as (n, dimension) arrays, for writing to disk. Absent rows hold anything."""
        for start in range(0, row_count, self._chunk_rows):
            index = start >> self._chunk_shift
            rows = min(self._chunk_rows, row_count - start)
            if index < len(self._chunks):
                yield self._chunks[index][:rows]
            else:
                yield np.zeros((rows, self.dimension), dtype=np.float32)

    def load(self, vectors: Float32Array, present: NDArray[np.bool_]) -> None:
        """Fill an empty arena with rows 0 to n - 1 of an (n, dimension) array, of which `present` hold a vector."""
        rows = np.flatnonzero(present)
        for start in range(0, rows.size, self._chunk_rows):
            part = rows[start : start + self._chunk_rows]
            self.write(part, vectors[part])

    def _grow(self, row_count: int) -> None:
        while len(self._chunks) * self._chunk_rows < row_count:
            self._chunks.append(np.zeros((self._chunk_rows, self.dimension), dtype=np.float32))
            self._terms.append(np.zeros(self._chunk_rows, dtype=np.float32))
        if self._present.size < row_count:
            # A new array, not a resize: searches under way keep the one they have.
            present = np.zeros(max(row_count, 2 * self._present.size), dtype=np.bool_)
            present[: self._present.size] = self._present
            self._present = present

    def _by_chunk(self, rows: Rows) -> Iterator[tuple[int, Rows | slice, Rows | slice]]:
        """Split rows by chunk: (chunk, rows within it, indexes into `rows`), as slices where they are contiguous."""
        if not rows.size:
            return
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == rows.size and (rows.size < 3 or bool((np.diff(rows) == 1).all())):
            start = first
            while start <= last:
                chunk = start >> self._chunk_shift
                stop = min(last + 1, (chunk + 1) << self._chunk_shift)
                base = chunk << self._chunk_shift
                yield chunk, slice(start - base, stop - base), slice(start - first, stop - first)
                start = stop
            return
        chunk_of = rows >> self._chunk_shift
        for chunk in np.unique(chunk_of):
            selected = np.flatnonzero(chunk_of == chunk)
            yield int(chunk), rows[selected] - (int(chunk) << self._chunk_shift), selected
