"""A Chroma server as a local process of its own on a free loopback port, through chromadb's HTTP client."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bench.engines import EF_CONSTRUCTION, Engine, Loaded, M, UnavailableError
from bench.server import dying_with_parent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

COLLECTION: Final = "vecmem-bench"
SPACES: Final = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}
POINTS_PER_CALL: Final = 1_000
START_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 30.0
INDEX_SECONDS_MAX: Final = 3_600.0
_RUN: Final = "from chromadb.cli.cli import app; app()"


class ChromaServer(Engine):
    """`chroma run`, and one collection. Its effort is `ef_search`, which belongs to the whole collection."""

    name = "chroma"
    kind: ClassVar[Kind] = "server"
    own_durability = "SQLite"

    def __init__(self, place: Place) -> None:
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        self._library: Any = chromadb
        self._settings: Any = Settings
        self._directory = place.directory / self.name
        self._log = place.directory / "chroma.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._client: Any = None
        self._collection: Any = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [sys.executable, "-c", _RUN, "run", "--path", str(self._directory)]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(dying_with_parent(command), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                self._client = self._library.HttpClient("127.0.0.1", self._port, settings=self._fresh_settings())
                self._client.heartbeat()
            except Exception as error:  # chromadb raises ValueError and httpx errors alike while nobody listens
                if self._process.poll() is not None or time.monotonic() > deadline:
                    words = self._log.read_text(errors="replace")[-500:]
                    raise UnavailableError(f"chroma run did not start: {words}") from error
                time.sleep(0.1)
            else:
                return

    def _fresh_settings(self) -> Any:
        # A client writes its address into the settings it is given.
        return self._settings(anonymized_telemetry=False)

    def load(self, dataset: Dataset) -> Loaded:
        """Add in batches, the payload as the document; then wait until the write-ahead log is in the index."""
        self._collection = self._client.create_collection(
            COLLECTION,
            configuration={
                "hnsw": {
                    "space": SPACES[dataset.metric],
                    "max_neighbors": M,
                    "ef_construction": EF_CONSTRUCTION,
                    "ef_search": 10,
                }
            },
            embedding_function=None,
        )
        started_at = time.perf_counter()
        for begin in range(0, len(dataset), POINTS_PER_CALL):
            part = slice(begin, begin + POINTS_PER_CALL)
            payloads = dataset.payloads[part]
            self._collection.add(
                ids=[str(begin + index) for index in range(len(payloads))],
                embeddings=dataset.vectors[part],
                documents=[json.dumps(payload) for payload in payloads],
            )
        acknowledged_at = time.perf_counter()
        # The first query takes what the log still holds into the index, and answers when that is done.
        self._query(dataset.queries[0], 10)
        return Loaded(acknowledged_at - started_at, time.perf_counter() - started_at)

    def _query(self, query: Vector, k: int) -> list[int]:
        answer = self._collection.query(query_embeddings=[query], n_results=k, include=["documents", "distances"])
        return [int(point_id) for point_id in answer["ids"][0]]

    def use(self, effort: int) -> None:
        """Change the collection, and start the server again: an index that is loaded keeps the `ef` it was loaded with."""
        if effort != self.effort:
            self._collection.modify(configuration={"hnsw": {"ef_search": effort}})
            self._stop()
            self._start()
            self._collection = self._client.get_collection(COLLECTION, embedding_function=None)
        super().use(effort)

    def search(self, query: Vector, k: int) -> list[int]:
        """One call of the sync client."""
        return self._query(query, k)

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """One asyncio client."""
        client = await self._library.AsyncHttpClient("127.0.0.1", self._port, settings=self._fresh_settings())
        collection = await client.get_collection(COLLECTION, embedding_function=None)

        async def search(query: Vector, k: int) -> list[int]:
            answer = await collection.query(query_embeddings=[query], n_results=k, include=["documents", "distances"])
            return [int(point_id) for point_id in answer["ids"][0]]

        yield search

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End the process and remove its files."""
        self._stop()
        shutil.rmtree(self._directory, ignore_errors=True)
