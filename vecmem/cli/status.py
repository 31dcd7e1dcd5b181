"""`vecmem cluster status`: how a cluster is laid out and how it fares, as the first address that answers tells it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from vecmem.cli.session import Grid, Session, facts, grid, plain, with_session
from vecmem_client import Client, ClusterTopology, Migration, RetryPolicy, ShardInfo, SlotRange, VecmemClientError

WATCH_SECONDS: Final = 1.0
STATUS_SECONDS_MAX: Final = 2.0
ALONE: Final = "is alone, and in no cluster"
NOBODY: Final = "nobody"
RANGES_SHOWN_MAX: Final = 3


@dataclass(frozen=True)
class Status:
    """What the addresses have told."""

    topology: ClusterTopology | None
    """The newest one; None: no node of a cluster has answered."""
    errors: dict[str, str]
    """By address, of those that did not answer or have nothing to tell."""

    def document(self) -> dict[str, Any]:
        """For programs."""
        found = self.topology
        document: dict[str, Any] = {"cluster": None, "epoch": 0, "shards": [], "migrations": []}
        if found is not None:
            document = {
                "cluster": found.cluster,
                "epoch": found.epoch,
                "shards": [_shard_document(shard) for shard in found.shards],
                "migrations": [migration_document(migration) for migration in found.migrations],
            }
        return document | {"errors": self.errors}

    def tables(self) -> list[RenderableType]:
        """For people."""
        tables: list[RenderableType] = []
        if self.topology is not None:
            tables += [
                facts({"cluster": self.topology.cluster, "epoch": self.topology.epoch}),
                _nodes_table(self.topology),
            ]
            if self.topology.migrations:
                tables.append(migrations_table(self.topology.migrations))
        if self.errors:
            tables.append(grid({"address": False, "error": False}, self.errors.items()))
        return tables


@click.command()
@click.option(
    "--watch", is_flag=True, help="Show it again every second, in place, until interrupted; with --json a line each."
)
@with_session
def status(session: Session, *, watch: bool) -> None:
    """Show the shards of a cluster with their slots and nodes, who leads, how far each has come, and what is on its way.

    Any node of --address tells that for all (several stand with commas between); those that do not answer are listed.
    """
    addresses = list(dict.fromkeys(session.address.split(",")))
    if not watch:
        found = _ask(addresses)
        session.write(found.document(), *found.tables())
    elif session.as_json or not sys.stdout.isatty():
        for found in _every_second(addresses):
            session.write(found.document(), *found.tables())
            sys.stdout.flush()
    else:
        with Live(Text("asking"), auto_refresh=False, vertical_overflow="visible") as display:
            for found in _every_second(addresses):
                display.update(Group(*found.tables()), refresh=True)


def shown_slots(slots: Sequence[SlotRange]) -> str:
    """Ranges for people; where they are many only the first ones."""
    shown = [f"{one.first}-{one.last}" if one.first < one.last else str(one.first) for one in slots]
    further = [f"and {len(shown) - RANGES_SHOWN_MAX} more"] if len(shown) > RANGES_SHOWN_MAX else []
    return " ".join(shown[:RANGES_SHOWN_MAX] + further)


def migrations_table(migrations: Sequence[Migration]) -> Grid:
    """What is on its way, or would be, and how far it has come."""
    headings = {"from": True, "to": True, "left": True, "of": True, "done": True, "slots": False}
    rows = [
        [
            migration.source,
            migration.target,
            migration.left_slot_count,
            migration.total_slot_count,
            f"{100 * (1 - migration.left_slot_count / max(1, migration.total_slot_count)):.0f} %",
            shown_slots(migration.slots),
        ]
        for migration in migrations
    ]
    return grid(headings, rows)


def migration_document(migration: Migration) -> dict[str, Any]:
    """The same for programs."""
    document: dict[str, Any] = plain(migration)
    return document | {"left_slot_count": migration.left_slot_count}


def _shard_document(shard: ShardInfo) -> dict[str, Any]:
    document: dict[str, Any] = plain(shard)
    primary = shard.primary.name if shard.primary is not None else None
    return document | {"slot_count": shard.slot_count, "primary": primary}


def _nodes_table(topology: ClusterTopology) -> Grid:
    headings = {
        "shard": True,
        "slots": True,
        "node": False,
        "role": False,
        "position": True,
        "lag": True,
        "lease age ms": True,
        "items": True,
        "bytes": True,
        "address": False,
    }
    rows: list[list[object]] = []
    for shard in topology.shards:
        start = [shard.number, shard.slot_count]
        rows += [
            [
                *start,
                node.name,
                "primary" if node.leads else "replica",
                node.sequence,
                node.lag,
                round(node.lease_age_ms),
                node.item_count,
                node.data_memory_bytes,
                node.address,
            ]
            for node in sorted(shard.nodes, key=lambda node: not node.leads)
        ]
        if shard.primary is None:
            rows.append([*start, NOBODY, "primary", None, None, None, None, None, ""])
    return grid(headings, rows)


def _every_second(addresses: Sequence[str]) -> Iterator[Status]:
    """What the nodes tell, once a second; where they take longer to answer, as often as they do."""
    due_at = time.monotonic()
    while True:
        yield _ask(addresses)
        due_at = max(due_at + WATCH_SECONDS, time.monotonic())
        time.sleep(due_at - time.monotonic())


def _ask(addresses: Sequence[str]) -> Status:
    """Asks all at once, so that the time which a dead node takes is not added to that of the others."""
    with ThreadPoolExecutor(len(addresses)) as threads:
        answers = list(threads.map(_topology_at, addresses))
    errors = {address: answer for address, answer in zip(addresses, answers, strict=True) if isinstance(answer, str)}
    known = [answer for answer in answers if isinstance(answer, ClusterTopology)]
    newest = max(known, key=lambda topology: (topology.epoch, _heard_of(topology)), default=None)
    return Status(newest, errors)


def _heard_of(topology: ClusterTopology) -> int:
    return sum(node.sequence for shard in topology.shards for node in shard.nodes)


def _topology_at(address: str) -> ClusterTopology | str:
    """What one node tells, or why it does not."""
    try:
        with Client(address, retry=RetryPolicy(attempts_max=1), timeout_seconds=STATUS_SECONDS_MAX) as client:
            topology = client.topology()
    except VecmemClientError as error:
        return error.message
    return topology if topology.cluster else ALONE
