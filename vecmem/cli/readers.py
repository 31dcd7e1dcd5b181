"""Rows of files as points, and points in batches.

Everything streams: memory does not grow with the file. A row that is not a point comes out as an `InvalidRow` that
names file and line; whether to stop there or to skip it is for the caller to say. A source is a file of records, a file
of vectors, or one of each whose rows belong together.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vecmem.cli.files import Metric, Record, count_records, is_matrix, open_lines, open_matrix, read_records
from vecmem.errors import InvalidArgumentError
from vecmem.limits import POINT_ID_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FloatMatrix = npt.NDArray[np.float32]

_ROWS_PER_READ: Final = 1_024


@dataclass(frozen=True)
class Source:
    """Files to read and how their rows become points."""

    path: Path
    vectors: Path | None = None
    """Vectors of the records in `path`, row-aligned: .npy, or HDF5 with a dataset `train`."""
    payloads: Path | None = None
    """Records of the vectors in `path`, row-aligned: JSON lines or Parquet."""
    ids: Path | None = None
    """Ids, one a line, row-aligned."""
    row_ids: bool = False
    """Take row numbers, from 0, as ids."""
    id_field: str = "id"
    vector_field: str = "vector"


@dataclass(frozen=True)
class Row:
    """One point as read; `number` counts from 1, as editors count lines."""

    number: int
    id: str
    vector: npt.NDArray[Any]
    payload: dict[str, Any]


@dataclass(frozen=True)
class InvalidRow:
    """One row that is not a point."""

    path: Path
    number: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.number}: {self.message}"


@dataclass(frozen=True)
class Batch:
    """Points to write at once: `vectors` is (len(ids), dimension) float32; the rest is row-aligned with it."""

    ids: list[str]
    vectors: FloatMatrix
    payloads: list[dict[str, Any]]
    numbers: list[int]


def count_rows(source: Source) -> int:
    """Rows of the source, invalid ones included."""
    matrix = source.path if is_matrix(source.path) else source.vectors
    if matrix is None:
        return count_records(source.path)
    with open_matrix(matrix) as rows:
        return int(rows.shape[0])


def read_rows(source: Source) -> Iterator[Row | InvalidRow]:
    """All rows in order.

    Raises:
        InvalidArgumentError: the files do not go together (their row counts differ, for instance), or one is not what
            its name says.
        ConfigurationError: reading it needs an extra that is not installed.
    """
    matrix_path, record_path = _sides(source)
    with ExitStack() as stack:
        matrix = stack.enter_context(open_matrix(matrix_path)) if matrix_path else None
        records = read_records(record_path) if record_path else None
        ids = iter(stack.enter_context(open_lines(source.ids))) if source.ids else None
        named = record_path or source.path
        for index, record, vector in _aligned(records, matrix, named):
            line = next(ids, None) if ids is not None else None
            if ids is not None and line is None:
                message = f"{source.ids}: has {index} ids, but there are more rows"
                raise InvalidArgumentError(message)
            number = record.number if record is not None else index + 1
            try:
                yield _row(source, index, number, record, vector, line)
            except _NotAPointError as error:
                yield InvalidRow(named, number, str(error))
        if ids is not None and next(ids, None) is not None:
            message = f"{source.ids}: has more ids than there are rows"
            raise InvalidArgumentError(message)


def batches(
    rows: Iterator[Row | InvalidRow], *, size: int, dimension: int | None, metric: Metric, path: Path
) -> Iterator[Batch | InvalidRow]:
    """Gather rows into batches of at most `size`, checking every vector; the order of rows is kept.

    Args:
        rows: as from read_rows.
        size: rows a batch.
        dimension: elements that each vector must have; None: as many as the first one.
        metric: zero vectors are invalid under cosine.
        path: file to name for an invalid vector.
    """
    gathered: list[Row] = []

    def flush() -> Iterator[Batch]:
        if gathered:
            stacked = np.stack([row.vector for row in gathered]).astype(np.float32, copy=False)
            yield Batch(
                [row.id for row in gathered],
                stacked,
                [row.payload for row in gathered],
                [row.number for row in gathered],
            )
            gathered.clear()

    for row in rows:
        invalid = row if isinstance(row, InvalidRow) else None
        if isinstance(row, Row):
            wrong = _wrong_vector(row.vector, dimension, metric)
            invalid = InvalidRow(path, row.number, wrong) if wrong else None
        if invalid is not None:
            yield from flush()
            yield invalid
        elif isinstance(row, Row):
            dimension = dimension or len(row.vector)
            gathered.append(row)
            if len(gathered) == size:
                yield from flush()
    yield from flush()


def _sides(source: Source) -> tuple[Path | None, Path | None]:
    """The file of vectors and the file of records."""
    if is_matrix(source.path):
        if source.vectors is not None:
            message = f"{source.path} holds vectors already; --vectors goes with a file of records"
            raise InvalidArgumentError(message)
        if source.payloads is not None and is_matrix(source.payloads):
            message = f"{source.payloads}: payloads are JSON lines or Parquet"
            raise InvalidArgumentError(message)
        return source.path, source.payloads
    if source.payloads is not None:
        message = f"{source.path} holds payloads already; --payloads goes with a file of vectors"
        raise InvalidArgumentError(message)
    if source.vectors is not None and not is_matrix(source.vectors):
        message = f"{source.vectors}: vectors are .npy or HDF5"
        raise InvalidArgumentError(message)
    return source.vectors, source.path


def _aligned(
    records: Iterator[Record] | None, matrix: Any | None, named: Path
) -> Iterator[tuple[int, Record | None, npt.NDArray[Any] | None]]:
    """Rows of both sides together, by index from 0; a difference in length raises InvalidArgumentError at its end."""
    if matrix is None:
        for index, record in enumerate(records or ()):
            yield index, record, None
        return
    row_count = int(matrix.shape[0])
    for start in range(0, row_count, _ROWS_PER_READ):
        # One read a block: h5py is slow by the row, and only the block is in memory.
        for offset, vector in enumerate(np.asarray(matrix[start : start + _ROWS_PER_READ])):
            beside = next(records, None) if records is not None else None
            if records is not None and beside is None:
                message = f"{named}: has {start + offset} rows, but there are {row_count} vectors"
                raise InvalidArgumentError(message)
            yield start + offset, beside, vector
    if records is not None and next(records, None) is not None:
        message = f"{named}: has more rows than the {row_count} vectors"
        raise InvalidArgumentError(message)


class _NotAPointError(Exception):
    """A row is no point; the text says why."""


def _row(
    source: Source,
    index: int,
    number: int,
    record: Record | None,
    vector: npt.NDArray[Any] | None,
    id_line: bytes | None,
) -> Row:
    """One point out of what the files say about it. Raises _NotAPointError."""
    if record is not None and record.wrong:
        raise _NotAPointError(record.wrong)
    payload = record.content if record is not None else {}
    identifier: object
    if id_line is not None:
        identifier = id_line.rstrip(b"\r\n").decode(errors="surrogateescape")
    elif source.row_ids or record is None:
        identifier = str(index)
    else:
        identifier = _take(payload, source.id_field, "id")
    if vector is None:
        vector = _parse_vector(_take(payload, source.vector_field, "vector"), source.vector_field)
    return Row(number, _parse_id(identifier), vector, payload)


def _take(payload: dict[str, Any], field: str, role: str) -> object:
    if payload.get(field) is None:
        message = f"has no {field!r} to be the point's {role}"
        raise _NotAPointError(message)
    return payload.pop(field)


def _parse_id(identifier: object) -> str:
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    try:
        if isinstance(identifier, str) and 1 <= len(identifier.encode()) <= POINT_ID_BYTES_MAX:
            return identifier
    except UnicodeEncodeError as error:
        message = "the id is not valid UTF-8"
        raise _NotAPointError(message) from error
    message = f"an id is a string of 1 to {POINT_ID_BYTES_MAX} bytes, not {identifier!r:.80}"
    raise _NotAPointError(message)


def _parse_vector(values: object, field: str) -> npt.NDArray[Any]:
    # asarray would take "1" and true for numbers: they are somebody's mistake.
    if not isinstance(values, list) or not all(type(value) in {int, float} for value in values):
        message = f"{field!r} is not a list of numbers"
        raise _NotAPointError(message)
    try:
        return np.asarray(values, dtype=np.float64)
    except OverflowError as error:
        message = f"{field!r} has a number that is too large"
        raise _NotAPointError(message) from error


def _wrong_vector(vector: npt.NDArray[Any], dimension: int | None, metric: Metric) -> str:
    """What is wrong with a vector; empty: nothing."""
    if vector.ndim != 1 or not len(vector) or (dimension is not None and len(vector) != dimension):
        return f"the vector has {vector.size} elements, not {dimension}" if dimension else "the vector is empty"
    with np.errstate(over="ignore"):
        single = vector.astype(np.float32)
    if not np.isfinite(single).all():
        return "the vector has an element that is NaN, infinite or beyond float32"
    if metric == "cosine" and not single.any():
        return "the vector is zero, which has no direction to compare by cosine"
    return ""
