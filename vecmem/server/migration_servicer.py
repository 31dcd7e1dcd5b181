"""MigrationService: see proto/vecmem/cluster/v1/migration.proto for what it promises."""

from __future__ import annotations

import numpy as np

from vecmem.cluster.migration_target import ShardTarget
from vecmem.cluster.v1 import migration_pb2 as api
from vecmem.cluster.v1 import migration_pb2_grpc
from vecmem.server.calls import Context, unary
from vecmem.slots import SLOTS
from vecmem.store.shard import Shard
from vecmem.store.slot_copy import slot_sizes


class MigrationServicer(migration_pb2_grpc.MigrationServiceServicer):
    """A shard that gets slots."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._target = ShardTarget(shard)

    @unary
    async def StageSlots(self, request: api.StageSlotsRequest, context: Context) -> api.StageSlotsResponse:
        """See the proto."""
        await self._target.stage(request)
        return api.StageSlotsResponse()

    @unary
    async def OwnSlots(self, request: api.OwnSlotsRequest, context: Context) -> api.OwnSlotsResponse:
        """See the proto."""
        await self._target.own(request)
        return api.OwnSlotsResponse()

    @unary
    async def DropStaged(self, request: api.DropStagedRequest, context: Context) -> api.DropStagedResponse:
        """See the proto."""
        await self._target.drop(request)
        return api.DropStagedResponse()

    @unary
    async def DescribeSlots(self, request: api.DescribeSlotsRequest, context: Context) -> api.DescribeSlotsResponse:
        """See the proto."""
        return await self._target.describe(request)

    @unary
    async def MeasureSlots(self, request: api.MeasureSlotsRequest, context: Context) -> api.MeasureSlotsResponse:
        """See the proto."""
        await self._shard.settled()
        state = self._shard.state
        owned = np.ones(SLOTS, dtype=np.bool_) if state.slots is None else state.slots.owned
        sizes, _ = slot_sizes(state, owned)
        return api.MeasureSlotsResponse(slot_bytes=sizes.tolist())
