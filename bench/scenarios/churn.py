"""Churn: ten rounds that each replace a fifth of the points, half of them in place, half by deletion and a new point.

A sixth of the data set waits outside; each round it takes the place of as many points as it has, which then wait in turn. So the points
are always of the same number and distribution, and none is a copy of another. Recall and rate are measured fresh and after each
round, once background work has come to rest by itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.engines.vecmem_server import COLLECTION, Vecmem, wait_for_graph
from bench.measure import K, alone, rate
from bench.report import Report, note
from bench.scenarios.common import add_common_arguments, begin, truth_of, vecmem
from vecmem_client import VectorConfig

if TYPE_CHECKING:
    import argparse

    import numpy.typing as npt

    from bench.datasets import Dataset

CALLERS: Final = 16
SEED: Final = 11
SETTLED_SECONDS: Final = 2.0
SETTLE_SECONDS_MAX: Final = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)
    parser.add_argument("--rounds", type=int, default=10)


def run(arguments: argparse.Namespace) -> Report:
    """Load, and replace round by round."""
    report, dataset = begin("churn", arguments, callers=CALLERS, rounds=arguments.rounds)
    with vecmem(report, arguments) as engine:
        engine.client.create_collection(COLLECTION, VectorConfig(dataset.dimension, dataset.metric))
        points = _Points(engine, dataset)
        points.load()
        reached: list[tuple[float, float]] = []
        for number in range(arguments.rounds + 1):
            if number:
                points.replace(number)
            settle(engine)
            truth = truth_of(dataset, points.live)
            seen = alone(lambda query: engine.search(query, K), truth.queries, len(truth.queries))
            qps = rate(engine, truth.queries, callers=CALLERS, count=4 * arguments.queries)
            reached.append((truth.recall(seen.found), qps))
            report.add("vecmem", f"recall_at_{K}_round_{number}", reached[-1][0], "ratio")
            report.add("vecmem", f"qps_{CALLERS}_callers_round_{number}", qps, "1/s")
        report.add("vecmem", f"recall_at_{K}_fresh", reached[0][0], "ratio")
        report.add("vecmem", f"recall_at_{K}_after_churn", reached[-1][0], "ratio")
        report.add("vecmem", f"qps_{CALLERS}_callers_ratio_to_fresh", reached[-1][1] / reached[0][1], "ratio")
    return report


class _Points:
    """The points that are in, and the rows that wait. A point's id says nothing of its row."""

    def __init__(self, engine: Vecmem, dataset: Dataset) -> None:
        self._engine = engine
        self._dataset = dataset
        self._random = np.random.default_rng(SEED)
        order = self._random.permutation(len(dataset))
        outside = len(dataset) // 6
        self._waiting = order[:outside]
        self._ids = {f"point-{row}-0": int(row) for row in order[outside:]}

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which rows are in; shape (rows,)."""
        mask = np.zeros(len(self._dataset), np.bool_)
        mask[list(self._ids.values())] = True
        return mask

    def load(self) -> None:
        """Load what is in at first."""
        self._upsert(self._ids)

    def replace(self, number: int) -> None:
        """One round."""
        ids = list(self._ids)
        leaving = [ids[index] for index in self._random.permutation(len(ids))[: len(self._waiting)]]
        coming = [int(row) for row in self._waiting]
        self._waiting = np.array([self._ids[point_id] for point_id in leaving])
        half = len(leaving) // 2
        in_place = dict(zip(leaving[:half], coming[:half], strict=True))
        anew = {f"point-{row}-{number}": row for row in coming[half:]}
        for point_id in leaving[half:]:
            del self._ids[point_id]
        self._ids |= in_place | anew
        for begin_at in range(half, len(leaving), 5_000):
            self._engine.client.delete(COLLECTION, ids=leaving[begin_at : min(begin_at + 5_000, len(leaving))])
        self._upsert(in_place | anew)

    def _upsert(self, points: dict[str, int]) -> None:
        rows = list(points.values())
        payloads = [self._dataset.payloads[row] for row in rows]
        self._engine.row_of = self._ids
        self._engine.client.upsert_bulk(COLLECTION, list(points), self._dataset.vectors[rows], payloads)


def settle(engine: Vecmem) -> None:
    """Wait until the tail is empty, no rebuild runs, and the counts of the graph stand still."""
    deadline = time.perf_counter() + SETTLE_SECONDS_MAX
    counts: tuple[int, int] | None = None
    still_since = time.perf_counter()
    while time.perf_counter() - still_since < SETTLED_SECONDS:
        wait_for_graph(engine.client, COLLECTION)
        stats = engine.client.collection_stats(COLLECTION).vectors[""]
        now = (stats.graph_row_count, stats.graph_deleted_row_count)
        if now != counts:
            counts, still_since = now, time.perf_counter()
        if time.perf_counter() > deadline:
            note(f"the graph's counts still change after {SETTLE_SECONDS_MAX:.0f} s")
            return
        time.sleep(0.2)
