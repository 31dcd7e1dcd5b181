"""What scenarios share: options, the parameters of a report, and the truth."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.datasets import Dataset, load, worst_true_scores
from bench.engines import Place
from bench.engines.vecmem_server import Vecmem
from bench.measure import K, Truth
from bench.report import Report, note
from bench.server import ROOT, work_directory

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from bench.datasets import BoolRow


def add_common_arguments(
    parser: argparse.ArgumentParser, *, queries: int = 1_000, both_grpc_engines: bool = False, dataset: bool = True
) -> None:
    """Declare --dataset, --queries, --work-dir and --grpc-engine."""
    if dataset:
        parser.add_argument(
            "--dataset",
            type=Path,
            default=ROOT / "bench" / "data",
            help="HDF5 file, its directory, or synthetic:COUNTxDIMENSION",
        )
    parser.add_argument(
        "--queries", type=int, default=queries, help="queries measured of one caller; of many a multiple"
    )
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build" / "bench", help="where data goes meanwhile")
    choices = ("auto", "grpcio", "native", *(("both",) if both_grpc_engines else ()))
    parser.add_argument("--grpc-engine", choices=choices, default="auto", help="what serves gRPC; auto: the default")


def counts(text: str) -> tuple[int, ...]:
    """Numbers of at least 1 with commas between, as an option takes them. Raises ValueError."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise ValueError(f"{text} has a number below 1")
    return found


def engines_of(grpc_engine: str) -> tuple[str, ...]:
    """The engines that --grpc-engine names, the one whose rows are called plain `vecmem` first."""
    return ("auto", "grpcio") if grpc_engine == "both" else (grpc_engine,)


def begin(scenario: str, arguments: argparse.Namespace, **more: Any) -> tuple[Report, Dataset]:
    """Read the data set and open the report on it."""
    dataset = load(arguments.dataset)
    note(f"{len(dataset):,} points of {dataset.name}")
    parameters = {
        "dataset": dataset.name,
        "points": len(dataset),
        "dimension": dataset.dimension,
        "metric": dataset.metric,
        "payload": dataset.payload_kind,
        "k": K,
        "queries": arguments.queries,
        **more,
    }
    return Report(scenario, parameters), dataset


def truth_of(dataset: Dataset, matching: BoolRow | None = None, *, queries_max: int | None = None) -> Truth:
    """Exact search for the data set's queries, or the first of them."""
    queries = dataset.queries[:queries_max]
    return Truth(dataset, queries, worst_true_scores(dataset, queries, K, matching), matching)


@contextmanager
def place(work_directory_parent: Path) -> Iterator[Place]:
    """A directory for one run, gone afterwards."""
    with work_directory(work_directory_parent) as directory:
        yield Place(directory)


@contextmanager
def vecmem(report: Report, arguments: argparse.Namespace, *flags: str) -> Iterator[Vecmem]:
    """A server of its own; the report says which gRPC engine serves."""
    with place(arguments.work_dir) as here, Vecmem(here, grpc_engine=arguments.grpc_engine, flags=flags) as engine:
        report.parameters["grpc_engine"] = engine.server.grpc_engine
        yield engine
