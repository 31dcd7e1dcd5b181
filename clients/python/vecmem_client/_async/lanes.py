"""Concurrent calls gathered into shared RPCs, for asyncio. The sync twin of this module is written by hand.

While fewer than RPCS_MAX of a lane's RPCs are under way a call goes at once, alone, in its caller's own task. Others
queue; when an RPC ends, those queued go together. A lane has one timer at most, for the first thing due among the calls
that wait, set anew only while there are some. A call that times out or is cancelled leaves; an RPC that has lost all its
calls is cancelled.

What each call may rely on: its RPC is sent after the call was made, so it sees every write awaited before; its
deadline is its own, the RPC's is the latest of its calls'; an exception is its own object.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

import grpc

from vecmem_client._coalescing import (
    BATCH_BYTES_MAX,
    REQUEST_BYTES_MAX,
    RPCS_MAX,
    Alone,
    BatchSize,
    Call,
    LaneKey,
    ResultT,
    copy_of,
    join,
    outcomes,
    outcomes_of_failure,
    tells_of_an_older_server,
)
from vecmem_client._errors import CallCancelledError, DeadlineExceededError, VecmemClientError, error_from_rpc

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from vecmem_client._async.sending import Sender
    from vecmem_client._async.transport import Transport
    from vecmem_client._methods import Method
    from vecmem_client._types import Demand

TIMER_SECONDS_MIN = 0.001
TIMER_SECONDS_MAX = 86_400.0
"""Event loops refuse timers too far ahead; gRPC's own deadline ends such a call in any case."""


class Lanes:
    """The lanes of one client."""

    def __init__(self, transport: Transport, sender: Sender) -> None:
        self._transport = transport
        self._sender = sender
        self._lanes: dict[LaneKey, _Lane[Any]] = {}

    def call(
        self, key: LaneKey, request: bytes, min_position: Demand, timeout_seconds: float
    ) -> Coroutine[Any, Any, Any]:
        """Make a call, perhaps together with others. Raises grpc.RpcError and VecmemClientError."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, self._transport, self._sender)
        return lane.call(request, min_position, timeout_seconds)

    def drop_waiting(self) -> None:
        """Give up what waits to be sent: the client closes."""
        for lane in self._lanes.values():
            lane.drop_waiting()

    async def finished(self) -> None:
        """Return when no shared RPC is under way."""
        for lane in self._lanes.values():
            await lane.finished()


class _Call(Call):
    """A call that waits. Its outcome is a result and never an exception of the future, which nobody might look at."""

    __slots__ = ("outcome", "rpc")

    def __init__(
        self, request: bytes, min_position: Demand, timeout_seconds: float, outcome: asyncio.Future[Any]
    ) -> None:
        super().__init__(request, min_position, timeout_seconds)
        self.outcome = outcome
        self.rpc: _Rpc | None = None

    def settle(self, outcome: Any) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def expire(self) -> None:
        self.settle(DeadlineExceededError("no answer came within the timeout"))
        self.leave()

    def leave(self) -> None:
        """Nobody waits for this call any more."""
        rpc, self.rpc = self.rpc, None
        if rpc is not None:
            rpc.lose_one()


class _Rpc:
    """A shared RPC under way."""

    def __init__(self, calls: Sequence[_Call]) -> None:
        self.calls = calls
        self.task: asyncio.Task[None] | None = None
        self._wanted_count = len(calls)
        for call in calls:
            call.rpc = self

    def lose_one(self) -> None:
        self._wanted_count -= 1
        if not self._wanted_count and self.task is not None:
            self.task.cancel()


class _Lane(Generic[ResultT]):
    def __init__(self, key: LaneKey, transport: Transport, sender: Sender) -> None:
        self._method = key.method
        self._shard = key.shard
        self._spread = key.spread
        self._transport = transport
        self._sender = sender
        self._queue: deque[_Call] = deque()
        self._size = BatchSize()
        self._rpc_count = 0
        self._under_way_count = 0
        self._pump_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = math.inf
        """When the timer fires, in time.monotonic() seconds; infinite while there is none."""
        self._rpcs: set[_Rpc] = set()
        self._unsupported = False

    async def call(self, request: bytes, min_position: Demand, timeout_seconds: float) -> ResultT:
        if self._unsupported or len(request) > REQUEST_BYTES_MAX:
            return await self._alone(request, timeout_seconds)
        loop = self._transport.check_usable()
        if self._rpc_count < RPCS_MAX and not self._queue and not self._pump_is_due:
            self._begin(1)
            try:
                return await self._alone(request, timeout_seconds)
            finally:
                self._end(1, loop)
        call = _Call(request, min_position, timeout_seconds, loop.create_future())
        self._queue.append(call)
        due = min(call.patient_until, call.deadline)
        if due < self._timer_due:
            self._set_timer(due, loop)
        try:
            outcome: ResultT | VecmemClientError | Alone = await call.outcome
        except asyncio.CancelledError:
            call.leave()
            raise
        if isinstance(outcome, VecmemClientError):
            raise outcome
        if isinstance(outcome, Alone):
            return await self._alone(request, max(0.0, call.deadline - time.monotonic()))
        return outcome

    def drop_waiting(self) -> None:
        self._stop_timer()
        while self._queue:
            self._queue.popleft().settle(CallCancelledError("the client was closed during the call"))

    async def finished(self) -> None:
        if self._rpcs:
            await asyncio.wait([rpc.task for rpc in self._rpcs if rpc.task is not None])

    async def _alone(self, request: bytes, timeout_seconds: float) -> ResultT:
        result: ResultT = await self._send(self._method.single, request, timeout_seconds)
        return result

    async def _send(self, method: Method[Any], request: bytes, timeout_seconds: float) -> Any:
        return await self._sender.send(method, request, timeout_seconds, self._shard, spread=self._spread)

    def _begin(self, call_count: int) -> None:
        self._rpc_count += 1
        self._under_way_count += call_count

    def _end(self, call_count: int, loop: asyncio.AbstractEventLoop) -> None:
        """An RPC has ended. Those that it answered are woken first: their next calls go with the next RPC."""
        self._rpc_count -= 1
        self._under_way_count -= call_count
        if (self._queue or call_count > 1) and not self._pump_is_due:
            self._pump_is_due = True
            loop.call_soon(self._pump, loop)

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        self._pump_is_due = False
        while self._queue and self._rpc_count < RPCS_MAX:
            self._start_rpc(loop)

    def _set_timer(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        self._stop_timer()
        self._timer_due = due
        # Event loops round to a millisecond, so a timer may find nothing due yet and be set again.
        wait_seconds = min(max(TIMER_SECONDS_MIN, due - time.monotonic()), TIMER_SECONDS_MAX)
        self._timer = loop.call_later(wait_seconds, self._look_round, loop)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = None, math.inf

    def _look_round(self, loop: asyncio.AbstractEventLoop) -> None:
        """End calls whose time is over, and send what is queued if the first has waited long enough for others."""
        self._stop_timer()
        now = time.monotonic()
        due = math.inf
        for call in itertools.chain(self._queue, *(rpc.calls for rpc in self._rpcs)):
            if call.outcome.done():
                continue
            if call.deadline <= now:
                call.expire()
            else:
                due = min(due, call.deadline)
        if self._queue and self._queue[0].patient_until <= now:
            self._start_rpc(loop)
        if self._queue:
            due = min(due, self._queue[0].patient_until)
        if due < math.inf:
            self._set_timer(due, loop)

    def _start_rpc(self, loop: asyncio.AbstractEventLoop) -> None:
        calls = self._take()
        if calls:
            rpc = _Rpc(calls)
            self._begin(len(calls))
            self._rpcs.add(rpc)
            rpc.task = loop.create_task(self._run(calls), name="vecmem: shared RPC")
            rpc.task.add_done_callback(partial(self._ended, rpc, loop))  # also of one cancelled before it ran

    def _take(self) -> list[_Call]:
        calls: list[_Call] = []
        calls_max = self._size.calls_max(len(self._queue), self._under_way_count)
        size_bytes = 0
        while self._queue and len(calls) < calls_max and size_bytes < BATCH_BYTES_MAX:
            call = self._queue.popleft()
            if not call.outcome.done():  # otherwise its caller has left
                calls.append(call)
                size_bytes += len(call.request)
        return calls

    def _ended(self, rpc: _Rpc, loop: asyncio.AbstractEventLoop, _task: asyncio.Task[None]) -> None:
        self._rpcs.discard(rpc)
        self._end(len(rpc.calls), loop)

    async def _run(self, calls: Sequence[_Call]) -> None:
        settled: Sequence[Any] = ()
        try:
            settled = await self._outcomes(calls)
        except VecmemClientError as failure:
            settled = [copy_of(failure, failure.__cause__) for _ in calls]
        finally:
            # Cancelled with its event loop, or failed in a way that nobody foresaw: nobody is left waiting.
            settled = settled or [CallCancelledError("the call was given up") for _ in calls]
            for call, outcome in zip(calls, settled, strict=True):
                call.settle(outcome)

    async def _outcomes(self, calls: Sequence[_Call]) -> Sequence[Any]:
        timeout_seconds = max(0.0, max(call.deadline for call in calls) - time.monotonic())
        try:
            if len(calls) == 1:
                return [await self._alone(calls[0].request, timeout_seconds)]
            reply = await self._send(self._method.batch, join(self._method, calls), timeout_seconds)
        except grpc.RpcError as error:
            failure = error_from_rpc(error)
            self._unsupported = self._unsupported or (len(calls) > 1 and tells_of_an_older_server(failure))
            return outcomes_of_failure(failure, error, len(calls), self._size)
        return outcomes(self._method, reply, len(calls), self._size)
