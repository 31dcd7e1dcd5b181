"""Concurrent calls gathered into shared RPCs, for threads. The asyncio twin of this module is written by hand.

While fewer than RPCS_MAX of a lane's RPCs are under way a call goes at once, in its caller's own thread. Others queue.
A caller whose RPC has ended appoints one of those queued, and that one sends for all that are queued when it wakes:
leader and followers, as in the group commit of LevelDB's `DBImpl::Write`. There are no further threads.

What each call may rely on: its RPC is sent after the call was made, so it sees every write that returned before; its
deadline is its own; an exception is its own object. A leader waits in its RPC, so it takes along only calls that end
no later than itself, but for a moment; the one that may wait longest is appointed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic

import grpc

from vecmem_client._coalescing import (
    ALONE,
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
    from collections.abc import Sequence

    from vecmem_client._methods import Method
    from vecmem_client._sync.sending import Sender
    from vecmem_client._sync.transport import Transport
    from vecmem_client._types import Demand

OVERTIME_SECONDS = 0.01
"""How much longer than itself a leader waits for others: as long as the calls of one moment differ by."""
WAIT_SECONDS_MAX = 3_600.0
"""Locks refuse to wait for more than some hundred years: whoever may wait longer looks up once an hour."""


class Lanes:
    """The lanes of one client."""

    def __init__(self, transport: Transport, sender: Sender) -> None:
        self._transport = transport
        self._sender = sender
        self._lanes: dict[LaneKey, _Lane[Any]] = {}

    def call(self, key: LaneKey, request: bytes, min_position: Demand, timeout_seconds: float) -> Any:
        """Make a call, perhaps together with others. Raises grpc.RpcError and VecmemClientError."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes.setdefault(key, _Lane(key, self._transport, self._sender))
        return lane.call(request, min_position, timeout_seconds)

    def drop_waiting(self) -> None:
        """Give up what waits to be sent: the client closes."""
        for lane in list(self._lanes.values()):
            lane.drop_waiting()

    def finished(self) -> None:
        """Return at once: RPCs under way end in their callers' threads."""


class _State(Enum):
    QUEUED = 1
    SENT = 2
    LEADS = 3
    GONE = 4


class _Call(Call):
    """A call that waits. `wake` is released once when it is to lead, or once when it has an outcome."""

    __slots__ = ("outcome", "state", "wake")

    def __init__(self, request: bytes, min_position: Demand, timeout_seconds: float) -> None:
        super().__init__(request, min_position, timeout_seconds)
        self.state = _State.QUEUED
        self.outcome: Any = None
        self.wake = threading.Lock()
        self.wake.acquire()

    def settle(self, outcome: Any) -> None:
        self.outcome = outcome
        self.wake.release()


class _Lane(Generic[ResultT]):
    def __init__(self, key: LaneKey, transport: Transport, sender: Sender) -> None:
        self._method = key.method
        self._shard = key.shard
        self._spread = key.spread
        self._transport = transport
        self._sender = sender
        self._mutex = threading.Lock()
        """Held for the state of the lane and of its calls, never during an RPC."""
        self._queue: deque[_Call] = deque()
        self._size = BatchSize()
        self._rpc_count = 0
        self._under_way_count = 0
        self._unsupported = False

    def call(self, request: bytes, min_position: Demand, timeout_seconds: float) -> ResultT:
        if self._unsupported or len(request) > REQUEST_BYTES_MAX:
            return self._alone(request, timeout_seconds)
        call: _Call | None = None
        with self._mutex:
            if self._rpc_count < RPCS_MAX and not self._queue:
                self._rpc_count += 1
                self._under_way_count += 1
            else:
                self._transport.check_usable()
                call = _Call(request, min_position, timeout_seconds)
                self._queue.append(call)
        if call is None:
            try:
                return self._alone(request, timeout_seconds)
            finally:
                self._end(1)
        self._await_turn(call)
        if call.state is _State.LEADS:
            self._lead(call)
        outcome: ResultT | VecmemClientError | Alone = call.outcome
        if isinstance(outcome, VecmemClientError):
            raise outcome
        if isinstance(outcome, Alone):
            return self._alone(request, max(0.0, call.deadline - time.monotonic()))
        return outcome

    def drop_waiting(self) -> None:
        with self._mutex:
            while self._queue:
                call = self._queue.popleft()
                call.state = _State.SENT
                call.settle(CallCancelledError("the client was closed during the call"))

    def _alone(self, request: bytes, timeout_seconds: float) -> ResultT:
        result: ResultT = self._send(self._method.single, request, timeout_seconds)
        return result

    def _send(self, method: Method[Any], request: bytes, timeout_seconds: float) -> Any:
        return self._sender.send(method, request, timeout_seconds, self._shard, spread=self._spread)

    def _end(self, call_count: int) -> None:
        """An RPC has ended; those that it answered are awake. Appoint the next leader."""
        with self._mutex:
            self._rpc_count -= 1
            self._under_way_count -= call_count
            if self._queue and self._rpc_count < RPCS_MAX:
                leader = max(self._queue, key=lambda call: call.deadline)
                self._appoint(leader)
                leader.wake.release()

    def _appoint(self, call: _Call) -> None:
        """Make a queued call a leader. With the mutex held."""
        self._queue.remove(call)
        call.state = _State.LEADS
        self._rpc_count += 1
        self._under_way_count += 1

    def _await_turn(self, call: _Call) -> None:
        """Return when the call has an outcome or leads. Raises DeadlineExceededError."""
        try:
            while not call.wake.acquire(timeout=_wait_seconds(call)):
                with self._mutex:
                    now = time.monotonic()
                    if call.state is _State.LEADS or call.outcome is not None:
                        return
                    if now >= call.deadline:
                        raise DeadlineExceededError("no answer came within the timeout")  # noqa: TRY301  (one way out)
                    if call.state is _State.QUEUED and now >= call.patient_until:
                        self._appoint(call)
                        return
        except BaseException:  # its time is over, or its thread was interrupted
            self._leave(call)
            raise

    def _leave(self, call: _Call) -> None:
        with self._mutex:
            state, call.state = call.state, _State.GONE
            if state is _State.QUEUED:
                self._queue.remove(call)
        if state is _State.LEADS:
            self._end(1)

    def _lead(self, leader: _Call) -> None:
        """Make the RPC for this call and for those queued."""
        with self._mutex:
            calls = [leader, *self._take(leader)]
            self._under_way_count += len(calls) - 1
        # Whatever interrupts the leader: the others go on by themselves.
        settled: Sequence[Any] = [ALONE] * len(calls)
        try:
            settled = self._outcomes(calls)
        except VecmemClientError as failure:
            settled = [copy_of(failure, failure.__cause__) for _ in calls]
        finally:
            leader.outcome = settled[0]  # it is awake already
            for call, outcome in zip(calls[1:], settled[1:], strict=True):
                call.settle(outcome)
            self._end(len(calls))

    def _take(self, leader: _Call) -> list[_Call]:
        """Take along what is queued. With the mutex held."""
        calls: list[_Call] = []
        left: list[_Call] = []
        calls_max = self._size.calls_max(len(self._queue), self._under_way_count) - 1
        size_bytes = len(leader.request)
        while self._queue and len(calls) < calls_max and size_bytes < BATCH_BYTES_MAX:
            call = self._queue.popleft()
            if call.deadline > leader.deadline + OVERTIME_SECONDS:
                left.append(call)
                continue
            call.state = _State.SENT
            calls.append(call)
            size_bytes += len(call.request)
        self._queue.extendleft(reversed(left))
        return calls

    def _outcomes(self, calls: Sequence[_Call]) -> Sequence[Any]:
        timeout_seconds = max(0.0, max(call.deadline for call in calls) - time.monotonic())
        try:
            if len(calls) == 1:
                return [self._alone(calls[0].request, timeout_seconds)]
            reply = self._send(self._method.batch, join(self._method, calls), timeout_seconds)
        except grpc.RpcError as error:
            failure = error_from_rpc(error)
            self._unsupported = self._unsupported or (len(calls) > 1 and tells_of_an_older_server(failure))
            return outcomes_of_failure(failure, error, len(calls), self._size)
        return outcomes(self._method, reply, len(calls), self._size)


def _wait_seconds(call: _Call) -> float:
    until = min(call.deadline, call.patient_until) if call.state is _State.QUEUED else call.deadline
    return min(max(0.0, until - time.monotonic()), WAIT_SECONDS_MAX)
