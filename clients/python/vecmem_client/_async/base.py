"""One call with everything around it: size check, deadline, retries, errors, position, place, company on its way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc

from vecmem_client._async.lanes import Lanes
from vecmem_client._async.sending import Sender
from vecmem_client._async.transport import Transport
from vecmem_client._coalescing import ResultT, SharedMethod, framed, lane_key
from vecmem_client._errors import (
    LimitExceededError,
    MovedError,
    PositionAheadError,
    VecmemClientError,
    error_from_rpc,
)
from vecmem_client._methods import MESSAGE_BYTES_MAX, Method, ReplyT
from vecmem_client._retry import RetryPolicy
from vecmem_client._routing import ReadPolicy, Routing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from vecmem.v1 import common_pb2
    from vecmem_client._types import Demand, Position


class Base:
    """What the groups of methods share."""

    def __init__(
        self,
        target: str,
        timeout_seconds: float,
        retry: RetryPolicy | None,
        channel_options: Sequence[tuple[str, str | int]],
        coalesce: bool,
        read_policy: ReadPolicy,
    ) -> None:
        _check_timeout(timeout_seconds)
        self._transport = Transport(target, channel_options)
        self._timeout_seconds = timeout_seconds
        self._retry = retry or RetryPolicy()
        self._routing = Routing(self._transport.targets, read_policy)
        self._coalesce = coalesce
        self._sender = Sender(self._transport, self._routing)
        self._lanes = Lanes(self._transport, self._sender)

    @property
    def last_position(self) -> Position:
        """The newest position that a reply to this client has carried; sequence 0 before the first.

        Pass it as `min_position`, also to another client, to read what was written up to there. In a cluster it is one of the shard that
        answered: pass `last_positions` there.
        """
        return self._routing.last_position

    @property
    def last_positions(self) -> tuple[Position, ...]:
        """The newest position of each shard that a reply to this client has carried, for `min_position` as well."""
        return self._routing.last_positions

    async def _call(
        self,
        method: Method[ReplyT],
        request: Message,
        timeout_seconds: float | None,
        *,
        retriable: bool = True,
        reads: int = 0,
    ) -> ReplyT:
        """Make a call; UNAVAILABLE is retried within the deadline. Raises VecmemClientError.

        `reads` is the field of read options of a request that only reads, where the method does not say that.
        """
        read_field = reads or method.read_field
        reply: ReplyT = await self._attempt(method, None, request, None, timeout_seconds, retriable, False, read_field)
        return reply

    async def _call_shared(
        self,
        method: SharedMethod[ResultT],
        request: Message,
        timeout_seconds: float | None,
        *,
        min_position: Demand = None,
        exact: bool = False,
        reads: int = 0,
    ) -> ResultT:
        """Make a call that may share RPCs with others and may be repeated: a read, or a write with a request id."""
        shared = method if self._coalesce else None
        read_field = reads or method.single.read_field
        result: ResultT = await self._attempt(
            method.single, shared, request, min_position, timeout_seconds, True, exact, read_field
        )
        return result

    async def _attempt(
        self,
        method: Method[Any],
        shared: SharedMethod[Any] | None,
        request: Message,
        min_position: Demand,
        timeout_seconds: float | None,
        retriable: bool,
        exact: bool,
        read_field: int,
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
        routing = self._routing
        deadline = time.monotonic() + timeout_seconds
        remaining_seconds = timeout_seconds
        attempts = 0
        spread_is_fine = True
        redirected = False
        while True:
            attempts += 1
            await self._sender.look(remaining_seconds)
            shard = routing.shard_of(method, request)
            spread = spread_is_fine and read_field > 0 and routing.spreads()
            content = payload + framed(read_field, routing.demand().SerializeToString()) if spread else payload
            try:
                if shared is None:
                    return await self._sender.send(method, content, remaining_seconds, shard, spread=spread)
                key = lane_key(shared, min_position, shard, exact=exact, spread=spread)
                return await self._lanes.call(key, content, min_position, remaining_seconds)
            except (grpc.RpcError, VecmemClientError) as error:
                if isinstance(error, VecmemClientError):
                    failure, cause = error, error.__cause__
                else:
                    failure, cause = error_from_rpc(error), error
                wait_seconds = None
                if spread and isinstance(failure, PositionAheadError):
                    # A replica may lag: the node that leads does not.
                    spread_is_fine, wait_seconds = False, 0.0
                elif _names_owner(failure) and not redirected and attempts < self._retry.attempts_max:
                    # Should that one not know of it yet, time helps.
                    redirected, wait_seconds = True, 0.0
                # What has moved was not done, so that it may be repeated whatever it is.
                elif failure.code is grpc.StatusCode.UNAVAILABLE and (retriable or isinstance(failure, MovedError)):
                    wait_seconds = self._retry.wait_seconds(attempts, deadline - time.monotonic())
                if wait_seconds is None:
                    if attempts > 1:
                        failure.add_note(f"tried {attempts} times")
                    raise failure from cause
            if wait_seconds:
                await self._transport.sleep(wait_seconds)
            remaining_seconds = max(0.0, deadline - time.monotonic())

    def _note_position(self, header: common_pb2.ResponseHeader) -> None:
        """Keep the newest positions."""
        self._routing.note(header)


def _names_owner(failure: VecmemClientError) -> bool:
    """Whether it is known who to ask instead."""
    return isinstance(failure, MovedError) and bool(failure.metadata.get("owner"))


def _check_timeout(timeout_seconds: float) -> None:
    if not timeout_seconds > 0:
        raise ValueError(f"timeout_seconds is above 0, not {timeout_seconds}")
