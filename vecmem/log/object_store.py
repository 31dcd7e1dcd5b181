"""Objects in a bucket of JetStream's Object Store, for blocking callers; `nats object ls` and `get` understand them.

An object is chunks on a subject of its own, and then one message that says how many there are. An object without that
message is being written, or was left over by a writer that died. Names are given once: nothing is overwritten, so what
was read of an object never mixes two of them. A chunk whose acknowledgement does not come is sent again under the same
id, which JetStream takes once.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from vecmem.errors import ConfigurationError, CorruptionError, NotFoundError, UnavailableError
from vecmem.log.jetstream_stream import state_of
from vecmem.log.nats_connection import API_PREFIX, REQUEST_SECONDS_MAX, NoReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vecmem.log.nats_connection import Message, NatsConnection

T = TypeVar("T")

CHUNK_BYTES: Final = 256 * 1024
"""Each is synced on every server before it is acknowledged, and appends to the log wait that long at most."""
READ_BYTES: Final = 4 * 1024 * 1024
READ_CHUNKS: Final = 64
ANSWER_SECONDS_MAX: Final = 30.0
"""How long the same thing is asked again before NATS counts as away; killing a stream's leader was measured to take 5 s."""
PAUSE_SECONDS: Final = 0.05
_MARGIN_SECONDS: Final = 5.0
_NOT_FOUND: Final = 404
_END_OF_BATCH: Final = 204
_SERVER_ERROR: Final = 500


@dataclass(slots=True)
class ObjectListing:
    """What a bucket holds of one object."""

    chunk_count: int = 0
    """Chunks that are there, whatever the object's own message says."""
    written: bool = False
    """Whether its last message is there."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What an object's own message says."""

    size_bytes: int
    chunk_count: int
    deleted: bool = False


class ObjectStore:
    """One bucket. Made by ObjectStore.open; one thread at a time."""

    def __init__(self, connection: NatsConnection, bucket: str) -> None:
        """For ObjectStore.open."""
        self.path = f"nats:object store {bucket}"
        """What messages call it."""
        self.servers: frozenset[str] = frozenset()
        """Names of the NATS servers with a copy."""
        self._connection = connection
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"

    @classmethod
    def open(cls, connection: NatsConnection, bucket: str, replicas: int, *, create: bool) -> Self | None:
        """Find a bucket, or make it if asked to; None: there is none.

        Raises:
            ConfigurationError: JetStream refuses to make it.
            UnavailableError: NATS does not answer.
        """
        store = cls(connection, bucket)
        info = store._ask("STREAM.INFO." + store._stream, {})
        if _error_code(info) == _NOT_FOUND and create:
            # As every client of NATS makes a bucket.
            configuration = {
                "name": store._stream,
                "subjects": [store._chunk_subject(">"), store._meta_subject(">")],
                "num_replicas": replicas,
                "storage": "file",
                "retention": "limits",
                "discard": "new",
                "allow_rollup_hdrs": True,
                "allow_direct": True,
            }
            info = store._ask("STREAM.CREATE." + store._stream, configuration)
            if "error" in info:
                info = store._ask("STREAM.INFO." + store._stream, {})  # somebody else may have made it
        if _error_code(info) == _NOT_FOUND and not create:
            return None
        if "error" in info:
            raise ConfigurationError(f"{store.path}: {info['error'].get('description')}")
        store.servers = state_of(info).servers or frozenset({connection.server_name})
        return store

    def path_of(self, name: str) -> str:
        """What messages call an object."""
        return f"{self.path}, {name}"

    def contents(self) -> dict[str, ObjectListing]:
        """What there is by name, objects that are not wholly written included. Raises UnavailableError."""
        found: defaultdict[str, ObjectListing] = defaultdict(ObjectListing)
        chunks, metas = self._chunk_subject(""), self._meta_subject("")
        for subject, count in self._subjects().items():
            if subject.startswith(chunks):
                found[_name(subject.removeprefix(chunks))].chunk_count = count
            elif subject.startswith(metas):
                found[_name(subject.removeprefix(metas))].written = True
        return dict(found)

    def info(self, name: str) -> ObjectInfo:
        """What an object's own message says. Raises NotFoundError, CorruptionError or UnavailableError."""
        message = self._last_message(self._meta_subject(_token(name)))
        if message is None:
            raise NotFoundError(f"{self.path}: there is no object {name}")
        try:
            fields = json.loads(base64.b64decode(message.get("data", "")))
            return ObjectInfo(int(fields["size"]), int(fields["chunks"]), bool(fields.get("deleted")))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"the message about it is damaged: {error!r}", path=self.path_of(name)) from error

    def age_seconds(self, name: str) -> float:
        """How long ago the last chunk came, by the server's own clock; infinite: there is none. Raises UnavailableError."""
        message = self._last_message(self._chunk_subject(_token(name)))
        if message is None:
            return math.inf
        info = self._ask("STREAM.INFO." + self._stream, {})
        if "error" in info:
            raise UnavailableError(f"{self.path}: {info['error'].get('description')}")
        return (datetime.fromisoformat(info["ts"]) - datetime.fromisoformat(message["time"])).total_seconds()

    def put(self, name: str, pieces: Iterable[bytes], sent: Callable[[float], None] = lambda _: None) -> None:
        """Write an object of a new name. `sent` is called after each chunk with the seconds that it took, and may block or raise.

        Raises:
            UnavailableError: NATS does not answer, or takes no more. What was written is left over.
        """
        token, digest, size_bytes, count = _token(name), sha256(), 0, 0
        for chunk in _chunks(pieces):
            began = time.monotonic()
            self._publish(self._chunk_subject(token), chunk, {"Nats-Msg-Id": f"{token}.{count}"})
            digest.update(chunk)
            size_bytes, count = size_bytes + len(chunk), count + 1
            sent(time.monotonic() - began)
        about = {
            "name": name,
            "options": {"max_chunk_size": CHUNK_BYTES},
            "bucket": self._bucket,
            "nuid": token,
            "size": size_bytes,
            "mtime": datetime.now(UTC).isoformat(),
            "chunks": count,
            "digest": f"SHA-256={base64.urlsafe_b64encode(digest.digest()).decode()}",
        }
        self._publish(self._meta_subject(token), json.dumps(about).encode(), {"Nats-Rollup": "sub"})

    def get(self, name: str) -> Iterator[bytes]:
        """Yield an object in chunks. The caller checks the content; that it has the right size is checked here.

        Raises:
            NotFoundError: there is no such object.
            CorruptionError: chunks of it are missing, or too many; the message names it.
            UnavailableError: NATS does not answer.
        """
        about = self.info(name)
        if about.deleted:
            raise NotFoundError(f"{self.path}: {name} was deleted")
        subject = self._chunk_subject(_token(name))
        start, size_bytes, count = 1, 0, 0
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while count < about.chunk_count:
            messages = self._read(subject, start)
            for message in messages:
                start = int(message.headers["Nats-Sequence"]) + 1
                size_bytes, count = size_bytes + len(message.data), count + 1
                yield message.data
            if messages:
                deadline = time.monotonic() + ANSWER_SECONDS_MAX
                continue
            # The server that answered may be behind; that the chunks are gone is the leader's word.
            if self._subjects(subject).get(subject, 0) < about.chunk_count or time.monotonic() > deadline:
                raise CorruptionError(f"only {count} of {about.chunk_count} chunks are there", path=self.path_of(name))
            time.sleep(PAUSE_SECONDS)
        if (size_bytes, count) != (about.size_bytes, about.chunk_count):
            what = f"{size_bytes} bytes in {count} chunks, not {about.size_bytes} in {about.chunk_count}"
            raise CorruptionError(what, path=self.path_of(name))

    def remove(self, name: str) -> None:
        """Remove all of an object, or of what is left of one: its own message first. Safe to repeat. Raises UnavailableError."""
        token = _token(name)
        for subject in (self._meta_subject(token), self._chunk_subject(token)):
            answer = self._ask("STREAM.PURGE." + self._stream, {"filter": subject})
            if "error" in answer:
                raise UnavailableError(f"{self.path}: {answer['error'].get('description')}")

    def _chunk_subject(self, token: str) -> str:
        return f"$O.{self._bucket}.C.{token}"

    def _meta_subject(self, token: str) -> str:
        return f"$O.{self._bucket}.M.{token}"

    def _subjects(self, pattern: str = "") -> dict[str, int]:
        """How many messages each subject has, by the leader's word."""
        found: dict[str, int] = {}
        while True:
            request = {"subjects_filter": pattern or f"$O.{self._bucket}.>", "offset": len(found)}
            info = self._ask("STREAM.INFO." + self._stream, request)
            if "error" in info:
                raise UnavailableError(f"{self.path}: {info['error'].get('description')}")
            page = info["state"].get("subjects") or {}
            found |= page
            if not page or len(found) >= int(info.get("total", 0)):
                return found

    def _last_message(self, subject: str) -> dict[str, Any] | None:
        answer = self._ask("STREAM.MSG.GET." + self._stream, {"last_by_subj": subject})
        if _error_code(answer) == _NOT_FOUND:
            return None
        if "error" in answer:
            raise UnavailableError(f"{self.path}: {answer['error'].get('description')}")
        return dict(answer["message"])

    def _read(self, subject: str, start: int) -> list[Message]:
        """Some messages of a subject, in order, from any server with a copy; perhaps none."""
        request = {"seq": start, "next_by_subj": subject, "batch": READ_CHUNKS, "max_bytes": READ_BYTES}
        body = json.dumps(request).encode()

        def attempt() -> list[Message]:
            found, end = self._connection.call(
                self._connection.request_many,
                f"{API_PREFIX}DIRECT.GET.{self._stream}",
                body,
                seconds=REQUEST_SECONDS_MAX + _MARGIN_SECONDS,
            )
            if end.status not in {_NOT_FOUND, _END_OF_BATCH}:
                raise NoReplyError(f"status {end.status} {end.headers.get('Description', '')}")
            return found

        return self._repeated(attempt)

    def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        def attempt() -> None:
            reply = self._connection.call(
                self._connection.request, subject, data, headers, seconds=REQUEST_SECONDS_MAX + _MARGIN_SECONDS
            )
            answer = json.loads(reply.data) if reply.data else {"error": {"description": f"status {reply.status}"}}
            if "error" in answer:
                raise NoReplyError(str(answer["error"].get("description")))

        self._repeated(attempt)

    def _ask(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """JetStream's answer, which may be a refusal; failures that pass count as none."""

        def attempt() -> dict[str, Any]:
            answer = self._connection.call(
                self._connection.api, name, request, seconds=REQUEST_SECONDS_MAX + _MARGIN_SECONDS
            )
            if _error_code(answer) >= _SERVER_ERROR:
                raise NoReplyError(str(answer["error"].get("description")))
            return answer

        return self._repeated(attempt)

    def _repeated(self, attempt: Callable[[], T]) -> T:
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while True:
            try:
                return attempt()
            except NoReplyError as error:
                if time.monotonic() >= deadline:
                    raise UnavailableError(f"{self.path}: NATS does not answer: {error}") from error
            time.sleep(PAUSE_SECONDS)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of CHUNK_BYTES, the last one shorter."""
    held = bytearray()
    for piece in pieces:
        for place in range(0, len(piece), CHUNK_BYTES):
            held += piece[place : place + CHUNK_BYTES]
            if len(held) >= CHUNK_BYTES:
                yield bytes(held[:CHUNK_BYTES])
                del held[:CHUNK_BYTES]
    if held:
        yield bytes(held)


def _token(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name(token: str) -> str:
    return base64.urlsafe_b64decode(token).decode(errors="replace")


def _error_code(answer: dict[str, Any]) -> int:
    return int(answer.get("error", {}).get("code", 0))
