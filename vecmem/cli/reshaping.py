"""Commands that change how a cluster is laid out: shards come and go, slots move between them while both serve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import click

from vecmem.cli.session import Grid, Session, grid, with_session
from vecmem.cli.status import migration_document, migrations_table
from vecmem_client import Client, Migration, RebalancePlan, SlotRange

POLL_SECONDS: Final = 0.2
SLOT_LAST: Final = 16_383

_rate = click.option(
    "--bytes-per-second-max",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="What each migration may copy, whatever else goes on; 0: as fast as leaves room for calls.",
)
_wait = click.option("--wait", is_flag=True, help="Return when the slots have moved, with a progress bar meanwhile.")
_epoch = click.option(
    "--expected-epoch",
    type=click.IntRange(min=0),
    default=0,
    help="Only if the cluster is as it was shown with this epoch; 0: whatever it is.",
)


@click.command("add-shard")
@_epoch
@with_session
def add_shard(session: Session, *, expected_epoch: int) -> None:
    """Make a new shard without slots. Start nodes for it with --shard, then `rebalance`."""
    with session.client() as client:
        number = client.add_shard(expected_epoch=expected_epoch)
    session.write({"shard": number}, f"there is a shard {number} now: start its nodes with --shard {number}")


@click.command("remove-shard")
@click.argument("shard", type=click.IntRange(min=0))
@_epoch
@with_session
def remove_shard(session: Session, *, shard: int, expected_epoch: int) -> None:
    """Take out a shard that has no slots any more (`rebalance --leaving SHARD`). Its nodes may be ended afterwards."""
    with session.client() as client:
        client.remove_shard(shard, expected_epoch=expected_epoch)
    session.write({"shard": shard}, f"shard {shard} is out of the cluster: its nodes may be ended")


@click.command("move-slots")
@click.argument("source", type=click.IntRange(min=0))
@click.argument("target", type=click.IntRange(min=0))
@click.argument("slots", nargs=-1, required=True, metavar="SLOTS...")
@_rate
@_wait
@_epoch
@with_session
def move_slots(
    session: Session,
    *,
    source: int,
    target: int,
    slots: Sequence[str],
    bytes_per_second_max: int,
    wait: bool,
    expected_epoch: int,
) -> None:
    """Move slots from one shard to another while both serve. SLOTS are numbers and ranges, rising: 7 100-199."""
    ranges = [_range(text) for text in slots]
    count = sum(one.slot_count for one in ranges)
    with session.client() as client:
        client.move_slots(
            source, target, ranges, bytes_per_second_max=bytes_per_second_max, expected_epoch=expected_epoch
        )
        if wait:
            _follow(session, client, [Migration(source, target, ranges, count, bytes_per_second_max)])
    said = "have moved" if wait else "are on their way; `vecmem cluster status` tells how far they have come"
    session.write({"source": source, "target": target, "slot_count": count}, f"{count:,} slots {said}")


@click.command()
@click.option("--source", type=click.IntRange(min=0), help="Only migrations from this shard.")
@_epoch
@with_session
def cancel(session: Session, *, source: int | None, expected_epoch: int) -> None:
    """End migrations. Slots that have moved stay where they are."""
    with session.client() as client:
        count = client.cancel_migrations(source, expected_epoch=expected_epoch)
    session.write({"slot_count": count}, f"{count:,} slots stay where they are")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be moved.")
@click.option(
    "--leaving",
    "leaving_shards",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="SHARD",
    help="A shard that is to have no slots, so that it can be removed; may be given several times.",
)
@_rate
@_wait
@_epoch
@with_session
def rebalance(
    session: Session,
    *,
    dry_run: bool,
    leaving_shards: Sequence[int],
    bytes_per_second_max: int,
    wait: bool,
    expected_epoch: int,
) -> None:
    """Share the slots so that all shards hold about as much, and show the plan."""
    if dry_run and wait:
        raise click.UsageError("a dry run moves nothing to wait for: give one of --dry-run and --wait")
    with session.client() as client:
        plan = client.rebalance(
            dry_run=dry_run,
            leaving_shards=leaving_shards,
            bytes_per_second_max=bytes_per_second_max,
            expected_epoch=expected_epoch,
        )
        if not session.as_json:
            session.write(None, *_plan_tables(plan, dry_run=dry_run))
        if wait:
            _follow(session, client, plan.migrations)
    if session.as_json:
        session.write(_plan_document(plan))
    elif wait and plan.migrations:
        session.note("all of it has moved")


def _follow(session: Session, client: Client, begun: Sequence[Migration]) -> None:
    """Return when nothing of what was begun is on its way any more."""
    total = sum(migration.total_slot_count for migration in begun)
    with session.progress_bar() as bar:
        task = bar.add_task("moving slots", total=total)
        while True:
            found = client.topology().migrations
            left = sum(migration.left_slot_count for migration in found if any(_is_of(migration, one) for one in begun))
            bar.update(task, completed=max(0, total - left))
            if not left:
                return
            time.sleep(POLL_SECONDS)


def _is_of(found: Migration, begun: Migration) -> bool:
    return (found.source, found.target) == (begun.source, begun.target)


def _range(text: str) -> SlotRange:
    first, dash, last = text.partition("-")
    try:
        found = SlotRange(int(first), int(last if dash else first))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no slot, and no range as 100-199") from None
    if not 0 <= found.first <= found.last <= SLOT_LAST:
        raise click.BadParameter(f"{text!r} is not within 0 to {SLOT_LAST}, rising")
    return found


def _plan_tables(plan: RebalancePlan, *, dry_run: bool) -> list[Any]:
    before, after = plan.bytes_before, plan.bytes_after
    shards: Grid = grid(
        {"shard": True, "bytes now": True, "bytes afterwards": True},
        [[number, before.get(number, 0), after.get(number, 0)] for number in sorted(before.keys() | after.keys())],
    )
    if not plan.migrations:
        return [shards, "nothing has to move"]
    said = "would move" if dry_run else "move"
    count = sum(migration.total_slot_count for migration in plan.migrations)
    return [migrations_table(plan.migrations), shards, f"{count:,} slots {said}"]


def _plan_document(plan: RebalancePlan) -> dict[str, Any]:
    return {
        "migrations": [migration_document(migration) for migration in plan.migrations],
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "epoch": plan.epoch,
    }
