"""ChannelService: see proto/vecmem/v1/channels.proto for what it promises."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError, ShuttingDownError
from vecmem.server import calls
from vecmem.server.calls import Context, arrival, heartbeat_ms, server_streaming, unary
from vecmem.server.open_streams import OpenStreams
from vecmem.store.keyspace.operation import check_key
from vecmem.store.shard import Shard
from vecmem.v1 import channels_pb2 as api
from vecmem.v1 import channels_pb2_grpc, common_pb2

RESPONSE_BYTES_MAX = 1024 * 1024
"""Of messages; one that has more by itself comes alone."""


class ChannelServicer(channels_pb2_grpc.ChannelServiceServicer):
    """Channels of one node."""

    def __init__(self, shard: Shard, streams: OpenStreams) -> None:
        self._shard = shard
        self.streams = streams
        self._channels = shard.channels

    @unary
    async def Publish(self, request: api.PublishRequest, context: Context) -> api.PublishResponse:
        """See the proto."""
        check_key(request.channel, "channel")
        if not request.messages:
            raise InvalidArgumentError("is empty", field="messages")
        if len(request.messages) > limits.MESSAGES_PER_PUBLICATION_MAX:
            raise LimitExceededError(
                f"{len(request.messages)} messages, more than {limits.MESSAGES_PER_PUBLICATION_MAX}", field="messages"
            )
        for index, message in enumerate(request.messages):
            if len(message) > limits.CHANNEL_MESSAGE_BYTES_MAX:
                raise LimitExceededError(
                    f"has {len(message)} bytes, more than {limits.CHANNEL_MESSAGE_BYTES_MAX}",
                    field=f"messages[{index}]",
                )
        size_bytes = sum(map(len, request.messages))
        if size_bytes > limits.PUBLICATION_BYTES_MAX:
            raise LimitExceededError(
                f"{size_bytes} bytes of messages, more than {limits.PUBLICATION_BYTES_MAX}", field="messages"
            )
        count = self._channels.publish(request.channel, request.messages)
        return api.PublishResponse(header=self._header(), subscriber_count=count)

    @server_streaming
    async def Subscribe(self, request: api.SubscribeRequest, context: Context) -> AsyncIterator[api.SubscribeResponse]:
        """See the proto."""
        if not request.channels and not request.patterns:
            raise InvalidArgumentError("names no channel", field="channels")
        if len(request.channels) + len(request.patterns) > limits.CHANNELS_PER_SUBSCRIPTION_MAX:
            raise LimitExceededError(
                f"{len(request.channels) + len(request.patterns)} channels and patterns, more than "
                f"{limits.CHANNELS_PER_SUBSCRIPTION_MAX}",
                field="channels",
            )
        _check_names(request.channels, "channels")
        _check_names(request.patterns, "patterns")
        pattern_bytes = sum(map(len, request.patterns))
        if pattern_bytes > limits.SUBSCRIPTION_PATTERN_BYTES_MAX:
            raise LimitExceededError(
                f"{pattern_bytes} bytes of patterns, more than {limits.SUBSCRIPTION_PATTERN_BYTES_MAX}",
                field="patterns",
            )
        heartbeat_seconds = heartbeat_ms(request) / 1e3
        subscriber = self._channels.subscribe(request.channels, request.patterns)
        try:
            self._shard.check_leads()
            yield api.SubscribeResponse(header=self._header())
            told_at = time.monotonic()
            while True:
                if self._shard.ending:
                    raise ShuttingDownError("the server is about to end")
                # Messages come to whoever leads.
                self._shard.check_leads()
                messages = subscriber.messages(RESPONSE_BYTES_MAX)
                if messages or time.monotonic() - told_at >= heartbeat_seconds:
                    yield api.SubscribeResponse(
                        header=self._header(),
                        messages=[
                            api.ChannelMessage(channel=one.channel, message=one.message, pattern=one.pattern)
                            for one in messages
                        ],
                    )
                    told_at = time.monotonic()
                else:
                    await arrival(subscriber.arrived, told_at + heartbeat_seconds - time.monotonic())
        finally:
            self._channels.forget(subscriber)

    @unary
    async def ListChannels(self, request: api.ListChannelsRequest, context: Context) -> api.ListChannelsResponse:
        """See the proto."""
        if request.pattern:
            check_key(request.pattern, "pattern")
        if request.after:
            check_key(request.after, "after")
        if request.page_size > limits.PAGE_SIZE_MAX:
            raise LimitExceededError(f"{request.page_size} is more than {limits.PAGE_SIZE_MAX}", field="page_size")
        page_size = request.page_size or limits.PAGE_SIZE_DEFAULT
        found, more = self._channels.listing(request.pattern, request.after, page_size)
        return api.ListChannelsResponse(
            header=self._header(),
            channels=[api.ChannelInfo(channel=channel, subscriber_count=count) for channel, count in found],
            more=more,
            pattern_subscriber_count=self._channels.pattern_subscriber_count,
        )

    def _header(self) -> common_pb2.ResponseHeader:
        return calls.header(self._shard, self._shard.applied_sequence)


def _check_names(names: Sequence[bytes], field: str) -> None:
    for index, name in enumerate(names):
        check_key(name, f"{field}[{index}]")
