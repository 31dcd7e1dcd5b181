"""Sets of hash slots in their three forms: a mask with a flag for each slot, ranges as commands have them, and packed bytes.

A mask is a bool array of shape (SLOTS,). Ranges are rising and do not touch one another. Packed: the slots as numbers of two bytes,
little-endian and rising, or 2,048 bytes with a bit for each where that is shorter; equal sets have equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vecmem.slots import SLOTS
from vecmem.store.v1 import command_pb2

SlotMask = NDArray[np.bool_]
PACKED_BYTES_MAX: Final = SLOTS // 8
_NUMBER: Final = np.dtype("<u2")


def mask_of(slots: Iterable[int]) -> SlotMask:
    """The set of some slots."""
    mask = np.zeros(SLOTS, dtype=np.bool_)
    mask[np.fromiter(slots, dtype=np.int64)] = True
    return mask


def mask_of_ranges(ranges: Iterable[command_pb2.SlotRange]) -> SlotMask:
    """The set that ranges describe. Raises ValueError for ranges that are out of order, touch one another, or leave the slots there are."""
    mask = np.zeros(SLOTS, dtype=np.bool_)
    end = -1
    for part in ranges:
        if not end < part.first <= part.last < SLOTS:
            raise ValueError(f"slots {part.first} to {part.last} behind {end - 1} are no range")
        mask[part.first : part.last + 1] = True
        end = part.last + 1
    return mask


def ranges_of(mask: SlotMask) -> list[command_pb2.SlotRange]:
    """The set as ranges."""
    steps = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return [
        command_pb2.SlotRange(first=int(first), last=int(stop) - 1)
        for first, stop in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True)
    ]


def shown(mask: SlotMask) -> str:
    """The set for messages."""
    ranges = ranges_of(mask)
    named = ", ".join(
        str(part.first) if part.first == part.last else f"{part.first}-{part.last}" for part in ranges[:8]
    )
    return (named or "none") + (", ..." if len(ranges) > 8 else "")


def pack(slots: NDArray[np.int64]) -> bytes:
    """The set of some slots, which are rising, each once."""
    if slots.size * _NUMBER.itemsize < PACKED_BYTES_MAX:
        return slots.astype(_NUMBER).tobytes()
    mask = np.zeros(SLOTS, dtype=np.bool_)
    mask[slots] = True
    return np.packbits(mask).tobytes()


def unpack(packed: bytes) -> NDArray[np.int64]:
    """The slots, rising."""
    if len(packed) == PACKED_BYTES_MAX:
        return np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8)))
    return np.frombuffer(packed, _NUMBER).astype(np.int64)


def union(one: bytes, other: bytes) -> bytes:
    """The slots of either, packed."""
    return pack(np.union1d(unpack(one), unpack(other)))


def divide(packed: bytes, mask: SlotMask) -> tuple[bytes, bytes]:
    """The slots that are in a set, and those that are not, packed."""
    if len(packed) == _NUMBER.itemsize:
        return (packed, b"") if mask[int.from_bytes(packed, "little")] else (b"", packed)
    slots = unpack(packed)
    inside = mask[slots]
    return pack(slots[inside]), pack(slots[~inside])
