"""`vecmem cluster`: a cluster for trying on one machine, a look at a real one, and what changes how it is laid out."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

import click

from vecmem.cli.local_nodes import local_nodes
from vecmem.cli.nats_config import nats_config
from vecmem.cli.reshaping import add_shard, cancel, move_slots, rebalance, remove_shard
from vecmem.cli.session import Session, with_session
from vecmem.cli.status import status

DEV_SHARDS_MAX: Final = 64


@click.group()
def cluster() -> None:
    """Several nodes: shards with a part of the hash slots each, and in each shard one node that leads and others that follow."""


@cluster.command()
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="NATS servers; each has the log of every shard.",
)
@click.option(
    "--shards",
    type=click.IntRange(min=1, max=DEV_SHARDS_MAX),
    default=1,
    show_default=True,
    help="Parts that the data has.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="vecmem nodes of each shard beside the one that leads.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("vecmem-cluster"),
    show_default=True,
    help="Where all of it is kept.",
)
@with_session
def dev(session: Session, *, nodes: int, shards: int, replicas: int, directory: Path) -> None:
    """Run a whole cluster on this machine until SIGTERM or SIGINT, to try it out.

    With --json the one line on standard output says when and where it serves: {"event": "ready", "nodes": [{"address": "...", "pid": 1,
    "node": "shard-0-node-0", "shard": 0}], "nats": ["nats://..."]}
    """
    from vecmem.cluster.nats_server import NatsServers, plan_servers

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    members = [(f"shard-{shard}-node-{number}", shard) for shard in range(shards) for number in range(replicas + 1)]
    with NatsServers(plan_servers(directory / "nats", count=nodes)) as servers:
        shared = ["--listen", "127.0.0.1:0", "--cluster", ",".join(servers.urls), "--log-replicas", str(nodes)]
        shared += ["--cluster-monitoring", ",".join(servers.monitoring_urls), "--shards", str(shards)]
        commands = [
            (
                directory / name / "stderr",
                [*shared, "--data-dir", str(directory / name / "data"), "--node", name, "--shard", str(shard)],
            )
            for name, shard in members
        ]
        with local_nodes(commands) as started:
            told = [
                node.ready | {"node": name, "shard": shard}
                for node, (name, shard) in zip(started, members, strict=True)
            ]
            addresses = ",".join(node.address for node in started)
            human = (
                f"a cluster of {shards} shards, {len(members)} nodes and {nodes} NATS servers in {directory};"
                f" try: vecmem --address {addresses} cluster status"
            )
            ready = {"event": "ready", "nodes": told, "nats": servers.urls}
            click.echo(json.dumps(ready) if session.as_json else human)
            sys.stdout.flush()
            stop.wait()


@cluster.command()
@with_session
def handover(session: Session) -> None:
    """Have the node that leads give that up; another one takes over within a moment.

    Where there are several shards, name that node by --address.
    """
    with session.client() as client:
        began = time.monotonic()
        client.hand_over()
        took_ms = (time.monotonic() - began) * 1e3
    session.write({"took_ms": took_ms}, f"handed over in {took_ms:.0f} ms")


for command in (status, nats_config, add_shard, remove_shard, move_slots, cancel, rebalance):
    cluster.add_command(command)
