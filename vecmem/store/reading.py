"""Points on the way out: which parts of them a reply carries, Get, Scroll and Count.

Everything here runs on the event loop between two records, so what it returns is the state at one position.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from vecmem import limits
from vecmem.errors import InvalidArgumentError, InvalidPageTokenError, LimitExceededError
from vecmem.index.column import ABSENT_CODE
from vecmem.index.filter import CompiledFilter
from vecmem.index.payload import PayloadSelection, compile_selector, payload_to_struct
from vecmem.index.rows import NEVER, row_array
from vecmem.store import wire
from vecmem.store.collection import Collection
from vecmem.store.validation import request_fingerprint, vector_of
from vecmem.v1 import collections_pb2, common_pb2, filter_pb2, points_pb2

SLICE_POINTS = 16
"""Points encoded before their size is looked at: not much more than what a reply may hold is ever put together."""
PAGE_BYTES_MAX = limits.MESSAGE_BYTES_MAX // 4
"""A page of scroll ends early when it has grown to this: one more point, of 1 MiB payload (6 MiB as a Struct) and 64 vectors,
still fits."""


@dataclass(frozen=True, slots=True)
class PointSelection:
    """What of each point goes into a reply. `payload` None: all of it, as stored."""

    payload: PayloadSelection | None
    as_struct: bool
    vector_names: tuple[str, ...]
    as_values: bool

    def encode(self, collection: Collection, rows: list[int]) -> list[bytes]:
        """Serialize what is chosen of the points of rows, each as a Point. All at once: mind `SLICE_POINTS`."""
        table = collection.rows
        plain = self.payload is None or self.payload.nothing
        expiring = table.any_expiry() and any(table.expires_at(row) != NEVER for row in rows)
        if plain and not (self.as_struct or self.vector_names or expiring):
            payloads = collection.payloads.by_row if self.payload is None else []
            return wire.points(table.ids, table.versions, payloads, rows)
        return [self._encode_any(collection, row) for row in rows]

    def _encode_any(self, collection: Collection, row: int) -> bytes:
        point = points_pb2.Point()
        self._fill(point, collection, row)
        # Maps in an order of their own would make equal replies differ.
        return point.SerializeToString(deterministic=True)

    def _fill(self, point: points_pb2.Point, collection: Collection, row: int) -> None:
        table = collection.rows
        point.id = table.ids[row]
        point.version = int(table.versions[row])
        stored = collection.payloads.get(row)
        if stored:
            payload = stored if self.payload is None else self.payload.apply(stored)
            if self.as_struct:
                point.payload_struct.CopyFrom(payload_to_struct(payload))
            elif payload:
                point.payload_json = payload
        if table.any_expiry():
            expires_at_unix_ms = table.expires_at(row)
            if expires_at_unix_ms != NEVER:
                point.expires_at.FromMilliseconds(expires_at_unix_ms)
        for name in self.vector_names:
            self._fill_vector(point, collection, name, row)

    def _fill_vector(self, point: points_pb2.Point, collection: Collection, name: str, row: int) -> None:
        arena = collection.vectors[name].arena
        if not arena.present(row + 1)[row]:
            return
        values = arena.gather(row_array(row))[0]
        dense = (point.vectors[name] if name else point.vector).dense
        if self.as_values:
            dense.values.extend(values.tolist())
        else:
            dense.packed = values.astype("<f4").tobytes()
            dense.data_type = common_pb2.DATA_TYPE_FLOAT32


WHOLE_PAYLOAD = PointSelection(payload=None, as_struct=False, vector_names=(), as_values=False)
"""What a request without selectors asks for."""


def compile_selection(
    collection: Collection,
    payload: common_pb2.PayloadSelector | None,
    vectors: common_pb2.VectorSelector | None,
    *,
    request_encoding: common_pb2.VectorEncoding.ValueType = common_pb2.VECTOR_ENCODING_PACKED,
    field: str = "",
) -> PointSelection:
    """Check the selectors of a request; None: absent from it.

    Raises:
        InvalidArgumentError: a format or an encoding is not known.
        InvalidFilterError: a payload path is malformed.
        LimitExceededError: too many names.
        UnknownVectorError: a vector is not the collection's.
    """
    if payload is None and vectors is None:
        return WHOLE_PAYLOAD
    names: tuple[str, ...] = ()
    encoding = request_encoding
    if vectors is not None:
        if vectors.WhichOneof("names") == "include":
            names = tuple(dict.fromkeys(vectors.include.names))
            if len(vectors.include.names) > limits.VECTORS_PER_COLLECTION_MAX:
                raise LimitExceededError(
                    f"{len(vectors.include.names)} names, more than {limits.VECTORS_PER_COLLECTION_MAX}",
                    field=f"{field}with_vectors.include.names",
                )
            for index, name in enumerate(names):
                vector_of(collection, name, f"{field}with_vectors.include.names[{index}]")
        elif vectors.all:
            names = tuple(collection.vectors)
        if vectors.encoding not in common_pb2.VectorEncoding.values():
            raise InvalidArgumentError(
                f"{vectors.encoding} is not a vector encoding", field=f"{field}with_vectors.encoding"
            )
        encoding = vectors.encoding or request_encoding
    if payload is not None and payload.format not in common_pb2.PayloadFormat.values():
        raise InvalidArgumentError(f"{payload.format} is not a payload format", field=f"{field}with_payload.format")
    return PointSelection(
        payload=None if payload is None else compile_selector(payload, f"{field}with_payload"),
        as_struct=payload is not None and payload.format == common_pb2.PAYLOAD_FORMAT_STRUCT,
        vector_names=names,
        as_values=encoding == common_pb2.VECTOR_ENCODING_VALUES,
    )


def get(
    collection: Collection,
    ids: list[str],
    selection: PointSelection,
    now_unix_ms: int,
    reply: ReplySize,
) -> list[bytes]:
    """Encode the point of each id that exists, in order. Raises LimitExceededError when `reply` is full."""
    found = (collection.find(point_id, now_unix_ms) for point_id in ids)
    rows = [row for row in found if row is not None]
    points: list[bytes] = []
    for start in range(0, len(rows), SLICE_POINTS):
        some = selection.encode(collection, rows[start : start + SLICE_POINTS])
        reply.grow(some, "ids")
        points += some
    return points


@dataclass(slots=True)
class ReplySize:
    """How large a reply has grown while it is put together."""

    size_bytes: int = 0

    def grow(self, parts: list[bytes], field: str) -> None:
        """Count in points or hits, and their frames. Raises LimitExceededError when all is more than a message may hold."""
        self.size_bytes += sum(map(len, parts)) + len(parts) * wire.FRAME_BYTES_MAX
        if self.size_bytes > limits.MESSAGE_BYTES_MAX:
            raise LimitExceededError(
                f"the reply is over {limits.MESSAGE_BYTES_MAX} bytes: ask for fewer points, or for less of each",
                field=field,
            )


def count(collection: Collection, compiled: CompiledFilter | None, sequence: int, now_unix_ms: int) -> int:
    """Points that match and have not expired."""
    if compiled is None and not collection.rows.any_expiry():
        return len(collection.row_of)
    return int(np.count_nonzero(collection.matching(compiled, sequence, now_unix_ms)))


def payload_index_stats(
    collection: Collection, visible: NDArray[np.bool_]
) -> Iterator[collections_pb2.PayloadIndexStats]:
    """The payload indexes there are, in order of their paths; `visible` says which points are counted, shape (row_count,)."""
    payloads = collection.payloads
    for path, column in sorted(payloads.columns().items(), key=lambda item: item[0].text):
        present = column.codes(visible.size) != ABSENT_CODE
        yield collections_pb2.PayloadIndexStats(
            path=path.text,
            declared=path in payloads.declared,
            point_count=int(np.count_nonzero(present & visible)),
            bytes=column.size_bytes,
        )


def scroll(
    collection: Collection,
    *,
    after: str,
    page_size: int,
    compiled: CompiledFilter | None,
    selection: PointSelection,
    sequence: int,
    now_unix_ms: int,
) -> tuple[list[bytes], str]:
    """Encode the points of the page behind the id `after`; returns them and the last id, or "" at the end."""
    mask = collection.matching(compiled, sequence, now_unix_ms)
    candidates = collection.ids_after(after)
    match_count = int(np.count_nonzero(mask))
    if match_count * match_count * 4 < page_size * len(collection.row_of):
        # So few match that sorting them is less work than walking over all that do not.
        matching = (collection.rows.ids[row] for row in np.flatnonzero(mask).tolist())
        candidates = sorted(point_id for point_id in matching if point_id > after)
    last = ""
    points: list[bytes] = []
    size_bytes = 0
    for point_id in candidates:
        row = collection.row_of[point_id]
        if not mask[row]:
            continue
        if len(points) == page_size or size_bytes > PAGE_BYTES_MAX:
            return points, last
        points += selection.encode(collection, [row])
        size_bytes += len(points[-1]) + wire.FRAME_BYTES_MAX
        last = point_id
    return points, ""


def page_size_or_default(page_size: int, largest: int = limits.PAGE_SIZE_MAX) -> int:
    """A page size with its default. Raises LimitExceededError."""
    if page_size > largest:
        raise LimitExceededError(f"{page_size} is more than {largest}", field="page_size")
    return page_size or limits.PAGE_SIZE_DEFAULT


def filter_digest(message: filter_pb2.Filter | None) -> int:
    """Ties a page token to the filter it was issued for."""
    return 0 if message is None else request_fingerprint(message)


def encode_page_token(kind: str, scope: list[int], after: str) -> str:
    """A page token: opaque to clients, and good only for the same `kind` and `scope` (uid, digest of the filter)."""
    return base64.urlsafe_b64encode(orjson.dumps([kind, scope, after])).decode().rstrip("=")


def decode_page_token(token: str, kind: str, scope: list[int]) -> str:
    """The id that a page goes on after; empty for the first page. Raises InvalidPageTokenError."""
    if not token:
        return ""
    try:
        content = orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise InvalidPageTokenError(f"{token[:80]!r} is not a page token", field="page_token") from error
    if not isinstance(content, list) or len(content) != 3 or content[:2] != [kind, scope]:
        raise InvalidPageTokenError(f"{token[:80]!r} was issued for another request", field="page_token")
    if not isinstance(content[2], str) or not content[2]:
        raise InvalidPageTokenError(f"{token[:80]!r} is not a page token", field="page_token")
    return content[2]
