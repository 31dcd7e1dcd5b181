"""Links of a network whose faults a test decides: TCP proxies, all on one event loop in a thread of its own.

A link is held, slow or sound. While a direction is held nothing passes that way, neither bytes nor the end of a connection, as on a network that loses
every packet; connections made meanwhile come about and stay silent. When it is released, what was held arrives, or the connections are cut, as after a
firewall forgot them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

HOST = "127.0.0.1"
THERE, BACK = "there", "back"
"""Directions: to the one who listens, and from it."""
CHUNK_BYTES = 65_536


class Network:
    """All links of a test. A context manager: at its end none is left."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._links: list[Link] = []

    def link(self, name: str, target: Callable[[], int]) -> Link:
        """A new link to a port of this machine, which is asked for at each connection."""
        return self.run(self._make(name, target))

    def run(self, coroutine: Any) -> Any:
        """Await a coroutine on the network's loop."""
        result: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return result.result(30)

    async def _make(self, name: str, target: Callable[[], int]) -> Link:
        link = Link(self, name, target)
        await link.open()
        self._links.append(link)
        return link

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for link in self._links:
            link.server.close()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Link:
    """From one party to one port of another. Methods may be called from any thread."""

    def __init__(self, network: Network, name: str, target: Callable[[], int]) -> None:
        self.name = name
        self.port = 0
        self.server: asyncio.Server
        self._network = network
        self._target = target
        self._passes = {direction: asyncio.Event() for direction in (THERE, BACK)}
        for event in self._passes.values():
            event.set()
        self._delay_seconds = 0.0
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._connected, HOST, 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def hold(self, *directions: str) -> None:
        """Let nothing pass, that way; both ways if none is named."""
        self._network.run(self._set(directions or (THERE, BACK), passes=False))

    def release(self, *, cut: bool = False) -> None:
        """Let everything pass again; `cut`: but end the connections that there are."""
        self._network.run(self._release(cut))

    def slow(self, seconds: float) -> None:
        """Let each piece take so long, one after the other; 0: no longer."""
        self._delay_seconds = seconds

    async def _set(self, directions: tuple[str, ...], *, passes: bool) -> None:
        for direction in directions:
            (self._passes[direction].set if passes else self._passes[direction].clear)()

    async def _release(self, cut: bool) -> None:
        if cut:
            for writer in list(self._writers):
                writer.transport.abort()
            await asyncio.sleep(0)
        await self._set((THERE, BACK), passes=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = [writer]
        self._writers.add(writer)
        try:
            await self._passes[THERE].wait()
            target_reader, target_writer = await asyncio.open_connection(HOST, self._target())
            pair.append(target_writer)
            self._writers.add(target_writer)
            await asyncio.gather(
                self._forward(reader, target_writer, self._passes[THERE]),
                self._forward(target_reader, writer, self._passes[BACK]),
            )
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens there, or the connection broke, so it does on the other side; or the test is over
        finally:
            for one in pair:
                self._writers.discard(one)
                one.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        while True:
            data = await reader.read(CHUNK_BYTES)
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            await passes.wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
