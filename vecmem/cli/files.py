"""The kinds of file that points are read from: JSON lines, NumPy, ann-benchmarks HDF5 and Parquet.

A file of records (JSON lines, also gzipped; Parquet) is read record by record, a file of vectors (.npy, HDF5) by
slices: neither is ever whole in memory. h5py and pyarrow, the extra `import`, are imported when a file needs them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import IO, TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np

from vecmem.errors import ConfigurationError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Metric = Literal["cosine", "dot", "euclidean"]

METRIC_OF_DISTANCE: Final[dict[str, Metric]] = {
    "angular": "cosine",
    "cosine": "cosine",
    "euclidean": "euclidean",
    "l2": "euclidean",
    "dot": "dot",
    "ip": "dot",
    "inner_product": "dot",
}
"""How ann-benchmarks and its relatives name distances."""

_MATRIX_SUFFIXES: Final = (".npy", ".hdf5", ".h5")
_RECORD_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")


@dataclass(frozen=True)
class Record:
    """One record; `number` is its line, or its row counted from 1. `wrong` says why it is none; empty: it is one."""

    number: int
    content: dict[str, Any]
    wrong: str = ""


def is_matrix(path: Path) -> bool:
    """Whether a file holds vectors alone (.npy, HDF5). Raises InvalidArgumentError for a name of no known kind."""
    name = path.name.lower()
    if name.endswith(_MATRIX_SUFFIXES):
        return True
    if name.endswith(_RECORD_SUFFIXES):
        return False
    known = ", ".join(_RECORD_SUFFIXES + _MATRIX_SUFFIXES)
    message = f"{path}: unknown kind of file; known are {known}"
    raise InvalidArgumentError(message)


def metric_of(path: Path) -> Metric | None:
    """The metric that an HDF5 file declares in its attribute `distance` or at the end of its name, if it does."""
    if path.suffix.lower() not in {".hdf5", ".h5"}:
        return None
    with _hdf5(path) as file:
        declared = file.attrs.get("distance", path.stem.rpartition("-")[2])
    if isinstance(declared, bytes):
        declared = declared.decode()
    return METRIC_OF_DISTANCE.get(str(declared).lower())


def open_lines(path: Path) -> AbstractContextManager[IO[bytes]]:
    """Open a text file, gzipped if its name says so."""
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return open(path, "rb")


def count_records(path: Path) -> int:
    """Records of a file. JSON lines are read once from end to end."""
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            return int(file.metadata.num_rows)
    with open_lines(path) as file:
        return sum(1 for line in _lines(path, file) if line.strip())


def read_records(path: Path) -> Iterator[Record]:
    """Each record of JSON lines (blank lines are passed over) or Parquet, in order. Raises InvalidArgumentError."""
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_json_lines(path)


@contextmanager
def open_matrix(path: Path) -> Iterator[Any]:
    """An array (rows, dimension) of numbers, to slice: a .npy file or the dataset `train` of an HDF5 file.

    Raises:
        InvalidArgumentError: it is not that.
        ConfigurationError: h5py is not installed.
    """
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            message = f"{path}: is not a NumPy array of numbers: {error}"
            raise InvalidArgumentError(message) from error
        yield _checked_matrix(path, array)
        return
    with _hdf5(path) as file:
        if "train" not in file:
            message = f"{path}: has no dataset 'train'; it has {', '.join(file) or 'none'}"
            raise InvalidArgumentError(message)
        yield _checked_matrix(path, file["train"])


def _refuse_constant(name: str) -> None:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"{path}: is not a whole gzip file: {error}"
        raise InvalidArgumentError(message) from error


def _read_json_lines(path: Path) -> Iterator[Record]:
    with open_lines(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if not line.strip():
                continue
            try:
                # The json module, for it keeps integers of any size exact: the server judges what it can store.
                content = json.loads(line, parse_constant=_refuse_constant)
            except (ValueError, RecursionError) as error:
                yield Record(number, {}, f"is not JSON: {error}")
                continue
            if isinstance(content, dict):
                yield Record(number, content)
            else:
                yield Record(number, {}, "is not a JSON object")


def _read_parquet(path: Path) -> Iterator[Record]:
    number = 0
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=1_024):
            for record in batch.to_pylist():
                number += 1
                try:
                    yield Record(number, {key: _json_value(value) for key, value in record.items()})
                except TypeError as error:
                    yield Record(number, {}, str(error))


def _json_value(value: object) -> object:
    """A Parquet value as JSON has it: times as RFC 3339 strings. Raises TypeError for what JSON lacks."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat() + ("" if value.tzinfo else "Z")
    if isinstance(value, date):
        return value.isoformat()
    message = f"has a value of type {type(value).__name__}, which JSON lacks"
    raise TypeError(message)


def _checked_matrix(path: Path, array: Any) -> Any:
    if len(array.shape) != 2 or array.dtype.kind not in "fiu":
        message = f"{path}: vectors are a 2-D array of numbers, not {len(array.shape)}-D of {array.dtype}"
        raise InvalidArgumentError(message)
    return array


def _hdf5(path: Path) -> AbstractContextManager[Any]:
    try:
        import h5py
    except ImportError as error:
        message = f"{path}: reading HDF5 needs h5py: pip install 'vecmem[import]'"
        raise ConfigurationError(message) from error
    try:
        return cast("AbstractContextManager[Any]", h5py.File(path, "r"))
    except OSError as error:
        message = f"{path}: is not HDF5: {error}"
        raise InvalidArgumentError(message) from error


def _parquet(path: Path) -> AbstractContextManager[Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        message = f"{path}: reading Parquet needs pyarrow: pip install 'vecmem[import]'"
        raise ConfigurationError(message) from error
    try:
        return cast("AbstractContextManager[Any]", parquet.ParquetFile(path))
    except pa.ArrowInvalid as error:
        message = f"{path}: is not Parquet: {error}"
        raise InvalidArgumentError(message) from error
