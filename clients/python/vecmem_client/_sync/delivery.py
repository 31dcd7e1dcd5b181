# Generated from _async/delivery.py by scripts/generate_sync.py: change that one and run the script.
"""A message that was received, until it is settled."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vecmem_client._errors import VecmemClientError

if TYPE_CHECKING:
    from types import TracebackType

    from vecmem_client._sync.queue import Queue
    from vecmem_client.queues import Message


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
