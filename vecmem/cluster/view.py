"""What a node knows of its cluster: the slot map and the other nodes, looked at again and again, and what it tells of itself.

What is known may be old. Nothing is decided by it: a node that is asked for what it does not have any more says so, and whoever
asked looks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from typing import TYPE_CHECKING, Final

from vecmem.cluster import topology as layout
from vecmem.cluster.coordination import Coordination, change
from vecmem.errors import ConfigurationError, InvalidTopologyError, UnavailableError
from vecmem.v1.cluster_pb2 import NodeInfo, Topology

if TYPE_CHECKING:
    from collections.abc import Callable

    from vecmem.cluster.topology import SlotMap

TOPOLOGY_KEY: Final = "topology"
LOOK_SECONDS: Final = 0.5
ANNOUNCE_SECONDS: Final = 1.0
SIGHTINGS_MAX: Final = 3
"""Of another node under this one's name, in a row, before they are believed."""
REFRESH_SECONDS_MIN: Final = 0.02
"""Between two looks that somebody wants at once."""

_logger = logging.getLogger(__name__)


class ClusterView:
    """Made by `open_view`; `run` keeps it fresh."""

    def __init__(self, coordination: Coordination, node: str, shard: int, slot_map: SlotMap) -> None:
        self.coordination = coordination
        self.node = node
        self.shard = shard
        self.slot_map = slot_map
        self.nodes: dict[str, NodeInfo] = {}
        self.instance = f"{time.time_ns():020d}-{uuid.uuid4().hex}"
        """Of two nodes of one name the one that came later ends."""
        self._looking = asyncio.Lock()
        self._looked_at = -REFRESH_SECONDS_MIN
        self._told = asyncio.Event()
        self._changed = asyncio.Event()
        self._ending = False

    def members_of(self, shard: int) -> list[NodeInfo]:
        """The nodes of a shard that were heard of lately, the one that leads first."""
        return sorted(
            (node for node in self.nodes.values() if node.shard == shard), key=lambda node: (not node.leads, node.name)
        )

    def leader_of(self, shard: int) -> str:
        """Address of the node that leads a shard; empty: that is not known."""
        leaders = [node for node in self.nodes.values() if node.shard == shard and node.leads]
        # Two say so while one has not noticed yet that it does no more: who has seen more of the log is right.
        return max(leaders, key=lambda node: node.sequence).address if leaders else ""

    async def look(self) -> None:
        """Look at everything now; those who want it at the same time look once. Raises UnavailableError."""
        wanted_at = time.monotonic()
        async with self._looking:
            if self._looked_at >= wanted_at:
                return
            pause_seconds = self._looked_at + REFRESH_SECONDS_MIN - wanted_at
            if pause_seconds > 0:
                await asyncio.sleep(pause_seconds)
            began = time.monotonic()
            entry, announced = await asyncio.gather(self.coordination.get(TOPOLOGY_KEY), self.coordination.announced())
            if entry is not None:
                self.take(Topology.FromString(entry.value))
            self.nodes = {name: NodeInfo.FromString(value) for name, value in announced.items()}
            self._looked_at = began

    def take(self, topology: Topology) -> None:
        """Go by a topology, unless a newer one is known."""
        if topology.epoch > self.slot_map.epoch:
            self.slot_map = layout.slot_map(topology)
            self._changed.set()
            self._changed = asyncio.Event()

    async def news(self, seconds_max: float) -> None:
        """Return when there is another slot map, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await self._changed.wait()

    async def change(self, changed: Callable[[Topology], Topology]) -> Topology:
        """Change the topology by compare-and-set; where its epoch is the same it stays what it is.

        Raises TopologyConflictError, UnavailableError, and what the function does.
        """

        def next_value(value: bytes | None) -> bytes | None:
            if value is None:
                raise InvalidTopologyError("the topology is gone")
            before = Topology.FromString(value)
            topology = changed(before)
            if topology.epoch == before.epoch:
                return None
            layout.slot_map(topology)  # raises where it is none
            return topology.SerializeToString()

        value = await change(self.coordination, TOPOLOGY_KEY, next_value)
        topology = Topology.FromString(value or b"")
        self.take(topology)
        return topology

    def tell(self) -> None:
        """Announce this node at once: something that others want to know has changed."""
        self._told.set()

    def end(self) -> None:
        """Have `run` end soon: the client of NATS may swallow a cancellation."""
        self._ending = True
        self._told.set()

    async def run(self, describe: Callable[[], NodeInfo]) -> None:
        """Look and announce until cancelled, or `end`. Raises ConfigurationError where another node has this one's name."""
        announced_at = -math.inf
        sightings = 0
        while not self._ending:
            if self._told.is_set():
                await self._announce(describe)
            elif await self._look_again() and time.monotonic() - announced_at >= ANNOUNCE_SECONDS:
                # What an earlier run of this node has said does not come back; what another node says is there again each time,
                # since this is looked at just before it is replaced.
                other = self.nodes.get(self.node)
                sightings = sightings + 1 if other is not None and other.instance < self.instance else 0
                if other is not None and sightings >= SIGHTINGS_MAX:
                    raise ConfigurationError(
                        f"the node at {other.address} has the name {self.node!r} as well; each node needs one of its own",
                        key="node",
                    )
                announced_at = time.monotonic()
                await self._announce(describe)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._told.wait()

    async def _look_again(self) -> bool:
        """Look; whether that was possible."""
        try:
            await self.look()
        except UnavailableError as error:
            _logger.warning("the topology cannot be looked at: %s", error)
            return False
        except InvalidTopologyError:
            _logger.exception("the topology is not valid; the one before is gone by")
        return True

    async def _announce(self, describe: Callable[[], NodeInfo]) -> None:
        self._told.clear()
        info = describe()
        info.name, info.shard, info.instance = self.node, self.shard, self.instance
        try:
            await self.coordination.announce(self.node, info.SerializeToString())
        except UnavailableError as error:
            _logger.warning("this node cannot be announced: %s", error)


async def open_view(coordination: Coordination, cluster: str, node: str, shard: int, shard_count: int) -> ClusterView:
    """Find the topology, or make it: even ranges for a number of shards.

    Raises:
        ConfigurationError: it is another cluster's, or has no such shard.
        InvalidTopologyError: what is kept is no valid topology.
        UnavailableError: whoever keeps it cannot be reached.
    """
    value = await change(
        coordination,
        TOPOLOGY_KEY,
        lambda found: layout.initial(cluster, shard_count).SerializeToString() if found is None else None,
    )
    topology = Topology.FromString(value or b"")
    if topology.cluster != cluster:
        raise ConfigurationError(
            f"the cluster there is called {topology.cluster!r}, not {cluster!r}", key="cluster_name"
        )
    if all(shard != known.number for known in topology.shards):
        numbers = ", ".join(str(known.number) for known in topology.shards)
        raise ConfigurationError(
            f"cluster {cluster!r} has no shard {shard}, only {numbers}: `vecmem cluster add-shard` makes one",
            key="shard",
        )
    view = ClusterView(coordination, node, shard, layout.slot_map(topology))
    await view.look()
    return view
