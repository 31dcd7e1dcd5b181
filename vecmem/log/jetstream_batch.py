"""The messages of a replicated log: one message is one batch of framed records, and says in its headers where it belongs.

The body holds the frames of vecmem.log.record one behind the other. Headers, all decimal numbers but for the id:

    Nats-Msg-Id                   unique id of the batch, 32 hex digits: who finds a message knows whether it is its own
    Nats-Expected-Last-Sequence   sequence of the message before it; NATS refuses the message anywhere else
    Vecmem-Format                 version of this layout, 1
    Vecmem-First-Sequence         sequence of the first record
    Vecmem-Record-Count           how many records, at least 1
    Vecmem-Crc-Before             running CRC32C of the log before the first record
    Vecmem-Crc-After              running CRC32C of the log up to and including the last record

Sequences of records and sequences of messages are independent counts, each without a gap.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vecmem.errors import CorruptionError, LimitExceededError, UnsupportedFormatError
from vecmem.log.record import HEADER_BYTES, LogEntry, Record, encode, frame_bytes, verify_chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BATCH_FORMAT: Final = 1
HEADERS_BYTES_MAX: Final = 1024
"""Room for the headers of one message; they take about 300 bytes."""
STORED_MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024 - 64 * 1024
"""The file store of NATS 2.11 and later refuses messages of 32 MiB, whatever max_payload says; earlier ones lose them."""
PIECE_BYTES: Final = 1024 * 1024
"""A message holds this much, or one larger record: larger messages are not faster, and each is read and sent whole."""

BATCH_ID: Final = "Nats-Msg-Id"
EXPECTED_LAST_SEQUENCE: Final = "Nats-Expected-Last-Sequence"
_FORMAT: Final = "Vecmem-Format"
_FIRST_SEQUENCE: Final = "Vecmem-First-Sequence"
_RECORD_COUNT: Final = "Vecmem-Record-Count"
_CRC_BEFORE: Final = "Vecmem-Crc-Before"
_CRC_AFTER: Final = "Vecmem-Crc-After"


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two batches: the sequence and running CRC of the last record before it, and of its message."""

    sequence: int = 0
    running_crc: int = 0
    message: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One message. `message_sequence` is its place in the stream; sequences of records count from 1."""

    batch_id: str
    message_sequence: int
    first_sequence: int
    record_count: int
    running_crc_before: int
    running_crc: int
    frames: bytes

    @property
    def last_sequence(self) -> int:
        """Sequence of its last record."""
        return self.first_sequence + self.record_count - 1

    @property
    def before(self) -> Place:
        """The place it says it follows on."""
        return Place(self.first_sequence - 1, self.running_crc_before, self.message_sequence - 1)

    @property
    def end(self) -> Place:
        """The place behind it."""
        return Place(self.last_sequence, self.running_crc, self.message_sequence)

    def headers(self) -> dict[str, str]:
        """The headers of its message."""
        return {
            BATCH_ID: self.batch_id,
            EXPECTED_LAST_SEQUENCE: str(self.message_sequence - 1),
            _FORMAT: str(BATCH_FORMAT),
            _FIRST_SEQUENCE: str(self.first_sequence),
            _RECORD_COUNT: str(self.record_count),
            _CRC_BEFORE: str(self.running_crc_before),
            _CRC_AFTER: str(self.running_crc),
        }


def body_bytes_max_of(message_bytes_max: int) -> int:
    """Most that a message holds beside its headers, where the server takes messages of a size, headers included."""
    return min(message_bytes_max, STORED_MESSAGE_BYTES_MAX) - HEADERS_BYTES_MAX


def cut_into_batches(
    records: Sequence[Record], *, after: Place, body_bytes_max: int
) -> tuple[list[LogEntry], list[Batch]]:
    """The entries that records become behind `after`, and the messages that carry them, cut between records.

    Args:
        records: what to append.
        after: the log's end.
        body_bytes_max: most that a message holds beside its headers; see body_bytes_max_of.

    Raises:
        LimitExceededError: one record alone is too large for a message.
        InvalidArgumentError: a record does not fit its frame.
    """
    piece_bytes = min(PIECE_BYTES, body_bytes_max)
    entries: list[LogEntry] = []
    batches: list[Batch] = []
    frames: list[bytes] = []
    size_bytes = 0
    before, running_crc = after, after.running_crc

    def end_batch() -> None:
        nonlocal size_bytes, before
        batches.append(
            Batch(
                uuid.uuid4().hex,
                before.message + 1,
                before.sequence + 1,
                len(frames),
                before.running_crc,
                running_crc,
                b"".join(frames),
            )
        )
        frames.clear()
        size_bytes, before = 0, batches[-1].end

    for sequence, record in enumerate(records, after.sequence + 1):
        if frame_bytes(record) > body_bytes_max:
            raise LimitExceededError(
                f"a record of {frame_bytes(record)} bytes is over {body_bytes_max}, the most that a message holds"
            )
        if frames and size_bytes + frame_bytes(record) > piece_bytes:
            end_batch()
        entry, frame = encode(record, sequence, running_crc)
        running_crc = entry.running_crc
        entries.append(entry)
        frames.append(frame)
        size_bytes += len(frame)
    if frames:
        end_batch()
    return entries, batches


def batch_of(headers: Mapping[str, str], frames: bytes, message_sequence: int, *, path: str) -> Batch:
    """The batch that a stored message holds; its frames are not looked at yet.

    Raises:
        CorruptionError: the message is none of a log.
        UnsupportedFormatError: a newer version wrote it.
    """
    try:
        batch_format = int(headers[_FORMAT])
        batch = Batch(
            headers[BATCH_ID],
            message_sequence,
            int(headers[_FIRST_SEQUENCE]),
            int(headers[_RECORD_COUNT]),
            int(headers[_CRC_BEFORE]),
            int(headers[_CRC_AFTER]),
            frames,
        )
    except (KeyError, ValueError) as error:
        raise CorruptionError(
            f"a message without the headers of a log: {error}", path=path, position=f"message {message_sequence}"
        ) from error
    if batch_format > BATCH_FORMAT:
        raise UnsupportedFormatError(
            f"{path}, message {message_sequence}: batch format {batch_format} is newer than {BATCH_FORMAT}, "
            "the newest that this version of vecmem understands"
        )
    if batch.first_sequence < 1 or batch.record_count < 1:
        raise CorruptionError(
            f"a batch of {batch.record_count} records from {batch.first_sequence} on does not exist",
            path=path,
            position=f"message {message_sequence}",
        )
    return batch


def entries_of(batch: Batch, *, path: str) -> list[LogEntry]:
    """The records of a batch, each proven to follow on the one before it; the first, on what the headers say.

    Raises:
        CorruptionError: a record is missing or damaged, or headers and records disagree.
        UnsupportedFormatError: a record is newer than this version understands.
    """
    before = batch.before
    entries = list(verify_chain(_frames(batch), before.sequence, before.running_crc, path=path))
    last_sequence, running_crc = (entries[-1].sequence, entries[-1].running_crc) if entries else (before.sequence, 0)
    if (last_sequence, running_crc) != (batch.last_sequence, batch.running_crc):
        raise CorruptionError(
            f"message {batch.message_sequence} does not hold the {batch.record_count} records that its headers name",
            path=path,
            position=f"sequence {last_sequence + 1}",
        )
    return entries


def check_follows(batch: Batch, after: Place, *, path: str) -> None:
    """Prove that a batch is the next one behind a place. Raises CorruptionError, which names the record's sequence."""
    expected = after.sequence + 1
    if batch.message_sequence != after.message + 1:
        what = f"message {after.message + 1} is missing, the next one is {batch.message_sequence}"
    elif batch.first_sequence != expected:
        what = f"message {batch.message_sequence} begins with sequence {batch.first_sequence}"
    elif batch.running_crc_before != after.running_crc:
        what = (
            f"running CRC32C before it is {batch.running_crc_before:08x}, "
            f"but the log up to there gives {after.running_crc:08x}"
        )
    else:
        return
    raise CorruptionError(what, path=path, position=f"sequence {expected}")


def _frames(batch: Batch) -> Iterator[tuple[int, bytes]]:
    """Cut the body where the frames say that they end; what is no whole frame is refused when it is decoded."""
    begin = 0
    for sequence in range(batch.first_sequence, batch.last_sequence + 1):
        if begin >= len(batch.frames):
            return
        length = int.from_bytes(batch.frames[begin + 12 : begin + 16], "little")
        end = len(batch.frames) if sequence == batch.last_sequence else begin + HEADER_BYTES + length
        yield sequence, batch.frames[begin:end]
        begin = end
