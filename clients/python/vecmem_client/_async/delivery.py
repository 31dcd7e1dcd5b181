"""A message that was received, until it is settled."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vecmem_client._errors import VecmemClientError

if TYPE_CHECKING:
    from types import TracebackType

    from vecmem_client._async.queue import AsyncQueue
    from vecmem_client.queues import Message


class AsyncDelivery:
    """A message in hand, for a `with` statement, which gives the message.

    At the end of the block it is acknowledged; `acknowledged` then tells whether that was in time: False, it had come to somebody else.
    Where the block raises, it is released, and the error goes on.
    """

    def __init__(self, queue: AsyncQueue, message: Message, release_delay_seconds: float = 0.0) -> None:
        self.message = message
        self.acknowledged: bool | None = None
        """None: it has not been tried."""
        self._queue = queue
        self._release_delay_seconds = release_delay_seconds

    async def __aenter__(self) -> Message:
        return self.message

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.acknowledged = await self._queue.acknowledge(self.message)
        else:
            # The error of the block matters more, and what cannot be released comes again after its visibility timeout.
            with contextlib.suppress(VecmemClientError):
                await self._queue.release(self.message, delay_seconds=self._release_delay_seconds)
