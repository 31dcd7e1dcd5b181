"""RocksDB as the log uses it: its options, its keys, and its errors as VecmemErrors. Knows nothing of chains.

Column family `log` maps the sequence (8 bytes, big-endian) to the framed record; column family `metadata` has one key,
written with each trim in the same write batch:

    offset  size  field (little-endian)
    0       8     first sequence kept
    8       4     running CRC32C before it
    12      4     CRC32C over bytes 0 to 12

Rdict's items() and keys() end quietly at a damaged block; only an iterator's status() tells. So every iteration here
ends with a look at it.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

import google_crc32c
from rocksdict import (
    AccessType,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from vecmem.errors import CorruptionError, UnavailableError, VecmemError

if TYPE_CHECKING:
    from pathlib import Path

_MEMTABLE_BYTES_NEVER: Final = 1024 * 1024 * 1024
"""Never reached: the memtable is flushed by vecmem.log.rocks, never by RocksDB itself."""
_PAGE_BYTES: Final = 1024 * 1024
_PAGE_RECORDS: Final = 1_024
_FIRST_KEY: Final = b"first"
_FIRST = struct.Struct("<QI")


class Database:
    """RocksDB with the log's options and keys; its errors as VecmemErrors. Knows nothing of chains."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Open; raises CorruptionError or UnavailableError."""
        self.path = path
        options = _options()
        families = {"log": options, "metadata": options}
        access = AccessType.read_only(False) if read_only else AccessType.read_write()
        with translated_errors(path):
            self._database = Rdict(str(path), options, families, access)
        self._log = self._database.get_column_family("log")
        self._metadata = self._database.get_column_family("metadata")
        self._log_handle = self._database.get_column_family_handle("log")
        self._metadata_handle = self._database.get_column_family_handle("metadata")
        self._unsynced = WriteOptions()
        self._unsynced.sync = False

    def new_batch(self) -> WriteBatch:
        """An empty write batch."""
        return WriteBatch(raw_mode=True)

    def put_record(self, batch: WriteBatch, sequence: int, frame: bytes) -> None:
        """Put a record into a batch."""
        batch.put(_key(sequence), frame, self._log_handle)

    def put_first(self, batch: WriteBatch, sequence: int, running_crc: int) -> None:
        """Put a trim into a batch: the removal of all records below `sequence`, and the note of it."""
        value = _FIRST.pack(sequence, running_crc)
        batch.delete_range(_key(0), _key(sequence), self._log_handle)
        batch.put(_FIRST_KEY, value + google_crc32c.value(value).to_bytes(4, "little"), self._metadata_handle)

    def write(self, batch: WriteBatch) -> None:
        """Write a batch to RocksDB's log file and memtable. Durable after sync. Holds the GIL."""
        with translated_errors(self.path):
            self._database.write(batch, self._unsynced)

    def sync(self) -> None:
        """Make everything written durable. Releases the GIL."""
        with translated_errors(self.path):
            self._database.flush_wal(True)

    def flush(self) -> None:
        """Write the memtables to table files and begin a new log file. Releases the GIL."""
        with translated_errors(self.path):
            self._metadata.flush(True)
            self._log.flush(True)

    def reclaim(self, before: int) -> None:
        """Drop the space of removed records. Releases the GIL."""
        with translated_errors(self.path):
            self._log.compact_range(_key(0), _key(before))

    def first(self) -> tuple[int, int]:
        """(first sequence kept, running CRC before it)."""
        with translated_errors(self.path):
            value = self._metadata.get(_FIRST_KEY)
        if value is None:
            return 1, 0
        if len(value) != 16 or google_crc32c.value(value[:12]) != int.from_bytes(value[12:], "little"):
            raise CorruptionError("the note of the first sequence is damaged", path=str(self.path))
        first, running_crc = _FIRST.unpack_from(value)
        return first, running_crc

    def last(self) -> int | None:
        """The largest sequence; None when there is none."""
        with translated_errors(self.path):
            iterator = self._log.iter()
            iterator.seek_to_last()
            iterator.status()
            return int.from_bytes(iterator.key(), "big") if iterator.valid() else None

    def get_record(self, sequence: int) -> bytes | None:
        """The frame at a sequence."""
        with translated_errors(self.path):
            frame: bytes | None = self._log.get(_key(sequence))
        return frame

    def read_page(self, start: int, stop: int) -> list[tuple[int, bytes]]:
        """Some (sequence, frame) pairs in [start, stop), in order; none only if there are none.

        In pages, because an iterator keeps RocksDB from closing for as long as it lives.
        """
        page: list[tuple[int, bytes]] = []
        size_bytes = 0
        with translated_errors(self.path):
            iterator = self._log.iter()
            iterator.seek(_key(start))
            while iterator.valid() and size_bytes < _PAGE_BYTES and len(page) < _PAGE_RECORDS:
                sequence = int.from_bytes(iterator.key(), "big")
                if sequence >= stop:
                    break
                frame = iterator.value()
                page.append((sequence, frame))
                size_bytes += len(frame)
                iterator.next()
            if not page:
                iterator.status()
        # With a page begun, a damaged block shows when the next page starts in it.
        return page

    def table_bytes(self) -> int:
        """Size of the table files in bytes."""
        size_bytes: int | None = self._log.property_int_value("rocksdb.total-sst-files-size")
        return size_bytes or 0

    def close(self) -> None:
        """Let go of the files. RocksDB closes when the last handle has gone, so all go here."""
        self._log.close()
        self._metadata.close()
        self._database.close()
        del self._log_handle, self._metadata_handle


class translated_errors:  # noqa: N801 - reads as what it is: a context
    """Turns what rocksdict raises into VecmemErrors: CorruptionError with the file named, else UnavailableError."""

    def __init__(self, path: Path) -> None:
        """Args: the directory to name where the message names no file."""
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # rocksdict raises plain Exception and its own DbClosedError; anything narrower is not RocksDB's.
        if error is None or isinstance(error, VecmemError) or not isinstance(error, Exception):
            return
        if type(error) is not Exception and type(error).__name__ != "DbClosedError":
            return
        text = str(error)
        if "Corruption" in text or "No such file or directory" in text:
            name = re.search(r"(/\S+?\.(?:sst|log)|/\S*MANIFEST-\d+)", text)
            offset = re.search(r"offset (\d+)", text)
            raise CorruptionError(
                text.strip(),
                path=name[1] if name else str(self._path),
                position=f"byte {offset[1]}" if offset else "",
            ) from error
        raise UnavailableError(f"{self._path}: {text.strip()}") from error


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.absolute_consistency())
    options.set_paranoid_checks(True)
    options.set_recycle_log_file_num(0)
    options.set_compression_type(DBCompressionType.none())  # vectors do not compress, and the log is read once
    options.set_write_buffer_size(_MEMTABLE_BYTES_NEVER)
    options.set_arena_block_size(1024 * 1024)
    options.set_max_total_wal_size(4 * _MEMTABLE_BYTES_NEVER)
    options.set_max_background_jobs(2)
    options.set_max_open_files(-1)  # every table is opened, and so checked, at the start
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(4 * 1024 * 1024)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")
