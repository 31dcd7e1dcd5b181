"""CollectionService: see proto/vecmem/v1/collections.proto for what it promises."""

from __future__ import annotations

import asyncio

import numpy as np

from vecmem import limits
from vecmem.errors import CollectionNotFoundError
from vecmem.server import calls
from vecmem.server.calls import Context, unary
from vecmem.store import configuration, reading
from vecmem.store.collection import Collection
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.v1 import collections_pb2 as api
from vecmem.v1 import collections_pb2_grpc


class CollectionServicer(collections_pb2_grpc.CollectionServiceServicer):
    """Collections of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._updating = asyncio.Lock()

    @unary
    async def CreateCollection(
        self,
        request: api.CreateCollectionRequest,
        context: Context,
    ) -> api.CreateCollectionResponse:
        """See the proto."""

        def build(command: command_pb2.Command) -> None:
            configuration.check_collection_name(request.name)
            # Looked at again when applied, where another creation may have come first; seen here, it costs no record.
            refused = self._shard.state.creation_refusal(request.name)
            if refused is not None:
                raise refused
            command.create_collection.name = request.name
            command.create_collection.config.CopyFrom(configuration.complete_config(request.config))

        result = await calls.write(self._shard, request, build, grows=True)
        return api.CreateCollectionResponse(
            header=calls.header(self._shard, result.sequence), collection=self._by_uid(result.sequence, request.name)
        )

    @unary
    async def GetCollection(
        self,
        request: api.GetCollectionRequest,
        context: Context,
    ) -> api.GetCollectionResponse:
        """See the proto."""
        sequence = calls.check_position(self._shard, request.read)
        state = self._shard.state
        described = (
            _damaged(request.name, *state.damaged[request.name])
            if request.name in state.damaged
            else _describe(state.collection(request.name))
        )
        return api.GetCollectionResponse(header=calls.header(self._shard, sequence), collection=described)

    @unary
    async def ListCollections(
        self,
        request: api.ListCollectionsRequest,
        context: Context,
    ) -> api.ListCollectionsResponse:
        """See the proto."""
        sequence = calls.check_position(self._shard, request.read)
        page_size = reading.page_size_or_default(request.page_size, limits.COLLECTION_PAGE_SIZE_MAX)
        after = reading.decode_page_token(request.page_token, "collections", [])
        state = self._shard.state
        names = sorted(name for name in (*state.collections, *state.damaged) if name > after)
        page = names[:page_size]
        return api.ListCollectionsResponse(
            header=calls.header(self._shard, sequence),
            collections=[
                _describe(state.collections[name])
                if name in state.collections
                else _damaged(name, *state.damaged[name])
                for name in page
            ],
            next_page_token=reading.encode_page_token("collections", [], page[-1]) if len(names) > page_size else "",
        )

    @unary
    async def UpdateCollection(
        self,
        request: api.UpdateCollectionRequest,
        context: Context,
    ) -> api.UpdateCollectionResponse:
        """See the proto."""
        # In a task of its own: a caller that goes away must not let the next update in before this one is applied.
        result = await asyncio.shield(self._update(request))
        return api.UpdateCollectionResponse(
            header=calls.header(self._shard, result.sequence),
            collection=self._updated(request.name, result.sequence),
        )

    @unary
    async def DeleteCollection(
        self,
        request: api.DeleteCollectionRequest,
        context: Context,
    ) -> api.DeleteCollectionResponse:
        """See the proto."""

        def build(command: command_pb2.Command) -> None:
            command.delete_collection.collection_uid = self._shard.state.uid(request.name)

        result = await calls.write(self._shard, request, build)
        return api.DeleteCollectionResponse(
            header=calls.header(self._shard, result.sequence), deleted_point_count=result.deleted_count
        )

    @unary
    async def GetCollectionStats(
        self,
        request: api.GetCollectionStatsRequest,
        context: Context,
    ) -> api.GetCollectionStatsResponse:
        """See the proto."""
        collection, sequence = await calls.begin_read(self._shard, request.read, request.name)
        stats = api.CollectionStats(
            point_count=reading.count(collection, None, sequence, self._shard.now_unix_ms()),
            payload_bytes=collection.payloads.payload_bytes,
        )
        visible = collection.matching(None, sequence, self._shard.now_unix_ms())
        for name, index in collection.vectors.items():
            counts = index.statistics()
            stats.vectors[name].CopyFrom(
                api.VectorStats(
                    vector_count=int(np.count_nonzero(visible & index.arena.present(visible.size))),
                    graph_row_count=counts.graph_row_count,
                    tail_row_count=counts.tail_row_count,
                    graph_deleted_row_count=counts.graph_deleted_row_count,
                    rebuilding=counts.rebuilding,
                    arena_bytes=counts.arena_bytes,
                    graph_bytes=counts.graph_bytes,
                    storage=api.Storage.ValueType(index.parameters.storage),
                    graph=api.GraphCode.ValueType(counts.graph),
                    measured_recall=counts.measured_recall,
                    measured_query_count=counts.measured_query_count,
                    calibrated_ef=counts.calibrated_ef,
                )
            )
        stats.payload_indexes.extend(reading.payload_index_stats(collection, visible))
        return api.GetCollectionStatsResponse(header=calls.header(self._shard, sequence), stats=stats)

    async def _update(self, request: api.UpdateCollectionRequest) -> command_pb2.CommandResult:
        """Write an update, one at a time: its record holds the whole definition, so it must follow from the last one."""

        def build(command: command_pb2.Command) -> None:
            collection = self._shard.state.collection(request.name)
            command.update_collection.collection_uid = collection.uid
            command.update_collection.config.CopyFrom(configuration.updated_config(collection.config, request))

        async with self._updating:
            return await calls.write(self._shard, request, build)

    def _updated(self, name: str, sequence: int) -> api.Collection:
        """The collection that a record updated, as it is now. Its uid is the sequence of its creation, so a later one is another."""
        collection = self._shard.state.collection(name)
        if collection.uid > sequence:
            raise CollectionNotFoundError(f"collection {name!r} was updated and has been deleted since")
        return _describe(collection)

    def _by_uid(self, uid: int, name: str) -> api.Collection:
        collection = self._shard.state.by_uid.get(uid)
        if collection is None:
            raise CollectionNotFoundError(f"collection {name!r} was created and has been deleted since")
        return _describe(collection)


def _describe(collection: Collection) -> api.Collection:
    described = api.Collection(name=collection.name, config=collection.config, uid=collection.uid)
    described.created_at.FromMilliseconds(collection.created_at_unix_ms)
    return described


def _damaged(name: str, uid: int, damage: str) -> api.Collection:
    return api.Collection(name=name, uid=uid, damage=damage)
