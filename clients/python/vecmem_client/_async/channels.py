"""Publishing to channels, and listening to them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vecmem.v1 import channels_pb2
from vecmem_client import _methods
from vecmem_client._async.base import Base
from vecmem_client._async.replies import AsyncReplies
from vecmem_client._channel_messages import ChannelMessage, names
from vecmem_client._errors import VecmemClientError
from vecmem_client._operations import as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from vecmem_client._async.transport import Transport
    from vecmem_client._operations import BytesLike
    from vecmem_client._retry import RetryPolicy


class AsyncSubscription:
    """Messages, one after the other, without end; made by `subscribe`. To be closed, or used in a `with` statement.

    Raises VecmemClientError: SlowConsumerError where it was too slow, and UnavailableError when the connection is lost, for what is
    published meanwhile is missed. With `reconnect` it subscribes again instead, and counts that in `gap_count`.
    """

    def __init__(
        self, transport: Transport, retry: RetryPolicy, request: channels_pb2.SubscribeRequest, *, reconnect: bool
    ) -> None:
        self.gap_count = 0
        """How often messages may have been missed, because the connection was lost for a while."""
        self._reconnect = reconnect
        heartbeat_seconds = (request.heartbeat_ms or 10_000) / 1e3
        self._replies = AsyncReplies(transport, retry, _methods.SUBSCRIBE, request, heartbeat_seconds)
        self._messages: deque[channels_pb2.ChannelMessage] = deque()
        self._started = False

    async def started(self) -> None:
        """Return when the server listens: what is published from then on will come."""
        while not self._started:
            await self._hear()

    async def __anext__(self) -> ChannelMessage:
        while not self._messages:
            if self._replies.closed:
                raise StopAsyncIteration
            await self._hear()
        message = self._messages.popleft()
        return ChannelMessage(message.channel, message.message, message.pattern)

    def __aiter__(self) -> Self:
        return self

    async def close(self) -> None:
        """End the subscription. Closing twice is fine."""
        await self._replies.close()

    async def __aenter__(self) -> Self:
        await self.started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _hear(self) -> None:
        """Take one response; where the connection is lost wait and begin anew, if that is wanted."""
        try:
            response = await self._replies.receive()
        except VecmemClientError as failure:
            self.gap_count += self._started and not self._replies.failed_count
            await self._replies.recover(failure, again=self._reconnect or not self._started)
            return
        if response is not None:
            self._started = True
            self._messages.extend(response.messages)


class ChannelMethods(Base):
    """ChannelService."""

    async def publish(self, channel: BytesLike, *messages: BytesLike, timeout_seconds: float | None = None) -> int:
        """Send 1 to 1,024 messages, 8 MiB at most, to whoever listens to a channel now; returns how many subscribers got them.

        Nothing is kept, and a call that fails is not repeated: its messages may have been sent. Topics keep messages.
        """
        request = channels_pb2.PublishRequest(
            channel=as_bytes(channel), messages=[as_bytes(message) for message in messages]
        )
        reply = await self._call(_methods.PUBLISH, request, timeout_seconds, retriable=False)
        return reply.subscriber_count

    def subscribe(
        self,
        *channels: BytesLike,
        patterns: Iterable[BytesLike] = (),
        reconnect: bool = False,
        heartbeat_seconds: float = 10.0,
    ) -> AsyncSubscription:
        """Listen to channels, and to all whose names match a pattern (`*` any bytes, `?` one byte, `[a-c]`).

        Iterate over what is returned. It listens from `started` on, or from the beginning of a `with` statement.
        """
        request = channels_pb2.SubscribeRequest(
            channels=[as_bytes(channel) for channel in channels],
            patterns=names(patterns, "patterns"),
            heartbeat_ms=round(heartbeat_seconds * 1e3),
        )
        return AsyncSubscription(self._transport, self._retry, request, reconnect=reconnect)

    async def list_channels(
        self,
        pattern: BytesLike = b"",
        *,
        after: BytesLike = b"",
        page_size: int = 0,
        timeout_seconds: float | None = None,
    ) -> dict[bytes, int]:
        """Return channels that somebody is subscribed to by name, in order behind `after`, and how many are; 0: 100 of them."""
        request = channels_pb2.ListChannelsRequest(
            pattern=as_bytes(pattern), after=as_bytes(after), page_size=page_size
        )
        reply = await self._call(_methods.LIST_CHANNELS, request, timeout_seconds)
        return {found.channel: found.subscriber_count for found in reply.channels}
