"""Filtered search: recall and rate where 50, 20, 10, 5, 1 and 0.1 % of the points match.

Two integer fields of the payload, each from 0 to 999, so that `field < n` matches n points in a thousand. `rank` has nothing to do
with the vectors. `region` follows them: it orders the points by how near they are to one of them, so what matches lies together
and mostly far from the queries, which is where graphs lose their way. Rows of `region` have it in their names. Truth is exact
search among the points that match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.datasets import scores
from bench.engines.vecmem_server import COLLECTION, Vecmem
from bench.measure import K, alone, rate
from bench.report import Report
from bench.scenarios.common import add_common_arguments, begin, truth_of, vecmem
from vecmem_client import VectorConfig, field

if TYPE_CHECKING:
    import argparse

    import numpy.typing as npt

    from bench.datasets import Dataset

PER_MILLE: Final = (500, 200, 100, 50, 10, 1)
CALLERS: Final = 16
QUERIES_MAX: Final = 500
"""Truth is found anew for each share and field."""
SEED: Final = 7
_ROWS_PER_READ: Final = 8_192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Load the points with the two fields, and search without and with filters."""
    report, dataset = begin("filter", arguments, callers=CALLERS, shares_percent=[share / 10 for share in PER_MILLE])
    fields = {"rank": uncorrelated(len(dataset)), "region": correlated(dataset)}
    with vecmem(report, arguments) as engine:
        payloads: list[dict[str, Any]] = [
            {"rank": int(rank), "region": int(region)} for rank, region in zip(*fields.values(), strict=True)
        ]
        engine.client.create_collection(COLLECTION, VectorConfig(dataset.dimension, dataset.metric))
        engine.ingest(dataset, payloads)
        count = min(arguments.queries, QUERIES_MAX)
        _measure(report, engine, dataset, None, "", count)
        # Measured before and after, and in the ratios the mean: what else the machine does changes meanwhile.
        first = _rate(engine, dataset, count)
        measured: list[tuple[str, str, float]] = []
        for name, values in fields.items():
            infix = "" if name == "rank" else f"{name}_"
            for per_mille in PER_MILLE:
                share = f"_{infix}share_percent_{per_mille / 10:g}"
                engine.filter = field(name) < per_mille
                _measure(report, engine, dataset, values < per_mille, share, count)
                measured.append((infix, f"{per_mille / 10:g}", _rate(engine, dataset, count)))
        engine.filter = None
        unfiltered = (first + _rate(engine, dataset, count)) / 2
        report.add("vecmem", f"qps_{CALLERS}_callers", unfiltered, "1/s")
        for infix, share, qps in measured:
            report.add("vecmem", f"qps_{CALLERS}_callers_{infix}share_percent_{share}", qps, "1/s")
            name = f"qps_ratio_to_unfiltered_{infix}share_percent_{share}"
            report.add("vecmem", name, qps / unfiltered, "ratio")
    return report


def _measure(
    report: Report, engine: Vecmem, dataset: Dataset, matching: npt.NDArray[np.bool_] | None, suffix: str, count: int
) -> None:
    truth = truth_of(dataset, matching, queries_max=count)
    seen = alone(lambda query: engine.search(query, K), truth.queries, len(truth.queries))
    report.add("vecmem", f"recall_at_{K}{suffix}", truth.recall(seen.found), "ratio")


def _rate(engine: Vecmem, dataset: Dataset, count: int) -> float:
    return rate(engine, dataset.queries, callers=CALLERS, count=4 * count)


def uncorrelated(count: int) -> npt.NDArray[np.int64]:
    """0 to 999 for each point, each value as often as any other, in random order; shape (count,)."""
    order = np.random.default_rng(SEED).permutation(count)
    return order * 1_000 // count


def correlated(dataset: Dataset) -> npt.NDArray[np.int64]:
    """0 to 999 for each point by how near it is to the first one, each value as often as any other; shape (count,)."""
    near = np.concatenate(
        [
            scores(dataset.metric, dataset.vectors[:1][0], dataset.vectors[begin : begin + _ROWS_PER_READ])
            for begin in range(0, len(dataset), _ROWS_PER_READ)
        ]
    )
    places = np.empty(len(dataset), np.int64)
    places[np.argsort(-near, kind="stable")] = np.arange(len(dataset))
    return places * 1_000 // len(dataset)
