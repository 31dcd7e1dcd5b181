"""The window of an UpsertStream: its batches that are not answered yet, bounded in number and in bytes.

One task reads batches and adds them, another one answers them, oldest first. Where the window is full the reader waits,
and gRPC's flow control holds the sender back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from vecmem import limits
from vecmem.errors import RequestIdReusedError
from vecmem.store.v1 import command_pb2


@dataclass(frozen=True, slots=True, eq=False)
class OutstandingBatch:
    """One batch under way. `request_id` empty: none."""

    point_count: int
    size_bytes: int
    request_id: str
    request_fingerprint: int
    result: asyncio.Future[command_pb2.CommandResult]


class StreamWindow:
    """Batches in the order of their stream. For one reader and one that answers, on one event loop."""

    def __init__(
        self,
        count_max: int = limits.STREAM_BATCHES_OUTSTANDING_MAX,
        size_bytes_max: int = limits.STREAM_BYTES_OUTSTANDING_MAX,
    ) -> None:
        """Begin empty. A batch larger than `size_bytes_max` gets in when it is alone."""
        self._batches: deque[OutstandingBatch] = deque()
        self._count_max = count_max
        self._size_bytes_max = size_bytes_max
        self._size_bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def room(self, size_bytes: int) -> None:
        """Return when a batch of this size may be added."""
        while self._batches and (
            len(self._batches) >= self._count_max or self._size_bytes + size_bytes > self._size_bytes_max
        ):
            await self._change()

    def add(self, batch: OutstandingBatch) -> None:
        """Add a batch behind the others."""
        self._batches.append(batch)
        self._size_bytes += batch.size_bytes
        self._changed.set()

    def end(self) -> None:
        """Nothing is added any more."""
        self._ended = True
        self._changed.set()

    async def oldest(self) -> OutstandingBatch | None:
        """The oldest batch, which stays; None when the stream has ended."""
        while not self._batches:
            if self._ended:
                return None
            await self._change()
        return self._batches[0]

    def remove_oldest(self) -> None:
        """Take the oldest batch out, whose outcome is known."""
        self._size_bytes -= self._batches.popleft().size_bytes
        self._changed.set()

    def check_request_id(self, command: command_pb2.Command) -> None:
        """Raises RequestIdReusedError for a request_id that another batch of the window has with another content."""
        for batch in self._batches:
            same_id = command.request_id and batch.request_id == command.request_id
            if same_id and batch.request_fingerprint != command.request_fingerprint:
                raise RequestIdReusedError(
                    f"{command.request_id!r} was used for another batch of this stream", field="write.request_id"
                )

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
