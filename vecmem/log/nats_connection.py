"""A connection to NATS with blocking calls for any thread: its client runs on an event loop in a thread of its own.

What is sent is never repeated or kept for later by the client: it goes out on the connection of the moment or fails.
A request ends with its reply, or with NoReplyError, after which nobody knows whether it did anything.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import nats.errors
import uvloop
from nats.aio.client import Client

from vecmem.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from nats.aio.msg import Msg

T = TypeVar("T")

CONNECT_SECONDS_MAX: Final = 10.0
REQUEST_SECONDS_MAX: Final = 5.0
PING_INTERVAL_SECONDS: Final = 1
"""A server that leaves two pings unanswered is left for another one."""
RECONNECT_WAIT_SECONDS: Final = 0.1
API_PREFIX: Final = "$JS.API."
STATUS_HEADER: Final = "Status"

_logger = logging.getLogger(__name__)


class NoReplyError(Exception):
    """No answer came in time, or the connection was lost: what was asked for may have happened, or may still happen."""


@dataclass(frozen=True, slots=True)
class Message:
    """What came from NATS. `status` is 0 for content, else the number of a message that only says how things are."""

    headers: Mapping[str, str]
    data: bytes
    status: int = 0


class ClosingClient(Client):
    """nats-py 2.16 forgets a connection that was made but never greeted, as by a server that hangs; this one closes it."""

    async def _connect_to_server(self, s: Any) -> None:
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)


class NatsConnection:
    """One client. `call` may be used from any thread, the coroutines only inside of it."""

    def __init__(self, servers: Sequence[str], *, connect_seconds: float = CONNECT_SECONDS_MAX) -> None:
        """Connect to one of the servers, `nats://HOST:PORT` each.

        Raises:
            UnavailableError: none could be reached in time.
        """
        self._servers = list(servers)
        self._client: Client | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vecmem-nats", daemon=True)
        self._thread.start()
        try:
            self.call(self._connect, seconds=connect_seconds)
        except NoReplyError as error:
            self.close()
            raise UnavailableError(f"no NATS server could be reached at {', '.join(self._servers)}: {error}") from error

    @property
    def message_bytes_max(self) -> int:
        """Largest message that the server takes, headers included."""
        return int(self._connected().max_payload)

    @property
    def server_name(self) -> str:
        """Name of the server that the client is connected to."""
        return str(self._connected()._server_info.get("server_name", ""))  # noqa: SLF001 - there is no other way

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, seconds: float) -> T:
        """Run a coroutine function on the connection's loop, and wait for its result.

        Raises:
            NoReplyError: it took longer.
            UnavailableError: the connection is closed.
        """

        async def bounded() -> T:
            try:
                async with asyncio.timeout(seconds):
                    return await function(*arguments)
            except TimeoutError:
                raise NoReplyError(f"nothing after {seconds:g} s") from None

        try:
            return self.begin(bounded).result()
        except concurrent.futures.CancelledError:
            raise UnavailableError("the connection to NATS was closed") from None

    def begin(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> concurrent.futures.Future[T]:
        """Run a coroutine function on the connection's loop. Its result comes, or it is cancelled when the connection closes.

        Raises UnavailableError where that has been closed.
        """
        with self._lock:  # so that nothing is handed to the loop when it is about to end
            if self._closed:
                raise UnavailableError("the connection to NATS is closed")
            return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop)

    async def request(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        seconds: float = REQUEST_SECONDS_MAX,
    ) -> Message:
        """Send a message and await its one answer. Raises NoReplyError."""
        client = self._connected()
        answer = await self._unless_lost(client.request(subject, data, timeout=seconds, headers=headers), seconds)
        return _message(answer)

    async def api(
        self, name: str, request: Mapping[str, Any], *, seconds: float = REQUEST_SECONDS_MAX
    ) -> dict[str, Any]:
        """Ask JetStream something; the answer may hold an `error`. Raises NoReplyError."""
        reply = await self.request(API_PREFIX + name, json.dumps(request).encode(), seconds=seconds)
        return dict(json.loads(reply.data))

    async def request_many(
        self, subject: str, data: bytes, *, seconds: float = REQUEST_SECONDS_MAX
    ) -> tuple[list[Message], Message]:
        """Send a message and await its answers up to one that is a status. Returns those before it, and it.

        Raises:
            NoReplyError: they did not all come in time.
        """
        client = self._connected()

        async def collect() -> tuple[list[Message], Message]:
            found: list[Message] = []
            end: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

            async def receive(answer: Msg) -> None:
                message = _message(answer)
                if not message.status:
                    found.append(message)
                elif not end.done():
                    end.set_result(message)

            inbox = client.new_inbox()
            answers = await client.subscribe(inbox, cb=receive)
            try:
                await client.publish(subject, data, reply=inbox)
                return found, await end
            finally:
                if not client.is_closed:
                    await answers.unsubscribe()

        return await self._unless_lost(collect(), seconds)

    async def subscribe(self, subject: str, callback: Callable[[Message], None]) -> None:
        """Hand every message on a subject to a callback, over reconnections; some may be lost."""

        async def receive(message: Msg) -> None:
            callback(_message(message))

        await self._connected().subscribe(subject, cb=receive)

    def close(self) -> None:
        """End the connection and the thread; who waits gets UnavailableError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            done = asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop)
        try:
            done.result(CONNECT_SECONDS_MAX)
        except TimeoutError:
            _logger.warning("the connection to NATS did not close in time")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _connected(self) -> Client:
        if self._client is None:
            raise UnavailableError("the connection to NATS is closed")
        return self._client

    async def _connect(self) -> None:
        client = ClosingClient()
        self._client = client
        try:
            await client.connect(
                servers=self._servers,
                name="vecmem",
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                connect_timeout=2,
                reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # seconds, in fractions as well
                max_reconnect_attempts=-1,
                ping_interval=PING_INTERVAL_SECONDS,
                pending_size=0,  # nothing waits for the next connection: a late publish would be a surprise
            )
        except (nats.errors.Error, OSError) as error:
            raise NoReplyError(repr(error)) from error

    async def _disconnect(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
        current = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _on_error(self, error: Exception) -> None:
        _logger.info("NATS: %r", error)

    async def _on_disconnected(self) -> None:
        # nats-py lets requests that are under way wait for their time to run out: their answers cannot come any more.
        for task in self._under_way:
            task.cancel()

    async def _unless_lost(self, answer: Awaitable[T], seconds: float) -> T:
        client = self._connected()

        async def wait() -> T:
            async with asyncio.timeout(seconds):  # nats-py's own time does not count the sending
                return await answer

        if not client.is_connected:
            if asyncio.iscoroutine(answer):
                answer.close()
            raise NoReplyError("not connected")
        task = asyncio.create_task(wait())
        self._under_way.add(task)
        try:
            return await task
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise NoReplyError(repr(error)) from error
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                task.cancel()
                raise
            raise NoReplyError("the connection was lost") from None
        finally:
            self._under_way.discard(task)


def _message(message: Msg) -> Message:
    headers = {str(getattr(name, "value", name)): value for name, value in (message.headers or {}).items()}
    status = "" if message.data else headers.get(STATUS_HEADER, "")
    return Message(headers, message.data, int(status) if status.isdecimal() else 0)
