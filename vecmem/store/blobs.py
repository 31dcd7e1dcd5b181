"""Byte strings back to back, as checkpoints keep them: one array of all bytes, and one of where each ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ENDS_AT_ONCE = 4_096
"""Ends as Python's integers at a time: a million of them would leave holes between what is made meanwhile and stays."""


def join(blobs: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All bytes, shape (total,), and where each ends, shape (n,)."""
    ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
    return np.frombuffer(b"".join(blobs), dtype=np.uint8), ends


def split(joined: NDArray[np.uint8], ends: NDArray[np.int64]) -> Iterator[bytes]:
    """The byte strings, in their order."""
    content = joined.tobytes()
    start = 0
    for first in range(0, len(ends), ENDS_AT_ONCE):
        for end in ends[first : first + ENDS_AT_ONCE].tolist():
            yield content[start:end]
            start = end
