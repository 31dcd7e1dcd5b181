"""The services for keys: see proto/vecmem/v1, keys.proto, strings.proto and so on, and pipeline.proto.

Each unary method is one operation of vecmem.store.keyspace.operations, so the servicers are made from the descriptors: a method
SetString runs `set_string`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError, MemoryLimitError, VecmemError
from vecmem.server import calls
from vecmem.server.calls import Context, unary
from vecmem.server.error_table import error_message
from vecmem.server.waiting import Lines, wait_for
from vecmem.store.keyspace.operation import Moment, Operation
from vecmem.store.keyspace.operation_keys import keys_of
from vecmem.store.keyspace.operations import OPERATIONS
from vecmem.store.pipeline import Pipeline
from vecmem.store.shard import Shard
from vecmem.store.state_machine import refusal_error
from vecmem.store.v1 import command_pb2
from vecmem.v1 import (
    bitmaps_pb2,
    bitmaps_pb2_grpc,
    common_pb2,
    counters_pb2,
    counters_pb2_grpc,
    geo_pb2,
    geo_pb2_grpc,
    hashes_pb2,
    hashes_pb2_grpc,
    hyperloglog_pb2,
    hyperloglog_pb2_grpc,
    idempotency_pb2,
    idempotency_pb2_grpc,
    json_pb2,
    json_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    lists_pb2,
    lists_pb2_grpc,
    locks_pb2,
    locks_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    queues_pb2,
    queues_pb2_grpc,
    rate_limiters_pb2,
    rate_limiters_pb2_grpc,
    sets_pb2,
    sets_pb2_grpc,
    sorted_sets_pb2,
    sorted_sets_pb2_grpc,
    streams_pb2,
    streams_pb2_grpc,
    strings_pb2,
    strings_pb2_grpc,
)

TYPED_SERVICES: tuple[tuple[Any, Callable[[Any, grpc.aio.Server], None]], ...] = (
    (keys_pb2.DESCRIPTOR.services_by_name["KeyService"], keys_pb2_grpc.add_KeyServiceServicer_to_server),
    (strings_pb2.DESCRIPTOR.services_by_name["StringService"], strings_pb2_grpc.add_StringServiceServicer_to_server),
    (
        counters_pb2.DESCRIPTOR.services_by_name["CounterService"],
        counters_pb2_grpc.add_CounterServiceServicer_to_server,
    ),
    (bitmaps_pb2.DESCRIPTOR.services_by_name["BitmapService"], bitmaps_pb2_grpc.add_BitmapServiceServicer_to_server),
    (hashes_pb2.DESCRIPTOR.services_by_name["HashService"], hashes_pb2_grpc.add_HashServiceServicer_to_server),
    (
        hyperloglog_pb2.DESCRIPTOR.services_by_name["HyperLogLogService"],
        hyperloglog_pb2_grpc.add_HyperLogLogServiceServicer_to_server,
    ),
    (sets_pb2.DESCRIPTOR.services_by_name["SetService"], sets_pb2_grpc.add_SetServiceServicer_to_server),
    (lists_pb2.DESCRIPTOR.services_by_name["ListService"], lists_pb2_grpc.add_ListServiceServicer_to_server),
    (
        sorted_sets_pb2.DESCRIPTOR.services_by_name["SortedSetService"],
        sorted_sets_pb2_grpc.add_SortedSetServiceServicer_to_server,
    ),
    (geo_pb2.DESCRIPTOR.services_by_name["GeoService"], geo_pb2_grpc.add_GeoServiceServicer_to_server),
    (streams_pb2.DESCRIPTOR.services_by_name["StreamService"], streams_pb2_grpc.add_StreamServiceServicer_to_server),
    (json_pb2.DESCRIPTOR.services_by_name["JsonService"], json_pb2_grpc.add_JsonServiceServicer_to_server),
    (queues_pb2.DESCRIPTOR.services_by_name["QueueService"], queues_pb2_grpc.add_QueueServiceServicer_to_server),
    (
        rate_limiters_pb2.DESCRIPTOR.services_by_name["RateLimiterService"],
        rate_limiters_pb2_grpc.add_RateLimiterServiceServicer_to_server,
    ),
    (
        locks_pb2.DESCRIPTOR.services_by_name["LockService"],
        locks_pb2_grpc.add_LockServiceServicer_to_server,
    ),
    (
        idempotency_pb2.DESCRIPTOR.services_by_name["IdempotencyService"],
        idempotency_pb2_grpc.add_IdempotencyServiceServicer_to_server,
    ),
)
SERVICE_NAMES = (
    *(descriptor.full_name for descriptor, _ in TYPED_SERVICES),
    pipeline_pb2.DESCRIPTOR.services_by_name["PipelineService"].full_name,
)

_RESPONSES = {
    field.name: GetMessageClass(field.message_type)
    for field in pipeline_pb2.OperationResult.DESCRIPTOR.fields
    if field.message_type is not None
}


def add_keyspace_servicers(shard: Shard, methods: grpc.aio.Server) -> None:
    """Add all services for keys of a shard to a server."""
    lines = Lines()
    for descriptor, add in TYPED_SERVICES:
        named = {method.name: _method(operation_kind(method.name)) for method in descriptor.methods}
        add(type(f"{descriptor.name}r", (_Servicer,), named)(shard, lines), methods)
    pipeline_pb2_grpc.add_PipelineServiceServicer_to_server(PipelineServicer(shard), methods)


def operation_kind(method: str) -> str:
    """The operation of a method: `set_string` for `SetString`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()


class _Servicer:
    def __init__(self, shard: Shard, lines: Lines) -> None:
        self._shard = shard
        self._lines = lines

    async def run(self, kind: str, request: Any) -> Any:
        """Run one operation by itself. Raises what it is refused for."""
        operation = OPERATIONS[kind]
        operation.check(request)
        _ = self._shard.state.keyspace  # raises where it is damaged, before anything is logged
        if self._shard.memory.tracks_use:
            self._shard.memory.touch(keys_of(request))
        if operation.waits is not None and request.wait_ms:
            return await self._wait(kind, operation, request)
        if operation.writes:
            return await self._write(kind, request)
        return await self._read(kind, operation, request)

    async def _read(self, kind: str, operation: Operation, request: Any) -> Any:
        if self._shard.state.committing:
            await self._shard.uncommitted()
        sequence = calls.check_position(self._shard, request.read)
        self._shard.state.check_names(keys_of(request))
        response: Any = _RESPONSES[kind]()
        operation.run(self._shard.state.keyspace, request, response, Moment(self._shard.now_unix_ms()))
        response.header.CopyFrom(calls.header(self._shard, sequence))
        return response

    async def _wait(self, kind: str, operation: Operation, request: Any) -> Any:
        async def attempt() -> Any:
            if operation.writes:
                return await self._write(kind, request, waits=True)
            return await self._read(kind, operation, request)

        def is_repeated() -> bool:
            return operation.writes and calls.is_repeated(self._shard, request)

        response: Any = await wait_for(self._shard, self._lines, operation, request, attempt, is_repeated)
        if response is not None or not operation.writes:
            return await attempt() if response is None else response
        # Now nothing is the result: a repeat, or a first try that comes late, must not take something after all.
        return await self._write(kind, request)

    async def _write(self, kind: str, request: Any, *, waits: bool = False) -> Any:
        def build(command: command_pb2.Command) -> None:
            logged = getattr(command.run_operations.operations.add(), kind)
            logged.CopyFrom(request)
            logged.ClearField("write")
            logged.SetInParent()
            command.run_operations.waits = waits

        result = await calls.write(self._shard, request, build, grows=OPERATIONS[kind].grows)
        [outcome] = result.operation_results
        if outcome.HasField("error"):
            raise _error(outcome.error)
        response = getattr(outcome, kind)
        response.header.CopyFrom(calls.header(self._shard, result.sequence))
        return response


class PipelineServicer(pipeline_pb2_grpc.PipelineServiceServicer):
    """Many operations in one call."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    @unary
    async def Pipeline(self, request: pipeline_pb2.PipelineRequest, context: Context) -> pipeline_pb2.PipelineResponse:
        """See the proto."""
        count = len(request.operations)
        if not count:
            raise InvalidArgumentError("names no operation", field="operations")
        if count > limits.OPERATIONS_PER_PIPELINE_MAX:
            raise LimitExceededError(
                f"{count} operations, more than {limits.OPERATIONS_PER_PIPELINE_MAX}", field="operations"
            )
        sequence = calls.check_position(self._shard, request.read)
        # Raises where the keys are damaged, before anything is logged.
        state = self._shard.state
        pipeline = Pipeline(state.keyspace, request.operations, state.deduplication, state.check_names)
        await calls.run_in_slices(pipeline.check(await self._refusal(request), self._shard.now_unix_ms()))
        if self._shard.memory.tracks_use:
            self._shard.memory.touch(pipeline.keys())
        if pipeline.writes:
            result = await calls.write(self._shard, request, pipeline.fill, pipeline.observe)
            await calls.run_in_slices(pipeline.take(result.operation_results))
            sequence = result.sequence
        await self._read_rest(pipeline.read_rest(self._shard.now_unix_ms()))
        response = pipeline.response
        for outcome in response.results:
            if outcome.HasField("error"):
                outcome.error.CopyFrom(error_message(_error(outcome.error)))
        response.header.CopyFrom(calls.header(self._shard, max(sequence, self._shard.applied_sequence)))
        return response

    async def _refusal(self, request: pipeline_pb2.PipelineRequest) -> MemoryLimitError | None:
        """Why no operation may make the data grow now; None: they may. What was done before is answered whatever there is room for."""
        if not self._shard.memory.limit_bytes or calls.is_repeated(self._shard, request):
            return None
        if not any((kind := one.WhichOneof("kind")) and OPERATIONS[kind].grows for one in request.operations):
            return None
        try:
            await self._shard.memory.make_room()
        except MemoryLimitError as error:
            return error
        return None

    async def _read_rest(self, rest: Iterator[None]) -> None:
        pause = calls.Pause()
        await self._shard.uncommitted()
        for _ in rest:
            await pause.when_due()
            await self._shard.uncommitted()


def _method(kind: str) -> Callable[[_Servicer, Any, Context], Awaitable[Any]]:
    async def method(self: _Servicer, request: Any, _: Context) -> Any:
        return await self.run(kind, request)

    method.__qualname__ = kind
    return unary(method)


def _error(stored: common_pb2.Error) -> VecmemError:
    """The exception that a stored error stands for."""
    error = refusal_error(command_pb2.Refusal(reason=stored.reason, message=stored.message))
    error.metadata.update(stored.metadata)
    return error
