"""Milvus: the Lite one that its client brings, as threads of this process, or a server by its URI (`--milvus-url`)."""

from __future__ import annotations

import shutil
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

COLLECTION: Final = "vecmem_bench"
POINTS_PER_CALL: Final = 1_000
METRICS: Final = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
INDEX_SECONDS_MAX: Final = 3_600.0


class MilvusServer(Engine):
    """One collection with an HNSW index, loaded. Its effort is `ef`."""

    name = "milvus"
    kind: ClassVar[Kind] = "server"
    own_durability = "as the server has it"

    def __init__(self, place: Place) -> None:
        try:
            import pymilvus
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._library: Any = pymilvus
        self._uri = self._address(place)
        self._metric = ""
        self._client: Any = None
        try:
            self._client = pymilvus.MilvusClient(self._uri, timeout=60)
            self._client.list_collections()
        except Exception as error:
            raise UnavailableError(f"{self._uri}: {error}") from error

    def _address(self, place: Place) -> str:
        return place.url(self.name)

    def load(self, dataset: Dataset) -> Loaded:
        """Insert in batches, flush, build the index and load the collection."""
        client, types = self._client, self._library.DataType
        if client.has_collection(COLLECTION):
            client.drop_collection(COLLECTION)
        self._metric = METRICS[dataset.metric]
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", types.INT64, is_primary=True)
        schema.add_field("payload", types.JSON)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dataset.dimension)
        indexes = client.prepare_index_params()
        indexes.add_index(
            "vector",
            index_type="HNSW",
            metric_type=self._metric,
            params={"M": M, "efConstruction": EF_CONSTRUCTION},
        )
        client.create_collection(COLLECTION, schema=schema)
        started_at = time.perf_counter()
        for begin in range(0, len(dataset), POINTS_PER_CALL):
            part = slice(begin, begin + POINTS_PER_CALL)
            rows = zip(range(begin, len(dataset)), dataset.payloads[part], dataset.vectors[part], strict=False)
            client.insert(COLLECTION, [{"row": row, "payload": held, "vector": vector} for row, held, vector in rows])
        acknowledged_at = time.perf_counter()
        client.flush(COLLECTION, timeout=INDEX_SECONDS_MAX)
        client.create_index(COLLECTION, indexes, timeout=INDEX_SECONDS_MAX)
        client.load_collection(COLLECTION, timeout=INDEX_SECONDS_MAX)
        return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)

    def _asked(self, query: Vector, k: int) -> dict[str, Any]:
        return {
            "collection_name": COLLECTION,
            "data": [query],
            "limit": k,
            "search_params": {"metric_type": self._metric, "params": {"ef": max(self.effort, k)}},
            "output_fields": ["payload"],
        }

    @staticmethod
    def _rows(answer: Any) -> list[int]:
        return [int(hit["row"]) for hit in answer[0]]

    def search(self, query: Vector, k: int) -> list[int]:
        """One call of the sync client."""
        return self._rows(self._client.search(**self._asked(query, k)))

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """One asyncio client."""
        client = self._library.AsyncMilvusClient(self._uri)

        async def search(query: Vector, k: int) -> list[int]:
            return self._rows(await client.search(**self._asked(query, k)))

        try:
            yield search
        finally:
            await client.close()

    def close(self) -> None:
        """Drop the collection."""
        client, self._client = self._client, None
        if client is not None:
            if client.has_collection(COLLECTION):
                client.drop_collection(COLLECTION)
            client.close()


class MilvusLite(MilvusServer):
    """The embedded one, its files in a directory of ours. All its searches share one interpreter with the callers."""

    name = "milvus-lite"
    kind: ClassVar[Kind] = "embedded"
    own_durability = "files"

    def _address(self, place: Place) -> str:
        try:
            import milvus_lite.server_manager as lite
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._manager: Any = lite.server_manager_instance
        self._path = place.directory / "milvus.db"
        return str(self._path)

    def close(self) -> None:
        """Drop the collection, end its threads and remove its files."""
        super().close()
        self._manager.release_all()
        shutil.rmtree(self._path, ignore_errors=True)
