"""hnswlib in this process: no server, no network, no durability. What the index alone costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import hnswlib
import numpy as np

from bench.datasets import Dataset, recall
from bench.report import Report, percentile_ms
from vecmem.limits import EF_CONSTRUCTION_DEFAULT, EF_DEFAULT, M_DEFAULT

if TYPE_CHECKING:
    import numpy.typing as npt

SPACES: Final = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}


def measure(report: Report, dataset: Dataset, worst: npt.NDArray[np.float64], *, k: int, ef: int, threads: int) -> None:
    """Build with vecmem's default parameters, then search one query at a time on one thread."""
    index = hnswlib.Index(space=SPACES[dataset.metric], dim=dataset.vectors.shape[1])
    index.init_index(max_elements=len(dataset), M=M_DEFAULT, ef_construction=EF_CONSTRUCTION_DEFAULT, random_seed=1)
    started_at = time.perf_counter()
    index.add_items(dataset.vectors, num_threads=threads)
    report.add("hnswlib", "graph_complete_seconds", time.perf_counter() - started_at, "s")
    index.set_ef(max(ef or EF_DEFAULT, k))
    latencies: list[float] = []
    found: list[list[int]] = []
    for query in dataset.queries:
        began_at = time.perf_counter()
        labels, _ = index.knn_query(query, k=k, num_threads=1)
        latencies.append(time.perf_counter() - began_at)
        found.append([int(label) for label in labels[0]])
    report.add("hnswlib", f"recall_at_{k}", recall(dataset, dataset.queries, worst, found, k), "ratio")
    report.add("hnswlib", "latency_ms_p50_1_caller", percentile_ms(latencies, 50), "ms")
    report.add("hnswlib", "latency_ms_p99_1_caller", percentile_ms(latencies, 99), "ms")
    report.add("hnswlib", "qps_1_caller", len(latencies) / sum(latencies), "1/s")
