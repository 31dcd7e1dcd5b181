"""PointService over all shards of a cluster: batches are split by the slots of their points, searches are scattered and merged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from vecmem import limits
from vecmem.cluster import merging
from vecmem.cluster.request_slots import point_slot
from vecmem.errors import (
    CollectionDamagedError,
    CollectionNotFoundError,
    InvalidArgumentError,
    LimitExceededError,
    MovedError,
    PointNotFoundError,
    RequestIdReusedError,
    VecmemError,
)
from vecmem.server.calls import run_in_slices
from vecmem.server.error_table import error_message
from vecmem.server.routing import (
    Call,
    Method,
    Parts,
    Reply,
    Router,
    answered_parts,
    call_with,
    merged_header,
    part_write,
)
from vecmem.server.serializers import check_decoded
from vecmem.store import reading, validation
from vecmem.store.collection import Collection
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import collections_pb2, common_pb2
from vecmem.v1 import points_pb2 as api

OUTSTANDING_BATCHES_MAX: Final = 8
REQUEST_IDS_SEEN_MAX: Final = 1_024
MOVING_REASONS: Final = ("MOVED", "SLOT_MOVING")
Methods = dict[str, Method]
"""The methods of the service, by their names."""


class PointRouting:
    """Each method has its own way over the shards; with one shard all go to whoever leads it."""

    def __init__(self, router: Router, methods: Methods, get_collection: Method) -> None:
        self._router = router
        self._methods = methods
        self._get_collection = get_collection

    # -- writing ------------------------------------------------------------------------------------------------------

    async def upsert(self, request: api.UpsertRequest, call: Call) -> Reply:
        """Each shard writes its points, all or none."""
        method = self._methods["Upsert"]
        slots = [point_slot(point.id) for point in request.points]
        if self._is_one_shard(slots):
            return await self._router.at_slot(method, request, call, slots[0] if slots else 0)
        await self._check_upsert(request, call)

        parts, _ = await self._scatter(method, slots, lambda places: _part_of_upsert(request, places), call)
        return _merged_upsert(request, parts)

    async def upsert_batch(self, request: api.UpsertBatchRequest, call: Call) -> Reply:
        """Each shard gets its parts of all upserts as one batch, in their order."""
        _check_count(request.requests)
        errors: dict[int, common_pb2.Error] = {}
        parts: dict[int, Parts] = {}
        slots: dict[int, list[int]] = {}
        left: dict[int, list[int]] = {}
        for index, one in enumerate(request.requests):
            slots[index] = [point_slot(point.id) for point in one.points] or [0]
            left[index] = list(range(len(slots[index])))
            if not self._is_one_shard(slots[index]):
                try:
                    await self._check_upsert(one, call)
                except VecmemError as error:
                    errors[index] = error_message(error)
                    del left[index]
        pauses = self._router.pauses(call)
        while True:
            entries: dict[int, list[tuple[int, list[int]]]] = {}
            for index, places in left.items():
                for number, some in self._by_shard(slots[index], places).items():
                    entries.setdefault(number, []).append((index, some))
            batches = {
                number: api.UpsertBatchRequest(
                    requests=[_part_of_upsert(request.requests[index], places) for index, places in some]
                )
                for number, some in entries.items()
            }
            outcomes = await self._router.gather(self._methods["UpsertBatch"], batches, call)
            left = {}
            for number, reply in outcomes.items():
                for place, (index, places) in enumerate(entries[number]):
                    outcome = (
                        api.UpsertOutcome(error=error_message(reply))
                        if isinstance(reply, VecmemError)
                        else reply.outcomes[place]
                    )
                    if outcome.error.reason in MOVING_REASONS:
                        left.setdefault(index, []).extend(places)
                    elif outcome.HasField("error"):
                        errors[index] = outcome.error
                    else:
                        parts.setdefault(index, []).append((number, outcome.result))
            if not left:
                break
            await anext(pauses)
        merged = [
            errors[index] if index in errors else _merged_upsert(one, parts[index])
            for index, one in enumerate(request.requests)
        ]
        return _batch_response(api.UpsertBatchResponse(), merged)

    async def upsert_stream(
        self, requests: AsyncIterator[api.UpsertStreamRequest], call: Call
    ) -> AsyncIterator[api.UpsertStreamResponse]:
        """Batches are written while later ones are read, and acknowledged in their order."""
        outstanding: asyncio.Queue[asyncio.Task[Any] | BaseException | None] = asyncio.Queue(OUTSTANDING_BATCHES_MAX)
        lines: dict[int, asyncio.Lock] = {}
        request_ids: dict[str, int] = {}

        async def read() -> None:
            collection = ""
            try:
                async for request in requests:
                    check_decoded(request)
                    collection = request.collection = request.collection or collection
                    _check_request_id(request, request_ids)
                    batch = api.UpsertRequest(collection=collection, points=request.points, write=request.write)
                    # Checked before the next one is looked at: nothing behind a refused batch is written.
                    await self._check_upsert(batch, call)
                    batch.write.CopyFrom(part_write(request))
                    # In its order at each shard: who comes first has locked first.
                    slots = [point_slot(point.id) for point in batch.points]
                    task = asyncio.ensure_future(self._acknowledged(batch, slots, lines, call_with(call, batch)))
                    await asyncio.sleep(0)
                    await outstanding.put(task)
            except Exception as error:  # noqa: BLE001 - raised where the batches before are answered
                await outstanding.put(error)
            await outstanding.put(None)

        reader = asyncio.create_task(read())
        batch_count = point_count = 0
        try:
            while (batch := await outstanding.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                points, reply = await batch
                batch_count += 1
                point_count += points
                yield api.UpsertStreamResponse(
                    header=reply.header,
                    acknowledged_batch_count=batch_count,
                    acknowledged_point_count=point_count,
                    conflicts=reply.conflicts,
                )
        finally:
            reader.cancel()

    async def _acknowledged(
        self, batch: api.UpsertRequest, slots: Sequence[int], lines: dict[int, asyncio.Lock], call: Call
    ) -> tuple[int, api.UpsertResponse]:
        """Write a batch behind those before it that have a shard in common."""
        numbers = sorted(self._by_shard(slots, range(len(slots))))
        async with contextlib.AsyncExitStack() as stack:
            for number in numbers:
                await stack.enter_async_context(lines.setdefault(number, asyncio.Lock()))
            parts, _ = await self._scatter(
                self._methods["Upsert"], slots, lambda places: _part_of_upsert(batch, places), call
            )
        return len(batch.points), _merged_upsert(batch, parts)

    async def delete(self, request: api.DeleteRequest, call: Call) -> Reply:
        """By ids at the shards that have them, by filter at all."""
        parts = await self._selected("Delete", request, call)
        if not isinstance(parts, list):
            return parts
        deleted_count = sum(reply.deleted_count for _, reply in parts)
        return api.DeleteResponse(header=merged_header(parts), deleted_count=deleted_count)

    async def update_payload(self, request: api.UpdatePayloadRequest, call: Call) -> Reply:
        """By ids at the shards that have them, by filter at all."""
        parts = await self._selected("UpdatePayload", request, call)
        if not isinstance(parts, list):
            return parts
        changed = [reply for _, reply in parts if reply.updated_count]
        return api.UpdatePayloadResponse(
            header=merged_header(parts),
            updated_count=sum(reply.updated_count for reply in changed),
            version=changed[0].version if len(changed) == 1 else 0,
        )

    async def _selected(self, name: str, request: Any, call: Call) -> Parts | Reply:
        method = self._methods[name]
        if request.WhichOneof("selector") == "filter":
            parts, _ = await self._router.everywhere(method, lambda _: request, call)
            return parts
        ids = request.ids.ids
        slots = [point_slot(point_id) for point_id in ids]
        if self._is_one_shard(slots):
            return await self._router.at_slot(method, request, call, slots[0] if slots else 0)
        validation.check_ids(ids, "ids.ids")

        def part_of(places: list[int]) -> Any:
            part = type(request)()
            part.CopyFrom(request)
            part.write.CopyFrom(part_write(request))
            part.ids.ClearField("ids")
            part.ids.ids.extend(ids[place] for place in places)
            return part

        parts, _ = await self._scatter(method, slots, part_of, call)
        return parts

    async def _check_upsert(self, request: api.UpsertRequest, call: Call) -> None:
        """Check a batch whole before any part of it is written. What it is checked against may be a little old."""
        collection = self._collection(request.collection)
        if collection is None:
            await self._config_of(request.collection, call)  # raises where there is none
        else:
            await run_in_slices(validation.upsert_command(collection, request.points, command_pb2.UpsertPoints()))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, request: api.GetRequest, call: Call) -> Reply:
        """Each shard gives its points; they come in the order of the request."""
        method = self._methods["Get"]
        slots = [point_slot(point_id) for point_id in request.ids]
        if self._is_one_shard(slots):
            return await self._router.at_slot(method, request, call, slots[0] if slots else 0)
        validation.check_ids(request.ids, "ids")

        def part_of(places: list[int]) -> api.GetRequest:
            part = api.GetRequest()
            part.CopyFrom(request)
            part.ClearField("ids")
            part.ids.extend(request.ids[place] for place in places)
            return part

        parts, failures = await self._scatter(method, slots, part_of, call)
        found = {point.id: point for _, reply in parts for point in reply.points}
        response = api.GetResponse(header=merged_header(parts, failures))
        response.points.extend(found[point_id] for point_id in request.ids if point_id in found)
        _check_size(response)
        return response

    async def get_batch(self, request: api.GetBatchRequest, call: Call) -> Reply:
        """Each get on its own way."""
        _check_count(request.requests)
        outcomes = await asyncio.gather(*(_outcome(self.get(one, call_with(call, one))) for one in request.requests))
        return _batch_response(api.GetBatchResponse(), outcomes)

    async def query(self, request: api.QueryRequest, call: Call) -> Reply:
        """The best hits of all shards."""
        query = request.query
        wanted = await self._for_shards(query, call)
        part = api.QueryRequest(query=wanted, read=request.read)
        parts, failures = await self._router.everywhere(self._methods["Query"], lambda _: part, call)
        lower_is_better = await self._lower_is_better(query, call)
        response = api.QueryResponse(header=merged_header(parts, failures))
        result = _merged(query, [reply for _, reply in parts], lower_is_better=lower_is_better)
        response.hits.extend(result.hits)
        if query.explain:
            response.explanation.CopyFrom(result.explanation)
        _check_size(response)
        return response

    async def query_batch(self, request: api.QueryBatchRequest, call: Call) -> Reply:
        """All queries at each shard, and each merged by itself."""
        _check_count(request.queries, "queries")
        prepared = await asyncio.gather(*(self._prepared(query, call) for query in request.queries))
        part = api.QueryBatchRequest(
            queries=[query for query in prepared if isinstance(query, api.Query)], read=request.read
        )
        response = api.QueryBatchResponse()
        parts: Parts = []
        if part.queries:
            parts, failures = await self._router.everywhere(self._methods["QueryBatch"], lambda _: part, call)
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
        _check_size(response)
        return response

    async def scroll(self, request: api.ScrollRequest, call: Call) -> Reply:
        """The first ids of all shards behind the token's."""
        method = self._methods["Scroll"]
        page_size = reading.page_size_or_default(request.page_size)
        scope = [0, reading.filter_digest(request.filter if request.HasField("filter") else None)]
        reading.decode_page_token(request.page_token, "points", scope)
        parts, failures = await self._router.everywhere(method, lambda _: request, call)
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
        parts, failures = await self._router.everywhere(self._methods["Count"], lambda _: request, call)
        return api.CountResponse(header=merged_header(parts, failures), count=sum(reply.count for _, reply in parts))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _is_one_shard(self, slots: Sequence[int]) -> bool:
        shard_of = self._router.view.slot_map.shard_of
        return len({int(shard_of[slot]) for slot in slots}) <= 1

    def _by_shard(self, slots: Sequence[int], places: Sequence[int]) -> dict[int, list[int]]:
        """Some places of a request, given the slots of all, by the shard that has their slot."""
        shard_of = self._router.view.slot_map.shard_of
        found: dict[int, list[int]] = {}
        for place in places:
            found.setdefault(int(shard_of[slots[place]]), []).append(place)
        return found

    async def _scatter(
        self, method: Method, slots: Sequence[int], part_of: Callable[[list[int]], Any], call: Call
    ) -> tuple[Parts, list[common_pb2.ShardFailure]]:
        """Have each shard do its part, once: what it says has moved goes where it is now.

        `slots` of the places in the request, of some of which `part_of` makes a request.
        """
        pauses = self._router.pauses(call)
        parts: Parts = []
        failures: list[common_pb2.ShardFailure] = []
        left = list(range(len(slots)))
        while True:
            places = self._by_shard(slots, left)
            requests = {number: part_of(some) for number, some in places.items()}
            outcomes = await self._router.gather(method, requests, call)
            moved = [number for number, outcome in outcomes.items() if isinstance(outcome, MovedError)]
            decided = {number: outcome for number, outcome in outcomes.items() if number not in moved}
            answered, failed = answered_parts(decided, allow_partial=call.read.allow_partial)
            parts += answered
            failures += failed
            if not moved:
                return parts, failures
            left = sorted(place for number in moved for place in places[number])
            await anext(pauses)

    def _collection(self, name: str) -> Collection | None:
        """A collection as this node's shard has it; None: it is not known here, or damaged."""
        try:
            return self._router.shard.state.collection(name)
        except (CollectionNotFoundError, CollectionDamagedError):
            return None

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
        config = await self._config_of(query.collection, call)
        vector = config.vectors[query.using] if query.using else config.vector
        return bool(vector.metric == common_pb2.METRIC_EUCLIDEAN)

    async def _config_of(self, name: str, call: Call) -> collections_pb2.CollectionConfig:
        """The definition of a collection, asked of the first shard where it is not known here. Raises CollectionNotFoundError."""
        collection = self._collection(name)
        if collection is not None:
            return collection.config
        request = collections_pb2.GetCollectionRequest(name=name)
        first = self._router.view.slot_map.numbers[0]
        outcomes = await self._router.gather(self._get_collection, {first: request}, call)
        [(_, reply)], _ = answered_parts(outcomes, allow_partial=False)
        config: collections_pb2.CollectionConfig = reply.collection.config
        return config


def _part_of_upsert(request: api.UpsertRequest, places: Sequence[int]) -> api.UpsertRequest:
    part = api.UpsertRequest(collection=request.collection, write=part_write(request))
    part.points.extend(request.points[place] for place in places if place < len(request.points))
    return part


def _merged_upsert(request: api.UpsertRequest, parts: Parts) -> api.UpsertResponse:
    """What the whole batch did; its conflicts in the order of its points."""
    merged = merging.merge_upserts(parts)
    if len(parts) > 1 and merged.conflicts:
        order = {point.id: place for place, point in enumerate(request.points)}
        conflicts = sorted(merged.conflicts, key=lambda conflict: order[conflict.id])
        del merged.conflicts[:]
        merged.conflicts.extend(conflicts)
    return merged


def _batch_response(response: Any, outcomes: Sequence[Reply | VecmemError | common_pb2.Error]) -> Any:
    """The reply to a batch, with the outcome of each of its requests; those that it has no room for are refused by themselves."""
    headers: list[tuple[int, common_pb2.ResponseHeader]] = []
    size_bytes = 0
    for known in outcomes:
        outcome = response.outcomes.add()
        if isinstance(known, VecmemError):
            outcome.error.CopyFrom(error_message(known))
            continue
        if isinstance(known, common_pb2.Error):
            outcome.error.CopyFrom(known)
            continue
        if isinstance(known, bytes):
            outcome.result.ParseFromString(known)
        else:
            outcome.result.CopyFrom(known)
        header = outcome.result.header
        for position in header.positions or (header.position,):
            one = common_pb2.ResponseHeader(position=position, server_time_unix_ms=header.server_time_unix_ms)
            headers.append((position.shard, one))
        size_bytes += outcome.result.ByteSize()
        if size_bytes > limits.MESSAGE_BYTES_MAX:
            size_bytes -= outcome.result.ByteSize()
            outcome.error.CopyFrom(error_message(_too_large()))
    if headers:
        response.header.CopyFrom(merging.merge_header(headers))
    return response


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


def _check_request_id(request: api.UpsertStreamRequest, seen: dict[str, int]) -> None:
    """Raises RequestIdReusedError where another batch of the stream had the request's id: they may be under way together."""
    request_id = request.write.request_id
    if request_id:
        fingerprint = request_fingerprint(request)
        if seen.setdefault(request_id, fingerprint) != fingerprint:
            raise RequestIdReusedError(
                f"request_id {request_id[:40]!r} was used by another batch of the stream", field="write.request_id"
            )
        if len(seen) > REQUEST_IDS_SEEN_MAX:
            del seen[next(iter(seen))]


def _check_count(requests: Any, field: str = "requests") -> None:
    if not len(requests):
        raise InvalidArgumentError("carries no request", field=field)
    if len(requests) > limits.REQUESTS_PER_BATCH_MAX:
        raise LimitExceededError(f"{len(requests)} requests, more than {limits.REQUESTS_PER_BATCH_MAX}", field=field)


def _check_size(response: Any) -> None:
    if response.ByteSize() > limits.MESSAGE_BYTES_MAX:
        raise _too_large()


def _too_large() -> LimitExceededError:
    return LimitExceededError(
        f"the reply is over {limits.MESSAGE_BYTES_MAX} bytes: ask for fewer points, or for less of each", field="ids"
    )
