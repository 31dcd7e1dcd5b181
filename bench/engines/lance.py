"""LanceDB in this process, its table on disk."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

TABLE: Final = "bench"
ROWS_PER_BATCH: Final = 10_000
DISTANCES: Final = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}
REFINE: Final = 2
"""Its graph is over int8 codes: so many times k candidates are compared again with the vectors, as vecmem does."""


class Lance(Engine):
    """One table and an IVF_HNSW_SQ index of one partition, which its documentation recommends. Its effort is `ef`."""

    name = "lancedb"
    kind: ClassVar[Kind] = "embedded"
    own_durability = "files"

    def __init__(self, place: Place) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._library: Any = lancedb
        self._directory = place.directory / self.name
        self._distance = ""
        self._table: Any = None

    def load(self, dataset: Dataset) -> Loaded:
        """Create the table from batches, then the index."""
        import pyarrow as pa

        width = dataset.dimension
        schema = pa.schema([("row", pa.int64()), ("payload", pa.string()), ("vector", pa.list_(pa.float32(), width))])

        def batches() -> Iterator[Any]:
            for begin in range(0, len(dataset), ROWS_PER_BATCH):
                part = slice(begin, begin + ROWS_PER_BATCH)
                vectors = dataset.vectors[part]
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
                rows = pa.array(range(begin, begin + len(vectors)))
                payloads = pa.array([json.dumps(payload) for payload in dataset.payloads[part]])
                yield pa.RecordBatch.from_arrays([rows, payloads, column], schema=schema)

        self._distance = DISTANCES[dataset.metric]
        database = self._library.connect(str(self._directory))
        started_at = time.perf_counter()
        self._table = database.create_table(TABLE, batches(), schema=schema)
        acknowledged_at = time.perf_counter()
        self._table.create_index(
            "vector",
            config=self._library.index.HnswSq(
                distance_type=self._distance, num_partitions=1, m=M, ef_construction=EF_CONSTRUCTION
            ),
        )
        return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)

    def search(self, query: Vector, k: int) -> list[int]:
        """One query of the sync interface."""
        asked = self._table.search(query, vector_column_name="vector").distance_type(self._distance)
        asked = (
            asked.nprobes(1)
            .ef(max(self.effort, REFINE * k))
            .refine_factor(REFINE)
            .select(["row", "payload", "_distance"])
            .limit(k)
        )
        return [int(row) for row in asked.to_arrow()["row"].to_pylist()]

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """Its asyncio interface, over the same files."""
        database = await self._library.connect_async(str(self._directory))
        table = await database.open_table(TABLE)

        async def search(query: Vector, k: int) -> list[int]:
            asked = table.query().nearest_to(query).column("vector").distance_type(self._distance)
            asked = (
                asked.nprobes(1)
                .ef(max(self.effort, REFINE * k))
                .refine_factor(REFINE)
                .select(["row", "payload", "_distance"])
                .limit(k)
            )
            return [int(row) for row in (await asked.to_arrow())["row"].to_pylist()]

        yield search

    def close(self) -> None:
        """Remove its files."""
        self._table = None
        shutil.rmtree(self._directory, ignore_errors=True)
