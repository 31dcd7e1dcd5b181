"""The shard that gets slots: what its primary does for the source's, and how the source reaches it.

`MigrationTarget` is the protocol between the two. `ShardTarget` is the target itself; `RemoteTarget` calls it on another node.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from vecmem.cluster.peers import Peers
from vecmem.cluster.v1 import migration_pb2
from vecmem.errors import DeadlineExceededError, SlotStateError, UnavailableError, VecmemError
from vecmem.store.collection import Steps
from vecmem.store.shard import Shard
from vecmem.store.slot_sets import mask_of_ranges, shown
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2

CALL_SECONDS_MAX: Final = 10.0
"""How long a call to the target may take; the source sets shorter limits where writes are blocked."""


class MigrationTarget(Protocol):
    """Methods as in MigrationService. All raise UnavailableError where it is not known whether it was done, SlotStateError."""

    async def stage(self, request: migration_pb2.StageSlotsRequest) -> None:
        """Put a part aside."""

    async def own(self, request: migration_pb2.OwnSlotsRequest) -> None:
        """Take slots over."""

    async def drop(self, request: migration_pb2.DropStagedRequest) -> None:
        """Drop what was put aside."""

    async def describe(self, request: migration_pb2.DescribeSlotsRequest) -> migration_pb2.DescribeSlotsResponse:
        """Tell what was put aside."""


class ShardTarget:
    """The shard of this node as a target."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def stage(self, request: migration_pb2.StageSlotsRequest) -> None:
        """See MigrationTarget."""
        command = command_pb2.Command()
        command.stage_slots.CopyFrom(request.part)
        await self._shard.write(command)

    async def own(self, request: migration_pb2.OwnSlotsRequest) -> None:
        """See MigrationTarget."""
        table = self._shard.state.slots
        release = request.release
        repeated = table is not None and bool(table.owned[mask_of_ranges(release.slots)].all())
        differing = [] if repeated else differing_collections(self._shard.state, request.collections)
        if differing:
            raise SlotStateError(
                f"collections are not defined here as at the source: {', '.join(map(repr, differing[:8]))}"
            )
        command = command_pb2.Command()
        command.set_slots.change = command_pb2.SLOT_CHANGE_OWN
        command.set_slots.slots.extend(release.slots)
        command.set_slots.peer_shard = request.source_shard
        command.set_slots.attempt = release.attempt
        command.set_slots.version_floor = release.version_floor
        command.set_slots.keyspace_version_floor = release.keyspace_version_floor
        command.set_slots.digest = release.digest
        await self._shard.write(command)

    async def drop(self, request: migration_pb2.DropStagedRequest) -> None:
        """See MigrationTarget."""
        command = command_pb2.Command()
        command.set_slots.change = command_pb2.SLOT_CHANGE_DROP_STAGED
        command.set_slots.peer_shard = request.source_shard
        command.set_slots.attempt = request.attempt
        await self._shard.write(command)

    async def describe(self, request: migration_pb2.DescribeSlotsRequest) -> migration_pb2.DescribeSlotsResponse:
        """See MigrationTarget."""
        await self._shard.settled()
        state = self._shard.state
        slots = mask_of_ranges(request.slots)
        group = state.staging.staged(request.source_shard, request.attempt, slots)
        if group is None:
            raise SlotStateError(f"nothing of slots {shown(slots)} was put aside by attempt {request.attempt}")
        digest = await in_slices(group.digest(state.name_of))
        return migration_pb2.DescribeSlotsResponse(
            digest=digest, differing_collections=differing_collections(state, request.collections)
        )


class RemoteTarget:
    """The primary of another shard as a target."""

    def __init__(self, peers: Peers, address: str) -> None:
        self._peers = peers
        self._address = address

    async def stage(self, request: migration_pb2.StageSlotsRequest) -> None:
        """See MigrationTarget."""
        await self._call("StageSlots", request)

    async def own(self, request: migration_pb2.OwnSlotsRequest) -> None:
        """See MigrationTarget."""
        await self._call("OwnSlots", request)

    async def drop(self, request: migration_pb2.DropStagedRequest) -> None:
        """See MigrationTarget."""
        await self._call("DropStaged", request)

    async def describe(self, request: migration_pb2.DescribeSlotsRequest) -> migration_pb2.DescribeSlotsResponse:
        """See MigrationTarget."""
        return migration_pb2.DescribeSlotsResponse.FromString(await self._call("DescribeSlots", request))

    async def measure(self) -> Sequence[int]:
        """About what each slot takes there, bytes; shape (SLOTS,)."""
        reply = await self._call("MeasureSlots", migration_pb2.MeasureSlotsRequest())
        return migration_pb2.MeasureSlotsResponse.FromString(reply).slot_bytes

    async def _call(self, method: str, request: Message) -> bytes:
        path = f"/vecmem.cluster.v1.MigrationService/{method}"
        content = request.SerializeToString()
        try:
            return await self._peers.call(self._address, path, content, timeout_seconds=CALL_SECONDS_MAX, metadata=())
        except VecmemError as error:
            error.message = f"the shard at {self._address}: {error.message}"
            if isinstance(error, DeadlineExceededError) or type(error) is VecmemError:
                raise UnavailableError(error.message) from error  # nobody knows whether it did anything
            raise


def definitions(state: StateMachine) -> list[migration_pb2.DefinitionDigest]:
    """All collections of a shard."""
    return [
        migration_pb2.DefinitionDigest(name=name, digest=_definition_digest(state, name))
        for name in sorted(state.collections)
    ]


def differing_collections(state: StateMachine, wanted: Any) -> list[str]:
    """Those of the collections of another shard that are not here, or are defined otherwise."""
    return [
        one.name
        for one in wanted
        if one.name not in state.collections or _definition_digest(state, one.name) != one.digest
    ]


async def in_slices(steps: Steps[bytes]) -> bytes:
    """Take all steps, letting others onto the event loop between any two; returns what comes of them."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: bytes = stop.value
            return result
        await asyncio.sleep(0)


def _definition_digest(state: StateMachine, name: str) -> bytes:
    return hashlib.sha256(state.collections[name].config.SerializeToString(deterministic=True)).digest()
