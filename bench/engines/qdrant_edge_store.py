"""Qdrant's engine in this process (qdrant-edge-py): its segments and graph without its server or any network."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError

if TYPE_CHECKING:
    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Vector

POINTS_PER_UPDATE: Final = 1_000
DISTANCES: Final = {"cosine": "Cosine", "dot": "Dot", "euclidean": "Euclid"}


class QdrantEdge(Engine):
    """One shard, everything in memory, optimised into one segment. Its effort is `hnsw_ef`."""

    name = "qdrant-edge"
    kind: ClassVar[Kind] = "embedded"
    own_durability = "write-ahead log, not fsynced"

    def __init__(self, place: Place) -> None:
        try:
            import qdrant_edge
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._edge: Any = qdrant_edge
        self._directory = place.directory / self.name
        self._shard: Any = None

    def load(self, dataset: Dataset) -> Loaded:
        """Upsert in batches with payloads, then run the optimisers until they have nothing left to do."""
        edge = self._edge
        self._directory.mkdir()
        distance = getattr(edge.Distance, DISTANCES[dataset.metric])
        self._shard = edge.EdgeShard.create(
            str(self._directory),
            edge.EdgeConfig(
                vectors=edge.EdgeVectorParams(size=dataset.dimension, distance=distance, memory=edge.Memory.Pinned),
                hnsw_config=edge.HnswIndexConfig(M, EF_CONSTRUCTION, 10, memory=edge.Memory.Pinned),
                optimizers=edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1),
                payload_memory=edge.Memory.Cached,
            ),
        )
        started_at = time.perf_counter()
        for begin in range(0, len(dataset), POINTS_PER_UPDATE):
            part = slice(begin, begin + POINTS_PER_UPDATE)
            rows = zip(range(begin, len(dataset)), dataset.vectors[part].tolist(), dataset.payloads[part], strict=False)
            points = [edge.Point(row, vector, payload) for row, vector, payload in rows]
            self._shard.update(edge.UpdateOperation.upsert_points(points))
        acknowledged_at = time.perf_counter()
        self._shard.optimize()
        return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)

    def search(self, query: Vector, k: int) -> list[int]:
        """One query on the calling thread."""
        edge = self._edge
        request = edge.QueryRequest(
            limit=k,
            query=edge.Query.Nearest(query.tolist()),
            with_payload=True,
            params=edge.SearchParams(hnsw_ef=self.effort),
        )
        return [int(hit.id) for hit in self._shard.query(request)]

    def close(self) -> None:
        """Close the shard and remove its files."""
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.close()
        shutil.rmtree(self._directory, ignore_errors=True)
