"""The model of docs/scaling.md for clusters larger than a machine: no server is started, and the same input gives the same figures.

What a part of a query takes its shard, and what it costs the node that gathers, are parameters; `python -m bench cluster --parts shards`
measures both, and compares the model with 1 to 8 real shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench import scaling
from bench.report import Report
from bench.scenarios.common import counts
from vecmem.server.routing import HEDGE_FACTOR, HEDGE_SECONDS_MIN

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--shard-counts", type=counts, default=(1, 2, 4, 8, 10, 100, 500), help="with commas between")
    parser.add_argument("--nodes-per-shard", type=int, default=3)
    parser.add_argument("--part-ms-p50", type=float, default=1.0, help="what a part takes its shard, median")
    parser.add_argument("--part-ms-p99", type=float, default=5.0, help="99th percentile; the distribution is lognormal")
    parser.add_argument("--part-cost-ms", type=float, default=0.45, help="of the gathering node's time, for each part")
    parser.add_argument("--slow-chance", type=float, default=0.001, help="that a member is slow when it is asked")
    parser.add_argument("--slow-ms", type=float, default=200.0, help="how long it then takes more")
    parser.add_argument("--write-bytes", type=float, default=430.0, help="of a write in the log, with headers")
    parser.add_argument("--writes", type=float, default=200.0, help="a second, of each shard")
    parser.add_argument("--lease-seconds", type=float, default=2.0)
    parser.add_argument(
        "--trials", type=int, default=scaling.TRIALS, help="gathers that are simulated; of 500 shards fewer"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Every number of shards, with and without members that are slow now and then."""
    names = [
        *("nodes_per_shard", "part_ms_p50", "part_ms_p99", "part_cost_ms", "slow_chance", "slow_ms"),
        *("write_bytes", "writes", "lease_seconds", "trials"),
    ]
    report = Report("scaling", {name: getattr(arguments, name) for name in names})
    rng = np.random.default_rng(scaling.SEED)
    part_ms = scaling.lognormal(arguments.part_ms_p50, arguments.part_ms_p99, 100_000, rng)
    for count in arguments.shard_counts:
        _gathers(report, arguments, part_ms, count)
        _standing(report, arguments, count)
    return report


def _gathers(report: Report, arguments: argparse.Namespace, part_ms: scaling.Times, count: int) -> None:
    for percentile in (50, 99):
        slowest = scaling.gather_quantile(part_ms, count, percentile / 100)
        report.add("model", f"slowest_part_ms_p{percentile}_shards_{count}", slowest, "ms")
    slowness = scaling.Slowness(chance=arguments.slow_chance, ms=arguments.slow_ms)
    usual_ms = float(np.mean(part_ms))
    hedge = scaling.Hedge(after_ms=max(HEDGE_SECONDS_MIN * 1e3, HEDGE_FACTOR * usual_ms))
    trials = max(100, arguments.trials // max(1, count // 50))
    kinds: dict[str, tuple[scaling.Slowness | None, scaling.Hedge | None]] = {
        "": (None, None),
        "_slow": (slowness, None),
        "_slow_hedged": (slowness, hedge),
    }
    for kind, (slow, hedged) in kinds.items():
        found = scaling.simulated(
            part_ms, count, part_cost_ms=arguments.part_cost_ms, slowness=slow, hedge=hedged, trials=trials
        )
        for percentile in (50, 99):
            report.add(
                "model", f"query_ms_p{percentile}{kind}_shards_{count}", float(np.percentile(found, percentile)), "ms"
            )
    for hedged_too in (False, True):
        name = f"gathers_that_meet_a_slow_shard{'_hedged' if hedged_too else ''}_shards_{count}"
        report.add("model", name, scaling.chance_of_slow(arguments.slow_chance, count, hedged=hedged_too), "ratio")
    busy_ms = arguments.part_cost_ms * count if count > 1 else arguments.part_ms_p50
    report.add("model", f"queries_per_second_of_a_gathering_node_shards_{count}", 1e3 / busy_ms, "1/s")


def _standing(report: Report, arguments: argparse.Namespace, count: int) -> None:
    nodes = count * arguments.nodes_per_shard
    report.add("model", f"topology_bytes_shards_{count}", scaling.topology_bytes(count), "bytes")
    scattered = min(20, max(1, 8_192 // count))
    report.add(
        "model",
        f"topology_bytes_scattered_shards_{count}",
        scaling.topology_bytes(count, ranges_per_shard=scattered),
        "bytes",
    )
    asked = scaling.coordination(nodes, count)
    report.add("model", f"coordination_requests_per_second_shards_{count}", asked.requests_per_second, "1/s")
    report.add("model", f"coordination_answers_per_second_shards_{count}", asked.answers_per_second, "1/s")
    report.add("model", f"coordination_bytes_per_second_shards_{count}", asked.bytes_per_second, "bytes/s")
    load = scaling.log_load(
        count,
        writes_per_second=arguments.writes,
        write_bytes=arguments.write_bytes,
        lease_seconds=arguments.lease_seconds,
        servers=3,
        nodes_per_shard=arguments.nodes_per_shard,
    )
    report.add("model", f"appends_per_second_of_a_nats_server_shards_{count}", load.appends_per_second, "1/s")
    report.add("model", f"disk_bytes_per_second_of_a_nats_server_shards_{count}", load.disk_bytes_per_second, "bytes/s")
    report.add(
        "model", f"network_bytes_per_second_of_a_nats_server_shards_{count}", load.network_bytes_per_second, "bytes/s"
    )
