"""From requests to commands: everything about a request is checked here, before its record is appended.

A record that is in the log always replays, so nothing may pass that `Collection` could choke on. Every function raises an
InvalidArgumentError of the fitting class that names the offending field, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import google_crc32c
import numpy as np
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from vecmem import limits
from vecmem.errors import (
    DimensionMismatchError,
    InvalidArgumentError,
    InvalidIdError,
    InvalidVectorError,
    LimitExceededError,
    UnknownVectorError,
)
from vecmem.index import metric as metrics
from vecmem.index.arena import UNSTORABLE, unstorable
from vecmem.index.field_path import parse_paths
from vecmem.index.filter import compile_filter
from vecmem.index.metric import Float32Array, Metric
from vecmem.index.parameters import VectorParameters
from vecmem.index.payload import payload_from_struct, validate_payload
from vecmem.store.collection import Collection
from vecmem.store.v1 import command_pb2
from vecmem.v1 import common_pb2, points_pb2

EXPIRED_LONG_AGO_UNIX_MS = 1
"""Stands for every expiry before 1970; 0 means never."""
ORDINARY_SQUARE_MIN, ORDINARY_SQUARE_MAX = 1e-20, 1e20
"""Bounds of the square of a length, far inside of what is allowed and of what float32 holds."""
CHECK_ROWS = 64
"""Vectors checked in one step."""


_KIND_IN_FINGERPRINT = {"vecmem.v1.UpsertStreamRequest": "vecmem.v1.UpsertRequest"}
"""Kinds of request that count as another one: the fields of a stream's batch are those of Upsert."""


def request_fingerprint(request: Message) -> int:
    """Tells two requests under one request_id apart: 64 bits of size and CRC32C, the kind of the request included."""
    content = request.SerializeToString(deterministic=True)
    kind = request.DESCRIPTOR.full_name
    crc = google_crc32c.value(_KIND_IN_FINGERPRINT.get(kind, kind).encode())
    return (len(content) & 0xFFFFFFFF) << 32 | int(google_crc32c.extend(crc, content))


def check_request_id(request_id: str, field: str = "write.request_id") -> None:
    """Raises LimitExceededError when it is too long."""
    if len(request_id.encode()) > limits.REQUEST_ID_BYTES_MAX:
        raise LimitExceededError(
            f"{request_id[:40]!r}... is longer than {limits.REQUEST_ID_BYTES_MAX} bytes", field=field
        )


def check_point_id(point_id: str, field: str) -> None:
    """Raises InvalidIdError unless it may be the id of a point."""
    if not point_id:
        raise InvalidIdError("an id must not be empty", field=field)
    if len(point_id) * 4 > limits.POINT_ID_BYTES_MAX and len(point_id.encode()) > limits.POINT_ID_BYTES_MAX:
        raise InvalidIdError(f"{point_id[:40]!r}... is longer than {limits.POINT_ID_BYTES_MAX} bytes", field=field)


def check_ids(ids: Sequence[str], field: str) -> None:
    """Raises unless there are 1 to IDS_PER_REQUEST_MAX ids, each of them possible."""
    if not ids:
        raise InvalidArgumentError("names no point", field=field)
    if len(ids) > limits.IDS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{len(ids)} ids, more than {limits.IDS_PER_REQUEST_MAX}", field=field)
    for index, point_id in enumerate(ids):
        check_point_id(point_id, f"{field}[{index}]")


def dense_values(vector: common_pb2.Vector, field: str) -> bytes:
    """The elements of a dense vector as little-endian float32 bytes."""
    if vector.WhichOneof("kind") != "dense":
        raise InvalidVectorError("carries no dense vector", field=field)
    dense = vector.dense
    packed = dense.packed
    if not packed:
        return np.asarray(dense.values, dtype="<f4").tobytes()
    if dense.values:
        raise InvalidVectorError("carries both `values` and `packed`", field=f"{field}.dense")
    if dense.data_type not in (common_pb2.DATA_TYPE_UNSPECIFIED, common_pb2.DATA_TYPE_FLOAT32):
        raise InvalidVectorError(f"data type {dense.data_type} is not known", field=f"{field}.dense.data_type")
    if len(packed) % 4:
        raise InvalidVectorError(
            f"{len(packed)} bytes are not whole float32 elements: the vector is truncated",
            field=f"{field}.dense.packed",
        )
    return packed


def check_dimension(values: bytes, parameters: VectorParameters, field: str) -> None:
    """Raises DimensionMismatchError unless float32 bytes make up one vector of the collection."""
    if len(values) != 4 * parameters.dimension:
        raise DimensionMismatchError(
            f"has {len(values) // 4} elements, the collection's vectors have {parameters.dimension}", field=field
        )


def invalid_vector(vectors: Float32Array, metric: Metric) -> tuple[int, str] | None:
    """The first row of an (n, dimension) array that may not be stored or searched for, and why."""
    lengths = metrics.norms(vectors)
    smallest = metrics.NORM_MIN_COSINE if metric is Metric.COSINE else 0.0
    # A comparison with NaN is false, so this one test finds NaN, infinity and both ends of the range.
    bad = ~((lengths >= smallest) & (lengths <= metrics.NORM_MAX))
    if not bad.any():
        return None
    index = int(np.argmax(bad))
    row = vectors[index]
    if not np.isfinite(row).all():
        element = int(np.argmin(np.isfinite(row)))
        return index, f"element {element} is {row[element]}"
    if lengths[index] > metrics.NORM_MAX:
        return index, f"its length {lengths[index]:g} is over {metrics.NORM_MAX:g}"
    return index, "it is zero, which has no direction under cosine"


@dataclass(slots=True)
class _Column:
    parameters: VectorParameters
    label: str
    indexes: list[int] = dataclass_field(default_factory=list)
    rows: list[bytes] = dataclass_field(default_factory=list)

    def check(self) -> Iterator[None]:
        for start in range(0, len(self.rows), CHECK_ROWS):
            rows = b"".join(self.rows[start : start + CHECK_ROWS])
            matrix = np.frombuffer(rows, dtype="<f4").reshape(-1, self.parameters.dimension)
            found = invalid_vector(matrix, self.parameters.metric)
            if found is not None:
                index, problem = found
                raise InvalidVectorError(problem, field=f"points[{self.indexes[start + index]}].{self.label}")
            beyond = unstorable(matrix, self.parameters.metric, self.parameters.storage)
            if beyond.any():
                index = int(np.argmax(beyond))
                raise InvalidVectorError(UNSTORABLE, field=f"points[{self.indexes[start + index]}].{self.label}")
            yield


def upsert_command(
    collection: Collection, points: Sequence[points_pb2.Point], command: command_pb2.UpsertPoints
) -> Iterator[None]:
    """Check points against the collection and fill a command; the last of several points with the same id stays.

    In steps, between which other work may be done: of the collection only what never changes is looked at.
    """
    if not points:
        raise InvalidArgumentError("carries no point", field="points")
    if len(points) > limits.POINTS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{len(points)} points, more than {limits.POINTS_PER_REQUEST_MAX}", field="points")
    command.collection_uid = collection.uid
    columns: dict[str, _Column] = {}
    last_index: dict[str, int] = {}
    for index, point in enumerate(points):
        stored = command.points.add(id=point.id)
        check_point_id(stored.id, f"points[{index}].id")
        last_index[stored.id] = index
        _take_vectors(collection, point, index, columns)
        _take_payload(point, stored, index)
        if point.HasField("expires_at"):
            stored.expires_at_unix_ms = _expiry(point.expires_at, f"points[{index}].expires_at")
        if point.HasField("expected_version"):
            stored.expected_version = point.expected_version
        yield
    for column in columns.values():
        yield from column.check()
    if len(last_index) < len(points):
        _drop_superseded(command, columns, sorted(last_index.values()))
    for name, column in columns.items():
        if not column.indexes:
            continue  # each of its points comes again later, without this vector
        everywhere = len(column.indexes) == len(command.points)
        command.vectors.add(name=name, point_indexes=[] if everywhere else column.indexes, rows=b"".join(column.rows))


def _drop_superseded(command: command_pb2.UpsertPoints, columns: dict[str, _Column], kept: Sequence[int]) -> None:
    """Leave only the points at the indexes `kept`, rising."""
    points = [command.points[index] for index in kept]
    del command.points[:]
    command.points.extend(points)
    place = {index: new for new, index in enumerate(kept)}
    for column in columns.values():
        pairs = [(place[i], row) for i, row in zip(column.indexes, column.rows, strict=True) if i in place]
        column.indexes, column.rows = [new for new, _ in pairs], [row for _, row in pairs]


def delete_command(collection: Collection, request: points_pb2.DeleteRequest) -> command_pb2.DeletePoints:
    """Check a deletion."""
    command = command_pb2.DeletePoints(collection_uid=collection.uid)
    _take_selector(request, command)
    return command


def update_payload_command(
    collection: Collection, request: points_pb2.UpdatePayloadRequest
) -> command_pb2.UpdatePayloads:
    """Check a payload update."""
    command = command_pb2.UpdatePayloads(collection_uid=collection.uid)
    _take_selector(request, command)
    match request.WhichOneof("operation"):
        case "merge_json":
            validate_payload(request.merge_json, "merge_json")
            command.merge_json = request.merge_json
        case "replace_json":
            validate_payload(request.replace_json, "replace_json")
            command.replace_json = request.replace_json
        case "remove":
            if not request.remove.paths:
                raise InvalidArgumentError("names no path", field="remove.paths")
            parse_paths(request.remove.paths, "remove.paths")
            command.remove.paths.extend(request.remove.paths)
        case _:
            raise InvalidArgumentError("none of merge_json, replace_json and remove is set", field="operation")
    return command


def query_vector(values: bytes, parameters: VectorParameters, field: str) -> Float32Array:
    """A vector to search for, from float32 bytes; shape (dimension,)."""
    check_dimension(values, parameters, field)
    vector = np.frombuffer(values, dtype="<f4")
    # Almost every query's is such that float32 tells; what does not pass, NaN among them, is looked at with care.
    if ORDINARY_SQUARE_MIN < vector.dot(vector) < ORDINARY_SQUARE_MAX:
        return vector
    if not metrics.is_valid_norm(parameters.metric, metrics.norm(vector)):
        found = invalid_vector(vector[None, :], parameters.metric)
        raise InvalidVectorError(found[1] if found else "its length is at the edge of what is allowed", field=field)
    return vector


def vector_of(collection: Collection, name: str, field: str) -> VectorParameters:
    """Parameters of a vector of the collection. Raises UnknownVectorError."""
    index = collection.vectors.get(name)
    if index is None:
        known = ", ".join(repr(other) for other in collection.vectors)
        raise UnknownVectorError(f"the collection has no vector {name[:200]!r}, only {known}", field=field)
    return index.parameters


def _take_vectors(collection: Collection, point: points_pb2.Point, index: int, columns: dict[str, _Column]) -> None:
    carried = [("", "vector", point.vector)] if point.HasField("vector") else []
    if point.vectors:
        carried += [(name, f"vectors[{name!r}]", vector) for name, vector in point.vectors.items()]
    if not carried:
        raise InvalidVectorError("carries no vector", field=f"points[{index}]")
    for name, label, vector in carried:
        field = f"points[{index}].{label}"
        if not name and label != "vector":
            raise UnknownVectorError("the default vector travels in `vector`", field=field)
        column = columns.get(name)
        if column is None:
            column = columns[name] = _Column(vector_of(collection, name, field), label)
        values = dense_values(vector, field)
        check_dimension(values, column.parameters, field)
        column.indexes.append(index)
        column.rows.append(values)


def _take_payload(point: points_pb2.Point, stored: command_pb2.StoredPoint, index: int) -> None:
    kind = point.WhichOneof("payload")
    if kind == "payload_json":
        payload = point.payload_json
        if payload:
            validate_payload(payload, f"points[{index}].payload_json")
            stored.payload_json = payload
    elif kind == "payload_struct":
        stored.payload_json = payload_from_struct(point.payload_struct, f"points[{index}].payload_struct")


def _expiry(timestamp: Timestamp, field: str) -> int:
    if not (-62_135_596_800 <= timestamp.seconds <= 253_402_300_799 and 0 <= timestamp.nanos < 1_000_000_000):
        raise InvalidArgumentError(f"{timestamp.seconds}s {timestamp.nanos}ns is not a time", field=field)
    return max(EXPIRED_LONG_AGO_UNIX_MS, timestamp.seconds * 1000 + timestamp.nanos // 1_000_000)


def _take_selector(
    request: points_pb2.DeleteRequest | points_pb2.UpdatePayloadRequest,
    command: command_pb2.DeletePoints | command_pb2.UpdatePayloads,
) -> None:
    match request.WhichOneof("selector"):
        case "ids":
            check_ids(request.ids.ids, "ids.ids")
            command.ids.CopyFrom(request.ids)
        case "filter":
            compile_filter(request.filter)
            command.filter.CopyFrom(request.filter)
        case _:
            raise InvalidArgumentError("neither ids nor filter is set", field="selector")
