"""Payloads: JSON objects kept as the bytes they came in, and the columns that filters read.

What is validated once is trusted afterwards: the functions here that take stored bytes do not check them again. A
payload of no bytes means that the point has none, and reads as an object without keys.

What the JSON specification leaves open: of a key that comes twice the last one counts for filters and changes, and
the stored bytes keep both; `1` is an integer and `1.0` is not, but they compare equal.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import orjson
from google.protobuf import struct_pb2

from vecmem import limits
from vecmem.errors import InvalidArgumentError, InvalidPayloadError, LimitExceededError
from vecmem.index.column import Column, PayloadType
from vecmem.index.field_path import Document, FieldPath, drop_paths, keep_paths, parse_paths

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from vecmem.v1 import common_pb2

COLUMNS_MAX: Final = 64
"""Columns kept of one table that are not declared; more only while filters need them together."""
SLICE_ROWS: Final = 256
SLICE_BYTES: Final = 256 * 1024
"""A slice of column building ends at whichever comes first: about 1 ms."""

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_WHOLE_DOUBLE_MAX: Final = 2**53
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_LONG_INTEGER: Final = re.compile(rb"(?:\A|(?<=[\[:,\s]))-?[0-9]{19,}(?![0-9.eE])")
_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_DIGITS: Final = b"0" * 19
_BRACKETS_TO_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))


def decode_payload(raw: bytes) -> Document:
    """The object in a validated payload; no bytes give an object without keys."""
    document: Document = orjson.loads(raw) if raw else {}
    return document


def validate_payload(raw: bytes, field: str) -> None:
    """Check a payload as it comes from outside: a JSON object in UTF-8 whose integers fit int64.

    NaN and infinities, numbers that a double cannot hold, lone surrogates and a byte order mark are refused.

    Args:
        raw: the bytes.
        field: where they stand in the request, for the error.

    Raises:
        LimitExceededError: more than 1 MiB, or nested more than 64 levels deep, the object itself being the first.
        InvalidPayloadError: anything else is wrong.
    """
    document = parse_json(
        raw, field, limits.PAYLOAD_BYTES_MAX, limits.PAYLOAD_DEPTH_MAX, error_class=InvalidPayloadError
    )
    if type(document) is not dict:
        raise InvalidPayloadError("is not a JSON object", field=field)


def parse_json(
    raw: bytes,
    field: str,
    bytes_max: int,
    depth_max: int,
    error_class: type[InvalidArgumentError] = InvalidArgumentError,
) -> Any:
    """The JSON value that a text in UTF-8 is. It is as strict as `validate_payload` says, whatever its type.

    Args:
        raw: the bytes.
        field: where they stand in the request, for the error.
        bytes_max: how many bytes they may be.
        depth_max: how deep it may be nested, an object or array at the top being the first level.
        error_class: what is raised for a text that is wrong.

    Raises:
        LimitExceededError: it is too long or too deep.
        InvalidArgumentError: anything else is wrong; the message names the place where it is known.
    """
    if len(raw) > bytes_max:
        raise _too_large(len(raw), field, bytes_max)
    # Depth first, where there are brackets enough: the parser gives up at its own depth with its own error.
    if raw.count(b"{") + raw.count(b"[") > depth_max:
        _check_depth(raw, field, depth_max)
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise error_class(f"is not JSON: {_undecodable(raw) or error}", field=field) from error
    # orjson reads up to uint64 as integers and makes the rest doubles, so the text is what tells.
    if _LONG_DIGITS in raw.translate(_DIGITS_TO_ZERO):
        _check_integers(raw, field, error_class)
    return value


def payload_from_struct(struct: struct_pb2.Struct, field: str = "payload_struct") -> bytes:
    """Encode a Struct as a payload, keys sorted; whole numbers within ±2^53 become integers.

    Raises:
        InvalidPayloadError: a number is NaN or infinite, or a value has no kind.
        LimitExceededError: the result is over a limit of `validate_payload`.
    """
    return _encode(_struct_object(struct, field, 1), field, orjson.OPT_SORT_KEYS)


def payload_to_struct(raw: bytes) -> struct_pb2.Struct:
    """Decode a stored payload to a Struct; every number becomes the nearest double.

    protobuf parsers give up at 100 nested messages and an object takes three of them, so a reader may refuse a Struct
    of a payload nested more than about 30 levels deep.
    """
    struct = struct_pb2.Struct()
    struct.update(decode_payload(raw))
    return struct


def merge_payload(old: bytes, update: bytes, field: str = "merge_json") -> bytes:
    """The old payload with the update's top-level keys added or overwritten, encoded anew.

    Raises LimitExceededError if the result is larger than 1 MiB.
    """
    return _encode(decode_payload(old) | decode_payload(update), field)


def remove_paths(old: bytes, paths: Iterable[FieldPath], field: str = "remove") -> bytes:
    """The old payload without what stands at the paths (`drop_paths`); the very same bytes if nothing does.

    Raises LimitExceededError if the result is larger than 1 MiB: encoding anew may spell a number longer.
    """
    document = decode_payload(old)
    found = [path for path in paths if path.values(document) is not None]
    return _encode(drop_paths(document, found), field) if found else old


@dataclass(frozen=True)
class PayloadSelection:
    """A validated PayloadSelector."""

    include: tuple[FieldPath, ...] | None = None
    exclude: tuple[FieldPath, ...] | None = None
    nothing: bool = False

    def apply(self, raw: bytes) -> bytes:
        """The chosen part of a stored payload; a whole payload is passed on as it is, without being decoded."""
        if self.nothing or not raw:
            return b""
        if self.include is not None:
            return orjson.dumps(keep_paths(orjson.loads(raw), self.include))
        if self.exclude:
            return orjson.dumps(drop_paths(orjson.loads(raw), self.exclude))
        return raw


def compile_selector(selector: common_pb2.PayloadSelector, field: str = "with_payload") -> PayloadSelection:
    """Validate a selector; one without an arm chooses all. Raises InvalidFilterError as `parse_paths`."""
    kind = selector.WhichOneof("keys")
    if kind == "include":
        return PayloadSelection(include=parse_paths(selector.include.paths, f"{field}.include"))
    if kind == "exclude":
        return PayloadSelection(exclude=parse_paths(selector.exclude.paths, f"{field}.exclude"))
    return PayloadSelection(nothing=kind == "all" and not selector.all)


def select_payload(raw: bytes, selector: common_pb2.PayloadSelector) -> bytes:
    """Apply a selector once; for many payloads compile it first. Raises InvalidFilterError as `compile_selector`."""
    return compile_selector(selector).apply(raw)


def _too_large(size_bytes: int, field: str, bytes_max: int = limits.PAYLOAD_BYTES_MAX) -> LimitExceededError:
    return LimitExceededError(f"has {size_bytes} bytes, more than {bytes_max}", field=field)


def _too_deep(field: str, depth_max: int = limits.PAYLOAD_DEPTH_MAX) -> LimitExceededError:
    return LimitExceededError(f"is nested more than {depth_max} levels deep", field=field)


def _undecodable(raw: bytes) -> str:
    """Where a text is no UTF-8, which the parser does not say; empty: it is."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8: {error.reason}"
    return ""


def _check_depth(raw: bytes, field: str, depth_max: int) -> None:
    """Sum the brackets outside of strings; on text that is not JSON the outcome is any, and the parser refuses it."""
    steps = _STRING.sub(b"", raw).translate(_BRACKETS_TO_STEPS, _NOT_BRACKETS)
    if steps and np.frombuffer(steps, np.int8).cumsum(dtype=np.int64).max() > depth_max:
        raise _too_deep(field, depth_max)


def _check_integers(raw: bytes, field: str, error_class: type[InvalidArgumentError]) -> None:
    """Look at the integers of 19 digits and more of a text that is JSON."""
    for match in _LONG_INTEGER.finditer(_STRING.sub(b'""', raw)):
        text = match.group()
        # JSON has no leading zeros, so 20 digits are too many whatever they are.
        if len(text.lstrip(b"-")) > 19 or not _INT64_MIN <= int(text) <= _INT64_MAX:
            shown = text[:40].decode() + ("…" if len(text) > 40 else "")
            raise error_class(f"integer {shown} at byte {_place(raw, match.group())} does not fit int64", field=field)


def _place(raw: bytes, integer: bytes) -> int:
    """Where a text has an integer, outside of its strings."""
    blanked = _STRING.sub(lambda string: b'"' * len(string.group()), raw)
    return next(match.start() for match in _LONG_INTEGER.finditer(blanked) if match.group() == integer)


def _encode(document: Document, field: str, option: int = 0) -> bytes:
    raw = orjson.dumps(document, option=option)
    if len(raw) > limits.PAYLOAD_BYTES_MAX:
        raise _too_large(len(raw), field)
    return raw


def _struct_object(struct: struct_pb2.Struct, field: str, depth: int) -> Document:
    if depth > limits.PAYLOAD_DEPTH_MAX:
        raise _too_deep(field)
    return {key: _struct_value(value, f"{field}.{key}", depth) for key, value in struct.fields.items()}


def _struct_value(value: struct_pb2.Value, field: str, depth: int) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            if not np.isfinite(number):
                raise InvalidPayloadError(f"number {number} is not finite", field=field)
            return int(number) if number.is_integer() and abs(number) <= _WHOLE_DOUBLE_MAX else number
        case "bool_value":
            return value.bool_value
        case "null_value":
            return None
        case "struct_value":
            return _struct_object(value.struct_value, field, depth + 1)
        case "list_value":
            if depth >= limits.PAYLOAD_DEPTH_MAX:
                raise _too_deep(field)
            values = value.list_value.values
            return [_struct_value(item, f"{field}[{index}]", depth + 1) for index, item in enumerate(values)]
        case _:
            raise InvalidPayloadError("value has no kind", field=field)


@dataclass
class _KeptColumn:
    column: Column
    built_rows: int
    """Rows below are in the column and maintained; the rest is still to be read."""


class PayloadTable:
    """The payloads of one collection by row number, and columns over them for filters.

    A column is built at the first use of its path and follows every change of the rows it has from then on; the least recently used go
    when there are more than `columns_max`, but for those that somebody still needs (`ensure_columns`, `pinned`). A declared one
    (`declare`) is built ahead of that, takes new rows as they come, and stays. Not safe for threads: the store's event loop owns it.
    """

    def __init__(self, columns_max: int = COLUMNS_MAX, slice_rows: int = SLICE_ROWS) -> None:
        self._payloads: list[bytes] = []
        self._payload_bytes = 0
        self._columns_max = columns_max
        self._slice_rows = slice_rows
        self._columns: OrderedDict[FieldPath, _KeptColumn] = OrderedDict()
        self._declared: dict[FieldPath, PayloadType] = {}
        self.change_count = 0
        """Grows with every change of a row's payload."""
        # How many running builds and blocks of `pinned` need a path: such a column is not dropped.
        self._wanted: Counter[FieldPath] = Counter()

    @property
    def row_count(self) -> int:
        """Rows ever set: one more than the highest."""
        return len(self._payloads)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads together."""
        return self._payload_bytes

    @property
    def column_count(self) -> int:
        """Columns kept, half-built ones included."""
        return len(self._columns)

    @property
    def by_row(self) -> list[bytes]:
        """All payloads, as `get` has them, not to be changed; rows beyond its end have none."""
        return self._payloads

    @property
    def declared(self) -> Mapping[FieldPath, PayloadType]:
        """Paths whose columns stay."""
        return self._declared

    def columns(self) -> dict[FieldPath, Column]:
        """Columns kept, those half built as far as they are. Valid until the next change."""
        return {path: kept.column for path, kept in self._columns.items()}

    def declare(self, declared: Mapping[FieldPath, PayloadType]) -> None:
        """The columns to keep from now on, all of them. What was declared otherwise before goes, unless somebody needs it.

        It builds nothing: `build_declared` does.
        """
        before, self._declared = self._declared, dict(declared)
        for path, payload_type in before.items():
            # One that is needed now stays as it is, whatever its type: it answers right all the same.
            if declared.get(path) is not payload_type and not self._wanted[path]:
                self._columns.pop(path, None)
        for path, payload_type in declared.items():
            if path not in self._columns:
                self._columns[path] = _KeptColumn(Column(payload_type), 0)

    def build_declared(self) -> Generator[None, None, None]:
        """Build the declared columns as far as they are missing, a slice between two yields, like `ensure_columns`."""
        return self.ensure_columns(self._declared)

    @property
    def declared_complete(self) -> bool:
        """Whether every declared column has all rows."""
        return all(self._columns[path].built_rows >= len(self._payloads) for path in self._declared)

    @property
    def size_bytes(self) -> int:
        """Of all payloads, without columns."""
        return self._payload_bytes

    def get(self, row: int) -> bytes:
        """The payload of a row; empty if it has none."""
        return self._payloads[row] if row < len(self._payloads) else b""

    def set(self, row: int, payload: bytes) -> None:
        """Give a row a validated payload; empty: none."""
        if row == len(self._payloads):
            # A declared column that has all rows goes on having them.
            for path in self._declared:
                kept = self._columns[path]
                kept.built_rows += kept.built_rows == row
        if row >= len(self._payloads):
            self._payloads.extend([b""] * (row + 1 - len(self._payloads)))
        self._payload_bytes += len(payload) - len(self._payloads[row])
        self._payloads[row] = payload
        self.change_count += 1
        document: Document | None = None
        for path, kept in self._columns.items():
            if row < kept.built_rows:
                if document is None:
                    document = decode_payload(payload)
                kept.column.set(row, path.values(document))

    def load(self, payloads: list[bytes]) -> None:
        """Fill an empty table, row by row. The columns of all paths are still to be built."""
        self._payloads = payloads
        self._payload_bytes = sum(map(len, payloads))
        self.change_count += 1

    def clear(self, row: int) -> None:
        """Take a row's payload away, if it has one; for many rows there is `clear_rows`."""
        if row < len(self._payloads):
            self._payload_bytes -= len(self._payloads[row])
            self._payloads[row] = b""
            self.change_count += 1
            for kept in self._columns.values():
                if row < kept.built_rows:
                    kept.column.set(row, None)

    def clear_rows(self, rows: NDArray[np.int64]) -> None:
        """Take the payloads of distinct rows away. Nothing is decoded; each column costs about a table lookup for each row."""
        rows = rows[rows < len(self._payloads)]
        self.change_count += 1
        for row in rows.tolist():
            self._payload_bytes -= len(self._payloads[row])
            self._payloads[row] = b""
        for kept in self._columns.values():
            # What is not built yet is absent.
            kept.column.clear(rows)

    def ensure_columns(self, paths: Iterable[FieldPath]) -> Generator[None, None, None]:
        """Build the columns that are missing, a slice between two yields; anything may change meanwhile.

        When the generator is exhausted the columns are complete, however many, and stay so until the caller lets other work run; around
        more than that, use `pinned`.
        """
        wanted = tuple(dict.fromkeys(paths))
        with self._wanting(wanted):
            self._drop_columns(room=0)
            for path in wanted:
                self._keep(path)
            while missing := [path for path in wanted if self._columns[path].built_rows < len(self._payloads)]:
                self._build_slice(missing)
                yield

    @contextmanager
    def pinned(self, paths: Iterable[FieldPath]) -> Iterator[None]:
        """Columns of these paths are not dropped inside the block once they are there, whatever else runs.

        Those beyond `columns_max` go when it ends. It builds nothing: `ensure_columns` does.
        """
        try:
            with self._wanting(tuple(dict.fromkeys(paths))):
                yield
        finally:
            self._drop_columns(room=0)

    def column(self, path: FieldPath) -> Column:
        """The complete column of a path; what is missing of it is built at once."""
        kept = self._keep(path)
        while kept.built_rows < len(self._payloads):
            self._build_slice([path])
        return kept.column

    def _keep(self, path: FieldPath) -> _KeptColumn:
        """The column of a path, now the most recently used; made if need be, which may drop others."""
        kept = self._columns.get(path)
        if kept is None:
            self._drop_columns(room=1)
            kept = self._columns[path] = _KeptColumn(Column(self._declared.get(path, PayloadType.UNKNOWN)), 0)
        self._columns.move_to_end(path)
        return kept

    @contextmanager
    def _wanting(self, paths: tuple[FieldPath, ...]) -> Iterator[None]:
        self._wanted.update(paths)
        try:
            yield
        finally:
            self._wanted.subtract(paths)
            self._wanted = +self._wanted

    def _drop_columns(self, room: int) -> None:
        """Drop what nobody wants, least recently used first, until there is room for so many more, if that is possible."""
        evictable = [path for path in self._columns if path not in self._declared]
        excess = len(evictable) + room - self._columns_max
        if excess > 0:
            for path in [path for path in evictable if not self._wanted[path]][:excess]:
                del self._columns[path]

    def _build_slice(self, paths: list[FieldPath]) -> None:
        """Take a slice of rows into those of the columns that have come least far; new ones go on together."""
        start = min(self._columns[path].built_rows for path in paths)
        behind = [(path, self._columns[path]) for path in paths if self._columns[path].built_rows == start]
        stop = min(start + self._slice_rows, len(self._payloads))
        size_bytes = 0
        row = start
        while row < stop and size_bytes < SLICE_BYTES:
            payload = self._payloads[row]
            if payload:
                size_bytes += len(payload)
                document = orjson.loads(payload)
                for path, kept in behind:
                    kept.column.set(row, path.values(document))
            row += 1
        for _, kept in behind:
            kept.built_rows = row
