"""The tip: a second, independent note of how far the log had come, so that a log that lost its end cannot pass as short.

RocksDB's manifest is the only place that tells which table files exist. Cut at a record's boundary it is a valid, older
manifest, and data that had moved from the log file into a table would be gone without a trace. So before such a move,
and at each open and close, the last sequence and its running CRC are written durably to the file `tip` beside RocksDB's
directory. A log that ends before its tip, or has another running CRC there, is damaged.

    offset  size  field (little-endian)
    0       4     magic `vmtp`
    4       8     sequence
    12      4     running CRC32C at that sequence
    16      4     CRC32C over bytes 0 to 16
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import google_crc32c

from vecmem.errors import CorruptionError, NotFoundError
from vecmem.filesystem import replace_durably

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAME: Final = "tip"
_MAGIC: Final = b"vmtp"
_FIELDS = struct.Struct("<4sQI")


class Tip(NamedTuple):
    """A sequence that was durable, and the running CRC32C there."""

    sequence: int
    running_crc: int


def write_tip(directory: Path, tip: Tip) -> None:
    """Note a tip durably. Raises OSError."""
    content = _FIELDS.pack(_MAGIC, tip.sequence, tip.running_crc)
    replace_durably(directory / NAME, content + google_crc32c.value(content).to_bytes(4, "little"))


def has_tip(directory: Path) -> bool:
    """Whether a tip was ever noted: before the first one, which ends the first opening, nothing is acknowledged."""
    return (directory / NAME).exists()


def read_tip(directory: Path) -> Tip | None:
    """The tip noted last; None if there is no note. Raises CorruptionError."""
    if not has_tip(directory):
        return None
    path = directory / NAME
    content = path.read_bytes()
    end = _FIELDS.size
    if len(content) != end + 4 or google_crc32c.value(content[:end]) != int.from_bytes(content[end:], "little"):
        raise CorruptionError("the note of the log's end is damaged", path=str(path))
    _, sequence, running_crc = _FIELDS.unpack_from(content)
    return Tip(sequence, running_crc)


def check_tip(directory: Path, last_sequence: int, running_crc_at: Callable[[int], int]) -> None:
    """Prove that a log reaches its tip. `running_crc_at` raises NotFoundError for what has been trimmed.

    Raises:
        CorruptionError: it ends earlier, or is another log there.
    """
    tip = read_tip(directory)
    if tip is None:
        return
    if last_sequence < tip.sequence:
        raise CorruptionError(
            f"the log ends at sequence {last_sequence}, but it had reached {tip.sequence}: records are missing",
            path=str(directory),
            position=f"sequence {last_sequence + 1}",
        )
    try:
        running_crc = running_crc_at(tip.sequence)
    except NotFoundError:
        return  # trimmed since
    if running_crc != tip.running_crc:
        raise CorruptionError(
            f"running CRC32C is {running_crc:08x}, but it was {tip.running_crc:08x}",
            path=str(directory),
            position=f"sequence {tip.sequence}",
        )
