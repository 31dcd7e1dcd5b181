"""vecmem beside its peers: the same points, queries and k, each through its own Python client, one system after another.

A system with a knob (for a graph ef) is tried upwards and reported at the first setting whose recall is at least 0.97; the
rows that end in `_ef_N` are the whole curve. Those that pip can bring run by default, the others with their address. A system
that cannot be had is skipped, and `parameters.skipped` says why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.engines import Place, UnavailableError
from bench.engines.registry import BY_URL, PEERS, SYSTEMS
from bench.engines.vecmem_server import Vecmem
from bench.measure import RECALL_WANTED, K, alone, rate, tune
from bench.report import Report, note
from bench.scenarios.common import add_common_arguments, begin, truth_of
from bench.server import work_directory

if TYPE_CHECKING:
    import argparse
    from collections.abc import Container

    from bench.datasets import Dataset
    from bench.engines import Engine
    from bench.measure import Truth

CALLERS = 16
MORE_CALLERS = (64, 256)
"""Of vecmem alone, whose client gathers the calls of many."""
CURVE_UNTIL_RECALL = 0.995


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)
    parser.add_argument("--systems", default="", help=f"only these, by commas; of {', '.join(SYSTEMS)}")
    for name in BY_URL:
        parser.add_argument(f"--{name}-url", default="", help=f"address of a {name} server to measure as well")


def run(arguments: argparse.Namespace) -> Report:
    """Measure one system after another."""
    report, dataset = begin("peers", arguments, callers=CALLERS, recall_wanted=RECALL_WANTED)
    urls = {name: getattr(arguments, f"{name}_url") for name in BY_URL}
    names = [name.strip() for name in arguments.systems.split(",")] if arguments.systems else list(SYSTEMS)
    unknown = set(names) - SYSTEMS.keys()
    if unknown:
        message = f"--systems: {', '.join(sorted(unknown))} not of {', '.join(SYSTEMS)}"
        raise SystemExit(message)
    note("exact search for the truth")
    truth = truth_of(dataset)
    skipped: dict[str, str] = {}
    durability: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for name in names:
        with work_directory(arguments.work_dir) as directory:
            place = Place(directory, urls)
            try:
                engine = SYSTEMS[name](place) if name in PEERS else Vecmem(place, grpc_engine=arguments.grpc_engine)
            except UnavailableError as error:
                skipped[name] = str(error)
                note(f"{name} is skipped: {error}")
                continue
            with engine:
                kinds[name], durability[name] = engine.kind, engine.own_durability
                if isinstance(engine, Vecmem):
                    report.parameters["grpc_engine"] = engine.server.grpc_engine
                    _measure(report, engine, dataset, truth, arguments.queries)
                    continue
                try:
                    _measure(report, engine, dataset, truth, arguments.queries)
                except Exception as error:  # noqa: BLE001 - whatever a peer fails with, the others are measured
                    skipped[name] = f"it failed: {error!r}"
                    note(f"{name} failed: {error!r}")
    report.parameters |= {"skipped": skipped, "kinds": kinds, "durability": durability}
    _compare(report, kinds, skipped)
    return report


def _measure(report: Report, engine: Engine, dataset: Dataset, truth: Truth, count: int) -> None:
    name = engine.name
    loaded = engine.load(dataset)
    report.add(name, "ingest_points_per_second", len(dataset) / loaded.acknowledged_seconds, "1/s")
    report.add(name, "graph_complete_seconds", loaded.complete_seconds, "s")
    tuned = tune(report, engine, truth, count=count, callers=CALLERS, stop_at=CURVE_UNTIL_RECALL)
    report.add(name, "ef", tuned.effort, "candidates")
    report.add(name, f"recall_at_{K}", tuned.recall, "ratio")
    if isinstance(engine, Vecmem):
        engine.settle(truth.queries)
    # Anew, so that all systems are measured in the same state: after their curve.
    alone(lambda query: engine.search(query, K), truth.queries, count).report(report, name)
    for callers in (CALLERS, *(MORE_CALLERS if isinstance(engine, Vecmem) else ())):
        qps = rate(engine, truth.queries, callers=callers, count=4 * count)
        report.add(name, f"qps_{callers}_callers", qps, "1/s")


def _compare(report: Report, kinds: dict[str, str], skipped: Container[str]) -> None:
    """Ratios of vecmem's rate to the best peer's, of those that reached the recall wanted."""
    values = {(figure.system, figure.name): figure.value for figure in report.figures}
    row = f"qps_{CALLERS}_callers"
    mine = values.get(("vecmem", row))
    for kind, suffix in (("server", "server"), ("embedded", "embedded_store")):
        rates = [
            values[name, row]
            for name, its_kind in kinds.items()
            if name != "vecmem"
            and name not in skipped
            and its_kind == kind
            and values[name, f"recall_at_{K}"] >= RECALL_WANTED
        ]
        if mine is not None and rates:
            report.add("vecmem", f"{row}_ratio_to_best_{suffix}", mine / max(rates), "ratio")
