"""The slot map of a cluster as those who move slots see it: `vecmem.cluster.migration.SlotMap` over a ClusterView."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vecmem.cluster import topology as layout
from vecmem.cluster.migration import Migration
from vecmem.cluster.migration_target import RemoteTarget
from vecmem.errors import UnavailableError
from vecmem.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vecmem.cluster.peers import Peers
    from vecmem.cluster.view import ClusterView
    from vecmem.store.slot_sets import SlotMask
    from vecmem.v1.cluster_pb2 import Topology


class ViewSlotMap:
    """Who owns which slot, as the whole cluster sees it."""

    def __init__(self, view: ClusterView, peers: Peers) -> None:
        self._view = view
        self._peers = peers

    async def migrations(self) -> Sequence[Migration]:
        """See SlotMap. Those that were cancelled are gone by the next look, within half a second."""
        found = []
        for migration in self._view.slot_map.topology.migrations:
            slots = np.zeros(SLOTS, dtype=np.bool_)
            slots[layout.slots_in(migration.slots)] = True
            found.append(Migration(migration.source, migration.target, slots, migration.bytes_per_second_max))
        return found

    async def slots_of(self, shard: int) -> SlotMask:
        """See SlotMap."""
        await self._view.look()
        owned: SlotMask = self._view.slot_map.shard_of == shard
        return owned

    async def moved(self, slots: SlotMask, source: int, target: int) -> None:
        """See SlotMap."""
        moved = np.flatnonzero(slots).tolist()

        def changed(topology: Topology) -> Topology:
            shard_of = layout.slot_map(topology).shard_of
            left = [slot for slot in moved if shard_of[slot] == source]
            return layout.with_slots_moved(topology, left, source, target) if left else topology

        await self._view.change(changed)

    async def primary_of(self, shard: int) -> RemoteTarget:
        """Reaches the node that leads a shard. Raises UnavailableError."""
        address = self._view.leader_of(shard)
        if not address:
            await self._view.look()
            address = self._view.leader_of(shard)
        if not address:
            raise UnavailableError(f"nobody leads shard {shard}, as far as is known")
        return RemoteTarget(self._peers, address)
