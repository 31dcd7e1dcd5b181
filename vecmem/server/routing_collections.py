"""CollectionService in a cluster: definitions are agreed on and made at every shard; whoever leads the first shard tells of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from vecmem.cluster.definitions import Definitions
from vecmem.cluster.merging import merge_stats
from vecmem.errors import CollectionExistsError, CollectionNotFoundError, UnavailableError, VecmemError
from vecmem.server.routing import Call, Method, Parts, Reply, Router, answered_parts, internal_call, merged_header
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import collections_pb2 as api

HEAL_SECONDS: Final = 3.0
CHANGE_SECONDS_MAX: Final = 20.0

_logger = logging.getLogger(__name__)


class CollectionRouting:
    """Each method has its own way over the shards. It also makes changes at all shards for `Definitions`."""

    def __init__(self, router: Router, methods: dict[str, Method]) -> None:
        self._router = router
        self._methods = methods
        self.definitions = Definitions(router.view.coordination, self)
        self._seen: dict[str, str] = {}

    # -- calls --------------------------------------------------------------------------------------------------------

    async def create_collection(self, request: api.CreateCollectionRequest, call: Call) -> Reply:
        """Agreed on, then made at each shard."""
        await asyncio.shield(
            self.definitions.create(
                request.name, request.config, request.write.request_id, request_fingerprint(request)
            )
        )
        header, collection = await self._described(request.name, call)
        return api.CreateCollectionResponse(header=header, collection=collection)

    async def update_collection(self, request: api.UpdateCollectionRequest, call: Call) -> Reply:
        """Agreed on, then made at each shard."""
        await asyncio.shield(self.definitions.update(request, request.write.request_id, request_fingerprint(request)))
        header, collection = await self._described(request.name, call)
        return api.UpdateCollectionResponse(header=header, collection=collection)

    async def delete_collection(self, request: api.DeleteCollectionRequest, call: Call) -> Reply:
        """Agreed on, then done at each shard."""
        count = await asyncio.shield(
            self.definitions.delete(request.name, request.write.request_id, request_fingerprint(request))
        )
        parts = await self._all("ListCollections", api.ListCollectionsRequest(page_size=1), call)
        return api.DeleteCollectionResponse(header=merged_header(parts), deleted_point_count=count)

    async def get_collection(self, request: Any, call: Call) -> Reply:
        """Asked of the first shard, as ListCollections is: each shard has its own uid for a collection."""
        return await self._first("GetCollection", request, call)

    async def list_collections(self, request: Any, call: Call) -> Reply:
        """See get_collection."""
        return await self._first("ListCollections", request, call)

    async def get_collection_stats(self, request: api.GetCollectionStatsRequest, call: Call) -> Reply:
        """Added up."""
        parts, failures = await self._router.everywhere(self._methods["GetCollectionStats"], lambda _: request, call)
        header = merged_header(parts, failures)
        return api.GetCollectionStatsResponse(header=header, stats=merge_stats([reply.stats for _, reply in parts]))

    async def _first(self, name: str, request: Any, call: Call) -> Reply:
        return await self._router.at(
            self._methods[name], request, call, lambda: self._router.view.slot_map.topology.shards[0].number
        )

    async def _described(self, name: str, call: Call) -> tuple[Any, api.Collection]:
        request = api.GetCollectionRequest(name=name)
        parts = await self._all("GetCollection", request, call)
        return merged_header(parts), parts[0][1].collection

    async def _all(self, name: str, request: Any, call: Call) -> Parts:
        outcomes = await self._ask_all(name, lambda _: request, call)
        parts, _ = answered_parts(outcomes, allow_partial=False)
        return parts

    async def _ask_all(self, name: str, request_for: Callable[[int], Any], call: Call) -> dict[int, Any | VecmemError]:
        numbers = [shard.number for shard in self._router.view.slot_map.topology.shards]
        return await self._router.gather(self._methods[name], {number: request_for(number) for number in numbers}, call)

    # -- changes at all shards ----------------------------------------------------------------------------------------

    async def create(self, name: str, config: api.CollectionConfig, change_id: str) -> None:
        """See Shards."""
        request = api.CreateCollectionRequest(name=name, config=config)
        request.write.request_id = change_id
        await self._change("CreateCollection", request, CollectionExistsError)

    async def update(self, request: api.UpdateCollectionRequest, change_id: str) -> None:
        """See Shards."""
        request.write.request_id = change_id
        await self._change("UpdateCollection", request, None)

    async def delete(self, name: str, change_id: str) -> int:
        """See Shards."""
        request = api.DeleteCollectionRequest(name=name)
        request.write.request_id = change_id
        parts = await self._change("DeleteCollection", request, CollectionNotFoundError)
        return sum(reply.deleted_point_count for _, reply in parts)

    async def _change(self, name: str, request: Any, done: type[VecmemError] | None) -> Parts:
        """Make a change at all shards, members of the topology that have no slots included. `done`: what says that it was made before."""
        outcomes = await self._ask_all(name, lambda _: request, internal_call(request, CHANGE_SECONDS_MAX))
        left = {
            number: outcome for number, outcome in outcomes.items() if done is None or not isinstance(outcome, done)
        }
        refused = [outcome for outcome in left.values() if isinstance(outcome, VecmemError)]
        # What is only out of reach is tried again; what was refused is taken back, and so has to be known.
        for outcome in sorted(refused, key=lambda error: isinstance(error, UnavailableError)):
            raise outcome
        parts, _ = answered_parts(left, allow_partial=False)
        return parts

    # -- beside the calls ---------------------------------------------------------------------------------------------

    async def heal(self) -> None:
        """Finish changes that whoever began them has left, and give a new shard its collections, for ever."""
        while True:
            await asyncio.sleep(HEAL_SECONDS)
            if not self._router.shard.leads:
                continue
            try:
                await self._finish_old_changes()
                await self.catch_up()
            except VecmemError as error:
                _logger.info("definitions are looked at again later: %s", error)

    async def _finish_old_changes(self) -> None:
        if self._router.shard.number != self._router.view.slot_map.topology.shards[0].number:
            return
        under_way = await self.definitions.under_way()
        for name, change_id in under_way.items():
            if self._seen.get(name) == change_id:
                await self.definitions.finish(name)
        self._seen = under_way

    async def catch_up(self) -> None:
        """Make the collections here that this shard lacks: it is a new one."""
        shard = self._router.shard
        for definition in await self.definitions.ready():
            if definition.name in shard.state.collections or definition.name in shard.state.damaged:
                continue
            command = command_pb2.Command()
            command.create_collection.name = definition.name
            command.create_collection.config.CopyFrom(definition.config)
            result = await shard.write(command)
            if not await self.definitions.is_ready(definition.name):
                # It was deleted meanwhile, and this shard was asked before it had it.
                undone = command_pb2.Command()
                undone.delete_collection.collection_uid = result.sequence
                await shard.write(undone)
