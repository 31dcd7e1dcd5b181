"""Methods on the layout of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem.v1 import cluster_pb2
from vecmem_client import _methods
from vecmem_client._async.base import Base
from vecmem_client.clusters import plan_of, slots_message, topology_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vecmem_client.clusters import ClusterTopology, RebalancePlan, SlotRange


class ClusterMethods(Base):
    """ClusterService. Any node answers; one that is alone tells its topology and raises NotInClusterError for the rest.

    With `expected_epoch` a change is made only if that is the epoch (`ClusterTopology.epoch`), else TopologyConflictError is raised;
    0: whatever it is. Only a change with one is retried, since it cannot be made twice.
    """

    async def topology(self, *, timeout_seconds: float | None = None) -> ClusterTopology:
        """Tell which shards there are, which slots they have, where their nodes are and what is on its way."""
        reply = await self._call(_methods.GET_TOPOLOGY, cluster_pb2.GetTopologyRequest(), timeout_seconds)
        return topology_of(reply)

    async def add_shard(self, *, expected_epoch: int = 0, timeout_seconds: float | None = None) -> int:
        """Make a new shard without slots and return its number. Raises LimitExceededError where there are 1,024."""
        request = cluster_pb2.AddShardRequest(expected_epoch=expected_epoch)
        reply = await self._call(_methods.ADD_SHARD, request, timeout_seconds, retriable=expected_epoch > 0)
        self._routing.want()
        return reply.shard

    async def remove_shard(self, shard: int, *, expected_epoch: int = 0, timeout_seconds: float | None = None) -> None:
        """Take a shard out that has no slots any more. Raises InvalidTopologyError where it has, and for the last one."""
        request = cluster_pb2.RemoveShardRequest(shard=shard, expected_epoch=expected_epoch)
        await self._call(_methods.REMOVE_SHARD, request, timeout_seconds, retriable=expected_epoch > 0)
        self._routing.want()

    async def move_slots(
        self,
        source: int,
        target: int,
        slots: Iterable[SlotRange | int],
        *,
        bytes_per_second_max: int = 0,
        expected_epoch: int = 0,
        timeout_seconds: float | None = None,
    ) -> None:
        """Begin to move slots (rising) from one shard to another while both serve; `topology` tells how far it has come.

        Raises InvalidTopologyError where that cannot be, MemoryLimitError where the target has no room.
        """
        request = cluster_pb2.MoveSlotsRequest(
            source=source,
            target=target,
            slots=slots_message(slots),
            bytes_per_second_max=bytes_per_second_max,
            expected_epoch=expected_epoch,
        )
        await self._call(_methods.MOVE_SLOTS, request, timeout_seconds, retriable=expected_epoch > 0)

    async def cancel_migrations(
        self, source: int | None = None, *, expected_epoch: int = 0, timeout_seconds: float | None = None
    ) -> int:
        """End migrations from a shard, or all; slots that have moved stay where they are. Returns how many will not be moved any more."""
        request = cluster_pb2.CancelMigrationsRequest(source=source, expected_epoch=expected_epoch)
        reply = await self._call(_methods.CANCEL_MIGRATIONS, request, timeout_seconds)
        return reply.slot_count

    async def rebalance(
        self,
        *,
        dry_run: bool = False,
        leaving_shards: Iterable[int] = (),
        bytes_per_second_max: int = 0,
        expected_epoch: int = 0,
        timeout_seconds: float | None = None,
    ) -> RebalancePlan:
        """Plan which slots have to move so that all shards but those that leave hold about as much, and begin to move them.

        With `dry_run` nothing is moved. Raises what `move_slots` raises.
        """
        request = cluster_pb2.RebalanceRequest(
            dry_run=dry_run,
            leaving_shards=leaving_shards,
            bytes_per_second_max=bytes_per_second_max,
            expected_epoch=expected_epoch,
        )
        retriable = dry_run or expected_epoch > 0
        return plan_of(await self._call(_methods.REBALANCE, request, timeout_seconds, retriable=retriable))
