"""RocksLog does what TransactionLog promises: order, compare-and-append, chains, trims, followers, one opener."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vecmem.errors import (
    CorruptionError,
    InvalidArgumentError,
    LogConflictError,
    NotFoundError,
    UnavailableError,
    UnsupportedFormatError,
)
from vecmem.log import rocks
from vecmem.log.record import Record, encode
from vecmem.log.rocks import RocksLog
from vecmem.log.rocks_verify import verify_rocks_log


def record(number: int, size: int = 100) -> Record:
    return Record(1 + number % 5, number.to_bytes(4, "big") * (size // 4))


def fill(log: RocksLog, count: int, batch: int = 7) -> None:
    while count:
        records = [record(log.last_sequence + 1 + i) for i in range(min(batch, count))]
        log.append(records, log.last_sequence)
        count -= len(records)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RocksLog]:
    opened = RocksLog.open(tmp_path / "log")
    yield opened
    opened.close()


def digest(directory: Path) -> dict[str, tuple[str, int, int]]:
    """Content, modification time and inode of everything below a directory."""
    return {
        str(path): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.lstat().st_mtime_ns,
            path.lstat().st_ino,
        )
        for path in [directory, *directory.rglob("*")]
    }


def test_an_empty_log(log: RocksLog) -> None:
    assert (log.first_sequence, log.last_sequence, log.running_crc, log.running_crc_at(0)) == (1, 0, 0, 0)
    assert list(log.read(1)) == []
    assert log.append([], 0) == []


def test_records_come_back_in_order_and_over_a_restart(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    fill(log, 50)
    entries = list(log.read(1))
    assert [entry.sequence for entry in entries] == list(range(1, 51))
    assert [entry.record for entry in entries] == [record(n) for n in range(1, 51)]
    assert entries[-1].running_crc == log.running_crc == log.running_crc_at(50)
    assert [entry.sequence for entry in log.read(20, 23)] == [20, 21, 22]
    log.close()
    log = RocksLog.open(tmp_path / "log")
    assert list(log.read(1)) == entries
    assert log.report.records_verified == 50
    log.close()


def test_only_the_tail_is_read_when_a_checkpoint_covers_the_rest(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    fill(log, 50)
    log.close()
    log = RocksLog.open(tmp_path / "log", verify_from=41)
    assert log.report.records_verified == 10
    log.close()
    with pytest.raises(CorruptionError, match="ends at sequence 50"):
        RocksLog.open(tmp_path / "log", verify_from=52)


def test_an_append_behind_another_record_changes_nothing(log: RocksLog) -> None:
    fill(log, 3)
    before = list(log.read(1))
    for after in (0, 2, 4):
        with pytest.raises(LogConflictError):
            log.append([record(9)], after)
    assert list(log.read(1)) == before
    assert [entry.sequence for entry in log.append([record(4)], 3)] == [4]


def test_a_record_that_cannot_be_framed_stops_nothing(log: RocksLog) -> None:
    with pytest.raises(InvalidArgumentError):
        log.append([record(1), Record(0, b"")], 0)
    assert log.append([record(1)], 0) == list(log.read(1))


def test_big_and_many_records(log: RocksLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches over the piece size and over the memtable limit, so that flushes happen in the middle."""
    monkeypatch.setattr(rocks, "MEMTABLE_BYTES", 3_000_000)
    sizes = [0, 5_000_000, 8, 900_000, 900_000, 900_000, 40] + [20_000] * 200
    records = [record(number, size) for number, size in enumerate(sizes, 1)]
    appended = log.append(records, 0)
    assert len(appended) == len(sizes)
    assert appended == list(log.read(1))
    assert [entry.record for entry in log.read(1)] == records
    assert log.size_bytes > 11_000_000


def test_trim_forgets_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RocksLog.open(path)
    fill(log, 30)
    crc_at_19, crc_at_30 = log.running_crc_at(19), log.running_crc
    log.trim(20)
    log.trim(5)
    for _ in range(2):
        assert (log.first_sequence, log.last_sequence) == (20, 30)
        assert log.running_crc_at(19) == crc_at_19
        assert [entry.sequence for entry in log.read(20)] == list(range(20, 31))
        for sequence in (18, 31):
            with pytest.raises(NotFoundError):
                log.running_crc_at(sequence)
        with pytest.raises(NotFoundError):
            log.read(19)
        log.close()
        log = RocksLog.open(path)
    with pytest.raises(InvalidArgumentError):
        log.trim(32)
    log.trim(31)
    log.close()
    log = RocksLog.open(path)
    assert (log.first_sequence, log.last_sequence, log.running_crc) == (31, 30, crc_at_30)
    fill(log, 2)
    assert [entry.sequence for entry in log.read(31)] == [31, 32]
    log.close()


def test_trim_gives_space_back(log: RocksLog) -> None:
    log.append([record(n, 50_000) for n in range(100)], 0)
    before = log.size_bytes
    log.trim(91)
    assert log.size_bytes < before / 5


def test_a_reader_that_is_overtaken_by_a_trim_is_told(log: RocksLog) -> None:
    """Not an early end, and not an accusation of damage."""
    log.append([record(n, 100_000) for n in range(1, 41)], 0)
    reader = log.read(1)
    assert next(reader).sequence == 1
    log.trim(38)
    with pytest.raises(NotFoundError, match="trimmed"):
        list(reader)


def test_an_abandoned_reader_does_not_keep_the_log_open(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    fill(log, 20)
    reader = log.read(1)
    assert next(reader).sequence == 1
    log.close()
    log = RocksLog.open(tmp_path / "log")
    assert log.last_sequence == 20
    log.close()


def test_a_follower_sees_what_comes_later_and_ends_with_the_log(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    fill(log, 5)
    seen: list[int] = []
    reached = threading.Event()

    def follow() -> None:
        for entry in log.follow(3):
            seen.append(entry.sequence)
            if entry.sequence == 12:
                reached.set()

    thread = threading.Thread(target=follow)
    thread.start()
    fill(log, 7)
    assert reached.wait(20)
    log.close()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == list(range(3, 13))


def test_a_follower_ends_when_it_is_closed(log: RocksLog) -> None:
    follower = log.follow(1)
    thread = threading.Thread(target=list, args=(follower,))
    thread.start()
    follower.close()
    thread.join(20)
    assert not thread.is_alive()


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    """In this process, in another one, and the offline verification; the first one works on."""
    log = RocksLog.open(tmp_path / "log")
    fill(log, 3)
    with pytest.raises(UnavailableError, match="in this process"):
        RocksLog.open(tmp_path / "log")
    code = (
        "import sys; from pathlib import Path\n"
        "from vecmem.errors import UnavailableError\n"
        "from vecmem.log.rocks import RocksLog\n"
        "from vecmem.log.rocks_verify import verify_rocks_log\n"
        "for what in (RocksLog.open, verify_rocks_log):\n"
        "    try: what(Path(sys.argv[1]))\n"
        "    except UnavailableError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("in use by") == 2
    fill(log, 3)
    log.close()
    log = RocksLog.open(tmp_path / "log")
    assert log.last_sequence == 6
    log.close()


def test_a_record_newer_than_understood_stops_the_opening(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    log.append([Record(1, b"from the future", writer_version=2)], 0)
    log.close()
    with pytest.raises(UnsupportedFormatError, match="writer version 2"):
        RocksLog.open(tmp_path / "log")


def test_a_gap_and_a_wrong_chain_in_sound_files_are_found(tmp_path: Path) -> None:
    """RocksDB's checksums are right, but the records are not the log that was written."""
    path = tmp_path / "log"
    log = RocksLog.open(path)
    fill(log, 10)
    batch = log._database.new_batch()
    batch.delete(b"\0\0\0\0\0\0\0\4", log._database._log_handle)
    log._database.put_record(batch, 8, encode(record(8), 8, 1)[1])
    log._database.write(batch)
    log.close()
    with pytest.raises(CorruptionError, match="sequence 4"):
        RocksLog.open(path)
    with pytest.raises(CorruptionError, match="sequence 8"):
        RocksLog.open(path, verify_from=6)
    report = verify_rocks_log(path)
    assert [error.metadata["position"] for error in report.damage[:2]] == ["sequence 4", "sequence 8"]


def test_verification_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RocksLog.open(path)
    fill(log, 300)
    log.trim(20)
    fill(log, 10)
    running_crc = log.running_crc
    log.close()
    before = digest(path)
    seen: list[tuple[int, int]] = []
    report = verify_rocks_log(path, progress=lambda done, total: seen.append((done, total)))
    assert digest(path) == before
    assert (report.first_sequence, report.last_sequence, report.records) == (20, 310, 291)
    assert (report.damage, report.torn_tail_bytes, report.running_crc) == ([], 0, running_crc)
    assert seen[-1] == (291, 291)


def test_verification_of_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="holds no log"):
        verify_rocks_log(tmp_path)
