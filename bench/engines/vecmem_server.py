"""vecmem: a server of its own with the defaults, searched through the Python client with payloads."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from bench.engines import Engine, Loaded
from bench.report import note
from bench.server import Server
from vecmem_client import AsyncClient, Client, FilterLike, ProgressBar, VectorConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from bench.datasets import Dataset
    from bench.engines import Kind, Place, Search, Vector

COLLECTION: Final = "bench"
POINTS_PER_LOAD: Final = 100_000
SETTLE_SECONDS_MAX: Final = 3_600.0
CALIBRATION_SECONDS_MAX: Final = 120.0
CALIBRATED_ROWS_MIN: Final = 2_000
SETTLING_QUERIES: Final = 200

GrpcEngine = Literal["auto", "grpcio", "native"]


class Vecmem(Engine):
    """A server process and its clients. Effort is `ef`; 0 leaves it to the collection's target recall."""

    name: ClassVar[str] = "vecmem"
    kind: ClassVar[Kind] = "server"
    own_durability: ClassVar[str] = "fsync"

    def __init__(self, place: Place, *, grpc_engine: str = "auto", flags: Sequence[str] = ()) -> None:
        self.server = Server(place.directory / "vecmem", "--grpc-engine", grpc_engine, *flags)
        self.server.start()
        self.client = Client(self.server.address, timeout_seconds=120)
        self.filter: FilterLike | None = None
        """What hits have to match, from now on."""
        self.row_of: dict[str, int] = {}

    def load(self, dataset: Dataset) -> Loaded:
        """Make the collection, load it with payloads, wait for the graph."""
        self.client.create_collection(COLLECTION, VectorConfig(dataset.dimension, dataset.metric))
        return self.ingest(dataset)

    def ingest(self, dataset: Dataset, payloads: Sequence[dict[str, Any]] | None = None) -> Loaded:
        """Load all points, with the data set's payloads or these, and wait for the graph.

        Data that are made as they are read are not made inside the time.
        """
        self.know(dataset)
        payloads = dataset.payloads if payloads is None else payloads
        made_seconds = 0.0
        started_at = time.perf_counter()
        for begin in range(0, len(dataset), POINTS_PER_LOAD):
            part = slice(begin, begin + POINTS_PER_LOAD)
            making_at = time.perf_counter()
            vectors, some_payloads = dataset.vectors[part], payloads[part]
            made_seconds += time.perf_counter() - making_at
            self.client.upsert_bulk(
                COLLECTION, dataset.ids[part], vectors, some_payloads, progress=ProgressBar("ingest")
            )
        acknowledged_at = time.perf_counter()
        complete_at = wait_for_graph(self.client, COLLECTION, len(dataset))
        wait_for_calibration(self.client, COLLECTION)
        return Loaded(acknowledged_at - started_at - made_seconds, complete_at - started_at - made_seconds)

    def know(self, dataset: Dataset) -> None:
        """Learn which row each id of the data set is."""
        self.row_of = {point_id: row for row, point_id in enumerate(dataset.ids)}

    def search(self, query: Vector, k: int) -> list[int]:
        """One call of the sync client."""
        hits = self.client.query(COLLECTION, query, limit=k, ef=self.effort, filter=self.filter)
        return [self.row_of[hit.id] for hit in hits]

    @asynccontextmanager
    async def tasks(self) -> AsyncIterator[Search]:
        """One asyncio client, whose calls share RPCs as they do by default."""
        async with AsyncClient(self.server.address, timeout_seconds=120) as client:

            async def search(query: Vector, k: int) -> list[int]:
                hits = await client.query(COLLECTION, query, limit=k, ef=self.effort, filter=self.filter)
                return [self.row_of[hit.id] for hit in hits]

            yield search

    def settle(self, queries: npt.NDArray[np.float32]) -> None:
        """Let the server see what is asked, by which it calibrates effort once more, and wait until it has."""
        for query in queries[:SETTLING_QUERIES]:
            self.search(query, 10)
        self.server.wait_until_idle()

    def restart(self, query: Vector, k: int, *, flags: Sequence[str] | None = None) -> float:
        """`kill -9` and start again, with these flags if any. Seconds until the first query is answered."""
        self.client.close()
        self.server.kill()
        if flags is not None:
            self.server.flags = tuple(flags)
        started_at = self.server.start()
        self.client = Client(self.server.address, timeout_seconds=120)
        self.client.query(COLLECTION, query, limit=k)
        return time.perf_counter() - started_at

    def close(self) -> None:
        """End the server."""
        self.client.close()
        self.server.kill()


def data_directory(place: Place) -> Path:
    """Where a server of this place keeps its data."""
    return place.directory / "vecmem"


def wait_for_calibration(client: Client, collection: str) -> None:
    """Wait until effort is measured on the graph, as it is some seconds after a load; small graphs have none to measure."""
    deadline = time.perf_counter() + CALIBRATION_SECONDS_MAX
    while time.perf_counter() < deadline:
        stats = client.collection_stats(collection).vectors[""]
        if stats.calibrated_ef or stats.graph_row_count < CALIBRATED_ROWS_MIN:
            return
        time.sleep(0.1)
    note(f"effort is not calibrated after {CALIBRATION_SECONDS_MAX:.0f} s")


def wait_for_graph(client: Client, collection: str, count: int = 0) -> float:
    """Wait until no row waits for the graph, no rebuild runs, and `count` rows are in the graph.

    Returns when it was so, in time.perf_counter() seconds. Raises TimeoutError.
    """
    deadline = time.perf_counter() + SETTLE_SECONDS_MAX
    told_at = time.perf_counter()
    while True:
        stats = client.collection_stats(collection).vectors[""]
        now = time.perf_counter()
        if stats.graph_row_count >= count and stats.tail_row_count == 0 and not stats.rebuilding:
            return now
        if now > deadline:
            message = f"after {SETTLE_SECONDS_MAX:.0f} s {stats.tail_row_count} rows are not in the graph"
            raise TimeoutError(message)
        if now > told_at + 10:
            note(f"{stats.tail_row_count:,} rows wait for the graph")
            told_at = now
        time.sleep(0.1)
