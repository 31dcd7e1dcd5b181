"""One HNSW graph of the hnswlib package, made safe for threads.

hnswlib allows many searches at once, or one insertion, never both; and its `ef` belongs to the whole index. Hence the lock: searches
share it as long as they agree on `ef`, insertion and deletion hold it alone. Someone who waits to hold it alone keeps later
searches out, so neither side starves: insertions come in short slices, with searches in between.

Labels count up from 0 and are never used again; what a label stands for is the business of `vecmem.index.labelled_graph`.
"""

from __future__ import annotations

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
LINK_BYTES = 4
# Cosine becomes a dot product of unit vectors here: hnswlib's own normalisation is in float32 and bends short vectors.
_SPACES = {Metric.COSINE: "ip", Metric.DOT: "ip", Metric.EUCLIDEAN: "l2"}

Labels = NDArray[np.int64]


class SearchLock:
    """Shared among searches with the same `ef`, or held alone."""

    def __init__(self, set_ef: Callable[[int], None]) -> None:
        self._set_ef = set_ef
        self._condition = threading.Condition()
        self._ef = 0
        self._searching_count = 0
        self._held_alone = False
        self._waiting_alone_count = 0

    @contextmanager
    def shared(self, ef: int) -> Iterator[None]:
        """Hold it together with other searches of the same `ef`, which is set on the index."""
        with self._condition:
            while self._held_alone or self._waiting_alone_count or (self._searching_count and self._ef != ef):
                self._condition.wait()
            if self._ef != ef:
                self._set_ef(ef)
                self._ef = ef
            self._searching_count += 1
        try:
            yield
        finally:
            with self._condition:
                self._searching_count -= 1
                if not self._searching_count:
                    self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it while nobody searches."""
        with self._condition:
            self._waiting_alone_count += 1
            while self._held_alone or self._searching_count:
                self._condition.wait()
            self._waiting_alone_count -= 1
            self._held_alone = True
        try:
            yield
        finally:
            with self._condition:
                self._held_alone = False
                self._condition.notify_all()


class Graph:
    """Vectors under labels, searched approximately."""

    def __init__(self, dimension: int, metric: Metric, parameters: HnswParameters) -> None:
        self.parameters = parameters
        self._dimension = dimension
        self._metric = metric
        self._index = self._new_index()
        self._index.init_index(INITIAL_CAPACITY, M=parameters.m, ef_construction=parameters.ef_construction)
        self._lock = SearchLock(self._index.set_ef)
        self.label_count = 0
        self.deleted_count = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that the graph takes, estimated: vectors, labels and links of the bottom layer and 1/M of one more."""
        links = 2 * self.parameters.m + 2 + self.parameters.m / (self.parameters.m - 1)
        return int(self.label_count * (4 * self._dimension + 8 + LINK_BYTES * links))

    def add(self, vectors: Float32Array, threads: int) -> Labels:
        """Insert the rows of an (n, dimension) array; returns their labels, shape (n,). Holds the graph alone meanwhile."""
        if self._metric is Metric.COSINE:
            vectors = (vectors / metrics.norms(vectors)[:, None]).astype(np.float32)
        labels = np.arange(self.label_count, self.label_count + len(vectors))
        with self._lock.alone():
            needed = self.label_count + len(vectors)
            if needed > self._index.get_max_elements():
                self._index.resize_index(max(needed, 2 * self._index.get_max_elements()))
            self._index.add_items(vectors, labels, num_threads=threads)
            self.label_count = needed
        return labels

    def delete(self, labels: Labels) -> None:
        """Take labels out of the results; they stay as stepping stones. Each label at most once."""
        with self._lock.alone():
            for label in labels.tolist():
                self._index.mark_deleted(label)
            self.deleted_count += len(labels)

    def search(self, query: Float32Array, count: int, ef: int) -> Labels:
        """Up to `count` labels near `query` (float32, shape (dimension,)); fewer where the graph does not lead to more.

        `ef` is raised to `count` where it is below.
        """
        with self._lock.shared(max(ef, count)):
            count = min(count, self.label_count - self.deleted_count)
            while count > 0:
                try:
                    labels, _ = self._index.knn_query(metrics.scan_query(self._metric, query), k=count, num_threads=1)
                except RuntimeError:
                    # hnswlib's only way to say that it reached fewer than `count` nodes.
                    count //= 2
                else:
                    return np.asarray(labels[0].astype(np.int64))
        return np.zeros(0, dtype=np.int64)

    def save(self, path: Path) -> None:
        """Write the graph to a file; nothing else may use it meanwhile."""
        self._index.save_index(str(path))

    def load(self, path: Path) -> None:
        """Replace an empty graph by what `save` wrote, deletions included. Raises RuntimeError for a file that is not one."""
        index = self._new_index()
        index.load_index(str(path), max_elements=0)
        index.set_num_threads(1)
        self._index = index
        self._lock = SearchLock(index.set_ef)
        self.label_count = index.get_current_count()

    def _new_index(self) -> hnswlib.Index:
        return hnswlib.Index(space=_SPACES[self._metric], dim=self._dimension)
