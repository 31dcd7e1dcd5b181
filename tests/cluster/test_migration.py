"""Moving slots between two shards with real logs: whatever fails at whatever step, everything moves, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.cluster.migration_support import SOURCE, TARGET, Cluster, Fault
from tests.store.slot_support import NONE, slots_of_names
from tests.store.support import create
from vecmem.cluster import migration
from vecmem.cluster.migration import Migration
from vecmem.cluster.migration_target import RemoteTarget
from vecmem.cluster.peers import Peers
from vecmem.cluster.v1 import migration_pb2, migration_pb2_grpc
from vecmem.errors import SlotStateError, UnavailableError
from vecmem.server.migration_servicer import MigrationServicer
from vecmem.server.serializers import adapted
from vecmem.slots import slot_of
from vecmem.store.slot_sets import SlotMask
from vecmem.store.v1 import command_pb2

NAMES = [f"p{number}" for number in range(40)]
MOVING = slots_of_names(NAMES[:20])
STEPS = ["unblock", "stage", "describe", "block", "release", "own", "moved"]
KINDS = ["source dies before", "source dies behind", "target dies before", "target dies behind", "lost", "late"]
LOG_STEPS = {"unblock", "block", "release"}
"""Of the source's own log: the target has nothing to do with them."""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A slow machine is no failure."""
    monkeypatch.setattr(migration, "BLOCKED_SECONDS_MAX", 60.0)


@contextlib.asynccontextmanager
async def cluster_in(directory: Path, fault: Fault | None = None, moving: SlotMask = MOVING) -> AsyncIterator[Cluster]:
    cluster = Cluster(directory, moving, fault or Fault("", ""))
    await cluster.begin()
    for _ in NAMES:
        await cluster.write()
    try:
        yield cluster
    finally:
        await cluster.close()


def check(cluster: Cluster) -> None:
    """Each point is where it belongs, as it was last acknowledged; nothing is blocked or left behind."""
    content = cluster.content()
    assert content[SOURCE] | content[TARGET] == cluster.acknowledged
    tables = {number: shard.state.slots for number, shard in cluster.shards.items()}
    assert not (tables[SOURCE].owned & tables[TARGET].owned).any()
    assert (tables[SOURCE].owned | tables[TARGET].owned).all()
    for number, table in tables.items():
        assert np.array_equal(table.owned, cluster.map.owners[number])
        assert table.blocked_count == 0
        assert all(table.owns(slot_of(name.encode())) for name in content[number])
        assert cluster.shards[number].state.staging.size_bytes == 0
    assert np.array_equal(tables[TARGET].owned, MOVING)


@pytest.mark.parametrize("turn", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
async def test_whatever_fails_at_whatever_step_everything_moves(tmp_path, step, kind, turn):
    """With writers going on meanwhile, in groups of a few slots each."""
    if step in LOG_STEPS and kind.startswith("target"):
        pytest.skip("this step has no such failure")
    async with cluster_in(tmp_path, Fault(step, kind, turn)) as cluster:
        await cluster.move_all(group_bytes=500)
        assert cluster.fault.done
        check(cluster)
        for number in (SOURCE, TARGET):
            await cluster.restart(number)
        check(cluster)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_fails_again_and_again_everything_moves(tmp_path, seed):
    """Every fifth step fails in one of all ways."""
    async with cluster_in(tmp_path) as cluster:
        rng = random.Random(seed)
        original = cluster.at

        async def at(step, do):
            if rng.random() < 0.2:
                kinds = [kind for kind in KINDS if step not in LOG_STEPS or not kind.startswith("target")]
                cluster.fault = Fault(step, rng.choice(kinds))
            return await original(step, do)

        cluster.at = at
        await cluster.move_all(group_bytes=700)
        check(cluster)


async def test_without_failures_each_group_is_blocked_once_and_nothing_begins_again(tmp_path):
    async with cluster_in(tmp_path) as cluster:
        migrator = await cluster.move_all(group_bytes=500)
        check(cluster)
        progress = migrator.progress[TARGET]
        assert (progress.slots_moved, progress.slots_left) == (20, 0)
        assert (progress.restarts, progress.mismatches, progress.last_error) == (0, 0, "")
        assert progress.points_copied >= 20
        groups = len(progress.blocked_ms)
        assert groups >= 3
        for step in ("block", "release", "own", "moved"):
            assert cluster.steps.count(step) == groups
        assert "drop" not in cluster.steps


async def test_no_more_is_copied_in_a_second_than_was_said(tmp_path, monkeypatch):
    """What is copied before writes are blocked is paced; what is left then is not, since writers wait for it."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        if seconds > 1.0:  # as only pacing asks for
            pauses.append(seconds)
        await sleep(min(seconds, 0.001))

    async with cluster_in(tmp_path) as cluster:
        moves = cluster.map.migrations

        async def throttled() -> list[Migration]:
            return [replace(move, bytes_per_second_max=10) for move in await moves()]

        monkeypatch.setattr(cluster.map, "migrations", throttled)
        monkeypatch.setattr(asyncio, "sleep", at_once)
        migrator = await cluster.move_all(group_bytes=500)
        monkeypatch.undo()
        check(cluster)
        progress = migrator.progress[TARGET]
        assert len(pauses) >= len(progress.blocked_ms)
        assert 0.2 * progress.bytes_copied / 10 < sum(pauses) <= progress.bytes_copied / 10


async def test_a_target_that_has_not_what_was_sent_gets_it_again_and_it_is_told(tmp_path, caplog):
    """Its digest differs: the group goes back, loudly, and moves at the second try."""
    async with cluster_in(tmp_path) as cluster:
        damaged = []

        async def damage() -> None:
            # As a fault of memory would, where no record tells of it.
            group = cluster.shards[TARGET].state.staging.groups[SOURCE]
            points = next(iter(group.points.values()))
            point_id, content = next(iter(points.items()))
            points[point_id] = content[:-1] + bytes([content[-1] ^ 1])
            damaged.append(point_id)

        original = cluster.at

        async def at(step, do):
            if step == "block" and not damaged:
                await damage()
            return await original(step, do)

        cluster.at = at
        with caplog.at_level(logging.ERROR):
            migrator = await cluster.move_all()
        assert damaged
        assert any("copied again" in record.message for record in caplog.records)
        assert migrator.progress[TARGET].mismatches == 1
        check(cluster)


async def test_collections_have_to_be_the_same_on_both_sides(tmp_path):
    """Nothing is blocked, and nothing moves, until the target has the collection."""
    async with cluster_in(tmp_path) as cluster:
        await cluster.shards[SOURCE].write(create("d"))
        migrator = cluster.migrator()
        with pytest.raises(SlotStateError, match="'d'"):
            await migrator.advance()
        assert "block" not in cluster.steps
        assert not cluster.map.owners[TARGET].any()
        await cluster.shards[TARGET].write(create("d"))
        await cluster.move_all()
        check(cluster)


async def test_a_collection_that_changes_meanwhile_begins_the_group_again(tmp_path):
    async with cluster_in(tmp_path) as cluster:
        original = cluster.at
        created = []

        async def at(step, do):
            result = await original(step, do)
            if step == "stage" and not created:
                created.append(step)
                for shard in cluster.shards.values():
                    await shard.write(create("d"))
            return result

        cluster.at = at
        migrator = await cluster.move_all()
        assert migrator.progress[TARGET].restarts == 1
        check(cluster)


async def test_a_target_that_hangs_does_not_keep_writes_blocked(tmp_path, monkeypatch):
    """The group goes back after a while, and moves at a later try, however slow the machine is."""
    monkeypatch.setattr(migration, "BLOCKED_SECONDS_MAX", 0.3)
    async with cluster_in(tmp_path) as cluster:
        cluster.hangs = "describe"
        migrator = await cluster.move_all()
        assert not cluster.hangs
        assert migrator.progress[TARGET].restarts >= 1
        assert cluster.steps.count("drop") >= 1
        check(cluster)


async def test_a_value_larger_than_a_record_moves(tmp_path):
    """In parts, beside everything else of its slot."""
    moving = slots_of_names(["big"])
    async with cluster_in(tmp_path, moving=moving) as cluster:
        large = bytes(range(256)) * 40_000
        command = command_pb2.Command()
        operation = command.run_operations.operations.add()
        operation.set_string.key, operation.set_string.value = b"big", large
        await cluster.shards[SOURCE].write(command)
        await cluster.move_all()
        assert cluster.steps.count("stage") >= 10
        assert cluster.shards[TARGET].state.keyspace.string(b"big", 1) == large
        assert b"big" not in cluster.shards[SOURCE].state.keyspace.values


async def test_what_was_left_blocked_takes_writes_again_though_nothing_is_to_move(tmp_path):
    """The primary died between BLOCK and RELEASE, and somebody took the migration back."""
    async with cluster_in(tmp_path, Fault("block", "source dies behind")) as cluster:
        with contextlib.suppress(Exception):
            await cluster.migrator().advance()
        assert cluster.shards[SOURCE].state.slots.blocked_count
        await cluster.restart(SOURCE)
        cluster.map.moving &= NONE
        assert not await cluster.migrator().advance()
        assert cluster.shards[SOURCE].state.slots.blocked_count == 0


class Time:
    """Passes when somebody sleeps; every slice brings a call, up to a moment."""

    def __init__(self, calls_until: float) -> None:
        self.now = 0.0
        self.calls_until = calls_until

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def calls_count(self) -> int:
        return int(min(self.now, self.calls_until) * 1e6)


@pytest.mark.parametrize(
    ("seconds", "calls_until", "rested_seconds"),
    [(2.0, 100.0, 2.0), (2.0, 0.0, migration.REST_SLICE_SECONDS), (1_000.0, 1_000.0, migration.REST_SECONDS_MAX)],
    ids=["calls all the time", "no calls", "a group that took very long"],
)
async def test_a_move_rests_while_calls_come(tmp_path, monkeypatch, seconds, calls_until, rested_seconds):
    time = Time(calls_until)
    async with cluster_in(tmp_path) as cluster:
        migrator = cluster.migrator(calls_count=time.calls_count)
        with monkeypatch.context() as patched:
            patched.setattr(migration, "time", time)
            patched.setattr(migration, "asyncio", time)
            await migrator._rest(seconds)
    assert time.now == pytest.approx(rested_seconds)


@pytest.mark.parametrize("bytes_per_second_max", [0, 10**9])
async def test_a_move_at_a_pace_of_its_own_does_not_rest(tmp_path, monkeypatch, bytes_per_second_max):
    async with cluster_in(tmp_path) as cluster:
        rested = []

        async def rest(self: migration.Migrator, seconds: float) -> None:
            rested.append(seconds)

        monkeypatch.setattr(migration.Migrator, "_rest", rest)
        cluster.map.bytes_per_second_max = bytes_per_second_max
        migrator = cluster.migrator(group_bytes=1)
        running = asyncio.create_task(migrator.run())
        while cluster.map.moving.any():  # noqa: ASYNC110 - the map tells nobody
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        check(cluster)
        assert len(rested) >= (0 if bytes_per_second_max else 19)
        assert not (bytes_per_second_max and rested)


async def test_over_the_wire_errors_are_what_they_are_on_the_other_side(tmp_path):
    """The source calls the target's service: everything moves, a refusal keeps its reason, and who is not there is unavailable."""
    async with cluster_in(tmp_path) as cluster:
        server = grpc.aio.server()
        servicer = MigrationServicer(cluster.shards[TARGET])
        migration_pb2_grpc.add_MigrationServiceServicer_to_server(servicer, adapted(server))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with contextlib.AsyncExitStack() as stack:
            peers = Peers()
            stack.push_async_callback(peers.close)
            stack.push_async_callback(server.stop, 0)
            cluster.remote = RemoteTarget(peers, f"127.0.0.1:{port}")
            unknown = migration_pb2.DescribeSlotsRequest(source_shard=SOURCE, attempt=77)
            with pytest.raises(SlotStateError, match="77"):
                await cluster.remote.describe(unknown)
            old = migration_pb2.StageSlotsRequest()
            old.part.number = 3
            with pytest.raises(SlotStateError):
                await cluster.remote.stage(old)
            await cluster.remote.drop(migration_pb2.DropStagedRequest(source_shard=7, attempt=1))
            await cluster.move_all(group_bytes=500)
            check(cluster)
            await server.stop(0)
            with pytest.raises(UnavailableError):
                await cluster.remote.describe(unknown)
