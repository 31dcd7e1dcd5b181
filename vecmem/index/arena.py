"""The arena: rows of raw float32 vectors in chunks that never move.

Row numbers are given out by `vecmem.index.rows.RowTable`. A row is written once, before it becomes visible, and not again
until the row table has given it out anew; so threads may read visible rows while the event loop writes others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecmem.index import _kernel
from vecmem.index import metric as metrics
from vecmem.index.metric import Float32Array, Metric

CHUNK_BYTES = 16 * 1024 * 1024
"""Size of a chunk. Pages that were never written take no memory."""

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
        self._largest_norm = 0.0
        self.native = _kernel.Arena(int(metric), dimension, self._chunk_shift)
        """The same rows for native code: the chunks, by reference."""

    @property
    def row_count(self) -> int:
        """Rows that there is room for, from 0."""
        return int(self._present.size)

    @property
    def largest_norm(self) -> float:
        """Euclidean norm of the longest vector ever written."""
        return self._largest_norm

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
        self._largest_norm = max(self._largest_norm, float(metrics.norms(vectors).max()))
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
        for chunk, within, selected in self._by_chunk(rows):
            out[selected] = self._chunks[chunk][within]
        return out

    def ranks(self, query: Float32Array, rows: Rows) -> Float32Array:
        """Ranks of `rows` for `query` (float32, shape (dimension,)); shape (n,). Reads contiguous rows in place."""
        scan = metrics.scan_query(self.metric, query)
        out = np.empty(len(rows), dtype=np.float32)
        for chunk, within, selected in self._by_chunk(rows):
            products = self._chunks[chunk][within] @ scan
            out[selected] = metrics.ranks(self.metric, products, self._terms[chunk][within])
        return out

    def rank_slack(self, query: Float32Array) -> float:
        """How far float32 ranks of equal vectors may lie apart."""
        return metrics.rank_slack(self.metric, query, self._largest_norm)

    def scores(self, query: Float32Array, rows: Rows) -> Float32Array:
        """Exact scores of `rows`; shape (n,)."""
        return metrics.scores(self.metric, query, self.gather(rows))

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
            self.native.append(self._chunks[-1], self._terms[-1])
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
