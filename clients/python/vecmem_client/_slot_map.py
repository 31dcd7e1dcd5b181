"""Which shard has which slot, and where its nodes are: one state of a cluster, which is never changed."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vecmem_client._slots import SLOTS, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vecmem.v1 import cluster_pb2


@dataclass(frozen=True, slots=True)
class SlotMap:
    """What a node has told, and what was heard since."""

    epoch: int
    shard_of: Sequence[int]
    """By slot."""
    leaders: Mapping[int, str]
    """Addresses by shard; of some shards it may be unknown."""
    members: Mapping[int, Sequence[str]]
    """Addresses of all nodes of a shard, those that lead included."""
    numbers: Sequence[int]
    """Of the shards."""

    @property
    def addresses(self) -> list[str]:
        """Of all nodes."""
        return [address for members in self.members.values() for address in members]

    @property
    def is_complete(self) -> bool:
        """Whether it is known of each shard with slots who leads it."""
        return self.leaders.keys() >= set(self.shard_of)

    def shard_of_keys(self, keys: Iterable[bytes]) -> int | None:
        """The one shard that has all these keys; None: there is none, or no key."""
        found: int | None = None
        for key in keys:
            shard = self.shard_of[slot_of(key)]
            if found is None:
                found = shard
            elif found != shard:
                return None
        return found

    def corrected(self, shard: int, owner: str, slot: int | None, epoch: int) -> SlotMap:
        """The map where a shard is led by another node, and has a slot; of the epoch of who said so, so that no older map undoes it."""
        shard_of = self.shard_of
        if slot is not None and shard_of[slot] != shard:
            changed = array("H", shard_of)
            changed[slot] = shard
            shard_of = changed
        return replace(self, epoch=epoch, shard_of=shard_of, leaders={**self.leaders, shard: owner})


def slot_map(reply: cluster_pb2.GetTopologyResponse) -> SlotMap | None:
    """Return the map; None: the node is alone, so that there is nowhere else to go."""
    if not reply.topology.cluster or not reply.nodes:
        return None
    shard_of = array("H", bytes(2 * SLOTS))
    for shard in reply.topology.shards:
        for slots in shard.slots:
            count = slots.last - slots.first + 1
            shard_of[slots.first : slots.last + 1] = array("H", [shard.number]) * count
    members: dict[int, list[str]] = {shard.number: [] for shard in reply.topology.shards}
    leaders = {}
    for node in reply.nodes:
        if node.address and node.shard in members:
            members[node.shard].append(node.address)
            if node.leads:
                leaders[node.shard] = node.address
    return SlotMap(reply.topology.epoch, shard_of, leaders, members, sorted(members))
