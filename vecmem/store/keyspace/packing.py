"""Byte strings as containers dump them: how many, the length of each, and then all of them back to back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_COUNT_BYTES = 8
_LENGTH_BYTES = 4


def pack(blobs: Sequence[bytes]) -> bytes:
    """All of them, none longer than 4 GiB."""
    count = len(blobs)
    lengths = np.fromiter(map(len, blobs), dtype="<u4", count=count)
    return b"".join((count.to_bytes(_COUNT_BYTES, "little"), lengths.tobytes(), *blobs))


def unpack(content: bytes) -> list[bytes]:
    """What was packed. Raises ValueError."""
    count = int.from_bytes(content[:_COUNT_BYTES], "little")
    begin = _COUNT_BYTES + count * _LENGTH_BYTES
    if len(content) < begin:
        raise ValueError(f"{len(content)} bytes cannot hold {count} lengths")
    ends = np.cumsum(np.frombuffer(content, dtype="<u4", count=count, offset=_COUNT_BYTES), dtype=np.int64) + begin
    if len(content) != (int(ends[-1]) if count else begin):
        raise ValueError(f"{len(content)} bytes are not what {count} lengths say")
    blobs = []
    for end in ends.tolist():
        blobs.append(content[begin:end])
        begin = end
    return blobs
