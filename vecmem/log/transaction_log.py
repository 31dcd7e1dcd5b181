"""TransactionLog: what a durable, ordered log of records promises, whatever keeps it.

An append that has returned is durable: it survives a crash of the process and of the machine. Records have contiguous
sequences from 1; a read returns them in order and proves the running CRC (vecmem.log.record) as it goes. An append
says which record it believes to be the last and changes nothing when it is wrong, so two writers cannot interleave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from vecmem.log.record import LogEntry, Record


class TransactionLog(Protocol):
    """One log. Every method may be called from any thread; the event loop calls none that touches the disk."""

    @property
    def first_sequence(self) -> int:
        """Sequence of the oldest record kept; last_sequence + 1 when none is."""

    @property
    def last_sequence(self) -> int:
        """Sequence of the last durable record; 0 when there never was one.

        Where others can append as well it is the last one that this process knows of, and moves as it reads on.
        """

    @property
    def running_crc(self) -> int:
        """Running CRC32C at last_sequence; 0 at sequence 0."""

    @property
    def size_bytes(self) -> int:
        """Estimate of the space that the records kept take."""

    @property
    def record_bytes_max(self) -> int:
        """Largest record, frame included, that append takes; larger ones are refused before anything is written."""

    def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """Make records durable behind `after`, in order. Returns them in their places.

        After a crash in the middle the log holds a prefix of them, each wholly.

        Raises:
            LogConflictError: `after` is not the last sequence; nothing was written.
            InvalidArgumentError: a record does not fit its frame, or the log; nothing was written.
            WritesStoppedError: this or an earlier append failed, so what the disk holds is unknown until the log is
                opened again.
        """

    def read(self, start: int, stop: int | None = None) -> Iterator[LogEntry]:
        """Yield the records from `start` up to but not including `stop`, by default up to the last when called.

        Raises:
            NotFoundError: `start` has been trimmed, or lies more than one beyond the last.
            CorruptionError: a record is missing, damaged or out of the chain.
            UnsupportedFormatError: a record is newer than this version understands.
        """

    def follow(self, start: int) -> Follower:
        """Like read, but goes on with new records as they become durable; see Follower."""

    def running_crc_at(self, sequence: int) -> int:
        """Running CRC32C at a kept record, or at the one before the first kept.

        Raises:
            NotFoundError: the sequence is not kept.
            CorruptionError: its record is damaged.
        """

    def trim(self, before: int) -> None:
        """Forget the records below `before`; one beyond the last forgets all. Below the first it does nothing.

        A log that keeps records in batches may keep more: those that share a batch with later ones, and the last batch.

        Raises:
            InvalidArgumentError: `before` is more than one beyond the last.
            WritesStoppedError: as for append.
        """

    def close(self) -> None:
        """Let go of the files and end every follower. What was appended stays durable."""


class Follower:
    """An endless read: blocks the calling thread until the next record is durable. Ends when it or its log closes.

    One thread iterates; any thread may close.
    """

    def __init__(self, log: TransactionLog, start: int, grown: threading.Condition) -> None:
        """Args: the log, the first sequence to yield, and the condition that the log notifies on growth and close."""
        self._log = log
        self._next = start
        self._grown = grown
        self._closed = False
        self._batch: Iterator[LogEntry] = iter(())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> LogEntry:
        while True:
            if self._closed:
                raise StopIteration
            entry = next(self._batch, None)
            if entry is not None:
                self._next = entry.sequence + 1
                return entry
            with self._grown:
                while self._log.last_sequence < self._next and not self._closed:
                    self._grown.wait()
                last_sequence = self._log.last_sequence
            if not self._closed:
                self._batch = self._log.read(self._next, last_sequence + 1)

    @property
    def closed(self) -> bool:
        """Whether the iteration was ended by close."""
        return self._closed

    def close(self) -> None:
        """End the iteration; a thread blocked in it gets StopIteration."""
        with self._grown:
            self._closed = True
            self._grown.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
