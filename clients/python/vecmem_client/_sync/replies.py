# Generated from _async/replies.py by scripts/generate_sync.py: change that one and run the script.
"""A stream of replies that is opened again where it breaks: what a change feed and a subscription have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

import grpc

from vecmem_client._errors import UnavailableError, VecmemClientError, error_from_rpc
from vecmem_client._methods import Method, ReplyT

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from vecmem_client._retry import RetryPolicy
    from vecmem_client._sync.transport import Reading, Transport

HEARTBEATS_MISSED_MAX = 3
"""Silences of so many heartbeats mean that the connection is lost without anybody saying so."""


class Replies(Generic[ReplyT]):
    """Replies to one request, which may be changed until the stream is opened again."""

    def __init__(
        self,
        transport: Transport,
        retry: RetryPolicy,
        method: Method[ReplyT],
        request: Message,
        heartbeat_seconds: float,
    ) -> None:
        self.closed = False
        self.failed_count = 0
        """Failures since the last reply."""
        self._transport = transport
        self._retry = retry
        self._method = method
        self._request = request
        self._silence_seconds_max = HEARTBEATS_MISSED_MAX * heartbeat_seconds
        self._reading: Reading[ReplyT] | None = None
        self._target = transport.targets.current

    def receive(self) -> ReplyT | None:
        """Return the next reply; None: it was closed. Raises VecmemClientError."""
        if self._reading is None:
            self._target = self._transport.targets.current
            self._reading = self._transport.open_reading(self._method, self._request.SerializeToString())
        try:
            reply = self._reading.receive(self._silence_seconds_max)
        except TimeoutError:
            raise UnavailableError(f"nothing came from the server for {self._silence_seconds_max:g} s") from None
        except grpc.RpcError as error:
            raise error_from_rpc(error) from error
        if reply is not None:
            self.failed_count = 0
        elif not self.closed:
            raise UnavailableError("the server ended the stream")
        return reply

    def recover(self, failure: VecmemClientError, *, again: bool) -> None:
        """Wait, so that the next `receive` opens the stream again. Raises the failure where that is of no use, or not wanted (`again`)."""
        self._hang_up()
        self.failed_count += 1
        if failure.code is grpc.StatusCode.UNAVAILABLE:
            self._transport.targets.look_elsewhere(failure, self._target)
        wait_seconds = None
        if again and failure.code is grpc.StatusCode.UNAVAILABLE:
            wait_seconds = self._retry.wait_seconds(self.failed_count, float("inf"))
        if wait_seconds is None:
            raise failure
        self._transport.sleep(wait_seconds)

    def close(self) -> None:
        """End the stream; a `receive` under way returns."""
        self.closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
