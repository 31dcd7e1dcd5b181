"""Bytes in and out over grpc. The asyncio twin of this module is written by hand: here the two differ."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Generic

import grpc

from vecmem_client._errors import ClientClosedError, UnavailableError
from vecmem_client._methods import Method, ReplyT, channel_options
from vecmem_client._targets import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence


class Transport:
    """A connection to each server that is talked to, for any number of threads."""

    def __init__(self, target: str, options: Sequence[tuple[str, Any]]) -> None:
        self.targets = Targets(target)
        self._options = channel_options(options)
        self._channels: dict[str, grpc.Channel] = {}
        self._calls: dict[tuple[str, str], Any] = {}
        self._opening = threading.Lock()
        self._closed = False

    def unary(
        self, method: Method[ReplyT], request: bytes, timeout_seconds: float, target: str, metadata: Any
    ) -> ReplyT:
        """Make one call. Raises grpc.RpcError, and UnavailableError where the node was forgotten meanwhile."""
        place = target, method.path
        call = self._calls.get(place)
        if call is None:
            channel = self._open(target)
            call = channel.unary_unary(method.path, request_serializer=None, response_deserializer=method.parse)
            self._calls[place] = call
        try:
            reply: ReplyT = call(request, timeout=timeout_seconds, metadata=metadata)
        except ValueError as error:  # what grpc raises on a channel that another thread has closed
            self.check_usable()
            if target not in self._channels:
                raise UnavailableError(f"the node at {target} is gone") from error
            raise
        except grpc.RpcError as error:
            if self._closed or target in self._channels:
                raise
            raise UnavailableError(f"the node at {target} is gone") from error
        return reply

    def check_usable(self) -> None:
        """Raises ClientClosedError."""
        if self._closed:
            raise ClientClosedError("the client is closed")

    def refuse_calls(self) -> None:
        """Let no further call begin: the client closes."""
        self._closed = True

    def forget(self, targets: Sequence[str]) -> None:
        """Close the connections to nodes that are gone."""
        for target in targets:
            with self._opening:
                channel = self._channels.pop(target, None)
                for place in [place for place in list(self._calls) if place[0] == target]:
                    self._calls.pop(place, None)
            if channel is not None:
                channel.close()

    def open_stream(self, method: Method[ReplyT]) -> Stream[ReplyT]:
        """Begin a bidirectional stream."""
        return Stream(
            self._open(self.targets.current).stream_stream(
                method.path, request_serializer=None, response_deserializer=method.parse
            )
        )

    def open_reading(self, method: Method[ReplyT], request: bytes) -> Reading[ReplyT]:
        """Begin a stream of replies to one request."""
        call: Any = self._open(self.targets.current).unary_stream(
            method.path, request_serializer=None, response_deserializer=method.parse
        )
        return Reading(call(request))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close the connection and cancel what is under way. Closing twice is fine."""
        with self._opening:
            self._closed = True
            self._calls.clear()
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def _open(self, target: str) -> grpc.Channel:
        with self._opening:
            self.check_usable()
            channel = self._channels.get(target)
            if channel is None:
                channel = self._channels[target] = grpc.insecure_channel(target, options=self._options)
            return channel


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


class Stream(Generic[ReplyT]):
    """A bidirectional stream. What goes wrong is told by `receive`; a `send` after that is dropped.

    Two threads work for it until it ends: gRPC's own takes requests from a queue, and one here puts replies into
    another, so that `receive` can give up after a while.
    """

    def __init__(self, start: Any) -> None:
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[ReplyT | grpc.RpcError | None] = queue.SimpleQueue()
        self._call = start(iter(self._outgoing.get, None))
        self._pump = threading.Thread(target=self._receive_all, name="vecmem-replies", daemon=True)
        self._pump.start()

    def send(self, request: bytes, timeout_seconds: float) -> None:  # noqa: ARG002  (the twin's sends may block)
        """Hand one request to the sending thread."""
        self._outgoing.put(request)

    def finish_sending(self) -> None:
        """Say that no more requests come."""
        self._outgoing.put(None)

    def receive(self, timeout_seconds: float) -> ReplyT | None:
        """Return the next reply, None at a successful end. Raises grpc.RpcError, and TimeoutError after that long."""
        try:
            reply = self._incoming.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(reply, grpc.RpcError):
            raise reply
        return reply

    def close(self) -> None:
        """End the call if it has not ended, and the threads."""
        self._call.cancel()
        self._outgoing.put(None)
        self._pump.join()

    def _receive_all(self) -> None:
        try:
            for reply in self._call:
                self._incoming.put(reply)
        except grpc.RpcError as error:
            self._incoming.put(error)
        else:
            self._incoming.put(None)


READ_AHEAD = 2
"""Replies taken from a stream before they are asked for."""


class Reading(Generic[ReplyT]):
    """A stream of replies. Who does not read holds the server back.

    A thread reads them, so that `receive` can give up after a while.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._incoming: queue.Queue[ReplyT | grpc.RpcError | None] = queue.Queue(READ_AHEAD)
        self._closed = threading.Event()
        self._pump = threading.Thread(target=self._receive_all, name="vecmem-replies", daemon=True)
        self._pump.start()

    def receive(self, timeout_seconds: float) -> ReplyT | None:
        """Return the next reply, None at the end, also at one by `close`. Raises grpc.RpcError, and TimeoutError after that long.

        After a TimeoutError it goes on.
        """
        try:
            reply = self._incoming.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(reply, grpc.RpcError):
            raise reply
        return reply

    def close(self) -> None:
        """End the call if it has not ended, and the thread; a `receive` under way returns."""
        self._closed.set()
        self._call.cancel()
        while self._pump.is_alive():
            with contextlib.suppress(queue.Empty):
                self._incoming.get(timeout=0.01)
        with contextlib.suppress(queue.Full):
            self._incoming.put_nowait(None)

    def _receive_all(self) -> None:
        try:
            for reply in self._call:
                self._incoming.put(reply)
        except grpc.RpcError as error:
            self._incoming.put(None if self._closed.is_set() else error)
        else:
            self._incoming.put(None)
