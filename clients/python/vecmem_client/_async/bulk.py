"""A bulk load over UpsertStream that outlasts a lost connection.

Batches go out while at most `window` of them are unacknowledged. When the stream breaks with UNAVAILABLE, a new one
is opened and every unacknowledged batch is sent again, the same bytes with the same request id, so that none is lost
and none is applied twice. Any other error ends the load; what was acknowledged before stays.

A stream begins with one batch alone. So when batches are refused while others are being sent, and the refusal is lost
in the broken stream, the next stream sees it: each one acknowledges its first batch or learns why not.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import grpc

from vecmem_client import _replies
from vecmem_client._errors import DeadlineExceededError, UnavailableError, VecmemClientError, error_from_rpc
from vecmem_client._methods import UPSERT_STREAM
from vecmem_client._progress import BulkProgress
from vecmem_client._types import BulkResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vecmem.v1 import common_pb2, points_pb2
    from vecmem_client._async.transport import Stream, Transport
    from vecmem_client._batches import Batch
    from vecmem_client._retry import RetryPolicy
    from vecmem_client._types import Position, VersionConflict


class BulkLoad:
    """The state of one load."""

    def __init__(
        self,
        transport: Transport,
        retry: RetryPolicy,
        batches: Iterator[Batch],
        *,
        total_count: int | None,
        window: int,
        timeout_seconds: float,
        progress: Callable[[BulkProgress], None] | None,
        note_position: Callable[[common_pb2.ResponseHeader], None],
    ) -> None:
        if window < 1:
            raise ValueError(f"window is at least 1, not {window}")
        self._transport = transport
        self._retry = retry
        self._batches = batches
        self._total_count = total_count
        self._window = window
        self._timeout_seconds = timeout_seconds
        self._progress = progress
        self._note_position = note_position
        self._started_at = time.monotonic()
        self._unacknowledged: deque[Batch] = deque()
        self._conflicts: list[VersionConflict] = []
        self._position: Position | None = None
        self._point_count = 0
        self._attempts = 0

    async def run(self) -> BulkResult:
        """Load everything. Raises VecmemClientError; its notes tell how many points were acknowledged before."""
        reconnect_count = 0
        while True:
            target = self._transport.targets.current
            try:
                await self._run_stream()
                break
            except VecmemClientError as failure:
                self._attempts += 1
                wait_seconds = None
                if failure.code is grpc.StatusCode.UNAVAILABLE:
                    self._transport.targets.look_elsewhere(failure, target)
                    wait_seconds = self._retry.wait_seconds(self._attempts, float("inf"))
                if wait_seconds is None:
                    failure.add_note(f"{self._point_count:,} points of the load were acknowledged before")
                    raise
            await self._transport.sleep(wait_seconds)
            reconnect_count += 1
        self._report(finished=True)
        return BulkResult(
            point_count=self._point_count,
            conflicts=self._conflicts,
            position=self._position,
            reconnect_count=reconnect_count,
        )

    async def _run_stream(self) -> None:
        """Send and take acknowledgements over one stream until nothing is left."""
        if not self._unacknowledged and not self._take_batch():
            return
        stream = await self._transport.open_stream(UPSERT_STREAM)
        try:
            sent_count = acknowledged_count = 0
            while True:
                window = self._window if acknowledged_count else 1
                while sent_count < window and (sent_count < len(self._unacknowledged) or self._take_batch()):
                    await self._send(stream, self._unacknowledged[sent_count])
                    sent_count += 1
                if not self._unacknowledged:
                    break
                reply = await self._receive(stream)
                if reply is None:
                    raise UnavailableError("the server ended the stream before it had acknowledged every batch")
                newly_count = reply.acknowledged_batch_count - acknowledged_count
                if newly_count > sent_count:
                    raise VecmemClientError(f"the server acknowledged {newly_count} batches of {sent_count} sent")
                acknowledged_count += newly_count
                sent_count -= newly_count
                self._acknowledge(reply, newly_count)
            await stream.finish_sending()
            await self._receive(stream)  # the end: the server sees a finished call, not a cancelled one
        finally:
            await stream.close()

    async def _send(self, stream: Stream[points_pb2.UpsertStreamResponse], batch: Batch) -> None:
        try:
            await stream.send(batch.request, self._timeout_seconds)
        except TimeoutError:
            raise DeadlineExceededError(f"the server took no batch within {self._timeout_seconds:g} s") from None

    async def _receive(self, stream: Stream[points_pb2.UpsertStreamResponse]) -> points_pb2.UpsertStreamResponse | None:
        try:
            return await stream.receive(self._timeout_seconds)
        except TimeoutError:
            raise DeadlineExceededError(f"no acknowledgement within {self._timeout_seconds:g} s") from None
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error

    def _take_batch(self) -> bool:
        batch = next(self._batches, None)
        if batch is not None:
            self._unacknowledged.append(batch)
        return batch is not None

    def _acknowledge(self, reply: points_pb2.UpsertStreamResponse, batch_count: int) -> None:
        for _ in range(batch_count):
            self._point_count += self._unacknowledged.popleft().point_count
        if batch_count:
            self._attempts = 0  # it works again: the next failure is a new one
        self._conflicts.extend(_replies.conflicts(reply.conflicts))
        self._position = _replies.position(reply.header)
        self._note_position(reply.header)
        self._report(finished=False)

    def _report(self, *, finished: bool) -> None:
        if self._progress is not None:
            elapsed_seconds = time.monotonic() - self._started_at
            self._progress(BulkProgress(self._point_count, self._total_count, elapsed_seconds, finished))
