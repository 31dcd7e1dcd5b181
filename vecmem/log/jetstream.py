"""JetStreamLog: the TransactionLog in a stream of NATS JetStream, a quorum of whose servers has each record on disk.

NATS's own condition on an append, that the stream's last message is the one expected, is the compare-and-append; so of
two writers one wins each place and the other one gets LogConflictError, whatever either believes. There is no other
lock. A writer that was overtaken has to read on before it may append again.

An append whose answer does not come is *settled* before anything else: the message at its place is looked at. If it is
its own, it succeeded; if it is somebody else's, it never will. If there is none, the append may still be on its way, so
nothing is known until the place is taken: the same message is published again, with the same id and condition, which
can put it there once at most. If that does not succeed in time, or the place was taken and has been trimmed since, the
log takes no writes until it is opened again.

A batch that is larger than a message goes out in pieces, one after the other: what is durable is always a prefix.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vecmem.errors import (
    CorruptionError,
    InvalidArgumentError,
    LogConflictError,
    NotFoundError,
    UnavailableError,
    WritesStoppedError,
)
from vecmem.log.jetstream_batch import Batch, Place, body_bytes_max_of, cut_into_batches, entries_of
from vecmem.log.jetstream_reader import BatchReader, JetStreamFollower, answered, find_batch
from vecmem.log.jetstream_stream import PAUSE_SECONDS, Stream, StreamState, last_batch, repeated
from vecmem.log.nats_connection import Message, NatsConnection, NoReplyError
from vecmem.log.nats_durability import check_durability

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from vecmem.log.record import LogEntry, Record
    from vecmem.log.transaction_log import Follower, TransactionLog

T = TypeVar("T")

ANSWER_SECONDS_MAX: Final = 30.0
"""For reads and trims; killing the leader was measured to take 5 s until the next one answers."""
LOOK_SECONDS_MAX: Final = 0.5
"""For a look at whether an append is there: without a leader nobody answers, and the next attempt comes so much later."""
SLOW_BYTES_PER_SECOND: Final = 4 * 1024 * 1024
"""A large message is given the time to be sent so slowly."""
MARGIN_SECONDS: Final = 10.0
"""How much longer a call may take than the deadline inside of it."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JetStreamSettings:
    """How to reach a log. `publish_seconds`: until an append is taken for lost; `settle_seconds`: until it is given up."""

    servers: tuple[str, ...]
    """`nats://HOST:PORT` of one or more servers; the others are learnt from them."""
    stream: str
    """Name of the stream: letters, digits, `-` and `_`."""
    replicas: int = 3
    monitoring_urls: tuple[str, ...] = ()
    """`http://HOST:PORT` of every server's monitoring page, which tells whether it syncs before it acknowledges."""
    allow_lazy_sync: bool = False
    """Take servers that acknowledge before they sync: a power cut then loses acknowledged writes."""
    allow_unknown_sync: bool = False
    """Take servers whose monitoring page does not tell."""
    publish_seconds: float = 2.0
    settle_seconds: float = 30.0


class JetStreamLog:
    """A TransactionLog in a stream. Made by JetStreamLog.open; safe to use from any thread.

    `last_sequence` is how far this process knows the log to reach: it moves with each append, and with what is read
    behind it. A writer has to say itself which record it has applied last, and not ask the log for it.
    """

    def __init__(
        self, settings: JetStreamSettings, connection: NatsConnection, stream: Stream, state: StreamState
    ) -> None:
        """For JetStreamLog.open."""
        self.path = stream.path
        self._settings = settings
        self._connection = connection
        self._stream = stream
        self._append_lock = asyncio.Lock()
        self._trim_lock = threading.Lock()
        self._grown = threading.Condition()
        self._committed_message = 0
        self._watching = False
        self._followers: list[JetStreamFollower] = []
        self._size_bytes = state.size_bytes
        self._stopped_reason = ""
        self._overtaken_at = 0
        self._closed = False
        self._end = Place()
        self._first, self._first_message = Place(), 1
        last = self._call(last_batch, stream, state)
        if last is not None:
            entries_of(last, path=self.path)  # the last record is always proven
            self._end = last.end
            self._note_first(state.first_message)

    @classmethod
    def open(cls, settings: JetStreamSettings, *, create: bool = False) -> JetStreamLog:
        """Connect, check the stream and that its servers sync, and find the log's end.

        Args:
            settings: where the log is.
            create: make the stream if there is none. Only where a new log is meant: one that was lost must not come
                back empty.

        Raises:
            ConfigurationError: there is no stream, it is no stream of a log, or a server of it syncs lazily.
            CorruptionError: the log's end is damaged.
            UnsupportedFormatError: the last record is newer than this version understands.
            UnavailableError: NATS does not answer, or not all servers tell whether they sync.
        """
        connection = NatsConnection(settings.servers)
        try:
            stream = Stream(connection, settings.stream)

            state = connection.call(
                repeated,
                lambda: stream.open(settings.replicas, create=create),
                ANSWER_SECONDS_MAX,
                seconds=ANSWER_SECONDS_MAX + MARGIN_SECONDS,
            )
            check_durability(
                state.servers or {connection.server_name},
                settings.monitoring_urls,
                allow_lazy=settings.allow_lazy_sync,
                allow_unknown=settings.allow_unknown_sync,
            )
            return cls(settings, connection, stream, state)
        except NoReplyError as error:
            connection.close()
            raise UnavailableError(f"nats:{settings.stream}: JetStream does not answer: {error}") from error
        except BaseException:
            connection.close()
            raise

    @property
    def first_sequence(self) -> int:
        """See TransactionLog; as this process knows it: another one may have trimmed more."""
        return self._first.sequence + 1

    @property
    def last_sequence(self) -> int:
        """Sequence of the last record that this process knows of; see the class."""
        return self._end.sequence

    @property
    def running_crc(self) -> int:
        """See TransactionLog."""
        return self._end.running_crc

    @property
    def size_bytes(self) -> int:
        """See TransactionLog; on each server that has a copy."""
        return self._size_bytes

    @property
    def record_bytes_max(self) -> int:
        """See TransactionLog; what fits a message of the server that the client is connected to."""
        return body_bytes_max_of(self._connection.message_bytes_max)

    @property
    def stopped_reason(self) -> str:
        """Why appends are refused until the log is opened again; empty: they are not."""
        return self._stopped_reason

    def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """See TransactionLog.

        Raises:
            LogConflictError: somebody else has appended; nothing was written. Until that has been read every further
                append is refused so.
            LimitExceededError: a record is larger than a message; nothing was written.
            WritesStoppedError: whether this or an earlier append is in the log is unknown, or only the first of its
                records are, until the log is opened again.
        """
        return self._append(records, after).result()

    async def append_from_loop(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """Like append, for a caller on an event loop."""
        return await asyncio.wrap_future(self._append(records, after))

    def read(self, start: int, stop: int | None = None) -> Iterator[LogEntry]:
        """See TransactionLog. Without `stop` the stream's leader is asked for the end."""
        is_within = stop is not None and stop <= self._end.sequence + 1
        last_sequence = self._end.sequence if is_within else self._ask_for_last_sequence()
        stop = min(last_sequence + 1, last_sequence + 1 if stop is None else stop)
        if not self.first_sequence <= start <= last_sequence + 1:
            raise self._not_kept(start)
        return self._read(start, stop)

    def follow(self, start: int) -> Follower:
        """See TransactionLog. It goes on over failures of NATS, however long they take."""
        follower = JetStreamFollower(self, start, self._grown)
        with self._grown:
            self._followers = [other for other in self._followers if not other.closed]
            self._followers.append(follower)
        if not self._watching:  # twice does no harm
            self._call(self._connection.subscribe, self._stream.committed_subject, self._on_committed)
            self._watching = True
        return follower

    def running_crc_at(self, sequence: int) -> int:
        """See TransactionLog."""
        for known in (self._end, self._first):
            if sequence == known.sequence:
                return known.running_crc
        if not self.first_sequence <= sequence <= self._end.sequence:
            raise self._not_kept(sequence)
        for entry in entries_of(self._batch_with(sequence), path=self.path):
            if entry.sequence == sequence:
                return entry.running_crc
        raise AssertionError("a batch has the records that it was found by")

    def bytes_behind(self, sequence: int) -> int:
        """About how much the records behind a sequence take, as if all were of one size; the leader is asked.

        Raises UnavailableError, or CorruptionError where the stream is gone.
        """
        state = self._call(self._stream.state)
        if state.first_message > self._first_message and state.message_count:
            self._note_first(state.first_message)
        self._size_bytes = state.size_bytes
        count = self._end.sequence - self._first.sequence
        return state.size_bytes * min(max(self._end.sequence - sequence, 0), count) // max(count, 1)

    def trim(self, before: int) -> None:
        """Forget records below `before`, as far as they share no message with later ones.

        The last message is kept always: the log's end is read from it. Raises as TransactionLog says, but
        UnavailableError where NATS does not answer: trims go on over that.
        """
        with self._trim_lock:
            self._check_writable()
            if before <= self.first_sequence:
                return
            last_sequence = self._end.sequence
            if before > last_sequence + 1:
                raise InvalidArgumentError(f"cannot trim before sequence {before}: the last is {last_sequence}")
            first = self._batch_with(min(before, last_sequence))
            self._call(self._stream.purge, first.message_sequence)
            self._first, self._first_message = first.before, first.message_sequence
            self._size_bytes = self._call(self._stream.state).size_bytes

    def close(self) -> None:
        """See TransactionLog. An append that is under way ends with WritesStoppedError."""
        with self._grown:
            followers, self._followers = self._followers, []
            self._closed = True
        for follower in followers:
            follower.close()
        self._connection.close()

    # For followers.

    def is_committed(self, message: int) -> bool:
        """Whether there is word that a message is in the stream. Without word it may be all the same."""
        return self._committed_message >= message

    def wait_for_message(self, message: int, follower: Follower, seconds: float) -> bool:
        """Block until there is word that a message is in the stream, the follower is closed, or the time is up."""
        with self._grown:
            self._grown.wait_for(lambda: follower.closed or self.is_committed(message), seconds)
        return self.is_committed(message)

    def reader(self, start: int) -> BatchReader | None:
        """What reads the batches from that of a record on; None: the log does not reach so far yet.

        Raises:
            NotFoundError: the record has been trimmed.
            NoReplyError: NATS did not answer.
        """
        if start > self._end.sequence + 1 and start > self._ask_for_last_sequence() + 1:
            return None
        if start == self._end.sequence + 1:
            after = self._end
        elif start < self.first_sequence:
            raise self._not_kept(start)
        else:
            after = self._batch_with(start).before
        return BatchReader(self._connection, self._stream, start, after, self._note_end)

    def _read(self, start: int, stop: int) -> Iterator[LogEntry]:
        if start >= stop:
            return
        with answered(self.path):
            reader = self.reader(start)
            assert reader is not None, "the end was looked at before"
            deadline = time.monotonic() + ANSWER_SECONDS_MAX
            while reader.after.sequence + 1 < stop:
                came_from = reader.after
                try:
                    for entry in reader.next_entries():
                        yield entry
                        if entry.sequence == stop - 1:
                            return  # what lies behind is not asked for, and may be damaged
                    if reader.after == came_from:
                        reader.check_not_missing()
                except NoReplyError:
                    if time.monotonic() > deadline:
                        raise
                if reader.after != came_from:
                    deadline = time.monotonic() + ANSWER_SECONDS_MAX
                elif time.monotonic() > deadline:
                    raise NoReplyError(f"no server has sequence {came_from.sequence + 1} yet")
                else:
                    time.sleep(PAUSE_SECONDS)

    def _append(self, records: Sequence[Record], after: int) -> concurrent.futures.Future[list[LogEntry]]:
        self._check_writable()
        return self._connection.begin(self._append_in_turn, records, after)

    async def _append_in_turn(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """On the connection's loop: one append after the other."""
        try:
            async with self._append_lock:
                self._check_writable()
                end = self._end
                if after != end.sequence or end.message < self._overtaken_at:
                    raise LogConflictError(f"an append after sequence {after}, but the last known is {end.sequence}")
                entries, batches = cut_into_batches(records, after=end, body_bytes_max=self.record_bytes_max)
                for batch in batches:
                    await self._append_batch(batch, is_first=batch is batches[0])
        except asyncio.CancelledError:
            raise UnavailableError("the log was closed; nothing was appended") from None
        return entries

    async def _append_batch(self, batch: Batch, *, is_first: bool) -> None:
        """Publish one message and learn what became of it."""
        try:
            async with asyncio.timeout(self._settings.settle_seconds + MARGIN_SECONDS):
                await self._publish(batch)
        except _OvertakenError as error:
            self._overtaken_at = batch.message_sequence
            if is_first:
                raise LogConflictError(str(error)) from error
            raise self._stop(f"{error}; what comes before it in the same append is in the log") from error
        except (Exception, asyncio.CancelledError) as error:
            # Cancelled: the connection is closed.
            raise self._stop(f"whether sequence {batch.first_sequence} was appended is unknown: {error!r}") from error
        self._size_bytes += len(batch.frames)
        self._note_end(batch.end)

    async def _publish(self, batch: Batch) -> None:
        """Publish until it is known what became of it; see the module.

        Raises:
            _OvertakenError: another message is at its place, so that this one never will be.
            NoReplyError: it is not known in time, or what was at its place was trimmed, so that it never will be.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.settle_seconds
        seconds = self._settings.publish_seconds + len(batch.frames) / SLOW_BYTES_PER_SECOND
        while True:
            try:
                reply = await self._connection.request(
                    self._stream.subject, batch.frames, batch.headers(), seconds=seconds
                )
                answer = json.loads(reply.data)
                if "error" not in answer:
                    if answer["seq"] != batch.message_sequence or answer["stream"] != self._stream.name:
                        raise ValueError(f"message {batch.message_sequence} was acknowledged as {answer}")
                    return
                why = str(answer["error"].get("description"))
            except NoReplyError as error:
                why = str(error)
            # A refusal is no more certain than silence: an earlier attempt may be what it was refused for.
            _logger.warning(
                "%s: whether sequence %d was appended is looked up: %s", self.path, batch.first_sequence, why
            )
            is_trimmed = False
            with contextlib.suppress(NoReplyError):
                stored = await self._stream.get(batch.message_sequence, seconds=min(seconds, LOOK_SECONDS_MAX))
                if stored is not None and stored.batch_id == batch.batch_id:
                    return
                if stored is not None:
                    raise _OvertakenError(
                        f"another writer has appended sequence {stored.first_sequence} to {stored.last_sequence}"
                    )
                is_trimmed = batch.message_sequence < (await self._stream.state()).first_message
            if is_trimmed:
                raise NoReplyError("what was at its place was trimmed")
            if loop.time() >= deadline:
                raise NoReplyError(f"{why}, and no certainty after {self._settings.settle_seconds:g} s")
            await asyncio.sleep(PAUSE_SECONDS)

    def _stop(self, reason: str) -> WritesStoppedError:
        self._stopped_reason = reason
        return WritesStoppedError(f"the log takes no writes until it is opened again: {reason}")

    def _check_writable(self) -> None:
        if self._closed:
            raise UnavailableError("the log is closed")
        if self._stopped_reason:
            raise WritesStoppedError(f"the log takes no writes until it is opened again: {self._stopped_reason}")

    def _note_end(self, end: Place) -> None:
        """The log is known to reach a place: followers may look."""
        with self._grown:
            if end.sequence > self._end.sequence:
                self._end = end
            self._committed_message = max(self._committed_message, end.message)
            self._grown.notify_all()

    def _on_committed(self, message: Message) -> None:
        with self._grown:
            self._committed_message = max(self._committed_message, int(message.headers.get("Nats-Sequence", "0")))
            self._grown.notify_all()

    def _note_first(self, message: int) -> None:
        first = self._call(self._stream.get, message)
        if first is None:
            raise CorruptionError("the first message is missing", path=self.path, position=f"message {message}")
        self._first, self._first_message = first.before, message

    def _ask_for_last_sequence(self) -> int:
        """The last sequence by the leader's word; nothing is proven and the end does not move."""
        state = self._call(self._stream.state)
        if state.last_message <= self._end.message:
            return self._end.sequence
        last = self._call(last_batch, self._stream, state)
        return self._end.sequence if last is None else max(last.last_sequence, self._end.sequence)

    def _batch_with(self, sequence: int) -> Batch:
        """The batch that holds a record.

        Raises:
            NotFoundError: it has been trimmed, by whomever.
            CorruptionError: it is missing.
        """
        state = self._call(self._stream.state)
        if state.first_message > self._first_message:
            self._note_first(state.first_message)
            if sequence < self.first_sequence:
                raise self._not_kept(sequence)
        found = find_batch(
            lambda message: self._call(self._stream.get, message), sequence, self._first_message, state.last_message
        )
        if found is None:
            raise CorruptionError("no message holds the record", path=self.path, position=f"sequence {sequence}")
        return found

    def _not_kept(self, sequence: int) -> NotFoundError:
        return NotFoundError(
            f"sequence {sequence} is not in the log, which holds {self.first_sequence} to {self._end.sequence}"
        )

    def _call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Await a coroutine function on the connection's loop, again until NATS answers. Raises UnavailableError."""

        async def attempt() -> T:
            return await function(*arguments)

        async def attempts() -> T:
            return await repeated(attempt, ANSWER_SECONDS_MAX)

        with answered(self.path):
            return self._connection.call(attempts, seconds=ANSWER_SECONDS_MAX + MARGIN_SECONDS)


class _OvertakenError(Exception):
    """Somebody else's message is where an append was to go."""


if TYPE_CHECKING:

    def _as_transaction_log(log: JetStreamLog) -> TransactionLog:
        """Lets mypy compare the two."""
        return log
