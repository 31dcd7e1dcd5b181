"""Reads RocksDB's own log files before RocksDB does, to tell a torn tail from damage. Forgives only a torn tail.

RocksDB replays `NNNNNN.log` files at each start. Its recovery modes either refuse a torn last write, which every power
cut may leave, or drop what follows the first damaged record, acknowledged or not. So vecmem looks first, repairs a torn
tail itself, refuses everything else by file and byte offset, and opens RocksDB in the mode that forgives nothing.

The format (also of `MANIFEST-NNNNNN`, which CURRENT names): blocks of 32 KiB hold physical records and never split one;
fewer than 7 bytes left at a block's end are zero.

    offset  size  field (little-endian)
    0       4     CRC32C over type and payload, masked: rotated right by 15 bits, plus 0xa282ead8
    4       2     payload length
    6       1     type: 1 full, 2 first, 3 middle, 4 last fragment of a logical record
    7       n     payload

Other types belong to features that vecmem leaves off (recycled files, compressed logs) and count as damage.

The rule. Going through the file record by record, at the first place that is not a whole valid record:

- The file ends there, between fragments or inside a record, and no length at all makes the record's CRC match: torn.
  (A match means that the record is whole and its length field lies: damage.)
- Everything from there to the end of the file is zero: torn (the file's size was durable, its bytes were not).
- The record is complete but wrong, and from it on the file has a hole, which the file system says was never written
  (SEEK_HOLE; zeroes alone prove nothing, for a payload may hold them): torn.
- Anything else is damage. And so is each of these if a later write's record can be found anywhere behind it, for a
  write that is not whole has nothing behind it: the next write begins only after this one is synced.

A tail may be torn only in the last log file that has any content. The manifest's tail may be torn as well, by a crash
while it was written: what its last record told of is in a log file still. Whether that is so, or the record had been
durable and its loss takes data along, shows when the log is read: as missing sequences, or by its tip (vecmem.log.tip).
But a manifest that lacks a column family is damaged if there is data, because RocksDB skips what it has for it in logs.

The first opening of all writes CURRENT and a manifest before there is a log file or a column family, and may die there.
What it leaves is fresh, not damaged: no opening was ever finished, and there is neither a table nor a byte in a log file.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import google_crc32c

from vecmem.errors import CorruptionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

BLOCK_BYTES: Final = 32 * 1024
HEADER_BYTES: Final = 7

_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_KINDS: Final = frozenset({_FULL, _FIRST, _MIDDLE, _LAST})
_CRC_MASK_DELTA: Final = 0xA282EAD8
_LOG_NAME = re.compile(r"(\d{6,})\.log")
_TABLE_NAME = re.compile(r"(\d{6,})\.sst")
_CURRENT_CONTENT = re.compile(rb"(MANIFEST-\d{6,})\n")

# Tags of a version edit, the manifest's record (RocksDB db/version_edit.h), by what follows them.
_TAG_LOG_NUMBER, _TAG_MIN_LOG, _TAG_FAMILY, _TAG_DELETED_FILE, _TAG_NEW_FILE_4 = 2, 10, 200, 6, 103
_TAG_NEXT_FILE, _TAG_LAST_SEQUENCE = 3, 4
_TAGS_OF_NUMBERS: Final = {2: 1, 3: 1, 4: 1, 6: 2, 9: 1, 10: 1, 200: 1, 203: 1, 300: 1}
_TAG_COMPARATOR, _TAG_COMPACT_CURSOR, _TAG_FAMILY_ADD, _TAG_FAMILY_DROP = 1, 5, 201, 202
_TAG_SAFE_TO_SKIP: Final = 1 << 13


@dataclass(frozen=True, slots=True)
class FileScan:
    """What a scan of one log file found. `whole_bytes` ends its last whole logical record."""

    path: Path
    size_bytes: int
    whole_bytes: int
    torn: str = ""
    """Why the rest of the file is a torn tail; empty: there is no rest."""
    damage: str = ""
    """What is damaged at `damage_offset`; empty: nothing. Never both."""
    damage_offset: int = 0

    def error(self) -> CorruptionError:
        """The damage as an error."""
        return CorruptionError(self.damage, path=str(self.path), position=f"byte {self.damage_offset}")


@dataclass(slots=True)
class DirectoryScan:
    """What a scan of RocksDB's directory found. It is fit to be opened if `damage` is empty and `torn` repaired."""

    fresh: bool = False
    """No database was ever finished here: there is nothing to lose."""
    torn: FileScan | None = None
    damage: list[CorruptionError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan_directory(path: Path, *, opened_before: bool) -> DirectoryScan:
    """Look at CURRENT, the manifest, every live log file and the names of the table files; change nothing.

    Args:
        path: RocksDB's directory; it must exist and not be in use.
        opened_before: whether an opening was ever finished, without which no record was acknowledged.
    """
    scan = DirectoryScan()
    logs = {int(match[1]): child for child in path.iterdir() if (match := _LOG_NAME.fullmatch(child.name))}
    tables = {int(match[1]) for child in path.iterdir() if (match := _TABLE_NAME.fullmatch(child.name))}
    current = path / "CURRENT"
    if not current.exists():
        scan.fresh = not tables and all(log.stat().st_size == 0 for log in logs.values())
        if not scan.fresh:
            scan.damage.append(CorruptionError("the file is missing, but data is there", path=str(current)))
        return scan
    named = _CURRENT_CONTENT.fullmatch(current.read_bytes())
    if named is None:
        scan.damage.append(CorruptionError("it does not name a manifest", path=str(current), position="byte 0"))
        return scan
    manifest = path / named[1].decode()
    if not manifest.exists():
        scan.damage.append(CorruptionError("the manifest that CURRENT names is missing", path=str(manifest)))
        return scan

    manifest_scan, live = _scan_manifest(manifest)
    live_logs = [(number, logs[number]) for number in sorted(logs) if number >= live.log_number_min]
    with_content = [number for number, log in live_logs if log.stat().st_size]
    for number, log in live_logs:
        log_scan = scan_file(log)
        if log_scan.damage:
            scan.damage.append(log_scan.error())
        elif log_scan.torn and number == with_content[-1]:
            scan.torn = log_scan
        elif log_scan.torn:
            scan.damage.append(
                CorruptionError(
                    f"{log_scan.torn}, but a later log file has content",
                    path=str(log),
                    position=f"byte {log_scan.whole_bytes}",
                )
            )
    if manifest_scan.damage:
        scan.damage.append(manifest_scan.error())
        return scan  # what is live is not known beyond this point
    if manifest_scan.torn:
        scan.notes.append(f"{manifest}: torn tail at byte {manifest_scan.whole_bytes}: {manifest_scan.torn}")
    missing_families = {"log", "metadata"} - live.families
    holds_data = bool(tables or live.tables or any(log.stat().st_size for log in logs.values()))
    if missing_families and live.startable and not holds_data and not opened_before:
        scan.fresh = True
        return scan
    if missing_families and (with_content or tables):
        scan.damage.append(
            CorruptionError(
                f"the column family {min(missing_families)} is missing, but data is there", path=str(manifest)
            )
        )
    if not any(number >= live.log_number_required for number, _ in live_logs):
        missing = path / f"{live.log_number_required:06d}.log"
        scan.damage.append(CorruptionError("this log file, or one after it, is missing", path=str(missing)))
    scan.damage.extend(
        CorruptionError("this table file is missing", path=str(path / f"{number:06d}.sst"))
        for number in sorted(live.tables - tables)
    )
    return scan


def scan_file(path: Path) -> FileScan:
    """Apply the rule of this module to one file in RocksDB's log format."""
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        return FileScan(path, 0, 0)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        scanner = _Scanner(data, _holes(file.fileno(), size_bytes))
        for _ in scanner:
            pass
        return scanner.result(path)


@dataclass(slots=True)
class _Live:
    """What the manifest says is live."""

    log_number_min: int = 0
    """RocksDB replays this log file and those after it."""
    log_number_required: int = 0
    """This log file or a later one existed before the manifest said so."""
    tables: set[int] = field(default_factory=set)
    families: set[str] = field(default_factory=set)
    startable: bool = False
    """The numbers without which RocksDB refuses a manifest are there."""


def _scan_manifest(path: Path) -> tuple[FileScan, _Live]:
    scanner = _Scanner(path.read_bytes(), [])
    log_numbers: dict[int, int] = {}
    files: set[tuple[int, int]] = set()
    live = _Live()
    tags: set[int] = set()
    for payload in scanner:
        try:
            family, edit = _decode_version_edit(payload)
        except (IndexError, ValueError) as error:
            scanner.damage, scanner.damage_offset = f"a record cannot be understood: {error}", scanner.record_offset
            break
        for tag, numbers in edit:
            tags.add(tag)
            if tag == _TAG_LOG_NUMBER:
                log_numbers[family] = numbers[0]
            elif tag == _TAG_FAMILY_ADD:
                live.families.add(bytes(numbers).decode())
            elif tag == _TAG_MIN_LOG:
                live.log_number_required = max(live.log_number_required, numbers[0])
            elif tag == _TAG_DELETED_FILE:
                files.discard((family, numbers[1]))
            elif tag == _TAG_NEW_FILE_4:
                files.add((family, numbers[1]))
    live.log_number_min = min(log_numbers.values(), default=0)
    live.tables = {number for _, number in files}
    live.startable = tags >= {_TAG_LOG_NUMBER, _TAG_NEXT_FILE, _TAG_LAST_SEQUENCE}
    return scanner.result(path), live


def _decode_version_edit(payload: bytes) -> tuple[int, list[tuple[int, list[int]]]]:
    """(column family, [(tag, numbers)]) of a version edit; the numbers of a name are its bytes.

    Raises IndexError or ValueError if it is not understood.
    """
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = payload[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def field_bytes() -> bytes:
        nonlocal position
        length = number()
        position += length
        if position > len(payload):
            raise IndexError("a field runs past the end")
        return payload[position - length : position]

    family = 0
    edit: list[tuple[int, list[int]]] = []
    while position < len(payload):
        tag = number()
        if tag in _TAGS_OF_NUMBERS:
            numbers = [number() for _ in range(_TAGS_OF_NUMBERS[tag])]
            if tag == _TAG_FAMILY:
                family = numbers[0]
            edit.append((tag, numbers))
        elif tag == _TAG_NEW_FILE_4:
            numbers = [number() for _ in range(3)]  # level, file number, size
            field_bytes()  # smallest key
            field_bytes()  # largest key
            number()  # smallest sequence number
            number()  # largest sequence number
            while number() != 1:  # custom fields, each with its bytes, up to a terminating 1
                field_bytes()
            edit.append((tag, numbers))
        elif tag == _TAG_FAMILY_ADD:
            edit.append((tag, list(field_bytes())))
        elif tag == _TAG_COMPARATOR or tag & _TAG_SAFE_TO_SKIP:
            field_bytes()
        elif tag == _TAG_COMPACT_CURSOR:
            number()
            field_bytes()
        elif tag != _TAG_FAMILY_DROP:
            raise ValueError(f"version edit tag {tag} is unknown")
    return family, edit


class _Scanner:
    """Iterates over the payloads of whole logical records and stops where there is no further one, knowing why."""

    def __init__(self, data: bytes | mmap.mmap, holes: list[tuple[int, int]]) -> None:
        self._data = data
        self._holes = holes
        self.whole_bytes = 0
        self.record_offset = 0
        self.torn = ""
        self.damage = ""
        self.damage_offset = 0

    def result(self, path: Path) -> FileScan:
        return FileScan(path, len(self._data), self.whole_bytes, self.torn, self.damage, self.damage_offset)

    def __iter__(self) -> Iterator[bytes]:
        data, size = self._data, len(self._data)
        position = 0
        fragments: list[bytes] = []
        while True:
            block_left = BLOCK_BYTES - position % BLOCK_BYTES
            if block_left < HEADER_BYTES:
                if any(data[position : position + block_left]):
                    self._fail(position, "the end of a block is not zero")
                    return
                position = min(position + block_left, size)
                if not fragments:
                    self.whole_bytes = position
            if position >= size:
                if fragments:
                    self.torn = "the file ends between the fragments of a record"
                return
            stop = self._judge(position, fragments)
            if stop:
                return
            _, length, kind = _HEADER.unpack_from(data, position)
            payload = data[position + HEADER_BYTES : position + HEADER_BYTES + length]
            if not fragments:
                self.record_offset = position
            fragments.append(payload)
            position += HEADER_BYTES + length
            if kind in {_FULL, _LAST}:
                self.whole_bytes = position
                yield b"".join(fragments)
                fragments = []

    def _judge(self, position: int, fragments: list[bytes]) -> bool:
        """Whether there is no whole valid record at `position`; if so, says what is there instead."""
        data, size = self._data, len(self._data)
        if not data[position] and not any(data[position : position + HEADER_BYTES]):
            if _zero_from(data, position):
                self.torn = "the file ends in zeroes"
            else:
                self._fail(position, "zeroes stand where a record should begin")
            return True
        if size - position < HEADER_BYTES:
            self.torn = "the file ends inside a record's header"
            return True
        crc, length, kind = _HEADER.unpack_from(data, position)
        end = position + HEADER_BYTES + length
        block_end = position - position % BLOCK_BYTES + BLOCK_BYTES
        if end <= min(size, block_end) and _crc_matches(data, position):
            if kind not in _KINDS:
                self._fail(position, f"a record of type {kind}, which vecmem's options do not write")
            elif (kind in {_FULL, _FIRST}) == bool(fragments):
                self._fail(position, f"a fragment of type {kind} is out of place")
            else:
                return False
            return True
        if end > block_end:
            self._fail(position, f"a record's length of {length} bytes goes past its block")
        elif end > size:
            self._judge_cut(position, crc, kind)
        else:
            self._fail(position, "a record's CRC32C does not match")
        return True

    def _judge_cut(self, position: int, crc: int, kind: int) -> None:
        """The record at `position` claims more bytes than the file has: is it cut, or is its length damaged?"""
        data = self._data
        if kind not in _KINDS:
            self._fail(position, f"a record of unknown type {kind}")
            return
        stored = _unmask(crc)
        computed = google_crc32c.value(data[position + 6 : position + 7])
        rest = data[position + HEADER_BYTES :]
        for length in range(len(rest) + 1):
            if computed == stored:
                self._fail(position, f"a record's length field is wrong: with {length} bytes its CRC32C matches")
                return
            computed = google_crc32c.extend(computed, rest[length : length + 1])
        if _valid_record_after(data, position, _KINDS):
            self._fail(position, "a record's length goes past the end of the file, but valid records follow it")
        else:
            self.torn = "the file ends inside a record"

    def _fail(self, position: int, what: str) -> None:
        data = self._data
        if any(end > position for _, end in self._holes) and not _valid_record_after(data, position, {_FULL, _FIRST}):
            self.torn = f"{what}, and a part of it was never written"
        else:
            self.damage, self.damage_offset = what, position


def _unmask(masked: int) -> int:
    rotated = (masked - _CRC_MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _crc_matches(data: bytes | mmap.mmap, position: int) -> bool:
    """Whether the record at `position`, which must lie within the data, has the CRC it says."""
    crc, length, _ = _HEADER.unpack_from(data, position)
    computed: int = google_crc32c.value(data[position + 6 : position + HEADER_BYTES + length])
    return computed == _unmask(crc)


def _zero_from(data: bytes | mmap.mmap, position: int) -> bool:
    while position < len(data):
        if any(data[position : position + BLOCK_BYTES]):
            return False
        position += BLOCK_BYTES
    return True


def _holes(descriptor: int, size_bytes: int) -> list[tuple[int, int]]:
    """Byte ranges of a file that were never written; empty where the file system does not tell."""
    holes: list[tuple[int, int]] = []
    position = 0
    while (start := os.lseek(descriptor, position, os.SEEK_HOLE)) < size_bytes:
        try:
            position = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: no data behind the hole
                raise
            position = size_bytes
        holes.append((start, position))
    return holes


def _valid_record_after(data: bytes | mmap.mmap, position: int, kinds: AbstractSet[int]) -> bool:
    """Whether a whole valid record of one of these types lies behind `position`, wherever it begins."""
    size = len(data)
    for at in range(position + 1, size - HEADER_BYTES + 1):
        if data[at + 6] not in kinds:
            continue
        _, length, _ = _HEADER.unpack_from(data, at)
        end = at + HEADER_BYTES + length
        if end <= size and end <= at - at % BLOCK_BYTES + BLOCK_BYTES and _crc_matches(data, at):
            return True
    return False
