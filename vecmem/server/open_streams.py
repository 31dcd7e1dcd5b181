"""How calls end with the server: those that have work to do finish it, and streams that would go on for ever are ended.

Unary calls and uploads have the grace. Each stream of replies looks at `Shard.ending` whenever it waits, and ends with
ShuttingDownError. One whose client has stopped reading waits for room on its connection instead, where nothing wakes it
and no status gets through: it is cut off after a moment, so that it does not hold up the end for the whole grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

STREAM_END_SECONDS_MAX = 1.0
"""How long streams may take to tell their clients of the end."""
FLUSH_SECONDS = 0.1
"""Between the last answer and the end of its connection: the native engine does not wait until it has written everything."""
Task = asyncio.Task[Any]
uploads: set[Task] = set()
"""Streams of requests under way in this process. The native engine hands them to grpcio, and may cut them while it stops that."""


class Answering:
    """Counts the calls that are being answered. As a context manager: one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.begun_count = 0
        """Since this process has started."""
        self._none: asyncio.Event | None = None
        """Of whoever waits for that."""

    def __enter__(self) -> None:
        self.count += 1
        self.begun_count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self._none is not None and not self.count:
            self._none.set()

    async def ended(self, seconds_max: float) -> None:
        """Return when there is none, or the time is up."""
        self._none = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                while self.count:
                    self._none.clear()
                    await self._none.wait()


answering = Answering()
"""Unary calls of this process."""


class OpenStreams:
    """Those of one server, given to its servicers."""

    def __init__(self) -> None:
        self._tasks: dict[Task, None] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Take the call of the current task for an open stream, for the length of the block."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        try:
            yield
        finally:
            del self._tasks[task]

    async def stop(self, server: grpc.aio.Server, grace_seconds: float) -> None:
        """Stop a server whose streams have been told to end, once all other calls are answered or their grace is over.

        It takes no further calls by then (`Shard.ending`).
        """
        # On the native engine each stuck stream holds a thread of the default executor, which stopping needs as well.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
        began = time.monotonic()
        if uploads:
            await asyncio.wait(list(uploads), timeout=grace_seconds)
        await answering.ended(max(0.0, grace_seconds - (time.monotonic() - began)))
        await asyncio.sleep(min(FLUSH_SECONDS, grace_seconds))
        grace_seconds = max(0.0, grace_seconds - (time.monotonic() - began))
        stopping = asyncio.create_task(server.stop(grace_seconds))
        # Runs until it waits: no call is taken on from then on.
        await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=min(STREAM_END_SECONDS_MAX, grace_seconds))
        stuck = [task for task in self._tasks if not task.done()]
        if stuck:
            # The native engine lets a call go with its task, grpcio only when all calls are cancelled.
            for task in stuck:
                task.cancel()
            await server.stop(None)
        await stopping


@contextlib.contextmanager
def uploading() -> Iterator[None]:
    """Take the call of the current task for a stream of requests, for the length of the block."""
    task = asyncio.current_task()
    assert task is not None
    uploads.add(task)
    try:
        yield
    finally:
        # Its status has still to be sent: the task is looked at until it is done.
        task.add_done_callback(uploads.discard)
