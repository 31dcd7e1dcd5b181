"""Ingest, and search beside it.

First the points are loaded with payloads: until the last acknowledgement, so durable and searchable, and until all are in the
graph. Then the latency of one caller is measured idle; while a process of its own writes 2,000 points a second into the same
collection; while it loads the data set into a second collection as fast as it goes; and from then on until that one's graph is
built. Ratios are to the idle latency of the same run.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bench.engines.vecmem_server import COLLECTION, Vecmem
from bench.measure import K
from bench.report import Report, note, percentile_ms
from bench.scenarios.common import add_common_arguments, begin, vecmem
from bench.server import ROOT, dying_with_parent
from vecmem_client import VectorConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from bench.datasets import Dataset

SECOND: Final = "second"
QUERIES_PER_LOOK: Final = 20
START_SECONDS_MAX: Final = 120.0
QUERIES_MIN: Final = 100
"""Of a phase: a 99th percentile of fewer says nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, queries=4_000)
    parser.add_argument("--rate", type=int, default=2_000, help="points a second of the paced writer")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long it writes")


def run(arguments: argparse.Namespace) -> Report:
    """Load, then search idle and beside writers."""
    report, dataset = begin("ingest", arguments, rate=arguments.rate, seconds=arguments.seconds)
    with vecmem(report, arguments) as engine:
        loaded = engine.load(dataset)
        report.add("vecmem", "ingest_points_per_second", len(dataset) / loaded.acknowledged_seconds, "1/s")
        report.add("vecmem", "ingest_acknowledged_seconds", loaded.acknowledged_seconds, "s")
        report.add("vecmem", "graph_complete_seconds", loaded.complete_seconds, "s")
        engine.settle(dataset.queries)
        left = iter(range(arguments.queries // QUERIES_PER_LOOK))
        idle = _while(engine, dataset, lambda: next(left, None) is not None)
        _add(report, "idle", idle, None)
        idle_ms = percentile_ms(idle, 99)
        phases = ("--rate", str(arguments.rate), "--seconds", str(arguments.seconds))
        with _writer(engine, COLLECTION, arguments, *phases) as writer:
            seen = _while(engine, dataset, lambda: writer.poll() is None)
            _add(report, "paced_ingest", seen, idle_ms)
            report.add("vecmem", "paced_ingest_points_per_second", _finished_rate(writer), "1/s")
        engine.client.create_collection(SECOND, VectorConfig(dataset.dimension, dataset.metric))
        with _writer(engine, SECOND, arguments) as writer:
            _add(report, "bulk_load", _while(engine, dataset, lambda: writer.poll() is None), idle_ms)
            report.add("vecmem", "bulk_load_points_per_second", _finished_rate(writer), "1/s")
        _add(report, "graph_build", _while(engine, dataset, lambda: not _is_built(engine, len(dataset))), idle_ms)
    return report


def _add(report: Report, phase: str, latencies_seconds: list[float], idle_ms: float | None) -> None:
    if len(latencies_seconds) < QUERIES_MIN:
        note(f"{phase} was over after {len(latencies_seconds)} queries, of which nothing can be said")
        return
    p99 = percentile_ms(latencies_seconds, 99)
    report.add("vecmem", f"latency_ms_p50_{phase}", percentile_ms(latencies_seconds, 50), "ms")
    report.add("vecmem", f"latency_ms_p99_{phase}", p99, "ms")
    if idle_ms is not None:
        report.add("vecmem", f"latency_p99_ratio_to_idle_{phase}", p99 / idle_ms, "ratio")


def _while(engine: Vecmem, dataset: Dataset, goes_on: Callable[[], bool]) -> list[float]:
    """Latencies of one caller for as long as something goes on, which is looked at every few queries."""
    latencies: list[float] = []
    number = 0
    while goes_on():
        for _ in range(QUERIES_PER_LOOK):
            query = dataset.queries[number % len(dataset.queries)]
            number += 1
            began_at = time.perf_counter()
            engine.client.query(COLLECTION, query, limit=K)
            latencies.append(time.perf_counter() - began_at)
    return latencies


def _is_built(engine: Vecmem, count: int) -> bool:
    stats = engine.client.collection_stats(SECOND).vectors[""]
    return stats.graph_row_count >= count and stats.tail_row_count == 0


@contextmanager
def _writer(
    engine: Vecmem, collection: str, arguments: argparse.Namespace, *more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A writer that has begun to write; ended with the block, whatever happens. Raises RuntimeError when it does not begin."""
    # Its working directory is another one; a synthetic set is no path.
    dataset = arguments.dataset.resolve() if arguments.dataset.exists() else arguments.dataset
    command = [sys.executable, "-m", "bench.paced_writer", engine.server.address, collection, str(dataset), *more]
    process = subprocess.Popen(dying_with_parent(command), cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS_MAX)
        if not readable or process.stdout.readline() != b"writing\n":
            raise RuntimeError("the writer did not begin")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def _finished_rate(writer: subprocess.Popen[bytes]) -> float:
    """Points a second of a writer that has ended. Raises RuntimeError where it failed."""
    assert writer.stdout is not None
    words = writer.stdout.read().split()
    if writer.wait() or words[:1] != [b"done"]:
        raise RuntimeError(f"the writer exited {writer.returncode}")
    return int(words[1]) / float(words[2])
