"""Parts of replies as protobuf's bytes, put together without messages.

Ten hits with their payloads as messages took about half of what a query cost beside its search. What is written here is byte for
byte what the generated classes serialize to; tests/store/test_wire.py compares them. Field numbers never change (proto/vecmem/v1).
Source: the Protocol Buffers encoding, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem.store import _wire

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAME_BYTES_MAX = 16
"""More than what frames a point or a hit in a reply: tags and lengths."""


def points(ids: list[str], versions: NDArray[np.int64], payloads: list[bytes], rows: list[int]) -> list[bytes]:
    """Encode a Point of each row, with its id, its version and, where there is one that is not empty, its payload.

    All but `rows` by row number; `payloads` may end earlier. No id is empty. Raises IndexError for a row that is not there.
    """
    return _wire.points(ids, versions, payloads, rows)


def hits(encoded_points: list[bytes], scores: list[float]) -> list[bytes]:
    """Encode a Hit of each point and its score, which is rounded to float32. Raises ValueError unless there are as many."""
    return _wire.hits(encoded_points, scores)


def repeated_field(number: int, bodies: list[bytes]) -> bytes:
    """Encode a repeated field of messages, strings or bytes. Raises ValueError unless its number is 1 to 15."""
    return _wire.repeated_field(number, bodies)


def message_field(number: int, body: bytes) -> bytes:
    """Encode a field that holds a message, a string or bytes; it is present even if empty. Raises as `repeated_field`."""
    return _wire.repeated_field(number, [body])


def header_field(sequence: int, server_time_unix_ms: int) -> bytes:
    """Encode the field `header`, number 1 of every reply, of shard 0. The time is not negative."""
    return _wire.header_field(sequence, server_time_unix_ms)
