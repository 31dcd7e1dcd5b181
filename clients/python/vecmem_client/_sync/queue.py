# Generated from _async/queue.py by scripts/generate_sync.py: change that one and run the script.
"""A delayed queue as an object, and a message that was received, until it is settled."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vecmem_client import keys, queues
from vecmem_client._errors import VecmemClientError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from types import TracebackType

    from vecmem_client._operations import BytesLike
    from vecmem_client._sync.client import Client
    from vecmem_client.queues import Message, MessagePage, QueueDescription, Received, Redriven, State


WAIT_SECONDS = 20.0
"""Of one call; then another one waits."""


class Queue:
    """Messages that are due at a time, under one key, for any number of producers and consumers.

    A message that was received is nobody else's for `visibility_timeout_seconds`; what is not acknowledged by then comes again. One that
    was delivered `max_deliveries` times without that is set aside as dead (0: never), for `peek("dead")` and `redrive`. What was written
    is durable on return. All methods raise VecmemClientError when a call fails.
    """

    def __init__(
        self,
        client: Client,
        name: BytesLike,
        *,
        visibility_timeout_seconds: float = 30.0,
        max_deliveries: int = 0,
    ) -> None:
        if not visibility_timeout_seconds > 0:
            raise ValueError(f"visibility_timeout_seconds is above 0, not {visibility_timeout_seconds}")
        self.name = name
        self.visibility_timeout_seconds = visibility_timeout_seconds
        self.max_deliveries = max_deliveries
        self._client = client

    def put(self, body: BytesLike, *, delay_seconds: float = 0.0, due_at: datetime | None = None) -> int:
        """Add a message that is due after a delay, or at a time; returns its id."""
        [message_id] = self.put_many([body], delay_seconds=delay_seconds, due_at=due_at)
        return message_id

    def put_many(
        self, bodies: Iterable[BytesLike], *, delay_seconds: float = 0.0, due_at: datetime | None = None
    ) -> list[int]:
        """Add 1 to 1,024 messages at once; returns their ids."""
        return self._client.run(queues.enqueue(self.name, bodies, delay_seconds=delay_seconds, due_at=due_at))

    def receive(self, count: int = 1, *, wait_seconds: float = 0.0) -> list[Message]:
        """Take up to so many messages that are due; wait so long, at most an hour, where none is. Empty: none came."""
        return (self._receive(count, wait_seconds)).messages

    def acknowledge(self, message: Message) -> bool:
        """Remove a message that was received; returns False where it had come to somebody else since."""
        return (self.acknowledge_many([message]))[0]

    def acknowledge_many(self, messages: Iterable[Message]) -> list[bool]:
        """Remove 1 to 1,024 messages that were received; returns False for those that had come to somebody else since."""
        return self._client.run(queues.acknowledge(self.name, messages))

    def extend(self, message: Message, visibility_timeout_seconds: float | None = None) -> bool:
        """Keep a message that was received for so long from now on; None: as long as the queue says.

        Returns False where it had come to somebody else since.
        """
        if visibility_timeout_seconds is None:
            visibility_timeout_seconds = self.visibility_timeout_seconds
        operation = queues.extend(self.name, [message], visibility_timeout_seconds=visibility_timeout_seconds)
        return (self._client.run(operation))[0]

    def release(self, message: Message, *, delay_seconds: float = 0.0) -> bool:
        """Give a message that was received back, to be due after a delay; returns False where it had come to somebody else since."""
        return (self._client.run(queues.release(self.name, [message], delay_seconds=delay_seconds)))[0]

    def deliveries(
        self,
        *,
        prefetch: int = 1,
        release_delay_seconds: float = 0.0,
        until_empty: bool = False,
    ) -> Iterator[Delivery]:
        """Yield messages as they become due, without end; `until_empty`: until none is due.

        Each is to be entered, which acknowledges it at the end, or releases it where the block raises: see Delivery. `prefetch`
        messages are taken at a time, and the visibility timeout of all of them begins to run. Where none is due, the server waits for
        one, which costs it no write.
        """
        while True:
            received = self._receive(prefetch, 0.0 if until_empty else WAIT_SECONDS)
            for message in received.messages:
                yield Delivery(self, message, release_delay_seconds)
            # With nothing but dead ones set aside there may be more.
            if until_empty and not received.messages and received.next_due_in_seconds != 0:
                return

    def peek(self, state: State | None = None, *, page_size: int = 0, page_token: str = "") -> MessagePage:
        """Return a page of messages without receiving them; None: all but dead ones, 0: 100 of them."""
        return self._client.run(queues.peek(self.name, state, page_size=page_size, page_token=page_token))

    def describe(self) -> QueueDescription:
        """Return how many messages there are."""
        return self._client.run(queues.describe(self.name))

    def redrive(self, ids: Iterable[int] | None = None, *, count: int = 1_024, delay_seconds: float = 0.0) -> Redriven:
        """Bring dead messages back: those of the ids, or the first `count` that died."""
        return self._client.run(queues.redrive(self.name, ids, count=count, delay_seconds=delay_seconds))

    def remove(self, ids: Iterable[int]) -> int:
        """Remove 1 to 1,024 messages whatever has become of them; returns how many there were."""
        return self._client.run(queues.remove(self.name, ids))

    def purge(self) -> bool:
        """Remove all messages, dead ones included; returns whether there were any."""
        return self._client.run(keys.delete([self.name])) > 0

    def _receive(self, count: int, wait_seconds: float) -> Received:
        return self._client.run(
            queues.receive(
                self.name,
                count,
                visibility_timeout_seconds=self.visibility_timeout_seconds,
                max_deliveries=self.max_deliveries,
                wait_seconds=wait_seconds,
            )
        )


class Delivery:
    """A message in hand, for a `with` statement, which gives the message.

    At the end of the block it is acknowledged; `acknowledged` then tells whether that was in time: False, it had come to somebody else.
    Where the block raises, it is released, and the error goes on.
    """

    def __init__(self, queue: Queue, message: Message, release_delay_seconds: float = 0.0) -> None:
        self.message = message
        self.acknowledged: bool | None = None
        """None: it has not been tried."""
        self._queue = queue
        self._release_delay_seconds = release_delay_seconds

    def __enter__(self) -> Message:
        return self.message

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.acknowledged = self._queue.acknowledge(self.message)
        else:
            # The error of the block matters more, and what cannot be released comes again after its visibility timeout.
            with contextlib.suppress(VecmemClientError):
                self._queue.release(self.message, delay_seconds=self._release_delay_seconds)
