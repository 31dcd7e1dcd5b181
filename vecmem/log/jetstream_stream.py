"""The stream under a replicated log: made and checked, read and purged through JetStream's own requests.

Content is read by direct get, which any server with a copy answers, so that reading goes on while a leader is elected.
A copy may be behind: what it gives is right, but its end is not the stream's. The end is asked of the stream's leader.
While servers fail even that may be an old end, from a leader that has been replaced; only an append proves an end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vecmem.errors import ConfigurationError, CorruptionError
from vecmem.log.jetstream_batch import Batch, batch_of
from vecmem.log.nats_connection import API_PREFIX, REQUEST_SECONDS_MAX, NoReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vecmem.log.nats_connection import Message, NatsConnection

T = TypeVar("T")

READ_BYTES: Final = 4 * 1024 * 1024
READ_MESSAGES: Final = 1_000
"""Messages are read this much at a time; the last one may go over it."""
SILENT_SECONDS: Final = 3.0
"""Servers with a copy answer the stream's leader about every second."""
HEARD_SECONDS_MAX: Final = 1.5
"""Waited for servers of which the leader has not heard; one that is dead costs an opening so much."""
STALE_SECONDS_MAX: Final = 15.0
"""A server that is cut off, and led the stream, goes on telling its old end for about ten seconds."""
PAUSE_SECONDS: Final = 0.05
"""Between two attempts at something that gets no answer."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NOT_FOUND: Final = 404
_END_OF_BATCH: Final = 204
_SERVER_ERROR: Final = 500
_UNAVAILABLE: Final = 503
_STREAM_EXISTS: Final = 10058


@dataclass(frozen=True, slots=True)
class StreamState:
    """What the leader says of its stream. A stream without messages has `last_message` 0, or the last one purged."""

    first_message: int
    last_message: int
    message_count: int
    size_bytes: int
    servers: frozenset[str]
    """Names of the servers with a copy that the leader hears of, itself included; empty where a server stands alone.

    One that is down acknowledges nothing, and its absence is what the other copies are for.
    """


class Stream:
    """Requests about one stream; its coroutines run on the connection's loop."""

    def __init__(self, connection: NatsConnection, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is no name for a stream: letters, digits, - and _ only")
        self.name = name
        self.path = f"nats:{name}"
        """What messages call it."""
        self.subject = f"vecmem.log.{name}"
        self.committed_subject = f"vecmem.committed.{name}"
        """Where the leader announces each message once it is committed, without its content."""
        self._connection = connection
        self._created = ""

    def configuration(self, replicas: int) -> dict[str, Any]:
        """What the stream has to be: every message kept, on disk, in the order of its arrival, until it is purged."""
        return {
            "name": self.name,
            "subjects": [self.subject],
            "num_replicas": replicas,
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "allow_direct": True,
            "republish": {"src": self.subject, "dest": self.committed_subject, "headers_only": True},
        }

    async def open(self, replicas: int, *, create: bool) -> StreamState:
        """Find the stream, or make it if asked to; check that it is as it has to be. Safe to repeat.

        Raises:
            ConfigurationError: there is none, or it is another kind of stream.
            NoReplyError: JetStream did not answer.
        """
        wanted = self.configuration(replicas)
        info = await self._ask("STREAM.INFO." + self.name, {})
        if _error_code(info) == _NOT_FOUND and create:
            info = await self._ask("STREAM.CREATE." + self.name, wanted, passing=_UNAVAILABLE)
            if info.get("error", {}).get("err_code") == _STREAM_EXISTS:  # somebody else has made it, of another kind
                info = await self._ask("STREAM.INFO." + self.name, {})
        if _error_code(info) == _NOT_FOUND:
            raise ConfigurationError(f"{self.path}: there is no such stream, and it is not to be made")
        self._check_configuration(info, wanted)
        self._created = str(info["created"])
        state = state_of(info)
        # The leader of a new stream, or a new leader, hears of the others a moment later.
        deadline = time.monotonic() + HEARD_SECONDS_MAX
        while 1 < replicas > len(state.servers) and time.monotonic() < deadline:
            await asyncio.sleep(PAUSE_SECONDS)
            state = await self.state()
        return state

    async def state(self) -> StreamState:
        """Ask the leader.

        Raises:
            CorruptionError: the stream is gone, or another one has its name.
            NoReplyError: JetStream did not answer.
        """
        info = await self._ask("STREAM.INFO." + self.name, {})
        if "error" in info:
            raise CorruptionError(f"the stream is gone: {info['error'].get('description')}", path=self.path)
        if info["created"] != self._created:
            what = f"the stream was made anew at {info['created']}, after the one of {self._created} had been opened"
            raise CorruptionError(what, path=self.path)
        return state_of(info)

    async def get(self, message: int, *, seconds: float = REQUEST_SECONDS_MAX) -> Batch | None:
        """The batch of one message, as the leader has it; None: it has no such message. Raises NoReplyError."""
        return await self._get({"seq": message}, seconds)

    async def get_last(self) -> Batch | None:
        """The batch of the last message that is there, as the leader has it. Raises NoReplyError."""
        return await self._get({"last_by_subj": self.subject}, REQUEST_SECONDS_MAX)

    async def read(self, start: int) -> list[Message]:
        """Some messages from `start` on, at least one if there is any; nothing of them is checked here.

        Raises:
            NoReplyError: nobody with a copy answered.
        """
        request = {"seq": start, "batch": READ_MESSAGES, "max_bytes": READ_BYTES}
        subject = f"{API_PREFIX}DIRECT.GET.{self.name}"
        found, end = await self._connection.request_many(subject, json.dumps(request).encode())
        if end.status not in {_NOT_FOUND, _END_OF_BATCH}:
            raise NoReplyError(f"status {end.status} {end.headers.get('Description', '')}")
        return found

    async def purge(self, before: int) -> None:
        """Remove the messages below `before`. Safe to repeat. Raises NoReplyError."""
        answer = await self._ask("STREAM.PURGE." + self.name, {"seq": before})
        if "error" in answer:
            raise NoReplyError(str(answer["error"].get("description")))

    async def _get(self, request: dict[str, Any], seconds: float) -> Batch | None:
        answer = await self._ask("STREAM.MSG.GET." + self.name, request, seconds=seconds)
        if _error_code(answer) == _NOT_FOUND:
            return None
        if "error" in answer:
            raise NoReplyError(str(answer["error"].get("description")))
        message = answer["message"]
        headers = _parsed_headers(base64.b64decode(message.get("hdrs", "")))
        return batch_of(headers, base64.b64decode(message.get("data", "")), int(message["seq"]), path=self.path)

    async def _ask(
        self,
        name: str,
        request: dict[str, Any],
        *,
        passing: int = _SERVER_ERROR,
        seconds: float = REQUEST_SECONDS_MAX,
    ) -> dict[str, Any]:
        """The answer, which may be a refusal; failures that pass, those from a code on, count as none."""
        answer = await self._connection.api(name, request, seconds=seconds)
        if _error_code(answer) >= passing:
            raise NoReplyError(str(answer["error"].get("description")))
        return answer

    def _check_configuration(self, info: dict[str, Any], wanted: dict[str, Any]) -> None:
        if "error" in info:
            raise ConfigurationError(f"{self.path}: {info['error'].get('description')}")
        found = info["config"]
        different = [
            f"{key} is {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value
        ]
        # What these do is in no setting above: they let others write, or content vanish.
        unwanted = ("mirror", "sources", "subject_transform", "allow_rollup_hdrs", "allow_msg_ttl", "sealed", "no_ack")
        different += [f"{key} is {found[key]!r}" for key in unwanted if found.get(key)]
        if found.get("persist_mode") not in {None, "", "default"}:
            different.append(f"persist_mode is {found['persist_mode']!r}")
        if different:
            raise ConfigurationError(f"{self.path} is no stream of a log: {'; '.join(different)}")


async def repeated(attempt: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
    """Try until it is answered; after `seconds` the last NoReplyError is raised."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            return await attempt()
        except NoReplyError:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def last_batch(stream: Stream, state: StreamState) -> Batch | None:
    """The batch of the stream's last message; None: nothing was ever appended.

    Raises:
        CorruptionError: it is not there.
        NoReplyError: the leader did not answer.
    """
    if state.last_message == 0:
        return None
    last = await stream.get(state.last_message)
    if last is not None:
        return last
    left = await stream.get_last()
    raise CorruptionError(
        f"the last message, {state.last_message}, is not there any more",
        path=stream.path,
        position=f"message {state.last_message}" if left is None else f"sequence {left.last_sequence + 1}",
    )


def state_of(info: dict[str, Any]) -> StreamState:
    """What a reply about a stream says of its state."""
    state, cluster = info["state"], info.get("cluster") or {}
    heard_of = (replica["name"] for replica in cluster.get("replicas") or [] if _is_heard_of(replica))
    servers = {cluster.get("leader", ""), *heard_of}
    return StreamState(
        first_message=int(state["first_seq"]),
        last_message=int(state["last_seq"]),
        message_count=int(state["messages"]),
        size_bytes=int(state["bytes"]),
        servers=frozenset(servers - {""}),
    )


def _is_heard_of(replica: dict[str, Any]) -> bool:
    """Whether the leader has heard of a server with a copy lately. 0 stands for never, since it leads."""
    return not replica.get("offline") and 0 < int(replica.get("active") or 0) <= SILENT_SECONDS * 1e9


def _error_code(answer: dict[str, Any]) -> int:
    return int(answer.get("error", {}).get("code", 0))


def _parsed_headers(raw: bytes) -> dict[str, str]:
    lines = (line.partition(b":") for line in raw.split(b"\r\n")[1:])
    return {name.strip().decode(): value.strip().decode(errors="replace") for name, _, value in lines if name}
