"""RocksLog: the TransactionLog in RocksDB on the local disk. It opens with all that was acknowledged, or not at all.

Layout of the directory: `rocksdb/` is RocksDB's (keys in vecmem.log.rocks_database), `torn/` keeps the tails that were
cut off, `tip` notes how far the log had come (vecmem.log.tip), `lock` is held by the process that has the log open.

Two habits of RocksDB 9.8 and rocksdict 0.3.29 shape this module, each found by measurement:

- `Rdict.write` holds the GIL until it returns, over the fsync as well; `flush_wal(sync=True)` releases it. So a batch
  is written without sync in pieces of at most 1 MiB (2-3 ms for a piece of that size) and each piece is then synced by
  flush_wal. A piece is written only when the one before is durable, as if each were a synced write.
- A memtable switch of RocksDB's own begins a new log file that its manifest knows nothing of for a while, so that the
  file's loss could not be noticed. The memtable is therefore made too large to switch by itself, and append flushes it,
  with nothing else going on, whenever MEMTABLE_BYTES have been written.
"""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from vecmem.errors import (
    CorruptionError,
    InvalidArgumentError,
    LogConflictError,
    NotFoundError,
    UnavailableError,
    WritesStoppedError,
)
from vecmem.filesystem import fsync_directory, truncate_durably, write_durably
from vecmem.log import failpoints
from vecmem.log.record import HEADER_BYTES, PAYLOAD_BYTES_MAX, LogEntry, Record, decode, encode, verify_chain
from vecmem.log.rocks_database import Database
from vecmem.log.rocks_files import scan_directory
from vecmem.log.tip import Tip, check_tip, has_tip, read_tip, write_tip
from vecmem.log.transaction_log import Follower

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rocksdict import WriteBatch

    from vecmem.log.rocks_files import FileScan

PIECE_BYTES: Final = 1024 * 1024
"""Records are written this much at a time; a larger record is one piece."""
MEMTABLE_BYTES: Final = 8 * 1024 * 1024
"""Written since the last flush before the next one: bounds RocksDB's log file and with it the time to open."""
_open_paths: set[str] = set()
_open_paths_lock = threading.Lock()


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log found and did. `torn_tail_bytes` 0: nothing was cut."""

    torn_tail_bytes: int = 0
    file: str = ""
    """The file that was cut."""
    copy: str = ""
    """Where the bytes that were cut off are kept."""
    records_verified: int = 0
    notes: list[str] = field(default_factory=list)


class RocksLog:
    """A TransactionLog in a directory. Made by RocksLog.open; safe to use from any thread."""

    def __init__(self, path: Path, database: Database, report: RecoveryReport, lock: DirectoryLock | None) -> None:
        """For RocksLog.open."""
        self.path = path
        self.report = report
        self._database = database
        self._directory_lock = lock
        self._append_lock = threading.Lock()
        self._grown = threading.Condition()
        self._followers: list[Follower] = []
        self._unflushed_bytes = 0
        self._stopped_reason = ""
        self._closed = False
        self._first, self._running_crc_before_first = database.first()
        self._last = database.last() or self._first - 1
        self._running_crc = self.running_crc_at(self._last)

    @classmethod
    def open(cls, path: Path, *, verify_from: int | None = None) -> RocksLog:
        """Open the log in `path`, or make one; repair a torn tail; prove the records from `verify_from` on.

        Args:
            path: the log's directory.
            verify_from: sequence from which all records are read and their chain is proven, usually the one behind a
                checkpoint; None: from the first. The last record is always proven.

        Raises:
            CorruptionError: damage, by file and byte offset or by sequence; nothing was changed.
            UnsupportedFormatError: a record is newer than this version understands.
            UnavailableError: the directory is in use, or RocksDB cannot work in it.
        """
        files = path / "rocksdb"
        files.mkdir(parents=True, exist_ok=True)
        fsync_directory(path.parent)
        fsync_directory(path)
        lock = DirectoryLock(path)
        database = None
        try:
            report = _recover(path, files)
            database = Database(files, read_only=False)
            fsync_directory(files)
            log = cls(path, database, report, lock)
            log._verify(verify_from)
            write_tip(path, Tip(log._last, log._running_crc))
        except BaseException as error:
            if database is not None:
                database.close()
            lock.release()
            if isinstance(error, OSError):
                raise UnavailableError(f"{path}: {error}") from error
            raise
        return log

    @property
    def first_sequence(self) -> int:
        """See TransactionLog."""
        return self._first

    @property
    def last_sequence(self) -> int:
        """See TransactionLog."""
        return self._last

    @property
    def running_crc(self) -> int:
        """See TransactionLog."""
        return self._running_crc

    @property
    def size_bytes(self) -> int:
        """See TransactionLog."""
        return self._unflushed_bytes + self._database.table_bytes()

    @property
    def record_bytes_max(self) -> int:
        """See TransactionLog."""
        return HEADER_BYTES + PAYLOAD_BYTES_MAX

    @property
    def stopped_reason(self) -> str:
        """Why appends are refused until the log is opened again; empty: they are not."""
        return self._stopped_reason

    def append(self, records: Sequence[Record], after: int) -> list[LogEntry]:
        """See TransactionLog."""
        with self._append_lock:
            self._check_writable()
            if after != self._last:
                raise LogConflictError(f"an append after sequence {after}, but the last is {self._last}")
            running_crc = self._running_crc
            entries: list[LogEntry] = []
            frames = []
            for sequence, record in enumerate(records, after + 1):
                entry, frame = encode(record, sequence, running_crc)
                running_crc = entry.running_crc
                entries.append(entry)
                frames.append(frame)
            try:
                piece = self._database.new_batch()
                for place, frame in enumerate(frames, after + 1):
                    if len(piece) and piece.size_in_bytes() + len(frame) > PIECE_BYTES:
                        self._write(piece)
                        piece = self._database.new_batch()
                    self._database.put_record(piece, place, frame)
                self._write(piece)
            except Exception as error:
                raise self._stop("append", error) from error
            self._last, self._running_crc = after + len(entries), running_crc
        with self._grown:
            self._grown.notify_all()
        return entries

    def read(self, start: int, stop: int | None = None) -> Iterator[LogEntry]:
        """See TransactionLog."""
        stop = min(self._last + 1, self._last + 1 if stop is None else stop)
        if not self._first <= start <= self._last + 1:
            raise NotFoundError(f"sequence {start} is not in the log, which holds {self._first} to {self._last}")
        return verify_chain(
            self._read_frames(start, stop), start - 1, self.running_crc_at(start - 1), path=str(self.path)
        )

    def follow(self, start: int) -> Follower:
        """See TransactionLog."""
        follower = Follower(self, start, self._grown)
        with self._grown:
            self._followers = [other for other in self._followers if not other.closed]
            self._followers.append(follower)
        return follower

    def running_crc_at(self, sequence: int) -> int:
        """See TransactionLog."""
        if sequence == self._first - 1:
            return self._running_crc_before_first
        if not self._first <= sequence <= self._last:
            raise NotFoundError(f"sequence {sequence} is not in the log, which holds {self._first} to {self._last}")
        frame = self._database.get_record(sequence)
        if frame is None:
            raise CorruptionError("the record is missing", path=str(self.path), position=f"sequence {sequence}")
        return decode(frame, sequence, path=str(self.path)).running_crc

    def trim(self, before: int) -> None:
        """See TransactionLog."""
        with self._append_lock:
            self._check_writable()
            if before <= self._first:
                return
            if before > self._last + 1:
                raise InvalidArgumentError(f"cannot trim before sequence {before}: the last is {self._last}")
            running_crc = self.running_crc_at(before - 1)
            try:
                piece = self._database.new_batch()
                self._database.put_first(piece, before, running_crc)
                self._write(piece)
                self._first, self._running_crc_before_first = before, running_crc
                self._flush()
            except Exception as error:
                raise self._stop("trim", error) from error
        self._database.reclaim(before)

    def begin_behind(self, sequence: int, running_crc: int) -> None:
        """Let a new log go on behind a sequence, with the running CRC there: what comes before is somewhere else.

        Raises:
            InvalidArgumentError: there are records.
            WritesStoppedError: as for append.
        """
        with self._append_lock:
            self._check_writable()
            if self._last:
                raise InvalidArgumentError(f"{self.path} has records up to sequence {self._last}")
            try:
                piece = self._database.new_batch()
                self._database.put_first(piece, sequence + 1, running_crc)
                self._write(piece)
                self._first, self._running_crc_before_first = sequence + 1, running_crc
                self._last, self._running_crc = sequence, running_crc
                self._flush()
            except Exception as error:
                raise self._stop("beginning behind a sequence", error) from error

    def close(self) -> None:
        """See TransactionLog."""
        with self._grown:
            followers, self._followers = self._followers, []
        for follower in followers:
            follower.close()
        with self._append_lock:
            if not self._closed:
                self._closed = True
                try:
                    if not self._stopped_reason:
                        write_tip(self.path, Tip(self._last, self._running_crc))  # rocksdict flushes when it closes
                finally:
                    self._database.close()
                    if self._directory_lock is not None:
                        self._directory_lock.release()

    def _check_writable(self) -> None:
        if self._closed:
            raise UnavailableError("the log is closed")
        if self._stopped_reason:
            raise WritesStoppedError(f"the log takes no writes until it is opened again: {self._stopped_reason}")

    def _write(self, piece: WriteBatch) -> None:
        if not len(piece):
            return
        size_bytes = piece.size_in_bytes()
        if self._unflushed_bytes and self._unflushed_bytes + size_bytes > MEMTABLE_BYTES:
            self._flush()
        failpoints.reach("before_append_write")
        self._database.write(piece)
        self._unflushed_bytes += size_bytes
        failpoints.reach("before_append_sync")
        self._make_durable()
        failpoints.reach("after_append_sync")

    def _make_durable(self) -> None:
        self._database.sync()

    def _flush(self) -> None:
        write_tip(self.path, Tip(self._last, self._running_crc))
        failpoints.reach("before_memtable_flush")
        self._database.flush()
        self._unflushed_bytes = 0
        failpoints.reach("after_memtable_flush")

    def _stop(self, what: str, error: Exception) -> WritesStoppedError:
        self._stopped_reason = f"{what} failed: {error}"
        return WritesStoppedError(f"the log takes no writes until it is opened again: {self._stopped_reason}")

    def _read_frames(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        while start < stop:
            page = self._database.read_page(start, stop)
            if start < self._first:
                raise NotFoundError(f"sequence {start} was trimmed while the log was read")
            if not page:
                raise CorruptionError(
                    f"records up to {stop - 1} are missing", path=str(self.path), position=f"sequence {start}"
                )
            yield from page
            start = page[-1][0] + 1

    def _verify(self, verify_from: int | None) -> None:
        start = self._first if verify_from is None else verify_from
        if start > self._last + 1:
            raise CorruptionError(
                f"the log ends at sequence {self._last}: records up to {start - 1} are missing",
                path=str(self.path),
                position=f"sequence {self._last + 1}",
            )
        check_tip(self.path, self._last, self.running_crc_at)
        start = max(self._first, min(start, self._last))
        for _ in self.read(start):
            self.report.records_verified += 1


class DirectoryLock:
    """Keeps a second opener out before RocksDB's own lock could, so that a repair never touches a log in use.

    A POSIX record lock: it ends with the process, and a forked child does not hold it.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock; raises UnavailableError if somebody has it."""
        self._key = os.path.realpath(path)
        with _open_paths_lock:
            if self._key in _open_paths:
                raise UnavailableError(f"{path} is open in this process already")
            _open_paths.add(self._key)
        self._descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise UnavailableError(f"{path} is in use by another process") from error

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)
        with _open_paths_lock:
            _open_paths.discard(self._key)


def _recover(path: Path, files: Path) -> RecoveryReport:
    """Refuse damage and cut a torn tail, before RocksDB opens."""
    scan = scan_directory(files, opened_before=has_tip(path))
    if scan.damage:
        for other in scan.damage[1:]:
            scan.damage[0].add_note(str(other))
        raise scan.damage[0]
    tip = read_tip(path)
    if scan.fresh and tip:
        raise CorruptionError(f"the log had reached sequence {tip.sequence}, but its files are gone", path=str(files))
    report = RecoveryReport(notes=scan.notes)
    if scan.torn is not None:
        _cut_tail(path, scan.torn, report)
    return report


def _cut_tail(path: Path, torn: FileScan, report: RecoveryReport) -> None:
    aside = path / "torn"
    aside.mkdir(exist_ok=True)
    fsync_directory(path)
    count = sum(1 for _ in aside.glob(f"{torn.path.name}.torn-*"))
    copy = aside / f"{torn.path.name}.torn-{count + 1}"
    with open(torn.path, "rb") as file:
        file.seek(torn.whole_bytes)
        tail = file.read()
    write_durably(copy, [tail])
    fsync_directory(aside)
    failpoints.reach("before_tail_repair")
    truncate_durably(torn.path, torn.whole_bytes)
    report.torn_tail_bytes = len(tail)
    report.file, report.copy = str(torn.path), str(copy)
    report.notes.append(f"{torn.path}: {torn.torn}; cut {len(tail)} bytes at byte {torn.whole_bytes}, kept in {copy}")
