"""Filters: validated once, then asked of one document (`matches`) or of all rows at once (`mask`), the same answer.

Everything that can be wrong with a filter is found by `compile_filter`; what comes out of it never fails. It depends on the message alone,
so filters that come again are compiled once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vecmem import limits
from vecmem.errors import InvalidFilterError, LimitExceededError
from vecmem.index.column import ValueKey, value_key
from vecmem.index.conditions import (
    AllOf,
    AnyOf,
    Equals,
    Exists,
    Field,
    HasId,
    Node,
    NumberRange,
    Rows,
    TimeRange,
)
from vecmem.index.field_path import FieldPath
from vecmem.index.rfc3339 import NANOSECONDS
from vecmem.index.row_set import RowSet

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from vecmem.index.column import Mask
    from vecmem.index.conditions import RowsOfIds, Test
    from vecmem.index.field_path import Document
    from vecmem.index.payload import PayloadTable
    from vecmem.v1 import filter_pb2

_TIMESTAMP_SECONDS_MIN: Final = -62_135_596_800
_TIMESTAMP_SECONDS_MAX: Final = 253_402_300_799
_SHOWN_CHARACTERS_MAX: Final = 80
COMPILED_COUNT_MAX: Final = 1_024
COMPILED_BYTES_MAX: Final = 4_096
"""Larger filters are compiled each time they come: as objects they take some ten times as much."""

_compiled: OrderedDict[bytes, CompiledFilter] = OrderedDict()


@dataclass(frozen=True)
class CompiledFilter:
    """A validated filter. Filters of equal `key` pass the same points."""

    key: bytes
    """The message, as bytes."""
    root: Node
    paths: frozenset[FieldPath]
    """The paths whose columns `mask` reads."""

    def matches(self, point_id: str, document: Document) -> bool:
        """Whether one point passes; `document` is its decoded payload, without keys if it has none."""
        return self.root.matches(point_id, document)

    def mask(self, table: PayloadTable, row_count: int, rows_of_ids: RowsOfIds) -> Mask:
        """Which rows pass: bool (row_count,), the caller's own. What it says of rows without a point is of no account.

        Columns that `table.ensure_columns(self.paths)` has not built are built at once.

        Args:
            table: the payloads; rows beyond its own have none.
            row_count: rows wanted; those that `rows_of_ids` gives are below.
            rows_of_ids: finds the rows of point ids.
        """
        return self.root.mask(Rows(table, row_count, rows_of_ids))

    def row_set(self, table: PayloadTable, row_count: int, rows_of_ids: RowsOfIds) -> RowSet:
        """The rows that pass, as `mask` says, packed and counted. Rows without a point are counted where they happen to pass."""
        return RowSet.of_mask(self.mask(table, row_count, rows_of_ids))


def compile_filter(message: filter_pb2.Filter, field: str = "filter") -> CompiledFilter:
    """Validate a filter.

    Args:
        message: the filter.
        field: where it stands in the request; errors name the exact place below it.

    Raises:
        InvalidFilterError: an arm is not set, a path or a bound is malformed, a list that needs values is empty.
        LimitExceededError: it is deeper than 16, or has more than 1,000 nodes or 10,000 values or ids in one list.
    """
    key = message.SerializeToString(deterministic=True)
    known = _compiled.get(key)
    if known is not None:
        _compiled.move_to_end(key)
        return known
    root = _Compiler().node(message, field, 1)
    compiled = CompiledFilter(key, root, frozenset(root.paths()))
    if len(key) <= COMPILED_BYTES_MAX:
        _compiled[key] = compiled
        if len(_compiled) > COMPILED_COUNT_MAX:
            _compiled.popitem(last=False)
    return compiled


class _Compiler:
    """Turns messages into nodes, counting them."""

    def __init__(self) -> None:
        self._node_count = 0

    def node(self, message: filter_pb2.Filter, field: str, depth: int) -> Node:
        self._node_count += 1
        if depth > limits.FILTER_DEPTH_MAX:
            raise LimitExceededError(f"is more than {limits.FILTER_DEPTH_MAX} levels deep", field=field)
        if self._node_count > limits.FILTER_NODES_MAX:
            raise LimitExceededError(f"the filter has more than {limits.FILTER_NODES_MAX} nodes", field=field)
        kind = message.WhichOneof("kind")
        match kind:
            case "all_of":
                return AllOf(self._children(message.all_of, f"{field}.all_of", depth))
            case "any_of":
                return AnyOf(self._children(message.any_of, f"{field}.any_of", depth), negated=False)
            case "none_of":
                return AnyOf(self._children(message.none_of, f"{field}.none_of", depth), negated=True)
            case "field":
                return _compile_field(message.field, f"{field}.field")
            case "has_id":
                return _compile_ids(message.has_id, f"{field}.has_id")
            case _:
                raise InvalidFilterError("no arm is set", field=field)

    def _children(self, message: filter_pb2.FilterList, field: str, depth: int) -> tuple[Node, ...]:
        return tuple(
            self.node(child, f"{field}.filters[{position}]", depth + 1)
            for position, child in enumerate(message.filters)
        )


def _compile_ids(message: filter_pb2.PointIds, field: str) -> HasId:
    _check_count(len(message.ids), f"{field}.ids")
    for position, point_id in enumerate(message.ids):
        size_bytes = len(point_id.encode())
        if size_bytes == 0:
            raise InvalidFilterError("id is empty", field=f"{field}.ids[{position}]")
        if size_bytes > limits.POINT_ID_BYTES_MAX:
            raise LimitExceededError(
                f"id {point_id[:_SHOWN_CHARACTERS_MAX]!r}… has {size_bytes} bytes, more than "
                f"{limits.POINT_ID_BYTES_MAX}",
                field=f"{field}.ids[{position}]",
            )
    return HasId(frozenset(message.ids))


def _compile_field(message: filter_pb2.FieldCondition, field: str) -> Field:
    path = FieldPath.parse(message.path, f"{field}.path")
    kind = message.WhichOneof("test")
    if kind is None:
        raise InvalidFilterError(f"no test of {message.path!r} is set", field=field)
    return Field(path, _compile_test(message, kind, f"{field}.{kind}"))


def _compile_test(message: filter_pb2.FieldCondition, kind: str, field: str) -> Test:
    match kind:
        case "match":
            return Equals(frozenset(_match_keys(message.match, field)), negated=False)
        case "any_of":
            return Equals(_list_keys(message.any_of, field), negated=False)
        case "none_of":
            return Equals(_list_keys(message.none_of, field), negated=True)
        case "number_range":
            return _compile_number_range(message.number_range, field)
        case "time_range":
            return _compile_time_range(message.time_range, field)
        case "exists":
            return Exists(negated=not message.exists)
        case "is_null":
            return Equals(frozenset({value_key(None)}), negated=not message.is_null)
        case _:
            raise InvalidFilterError("unknown test", field=field)


def _match_keys(message: filter_pb2.MatchValue, field: str) -> list[ValueKey]:
    match message.WhichOneof("kind"):
        case "keyword":
            return [value_key(message.keyword)]
        case "integer":
            real = float(message.integer)
            exact = real == message.integer
            return [value_key(message.integer), value_key(real)] if exact else [value_key(message.integer)]
        case "boolean":
            return [value_key(message.boolean)]
        case _:
            raise InvalidFilterError("no arm is set", field=field)


def _list_keys(message: filter_pb2.MatchValues, field: str) -> frozenset[ValueKey]:
    field = f"{field}.values"
    if not message.values:
        raise InvalidFilterError("is empty", field=field)
    _check_count(len(message.values), field)
    keys: list[ValueKey] = []
    for position, value in enumerate(message.values):
        keys.extend(_match_keys(value, f"{field}[{position}]"))
    return frozenset(keys)


def _check_count(count: int, field: str) -> None:
    if count > limits.FILTER_VALUES_MAX:
        raise LimitExceededError(f"has {count} entries, more than {limits.FILTER_VALUES_MAX}", field=field)


def _compile_number_range(message: filter_pb2.NumberRange, field: str) -> NumberRange:
    def bound(name: str) -> int | float | None:
        if not message.HasField(name):  # type: ignore[arg-type]
            return None
        number: filter_pb2.Number = getattr(message, name)
        kind = number.WhichOneof("kind")
        if kind is None:
            raise InvalidFilterError("no arm is set", field=f"{field}.{name}")
        if kind == "integer":
            return number.integer
        if not math.isfinite(number.real):
            raise InvalidFilterError(f"bound {number.real} is not finite", field=f"{field}.{name}.real")
        return number.real

    bounds = NumberRange(bound("gt"), bound("gte"), bound("lt"), bound("lte"))
    if bounds == NumberRange(None, None, None, None):
        raise InvalidFilterError("no bound is set", field=field)
    return bounds


def _compile_time_range(message: filter_pb2.TimeRange, field: str) -> TimeRange:
    lows: list[int] = []
    highs: list[int] = []
    # An open bound is a closed one a nanosecond further in.
    for name, bounds, shift in (("gt", lows, 1), ("gte", lows, 0), ("lt", highs, -1), ("lte", highs, 0)):
        if message.HasField(name):  # type: ignore[arg-type]
            bounds.append(_timestamp_ns(getattr(message, name), f"{field}.{name}") + shift)
    if not lows and not highs:
        raise InvalidFilterError("no bound is set", field=field)
    return TimeRange(max(lows, default=None), min(highs, default=None))


def _timestamp_ns(message: Timestamp, field: str) -> int:
    if not _TIMESTAMP_SECONDS_MIN <= message.seconds <= _TIMESTAMP_SECONDS_MAX:
        raise InvalidFilterError(f"{message.seconds} seconds lie outside the years 1 to 9999", field=f"{field}.seconds")
    if not 0 <= message.nanos < NANOSECONDS:
        raise InvalidFilterError(f"{message.nanos} nanos are not within 0 to 999,999,999", field=f"{field}.nanos")
    return message.seconds * NANOSECONDS + message.nanos
