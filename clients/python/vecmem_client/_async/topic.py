"""A durable topic: messages that every reader gets, or every group of consumers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client import streams
from vecmem_client._errors import StreamGroupExistsError
from vecmem_client._operations import as_bytes
from vecmem_client._topic_messages import BODY, TopicMessage, message_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from types import TracebackType

    from vecmem_client._async.client import AsyncClient
    from vecmem_client._operations import BytesLike
    from vecmem_client._stream_types import IdLike, StreamId

WAIT_SECONDS = 20.0
"""Of one call; then another one waits."""


class AsyncTopicDelivery:
    """A message in hand, for a `with` statement, which gives the message.

    At the end of the block it is acknowledged; `acknowledged` then tells whether it was still this consumer's. Where the block raises it
    stays pending, to be delivered again to this consumer when it begins anew, or to another one after `claim_idle_seconds`.
    """

    def __init__(self, topic: AsyncTopic, group: BytesLike, message: TopicMessage) -> None:
        self.message = message
        self.acknowledged: bool | None = None
        """None: it has not been tried."""
        self._topic = topic
        self._group = group

    async def __aenter__(self) -> TopicMessage:
        return self.message

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.acknowledged = await self._topic.acknowledge(self._group, self.message)


class AsyncTopic:
    """Messages under one key, a stream, which stay until they are trimmed: `max_length` of them; None: all.

    What was published is durable on return. Readers get all messages, each for itself; of the consumers of a group each gets some, and
    every message is delivered until one of them acknowledges it. All methods raise VecmemClientError when a call fails.
    """

    def __init__(self, client: AsyncClient, name: BytesLike, *, max_length: int | None = None) -> None:
        self.name = name
        self.max_length = max_length
        self._client = client

    async def publish(self, body: BytesLike, headers: Mapping[BytesLike, BytesLike] | None = None) -> StreamId:
        """Add a message; returns its id."""
        [published] = await self.publish_many([body], headers)
        return published

    async def publish_many(
        self, bodies: Iterable[BytesLike], headers: Mapping[BytesLike, BytesLike] | None = None
    ) -> list[StreamId]:
        """Add 1 to 128 messages with the same headers, all or none; returns their ids. Raises ValueError for a header `body`."""
        shared = list((headers or {}).items())
        if any(as_bytes(name) == BODY for name, _ in shared):
            raise ValueError("a header must not be called body")
        steps = [streams.append(self.name, [(BODY, body), *shared], max_length=self.max_length) for body in bodies]
        return list((await self._client.commit(then=steps)).results)

    async def end(self) -> StreamId:
        """Return the position behind the newest message: `messages` goes on from there with what is published from now on."""
        described = await self._client.run(streams.describe(self.name))
        return streams.StreamId(0, 0) if described is None else described.last_id

    async def messages(self, after: IdLike | None = None, *, until_end: bool = False) -> AsyncIterator[TopicMessage]:
        """Yield all messages behind an id, None: from the first that is there, and then what is published; without end.

        `until_end`: those that are there. Keep the id of the last one to go on from there.
        """
        position = after
        while True:
            operation = streams.read({self.name: position}, wait_seconds=0.0 if until_end else WAIT_SECONDS)
            [found] = (await self._client.run(operation)).values()
            for entry in found.entries:
                yield message_of(entry)
            position = found.after
            if until_end and not found.more:
                return

    async def consume(
        self,
        group: BytesLike,
        consumer: BytesLike,
        *,
        prefetch: int = 1,
        claim_idle_seconds: float = 60.0,
        until_empty: bool = False,
    ) -> AsyncIterator[AsyncTopicDelivery]:
        """Yield the messages that come to one consumer of a group, which is made if need be and begins with the first message.

        Each is to be entered, which acknowledges it: see AsyncTopicDelivery. First come those that this consumer has pending, from a life
        before; then those that others have pending for more than `claim_idle_seconds`, and new ones, without end; `until_empty`: until
        there is none. `prefetch` messages are taken at a time.
        """
        await self._make_group(group)
        last: StreamId | None = streams.StreamId(0, 0)
        while last is not None:
            again = await self._client.run(
                streams.read_group(self.name, group, consumer, count=prefetch, pending_after=last)
            )
            for entry in again.entries:
                if not entry.deleted:
                    yield AsyncTopicDelivery(self, group, message_of(entry))
            last = again.entries[-1].id if again.entries else None
        wait_seconds = 0.0 if until_empty else min(WAIT_SECONDS, max(0.1, claim_idle_seconds / 2))
        start: StreamId | None = None
        while True:
            claimed = await self._client.run(
                streams.auto_claim(
                    self.name, group, consumer, min_idle_seconds=claim_idle_seconds, start=start, count=prefetch
                )
            )
            start = claimed.next_start
            fresh = await self._client.run(
                streams.read_group(
                    self.name,
                    group,
                    consumer,
                    count=prefetch,
                    wait_seconds=0.0 if claimed.entries or start is not None else wait_seconds,
                )
            )
            for entry in [*claimed.entries, *fresh.entries]:
                yield AsyncTopicDelivery(self, group, message_of(entry))
            if until_empty and not claimed.entries and not fresh.entries and start is None:
                return

    async def acknowledge(self, group: BytesLike, message: TopicMessage) -> bool:
        """Tell that a group is done with a message; returns False where it was not pending."""
        return (await self._client.run(streams.acknowledge(self.name, group, [message.id])))[0]

    async def _make_group(self, group: BytesLike) -> None:
        try:
            await self._client.run(streams.create_group(self.name, group, create_stream=True))
        except StreamGroupExistsError:
            return
