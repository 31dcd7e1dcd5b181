"""Writes of PointService over all shards of a cluster: batches are split by the slots of their points."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

from vecmem.cluster import merging
from vecmem.cluster.request_slots import point_slot
from vecmem.errors import (
    RequestIdReusedError,
    VecmemError,
)
from vecmem.server.calls import run_in_slices
from vecmem.server.error_table import error_message
from vecmem.server.point_shards import MOVING_REASONS, PointShards, batch_response, check_count
from vecmem.server.routing import (
    Call,
    Parts,
    Reply,
    call_with,
    merged_header,
    part_write,
)
from vecmem.server.serializers import check_decoded
from vecmem.store import validation
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import common_pb2
from vecmem.v1 import points_pb2 as api

OUTSTANDING_BATCHES_MAX: Final = 8
REQUEST_IDS_SEEN_MAX: Final = 1_024


class PointRouting:
    """Each method has its own way over the shards."""

    def __init__(self, shards: PointShards) -> None:
        self._shards = shards

    async def upsert(self, request: api.UpsertRequest, call: Call) -> Reply:
        """Each shard writes its points, all or none."""
        method = self._shards.methods["Upsert"]
        slots = [point_slot(point.id) for point in request.points]
        reply = await self._shards.router.at_slots(method, request, call, slots)
        if reply is not None:
            return reply
        await self._check_upsert(request, call)

        parts, _ = await self._shards.scatter(method, slots, lambda places: _part_of_upsert(request, places), call)
        return _merged_upsert(request, parts)

    async def upsert_batch(self, request: api.UpsertBatchRequest, call: Call) -> Reply:
        """Each shard gets its parts of all upserts as one batch, in their order."""
        check_count(request.requests)
        errors: dict[int, common_pb2.Error] = {}
        parts: dict[int, Parts] = {}
        slots: dict[int, list[int]] = {}
        left: dict[int, list[int]] = {}
        for index, one in enumerate(request.requests):
            slots[index] = [point_slot(point.id) for point in one.points] or [0]
            left[index] = list(range(len(slots[index])))
            if not self._shards.is_one_shard(slots[index]):
                try:
                    await self._check_upsert(one, call)
                except VecmemError as error:
                    errors[index] = error_message(error)
                    del left[index]
        pauses = self._shards.router.pauses(call)
        while True:
            entries: dict[int, list[tuple[int, list[int]]]] = {}
            for index, places in left.items():
                for number, some in self._shards.by_shard(slots[index], places).items():
                    entries.setdefault(number, []).append((index, some))
            batches = {
                number: api.UpsertBatchRequest(
                    requests=[_part_of_upsert(request.requests[index], places) for index, places in some]
                )
                for number, some in entries.items()
            }
            outcomes = await self._shards.router.gather(self._shards.methods["UpsertBatch"], batches, call)
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
        return batch_response(api.UpsertBatchResponse(), merged)

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
        numbers = sorted(self._shards.by_shard(slots, range(len(slots))))
        async with contextlib.AsyncExitStack() as stack:
            for number in numbers:
                await stack.enter_async_context(lines.setdefault(number, asyncio.Lock()))
            parts, _ = await self._shards.scatter(
                self._shards.methods["Upsert"], slots, lambda places: _part_of_upsert(batch, places), call
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
        method = self._shards.methods[name]
        if request.WhichOneof("selector") == "filter":
            # By an id, so that what a shard has done is not done and counted again where slots have moved between two of them.
            part = type(request)()
            part.CopyFrom(request)
            part.write.request_id = request.write.request_id or uuid.uuid4().hex
            part.write.CopyFrom(part_write(part))
            parts, _ = await self._shards.router.everywhere(method, lambda _: part, replace(call, is_repeatable=True))
            return parts
        ids = request.ids.ids
        slots = [point_slot(point_id) for point_id in ids]
        reply = await self._shards.router.at_slots(method, request, call, slots)
        if reply is not None:
            return reply
        validation.check_ids(ids, "ids.ids")

        def part_of(places: list[int]) -> Any:
            part = type(request)()
            part.CopyFrom(request)
            part.write.CopyFrom(part_write(request))
            part.ids.ClearField("ids")
            part.ids.ids.extend(ids[place] for place in places)
            return part

        parts, _ = await self._shards.scatter(method, slots, part_of, call)
        return parts

    async def _check_upsert(self, request: api.UpsertRequest, call: Call) -> None:
        """Check a batch whole before any part of it is written. What it is checked against may be a little old."""
        collection = self._shards.collection(request.collection)
        if collection is None:
            await self._shards.config_of(request.collection, call)  # raises where there is none
        else:
            await run_in_slices(validation.upsert_command(collection, request.points, command_pb2.UpsertPoints()))


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
