"""Two shards with real logs, a slot map in memory, and faults at every step of a move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.store.slot_support import ALL, NONE
from tests.store.support import DIMENSION, create, dump, settings_for
from vecmem.clock import ManualClock
from vecmem.cluster.migration import Migration, Migrator
from vecmem.cluster.migration_target import MigrationTarget, ShardTarget
from vecmem.cluster.v1 import migration_pb2
from vecmem.errors import MovedError, SlotMovingError, UnavailableError, VecmemError
from vecmem.slots import slot_of
from vecmem.store.recovery import recover
from vecmem.store.shard import Shard
from vecmem.store.slot_sets import SlotMask, ranges_of
from vecmem.store.v1 import command_pb2

SOURCE, TARGET = 0, 1


class SourceDiedError(Exception):
    """The source is killed here."""


class Map:
    """A slot map in memory."""

    def __init__(self, moving: SlotMask) -> None:
        self.moving = moving.copy()
        self.owners = {SOURCE: ALL.copy(), TARGET: NONE.copy()}
        self.bytes_per_second_max = 0

    async def migrations(self) -> list[Migration]:
        migration = Migration(SOURCE, TARGET, self.moving.copy(), self.bytes_per_second_max)
        return [migration] if self.moving.any() else []

    async def slots_of(self, shard: int) -> SlotMask:
        return self.owners[shard].copy()

    async def moved(self, slots: SlotMask, source: int, target: int) -> None:
        assert not (slots & ~self.owners[source] & ~self.owners[target]).any()
        self.owners[source] &= ~slots
        self.owners[target] |= slots
        self.moving &= ~slots


@dataclass
class Fault:
    """What happens at the `turn`-th time that a step comes: before it is done, or behind it."""

    step: str
    kind: str
    turn: int = 0
    done: bool = False
    seen: int = 0


@dataclass
class Cluster:
    """A source and a target. `write` is what a router does."""

    directory: Path
    moving: SlotMask
    fault: Fault = field(default_factory=lambda: Fault("", ""))
    shards: dict[int, Shard] = field(default_factory=dict)
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    blocked_count: int = 0
    written_count: int = 0
    steps: list[str] = field(default_factory=list)
    writing: set[asyncio.Task[None]] = field(default_factory=set)
    remote: MigrationTarget | None = None
    hangs: str = ""
    """A step that does not end, once, while writes are blocked."""

    async def begin(self) -> None:
        self.map = Map(self.moving)
        for number, owned in ((SOURCE, ALL), (TARGET, NONE)):
            shard = self.open(number)
            initial = command_pb2.Command()
            initial.set_slots.change = command_pb2.SLOT_CHANGE_INITIAL
            initial.set_slots.slots.extend(ranges_of(owned))
            await shard.write(initial)
            await shard.write(create("c", flat=True))

    def open(self, number: int) -> Shard:
        data_dir = self.directory / str(number)
        shard = Shard(recover(data_dir), settings_for(data_dir), ManualClock())
        self.shards[number] = shard
        if number == SOURCE:
            write = shard.write

            async def faulty(command: command_pb2.Command, observer: Any = None) -> command_pb2.CommandResult:
                if command.set_slots.change in (0, command_pb2.SLOT_CHANGE_INITIAL):
                    return await write(command, observer)
                step = command_pb2.SlotChange.Name(command.set_slots.change).removeprefix("SLOT_CHANGE_").lower()
                result: command_pb2.CommandResult = await self.at(step, lambda: write(command, observer))
                return result

            shard.write = faulty  # type: ignore[method-assign]
        return shard

    async def restart(self, number: int) -> None:
        """As after a crash: without a checkpoint, from what is in the log."""
        await asyncio.gather(*self.writing)
        await self.shards[number].close()
        self.open(number)

    async def close(self) -> None:
        for shard in self.shards.values():
            await shard.close()

    async def at(self, step: str, do: Callable[[], Any]) -> Any:
        """Do a step, with a write before and behind it, and the fault if it is the one."""
        self.steps.append(step)
        if self.hangs == step and "block" in self.steps:
            self.hangs = ""
            await asyncio.sleep(3600)
        fault = self.fault
        meant = fault.step == step and not fault.done
        if meant:
            fault.seen += 1
            meant = fault.done = fault.seen > fault.turn
        await self.write_apart()
        if meant and fault.kind == "source dies before":
            raise SourceDiedError
        if meant and fault.kind == "target dies before":
            await self.restart(TARGET)
            raise UnavailableError("gone")
        if meant and fault.kind == "lost":
            raise UnavailableError("lost")
        result = await do()
        await self.write_apart()
        if meant and fault.kind == "source dies behind":
            raise SourceDiedError
        if meant and fault.kind == "target dies behind":
            await self.restart(TARGET)
            raise UnavailableError("gone")
        if meant and fault.kind == "late":
            raise UnavailableError("nobody knows")
        return result

    async def write_apart(self) -> None:
        """As a caller of its own, who waits for the answer even where the migrator does not."""
        task = asyncio.create_task(self.write())
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)
        await asyncio.shield(task)

    async def write(self) -> None:
        """Write one of the points, wherever it is; nobody has it while it moves."""
        point_id = f"p{self.written_count % 40}"
        content = b'{"n":%d}' % self.written_count
        self.written_count += 1
        number = SOURCE if self.map.owners[SOURCE][slot_of(point_id.encode())] else TARGET
        for _ in range(2):
            shard = self.shards[number]
            command = command_pb2.Command(request_id=f"w{self.written_count}", request_fingerprint=1)
            command.upsert_points.collection_uid = shard.state.collections["c"].uid
            command.upsert_points.points.add(id=point_id, payload_json=content)
            rows = np.full((1, DIMENSION), self.written_count, dtype="<f4")
            command.upsert_points.vectors.add(rows=rows.tobytes())
            try:
                await shard.write(command)
            except MovedError as error:
                number = int(error.metadata.get("shard", number))
            except SlotMovingError:
                self.blocked_count += 1
                return
            else:
                self.acknowledged[point_id] = content
                return

    def target(self) -> MigrationTarget:
        """What the source calls."""
        return self.remote or ShardTarget(self.shards[TARGET])

    def migrator(self, **more: Any) -> Migrator:
        cluster = self

        class Target:
            async def stage(self, request: migration_pb2.StageSlotsRequest) -> None:
                await cluster.at("stage", lambda: cluster.target().stage(request))

            async def own(self, request: migration_pb2.OwnSlotsRequest) -> None:
                await cluster.at("own", lambda: cluster.target().own(request))

            async def drop(self, request: migration_pb2.DropStagedRequest) -> None:
                await cluster.at("drop", lambda: cluster.target().drop(request))

            async def describe(
                self, request: migration_pb2.DescribeSlotsRequest
            ) -> migration_pb2.DescribeSlotsResponse:
                told: migration_pb2.DescribeSlotsResponse = await cluster.at(
                    "describe", lambda: cluster.target().describe(request)
                )
                return told

        class FaultyMap:
            async def migrations(self) -> list[Migration]:
                return await cluster.map.migrations()

            async def slots_of(self, shard: int) -> SlotMask:
                return await cluster.map.slots_of(shard)

            async def moved(self, slots: SlotMask, source: int, target: int) -> None:
                await cluster.at("moved", lambda: cluster.map.moved(slots, source, target))

        async def call_shard(shard: int) -> Target:
            assert shard == TARGET
            return Target()

        return Migrator(self.shards[SOURCE], SOURCE, FaultyMap(), call_shard, **more)

    async def move_all(self, **more: Any) -> Migrator:
        """Go on through all faults until everything has moved."""
        migrator = self.migrator(**more)
        for _ in range(200):
            try:
                if not await migrator.advance() and not self.map.moving.any():
                    await asyncio.gather(*self.writing)
                    return migrator
            except SourceDiedError:
                await self.restart(SOURCE)
                migrator = self.migrator(**more)
            except VecmemError:
                pass
        raise AssertionError("it does not come to its end")

    def content(self) -> dict[int, dict[str, bytes]]:
        """The payloads of all points, by shard."""
        return {
            number: {
                point_id: payload
                for point_id, (_, payload, _, _) in dump(shard.state)["collections"]["c"]["points"].items()
            }
            for number, shard in self.shards.items()
        }
