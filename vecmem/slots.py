"""Hash slots: which of 16,384 parts of the key space a key belongs to, as Redis Cluster counts them.

Source: the Redis Cluster specification, "Key distribution model" and "Hash tags".
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOTS: Final = 16_384


def slot_of(key: bytes) -> int:
    """CRC16 (XMODEM) of the key modulo SLOTS; only of what stands between the first `{` and the next `}` where that is not empty."""
    start = key.find(b"{")
    if start >= 0:
        stop = key.find(b"}", start + 1)
        if stop > start + 1:
            key = key[start + 1 : stop]
    return binascii.crc_hqx(key, 0) % SLOTS


def slots_of(keys: Iterable[bytes]) -> list[int]:
    """The slots of keys, rising, each once."""
    return sorted({slot_of(key) for key in keys})
