"""`vecmem cluster`: a cluster for trying on one machine, and a look at a real one."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import click
from rich.live import Live
from rich.text import Text

from vecmem.cli.nats_config import nats_config
from vecmem.cli.session import Grid, Session, grid, plain, with_session
from vecmem.errors import UnavailableError
from vecmem_client import Client, RetryPolicy, VecmemClientError

WATCH_SECONDS: Final = 1.0
STOP_SECONDS_MAX: Final = 60.0
STATUS_SECONDS_MAX: Final = 2.0


@click.group()
def cluster() -> None:
    """Several nodes that hold the same data; one of them leads."""


@cluster.command()
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True, help="vecmem nodes.")
@click.option(
    "--nats-servers",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="NATS servers; each has the whole log.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("vecmem-cluster"),
    show_default=True,
    help="Where all of it is kept.",
)
@with_session
def dev(session: Session, *, nodes: int, nats_servers: int, directory: Path) -> None:
    """Run a whole cluster on this machine until SIGTERM or SIGINT, to try it out.

    With --json the one line on standard output says when and where it serves: {"event": "ready", "nodes": [{"address": "...", "pid": 1}],
    "nats": ["nats://..."]}
    """
    from vecmem.cluster.nats_server import NatsServers, plan_servers

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(NatsServers(plan_servers(directory / "nats", count=nats_servers)))
        started = [
            stack.enter_context(_node(directory / f"node-{number}", servers.urls, servers.monitoring_urls))
            for number in range(1, nodes + 1)
        ]
        ready = {"event": "ready", "nodes": started, "nats": servers.urls}
        addresses = ",".join(node["address"] for node in started)
        human = f"a cluster of {nodes} nodes and {nats_servers} NATS servers in {directory}; try: vecmem --address {addresses} info"
        click.echo(json.dumps(ready) if session.as_json else human)
        sys.stdout.flush()
        stop.wait()


@contextlib.contextmanager
def _node(directory: Path, nats_urls: Sequence[str], monitoring_urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A node in a process of its own; what it said when it was ready."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("vecmem")), "--json", "serve", "--listen", "127.0.0.1:0"]
    command += ["--data-dir", str(directory / "data"), "--node", directory.name, "--cluster", ",".join(nats_urls)]
    command += ["--cluster-monitoring", ",".join(monitoring_urls), "--log-replicas", str(len(nats_urls))]
    with (directory / "stderr").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, process_group=0)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UnavailableError(f"a node did not start; {directory / 'stderr'} says why")
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@cluster.command()
@click.option(
    "--watch", is_flag=True, help="Show it again every second, in place, until interrupted; with --json a line each."
)
@with_session
def status(session: Session, *, watch: bool) -> None:
    """Show the nodes of --address (several stand with commas between): who leads, and how far each has come."""
    addresses = session.address.split(",")
    if not watch:
        found = _status_of_all(addresses)
        session.write(found, _status_table(found))
    elif session.as_json or not sys.stdout.isatty():
        for found in _every_second(addresses):
            session.write(found, _status_table(found))
            sys.stdout.flush()
    else:
        with Live(Text("asking"), auto_refresh=False, vertical_overflow="visible") as display:
            for found in _every_second(addresses):
                display.update(_status_table(found), refresh=True)


def _every_second(addresses: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """What the nodes tell, once a second; where they take longer to answer, as often as they do."""
    due_at = time.monotonic()
    while True:
        yield _status_of_all(addresses)
        due_at = max(due_at + WATCH_SECONDS, time.monotonic())
        time.sleep(due_at - time.monotonic())


def _status_of_all(addresses: Sequence[str]) -> list[dict[str, Any]]:
    """Asks all at once, so that the time which a dead node takes is not added to that of the others."""
    with ThreadPoolExecutor(len(addresses)) as threads:
        return list(threads.map(_status_of, addresses))


def _status_table(found: Sequence[dict[str, Any]]) -> Grid:
    headings = {
        "address": False,
        "node": False,
        "leads": False,
        "sequence": True,
        "lag": True,
        "lease age ms": True,
        "error": False,
    }
    return grid(headings, [list(each.values()) for each in found])


def _status_of(address: str) -> dict[str, Any]:
    status: dict[str, Any] = dict.fromkeys(("address", "node", "leads", "sequence", "lag", "lease_age_ms", "error"), "")
    status["address"] = address
    try:
        with Client(address, retry=RetryPolicy(attempts_max=1), timeout_seconds=STATUS_SECONDS_MAX) as client:
            info = client.server_info()
    except VecmemClientError as error:
        return status | {"error": error.message}
    status["sequence"] = info.log_last_sequence
    if info.member is None:
        return status | {"error": "is alone, and in no cluster"}
    member = plain(info.member)
    return status | {name: member[name] for name in ("node", "leads", "lag", "lease_age_ms")}


cluster.add_command(nats_config)


@cluster.command()
@with_session
def handover(session: Session) -> None:
    """Have the node that leads give that up; another one takes over within a moment."""
    with session.client() as client:
        began = time.monotonic()
        client.hand_over()
        took_ms = (time.monotonic() - began) * 1e3
    session.write({"took_ms": took_ms}, f"handed over in {took_ms:.0f} ms")
