"""Redis with RediSearch by its address (`--redis-url`), through redis-py.

Writes go as the server's own `appendfsync` has them; measure beside `always`, for vecmem acknowledges nothing earlier.
"""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

INDEX: Final = "vecmem-bench"
PREFIX: Final = "vecmem-bench:"
POINTS_PER_PIPELINE: Final = 500
DISTANCES: Final = {"cosine": "COSINE", "dot": "IP", "euclidean": "L2"}
INDEX_SECONDS_MAX: Final = 3_600.0


class RedisSearch(Engine):
    """Hashes with the vector and the payload as JSON, and an HNSW index over them. Its effort is `EF_RUNTIME`."""

    name = "redis"
    kind: ClassVar[Kind] = "server"
    own_durability = "as the server's appendfsync says"

    def __init__(self, place: Place) -> None:
        try:
            import redis
            import redis.asyncio
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._library: Any = redis
        self._url = place.url(self.name)
        self._client: Any = redis.Redis.from_url(self._url, protocol=2)
        try:
            self._client.execute_command("FT._LIST")
        except redis.RedisError as error:
            raise UnavailableError(f"{self._url}: {error}") from error

    def load(self, dataset: Dataset) -> Loaded:
        """Pipelines of HSET into an index that was declared before, then wait until it has taken them all."""
        self._drop()
        options: list[str | int] = ["TYPE", "FLOAT32", "DIM", dataset.dimension]
        options += ["DISTANCE_METRIC", DISTANCES[dataset.metric], "M", M, "EF_CONSTRUCTION", EF_CONSTRUCTION]
        options += ["INITIAL_CAP", len(dataset)]
        schema = ["ON", "HASH", "PREFIX", 1, PREFIX, "SCHEMA", "vector", "VECTOR", "HNSW", len(options), *options]
        self._client.execute_command("FT.CREATE", INDEX, *schema)
        started_at = time.perf_counter()
        for begin in range(0, len(dataset), POINTS_PER_PIPELINE):
            part = slice(begin, begin + POINTS_PER_PIPELINE)
            pipeline = self._client.pipeline(transaction=False)
            vectors, payloads = dataset.vectors[part], dataset.payloads[part]
            for row, (vector, payload) in enumerate(zip(vectors, payloads, strict=True), start=begin):
                pipeline.hset(f"{PREFIX}{row}", mapping={"vector": vector.tobytes(), "payload": json.dumps(payload)})
            pipeline.execute()
        acknowledged_at = time.perf_counter()
        deadline = started_at + INDEX_SECONDS_MAX
        while True:
            answer = self._client.execute_command("FT.INFO", INDEX)
            facts = dict(zip(answer[::2], answer[1::2], strict=False))
            if int(facts[b"num_docs"]) >= len(dataset) and not int(float(facts[b"indexing"])):
                return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)
            if time.perf_counter() > deadline:
                message = f"{facts[b'num_docs']!r} of {len(dataset)} points are indexed"
                raise TimeoutError(message)
            time.sleep(0.1)

    def _asked(self, query: Vector, k: int) -> tuple[Any, ...]:
        wanted = f"*=>[KNN {k} @vector $query EF_RUNTIME {self.effort} AS distance]"
        parameters = ("PARAMS", 2, "query", np.asarray(query, np.float32).tobytes(), "SORTBY", "distance")
        return (
            "FT.SEARCH",
            INDEX,
            wanted,
            *parameters,
            "RETURN",
            2,
            "distance",
            "payload",
            "LIMIT",
            0,
            k,
            "DIALECT",
            2,
        )

    @staticmethod
    def _rows(answer: list[Any]) -> list[int]:
        rows = [int(key[len(PREFIX) :]) for key in answer[1::2]]
        for fields in answer[2::2]:
            json.loads(fields[-1])
        return rows

    def search(self, query: Vector, k: int) -> list[int]:
        """One command on a pooled connection."""
        return self._rows(self._client.execute_command(*self._asked(query, k)))

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """One asyncio client, whose pool has a connection for each caller."""
        client = self._library.asyncio.Redis.from_url(self._url, protocol=2)

        async def search(query: Vector, k: int) -> list[int]:
            return self._rows(await client.execute_command(*self._asked(query, k)))

        try:
            yield search
        finally:
            await client.aclose()

    def _drop(self) -> None:
        if INDEX.encode() in self._client.execute_command("FT._LIST"):
            self._client.execute_command("FT.DROPINDEX", INDEX, "DD")

    def close(self) -> None:
        """Drop the index and its documents."""
        client, self._client = self._client, None
        if client is not None:
            self._client = client
            self._drop()
            client.close()
            self._client = None
