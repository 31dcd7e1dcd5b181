"""The arena: rows of raw vectors, float32 or float16, in chunks that never move.

Row numbers are given out by `vecmem.index.rows.RowTable`. A row is written once, before it becomes visible, and not again
until the row table has given it out anew; so threads may read visible rows while the event loop writes others.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecmem.errors import InvalidVectorError
from vecmem.index import _kernel
from vecmem.index import metric as metrics
from vecmem.index.metric import Float32Array, Metric
from vecmem.index.parameters import Storage

CHUNK_BYTES = 16 * 1024 * 1024
"""Size of a chunk. Pages that were never written take no memory."""
GATHER_ONE_BY_ONE_MAX = 64
"""Up to so many rows, as the hits of a query, a loop is cheaper than sorting them by chunk."""
SCORE_VALUES = 256 * 1024
"""Vector elements scored together: 2 MiB in float64."""
COPY_ROWS = 4_096
COPY_VALUES = 256 * 1024
"""Vector elements copied between two chances for others: about a millisecond."""

Rows = NDArray[np.int64]


DTYPES: dict[Storage, np.dtype[Any]] = {Storage.FLOAT32: np.dtype("<f4"), Storage.FLOAT16: np.dtype("<f2")}
"""Of the elements in memory and on disk."""
FLOAT16_MAX = 65_504.0
"""Largest element that float16 can hold."""
UNSTORABLE = f"it does not fit float16, whose elements lie within {FLOAT16_MAX:.0f} and are 0 below 3e-8"


def unstorable(vectors: Float32Array, metric: Metric, storage: Storage) -> NDArray[np.bool_]:
    """Which rows of an (n, dimension) array, valid by themselves, a storage cannot hold: shape (n,).

    Those with an element beyond the range of float16; under cosine also those so short that it leaves nothing of them.
    """
    if storage is Storage.FLOAT32:
        return np.zeros(len(vectors), dtype=np.bool_)
    beyond = (np.abs(vectors) > FLOAT16_MAX).any(axis=1)
    if metric is Metric.COSINE:
        beyond |= ~np.clip(vectors, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).any(axis=1)
    return np.asarray(beyond)


class Arena:
    """Vectors of one dimension and metric by row number. `native` is the same rows, as the kernel sees them."""

    def __init__(self, dimension: int, metric: Metric, storage: Storage = Storage.FLOAT32) -> None:
        self.dimension = dimension
        self.metric = metric
        self.storage = storage
        self.present_count = 0
        self.largest_norm = 0.0
        """Bound of the Euclidean norms of all vectors written."""
        self._dtype = DTYPES[storage]
        self._chunk_shift = max(6, int(CHUNK_BYTES // (self._dtype.itemsize * dimension)).bit_length() - 1)
        self._chunk_rows = 1 << self._chunk_shift
        self.native = _kernel.Arena(metric, dimension, self._chunk_shift, storage.name.lower())
        self._chunks: list[NDArray[np.float32 | np.float16]] = []
        self._terms: list[Float32Array] = []
        self._present = np.zeros(0, dtype=np.bool_)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the rows that hold or held a vector."""
        return int(self._present.size) * self.dimension * self._dtype.itemsize

    @property
    def row_capacity(self) -> int:
        """Rows that `native` has room for."""
        return len(self._chunks) * self._chunk_rows

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
        stored = vectors.astype(self._dtype, copy=False)
        if self.storage is not Storage.FLOAT32:
            # What is compared is what is stored.
            vectors = stored.astype(np.float32)
        terms = metrics.row_terms(self.metric, vectors)
        self.largest_norm = max(self.largest_norm, metrics.norm_bound(self.metric, terms))
        for chunk, within, selected in self._by_chunk(rows):
            self._chunks[chunk][within] = stored[selected]
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
            vectors = self._chunks[chunk][within].astype(np.float32, copy=False)
            ranks[selected] = metrics.ranks(self.metric, vectors @ scan, terms[selected])
        return ranks, metrics.rank_errors(self.metric, query, terms)

    def scores(self, query: Float32Array, rows: Rows) -> Float32Array:
        """Exact scores of `rows`; shape (n,). Takes little memory, however many rows."""
        out = np.empty(len(rows), dtype=np.float32)
        step = max(1, SCORE_VALUES // self.dimension)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            out[start : start + step] = metrics.scores(self.metric, query, self.gather(part))
        return out

    def chunks(self, row_count: int) -> Iterator[NDArray[np.float32 | np.float16]]:
        """The first `row_count` rows as stored, (n, dimension) arrays, for writing to disk. Absent rows hold anything."""
        for start in range(0, row_count, self._chunk_rows):
            index = start >> self._chunk_shift
            rows = min(self._chunk_rows, row_count - start)
            if index < len(self._chunks):
                yield self._chunks[index][:rows]
            else:
                yield np.zeros((rows, self.dimension), dtype=self._dtype)

    def room(self, row_count: int) -> list[NDArray[np.float32 | np.float16]]:
        """Room in an empty arena for the first `row_count` rows as stored, (n, dimension) arrays, to be filled before `adopt`."""
        self._grow(row_count)
        return list(self.chunks(row_count))

    def adopt(self, present: NDArray[np.bool_]) -> None:
        """Take over what was put into `room`: which rows hold a vector, shape (row_count,)."""
        for start in range(0, present.size, COPY_ROWS):
            rows = start + np.flatnonzero(present[start : start + COPY_ROWS])
            for chunk, within, _ in self._by_chunk(rows):
                vectors = self._chunks[chunk][within].astype(np.float32, copy=False)
                terms = metrics.row_terms(self.metric, vectors)
                self.largest_norm = max(self.largest_norm, metrics.norm_bound(self.metric, terms))
                self._terms[chunk][within] = terms
        self._present[: present.size] = present
        self.present_count = int(np.count_nonzero(present))

    def stored_as(self, storage: Storage, live: NDArray[np.bool_]) -> Generator[None, None, Arena]:
        """A copy with another storage, in steps of about a millisecond. No row is written meanwhile; some may be cleared.

        Raises InvalidVectorError where a row that is `live`, shape (row_count,), has an element beyond the range of float16. Rows that are
        not may be gone already or not: they decide nothing.
        """
        copied = Arena(self.dimension, self.metric, storage)
        step = max(1, COPY_VALUES // self.dimension)
        rows = np.flatnonzero(self._present)
        for start in range(0, rows.size, step):
            part = rows[start : start + step]
            vectors = self.gather(part)
            beyond = unstorable(vectors, self.metric, storage)
            if (beyond & live[part]).any():
                raise InvalidVectorError(UNSTORABLE)
            vectors[beyond] = 1
            copied.write(part, vectors)
            yield
        copied.clear(rows[~self._present[rows]])
        return copied

    def _grow(self, row_count: int) -> None:
        while len(self._chunks) * self._chunk_rows < row_count:
            self._chunks.append(np.zeros((self._chunk_rows, self.dimension), dtype=self._dtype))
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
