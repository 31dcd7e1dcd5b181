"""A Qdrant server by its address (`--qdrant-url`, its HTTP one), through qdrant-client, over gRPC where it answers there."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

COLLECTION: Final = "vecmem-bench"
DISTANCES: Final = {"cosine": "Cosine", "dot": "Dot", "euclidean": "Euclid"}
INDEX_SECONDS_MAX: Final = 3_600.0


class QdrantServer(Engine):
    """One collection of the server, deleted at the end. Its effort is `hnsw_ef`."""

    name = "qdrant"
    kind: ClassVar[Kind] = "server"
    own_durability = "write-ahead log, not fsynced"

    def __init__(self, place: Place) -> None:
        try:
            import qdrant_client
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._library: Any = qdrant_client
        self._url = place.url(self.name)
        self._client: Any = qdrant_client.QdrantClient(url=self._url, prefer_grpc=True, timeout=120)
        try:
            self._client.get_collections()
        except Exception as error:
            raise UnavailableError(f"{self._url}: {error}") from error

    def load(self, dataset: Dataset) -> Loaded:
        """Upload in batches and wait until the collection is green with every vector indexed."""
        models = self._library.models
        self._client.delete_collection(COLLECTION)
        self._client.create_collection(
            COLLECTION,
            vectors_config=models.VectorParams(size=dataset.dimension, distance=DISTANCES[dataset.metric]),
            hnsw_config=models.HnswConfigDiff(m=M, ef_construct=EF_CONSTRUCTION, full_scan_threshold=10),
            optimizers_config=models.OptimizersConfigDiff(default_segment_number=1, indexing_threshold=1),
        )
        started_at = time.perf_counter()
        self._client.upload_collection(
            COLLECTION,
            dataset.vectors[:],
            payload=dataset.payloads,
            ids=range(len(dataset)),
            batch_size=500,
            wait=True,
        )
        acknowledged_at = time.perf_counter()
        deadline = started_at + INDEX_SECONDS_MAX
        while True:
            collection = self._client.get_collection(COLLECTION)
            if str(collection.status.value) == "green" and (collection.indexed_vectors_count or 0) >= len(dataset):
                return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)
            if time.perf_counter() > deadline:
                message = f"{collection.indexed_vectors_count} of {len(dataset)} vectors are indexed"
                raise TimeoutError(message)
            time.sleep(0.1)

    def _asked(self, query: Vector, k: int) -> dict[str, Any]:
        parameters = self._library.models.SearchParams(hnsw_ef=self.effort)
        return {
            "collection_name": COLLECTION,
            "query": query.tolist(),
            "limit": k,
            "search_params": parameters,
            "with_payload": True,
        }

    def search(self, query: Vector, k: int) -> list[int]:
        """One call of the sync client."""
        return [int(hit.id) for hit in self._client.query_points(**self._asked(query, k)).points]

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """One asyncio client."""
        client = self._library.AsyncQdrantClient(url=self._url, prefer_grpc=True, timeout=120)

        async def search(query: Vector, k: int) -> list[int]:
            answer = await client.query_points(**self._asked(query, k))
            return [int(hit.id) for hit in answer.points]

        try:
            yield search
        finally:
            await client.close()

    def close(self) -> None:
        """Delete the collection."""
        client, self._client = self._client, None
        if client is not None:
            client.delete_collection(COLLECTION)
            client.close()
