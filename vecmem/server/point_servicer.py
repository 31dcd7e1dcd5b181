"""PointService: see proto/vecmem/v1/points.proto for what it promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sized
from typing import Any

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError, VecmemError
from vecmem.index.filter import CompiledFilter, compile_filter
from vecmem.server import calls
from vecmem.server.calls import Context, streaming, unary
from vecmem.server.error_table import error_message
from vecmem.server.stream_window import OutstandingBatch, StreamWindow
from vecmem.store import reading, search, validation, wire
from vecmem.store.lanes import Answer, SearchLanes
from vecmem.store.shard import Shard
from vecmem.store.v1 import command_pb2
from vecmem.v1 import points_pb2 as api
from vecmem.v1 import points_pb2_grpc


class PointServicer(points_pb2_grpc.PointServiceServicer):
    """Points of one shard. `lanes` run searches."""

    def __init__(self, shard: Shard, lanes: SearchLanes) -> None:
        self._shard = shard
        self._lanes = lanes

    # -- writing ----------------------------------------------------------------------------------------------------------

    @unary
    async def Upsert(self, request: api.UpsertRequest, context: Context) -> api.UpsertResponse:
        """See the proto."""
        response = api.UpsertResponse()
        self._fill_upsert(response, await calls.commit(self._shard, await self._prepare_upsert(request)))
        return response

    @unary
    async def UpsertBatch(self, request: api.UpsertBatchRequest, context: Context) -> api.UpsertBatchResponse:
        """See the proto."""
        _check_batch(request.requests)
        response = api.UpsertBatchResponse()
        writing: list[tuple[api.UpsertOutcome, calls.Prepared]] = []
        pause = calls.Pause()
        for one in request.requests:
            outcome = response.outcomes.add()
            try:
                prepared = await self._prepare_upsert(one)
            except VecmemError as error:
                outcome.error.CopyFrom(error_message(error))
            else:
                writing.append((outcome, prepared))
            await pause.when_due()
        results = await asyncio.gather(
            *(calls.commit(self._shard, prepared) for _, prepared in writing), return_exceptions=True
        )
        for (outcome, _), result in zip(writing, results, strict=True):
            if isinstance(result, VecmemError):
                outcome.error.CopyFrom(error_message(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                self._fill_upsert(outcome.result, result)
        response.header.CopyFrom(calls.header(self._shard, self._shard.applied_sequence))
        return response

    @streaming
    async def UpsertStream(
        self,
        requests: AsyncIterator[api.UpsertStreamRequest],
        context: Context,
    ) -> AsyncIterator[api.UpsertStreamResponse]:
        """See the proto. Batches become durable while later ones are read; replies come in the order of the batches."""
        window = StreamWindow()
        reader = asyncio.create_task(self._read_batches(requests, window))
        reader.add_done_callback(_look_at)
        batch_count = point_count = 0
        try:
            while (batch := await window.oldest()) is not None:
                result = await batch.result
                window.remove_oldest()
                batch_count += 1
                point_count += batch.point_count
                yield api.UpsertStreamResponse(
                    header=calls.header(self._shard, result.sequence),
                    acknowledged_batch_count=batch_count,
                    acknowledged_point_count=point_count,
                    conflicts=_conflicts(result),
                )
            await reader
        finally:
            # What it has queued is decided one way or the other; nobody is left to hear of it.
            reader.cancel()

    @unary
    async def Delete(self, request: api.DeleteRequest, context: Context) -> api.DeleteResponse:
        """See the proto."""

        def build(command: command_pb2.Command) -> None:
            collection = self._shard.state.collection(request.collection)
            command.delete_points.CopyFrom(validation.delete_command(collection, request))

        await self._prepare_selection(request)
        result = await calls.write(self._shard, request, build)
        return api.DeleteResponse(header=calls.header(self._shard, result.sequence), deleted_count=result.deleted_count)

    @unary
    async def UpdatePayload(
        self,
        request: api.UpdatePayloadRequest,
        context: Context,
    ) -> api.UpdatePayloadResponse:
        """See the proto."""

        def build(command: command_pb2.Command) -> None:
            collection = self._shard.state.collection(request.collection)
            command.update_payloads.CopyFrom(validation.update_payload_command(collection, request))

        await self._prepare_selection(request)
        result = await calls.write(self._shard, request, build, grows=not request.HasField("remove"))
        return api.UpdatePayloadResponse(
            header=calls.header(self._shard, result.sequence),
            updated_count=result.updated_count,
            version=result.version if result.updated_count else 0,
        )

    # -- reading ----------------------------------------------------------------------------------------------------------

    @unary
    async def Get(self, request: api.GetRequest, context: Context) -> api.GetResponse | bytes:
        """See the proto."""
        return await self._get(request, reading.ReplySize())

    @unary
    async def GetBatch(self, request: api.GetBatchRequest, context: Context) -> api.GetBatchResponse | bytes:
        """See the proto."""
        _check_batch(request.requests)
        outcomes: list[bytes] = []
        reply = reading.ReplySize()
        pause = calls.Pause()
        for one in request.requests:
            try:
                outcomes.append(wire.message_field(1, await self._get(one, reply)))
            except VecmemError as error:
                outcomes.append(_error_field(error))
            await pause.when_due()
        return calls.header_field(self._shard, self._shard.applied_sequence) + wire.repeated_field(2, outcomes)

    @unary
    async def Query(self, request: api.QueryRequest, context: Context) -> api.QueryResponse | bytes:
        """See the proto."""
        calls.check_position(self._shard, request.read)
        compiled = search.compile_query(self._shard, request.query)
        sequence, outcomes = await self._lanes.run([compiled], calls.deadline(context))
        answer = outcomes[0]
        if not isinstance(answer, Answer):
            raise answer
        response = calls.header_field(self._shard, sequence) + wire.repeated_field(2, answer.hits)
        return response if answer.explanation is None else response + wire.message_field(3, answer.explanation)

    @unary
    async def QueryBatch(
        self,
        request: api.QueryBatchRequest,
        context: Context,
    ) -> api.QueryBatchResponse | bytes:
        """See the proto."""
        calls.check_position(self._shard, request.read)
        if not request.queries:
            raise InvalidArgumentError("carries no query", field="queries")
        if len(request.queries) > limits.QUERIES_PER_BATCH_MAX:
            raise LimitExceededError(
                f"{len(request.queries)} queries, more than {limits.QUERIES_PER_BATCH_MAX}", field="queries"
            )
        running: list[search.CompiledQuery] = []
        failed: dict[int, VecmemError] = {}
        for index, query in enumerate(request.queries):
            try:
                running.append(search.compile_query(self._shard, query, f"queries[{index}]"))
            except VecmemError as error:
                failed[index] = error
        sequence, outcomes = await self._lanes.run(running, calls.deadline(context))
        ran = iter(outcomes)
        encoded = [_outcome(failed[index] if index in failed else next(ran)) for index in range(len(request.queries))]
        return calls.header_field(self._shard, sequence) + wire.repeated_field(2, encoded)

    @unary
    async def Scroll(self, request: api.ScrollRequest, context: Context) -> api.ScrollResponse | bytes:
        """See the proto."""
        collection, sequence = await calls.begin_read(self._shard, request.read, request.collection)
        page_size = reading.page_size_or_default(request.page_size)
        digest = reading.filter_digest(request.filter if request.HasField("filter") else None)
        # Each shard of a cluster has a uid of its own for a collection, and a walk goes over all of them.
        scope = [0 if self._shard.in_cluster else collection.uid, digest]
        after = reading.decode_page_token(request.page_token, "points", scope)
        compiled = compile_filter(request.filter) if request.HasField("filter") else None
        selection = reading.compile_selection(
            collection,
            request.with_payload if request.HasField("with_payload") else None,
            request.with_vectors if request.HasField("with_vectors") else None,
        )
        if compiled is not None:
            await self._shard.ensure_columns(collection, compiled.paths)
        sequence = self._shard.applied_sequence
        points, last = reading.scroll(
            collection,
            after=after,
            page_size=page_size,
            compiled=compiled,
            selection=selection,
            sequence=sequence,
            now_unix_ms=self._shard.now_unix_ms(),
        )
        token = wire.message_field(3, reading.encode_page_token("points", scope, last).encode()) if last else b""
        return calls.header_field(self._shard, sequence) + wire.repeated_field(2, points) + token

    @unary
    async def Count(self, request: api.CountRequest, context: Context) -> api.CountResponse:
        """See the proto."""
        collection, sequence = await calls.begin_read(self._shard, request.read, request.collection)
        compiled: CompiledFilter | None = None
        if request.HasField("filter"):
            compiled = compile_filter(request.filter)
            await self._shard.ensure_columns(collection, compiled.paths)
        sequence = self._shard.applied_sequence
        count = reading.count(collection, compiled, sequence, self._shard.now_unix_ms())
        return api.CountResponse(header=calls.header(self._shard, sequence), count=count)

    # -- inside -----------------------------------------------------------------------------------------------------------

    async def _prepare_upsert(self, request: api.UpsertRequest) -> calls.Prepared:
        def build(command: command_pb2.Command) -> Iterator[None]:
            collection = self._shard.state.collection(request.collection)
            return validation.upsert_command(collection, request.points, command.upsert_points)

        return await calls.prepare(self._shard, request, build, grows=True)

    def _fill_upsert(self, response: api.UpsertResponse, result: command_pb2.CommandResult) -> None:
        response.header.CopyFrom(calls.header(self._shard, result.sequence))
        response.version = result.version if result.inserted_count or result.updated_count else 0
        response.inserted_count = result.inserted_count
        response.updated_count = result.updated_count
        response.conflicts.extend(_conflicts(result))

    async def _get(self, request: api.GetRequest, reply: reading.ReplySize) -> bytes:
        collection, sequence = await calls.begin_read(self._shard, request.read, request.collection)
        validation.check_ids(request.ids, "ids")
        selection = reading.compile_selection(
            collection,
            request.with_payload if request.HasField("with_payload") else None,
            request.with_vectors if request.HasField("with_vectors") else None,
        )
        self._shard.state.check_names(point_id.encode() for point_id in request.ids)
        points = reading.get(collection, list(request.ids), selection, self._shard.now_unix_ms(), reply)
        return calls.header_field(self._shard, sequence) + wire.repeated_field(2, points)

    async def _read_batches(self, requests: AsyncIterator[api.UpsertStreamRequest], window: StreamWindow) -> None:
        """Start writing batches in the order of their arrival; the window's bound holds the sender back.

        Each is checked before the next one is looked at, so nothing behind a batch refused here is written. What can be
        refused only when it is applied (its collection was deleted, or its request_id used by another call, since it was
        checked) ends the stream as well, but the batches in the window behind it are written all the same.
        """
        collection_name = ""
        try:
            async for request in requests:
                # A batch is the same request whether or not it names its collection, and another one in another collection.
                collection_name = request.collection = request.collection or collection_name
                window.add(await self._begin_batch(request, window))
        finally:
            window.end()

    async def _begin_batch(self, request: api.UpsertStreamRequest, window: StreamWindow) -> OutstandingBatch:
        """Check a batch and queue it when there is room. Raises for a bad one."""

        def build(command: command_pb2.Command) -> Iterator[None]:
            window.check_request_id(command)
            collection = self._shard.state.collection(request.collection)
            return validation.upsert_command(collection, request.points, command.upsert_points)

        prepared = await calls.prepare(self._shard, request, build, grows=True)
        if isinstance(prepared, command_pb2.CommandResult):
            await window.room(0)
            known: asyncio.Future[command_pb2.CommandResult] = asyncio.get_running_loop().create_future()
            known.set_result(prepared)
            return OutstandingBatch(len(request.points), 0, "", 0, known)
        size_bytes = prepared.ByteSize()
        await window.room(size_bytes)
        task = await self._shard.write_in_turn(prepared)
        task.add_done_callback(_look_at)
        return OutstandingBatch(
            len(request.points), size_bytes, prepared.request_id, prepared.request_fingerprint, task
        )

    async def _prepare_selection(self, request: api.DeleteRequest | api.UpdatePayloadRequest) -> None:
        """Build what a filter reads before its record is applied, where it can be done in slices beside other calls."""
        if request.WhichOneof("selector") == "filter":
            collection = self._shard.state.collection(request.collection)
            await self._shard.ensure_columns(collection, compile_filter(request.filter).paths)


def _check_batch(requests: Sized) -> None:
    if not len(requests):
        raise InvalidArgumentError("carries no request", field="requests")
    if len(requests) > limits.REQUESTS_PER_BATCH_MAX:
        raise LimitExceededError(
            f"{len(requests)} requests, more than {limits.REQUESTS_PER_BATCH_MAX}", field="requests"
        )


def _outcome(outcome: Answer | VecmemError) -> bytes:
    """A QueryOutcome."""
    if not isinstance(outcome, Answer):
        return _error_field(outcome)
    result = wire.repeated_field(1, outcome.hits)
    if outcome.explanation is not None:
        result += wire.message_field(2, outcome.explanation)
    return wire.message_field(1, result)


def _error_field(error: VecmemError) -> bytes:
    """The arm `error`, number 2, of the outcome of a batch's part."""
    return wire.message_field(2, error_message(error).SerializeToString())


def _look_at(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from reporting the error of a batch, or of the reader, that a broken stream left behind."""
    if not task.cancelled():
        task.exception()


def _conflicts(result: command_pb2.CommandResult) -> list[api.VersionConflict]:
    return [
        api.VersionConflict(
            id=conflict.id, expected_version=conflict.expected_version, actual_version=conflict.actual_version
        )
        for conflict in result.conflicts
    ]
