"""Parts of replies as protobuf's bytes, put together without messages.

Ten hits as messages cost several times what copying their ids and payloads costs. What is written here is byte for byte what the generated
classes serialize to; tests/store/test_wire.py compares them. Field numbers never change (proto/vecmem/v1).
Source: the Protocol Buffers encoding, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

FRAME_BYTES_MAX = 16
"""More than what frames a point or a hit in a reply: tags and lengths."""

_SHORT = tuple(bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80, n >> 7]) for n in range(1 << 12))
_FLOAT = struct.Struct("<f")
_ZERO = bytes(4)


def varint(value: int) -> bytes:
    """Encode a whole number from 0 to 2^64 - 1."""
    if value < 4096:
        return _SHORT[value]
    if value < 1 << 21 and value >> 14:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message_field(number: int, body: bytes) -> bytes:
    """Encode a field, numbered 1 to 15, that holds a message, a string or bytes; it is present even if empty."""
    return b"".join((_SHORT[number << 3 | 2], varint(len(body)), body))


def repeated_field(number: int, bodies: Iterable[bytes]) -> bytes:
    """Encode a repeated field, numbered 1 to 15, of messages, strings or bytes."""
    tag = _SHORT[number << 3 | 2]
    return b"".join([piece for body in bodies for piece in (tag, varint(len(body)), body)])


def header_field(sequence: int, server_time_unix_ms: int) -> bytes:
    """Encode the field `header`, number 1 of every reply, of shard 0. The time is not negative."""
    position = b"\x10" + varint(sequence) if sequence else b""
    time = b"\x10" + varint(server_time_unix_ms) if server_time_unix_ms else b""
    return message_field(1, message_field(1, position) + time)


def point(point_id: str, version: int, payload_json: bytes) -> bytes:
    """Encode a Point with an id, which is not empty, a version and, where it is not empty, a payload."""
    raw_id = point_id.encode()
    pieces = [b"\x0a", varint(len(raw_id)), raw_id]
    if payload_json:
        pieces += (b"\x22", varint(len(payload_json)), payload_json)
    if version:
        pieces += (b"\x38", varint(version))
    return b"".join(pieces)


def hit(encoded_point: bytes, score: float) -> bytes:
    """Encode a Hit. The score is rounded to float32."""
    raw_score = _FLOAT.pack(score)
    if raw_score == _ZERO:
        return b"".join((b"\x0a", varint(len(encoded_point)), encoded_point))
    return b"".join((b"\x0a", varint(len(encoded_point)), encoded_point, b"\x15", raw_score))
