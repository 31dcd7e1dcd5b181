"""The record codec: round trips, and every change of a stored byte is noticed and named."""

from __future__ import annotations

import random

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmem.errors import CorruptionError, InvalidArgumentError, UnsupportedFormatError
from vecmem.log.record import HEADER_BYTES, WRITER_VERSION, Record, chain, decode, encode, frame_bytes, verify_chain

records = st.builds(
    Record,
    record_type=st.integers(1, 2**16 - 1),
    payload=st.binary(max_size=300),
    writer_version=st.integers(0, WRITER_VERSION),
)
crcs = st.integers(0, 2**32 - 1)


@given(records, st.integers(1, 2**63), crcs)
def test_what_was_encoded_is_decoded(record: Record, sequence: int, running_crc: int) -> None:
    entry, frame = encode(record, sequence, running_crc)
    assert decode(frame, sequence, path="log") == entry
    assert entry.record == record
    assert len(frame) == frame_bytes(record) == HEADER_BYTES + len(record.payload)
    assert list(verify_chain([(sequence, frame)], sequence - 1, running_crc, path="log")) == [entry]


def test_the_frame_is_as_the_byte_table_says() -> None:
    """The bytes on disk are a contract: this test spells them out independently of the code."""
    _, frame = encode(Record(258, b"payload", 1), 3, 0xDEADBEEF)
    checked = bytes.fromhex("0100 0201 01000000 07000000")
    crc = google_crc32c.value(checked + b"payload").to_bytes(4, "little")
    running = google_crc32c.extend(0xDEADBEEF, (3).to_bytes(8, "big") + b"vmlr" + checked + crc + b"payload")
    assert frame == b"vmlr" + checked + crc + running.to_bytes(4, "little") + b"payload"


@given(records, st.data())
def test_any_flipped_bit_is_named(record: Record, data: st.DataObject) -> None:
    """Each region of a frame, the running CRC included, and each bit of it."""
    _, frame = encode(record, 9, 77)
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    damaged = bytearray(frame)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptionError, match="sequence 9") as caught:
        list(verify_chain([(9, bytes(damaged))], 8, 77, path="where"))
    assert caught.value.path == "where"


@given(records, st.data())
def test_a_cut_or_lengthened_frame_is_refused(record: Record, data: st.DataObject) -> None:
    _, frame = encode(record, 1, 0)
    wrong = data.draw(st.one_of(st.integers(0, len(frame) - 1).map(lambda n: frame[:n]), st.just(frame + b"\0")))
    with pytest.raises(CorruptionError):
        decode(wrong, 1, path="log")


def reframe(frame: bytes, *, format_version: int = 1, writer_version: int = 1) -> bytes:
    """A frame as another version would have written it, with a right CRC."""
    checked = format_version.to_bytes(2, "little") + frame[6:8] + writer_version.to_bytes(4, "little") + frame[12:16]
    crc = google_crc32c.value(checked + frame[HEADER_BYTES:]).to_bytes(4, "little")
    return frame[:4] + checked + crc + frame[20:]


def test_what_a_newer_version_wrote_is_refused_and_not_called_damage() -> None:
    _, frame = encode(Record(1, b"x"), 1, 0)
    assert reframe(frame) == frame
    with pytest.raises(UnsupportedFormatError, match="format version 2"):
        decode(reframe(frame, format_version=2), 1, path="log")
    with pytest.raises(UnsupportedFormatError, match="writer version 2"):
        decode(reframe(frame, writer_version=WRITER_VERSION + 1), 1, path="log")


@pytest.mark.parametrize("change", ["missing", "swapped", "doubled", "replaced"])
def test_a_broken_chain_is_named_at_its_place(change: str) -> None:
    """Records that are each whole, but not the log that was written."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    frames, running_crc = [], 0
    for sequence in range(1, 11):
        entry, frame = encode(Record(1, rng.randbytes(20)), sequence, running_crc)
        frames.append(frame)
        running_crc = entry.running_crc
    numbered = list(enumerate(frames, 1))
    if change == "missing":
        del numbered[4]
    elif change == "swapped":
        numbered[4], numbered[5] = (5, frames[5]), (6, frames[4])
    elif change == "doubled":
        numbered[4] = (5, frames[3])
    else:
        numbered[4] = (5, encode(Record(1, b"another"), 5, 12345)[1])
    found = verify_chain(numbered, 0, 0, path="log")
    assert [next(found).sequence for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(CorruptionError, match="sequence 5"):
        next(found)


@given(st.lists(records, max_size=5), crcs)
def test_chain_gives_the_entries_that_encode_gives(several: list[Record], running_crc: int) -> None:
    expected, crc = [], running_crc
    for sequence, record in enumerate(several, 6):
        entry, _ = encode(record, sequence, crc)
        expected.append(entry)
        crc = entry.running_crc
    assert chain(several, 5, running_crc) == expected


@pytest.mark.parametrize("record", [Record(0, b""), Record(2**16, b""), Record(1, b"", 2**32)])
def test_a_record_that_does_not_fit_the_frame_is_refused(record: Record) -> None:
    with pytest.raises(InvalidArgumentError):
        encode(record, 1, 0)
