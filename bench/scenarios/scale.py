"""Growth: synthetic sets of several sizes, each on a server of its own: build, search, memory, restart.

The graph's build grows as n log n if it grows as it should: `build_to_n_log_n_ratio` is how much longer the largest took than the smallest,
over what n log n says. Rows end in the number of points.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.datasets import make_synthetic
from bench.measure import K, alone, rate
from bench.report import Report, note
from bench.scenarios.common import add_common_arguments, truth_of, vecmem

if TYPE_CHECKING:
    import argparse

CALLERS = 16
QUERIES_OF_TRUTH_MAX = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, dataset=False)
    parser.add_argument("--sizes", default="100000,1000000", help="numbers of points, by commas, upwards")
    parser.add_argument("--dimension", type=int, default=128)


def run(arguments: argparse.Namespace) -> Report:
    """One server for each size."""
    sizes = sorted(int(size) for size in arguments.sizes.split(","))
    report = Report(
        "scale",
        {"sizes": sizes, "dimension": arguments.dimension, "metric": "cosine", "k": K, "queries": arguments.queries},
    )
    build_seconds: list[float] = []
    for size in sizes:
        dataset = make_synthetic(size, arguments.dimension)
        note(f"{dataset.name}: exact search for the truth")
        truth = truth_of(dataset, queries_max=QUERIES_OF_TRUTH_MAX)
        with vecmem(report, arguments) as engine:
            before_bytes = engine.server.rss_bytes()
            loaded = engine.load(dataset)
            build_seconds.append(loaded.complete_seconds)
            suffix = f"_points_{size}"
            report.add("vecmem", f"ingest_points_per_second{suffix}", size / loaded.acknowledged_seconds, "1/s")
            report.add("vecmem", f"graph_complete_seconds{suffix}", loaded.complete_seconds, "s")
            grown_bytes = engine.server.rss_bytes() - before_bytes
            report.add("vecmem", f"rss_bytes_per_point{suffix}", grown_bytes / size, "bytes")
            seen = alone(lambda query, engine=engine: engine.search(query, K), truth.queries, arguments.queries)  # type: ignore[misc]
            report.add("vecmem", f"recall_at_{K}{suffix}", truth.recall(seen.found), "ratio")
            seen.report(report, "vecmem", suffix)
            qps = rate(engine, truth.queries, callers=CALLERS, count=4 * arguments.queries)
            report.add("vecmem", f"qps_{CALLERS}_callers{suffix}", qps, "1/s")
            engine.client.create_checkpoint(timeout_seconds=600)
            report.add("vecmem", f"restart_seconds{suffix}", engine.restart(truth.queries[0], K), "s")
    if len(sizes) > 1:
        first, last = sizes[0], sizes[-1]
        expected = last * math.log(last) / (first * math.log(first))
        report.add("vecmem", "build_to_n_log_n_ratio", build_seconds[-1] / build_seconds[0] / expected, "ratio")
    return report
