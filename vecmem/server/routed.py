"""What stands between the servicers and the server of a node in a cluster: each method goes through the `Router`.

`RoutedServer` takes the place of the server where servicers are added. One table says how each method finds its shards; a method that is in
none is answered by the node that is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import grpc

from vecmem import limits
from vecmem.cluster import peers as peering
from vecmem.cluster.merging import merge_header, merge_pages
from vecmem.cluster.request_slots import (
    slot_of_keys,
    slot_of_operation,
    slot_of_pipelined,
    slot_of_transaction,
)
from vecmem.errors import LimitExceededError, VecmemError
from vecmem.server.calls import Context, answered, check_deadline, ended
from vecmem.server.error_table import error_message
from vecmem.server.keyspace_servicer import TYPED_SERVICES
from vecmem.server.point_shards import MOVING_REASONS, PointShards
from vecmem.server.routing import (
    Call,
    Method,
    Reply,
    Router,
    answered_parts,
    bare_call,
    call_of,
    merged_header,
    method_of,
)
from vecmem.server.routing_collections import CollectionRouting
from vecmem.server.routing_points import PointRouting
from vecmem.server.routing_queries import QueryRouting
from vecmem.server.routing_streams import StreamRouting, merge_listings
from vecmem.server.serializers import check_decoded
from vecmem.store.keyspace.keys import scan_scope
from vecmem.store.keyspace.paging import decode_bytes_token, encode_bytes_token
from vecmem.store.validation import check_request_id
from vecmem.v1 import channels_pb2, common_pb2, keys_pb2, pipeline_pb2

Route = Callable[[Any, Call], Awaitable[Reply]]
KEYED_SERVICES = frozenset(descriptor.full_name for descriptor, _ in TYPED_SERVICES)


class RoutedServer:
    """Where servicers are added. `finish` adds them to the server, with their ways over the shards."""

    def __init__(self, server: grpc.aio.Server, router: Router) -> None:
        self._server = server
        self._router = router
        self._handlers: dict[str, dict[str, Any]] = {}
        self._methods: dict[str, dict[str, Method]] = {}
        self.collections: CollectionRouting | None = None

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        """Nothing: the generated code registers the same methods by name as well."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Take the methods of a service."""
        self._handlers[service_name] = dict(method_handlers)
        self._methods[service_name] = {
            name: method_of(f"/{service_name}/{name}", _direct(handler))
            for name, handler in method_handlers.items()
            if handler.unary_unary is not None and hasattr(handler.unary_unary, "direct")
        }

    def finish(self) -> None:
        """Add all services to the server."""
        points = self._methods["vecmem.v1.PointService"]
        collections = self._methods["vecmem.v1.CollectionService"]
        self.collections = CollectionRouting(self._router, collections)
        shards = PointShards(self._router, points, collections["GetCollection"])
        point_routing = PointRouting(shards)
        stream_routing = StreamRouting(self._router)
        routes = self._routes(point_routing, QueryRouting(shards), self.collections)
        for service, handlers in self._handlers.items():
            for name, handler in handlers.items():
                path = f"/{service}/{name}"
                if path in routes:
                    handlers[name] = handler._replace(
                        unary_unary=self._unary(self._methods[service][name], routes[path])
                    )
            if service == "vecmem.v1.PointService":
                stream = handlers["UpsertStream"]
                handlers["UpsertStream"] = stream._replace(
                    stream_stream=self._stream_stream(stream.stream_stream, point_routing.upsert_stream)
                )
            elif service == "vecmem.v1.WatchService":
                handlers["Watch"] = self._listening(handlers["Watch"], stream_routing.watch)
            elif service == "vecmem.v1.ChannelService":
                handlers["Subscribe"] = self._listening(handlers["Subscribe"], stream_routing.subscribe)
            self._server.add_registered_method_handlers(service, handlers)

    def _routes(self, points: PointRouting, queries: QueryRouting, collections: CollectionRouting) -> dict[str, Route]:
        """How each unary method finds its shards, by its path."""
        routes: dict[str, Route] = {
            "/vecmem.v1.PointService/Upsert": points.upsert,
            "/vecmem.v1.PointService/UpsertBatch": points.upsert_batch,
            "/vecmem.v1.PointService/Get": queries.get,
            "/vecmem.v1.PointService/GetBatch": queries.get_batch,
            "/vecmem.v1.PointService/Delete": points.delete,
            "/vecmem.v1.PointService/UpdatePayload": points.update_payload,
            "/vecmem.v1.PointService/Query": queries.query,
            "/vecmem.v1.PointService/QueryBatch": queries.query_batch,
            "/vecmem.v1.PointService/Scroll": queries.scroll,
            "/vecmem.v1.PointService/Count": queries.count,
            "/vecmem.v1.CollectionService/CreateCollection": collections.create_collection,
            "/vecmem.v1.CollectionService/GetCollection": collections.get_collection,
            "/vecmem.v1.CollectionService/ListCollections": collections.list_collections,
            "/vecmem.v1.CollectionService/UpdateCollection": collections.update_collection,
            "/vecmem.v1.CollectionService/DeleteCollection": collections.delete_collection,
            "/vecmem.v1.CollectionService/GetCollectionStats": collections.get_collection_stats,
            "/vecmem.v1.TransactionService/Commit": self._at_slot(
                "vecmem.v1.TransactionService", "Commit", slot_of_transaction
            ),
            "/vecmem.v1.ChannelService/Publish": self._at_slot(
                "vecmem.v1.ChannelService", "Publish", lambda request: slot_of_keys([request.channel])
            ),
            "/vecmem.v1.ChannelService/ListChannels": self._list_channels,
            "/vecmem.v1.PipelineService/Pipeline": self._pipeline,
        }
        for service in KEYED_SERVICES:
            for name in self._methods[service]:
                routes[f"/{service}/{name}"] = self._at_slot(service, name, slot_of_operation)
        routes["/vecmem.v1.KeyService/ScanKeys"] = self._scan_keys
        return routes

    def _at_slot(self, service: str, name: str, slot_of: Callable[[Any], int]) -> Route:
        method = self._methods[service][name]

        async def route(request: Any, call: Call) -> Reply:
            return await self._router.at_slot(method, request, call, slot_of(request))

        return route

    def _unary(self, method: Method, route: Route) -> Callable[[Any, Context], Awaitable[Any]]:
        router = self._router
        of_collections = method.path.startswith("/vecmem.v1.CollectionService/")
        of_pipelines = method.path == "/vecmem.v1.PipelineService/Pipeline"

        async def find(request: Any, context: Context) -> Reply:
            check_decoded(request)
            check_deadline(context)
            call = call_of(context, request)
            if call.part_of_shard is not None:
                return await router.part(method, request, call)
            router.check_read(call.read)
            # The operations of a pipeline have ids of their own, so that a repeat finds them when there are more shards.
            in_parts = of_collections or (of_pipelines and request.write.request_id)
            if not in_parts:
                reply = await router.at(method, request, call, router.only_shard)
                if reply is not None:
                    return reply
            return await route(request, call)

        async def behaviour(request: Any, context: Context) -> Any:
            return await answered(find(request, context), method.path, context)

        return behaviour

    def _stream_stream(self, here: Any, routed: Any) -> Any:
        router = self._router

        async def behaviour(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            if router.view.slot_map.is_single and router.leads():
                async for reply in here(requests, context):
                    yield reply
                return
            call = bare_call(context)
            async for reply in ended(routed(requests, call), context):
                yield reply

        return behaviour

    def _listening(self, handler: Any, routed: Any) -> Any:
        here = handler.unary_stream
        router = self._router

        async def behaviour(request: Any, context: Context) -> AsyncIterator[Any]:
            part = dict(context.invocation_metadata() or ()).get(peering.SHARD_KEY)
            if part is not None or (router.view.slot_map.is_single and router.leads()):
                replies = here(request, context)
            else:
                check_decoded(request)
                replies = ended(routed(request), context)
            async with contextlib.aclosing(replies):
                async for reply in replies:
                    yield reply

        return handler._replace(unary_stream=behaviour)

    # -- ways of single methods ---------------------------------------------------------------------------------------

    async def _scan_keys(self, request: keys_pb2.ScanKeysRequest, call: Call) -> Reply:
        """The first keys of all shards behind the token's."""
        method = self._methods["vecmem.v1.KeyService"]["ScanKeys"]
        parts, failures = await self._router.everywhere(method, lambda _: request, call)
        scope = scan_scope(request)
        pages = [
            (reply.keys, decode_bytes_token(reply.next_page_token, "keys", scope) if reply.next_page_token else None)
            for _, reply in parts
        ]
        keys, looked_to = merge_pages(pages, bytes, request.page_size or 100)
        return keys_pb2.ScanKeysResponse(
            header=merged_header(parts, failures),
            keys=keys,
            next_page_token="" if looked_to is None else encode_bytes_token("keys", scope, looked_to),
        )

    async def _list_channels(self, request: channels_pb2.ListChannelsRequest, call: Call) -> Reply:
        method = self._methods["vecmem.v1.ChannelService"]["ListChannels"]
        numbers = self._router.view.slot_map.numbers
        parts, _ = answered_parts(
            await self._router.gather(method, dict.fromkeys(numbers, request), call), allow_partial=False
        )
        replies = [reply for _, reply in parts]
        channels, more = merge_listings(replies, request.page_size or 100)
        return channels_pb2.ListChannelsResponse(
            header=merged_header(parts),
            channels=channels,
            more=more,
            pattern_subscriber_count=max(reply.pattern_subscriber_count for reply in replies),
        )

    async def _pipeline(self, request: pipeline_pb2.PipelineRequest, call: Call) -> Reply:
        """Each shard runs the operations on its keys, in their order; those of different shards are in no order between them.

        A walk over keys is over all shards, and comes after what stands before it.
        """
        headers: list[tuple[int, Any]] = []
        response = pipeline_pb2.PipelineResponse()
        count = len(request.operations)
        if not 0 < count <= limits.OPERATIONS_PER_PIPELINE_MAX:
            method = self._methods["vecmem.v1.PipelineService"]["Pipeline"]  # which refuses it
            return await self._router.at(method, request, call, lambda: self._router.view.slot_map.numbers[0])
        check_request_id(request.write.request_id)
        self._check_leads_all(request, call)
        start = 0
        for place in range(count + 1):
            scans = place < count and request.operations[place].WhichOneof("kind") == "scan_keys"
            if scans or place == count:
                if start < place:
                    response.results.extend(await self._run_operations(request, range(start, place), call, headers))
                start = place + 1
            if scans:
                response.results.append(await self._scan_in_pipeline(request, place, call, headers))
        if headers:
            response.header.CopyFrom(merge_header(headers))
        if response.ByteSize() > limits.MESSAGE_BYTES_MAX:
            raise LimitExceededError("the reply is too large: ask for less at a time", field="operations")
        return response

    def _check_leads_all(self, request: pipeline_pb2.PipelineRequest, call: Call) -> None:
        """Raises MovedError for a client that goes there by itself, where another node has all keys."""
        if call.accepts_moved and all(operation.WhichOneof("kind") != "scan_keys" for operation in request.operations):
            shard_of = self._router.shard_of
            slots = [slot_of_pipelined(operation) for operation in request.operations]
            numbers = {int(shard_of[slot]) for slot in slots}
            if len(numbers) == 1:
                self._router.check_here(numbers.pop(), slots[0], call)

    async def _scan_in_pipeline(
        self, request: pipeline_pb2.PipelineRequest, place: int, call: Call, headers: list[tuple[int, Any]]
    ) -> pipeline_pb2.OperationResult:
        scan = keys_pb2.ScanKeysRequest()
        scan.CopyFrom(request.operations[place].scan_keys)
        scan.read.CopyFrom(request.read)
        try:
            page = await self._scan_keys(scan, call)
        except VecmemError as error:
            return pipeline_pb2.OperationResult(error=error_message(error))
        headers += [
            (position.shard, common_pb2.ResponseHeader(position=position)) for position in page.header.positions
        ]
        page.ClearField("header")
        return pipeline_pb2.OperationResult(scan_keys=page)

    async def _run_operations(
        self, request: pipeline_pb2.PipelineRequest, places: range, call: Call, headers: list[tuple[int, Any]]
    ) -> list[pipeline_pb2.OperationResult]:
        """Run some operations of a pipeline in a row, and note what the replies reflect."""
        method = self._methods["vecmem.v1.PipelineService"]["Pipeline"]
        slots = {place: slot_of_pipelined(request.operations[place]) for place in places}
        results: dict[int, pipeline_pb2.OperationResult] = {}
        pauses = self._router.pauses(call)
        left = list(places)
        while left:
            shard_of = self._router.shard_of
            by_shard: dict[int, list[int]] = {}
            for place in left:
                by_shard.setdefault(int(shard_of[slots[place]]), []).append(place)
            parts = {}
            for number, some in by_shard.items():
                part = parts[number] = pipeline_pb2.PipelineRequest(read=request.read)
                for place in some:
                    operation = part.operations.add()
                    operation.CopyFrom(request.operations[place])
                    if request.write.request_id and not operation.request_id:
                        # Of its own: a repeat may be divided otherwise, where slots have moved meanwhile.
                        whole = hashlib.sha256(request.write.request_id.encode()).hexdigest()
                        operation.request_id = f"{whole}#{place}"
            outcomes = await self._router.gather(method, parts, call)
            answered_now, _ = answered_parts(outcomes, allow_partial=False)
            left = []
            for number, reply in answered_now:
                headers.append((number, reply.header))
                for place, result in zip(by_shard[number], reply.results, strict=True):
                    if result.error.reason in MOVING_REASONS:
                        left.append(place)
                    results[place] = result
            if left:
                left.sort()
                await anext(pauses)
        return [results[place] for place in places]


def _direct(handler: Any) -> Callable[[Any, Context], Awaitable[Reply]]:
    bound = handler.unary_unary
    direct = bound.direct
    return cast("Callable[[Any, Context], Awaitable[Reply]]", direct.__get__(bound.__self__))
