"""Reads of PointService over all shards of a cluster: searches are scattered, and their hits merged exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from vecmem import limits
from vecmem.cluster import merging
from vecmem.cluster.request_slots import point_slot
from vecmem.errors import (
    PointNotFoundError,
    VecmemError,
)
from vecmem.server.error_table import error_message
from vecmem.server.point_shards import PointShards, batch_response, check_count, check_size
from vecmem.server.routing import (
    Call,
    Parts,
    Reply,
    call_with,
    merged_header,
)
from vecmem.store import reading, validation
from vecmem.v1 import common_pb2
from vecmem.v1 import points_pb2 as api


class QueryRouting:
    """Each method has its own way over the shards."""

    def __init__(self, shards: PointShards) -> None:
        self._shards = shards

    async def get(self, request: api.GetRequest, call: Call) -> Reply:
        """Each shard gives its points; they come in the order of the request."""
        method = self._shards.methods["Get"]
        slots = [point_slot(point_id) for point_id in request.ids]
        reply = await self._shards.router.at_slots(method, request, call, slots)
        if reply is not None:
            return reply
        validation.check_ids(request.ids, "ids")

        def part_of(places: list[int]) -> api.GetRequest:
            part = api.GetRequest()
            part.CopyFrom(request)
            part.ClearField("ids")
            part.ids.extend(request.ids[place] for place in places)
            return part

        parts, failures = await self._shards.scatter(method, slots, part_of, call)
        found = {point.id: point for _, reply in parts for point in reply.points}
        response = api.GetResponse(header=merged_header(parts, failures))
        response.points.extend(found[point_id] for point_id in request.ids if point_id in found)
        check_size(response)
        return response

    async def get_batch(self, request: api.GetBatchRequest, call: Call) -> Reply:
        """Each get on its own way."""
        check_count(request.requests)
        outcomes = await asyncio.gather(*(_outcome(self.get(one, call_with(call, one))) for one in request.requests))
        return batch_response(api.GetBatchResponse(), outcomes)

    async def query(self, request: api.QueryRequest, call: Call) -> Reply:
        """The best hits of all shards."""
        query = request.query
        wanted = await self._for_shards(query, call)
        part = api.QueryRequest(query=wanted, read=request.read)
        parts, failures = await self._shards.router.everywhere(self._shards.methods["Query"], lambda _: part, call)
        lower_is_better = await self._lower_is_better(query, call)
        response = api.QueryResponse(header=merged_header(parts, failures))
        result = _merged(query, [reply for _, reply in parts], lower_is_better=lower_is_better)
        response.hits.extend(result.hits)
        if query.explain:
            response.explanation.CopyFrom(result.explanation)
        check_size(response)
        return response

    async def query_batch(self, request: api.QueryBatchRequest, call: Call) -> Reply:
        """All queries at each shard, and each merged by itself."""
        check_count(request.queries, "queries")
        prepared = await asyncio.gather(*(self._prepared(query, call) for query in request.queries))
        part = api.QueryBatchRequest(
            queries=[query for query in prepared if isinstance(query, api.Query)], read=request.read
        )
        response = api.QueryBatchResponse()
        parts: Parts = []
        if part.queries:
            parts, failures = await self._shards.router.everywhere(
                self._shards.methods["QueryBatch"], lambda _: part, call
            )
            response.header.CopyFrom(merged_header(parts, failures))
        place = 0
        for query, known in zip(request.queries, prepared, strict=True):
            outcome = response.outcomes.add()
            if isinstance(known, VecmemError):
                outcome.error.CopyFrom(error_message(known))
                continue
            outcomes = [reply.outcomes[place] for _, reply in parts]
            place += 1
            failed = next((one for one in outcomes if one.HasField("error")), None)
            if failed is not None:
                outcome.error.CopyFrom(failed.error)
                continue
            lower_is_better = await self._lower_is_better(query, call)
            outcome.result.CopyFrom(_merged(query, [one.result for one in outcomes], lower_is_better=lower_is_better))
        check_size(response)
        return response

    async def scroll(self, request: api.ScrollRequest, call: Call) -> Reply:
        """The first ids of all shards behind the token's."""
        method = self._shards.methods["Scroll"]
        page_size = reading.page_size_or_default(request.page_size)
        scope = [0, reading.filter_digest(request.filter if request.HasField("filter") else None)]
        reading.decode_page_token(request.page_token, "points", scope)
        parts, failures = await self._shards.router.everywhere(method, lambda _: request, call)
        pages = [
            (
                reply.points,
                reading.decode_page_token(reply.next_page_token, "points", scope).encode()
                if reply.next_page_token
                else None,
            )
            for _, reply in parts
        ]
        points, looked_to = merging.merge_pages(pages, lambda point: point.id.encode(), page_size)
        response = api.ScrollResponse(header=merged_header(parts, failures), points=points)
        while response.ByteSize() > 2 * reading.PAGE_BYTES_MAX and len(response.points) > 1:
            del response.points[len(response.points) // 2 :]
            looked_to = response.points[-1].id.encode()
        if looked_to is not None:
            response.next_page_token = reading.encode_page_token("points", scope, looked_to.decode())
        return response

    async def count(self, request: api.CountRequest, call: Call) -> Reply:
        """The sum."""
        parts, failures = await self._shards.router.everywhere(self._shards.methods["Count"], lambda _: request, call)
        return api.CountResponse(header=merged_header(parts, failures), count=sum(reply.count for _, reply in parts))

    async def _prepared(self, query: api.Query, call: Call) -> api.Query | VecmemError:
        try:
            return await self._for_shards(query, call)
        except VecmemError as error:
            return error

    async def _for_shards(self, query: api.Query, call: Call) -> api.Query:
        """What each shard is asked: as many hits as are wanted of all, and the vector itself instead of its point."""
        if not query.limit or query.offset + query.limit > limits.HITS_MAX:
            return query  # which each shard refuses
        part = api.Query()
        part.CopyFrom(query)
        part.offset = 0
        part.limit = query.offset + query.limit
        if query.nearest.WhichOneof("kind") == "id":
            # One more, since the point itself is found as well.
            part.limit = min(part.limit + 1, limits.HITS_MAX)
            part.nearest.vector.CopyFrom(await self._vector_of(query, call))
        return part

    async def _vector_of(self, query: api.Query, call: Call) -> common_pb2.Vector:
        point_id, name = query.nearest.id, query.using
        request = api.GetRequest(collection=query.collection, ids=[point_id], read=call.read)
        request.with_payload.all = False
        request.with_vectors.include.names.append(name)
        reply = await self.get(request, call)
        found = api.GetResponse.FromString(reply) if isinstance(reply, bytes) else reply
        for point in found.points:
            if name in point.vectors if name else point.HasField("vector"):
                return point.vectors[name] if name else point.vector
            raise PointNotFoundError(f"point {point_id!r} has no vector {name!r}", field="query.nearest.id")
        raise PointNotFoundError(f"no point {point_id!r}", field="query.nearest.id")

    async def _lower_is_better(self, query: api.Query, call: Call) -> bool:
        config = await self._shards.config_of(query.collection, call)
        vector = config.vectors[query.using] if query.using else config.vector
        return bool(vector.metric == common_pb2.METRIC_EUCLIDEAN)


def _merged(query: api.Query, parts: Sequence[Any], *, lower_is_better: bool) -> api.QueryResult:
    """The result of a query of those of the shards."""
    without_id = query.nearest.id if query.nearest.WhichOneof("kind") == "id" else ""
    hits = merging.merge_hits(
        [part.hits for part in parts],
        lower_is_better=lower_is_better,
        offset=query.offset,
        limit=query.limit,
        without_id=without_id,
    )
    result = api.QueryResult(hits=hits)
    if query.explain:
        result.explanation.CopyFrom(merging.merge_explanations([part.explanation for part in parts]))
    return result


async def _outcome(answer: Any) -> Reply | VecmemError:
    try:
        return await answer
    except VecmemError as error:
        return error
