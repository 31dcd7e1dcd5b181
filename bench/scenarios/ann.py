"""Approximate nearest neighbours through the Python client, against a server of its own with the defaults.

Ingest: `upsert_bulk` of all vectors and payloads until the last acknowledgement, so durable; the graph counts as complete
when the collection's stats show an empty tail. Latency: one sync client, one query at a time, hits with their payloads, as
`Client.query` returns them by default; empty gRPC calls take turns with the queries. Throughput: one asyncio client with as
many tasks as callers. The client runs on the same cores as the server, and its share of the work is in every figure. Restart:
`kill -9` after a checkpoint, then from the start of the process until the first query is answered. Recall counts hits by
score, so ties count. Bare hnswlib is measured beside it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from bench.engines.bare_hnswlib import Hnswlib
from bench.engines.grpc_floor import Floor
from bench.engines.vecmem_server import COLLECTION, Vecmem
from bench.measure import Alone, K, alone, rate
from bench.report import Report, note, percentile_ms
from bench.scenarios.common import add_common_arguments, begin, engines_of, place, truth_of
from vecmem.limits import EF_DEFAULT
from vecmem_client import Point

if TYPE_CHECKING:
    import argparse

    from bench.datasets import Dataset
    from bench.measure import Truth

TURNS: Final = 10
"""Queries and empty calls alternate so often: what else the machine does meets both alike."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, both_grpc_engines=True)
    parser.add_argument("--ef", type=int, default=0, help="0: as the collection's target recall takes")
    parser.add_argument("--callers", default="16,64,256", help="numbers of concurrent callers, by commas")
    parser.add_argument("--upserts", type=int, default=500, help="durable single-point upserts")


def run(arguments: argparse.Namespace) -> Report:
    """Measure everything. Starts servers and ends them."""
    callers = [int(number) for number in str(arguments.callers).split(",")]
    report, dataset = begin("ann", arguments, ef=arguments.ef, callers=callers)
    note("exact search for the truth")
    truth = truth_of(dataset)
    first, *others = engines_of(arguments.grpc_engine)
    with place(arguments.work_dir) as here, Vecmem(here, grpc_engine=first) as engine:
        report.parameters["grpc_engine"] = engine.server.grpc_engine
        _ingest(report, dataset, engine)
        engine.use(arguments.ef)
        _search(report, "vecmem", engine, truth, arguments.queries, callers)
        _upsert_singly(report, dataset, engine, arguments.upserts)
        engine.client.create_checkpoint(timeout_seconds=600)
        report.add("vecmem", "restart_seconds", engine.restart(dataset.queries[0], K), "s")
        _check_count(engine, dataset)
        for other in (name for name in others if name != engine.server.grpc_engine):
            engine.restart(dataset.queries[0], K, flags=("--grpc-engine", other))
            _search(report, f"vecmem-{other}", engine, truth, arguments.queries, callers)
        engine.client.close()
        engine.server.stop()
    _bare(report, dataset, truth, arguments.ef, arguments.queries)
    return report


def _ingest(report: Report, dataset: Dataset, engine: Vecmem) -> None:
    rss_bytes_before = engine.server.rss_bytes()
    loaded = engine.load(dataset)
    report.add("vecmem", "ingest_points_per_second", len(dataset) / loaded.acknowledged_seconds, "1/s")
    report.add("vecmem", "graph_complete_seconds", loaded.complete_seconds, "s")
    report.add("vecmem", "rss_bytes_per_point", (engine.server.rss_bytes() - rss_bytes_before) / len(dataset), "bytes")


def _search(report: Report, system: str, engine: Vecmem, truth: Truth, count: int, callers: list[int]) -> None:
    """One caller, and many; beside empty calls of the same number of callers."""
    count = max(count, len(truth.queries))
    engine.settle(truth.queries)
    seen = Alone([], [])
    empty: list[float] = []
    with Floor(engine.server.address) as floor:
        floor.alone(count // TURNS)
        for turn in range(TURNS):
            begin_at, end_at = turn * count // TURNS, (turn + 1) * count // TURNS
            rows = [number % len(truth.queries) for number in range(begin_at, end_at)]
            part = alone(lambda query: engine.search(query, K), truth.queries[rows], len(rows))
            seen.latencies_seconds.extend(part.latencies_seconds)
            seen.found.extend(part.found)
            empty.extend(floor.alone(len(rows)))
        report.add(system, f"recall_at_{K}", truth.recall(seen.found[: len(truth.queries)]), "ratio")
        seen.report(report, system)
        empty_ms = percentile_ms(empty, 50)
        report.add(system, "empty_call_ms_p50_1_caller", empty_ms, "ms")
        report.add(system, "empty_call_ms_p99_1_caller", percentile_ms(empty, 99), "ms")
        ratio = percentile_ms(seen.latencies_seconds, 50) / empty_ms
        report.add(system, "latency_to_empty_call_ratio_1_caller", ratio, "ratio")
        for number in callers:
            report.add(
                system, f"qps_{number}_callers", rate(engine, truth.queries, callers=number, count=8 * count), "1/s"
            )
            report.add(system, f"empty_calls_per_second_{number}_callers", floor.rate(4 * count, number), "1/s")


def _upsert_singly(report: Report, dataset: Dataset, engine: Vecmem, count: int) -> None:
    """New points one at a time, each acknowledged before the next; they go again afterwards."""
    latencies: list[float] = []
    ids = [f"single-upsert-{index}" for index in range(count)]
    for index, point_id in enumerate(ids):
        row = index % len(dataset)
        point = Point(point_id, dataset.vectors[row : row + 1][0], dataset.payloads[row])
        began_at = time.perf_counter()
        engine.client.upsert(COLLECTION, [point])
        latencies.append(time.perf_counter() - began_at)
    engine.client.delete(COLLECTION, ids=ids)
    report.add("vecmem", "durable_upsert_ms_p50", percentile_ms(latencies, 50), "ms")
    report.add("vecmem", "durable_upsert_ms_p99", percentile_ms(latencies, 99), "ms")


def _check_count(engine: Vecmem, dataset: Dataset) -> None:
    count = engine.client.count(COLLECTION)
    if count != len(dataset):
        message = f"{count} points after the restart, {len(dataset)} were acknowledged"
        raise RuntimeError(message)


def _bare(report: Report, dataset: Dataset, truth: Truth, ef: int, count: int) -> None:
    with Hnswlib() as index:
        report.add("hnswlib", "graph_complete_seconds", index.load(dataset).complete_seconds, "s")
        index.use(max(ef or EF_DEFAULT, K))
        seen = alone(lambda query: index.search(query, K), truth.queries, max(count, len(truth.queries)))
        report.add("hnswlib", f"recall_at_{K}", truth.recall(seen.found), "ratio")
        seen.report(report, "hnswlib")
