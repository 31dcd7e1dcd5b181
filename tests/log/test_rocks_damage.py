"""Damage in RocksDB's files ends in the full data or in a named refusal, never in silent loss; a torn tail is repaired.

Method: a log is written once, with records in a table file and in the log file. Each case damages a copy and opens it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.log.test_rocks import digest
from vecmem.errors import CorruptionError
from vecmem.log.record import LogEntry, Record
from vecmem.log.rocks import RocksLog
from vecmem.log.rocks_files import BLOCK_BYTES, scan_directory, scan_file
from vecmem.log.rocks_verify import verify_rocks_log
from vecmem.log.tip import Tip, write_tip


@dataclass
class Written:
    """A log that was killed. `sizes[n]` is the size of the last log file when record n was the last."""

    path: Path
    entries: list[LogEntry]
    sizes: dict[int, int]

    def copy(self, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(self.path, target)


def only(directory: Path, pattern: str) -> Path:
    """The one file of a pattern that has content."""
    (found,) = (path for path in (directory / "rocksdb").glob(pattern) if path.stat().st_size)
    return found


def write_log(path: Path, in_table: Iterable[bytes], in_log_file: Iterable[bytes]) -> Written:
    """The log as a kill -9 would leave it: rocksdict flushes when it closes, so the copy is made before."""
    live = path.with_name(path.name + "-live")
    log = RocksLog.open(live)
    for payload in in_table:
        log.append([Record(3, payload)], log.last_sequence)
    log._flush()
    sizes = {log.last_sequence: 0}
    for payload in in_log_file:
        last = log.append([Record(4, payload)], log.last_sequence)[-1].sequence
        sizes[last] = only(live, "*.log").stat().st_size
    entries = list(log.read(1))
    shutil.copytree(live, path)
    log.close()
    return Written(path, entries, sizes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    rng = random.Random(1)
    table = [rng.randbytes(2_000) for _ in range(30)]
    return write_log(tmp_path_factory.mktemp("written") / "log", table, [rng.randbytes(n) for n in (300, 9, 40, 21)])


@pytest.fixture
def rng() -> random.Random:
    seed = random.randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def record_ends(path: Path) -> list[int]:
    """Where the records of a small file in RocksDB's log format end: cut there, the file looks whole."""
    content = path.read_bytes()
    ends = [0]
    while ends[-1] < len(content):
        ends.append(ends[-1] + 7 + int.from_bytes(content[ends[-1] + 4 : ends[-1] + 6], "little"))
    return ends[:-1]


def check_full_or_refused(directory: Path, entries: list[LogEntry]) -> str:
    """Open a damaged log: everything is there and unchanged, or the refusal names a file. Returns which."""
    try:
        log = RocksLog.open(directory)
    except CorruptionError as error:
        return "refused" if str(directory) in error.path else f"names the wrong file: {error.path}"
    try:
        assert list(log.read(1)) == entries
        assert log.report.torn_tail_bytes == 0
        return "full"
    finally:
        log.close()


def test_a_log_cut_at_every_byte_keeps_every_whole_record(written: Written, tmp_path: Path) -> None:
    """The last two records: what was wholly in the file is there, the rest is cut, kept aside and reported."""
    end = max(written.sizes.values())
    last = max(written.sizes)
    for size in range(written.sizes[last - 2], end + 1):
        copy = written.copy(tmp_path / "copy")
        log_file = only(copy, "*.log")
        content = log_file.read_bytes()[:size]
        os.truncate(log_file, size)
        whole = max(sequence for sequence, at in written.sizes.items() if at <= size)
        log = RocksLog.open(copy)
        try:
            assert list(log.read(1)) == written.entries[:whole]
            torn_bytes = size - written.sizes[whole]
            assert log.report.torn_tail_bytes == torn_bytes
            if torn_bytes:
                assert log.report.file == str(log_file)
                assert Path(log.report.copy).read_bytes() == content[written.sizes[whole] :]
                assert str(written.sizes[whole]) in log.report.notes[0]
            assert log.append([Record(1, b"on it goes")], log.last_sequence)[-1].sequence == whole + 1
        finally:
            log.close()


def test_a_repair_is_done_once_and_verification_only_tells_of_it(written: Written, tmp_path: Path) -> None:
    copy = written.copy(tmp_path / "copy")
    log_file = only(copy, "*.log")
    os.truncate(log_file, max(written.sizes.values()) - 5)
    before = digest(copy)
    report = verify_rocks_log(copy)
    assert digest(copy) == before
    assert (report.damage, report.torn_tail_file) == ([], str(log_file))
    assert report.records == len(written.entries) - 1
    first = RocksLog.open(copy)
    assert first.report.torn_tail_bytes == report.torn_tail_bytes > 0
    first.close()
    second = RocksLog.open(copy)
    assert (second.report.torn_tail_bytes, second.last_sequence) == (0, len(written.entries) - 1)
    second.close()


def test_death_in_the_middle_of_a_repair_leaves_it_to_the_next_start(written: Written, tmp_path: Path) -> None:
    copy = written.copy(tmp_path / "copy")
    os.truncate(only(copy, "*.log"), max(written.sizes.values()) - 5)
    code = (
        "import sys; from pathlib import Path; from vecmem.log.rocks import RocksLog; RocksLog.open(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "VECMEM_FAILPOINT": "before_tail_repair"}
    assert subprocess.run([sys.executable, "-c", code, copy], env=environment, check=False).returncode == -9
    log = RocksLog.open(copy)
    assert list(log.read(1)) == written.entries[:-1]
    assert log.report.copy.endswith(".torn-2")
    log.close()


def test_every_flipped_bit_of_a_log_file_is_damage(written: Written, tmp_path: Path) -> None:
    """Exhaustive for the scan: CRC, length, type and payload of every record, the last one's length included."""
    log_file = tmp_path / "000001.log"
    shutil.copyfile(only(written.path, "*.log"), log_file)
    content = log_file.read_bytes()
    assert scan_file(log_file).damage == scan_file(log_file).torn == ""
    for bit in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        log_file.write_bytes(damaged)
        assert scan_file(log_file).damage, f"bit {bit}"


def test_flipped_bits_in_records_over_many_blocks_are_damage(tmp_path: Path, rng: random.Random) -> None:
    """The last record spans blocks: its fragments' headers and payloads, sampled."""
    long = write_log(tmp_path / "log", [], [rng.randbytes(500), bytes(2 * BLOCK_BYTES) + rng.randbytes(BLOCK_BYTES)])
    log_file = only(long.path, "*.log")
    content = log_file.read_bytes()
    starts = [long.sizes[1], BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES]
    headers = [8 * start + bit for start in starts for bit in range(56)]
    target = tmp_path / "000001.log"
    for bit in headers + [rng.randrange(len(content) * 8) for _ in range(200)]:
        target.write_bytes(content)
        flip(target, bit)
        assert scan_file(target).damage, f"bit {bit}"
    for size in [
        *starts,
        *(s + 3 for s in starts),
        *(rng.randrange(long.sizes[1] + 1, len(content)) for _ in range(50)),
    ]:
        target.write_bytes(content[:size])
        scan = scan_file(target)
        assert scan.damage == ""
        assert scan.whole_bytes == long.sizes[1]
        assert bool(scan.torn) == (size > long.sizes[1])


@pytest.mark.parametrize("pattern", ["*.log", "*.sst", "MANIFEST-*", "CURRENT"])
def test_a_flipped_bit_in_a_file_is_refused_or_harmless(
    written: Written, tmp_path: Path, rng: random.Random, pattern: str
) -> None:
    """A sample over the file, and more of its first and last bytes, where headers and footers are."""
    size = only(written.path, pattern).stat().st_size
    edges = [*range(min(60, size) * 8), *range(max(0, size - 120) * 8, size * 8)]
    bits = {rng.choice(edges) for _ in range(25)} | {rng.randrange(size * 8) for _ in range(25)}
    outcomes = []
    for bit in sorted(bits):
        copy = written.copy(tmp_path / "copy")
        flip(only(copy, pattern), bit)
        outcomes.append(check_full_or_refused(copy, written.entries))
    assert "refused" in outcomes
    assert set(outcomes) <= {"refused", "full"}
    if pattern != "*.sst":  # a table's footer has padding
        assert set(outcomes) == {"refused"}


@pytest.mark.parametrize("pattern", ["*.log", "*.sst", "MANIFEST-*", "CURRENT"])
def test_a_file_that_is_missing_or_empty_is_refused(written: Written, tmp_path: Path, pattern: str) -> None:
    for damage in (Path.unlink, lambda path: os.truncate(path, 0)):
        copy = written.copy(tmp_path / "copy")
        if pattern == "*.log" and damage is not Path.unlink:
            continue  # an empty last log file is what a cut at byte 0 leaves: see above
        damage(only(copy, pattern))
        assert check_full_or_refused(copy, written.entries) == "refused"
        assert verify_rocks_log(copy).damage


@pytest.mark.parametrize("pattern", ["LOG", "OPTIONS-*", "IDENTITY", "rocksdict-config.json"])
def test_files_that_hold_no_data_may_be_lost(written: Written, tmp_path: Path, pattern: str) -> None:
    for damage in (Path.unlink, lambda path: os.truncate(path, 0)):
        copy = written.copy(tmp_path / "copy")
        damage(only(copy, pattern))
        assert check_full_or_refused(copy, written.entries) == "full"


def test_a_manifest_cut_anywhere_is_refused_or_harmless(written: Written, tmp_path: Path, rng: random.Random) -> None:
    size = only(written.path, "MANIFEST-*").stat().st_size
    for cut in sorted({*rng.sample(range(size), 40), *record_ends(only(written.path, "MANIFEST-*"))}):
        copy = written.copy(tmp_path / "copy")
        os.truncate(only(copy, "MANIFEST-*"), cut)
        assert check_full_or_refused(copy, written.entries) in {"full", "refused"}


def test_a_flush_that_the_manifest_does_not_tell_of_loses_nothing(tmp_path: Path, rng: random.Random) -> None:
    """The manifest cut at every byte of its last records, with the data in a table file alone: full or refused."""
    flushed = write_log(tmp_path / "log", [rng.randbytes(100) for _ in range(5)], [])
    manifest = next((flushed.path / "rocksdb").glob("MANIFEST-*"))
    size = manifest.stat().st_size
    for cut in [*range(size - 160, size, 3), *record_ends(manifest)]:
        copy = flushed.copy(tmp_path / "copy")
        os.truncate(next((copy / "rocksdb").glob("MANIFEST-*")), cut)
        assert check_full_or_refused(copy, flushed.entries) in {"full", "refused"}


def test_a_manifest_that_lost_its_column_families_is_refused(tmp_path: Path, rng: random.Random) -> None:
    """RocksDB would skip what its log file holds for a family it does not know, and open an empty log."""
    unflushed = write_log(tmp_path / "log", [], [rng.randbytes(100) for _ in range(5)])
    for cut in record_ends(only(unflushed.path, "MANIFEST-*")):
        copy = unflushed.copy(tmp_path / "copy")
        os.truncate(only(copy, "MANIFEST-*"), cut)
        assert check_full_or_refused(copy, unflushed.entries) in {"full", "refused"}


def test_a_log_whose_files_are_gone_or_whose_tip_is_damaged_is_refused(written: Written, tmp_path: Path) -> None:
    """An emptied directory beside a tip is not a new log."""
    copy = written.copy(tmp_path / "copy")
    shutil.rmtree(copy / "rocksdb")
    assert check_full_or_refused(copy, written.entries) == "refused"
    assert verify_rocks_log(copy).damage
    for bit in range(0, 160, 7):
        copy = written.copy(tmp_path / "copy")
        flip(copy / "tip", bit)
        assert check_full_or_refused(copy, written.entries) == "refused"
        assert verify_rocks_log(copy).damage


def test_a_log_that_lost_all_it_had_since_its_first_opening_is_refused(tmp_path: Path) -> None:
    """The tip is still that of the empty log, yet a log was here."""
    unflushed = write_log(tmp_path / "log", [], [b"acknowledged"])
    for child in (unflushed.path / "rocksdb").iterdir():
        child.unlink()
    assert check_full_or_refused(unflushed.path, unflushed.entries) == "refused"
    assert verify_rocks_log(unflushed.path).damage


@pytest.mark.parametrize("families", [0, 1])
def test_what_a_first_opening_left_that_never_ended_is_no_damage(tmp_path: Path, families: int) -> None:
    """CURRENT and a manifest without all its families may be all there is. But what holds data is not taken for that."""
    unflushed = write_log(tmp_path / "log", [], [b"acknowledged"])
    log_name = only(unflushed.path, "*.log").name
    ends = record_ends(only(unflushed.path, "MANIFEST-*"))  # its last two records add a family each
    (unflushed.path / "tip").unlink()

    def left(*kept: str, cut: int = ends[families - 2]) -> Path:
        copy = unflushed.copy(tmp_path / "copy")
        if "families" not in kept:
            os.truncate(only(copy, "MANIFEST-*"), cut)
        if "tip" in kept:
            write_tip(copy, Tip(0, 0))
        if "log" not in kept:
            (copy / "rocksdb" / log_name).unlink()
        if "table" in kept:
            (copy / "rocksdb" / "000999.sst").touch()
        return copy

    assert verify_rocks_log(left()).damage == []
    assert check_full_or_refused(left(), []) == "full"
    for kept in ("families", "tip", "log", "table"):
        assert verify_rocks_log(left(kept)).damage, kept
        assert check_full_or_refused(left(kept), unflushed.entries) == "refused", kept
    for cut in ends[:2]:  # RocksDB would not start from it
        assert verify_rocks_log(left(cut=cut)).damage
        assert check_full_or_refused(left(cut=cut), unflushed.entries) == "refused"


def test_zeroes_at_the_end_are_a_torn_tail(written: Written, tmp_path: Path) -> None:
    """The file's new size was durable, the bytes of the last write were not."""
    copy = written.copy(tmp_path / "copy")
    log_file = only(copy, "*.log")
    last = max(written.sizes)
    log_file.write_bytes(log_file.read_bytes()[: written.sizes[last - 1]] + bytes(70_000))
    log = RocksLog.open(copy)
    assert list(log.read(1)) == written.entries[:-1]
    assert log.report.torn_tail_bytes == 70_000
    log.close()


def test_zeroes_before_a_valid_record_are_damage(written: Written, tmp_path: Path) -> None:
    log_file = tmp_path / "000001.log"
    content = bytearray(only(written.path, "*.log").read_bytes())
    last = max(written.sizes)
    content[written.sizes[last - 2] : written.sizes[last - 1]] = bytes(
        written.sizes[last - 1] - written.sizes[last - 2]
    )
    log_file.write_bytes(content)
    assert scan_file(log_file).damage_offset == written.sizes[last - 2]


def test_a_part_never_written_is_torn_but_only_behind_the_last_write(tmp_path: Path, rng: random.Random) -> None:
    """A hole in the last record is a torn write; a hole with a later write behind it is damage; zeroes alone as well."""
    long = write_log(tmp_path / "log", [], [rng.randbytes(500), rng.randbytes(6 * BLOCK_BYTES)])
    later = write_log(tmp_path / "later", [], [rng.randbytes(500), rng.randbytes(6 * BLOCK_BYTES), b"later"])
    target = tmp_path / "000001.log"

    def with_gap(source: Written, *, hole: bool) -> Path:
        content = only(source.path, "*.log").read_bytes()
        gap = slice(2 * BLOCK_BYTES, 4 * BLOCK_BYTES)
        target.unlink(missing_ok=True)
        with open(target, "wb") as file:
            file.write(content[: gap.start])
            if hole:
                file.seek(gap.stop)
            else:
                file.write(bytes(gap.stop - gap.start))
            file.write(content[gap.stop :])
        return target

    assert scan_file(with_gap(long, hole=False)).damage
    holes_are_told = os.lseek(os.open(with_gap(long, hole=True), os.O_RDONLY), 0, os.SEEK_HOLE) < target.stat().st_size
    if not holes_are_told:
        pytest.skip("this file system does not tell holes: such a write is refused as damage")
    scan = scan_file(with_gap(long, hole=True))
    assert (scan.damage, scan.whole_bytes) == ("", long.sizes[1])
    assert "never written" in scan.torn
    assert scan_file(with_gap(later, hole=True)).damage


def test_a_tear_with_a_later_log_file_is_damage(written: Written, tmp_path: Path) -> None:
    """Only the last log file may be torn: the next one is begun when this one is whole."""
    copy = written.copy(tmp_path / "copy")
    log_file = only(copy, "*.log")
    shutil.copyfile(log_file, log_file.with_name("000999.log"))
    assert scan_directory(copy / "rocksdb", opened_before=True).damage == []
    os.truncate(log_file, log_file.stat().st_size - 3)
    (damage,) = scan_directory(copy / "rocksdb", opened_before=True).damage
    assert damage.path == str(log_file)
    assert "later log file" in damage.message
    with pytest.raises(CorruptionError):
        RocksLog.open(copy)


def test_a_refusal_changes_nothing(written: Written, tmp_path: Path) -> None:
    copy = written.copy(tmp_path / "copy")
    log_file = only(copy, "*.log")
    flip(log_file, 8 * 20)
    before = {path: value for path, value in digest(copy).items() if path != str(copy)}
    with pytest.raises(CorruptionError, match="byte 0"):
        RocksLog.open(copy)
    after = {path: value for path, value in digest(copy).items() if path != str(copy)}
    assert after == before


def test_verification_goes_on_behind_a_damaged_block(tmp_path: Path, rng: random.Random) -> None:
    """All but the records of one damaged block are proven; the damage is named with the log's own path."""
    table = write_log(tmp_path / "log", [rng.randbytes(3_000) for _ in range(60)], [b"tail"])
    (sst,) = (path for path in (table.path / "rocksdb").glob("*.sst") if path.stat().st_size > 100_000)
    flip(sst, 8 * 90_000)
    report = verify_rocks_log(table.path)
    assert report.last_sequence == 61
    assert 57 <= report.records < 61
    assert report.damage
    assert report.damage[0].metadata["path"] == str(sst)
    assert "cannot be read" in report.notes[0]
