"""faiss in this process: IndexHNSWFlat, float32, no server, no payloads, no durability."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError
from bench.report import this_machine

if TYPE_CHECKING:
    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Vector


class Faiss(Engine):
    """faiss.IndexHNSWFlat over normalised vectors under cosine; its effort is `efSearch`."""

    name = "faiss"
    kind: ClassVar[Kind] = "index"

    def __init__(self, place: Place | None = None) -> None:
        del place
        try:
            import faiss
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._faiss: Any = faiss
        self._index: Any = None
        self._is_cosine = False

    def load(self, dataset: Dataset) -> Loaded:
        """`add` of all, on all cores."""
        faiss = self._faiss
        self._is_cosine = dataset.metric == "cosine"
        metric = faiss.METRIC_L2 if dataset.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
        self._index = faiss.IndexHNSWFlat(dataset.dimension, M, metric)
        self._index.hnsw.efConstruction = EF_CONSTRUCTION
        vectors = dataset.vectors[:]
        if self._is_cosine:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        started_at = time.perf_counter()
        self._index.add(vectors)
        seconds = time.perf_counter() - started_at
        # One query at a time on the calling thread: an OpenMP team for a single query costs more than it brings.
        faiss.omp_set_num_threads(1)
        return Loaded(seconds, seconds)

    def search(self, query: Vector, k: int) -> list[int]:
        """One query on the calling thread."""
        if self._is_cosine:
            query = query / np.linalg.norm(query)
        parameters = self._faiss.SearchParametersHNSW(efSearch=max(self.effort, k))
        _, rows = self._index.search(query[None], k, params=parameters)
        return [int(row) for row in rows[0] if row >= 0]

    def close(self) -> None:
        """Free the index, and let faiss use all threads again."""
        self._index = None
        self._faiss.omp_set_num_threads(this_machine().cores)
