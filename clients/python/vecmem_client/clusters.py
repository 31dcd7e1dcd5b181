"""How a cluster is laid out, and what changes that: what `Client.topology` and its siblings return and take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecmem.v1 import cluster_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Some hash slots in a row."""

    first: int
    """0 to 16,383."""
    last: int
    """Not less than `first`."""

    @property
    def slot_count(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node says of itself, now and then."""

    name: str
    address: str
    """Where clients reach it."""
    shard: int
    leads: bool
    sequence: int
    """Last record that it has applied."""
    lag: int
    """Records that are known to be in its shard's log and that it has not applied."""
    lease_age_ms: float
    """Since the lease of its shard was renewed last, as seen there."""
    data_memory_bytes: int
    memory_limit_bytes: int
    """0: there is no limit."""
    item_count: int
    """Points and keys that it holds."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard, and the nodes that hold it."""

    number: int
    slots: Sequence[SlotRange]
    """Rising; none: it is new, or about to be removed."""
    nodes: Sequence[NodeInfo]
    """That were heard of lately, in order of their names."""

    @property
    def slot_count(self) -> int:
        """How many slots it has."""
        return sum(slots.slot_count for slots in self.slots)

    @property
    def primary(self) -> NodeInfo | None:
        """The node that leads, as far as is known."""
        return next((node for node in self.nodes if node.leads), None)

    @property
    def replicas(self) -> list[NodeInfo]:
        """The others."""
        return [node for node in self.nodes if not node.leads]


@dataclass(frozen=True, slots=True)
class Migration:
    """Slots on their way from one shard to another."""

    source: int
    target: int
    slots: Sequence[SlotRange]
    """Those still to be moved, rising."""
    total_slot_count: int
    """How many they were at the beginning."""
    bytes_per_second_max: int
    """0: as fast as leaves room for calls."""

    @property
    def left_slot_count(self) -> int:
        """How many are still to be moved."""
        return sum(slots.slot_count for slots in self.slots)


@dataclass(frozen=True, slots=True)
class ClusterTopology:
    """How a cluster is laid out, as the node that was asked knows it."""

    cluster: str
    """Its name; empty for a server that is alone, which has one shard and no nodes."""
    epoch: int
    """Grows with each change."""
    shards: Sequence[ShardInfo]
    """In order of their numbers."""
    migrations: Sequence[Migration]
    """In the order in which they were begun."""


@dataclass(frozen=True, slots=True)
class RebalancePlan:
    """Which slots have to move so that all shards hold about as much."""

    migrations: Sequence[Migration]
    bytes_before: Mapping[int, int]
    """About what each shard holds now, by its number."""
    bytes_after: Mapping[int, int]
    epoch: int


def topology_of(reply: cluster_pb2.GetTopologyResponse) -> ClusterTopology:
    """Return the topology of a reply."""
    nodes: dict[int, list[NodeInfo]] = {}
    for node in reply.nodes:
        nodes.setdefault(node.shard, []).append(
            NodeInfo(
                name=node.name,
                address=node.address,
                shard=node.shard,
                leads=node.leads,
                sequence=node.sequence,
                lag=node.lag,
                lease_age_ms=node.lease_age_ms,
                data_memory_bytes=node.data_memory_bytes,
                memory_limit_bytes=node.memory_limit_bytes,
                item_count=node.item_count,
            )
        )
    return ClusterTopology(
        cluster=reply.topology.cluster,
        epoch=reply.topology.epoch,
        shards=[
            ShardInfo(shard.number, _ranges(shard.slots), nodes.get(shard.number, ()))
            for shard in reply.topology.shards
        ],
        migrations=[_migration(migration) for migration in reply.topology.migrations],
    )


def plan_of(reply: cluster_pb2.RebalanceResponse) -> RebalancePlan:
    """Return the plan of a reply."""
    return RebalancePlan(
        migrations=[_migration(migration) for migration in reply.migrations],
        bytes_before=dict(reply.bytes_before),
        bytes_after=dict(reply.bytes_after),
        epoch=reply.epoch,
    )


def slots_message(slots: Iterable[SlotRange | int]) -> list[cluster_pb2.SlotRange]:
    """Build ranges of slots for a request; a number stands for that slot alone."""
    ranges = [SlotRange(one, one) if isinstance(one, int) else one for one in slots]
    return [cluster_pb2.SlotRange(first=one.first, last=one.last) for one in ranges]


def _ranges(messages: Iterable[cluster_pb2.SlotRange]) -> list[SlotRange]:
    return [SlotRange(message.first, message.last) for message in messages]


def _migration(message: cluster_pb2.Migration) -> Migration:
    return Migration(
        source=message.source,
        target=message.target,
        slots=_ranges(message.slots),
        total_slot_count=message.total_slot_count,
        bytes_per_second_max=message.bytes_per_second_max,
    )
