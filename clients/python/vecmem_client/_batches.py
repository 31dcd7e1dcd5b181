"""Cutting a bulk load into batches: pure generators, shared by both clients.

A batch is one atomic request, serialized once, so that a resend after a lost connection is the same bytes with the
same request id.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from vecmem.v1 import points_pb2
from vecmem_client._requests import set_point, set_vector
from vecmem_client._values import aware, encode_payload
from vecmem_client._vectors import as_matrix, to_float32

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from vecmem_client._types import Point
    from vecmem_client._values import PayloadLike

BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""A batch is closed when it has grown to this size, whatever its number of points."""
_POINT_BYTES_OVERHEAD: Final = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """One request of a bulk load."""

    request: bytes
    point_count: int


class _Builder:
    """Gathers points into batches of at most `batch_size` points and about BATCH_BYTES_MAX bytes."""

    def __init__(self, collection: str, batch_size: int, request_id: str) -> None:
        if not 1 <= batch_size <= 10_000:
            raise ValueError(f"batch_size is 1 to 10,000, not {batch_size}")
        self._collection = collection
        self._batch_size = batch_size
        self._request_id = request_id
        self._batch_index = 0
        self._size_bytes = 0
        self._request = points_pb2.UpsertStreamRequest(collection=collection)

    def new_point(self) -> points_pb2.Point:
        return self._request.points.add()

    def added(self, size_bytes: int) -> Batch | None:
        """Take note of the size of the last point; return the batch if that filled it."""
        self._size_bytes += size_bytes + _POINT_BYTES_OVERHEAD
        if len(self._request.points) < self._batch_size and self._size_bytes < BATCH_BYTES_MAX:
            return None
        return self.close()

    def close(self) -> Batch | None:
        """Return what has gathered, or None."""
        request = self._request
        if not request.points:
            return None
        request.write.request_id = f"{self._request_id}-{self._batch_index}"
        batch = Batch(request.SerializeToString(), len(request.points))
        self._batch_index += 1
        self._size_bytes = 0
        self._request = points_pb2.UpsertStreamRequest(collection=self._collection)
        return batch


def batches_of_points(collection: str, points: Iterable[Point], *, batch_size: int, request_id: str) -> Iterator[Batch]:
    """Cut points into batches, taking them from the iterable only as batches are asked for."""
    builder = _Builder(collection, batch_size, request_id)  # raises now, not at the first batch
    return _batches_of_points(builder, points)


def _batches_of_points(builder: _Builder, points: Iterable[Point]) -> Iterator[Batch]:
    for point in points:
        message = builder.new_point()
        set_point(message, point)
        if batch := builder.added(message.ByteSize()):
            yield batch
    if batch := builder.close():
        yield batch


@dataclass(frozen=True, slots=True)
class Columns:
    """A checked bulk load in columns: row i of each column belongs to point i."""

    ids: Sequence[str]
    matrices: Mapping[str, NDArray[Any]]
    payloads: Sequence[PayloadLike | None] | None
    expiries: Sequence[datetime | None] | None

    @classmethod
    def check(
        cls,
        ids: Sequence[str],
        vectors: NDArray[Any] | Sequence[Sequence[float]] | Mapping[str, NDArray[Any]],
        payloads: Sequence[PayloadLike | None] | None,
        expires_at: datetime | Sequence[datetime | None] | None,
    ) -> Columns:
        """Return the columns. Raises ValueError unless all have one row an id, TypeError for wrong types."""
        if isinstance(ids, str | bytes):
            raise TypeError("ids takes several strings, not one")
        rows = len(ids)
        named = vectors if hasattr(vectors, "items") else {"": vectors}
        if not named:
            raise ValueError("vectors names no vector")
        matrices = {
            name: as_matrix(matrix, f"vectors[{name!r}]" if name else "vectors") for name, matrix in named.items()
        }
        for name, matrix in matrices.items():
            _check_rows(f"vectors[{name!r}]" if name else "vectors", len(matrix), rows)
        if payloads is not None:
            if isinstance(payloads, str | bytes) or hasattr(payloads, "items"):
                raise TypeError("payloads takes one payload for each point, not one for all")
            _check_rows("payloads", len(payloads), rows)
        expiries: Sequence[datetime | None] | None
        expiries = [expires_at] * rows if isinstance(expires_at, datetime) else expires_at
        if expiries is not None:
            _check_rows("expires_at", len(expiries), rows)
        return cls(ids, matrices, payloads, expiries)


def batches_of_columns(collection: str, columns: Columns, *, batch_size: int, request_id: str) -> Iterator[Batch]:
    """Cut columns into batches; vectors are converted to float32 a slice at a time, never all at once."""
    builder = _Builder(collection, batch_size, request_id)
    return _batches_of_columns(builder, columns, batch_size)


def _batches_of_columns(builder: _Builder, columns: Columns, slice_rows: int) -> Iterator[Batch]:
    for start in range(0, len(columns.ids), slice_rows):
        ids = columns.ids[start : start + slice_rows]
        slices = {name: to_float32(matrix[start : start + slice_rows]) for name, matrix in columns.matrices.items()}
        for offset, point_id in enumerate(ids):
            message = builder.new_point()
            size_bytes = _set_row(message, columns, start + offset, point_id, slices, offset)
            if batch := builder.added(size_bytes):
                yield batch
    if batch := builder.close():
        yield batch


def _set_row(
    message: points_pb2.Point,
    columns: Columns,
    row: int,
    point_id: str,
    slices: Mapping[str, NDArray[np.float32]],
    offset: int,
) -> int:
    message.id = point_id
    size_bytes = len(point_id)
    for name, matrix in slices.items():
        packed = matrix[offset].tobytes()
        size_bytes += len(packed)
        set_vector(message.vectors[name] if name else message.vector, packed)
    if columns.payloads is not None:
        payload = columns.payloads[row]
        if payload is not None:
            encoded = encode_payload(payload)
            size_bytes += len(encoded)
            message.payload_json = encoded
    if columns.expiries is not None:
        expiry = columns.expiries[row]
        if expiry is not None:
            message.expires_at.FromDatetime(aware(expiry, "expires_at"))
    return size_bytes


def _check_rows(name: str, actual: int, expected: int) -> None:
    if actual != expected:
        raise ValueError(f"{name} has {actual} rows for {expected} ids")
