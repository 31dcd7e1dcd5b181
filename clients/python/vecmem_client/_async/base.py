"""One call with everything around it: size check, deadline, retries, errors, position, company on its way."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from vecmem_client._async.lanes import Lanes
from vecmem_client._async.transport import Transport
from vecmem_client._coalescing import LaneKey, ResultT, SharedMethod, lane_key
from vecmem_client._errors import LimitExceededError, MovedError, VecmemClientError, error_from_rpc
from vecmem_client._methods import MESSAGE_BYTES_MAX, Method, ReplyT
from vecmem_client._retry import RetryPolicy
from vecmem_client._types import Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from vecmem.v1 import common_pb2


class Base:
    """What the groups of methods share."""

    def __init__(
        self,
        target: str,
        timeout_seconds: float,
        retry: RetryPolicy | None,
        channel_options: Sequence[tuple[str, str | int]],
        coalesce: bool,
    ) -> None:
        _check_timeout(timeout_seconds)
        self._transport = Transport(target, channel_options)
        self._timeout_seconds = timeout_seconds
        self._retry = retry or RetryPolicy()
        self._position = Position(0, 0)
        self._position_lock = threading.Lock()
        self._coalesce = coalesce
        self._lanes = Lanes(self._transport, self._note_position)

    @property
    def last_position(self) -> Position:
        """The newest position that a reply to this client has carried; sequence 0 before the first.

        Pass it as `min_position`, also to another client, to read what was written up to there.
        """
        return self._position

    async def _call(
        self, method: Method[ReplyT], request: Message, timeout_seconds: float | None, *, retriable: bool = True
    ) -> ReplyT:
        """Make a call; UNAVAILABLE is retried within the deadline. Raises VecmemClientError."""
        reply: ReplyT = await self._attempt(method, None, request, None, timeout_seconds, retriable)
        self._note_position(reply.header)
        return reply

    async def _call_shared(
        self,
        method: SharedMethod[ResultT],
        request: Message,
        timeout_seconds: float | None,
        *,
        min_position: Position | None = None,
        exact: bool = False,
    ) -> ResultT:
        """Make a call that may share RPCs with others and may be repeated: a read, or a write with a request id."""
        if not self._coalesce:
            reply: ResultT = await self._call(method.single, request, timeout_seconds)
            return reply
        key = lane_key(method, min_position, exact=exact)
        result: ResultT = await self._attempt(method.single, key, request, min_position, timeout_seconds, True)
        return result

    async def _attempt(
        self,
        method: Method[Any],
        key: LaneKey | None,
        request: Message,
        min_position: Position | None,
        timeout_seconds: float | None,
        retriable: bool,
    ) -> Any:
        if timeout_seconds is None:
            timeout_seconds = self._timeout_seconds
        else:
            _check_timeout(timeout_seconds)
        payload = request.SerializeToString()
        if len(payload) > MESSAGE_BYTES_MAX:
            raise LimitExceededError(
                f"the request has {len(payload):,} bytes; a message has {MESSAGE_BYTES_MAX:,} at most"
            )
        deadline = time.monotonic() + timeout_seconds
        remaining_seconds = timeout_seconds
        attempts = 0
        while True:
            attempts += 1
            target = self._transport.targets.current
            try:
                if key is None:
                    return await self._transport.unary(method, payload, remaining_seconds)
                return await self._lanes.call(key, payload, min_position, remaining_seconds)
            except (grpc.RpcError, VecmemClientError) as error:
                if isinstance(error, VecmemClientError):
                    failure, cause = error, error.__cause__
                else:
                    failure, cause = error_from_rpc(error), error
                wait_seconds = None
                if failure.code is grpc.StatusCode.UNAVAILABLE:
                    self._transport.targets.look_elsewhere(failure, target)
                # What has moved was not done, so that it may be repeated whatever it is.
                if failure.code is grpc.StatusCode.UNAVAILABLE and (retriable or isinstance(failure, MovedError)):
                    wait_seconds = self._retry.wait_seconds(attempts, deadline - time.monotonic())
                if wait_seconds is None:
                    if attempts > 1:
                        failure.add_note(f"tried {attempts} times")
                    raise failure from cause
            await self._transport.sleep(wait_seconds)
            remaining_seconds = max(0.0, deadline - time.monotonic())

    def _note_position(self, header: common_pb2.ResponseHeader) -> None:
        """Keep the newest position."""
        if header.position.sequence > self._position.sequence:
            position = Position(header.position.shard, header.position.sequence)
            with self._position_lock:
                if position.sequence > self._position.sequence:
                    self._position = position


def _check_timeout(timeout_seconds: float) -> None:
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds is above 0, not {timeout_seconds}")
