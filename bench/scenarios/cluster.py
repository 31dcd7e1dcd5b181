"""A cluster on one machine, in parts that can be run one by one: real NATS servers, real nodes.

write          one caller's durable writes over three replicas of the log, beside bare appends to such a log
handover       how long writes wait while another node takes the lead as planned
failover       `kill -9` of the node that leads: until writes again, reads of replicas meanwhile, what is lost
stream-leader  `kill -9` of the NATS server that leads the log's stream: until writes again, what is lost
ingest         a bulk load into one shard over three replicas of the log, beside a node that is alone
moving         slots with points that move to another shard under load
gather         a query over several shards, beside its slowest shard
shards         1, 2, 4 and 8 shards, beside what the model of docs/scaling.md says of them
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from bench.scenarios.common import add_common_arguments, begin, counts, place

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.datasets import Dataset
    from bench.report import Report

REPLICATED: Final = ("write", "handover", "failover", "stream-leader")
"""On one cluster of three nodes, one after the other."""
ALONE: Final = ("ingest", "moving", "gather", "shards")
"""Each on processes of its own."""
PARTS: Final = (*REPLICATED, *ALONE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser)
    parser.add_argument("--parts", type=_parts, default=PARTS, help="which to run, with commas between; all by default")
    parser.add_argument("--without", type=_parts, default=(), help="which to leave out")
    parser.add_argument("--nodes", type=int, default=3, help="of the replicated shard")
    parser.add_argument("--lease-seconds", type=float, help="of its nodes; their default where not given")
    parser.add_argument("--writes", type=int, default=2_000, help="measured of one caller, and bare appends as many")
    parser.add_argument("--kills", type=int, default=20, help="of the node that leads")
    parser.add_argument("--nats-kills", type=int, default=5, help="of the server that leads the stream")
    parser.add_argument("--handovers", type=int, default=10)
    parser.add_argument("--ingest-rounds", type=int, default=3, help="loads of each kind, of which the median counts")
    parser.add_argument("--moving-slots", type=int, default=1_000)
    parser.add_argument("--moving-points", type=int, default=50_000, help="all of them in the slots that move")
    parser.add_argument("--moving-before-seconds", type=float, default=15.0, help="of load, before the move")
    parser.add_argument("--gather-shards", type=int, default=4)
    parser.add_argument("--shard-counts", type=counts, default=(1, 2, 4, 8), help="with commas between")
    parser.add_argument("--callers", type=int, default=16)


def _parts(text: str) -> tuple[str, ...]:
    wanted = tuple(text.split(","))
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not of {', '.join(PARTS)}")
    return wanted


def run(arguments: argparse.Namespace) -> Report:
    """The parts that are wanted, in the order of the list above."""
    # Of the extra `cluster`, which the other scenarios do without.
    from bench.clusters import failures, gathering, moving, writes
    from bench.clusters.processes import LocalCluster

    on_cluster: dict[str, Callable[[Report, LocalCluster, argparse.Namespace], None]] = {
        "write": writes.durable_writes,
        "handover": failures.handover,
        "failover": failures.failover,
        "stream-leader": failures.stream_leader,
    }
    alone: dict[str, Callable[[Report, Path, Dataset, argparse.Namespace], None]] = {
        "ingest": writes.ingest,
        "moving": moving.moving,
        "gather": gathering.gather,
        "shards": gathering.shards,
    }
    wanted = [name for name in PARTS if name in arguments.parts and name not in arguments.without]
    names = [
        *("nodes", "lease_seconds", "writes", "kills", "nats_kills", "handovers", "ingest_rounds"),
        *("moving_slots", "moving_points", "gather_shards", "callers"),
    ]
    parameters = {name: getattr(arguments, name) for name in names}
    parameters["shard_counts"] = list(arguments.shard_counts)
    report, dataset = begin("cluster", arguments, parts=wanted, **parameters)
    with place(arguments.work_dir) as here:
        if any(name in REPLICATED for name in wanted):
            flags = ["--grpc-engine", arguments.grpc_engine]
            if arguments.lease_seconds is not None:
                flags += ["--lease-seconds", str(arguments.lease_seconds)]
            with LocalCluster(here.directory / "replicated", *flags, nodes_per_shard=arguments.nodes) as cluster:
                for name, measure in on_cluster.items():
                    if name in wanted:
                        measure(report, cluster, arguments)
        for name, part in alone.items():
            if name in wanted:
                part(report, here.directory, dataset, arguments)
    return report
