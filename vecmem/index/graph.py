"""One HNSW graph of the hnswlib package, made safe for threads.

hnswlib allows many searches at once, or one insertion, never both; and its `ef` belongs to the whole index. Hence the lock: searches
share it as long as they agree on `ef`, insertion and deletion hold it alone. Nobody overtakes those who wait, so nobody starves:
insertions come in short slices, with searches in between.

Labels count up from 0 and are never used again; what a label stands for is the business of `vecmem.index.hnsw`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hnswlib
import numpy as np
from numpy.typing import NDArray

from vecmem.index import metric as metrics
from vecmem.index.metric import Float32Array, Metric
from vecmem.index.parameters import HnswParameters

INITIAL_CAPACITY = 1024
DOT_NORM_EXPONENT = 20
"""hnswlib's distance under dot is 1 - product in float32, in which products below 1e-7 drown. Vectors go into the graph scaled by a power
of two, so that their norms are about 2 to this power; and queries are of unit length: the order of results does not change."""
LINK_BYTES = 4
PARALLEL_ROWS_MIN = 64
# Cosine becomes a dot product of unit vectors here: hnswlib's own normalisation is in float32 and bends short vectors.
_SPACES = {Metric.COSINE: "ip", Metric.DOT: "ip", Metric.EUCLIDEAN: "l2"}

Labels = NDArray[np.int64]


class _Waiter:
    """Someone in the queue of a SearchLock. `ef` None: wants it alone."""

    __slots__ = ("admitted", "ef")

    def __init__(self, ef: int | None) -> None:
        self.ef = ef
        self.admitted = False


class SearchLock:
    """Shared among searches with the same `ef`, or held alone; who has to wait is let in in order of arrival.

    A search goes straight in while nobody waits and those inside have its `ef`. When the last one leaves, the head of the queue
    gets in, a search together with all waiting ones that share its `ef`: everybody waits for those before him only.
    """

    def __init__(self, set_ef: Callable[[int], None]) -> None:
        self._set_ef = set_ef
        self._condition = threading.Condition()
        self._ef = 0
        self._searching_count = 0
        self._held_alone = False
        self._queue: list[_Waiter] = []

    @contextmanager
    def shared(self, ef: int) -> Iterator[None]:
        """Hold it together with other searches of the same `ef`, which is set on the index."""
        with self._condition:
            if self._held_alone or self._queue or (self._searching_count and self._ef != ef):
                self._wait(ef)
            else:
                self._begin_search(ef, 1)
        try:
            yield
        finally:
            with self._condition:
                self._searching_count -= 1
                self._admit()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it while nobody searches."""
        with self._condition:
            if self._held_alone or self._queue or self._searching_count:
                self._wait(None)
            else:
                self._held_alone = True
        try:
            yield
        finally:
            with self._condition:
                self._held_alone = False
                self._admit()

    def _wait(self, ef: int | None) -> None:
        waiter = _Waiter(ef)
        self._queue.append(waiter)
        while not waiter.admitted:
            self._condition.wait()

    def _begin_search(self, ef: int, count: int) -> None:
        if self._ef != ef:
            self._set_ef(ef)
            self._ef = ef
        self._searching_count += count

    def _admit(self) -> None:
        """Let in whose turn it is, if the lock is free. They hold it from here on, awake or not."""
        if not self._queue or self._held_alone or self._searching_count:
            return
        ef = self._queue[0].ef
        if ef is None:
            admitted = self._queue[:1]
            self._held_alone = True
        else:
            admitted = [waiter for waiter in self._queue if waiter.ef == ef]
            self._begin_search(ef, len(admitted))
        for waiter in admitted:
            waiter.admitted = True
        self._queue = [waiter for waiter in self._queue if not waiter.admitted]
        self._condition.notify_all()


class Graph:
    """Vectors under labels, searched approximately."""

    def __init__(self, dimension: int, metric: Metric, parameters: HnswParameters) -> None:
        self.parameters = parameters
        self._dimension = dimension
        self._metric = metric
        # Made at the first insertion: hnswlib's locks alone take 2.5 MiB and several milliseconds.
        self._index: hnswlib.Index | None = None
        self._ef = 0
        self._lock = SearchLock(self._set_ef)
        self.label_count = 0
        self.deleted_count = 0
        self.scale_exponent = 0
        """Vectors are inserted times 2 to this power (dot only), chosen at the first insertion."""

    @property
    def size_bytes(self) -> int:
        """Bytes that the graph takes, estimated: vectors, labels and links of the bottom layer and 1/M of one more."""
        links = 2 * self.parameters.m + 2 + self.parameters.m / (self.parameters.m - 1)
        return int(self.label_count * (4 * self._dimension + 8 + LINK_BYTES * links))

    def add(self, vectors: Float32Array, threads: int) -> Labels:
        """Insert the rows of an (n, dimension) array; returns their labels, shape (n,). Holds the graph alone meanwhile.

        What hnswlib raises (RuntimeError, MemoryError) passes through. The graph goes on without any of these vectors: labels that it may
        have used count as deleted.
        """
        vectors = self._scaled(vectors)
        labels = np.arange(self.label_count, self.label_count + len(vectors))
        with self._lock.alone():
            needed = self.label_count + len(vectors)
            index = self._index or self._first_index(needed)
            if needed > index.get_max_elements():
                index.resize_index(max(needed, 2 * index.get_max_elements()))
            try:
                # Trickles are inserted by one thread: the other cores belong to those whose writes they are.
                index.add_items(vectors, labels, num_threads=threads if len(vectors) >= PARALLEL_ROWS_MIN else 1)
            except BaseException:
                self._give_up(index, labels)
                raise
            self.label_count = needed
        return labels

    def delete(self, labels: Labels) -> None:
        """Take labels out of the results; they stay as stepping stones. Each label at most once."""
        with self._lock.alone():
            assert self._index is not None, "labels come from an insertion"
            for label in labels.tolist():
                self._index.mark_deleted(label)
            self.deleted_count += len(labels)

    def search(self, query: Float32Array, count: int, ef: int) -> Labels:
        """Up to `count` labels near `query` (float32, shape (dimension,)); fewer where the graph does not lead to more.

        `ef` is raised to `count` where it is below.
        """
        scaled = self._scaled_query(query)
        with self._lock.shared(max(ef, count)):
            count = min(count, self.label_count - self.deleted_count)
            while count > 0 and self._index is not None:
                try:
                    labels, _ = self._index.knn_query(scaled, k=count, num_threads=1)
                except RuntimeError:
                    # hnswlib's only way to say that it reached fewer than `count` nodes.
                    count //= 2
                else:
                    return np.asarray(labels[0].astype(np.int64))
        return np.zeros(0, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write a graph that is not empty to a file; nothing else may use it meanwhile."""
        assert self._index is not None, "an empty graph has nothing to save"
        self._index.save_index(str(path))

    def load(self, path: Path, *, label_count: int, deleted_count: int, scale_exponent: int) -> None:
        """Replace an empty graph by what `save` wrote, deletions included. Raises RuntimeError for a file that is not one."""
        index = self._new_index()
        index.load_index(str(path), max_elements=0)
        if not label_count - deleted_count <= index.get_current_count() <= label_count:
            raise RuntimeError(f"{index.get_current_count()} nodes for {label_count} labels")
        self._adopt(index)
        self.label_count = label_count
        self.deleted_count = deleted_count
        self.scale_exponent = scale_exponent

    def _first_index(self, capacity: int) -> hnswlib.Index:
        index = self._new_index()
        index.init_index(
            max(capacity, INITIAL_CAPACITY), M=self.parameters.m, ef_construction=self.parameters.ef_construction
        )
        self._adopt(index)
        return index

    def _give_up(self, index: hnswlib.Index, labels: Labels) -> None:
        """Count labels as deleted of which any number, with several threads in any order, got a node."""
        self.label_count += len(labels)
        self.deleted_count += len(labels)
        for label in labels.tolist():
            # hnswlib's only way to say that it does not know the label.
            with contextlib.suppress(RuntimeError):
                index.mark_deleted(label)

    def _scaled(self, vectors: Float32Array) -> Float32Array:
        """The rows as the graph holds them."""
        if self._metric is Metric.EUCLIDEAN:
            return vectors
        lengths = metrics.norms(vectors)
        if self._metric is Metric.COSINE:
            return np.asarray((vectors / lengths[:, None]).astype(np.float32))
        positive = lengths[lengths > 0]
        if not self.label_count and positive.size:
            self.scale_exponent = DOT_NORM_EXPONENT - round(float(np.log2(np.median(positive))))
        # What is longer than all others by so much that its products would overflow is the nearest anyway: it is shortened.
        longest = metrics.NORM_MAX / np.maximum(lengths, np.finfo(np.float32).tiny)
        factors = np.minimum(2.0**self.scale_exponent, longest)
        return np.asarray((vectors * factors[:, None]).astype(np.float32))

    def _scaled_query(self, query: Float32Array) -> Float32Array:
        """The query as the graph wants it."""
        if self._metric is not Metric.DOT:
            return metrics.scan_query(self._metric, query)
        length = metrics.norms(query[None, :])[0]
        return np.asarray((query / length).astype(np.float32)) if length > 0 else query

    def _adopt(self, index: hnswlib.Index) -> None:
        if self._ef:
            index.set_ef(self._ef)
        self._index = index

    def _set_ef(self, ef: int) -> None:
        self._ef = ef
        if self._index is not None:
            self._index.set_ef(ef)

    def _new_index(self) -> hnswlib.Index:
        return hnswlib.Index(space=_SPACES[self._metric], dim=self._dimension)
