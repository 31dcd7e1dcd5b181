"""Approximate nearest neighbours through the Python client, against a server of its own with the defaults.

Ingest: `upsert_bulk` of all vectors and payloads until the last acknowledgement, so durable; the graph counts as complete
when the collection's stats show an empty tail. Latency: one sync client, one query at a time, hits with their
payloads, as `Client.query` returns them by default. Throughput: one asyncio client with as many tasks as callers. The
client runs on the same cores as the server, and its share of the work is in every figure. Restart: `kill -9` after a
checkpoint, then from the start of the process until the first query is answered. Recall counts hits by score, so ties
count. Empty gRPC calls and bare hnswlib are measured beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.datasets import Dataset, load, recall, worst_true_scores
from bench.engines import bare_hnswlib, grpc_floor
from bench.report import Report, note, percentile_ms, this_machine
from bench.server import ROOT, Server, work_directory
from vecmem_client import AsyncClient, Client, Point, ProgressBar, VectorConfig

if TYPE_CHECKING:
    import argparse

COLLECTION: Final = "bench"
K: Final = 10
GRAPH_SECONDS_MAX: Final = 900.0
WARM_UP_QUERIES: Final = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dataset", type=Path, default=ROOT / "bench" / "data", help="HDF5 file or its directory")
    parser.add_argument("--ef", type=int, default=0, help="0: the collection's default")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--queries", type=int, default=1_000, help="single-caller queries; at 16 callers 8 times these")
    parser.add_argument("--upserts", type=int, default=500, help="durable single-point upserts")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "bench", help="where the server's data goes")


def run(arguments: argparse.Namespace) -> Report:
    """Measure everything. Starts a server and ends it."""
    dataset = load(arguments.dataset)
    report = Report(
        "ann",
        {
            "dataset": dataset.name,
            "points": len(dataset),
            "dimension": int(dataset.vectors.shape[1]),
            "metric": dataset.metric,
            "payload": dataset.payload_kind,
            "queries": len(dataset.queries),
            "k": K,
            "ef": arguments.ef,
            "callers": arguments.callers,
        },
    )
    note(f"{len(dataset):,} points of {dataset.name}; exact search for the truth")
    worst = worst_true_scores(dataset, dataset.queries, K)
    with work_directory(arguments.work_dir) as directory, Server(directory / "data") as server:
        server.start()
        with Client(server.address) as client:
            _ingest(report, dataset, client, server)
            _search(report, dataset, client, worst, ef=arguments.ef, count=arguments.queries)
            qps = asyncio.run(_throughput(dataset, server.address, arguments))
            report.add("vecmem", f"qps_{arguments.callers}_callers", qps, "1/s")
            _upsert_singly(report, dataset, client, arguments.upserts)
            grpc_floor.measure(report, server.address, calls=arguments.queries, callers=arguments.callers)
            client.create_checkpoint(timeout_seconds=600)
        _restart(report, dataset, server)
        server.stop()
    bare_hnswlib.measure(report, dataset, worst, k=K, ef=arguments.ef, threads=this_machine().cores)
    return report


def _ingest(report: Report, dataset: Dataset, client: Client, server: Server) -> None:
    client.create_collection(COLLECTION, VectorConfig(int(dataset.vectors.shape[1]), dataset.metric))
    rss_bytes_before = server.rss_bytes()
    started_at = time.perf_counter()
    client.upsert_bulk(COLLECTION, dataset.ids, dataset.vectors, dataset.payloads, progress=ProgressBar("ingest"))
    report.add("vecmem", "ingest_points_per_second", len(dataset) / (time.perf_counter() - started_at), "1/s")
    report.add("vecmem", "graph_complete_seconds", wait_for_graph(client, COLLECTION, len(dataset)) - started_at, "s")
    grown_bytes = server.rss_bytes() - rss_bytes_before
    report.add("vecmem", "rss_bytes_per_point", grown_bytes / len(dataset), "bytes")


def wait_for_graph(client: Client, collection: str, count: int) -> float:
    """Wait until every row is in the graph. Returns when it was, in time.perf_counter() seconds."""
    deadline = time.perf_counter() + GRAPH_SECONDS_MAX
    while True:
        stats = client.collection_stats(collection).vectors[""]
        now = time.perf_counter()
        if stats.graph_row_count >= count and stats.tail_row_count == 0:
            return now
        if now > deadline:
            message = f"after {GRAPH_SECONDS_MAX:.0f} s {stats.tail_row_count} rows are not in the graph"
            raise TimeoutError(message)
        time.sleep(0.1)


def _search(report: Report, dataset: Dataset, client: Client, worst: object, *, ef: int, count: int) -> None:
    row_of = {point_id: row for row, point_id in enumerate(dataset.ids)}
    for query in dataset.queries[:WARM_UP_QUERIES]:
        client.query(COLLECTION, query, limit=K, ef=ef)
    latencies: list[float] = []
    found: list[list[int]] = []
    for index in range(max(count, len(dataset.queries))):
        query = dataset.queries[index % len(dataset.queries)]
        began_at = time.perf_counter()
        hits = client.query(COLLECTION, query, limit=K, ef=ef)
        latencies.append(time.perf_counter() - began_at)
        if index < len(dataset.queries):
            found.append([row_of[hit.id] for hit in hits])
    report.add("vecmem", f"recall_at_{K}", recall(dataset, dataset.queries, worst, found, K), "ratio")  # type: ignore[arg-type]
    report.add("vecmem", "latency_ms_p50_1_caller", percentile_ms(latencies, 50), "ms")
    report.add("vecmem", "latency_ms_p99_1_caller", percentile_ms(latencies, 99), "ms")


async def _throughput(dataset: Dataset, address: str, arguments: argparse.Namespace) -> float:
    total = 8 * arguments.queries
    async with AsyncClient(address) as client:

        async def call(queries: itertools.islice[object]) -> None:
            for query in queries:
                await client.query(COLLECTION, query, limit=K, ef=arguments.ef)  # type: ignore[arg-type]

        async def run_all(count: int) -> float:
            shared = itertools.islice(itertools.cycle(dataset.queries), count)
            began_at = time.perf_counter()
            await asyncio.gather(*(call(shared) for _ in range(arguments.callers)))
            return count / (time.perf_counter() - began_at)

        await run_all(WARM_UP_QUERIES * 4)
        return await run_all(total)


def _upsert_singly(report: Report, dataset: Dataset, client: Client, count: int) -> None:
    """New points one at a time, each acknowledged before the next; they go again afterwards."""
    latencies: list[float] = []
    ids = [f"single-upsert-{index}" for index in range(count)]
    for index, point_id in enumerate(ids):
        row = index % len(dataset)
        point = Point(point_id, dataset.vectors[row], dataset.payloads[row])
        began_at = time.perf_counter()
        client.upsert(COLLECTION, [point])
        latencies.append(time.perf_counter() - began_at)
    client.delete(COLLECTION, ids=ids)
    report.add("vecmem", "durable_upsert_ms_p50", percentile_ms(latencies, 50), "ms")
    report.add("vecmem", "durable_upsert_ms_p99", percentile_ms(latencies, 99), "ms")


def _restart(report: Report, dataset: Dataset, server: Server) -> None:
    server.kill()
    started_at = server.start()
    with Client(server.address) as client:
        client.query(COLLECTION, dataset.queries[0], limit=K)
        report.add("vecmem", "restart_seconds", time.perf_counter() - started_at, "s")
        count = client.count(COLLECTION)
    if count != len(dataset):
        message = f"{count} points after the restart, {len(dataset)} were acknowledged"
        raise RuntimeError(message)
