"""Running operations on keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from vecmem.v1 import pipeline_pb2
from vecmem_client import _coalescing, _methods, _requests
from vecmem_client._async.base import Base
from vecmem_client._errors import VecmemClientError
from vecmem_client._operations import method_of, request_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vecmem_client._operations import Operation
    from vecmem_client._types import Demand

T = TypeVar("T")


class KeyspaceMethods(Base):
    """PipelineService, and with it all operations on keys."""

    async def run(
        self,
        operation: Operation[T],
        *,
        request_id: str | None = None,
        min_position: Demand = None,
        timeout_seconds: float | None = None,
    ) -> T:
        """Run one operation, as built by `strings.set` and the like; what it writes is durable on return.

        Operations that are run at the same time travel together (`coalesce`), each with its own result, error and request id; those
        that wait (`wait_seconds`) travel alone, and `timeout_seconds`, where it is given, includes the wait.
        """
        if operation.wait_ms:
            return await self._run_waiting(operation, request_id, min_position, timeout_seconds)
        message = operation.message
        if operation.writes:
            message = pipeline_pb2.Operation(request_id=_requests.new_request_id(request_id))
            message.MergeFrom(operation.message)
        request = pipeline_pb2.PipelineRequest(operations=[message])
        _requests.set_read(request, min_position)
        if request_id == "" and operation.writes:  # nobody may send it twice, for whatever reason
            reply = await self._call(_methods.PIPELINE, request, timeout_seconds, retriable=False)
        else:
            reads = 0 if operation.writes else _methods.PIPELINE_READ_FIELD
            reply = await self._call_shared(
                _coalescing.OPERATIONS, request, timeout_seconds, min_position=min_position, reads=reads
            )
        # What came with others is its part of the reply, what came alone a reply.
        outcome = _only(reply) if isinstance(reply, pipeline_pb2.PipelineResponse) else reply
        result = operation.result(outcome)
        if isinstance(result, VecmemClientError):
            raise result
        return result

    async def _run_waiting(
        self,
        operation: Operation[T],
        request_id: str | None,
        min_position: Demand,
        timeout_seconds: float | None,
    ) -> T:
        request = type(getattr(operation.message, operation.kind))()
        request.CopyFrom(getattr(operation.message, operation.kind))
        if operation.writes:
            request.write.request_id = _requests.new_request_id(request_id)
        else:
            _requests.set_read(request, min_position)
        if timeout_seconds is None:
            timeout_seconds = self._timeout_seconds + operation.wait_ms / 1e3
        retriable = not operation.writes or request_id != ""
        return operation.convert(
            await self._call(method_of(operation.kind), request, timeout_seconds, retriable=retriable)
        )

    async def pipeline(
        self,
        operations: Sequence[Operation[Any]],
        *,
        request_id: str | None = None,
        min_position: Demand = None,
        timeout_seconds: float | None = None,
    ) -> list[Any]:
        """Run 1 to 1,024 operations in their order in one call; what they write becomes durable together.

        Returns for each its result, or its VecmemClientError: one that fails does not keep the others from being done. A call that is
        repeated with the same `request_id`, as this does by itself when a connection breaks, changes nothing further: writes return what
        they did the first time, reads are done anew. Where both have to be of one moment there is `commit`.
        """
        request = request_of(operations)
        _requests.set_read(request, min_position)
        retriable = True
        reads = _methods.PIPELINE_READ_FIELD
        if any(operation.writes for operation in operations):
            reads = 0
            request.write.request_id = _requests.new_request_id(request_id)
            retriable = request_id != ""
        reply = await self._call(_methods.PIPELINE, request, timeout_seconds, retriable=retriable, reads=reads)
        _check_count(reply, len(operations))
        return [operation.result(outcome) for operation, outcome in zip(operations, reply.results, strict=True)]


def _only(reply: pipeline_pb2.PipelineResponse) -> pipeline_pb2.OperationResult:
    _check_count(reply, 1)
    return reply.results[0]


def _check_count(reply: pipeline_pb2.PipelineResponse, count: int) -> None:
    if len(reply.results) != count:
        raise VecmemClientError(f"the server sent {len(reply.results)} results for {count} operations")
