"""Verifies a RocksDB log offline. It changes nothing in the log's directory, and goes on after the first damage.

Even a read-only opening by rocksdict rewrites a file in the directory it opens. So RocksDB is given another directory,
a temporary one of symbolic links to the log's files. A log file with a torn tail is copied there up to the tear, as the
repair would leave it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vecmem.errors import CorruptionError, DataLossError, NotFoundError, UnavailableError
from vecmem.filesystem import write_durably
from vecmem.log.record import decode, verify_chain
from vecmem.log.rocks_database import Database
from vecmem.log.rocks_files import DirectoryScan, scan_directory
from vecmem.log.tip import check_tip, has_tip, read_tip

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@dataclass(slots=True)
class VerifyReport:
    """What a verification found. The log is sound if `damage` is empty; a torn tail is no damage, a start repairs it."""

    first_sequence: int = 0
    last_sequence: int = 0
    records: int = 0
    """Records read and proven."""
    running_crc: int = 0
    """At last_sequence."""
    running_crc_at: dict[int, int] = field(default_factory=dict)
    """At those of the sequences asked for that the log still holds."""
    torn_tail_bytes: int = 0
    torn_tail_file: str = ""
    notes: list[str] = field(default_factory=list)
    damage: list[DataLossError] = field(default_factory=list)


def verify_rocks_log(
    path: Path, *, wanted: Collection[int] = (), progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check every byte that RocksLog.open(path) would rely on, and every record's chain from the first.

    Where damage to RocksDB's own files hides the records, the report ends with that damage. Where a part of the records
    cannot be read, it names the part and goes on behind it.

    Args:
        path: the log's directory.
        wanted: sequences to report the running CRC of.
        progress: called now and then with (records done, records in all).

    Raises:
        UnavailableError: a running process has the log open, or there is no log.
    """
    files = path / "rocksdb"
    if not files.is_dir():
        raise UnavailableError(f"{path} holds no log")
    _check_not_in_use(path / "lock")
    report = VerifyReport()
    scan = scan_directory(files, opened_before=has_tip(path))
    report.notes.extend(scan.notes)
    report.damage.extend(scan.damage)
    if scan.torn is not None:
        report.torn_tail_bytes = scan.torn.size_bytes - scan.torn.whole_bytes
        report.torn_tail_file = str(scan.torn.path)
        report.notes.append(f"{scan.torn.path}: {scan.torn.torn}; a start will cut {report.torn_tail_bytes} bytes")
    try:
        tip = read_tip(path)
    except CorruptionError as error:
        report.damage.append(error)
        return report
    if scan.fresh and tip:
        what = f"the log had reached sequence {tip.sequence}, but its files are gone"
        report.damage.append(CorruptionError(what, path=str(files)))
    if scan.damage or scan.fresh:
        return report
    with tempfile.TemporaryDirectory(prefix="vecmem-verify-") as temporary:
        _link(files, Path(temporary), scan)
        try:
            database = Database(Path(temporary), read_only=True)
        except CorruptionError as error:
            report.damage.append(_relocated(error, temporary, files))
            return report
        try:
            _verify_records(database, files, report, wanted, progress or (lambda _done, _total: None))
            check_tip(path, report.last_sequence, lambda sequence: _running_crc_at(database, sequence))
        except CorruptionError as error:
            report.damage.append(_relocated(error, temporary, files))
        finally:
            database.close()
    return report


def _verify_records(
    database: Database,
    files: Path,
    report: VerifyReport,
    wanted: Collection[int],
    progress: Callable[[int, int], None],
) -> None:
    first, running_crc = database.first()
    last = database.last() or first - 1
    report.first_sequence, report.last_sequence = first, last
    after = first - 1
    if after in wanted:
        report.running_crc_at[after] = running_crc
    while after < last:
        progress(after - first + 1, last - first + 1)
        try:
            page = database.read_page(after + 1, last + 1)
        except CorruptionError as error:
            report.damage.append(_relocated(error, str(database.path), files))
            resume = _next_readable(database, after + 1, last)
            report.notes.append(f"sequences {after + 1} to {resume - 1} cannot be read")
            after = resume - 1
            if after >= last:
                break
            # The chain is taken up again from what the next record says.
            page = database.read_page(resume, last + 1)
            running_crc = decode(page[0][1], page[0][0], path=str(files)).running_crc
            report.records += 1
            after = page.pop(0)[0]
        if not page:
            continue
        for sequence, frame in page:
            try:
                for entry in verify_chain([(sequence, frame)], after, running_crc, path=str(files)):
                    running_crc = entry.running_crc
                    report.records += 1
                    if sequence in wanted:
                        report.running_crc_at[sequence] = running_crc
            except DataLossError as error:
                report.damage.append(error)
                running_crc = int.from_bytes(frame[20:24], "little")
            after = sequence
    report.running_crc = running_crc
    progress(last - first + 1, last - first + 1)


def _running_crc_at(database: Database, sequence: int) -> int:
    first, running_crc_before = database.first()
    if sequence == first - 1:
        return running_crc_before
    frame = database.get_record(sequence)
    if frame is None:
        raise NotFoundError(f"sequence {sequence} has been trimmed")
    return decode(frame, sequence, path=str(database.path)).running_crc


def _next_readable(database: Database, bad: int, last: int) -> int:
    """The first sequence behind `bad` that can be read, given that what cannot be is one stretch; last + 1 if none."""
    step = 1
    good = bad + 1
    while not _is_readable(database, good, last):
        if good > last:
            return last + 1
        bad, good, step = good, good + step, step * 2
    while good - bad > 1:
        middle = (bad + good) // 2
        if _is_readable(database, middle, last):
            good = middle
        else:
            bad = middle
    return good


def _is_readable(database: Database, sequence: int, last: int) -> bool:
    if sequence > last:
        return False
    try:
        return database.get_record(sequence) is not None
    except CorruptionError:
        return False


def _check_not_in_use(lock: Path) -> None:
    """Ask who holds the log's lock, without taking it."""
    if not lock.exists():
        return
    query = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(lock, "rb") as file:
        answer = fcntl.fcntl(file.fileno(), fcntl.F_GETLK, query)
    kind, _, _, _, process = struct.unpack("hhqqi", answer)
    if kind != fcntl.F_UNLCK:
        raise UnavailableError(f"{lock.parent} is in use by process {process}")


def _link(files: Path, temporary: Path, scan: DirectoryScan) -> None:
    for child in files.iterdir():
        if scan.torn is not None and child == scan.torn.path:
            write_durably(temporary / child.name, [child.read_bytes()[: scan.torn.whole_bytes]])
        elif child.suffix in {".log", ".sst"} or child.name == "CURRENT" or child.name.startswith("MANIFEST-"):
            (temporary / child.name).symlink_to(child.resolve())


def _relocated(error: CorruptionError, temporary: str, files: Path) -> CorruptionError:
    """The error with the log's own paths in place of the temporary directory's."""
    message = error.message.replace(temporary, str(files))
    where = error.path.replace(temporary, str(files))
    text = message.split(": ", 1)[1] if message.startswith(where) else message
    return CorruptionError(text, path=where, position=error.position)
