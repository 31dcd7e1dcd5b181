"""Bytes in and out over grpc.aio. The sync twin of this module is written by hand: here the two differ.

The channel is opened on the first call, because it belongs to the event loop that runs then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic

import grpc

from vecmem_client._errors import CallCancelledError, ClientClosedError, UnavailableError
from vecmem_client._methods import Method, ReplyT, channel_options
from vecmem_client._targets import Targets

if TYPE_CHECKING:
    from collections.abc import Sequence


class Transport:
    """A connection to each server that is talked to, for one event loop."""

    def __init__(self, target: str, options: Sequence[tuple[str, Any]]) -> None:
        self.targets = Targets(target)
        self._options = channel_options(options)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: dict[tuple[str, str], Any] = {}
        self._closed = False

    async def unary(
        self, method: Method[ReplyT], request: bytes, timeout_seconds: float, target: str, metadata: Any
    ) -> ReplyT:
        """Make one call. Raises grpc.RpcError, and UnavailableError where the node was forgotten meanwhile."""
        place = target, method.path
        call = self._calls.get(place)
        if call is None or self._loop is not asyncio.get_running_loop():
            channel = self._open(target)
            call = channel.unary_unary(method.path, request_serializer=None, response_deserializer=method.parse)
            self._calls[place] = call
        try:
            reply: ReplyT = await call(request, timeout=timeout_seconds, metadata=metadata)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                if self._closed:
                    raise CallCancelledError("the client was closed during the call") from None
                if target not in self._channels:
                    raise UnavailableError(f"the node at {target} is gone") from None
            raise
        return reply

    def check_usable(self) -> asyncio.AbstractEventLoop:
        """Return the running event loop. Raises ClientClosedError, and RuntimeError in the loop of somebody else."""
        if self._closed:
            raise ClientClosedError("the client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError("an AsyncClient belongs to the event loop of its first call: make one for each loop")
        return loop

    def refuse_calls(self) -> None:
        """Let no further call begin: the client closes."""
        self._closed = True

    async def forget(self, targets: Sequence[str]) -> None:
        """Close the connections to nodes that are gone."""
        for target in targets:
            channel = self._channels.pop(target, None)
            for place in [place for place in self._calls if place[0] == target]:
                del self._calls[place]
            if channel is not None:
                await channel.close()

    async def open_stream(self, method: Method[ReplyT]) -> Stream[ReplyT]:
        """Begin a bidirectional stream."""
        channel = self._open(self.targets.current)
        return Stream(channel.stream_stream(method.path, request_serializer=None, response_deserializer=method.parse)())

    async def open_reading(self, method: Method[ReplyT], request: bytes) -> Reading[ReplyT]:
        """Begin a stream of replies to one request."""
        channel = self._open(self.targets.current)
        call: Any = channel.unary_stream(method.path, request_serializer=None, response_deserializer=method.parse)
        return Reading(call(request))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Close the connection and cancel what is under way. Closing twice is fine."""
        self._closed = True
        self._calls.clear()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _open(self, target: str) -> grpc.aio.Channel:
        loop = self.check_usable()
        channel = self._channels.get(target)
        if channel is None:
            channel = self._channels[target] = grpc.aio.insecure_channel(target, options=self._options)
            self._loop = loop
        return channel


async def pause(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


class Stream(Generic[ReplyT]):
    """A bidirectional stream. What goes wrong is told by `receive`; a `send` after that is dropped."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._send_failed = False

    async def send(self, request: bytes, timeout_seconds: float) -> None:
        """Send one request as soon as flow control allows. Raises TimeoutError after that long."""
        if self._call.done():
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            if not self._call.done():
                raise
            self._send_failed = True

    async def finish_sending(self) -> None:
        """Say that no more requests come."""
        if not self._call.done():
            await self._call.done_writing()

    async def receive(self, timeout_seconds: float) -> ReplyT | None:
        """Return the next reply, None at a successful end.

        Raises grpc.RpcError, and TimeoutError after that long. When the connection breaks during a send, grpc.aio
        makes up a status INTERNAL before the true one arrives; that is UnavailableError here.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                reply = await self._call.read()
        except grpc.aio.AioRpcError as error:
            made_up = self._send_failed and error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata()
            if made_up:
                raise UnavailableError("the stream broke while a request was sent") from error
            raise
        return None if reply is grpc.aio.EOF else reply

    async def close(self) -> None:
        """End the call if it has not ended."""
        self._call.cancel()


class Reading(Generic[ReplyT]):
    """A stream of replies. Who does not read holds the server back."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._next: asyncio.Task[Any] | None = None

    async def receive(self, timeout_seconds: float) -> ReplyT | None:
        """Return the next reply, None at the end, also at one by `close`. Raises grpc.RpcError, and TimeoutError after that long.

        After a TimeoutError it goes on.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._call.read())
        # Not under a timeout itself: that would cancel the call.
        await asyncio.wait([self._next], timeout=timeout_seconds)
        if not self._next.done():
            raise TimeoutError
        reading, self._next = self._next, None
        try:
            reply = reading.result()
        except asyncio.CancelledError:
            return None
        return None if reply is grpc.aio.EOF else reply

    async def close(self) -> None:
        """End the call if it has not ended; a `receive` under way returns."""
        self._call.cancel()
