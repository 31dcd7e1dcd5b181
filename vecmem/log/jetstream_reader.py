"""Reading a replicated log: batches in order, each proven to follow on the one before it, and a follower that waits."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vecmem.errors import CorruptionError, NotFoundError, UnavailableError
from vecmem.log.jetstream_batch import batch_of, check_follows, entries_of
from vecmem.log.nats_connection import REQUEST_SECONDS_MAX, NoReplyError
from vecmem.log.transaction_log import Follower

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from vecmem.log.jetstream import JetStreamLog
    from vecmem.log.jetstream_batch import Batch, Place
    from vecmem.log.jetstream_stream import Stream
    from vecmem.log.nats_connection import NatsConnection
    from vecmem.log.record import LogEntry

IDLE_SECONDS: Final = 1.0
"""A follower looks at least so often, should the word that something was committed have been lost."""
PAUSE_SECONDS_MIN: Final = 0.001
PAUSE_SECONDS_MAX: Final = 0.1

_logger = logging.getLogger(__name__)


class BatchReader:
    """Reads batches from a record on. One thread uses it; `after` is the place that it has come to."""

    def __init__(
        self, connection: NatsConnection, stream: Stream, start: int, after: Place, note_end: Callable[[Place], None]
    ) -> None:
        """Args: where to read, the first record to give, the place before its batch, and who is told of each batch's end."""
        self.after = after
        self._connection = connection
        self._stream = stream
        self._start = start
        self._note_end = note_end

    def next_entries(self) -> Iterator[LogEntry]:
        """Yield what is there of the next records, perhaps none.

        Raises:
            NoReplyError: no server with a copy answered.
            NotFoundError: they have been trimmed meanwhile.
            CorruptionError: they are missing, damaged or out of the chain.
            UnsupportedFormatError: one is newer than this version understands.
        """
        messages = self._connection.call(self._stream.read, self.after.message + 1, seconds=2 * REQUEST_SECONDS_MAX)
        for message in messages:
            mended = False
            try:
                sequence = int(message.headers["Nats-Sequence"])
                batch = batch_of(message.headers, message.data, sequence, path=self._stream.path)
                entries = self._proven(batch)
            except CorruptionError as error:
                batch, entries = self._as_the_leader_has_it(error)
                mended = True
            self.after = batch.end
            self._note_end(batch.end)
            for entry in entries:
                if entry.sequence >= self._start:
                    yield entry
            if mended:
                return  # what was read behind it may not follow on it

    def check_not_missing(self) -> None:
        """Prove that the next message is not gone, where none was read: a server may only be behind.

        Raises:
            NoReplyError: the leader did not answer.
            NotFoundError, CorruptionError: it is gone.
        """
        message = self.after.message + 1
        state = self._connection.call(self._stream.state, seconds=2 * REQUEST_SECONDS_MAX)
        if state.last_message < self.after.message:
            # An old leader, or acknowledged messages are lost: then the chain breaks when the stream has grown again.
            raise NoReplyError(f"the stream ends at message {state.last_message}, and {self.after.message} was read")
        if state.last_message < message:
            return
        if self._connection.call(self._stream.get, message, seconds=2 * REQUEST_SECONDS_MAX) is None:
            self._check_not_trimmed()
            raise CorruptionError(
                f"message {message} is missing, and the stream goes on to {state.last_message}",
                path=self._stream.path,
                position=f"sequence {self.after.sequence + 1}",
            )

    def _proven(self, batch: Batch) -> list[LogEntry]:
        check_follows(batch, self.after, path=self._stream.path)
        return entries_of(batch, path=self._stream.path)

    def _as_the_leader_has_it(self, error: CorruptionError) -> tuple[Batch, list[LogEntry]]:
        """The next batch from the leader, where a copy is damaged. Raises that error if the leader has none either."""
        batch = self._connection.call(self._stream.get, self.after.message + 1, seconds=2 * REQUEST_SECONDS_MAX)
        if batch is None:
            self._check_not_trimmed()
            raise error
        entries = self._proven(batch)
        _logger.warning("a server's copy is damaged, and the leader's is sound: %s", error)
        return batch, entries

    def _check_not_trimmed(self) -> None:
        state = self._connection.call(self._stream.state, seconds=2 * REQUEST_SECONDS_MAX)
        if state.first_message > self.after.message + 1:
            raise NotFoundError(f"sequence {self.after.sequence + 1} was trimmed while the log was read")


class JetStreamFollower(Follower):
    """An endless read that goes on over failures of NATS, however long they take."""

    def __init__(self, log: JetStreamLog, start: int, grown: threading.Condition) -> None:
        """Args: as for Follower."""
        super().__init__(log, start, grown)
        self._stream_log = log
        self._reader: BatchReader | None = None
        self._came_empty = False
        self._pause_seconds = PAUSE_SECONDS_MIN
        self._unanswered = False

    def __next__(self) -> LogEntry:
        while not self._closed:
            try:
                entry = next(self._batch, None)
                if entry is None:
                    self._read_on()
                    continue
            except (NoReplyError, UnavailableError) as error:
                if not self._closed and not self._unanswered:
                    _logger.warning("%s: reading waits for NATS: %s", self._stream_log.path, error)
                self._unanswered = True
                self._reader, self._batch = None, iter(())
                self._pause(PAUSE_SECONDS_MAX)
            else:
                self._next = entry.sequence + 1
                self._came_empty, self._pause_seconds, self._unanswered = False, PAUSE_SECONDS_MIN, False
                return entry
        raise StopIteration

    def _read_on(self) -> None:
        """Begin the next read; where the last one found nothing, when there is word of more, or after a while."""
        if self._reader is None:
            self._reader = self._stream_log.reader(self._next)
            if self._reader is None:
                self._pause(PAUSE_SECONDS_MAX)
                return
        elif self._came_empty:
            message = self._reader.after.message + 1
            if self._stream_log.is_committed(message):
                # The server that answered is behind; where it stays so, the message may be gone.
                self._pause(self._pause_seconds)
                if self._pause_seconds >= PAUSE_SECONDS_MAX:
                    self._reader.check_not_missing()
                self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)
            elif not self._stream_log.wait_for_message(message, self, IDLE_SECONDS):
                self._reader.check_not_missing()
        self._came_empty = True
        self._batch = self._reader.next_entries()

    def _pause(self, seconds: float) -> None:
        with self._grown:
            self._grown.wait_for(lambda: self._closed, seconds)


def find_batch(get: Callable[[int], Batch | None], sequence: int, low: int, high: int) -> Batch | None:
    """The batch with a record among the messages from `low` to `high`, found by halving; None: none holds it.

    A message that is missing does not hide what lies behind it.
    """
    while low <= high:
        middle = (low + high) // 2
        probe, batch = middle, get(middle)
        while batch is None and probe > low:
            probe -= 1
            batch = get(probe)
        if batch is not None and sequence < batch.first_sequence:
            high = probe - 1
        elif batch is None or sequence > batch.last_sequence:
            low = middle + 1
        else:
            return batch
    return None


@contextmanager
def answered(path: str) -> Iterator[None]:
    """Turn NoReplyError into UnavailableError."""
    try:
        yield
    except NoReplyError as error:
        raise UnavailableError(f"{path}: NATS does not answer: {error}") from error
