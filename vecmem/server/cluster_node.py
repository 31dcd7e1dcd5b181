"""A node's life in a cluster, beside its calls: its part in its shard, what it knows of the others and tells of itself, and its slots."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from vecmem.cluster.joining import member_of, view_of
from vecmem.cluster.migration import Migrator
from vecmem.cluster.peers import Peers
from vecmem.cluster.slot_map import ViewSlotMap
from vecmem.cluster.view import ClusterView
from vecmem.config import Settings
from vecmem.errors import UnavailableError, VecmemError
from vecmem.server.open_streams import answering
from vecmem.server.routed import RoutedServer
from vecmem.server.routing import Router
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.v1.cluster_pb2 import NodeInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc

    from vecmem.cluster.member import Member

RELEASE_SECONDS_MAX: Final = 5.0
JOIN_RETRY_SECONDS: Final = 0.5
SLOTS_LOOK_SECONDS: Final = 0.05

_logger = logging.getLogger(__name__)


class ClusterNode:
    """Made by `join`. Servicers are added to `server`."""

    def __init__(self, shard: Shard, view: ClusterView, member: Member | None, methods: grpc.aio.Server) -> None:
        self.shard = shard
        self.view = view
        self.member = member
        self.peers = Peers()
        self.router = Router(shard, view, self.peers)
        self.server = RoutedServer(methods, self.router)
        self.slot_map = ViewSlotMap(view, self.peers)
        self.migrator = Migrator(
            shard, shard.number, self.slot_map, self.slot_map.primary_of, calls_count=lambda: answering.begun_count
        )

    async def run(self, address: str) -> None:
        """Take part until cancelled; `address` is where others find this node.

        Raises ConfigurationError where another node has its name, and what Member.run raises.
        """
        self.view.node = self.view.node or address
        self.shard.leading_changed = self.view.tell
        collections = self.server.collections
        assert collections is not None  # the server is finished
        async with asyncio.TaskGroup() as group:
            if self.member is not None:
                group.create_task(self.member.run(address), name="take part")
            group.create_task(self.view.run(lambda: self.describe(address)), name="look at the cluster")
            group.create_task(self._take_slots(), name="take slots")
            group.create_task(self.migrator.run(), name="move slots")
            group.create_task(collections.heal(), name="finish changes of collections")

    async def leave(self, running: asyncio.Task[None]) -> None:
        """Hand over the lead, and take part no longer. Raises what `run` has failed with."""
        if not running.done():
            if self.member is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RELEASE_SECONDS_MAX):
                        await self.member.release()
            self.view.end()
            running.cancel()
            if self.member is not None:
                await self.member.hang_up()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await running
        except BaseExceptionGroup as failures:
            first: BaseException = failures
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from failures
        finally:
            await self.peers.close()
            await self.view.coordination.close()

    def describe(self, address: str) -> NodeInfo:
        """What this node says of itself."""
        shard = self.shard
        return NodeInfo(
            address=address,
            leads=shard.leads,
            sequence=shard.applied_sequence,
            lag=0 if self.member is None else self.member.lag,
            lease_age_ms=0.0 if self.member is None else self.member.lease_age_seconds * 1e3,
            data_memory_bytes=shard.memory.used_bytes(),
            memory_limit_bytes=shard.memory.limit_bytes,
            item_count=shard.state.point_count()
            + (0 if shard.state.keyspace_damage else len(shard.state.keyspace.values)),
        )

    async def slot_bytes(self, number: int) -> Sequence[float]:
        """About what each slot takes at the node that leads a shard, bytes."""
        return await (await self.slot_map.primary_of(number)).measure()

    async def _take_slots(self) -> None:
        """Note in a new shard's log which slots the topology gives it: from then on its log alone says which it has."""
        while self.shard.state.slots is None:
            if self.shard.leads:
                command = command_pb2.Command()
                command.set_slots.change = command_pb2.SLOT_CHANGE_INITIAL
                for shard in self.view.slot_map.topology.shards:
                    if shard.number == self.shard.number:
                        for slots in shard.slots:
                            command.set_slots.slots.add(first=slots.first, last=slots.last)
                try:
                    await self.shard.write(command)
                except VecmemError as error:
                    _logger.info("the slots are noted later: %s", error)
            await asyncio.sleep(SLOTS_LOOK_SECONDS)


async def join(shard: Shard, settings: Settings, methods: grpc.aio.Server) -> ClusterNode | None:
    """Find the cluster; None: this node is alone. Waits until whoever keeps the topology can be reached.

    Raises ConfigurationError for a cluster of another name, or one that has no such shard.
    """
    while True:
        try:
            view = await view_of(settings)
            break
        except UnavailableError as error:
            _logger.warning("the cluster cannot be reached: %s", error)
            await asyncio.sleep(JOIN_RETRY_SECONDS)
    return None if view is None else ClusterNode(shard, view, member_of(shard, settings), methods)
