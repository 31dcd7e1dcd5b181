"""The kernel by itself, in this process, beside the hnswlib package: one thread searches, two build.

Each batch of all queries is one call on one thread. Both are tried at the same efforts; compared are the first of each with recall of
at least 0.97. The kernel's graph has the codes that calibration chooses; hits are compared again with the float32 rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import hnswlib
import numpy as np

from bench.engines import EF_CONSTRUCTION, M
from bench.engines.bare_hnswlib import SPACES
from bench.measure import RECALL_WANTED, K
from bench.report import Report, note
from bench.scenarios.common import add_common_arguments, begin, truth_of
from vecmem.index import _kernel, calibration
from vecmem.index.metric import Metric, norms, row_terms

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import numpy.typing as npt

    from bench.datasets import Dataset

    Queries = npt.NDArray[np.float32]

EFFORTS: Final = (12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)
REPEATS: Final = 5
CURVE_REPEATS: Final = 2
BUILD_THREADS: Final = 2
RESCORED_PER_HIT: Final = 2
CURVE_UNTIL_RECALL: Final = 0.995


@dataclass(frozen=True)
class _Index:
    """How a graph is searched, and how its answer reads as rows; only the first is timed."""

    search: Callable[[Queries, int], Any]
    rows: Callable[[Any], list[list[int]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Build both graphs, then search both at each effort in turn."""
    report, dataset = begin("kernel", arguments, build_threads=BUILD_THREADS, recall_wanted=RECALL_WANTED)
    truth = truth_of(dataset)
    queries = np.ascontiguousarray(truth.queries)
    vectors = np.ascontiguousarray(dataset.vectors[:])
    seconds, reference = _build_reference(dataset, vectors)
    kernel_seconds, kernel, code = _build_kernel(dataset, vectors)
    report.parameters |= {"instruction_set": _kernel.instruction_set(), "graph_code": code}
    report.add("hnswlib", "graph_build_seconds", seconds, "s")
    report.add("vecmem", "graph_build_seconds", kernel_seconds, "s")
    report.add("vecmem", "graph_build_ratio_to_hnswlib", kernel_seconds / seconds, "ratio")
    systems = {"vecmem": kernel, "hnswlib": reference}
    chosen: dict[str, tuple[int, float]] = {}
    for ef in EFFORTS:
        recalls = {name: truth.recall(index.rows(index.search(queries, ef))) for name, index in systems.items()}
        for name, qps in _rates(systems, queries, dict.fromkeys(systems, ef), repeats=CURVE_REPEATS).items():
            report.add(name, f"recall_at_{K}_ef_{ef}", recalls[name], "ratio")
            report.add(name, f"qps_1_thread_ef_{ef}", qps, "1/s")
            if name not in chosen or chosen[name][1] < min(RECALL_WANTED, recalls[name]):
                chosen[name] = ef, recalls[name]
        if min(recalls.values()) >= CURVE_UNTIL_RECALL:
            break
    rates = _rates(systems, queries, {name: ef for name, (ef, _) in chosen.items()}, repeats=REPEATS)
    for name, qps in rates.items():
        ef, reached = chosen[name]
        report.add(name, "ef", ef, "candidates")
        report.add(name, f"recall_at_{K}", reached, "ratio")
        report.add(name, "qps_1_thread", qps, "1/s")
    report.add("vecmem", "qps_1_thread_ratio_to_hnswlib", rates["vecmem"] / rates["hnswlib"], "ratio")
    return report


def _rates(systems: dict[str, _Index], queries: Queries, efforts: dict[str, int], *, repeats: int) -> dict[str, float]:
    """Queries a second of each: the best of some repeats, in which they take turns."""
    best = dict.fromkeys(systems, 0.0)
    for _ in range(repeats):
        for name, index in systems.items():
            began_at = time.perf_counter()
            index.search(queries, efforts[name])
            best[name] = max(best[name], len(queries) / (time.perf_counter() - began_at))
    return best


def _build_reference(dataset: Dataset, vectors: npt.NDArray[np.float32]) -> tuple[float, _Index]:
    note("hnswlib builds")
    index = hnswlib.Index(space=SPACES[dataset.metric], dim=dataset.dimension)
    index.init_index(max_elements=len(dataset), M=M, ef_construction=EF_CONSTRUCTION, random_seed=1)
    started_at = time.perf_counter()
    index.add_items(vectors, num_threads=BUILD_THREADS)
    seconds = time.perf_counter() - started_at

    def search(queries: Queries, ef: int) -> Any:
        index.set_ef(ef)
        return index.knn_query(queries, k=K, num_threads=1)

    return seconds, _Index(search, lambda answer: answer[0].tolist())


def _build_kernel(dataset: Dataset, vectors: npt.NDArray[np.float32]) -> tuple[float, _Index, str]:
    """The time is that of the graph and of choosing its code; an arena holds the rows before a graph is built."""
    note("the kernel builds")
    metric = Metric[dataset.metric.upper()]
    shift = max(0, (len(dataset) - 1).bit_length())
    arena = _kernel.Arena(int(metric), dataset.dimension, shift)
    chunk = np.zeros((1 << shift, dataset.dimension), np.float32)
    chunk[: len(dataset)] = vectors
    arena.append(chunk, row_terms(metric, chunk))
    largest_norm = float(norms(vectors).max()) * 1.001
    started_at = time.perf_counter()
    sample = vectors[:: max(1, len(dataset) // calibration.SAMPLE_ROWS)][: calibration.SAMPLE_ROWS]
    chosen = calibration.calibrate(metric, sample)
    graph = _kernel.Graph(chosen.code, int(metric), dataset.dimension, M, EF_CONSTRUCTION, chosen.scale)
    graph.reserve(len(dataset))
    graph.add(vectors, np.arange(len(dataset)), BUILD_THREADS)
    seconds = time.perf_counter() - started_at

    def search(queries: Queries, ef: int) -> Any:
        return graph.search(queries, K, ef, arena, min(RESCORED_PER_HIT * K, ef), largest_norm=largest_norm, threads=1)

    def rows(answer: Any) -> list[list[int]]:
        found, _, ends, _ = answer
        return [part[:K].tolist() for part in np.split(found, ends[:-1])]

    return seconds, _Index(search, rows), chosen.code
