"""PostgreSQL with pgvector by its address (`--pgvector-url`), through psycopg and pgvector's own adapter for it."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

TABLE: Final = "vecmem_bench"
OPERATORS: Final = {
    "cosine": ("<=>", "vector_cosine_ops"),
    "dot": ("<#>", "vector_ip_ops"),
    "euclidean": ("<->", "vector_l2_ops"),
}


class Pgvector(Engine):
    """One table with a jsonb payload and an HNSW index. Its effort is `hnsw.ef_search`, set for each session."""

    name = "pgvector"
    kind: ClassVar[Kind] = "server"
    own_durability = "fsync, as the server's synchronous_commit says"

    def __init__(self, place: Place) -> None:
        try:
            import pgvector.psycopg
            import psycopg
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._library: Any = psycopg
        self._vectors: Any = pgvector.psycopg
        self._url = place.url(self.name)
        self._free: SimpleQueue[Any] = SimpleQueue()
        self._connections: list[Any] = []
        self._operator = ""
        try:
            with psycopg.connect(self._url, autocommit=True) as first:
                first.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._client = self._connect()
        except psycopg.Error as error:
            raise UnavailableError(f"{self._url}: {error}") from error

    def _connect(self) -> Any:
        connection = self._library.connect(self._url, autocommit=True)
        self._vectors.register_vector(connection)
        self._connections.append(connection)
        return connection

    def load(self, dataset: Dataset) -> Loaded:
        """COPY in, then build the index on all cores."""
        json_of = self._library.types.json.Jsonb
        self._operator, operators = OPERATORS[dataset.metric]
        client = self._client
        client.execute(f"DROP TABLE IF EXISTS {TABLE}")
        client.execute(
            f"CREATE TABLE {TABLE} (row bigint PRIMARY KEY, payload jsonb, vector vector({dataset.dimension}))"
        )
        started_at = time.perf_counter()
        with client.cursor().copy(f"COPY {TABLE} (row, payload, vector) FROM STDIN WITH (FORMAT binary)") as copy:
            copy.set_types(["int8", "jsonb", "vector"])
            for begin in range(0, len(dataset), 1_000):
                part = slice(begin, begin + 1_000)
                rows = zip(range(begin, len(dataset)), dataset.payloads[part], dataset.vectors[part], strict=False)
                for row, payload, vector in rows:
                    copy.write_row((row, json_of(payload), vector))
        acknowledged_at = time.perf_counter()
        client.execute("SET maintenance_work_mem = '2GB'")
        client.execute(
            f"CREATE INDEX ON {TABLE} USING hnsw (vector {operators}) WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        client.execute(f"ANALYZE {TABLE}")
        return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)

    def _asked(self, k: int) -> str:
        return f"SELECT row, payload FROM {TABLE} ORDER BY vector {self._operator} %b LIMIT {k}"  # noqa: S608

    def search(self, query: Vector, k: int) -> list[int]:
        """One statement on a connection that no other thread uses meanwhile."""
        connection = self._free_connection()
        try:
            found = connection.execute(self._asked(k), (query,), prepare=True).fetchall()
        finally:
            self._free.put((connection, self.effort))
        return [int(row) for row, _ in found]

    def _free_connection(self) -> Any:
        connection, set_effort = (self._connect(), None) if self._free.empty() else self._free.get()
        if set_effort != self.effort:
            connection.execute(f"SET hnsw.ef_search = {self.effort}")
        return connection

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """Asyncio connections, one for each call that runs at a time."""
        free: list[tuple[Any, int]] = []
        connections: list[Any] = []

        async def search(query: Vector, k: int) -> list[int]:
            if free:
                connection, set_effort = free.pop()
            else:
                connection = await self._library.AsyncConnection.connect(self._url, autocommit=True)
                connections.append(connection)
                await self._vectors.register_vector_async(connection)
                set_effort = None
            if set_effort != self.effort:
                await connection.execute(f"SET hnsw.ef_search = {self.effort}")
            asked = await connection.execute(self._asked(k), (query,), prepare=True)
            found = await asked.fetchall()
            free.append((connection, self.effort))
            return [int(row) for row, _ in found]

        try:
            yield search
        finally:
            for connection in connections:
                await connection.close()

    def close(self) -> None:
        """Drop the table."""
        connections, self._connections = self._connections, []
        if connections:
            connections[0].execute(f"DROP TABLE IF EXISTS {TABLE}")
        for connection in connections:
            connection.close()
