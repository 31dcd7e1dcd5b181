"""Queries over several shards of this machine, without NATS: what gathering adds, and what grows with the number of shards.

Each query goes to a node that gathers, and then to each shard's own node as a part of a gather, which is answered for that shard
alone; so a noisy moment meets all of them.
"""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench import scaling
from bench.clusters.processes import own_channel, topology_of
from bench.engines.grpc_floor import Floor
from bench.engines.vecmem_server import COLLECTION, wait_for_graph
from bench.measure import WARM_UP_QUERIES, K, calls_by_tasks, run_tasks
from bench.report import note, percentile_ms
from bench.server import Server, processor_seconds
from vecmem.cluster.peers import SHARD_KEY, SLOTS_KEY
from vecmem.v1 import common_pb2, points_pb2, points_pb2_grpc
from vecmem_client import AsyncClient, Client, VectorConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from bench.datasets import Dataset
    from bench.engines import Vector
    from bench.report import Report
    from vecmem.cluster.peers import Metadata

SETTLING_QUERIES: Final = 200
QUERY_SECONDS_MAX: Final = 60.0
LEADERS_SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Latencies:
    """Seconds of each query, in the same order everywhere."""

    gathered: list[float]
    alone: dict[int, list[float]]
    """By shard, asked for its part alone."""
    empty: list[float]
    """Empty calls between them."""

    def slowest_shard(self) -> int:
        """The one with the longest median."""
        return max(self.alone, key=lambda shard: percentile_ms(self.alone[shard], 50))


def gather(report: Report, directory: Path, dataset: Dataset, arguments: argparse.Namespace) -> None:
    """What a gather over --gather-shards adds to the slowest of its shards."""
    shards = arguments.gather_shards
    with _sharded(directory / "gather", shards, arguments.grpc_engine) as (_, addresses):
        _load(addresses, dataset)
        seen = _latencies(addresses, dataset, arguments.queries)
    slowest = percentile_ms(seen.alone[seen.slowest_shard()], 50)
    gathered = percentile_ms(seen.gathered, 50)
    report.add("vecmem", "gather_query_ms_p50", gathered, "ms")
    report.add("vecmem", "gather_query_ms_p99", percentile_ms(seen.gathered, 99), "ms")
    report.add("vecmem", "gather_slowest_shard_ms_p50", slowest, "ms")
    slowest_each = np.max(list(seen.alone.values()), axis=0)
    report.add("vecmem", "gather_slowest_of_each_query_ms_p50", percentile_ms(slowest_each, 50), "ms")
    report.add("vecmem", "gather_empty_call_ms_p50", percentile_ms(seen.empty, 50), "ms")
    report.add("vecmem", "gather_added_ms_p50", gathered - slowest, "ms")


def shards(report: Report, directory: Path, dataset: Dataset, arguments: argparse.Namespace) -> None:
    """The same data over 1, 2, 4 and 8 shards, and what the model of docs/scaling.md says of each."""
    measured: list[scaling.Measured] = []
    for count in arguments.shard_counts:
        with _sharded(directory / f"shards-{count}", count, arguments.grpc_engine) as (server, addresses):
            points_per_second = _load(addresses, dataset)
            seen = _latencies(addresses, dataset, arguments.queries)
            taken_ms = _processor_ms(server, dataset, arguments.queries)
            qps = _qps(addresses[0], dataset, arguments.callers, 4 * arguments.queries)
            with own_channel(addresses[0]) as channel:
                reply = topology_of(channel)
            report.parameters["grpc_engine"] = server.grpc_engine
        found = scaling.Measured(
            shards=count,
            gathered_ms=np.asarray(seen.gathered) * 1e3,
            part_ms=np.concatenate([np.asarray(each) for each in seen.alone.values()]) * 1e3,
            empty_ms=percentile_ms(seen.empty, 50),
            queries_per_second=qps,
            points_per_second=points_per_second,
        )
        measured.append(found)
        for percentile in (50, 99):
            report.add(
                "vecmem", f"query_ms_p{percentile}_shards_{count}", percentile_ms(seen.gathered, percentile), "ms"
            )
            part_ms = float(np.percentile(found.part_ms, percentile))
            report.add("vecmem", f"query_part_ms_p{percentile}_shards_{count}", part_ms, "ms")
        report.add("vecmem", f"gathering_node_processor_ms_shards_{count}", taken_ms[0], "ms")
        if count > 1:
            others_ms = float(np.mean(taken_ms[1:]))
            report.add("vecmem", f"other_node_processor_ms_shards_{count}", others_ms, "ms")
            # The node that gathers answers for its own shard as well.
            part_ms = (taken_ms[0] - others_ms) / count
            report.add("vecmem", f"gathering_processor_ms_per_part_shards_{count}", part_ms, "ms")
        report.add("vecmem", f"empty_call_ms_p50_shards_{count}", found.empty_ms, "ms")
        report.add("vecmem", f"qps_{arguments.callers}_callers_shards_{count}", qps, "1/s")
        report.add("vecmem", f"ingest_points_per_second_shards_{count}", points_per_second, "1/s")
        report.add("vecmem", f"topology_bytes_shards_{count}", reply.topology.ByteSize(), "bytes")
        if reply.nodes:
            node_bytes = max(node.ByteSize() for node in reply.nodes)
            report.add("vecmem", f"node_announcement_bytes_shards_{count}", node_bytes, "bytes")
    scaling.compare(report, measured, cores=report.machine.cores, callers=arguments.callers)


@contextmanager
def _sharded(directory: Path, shards: int, grpc_engine: str) -> Iterator[tuple[Server, list[str]]]:
    """Processes of `vecmem serve --shards`, of which each knows all, and their addresses."""
    with Server(directory, "--grpc-engine", grpc_engine, "--shards", str(shards)) as server:
        server.start()
        addresses = server.addresses
        try:
            deadline = time.monotonic() + LEADERS_SECONDS_MAX
            for address in addresses:
                while shards > 1 and not _knows_all(address, shards):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{address} does not know of {shards} shards")
                    time.sleep(LOOK_SECONDS)
            yield server, addresses
        finally:
            # Killed, it would leave its processes to end by themselves, while their files are removed.
            server.stop()


def _knows_all(address: str, shards: int) -> bool:
    with own_channel(address) as channel:
        return len({node.shard for node in topology_of(channel).nodes if node.leads}) == shards


def _load(addresses: Sequence[str], dataset: Dataset) -> float:
    """Points a second; waits for the graphs of all shards."""
    with Client(addresses[0], timeout_seconds=120) as client:
        client.create_collection(COLLECTION, VectorConfig(dataset.dimension, dataset.metric))
        vectors = dataset.vectors[:]
        began = time.perf_counter()
        client.upsert_bulk(COLLECTION, dataset.ids, vectors, dataset.payloads)
        seconds = time.perf_counter() - began
        wait_for_graph(client, COLLECTION, len(dataset))
        for query in itertools.islice(itertools.cycle(dataset.queries), SETTLING_QUERIES):
            client.query(COLLECTION, query, limit=K)
    return len(dataset) / seconds


def _latencies(addresses: Sequence[str], dataset: Dataset, count: int) -> Latencies:
    """Each query gathered, and then answered by each shard alone."""
    channels = [own_channel(address) for address in addresses]
    stubs = [points_pb2_grpc.PointServiceStub(channel) for channel in channels]
    seen = Latencies([], {shard: [] for shard in range(len(addresses))}, [])

    def timed(stub: Any, request: points_pb2.QueryRequest, metadata: Metadata = ()) -> float:
        began = time.perf_counter()
        stub.Query(request, timeout=QUERY_SECONDS_MAX, metadata=metadata)
        return time.perf_counter() - began

    try:
        with Floor(addresses[0]) as floor:
            for number, query in enumerate(itertools.islice(itertools.cycle(dataset.queries), count + WARM_UP_QUERIES)):
                request = _query(query)
                gathered = timed(stubs[0], request)
                alone = [
                    timed(stub, request, ((SHARD_KEY, str(shard)), (SLOTS_KEY, "1")))
                    for shard, stub in enumerate(stubs)
                ]
                empty = floor.alone(1)
                if number >= WARM_UP_QUERIES:
                    seen.gathered.append(gathered)
                    seen.empty.extend(empty)
                    for shard, seconds in enumerate(alone):
                        seen.alone[shard].append(seconds)
    finally:
        for channel in channels:
            channel.close()
    return seen


def _processor_ms(server: Server, dataset: Dataset, count: int) -> list[float]:
    """Processor time of each process for one query that the first one gathers."""
    with own_channel(server.addresses[0]) as channel:
        stub = points_pb2_grpc.PointServiceStub(channel)
        before = [processor_seconds(pid) for pid in server.pids]
        for query in itertools.islice(itertools.cycle(dataset.queries), count):
            stub.Query(_query(query), timeout=QUERY_SECONDS_MAX)
        after = [processor_seconds(pid) for pid in server.pids]
    return [(now - then) / count * 1e3 for then, now in zip(before, after, strict=True)]


def _query(vector: npt.NDArray[np.float32]) -> points_pb2.QueryRequest:
    request = points_pb2.QueryRequest()
    request.query.collection = COLLECTION
    request.query.limit = K
    dense = request.query.nearest.vector.dense
    dense.packed, dense.data_type = vector.astype("<f4").tobytes(), common_pb2.DATA_TYPE_FLOAT32
    request.query.with_payload.all = True
    return request


def _qps(address: str, dataset: Dataset, callers: int, count: int) -> float:
    async def measured() -> float:
        async with AsyncClient(address, timeout_seconds=120) as client:

            async def one(query: Vector) -> None:
                await client.query(COLLECTION, query, limit=K)

            return await calls_by_tasks(one, dataset.queries, callers, count)

    rate = run_tasks(measured())
    note(f"{callers} callers: {rate:,.0f} queries/s")
    return rate
