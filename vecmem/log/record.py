"""The record codec: a framed, checksummed, chained log record. What is decoded is what was encoded, or an error.

The log knows nothing of what a record means: a type number, the version of its writer and a payload. Byte table of a
frame (little-endian), the value of one log entry:

    offset  size  field
    0       4     magic `vmlr`
    4       2     format version of the frame, 1
    6       2     record type, 1 to 65535
    8       4     writer version: the oldest reader that understands the payload
    12      4     payload length in bytes
    16      4     CRC32C over bytes 4 to 16 and the payload
    20      4     running CRC32C of the log up to and including this record
    24      n     payload

The running CRC starts at 0 before sequence 1. That of a record extends that of the record before it over: the
record's sequence (8 bytes, big-endian), bytes 0 to 20 of its frame, its payload. So a record that is lost, changed,
doubled or moved breaks the chain at that place. Bytes 0 to 20 keep their meaning in every later format version, so
that a newer frame can be told from a damaged one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import google_crc32c

from vecmem.errors import CorruptionError, InvalidArgumentError, UnsupportedFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FORMAT_VERSION: Final = 1
WRITER_VERSION: Final = 1
"""What this version of vecmem writes, and the newest it understands."""
HEADER_BYTES: Final = 24
MAGIC: Final = b"vmlr"
PAYLOAD_BYTES_MAX: Final = 2**31 - 1

_CHECKED = struct.Struct("<HHII")
_HEADER = struct.Struct("<4sHHIIII")
_SEQUENCE = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to log. `record_type` is 1 to 65535; `payload` is opaque bytes below 2 GiB."""

    record_type: int
    payload: bytes
    writer_version: int = WRITER_VERSION


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A record in its place. `sequence` counts from 1; `running_crc` covers the log up to and including it."""

    sequence: int
    record: Record
    running_crc: int


def frame_bytes(record: Record) -> int:
    """Size of the record's frame in bytes."""
    return HEADER_BYTES + len(record.payload)


def encode(record: Record, sequence: int, running_crc_before: int) -> tuple[LogEntry, bytes]:
    """Frame a record for its place in the log.

    Args:
        record: what to frame.
        sequence: its place, from 1.
        running_crc_before: running CRC of the record before it; 0 before the first.

    Raises:
        InvalidArgumentError: a field does not fit the frame.
    """
    payload = record.payload
    if not (0 < record.record_type < 2**16 and 0 <= record.writer_version < 2**32 and sequence > 0):
        raise InvalidArgumentError(f"record type {record.record_type}, sequence {sequence} do not fit a log record")
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise InvalidArgumentError(f"a payload of {len(payload)} bytes is over {PAYLOAD_BYTES_MAX}")
    checked = _CHECKED.pack(FORMAT_VERSION, record.record_type, record.writer_version, len(payload))
    crc = google_crc32c.extend(google_crc32c.value(checked), payload)
    head = MAGIC + checked + crc.to_bytes(4, "little")
    running_crc = _extend_running(running_crc_before, sequence, head, payload)
    return LogEntry(sequence, record, running_crc), b"".join((head, running_crc.to_bytes(4, "little"), payload))


def chain(records: Sequence[Record], after: int, running_crc: int) -> list[LogEntry]:
    """Entries that `records` become behind sequence `after`, whose running CRC is given."""
    entries = []
    for sequence, record in enumerate(records, after + 1):
        entry, _ = encode(record, sequence, running_crc)
        running_crc = entry.running_crc
        entries.append(entry)
    return entries


def decode(frame: bytes, sequence: int, *, path: str) -> LogEntry:
    """Take a frame apart; the record's own CRC is checked, the running CRC only read (see verify_chain).

    Args:
        frame: the whole frame.
        sequence: the place it was found at, for the entry and for messages.
        path: where it was found, for messages.

    Raises:
        CorruptionError: the frame is damaged; the message says which part.
        UnsupportedFormatError: a newer version wrote the frame or the payload.
    """

    def damaged(what: str) -> CorruptionError:
        return CorruptionError(what, path=path, position=f"sequence {sequence}")

    if len(frame) < HEADER_BYTES:
        raise damaged(f"a record of {len(frame)} bytes is shorter than its header of {HEADER_BYTES}")
    magic, format_version, record_type, writer_version, length, crc, running_crc = _HEADER.unpack_from(frame)
    payload = frame[HEADER_BYTES:]
    if magic != MAGIC:
        raise damaged(f"magic is {magic.hex()}, not {MAGIC.hex()}")
    computed = google_crc32c.extend(google_crc32c.value(frame[4:16]), payload)
    if computed != crc:
        # A frame of another length than its header says fails here as well: name the more telling of the two.
        if length != len(payload):
            raise damaged(f"payload length is {length}, but {len(payload)} bytes follow")
        raise damaged(f"CRC32C is {crc:08x}, but its bytes give {computed:08x}")
    if format_version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"{path}, sequence {sequence}: format version {format_version} is newer than {FORMAT_VERSION}, "
            "the newest that this version of vecmem understands"
        )
    if format_version != FORMAT_VERSION or record_type == 0:
        raise damaged(f"format version {format_version}, record type {record_type} do not exist")
    if length != len(payload):
        raise damaged(f"payload length is {length}, but {len(payload)} bytes follow")
    if writer_version > WRITER_VERSION:
        raise UnsupportedFormatError(
            f"{path}, sequence {sequence}: writer version {writer_version} is newer than {WRITER_VERSION}, "
            "the newest that this version of vecmem understands"
        )
    return LogEntry(sequence, Record(record_type, payload, writer_version), running_crc)


def verify_chain(frames: Iterable[tuple[int, bytes]], after: int, running_crc: int, *, path: str) -> Iterator[LogEntry]:
    """Decode frames and prove that they follow on `after` without a gap and carry the running CRC on.

    Args:
        frames: (sequence, frame) pairs in the order found.
        after: sequence before the first frame; 0 at the log's very start.
        running_crc: running CRC at `after`.
        path: where the frames were found, for messages.

    Raises:
        CorruptionError: a record is missing or damaged, or the chain is broken.
        UnsupportedFormatError: see decode.
    """
    expected = after + 1
    for sequence, frame in frames:
        if sequence != expected:
            raise CorruptionError(
                f"the next record found has sequence {sequence}: records are missing",
                path=path,
                position=f"sequence {expected}",
            )
        entry = decode(frame, sequence, path=path)
        running_crc = _extend_running(running_crc, sequence, frame[:20], entry.record.payload)
        if running_crc != entry.running_crc:
            raise CorruptionError(
                f"running CRC32C is {entry.running_crc:08x}, but the log up to here gives {running_crc:08x}",
                path=path,
                position=f"sequence {sequence}",
            )
        yield entry
        expected += 1


def _extend_running(running_crc: int, sequence: int, head: bytes, payload: bytes) -> int:
    extended: int = google_crc32c.extend(google_crc32c.extend(running_crc, _SEQUENCE.pack(sequence) + head), payload)
    return extended
