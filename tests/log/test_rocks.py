"""RocksLog beyond what every TransactionLog promises (test_transaction_log): flushes, exact trims, one opener, damage."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.log.support import fill, record
from vecmem.errors import (
    CorruptionError,
    InvalidArgumentError,
    UnavailableError,
)
from vecmem.log import rocks
from vecmem.log.record import encode
from vecmem.log.rocks import RocksLog
from vecmem.log.rocks_verify import verify_rocks_log


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


def test_only_the_tail_is_read_when_a_checkpoint_covers_the_rest(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    fill(log, 50)
    log.close()
    log = RocksLog.open(tmp_path / "log", verify_from=41)
    assert log.report.records_verified == 10
    log.close()
    with pytest.raises(CorruptionError, match="ends at sequence 50"):
        RocksLog.open(tmp_path / "log", verify_from=52)


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


def test_a_log_may_begin_behind_a_sequence(tmp_path: Path) -> None:
    with_all = RocksLog.open(tmp_path / "all")
    fill(with_all, 20)
    behind = RocksLog.open(tmp_path / "behind")
    behind.begin_behind(12, with_all.running_crc_at(12))
    for _ in range(2):
        assert (behind.first_sequence, behind.last_sequence) == (13, 12)
        assert behind.running_crc == behind.running_crc_at(12) == with_all.running_crc_at(12)
        behind.close()
        behind = RocksLog.open(tmp_path / "behind", verify_from=13)
    behind.append([entry.record for entry in with_all.read(13)], 12)
    assert behind.running_crc == with_all.running_crc
    with pytest.raises(InvalidArgumentError, match="has records up to sequence 20"):
        behind.begin_behind(30, 1)
    behind.close()
    assert verify_rocks_log(tmp_path / "behind").damage == []
    with_all.close()


def test_trim_is_exact_and_may_forget_all(tmp_path: Path) -> None:
    log = RocksLog.open(tmp_path / "log")
    fill(log, 30)
    crc_at_30 = log.running_crc
    log.trim(20)
    assert (log.first_sequence, log.last_sequence) == (20, 30)
    log.trim(31)
    log.close()
    log = RocksLog.open(tmp_path / "log")
    assert (log.first_sequence, log.last_sequence, log.running_crc) == (31, 30, crc_at_30)
    log.close()


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
