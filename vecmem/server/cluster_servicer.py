"""ClusterService: see proto/vecmem/v1/cluster.proto for what it promises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from vecmem.cluster import topology as layout
from vecmem.cluster.view import ClusterView
from vecmem.errors import InvalidTopologyError, MemoryLimitError, NotInClusterError
from vecmem.server import calls
from vecmem.server.calls import Context, unary
from vecmem.store.shard import Shard
from vecmem.v1 import cluster_pb2 as api
from vecmem.v1 import cluster_pb2_grpc, common_pb2

SlotBytes = Callable[[int], Awaitable[Sequence[float]]]
"""About what each slot takes at the node that leads a shard, bytes; shape (SLOTS,)."""


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """How the cluster is laid out. `view` None: this node is alone."""

    ANY_NODE = True

    def __init__(self, shard: Shard, view: ClusterView | None, slot_bytes: SlotBytes | None) -> None:
        self._shard = shard
        self._view = view
        self._slot_bytes = slot_bytes

    @unary
    async def GetTopology(self, request: api.GetTopologyRequest, context: Context) -> api.GetTopologyResponse:
        """See the proto."""
        if self._view is None:
            return api.GetTopologyResponse(header=self._header(), topology=layout.alone())
        return api.GetTopologyResponse(
            header=self._header(),
            topology=self._view.slot_map.topology,
            nodes=[self._view.nodes[name] for name in sorted(self._view.nodes)],
        )

    @unary
    async def AddShard(self, request: api.AddShardRequest, context: Context) -> api.AddShardResponse:
        """See the proto."""

        def changed(topology: api.Topology) -> api.Topology:
            layout.check_epoch(topology, request.expected_epoch)
            return layout.with_shard_added(topology)

        topology = await self._known().change(changed)
        return api.AddShardResponse(header=self._header(), shard=topology.shards[-1].number, epoch=topology.epoch)

    @unary
    async def RemoveShard(self, request: api.RemoveShardRequest, context: Context) -> api.RemoveShardResponse:
        """See the proto."""

        def changed(topology: api.Topology) -> api.Topology:
            layout.check_epoch(topology, request.expected_epoch)
            return layout.with_shard_removed(topology, request.shard)

        topology = await self._known().change(changed)
        return api.RemoveShardResponse(header=self._header(), epoch=topology.epoch)

    @unary
    async def MoveSlots(self, request: api.MoveSlotsRequest, context: Context) -> api.MoveSlotsResponse:
        """See the proto."""
        view = self._known()
        migration = api.Migration(
            source=request.source,
            target=request.target,
            slots=request.slots,
            total_slot_count=layout.slot_count(request.slots),
            bytes_per_second_max=request.bytes_per_second_max,
        )

        def changed(topology: api.Topology) -> api.Topology:
            layout.check_epoch(topology, request.expected_epoch)
            return layout.with_migrations(topology, [migration])

        await view.look()
        changed(view.slot_map.topology)  # raises where it is no good, before a shard is asked
        await self._check_targets([migration])
        topology = await view.change(changed)
        return api.MoveSlotsResponse(header=self._header(), epoch=topology.epoch)

    @unary
    async def CancelMigrations(
        self, request: api.CancelMigrationsRequest, context: Context
    ) -> api.CancelMigrationsResponse:
        """See the proto."""
        source = request.source if request.HasField("source") else None
        cancelled: list[api.SlotRange] = []

        def changed(topology: api.Topology) -> api.Topology:
            layout.check_epoch(topology, request.expected_epoch)
            cancelled[:] = [
                slots
                for migration in topology.migrations
                if source is None or migration.source == source
                for slots in migration.slots
            ]
            return layout.with_migrations_cancelled(topology, source)

        topology = await self._known().change(changed)
        return api.CancelMigrationsResponse(
            header=self._header(), slot_count=layout.slot_count(cancelled), epoch=topology.epoch
        )

    @unary
    async def Rebalance(self, request: api.RebalanceRequest, context: Context) -> api.RebalanceResponse:
        """See the proto."""
        view = self._known()
        await view.look()
        topology = view.slot_map.topology
        layout.check_epoch(topology, request.expected_epoch)
        slot_bytes = {shard.number: await self._bytes_of(shard.number) for shard in topology.shards}
        migrations, after = layout.plan_rebalance(topology, slot_bytes, request.leaving_shards)
        for migration in migrations:
            migration.bytes_per_second_max = request.bytes_per_second_max
        await self._check_targets(migrations)
        response = api.RebalanceResponse(header=self._header(), migrations=migrations, epoch=topology.epoch)
        for shard in topology.shards:
            response.bytes_before[shard.number] = round(sum(slot_bytes[shard.number]))
            response.bytes_after[shard.number] = round(after.get(shard.number, 0.0))
        if migrations and not request.dry_run:

            def changed(now: api.Topology) -> api.Topology:
                layout.check_epoch(now, topology.epoch)  # the plan is good for what it was made of
                return layout.with_migrations(now, migrations)

            response.epoch = (await view.change(changed)).epoch
        return response

    async def _check_targets(self, migrations: Sequence[api.Migration]) -> None:
        """Raises InvalidTopologyError for a target that nobody leads, MemoryLimitError for one that has no room for the slots."""
        view = self._known()
        coming: dict[int, float] = {}
        for migration in migrations:
            if not view.leader_of(migration.target):
                raise InvalidTopologyError(
                    f"no node leads shard {migration.target}: start one with `shard` {migration.target}", field="target"
                )
            taken = await self._bytes_of(migration.source)
            coming[migration.target] = coming.get(migration.target, 0.0) + sum(
                taken[slot] for slot in layout.slots_in(migration.slots)
            )
        for number, size_bytes in coming.items():
            for node in view.members_of(number):
                if node.memory_limit_bytes and node.data_memory_bytes + size_bytes > node.memory_limit_bytes:
                    raise MemoryLimitError(
                        f"node {node.name!r} of shard {number} holds {node.data_memory_bytes} bytes and may hold"
                        f" {node.memory_limit_bytes}: there is no room for {size_bytes:.0f} more",
                        used_bytes=str(node.data_memory_bytes),
                        limit_bytes=str(node.memory_limit_bytes),
                    )

    async def _bytes_of(self, number: int) -> Sequence[float]:
        assert self._slot_bytes is not None  # with a view
        return await self._slot_bytes(number)

    def _known(self) -> ClusterView:
        if self._view is None:
            raise NotInClusterError("this node is alone: it was started without `cluster`")
        return self._view

    def _header(self) -> common_pb2.ResponseHeader:
        return calls.header(self._shard, self._shard.applied_sequence)
