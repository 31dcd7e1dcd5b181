"""CollectionService in a cluster: definitions are agreed on and made at every shard; whoever leads the first shard tells of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from vecmem.cluster.definitions import EXISTING, READY, Definitions, update_to
from vecmem.cluster.merging import merge_stats
from vecmem.cluster.v1.definition_pb2 import CollectionDefinition
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
        return await self._router.at(self._methods[name], request, call, lambda: self._router.view.slot_map.numbers[0])

    async def _described(self, name: str, call: Call) -> tuple[Any, api.Collection]:
        request = api.GetCollectionRequest(name=name)
        parts = await self._all("GetCollection", request, call)
        return merged_header(parts), parts[0][1].collection

    async def _all(self, name: str, request: Any, call: Call) -> Parts:
        outcomes = await self._ask_all(name, lambda _: request, call)
        parts, _ = answered_parts(outcomes, allow_partial=False)
        return parts

    async def _ask_all(self, name: str, request_for: Callable[[int], Any], call: Call) -> dict[int, Any | VecmemError]:
        # Shards that have slots, or are about to have some; others catch up by themselves.
        slot_map = self._router.view.slot_map
        numbers = {*slot_map.numbers, *(migration.target for migration in slot_map.topology.migrations)}
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
        """Make a change at all shards. `done`: what says that it was made before."""
        await self._router.view.look()
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
        if self._router.shard.number != self._router.view.slot_map.numbers[0]:
            return
        under_way = await self.definitions.under_way()
        for name, change_id in under_way.items():
            if self._seen.get(name) == change_id:
                await self.definitions.finish(name)
        self._seen = under_way

    async def catch_up(self) -> None:
        """Make the collections of this shard what was agreed on while it had no slots, or was just getting some."""
        shard = self._router.shard
        here = dict(shard.state.collections)
        definitions = await self.definitions.all()
        for name, definition in definitions.items():
            collection = shard.state.collections.get(name)
            if name in shard.state.damaged:
                continue
            if collection is None and definition.state in EXISTING:
                await self._make(definition)
            elif collection is not None and definition.state == READY:
                change = update_to(name, collection.config, definition.config)
                if change != api.UpdateCollectionRequest(name=name):
                    call = internal_call(change, CHANGE_SECONDS_MAX)
                    await self._router.at(self._methods["UpdateCollection"], change, call, lambda: shard.number)
        for name in here.keys() - definitions.keys():
            # It was there before its definition went. Where there are slots, there may be data that nobody wants to lose.
            table = shard.state.slots
            if table is not None and not table.owned.any() and shard.state.collections.get(name) is here[name]:
                await self._drop(here[name].uid)

    async def _make(self, definition: CollectionDefinition) -> None:
        command = command_pb2.Command()
        command.create_collection.name = definition.name
        command.create_collection.config.CopyFrom(definition.config)
        result = await self._router.shard.write(command)
        if not await self.definitions.is_ready(definition.name):
            # It was deleted meanwhile, and this shard was asked before it had it.
            await self._drop(result.sequence)

    async def _drop(self, uid: int) -> None:
        command = command_pb2.Command()
        command.delete_collection.collection_uid = uid
        await self._router.shard.write(command)
