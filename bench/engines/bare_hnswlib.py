"""The hnswlib package in this process: float32, no server, no payloads, no durability. What an index alone costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Final

import hnswlib

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M
from bench.report import this_machine

if TYPE_CHECKING:
    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Vector

SPACES: Final = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


class Hnswlib(Engine):
    """hnswlib.Index; its effort is `ef`, which belongs to the whole index."""

    name = "hnswlib"
    kind: ClassVar[Kind] = "index"

    def __init__(self, place: Place | None = None, *, threads: int | None = None) -> None:
        del place
        self._threads = threads or this_machine().cores
        self._index: hnswlib.Index | None = None

    def load(self, dataset: Dataset) -> Loaded:
        """`add_items` of all, on all cores or as many threads as were said."""
        self._index = hnswlib.Index(space=SPACES[dataset.metric], dim=dataset.dimension)
        self._index.init_index(max_elements=len(dataset), M=M, ef_construction=EF_CONSTRUCTION, random_seed=1)
        vectors = dataset.vectors[:]
        started_at = time.perf_counter()
        self._index.add_items(vectors, num_threads=self._threads)
        seconds = time.perf_counter() - started_at
        return Loaded(seconds, seconds)

    def use(self, effort: int) -> None:
        """Set `ef`, which is the whole index's."""
        super().use(effort)
        assert self._index is not None
        self._index.set_ef(effort)

    def search(self, query: Vector, k: int) -> list[int]:
        """One query on the calling thread."""
        assert self._index is not None
        labels, _ = self._index.knn_query(query, k=k, num_threads=1)
        return [int(label) for label in labels[0]]

    def close(self) -> None:
        """Free the index."""
        self._index = None
