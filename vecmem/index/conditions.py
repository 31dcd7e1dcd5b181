"""The nodes of a compiled filter: each answers for one document and for all rows at once, and the same.

A test of a field reads one column (vecmem.index.column). Equality looks its values up; ranges are turned, exactly, into
closed intervals of int64 and of float64 and compared with numpy. numpy itself would compare int64 with a double by
rounding the integer, so the two never meet there.
"""
# ruff: noqa: D102 - Node and Test say what the methods of every class below do.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vecmem.index.column import ABSENT_CODE, Column, Mask, ValueKey, value_key
from vecmem.index.rfc3339 import NANOSECONDS, parse_time_ns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vecmem.index.field_path import Document, FieldPath, Scalar
    from vecmem.index.payload import PayloadTable

RowsOfIds: TypeAlias = Callable[[Sequence[str]], NDArray[np.int64]]
"""Finds the rows of those of the ids that exist, in any order."""

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True)
class Rows:
    """What a mask is computed over."""

    table: PayloadTable
    count: int
    of_ids: RowsOfIds


class Node(Protocol):
    """A condition on a point."""

    def matches(self, point_id: str, document: Document) -> bool:
        """Whether it holds for one point; `document` is its decoded payload."""
        ...

    def mask(self, rows: Rows) -> Mask:
        """Bool (rows.count,), owned by the caller."""
        ...

    def paths(self) -> Iterator[FieldPath]:
        """The paths whose columns `mask` reads; a path may come more than once."""
        ...


class Test(Protocol):
    """A condition on the values at a path; `values` is as in FieldPath.values."""

    def holds(self, values: tuple[Scalar, ...] | None) -> bool:
        """Whether it holds for the values of one document."""
        ...

    def mask(self, column: Column, row_count: int) -> Mask:
        """Bool (row_count,), owned by the caller."""
        ...


@dataclass(frozen=True)
class AllOf:
    """True when every child is."""

    children: tuple[Node, ...]

    def matches(self, point_id: str, document: Document) -> bool:
        return all(child.matches(point_id, document) for child in self.children)

    def mask(self, rows: Rows) -> Mask:
        if not self.children:
            return np.ones(rows.count, np.bool_)
        found = self.children[0].mask(rows)
        for child in self.children[1:]:
            found &= child.mask(rows)
        return found

    def paths(self) -> Iterator[FieldPath]:
        for child in self.children:
            yield from child.paths()


@dataclass(frozen=True)
class AnyOf:
    """True when some child is; negated, when none is."""

    children: tuple[Node, ...]
    negated: bool

    def matches(self, point_id: str, document: Document) -> bool:
        return any(child.matches(point_id, document) for child in self.children) is not self.negated

    def mask(self, rows: Rows) -> Mask:
        if not self.children:
            return np.full(rows.count, self.negated)
        found = self.children[0].mask(rows)
        for child in self.children[1:]:
            found |= child.mask(rows)
        return np.logical_not(found, out=found) if self.negated else found

    def paths(self) -> Iterator[FieldPath]:
        for child in self.children:
            yield from child.paths()


@dataclass(frozen=True)
class HasId:
    """True for these points."""

    ids: frozenset[str]

    def matches(self, point_id: str, document: Document) -> bool:  # noqa: ARG002 (a node's signature)
        return point_id in self.ids

    def mask(self, rows: Rows) -> Mask:
        found = np.zeros(rows.count, np.bool_)
        found[rows.of_ids(tuple(self.ids))] = True
        return found

    def paths(self) -> Iterator[FieldPath]:
        return iter(())


@dataclass(frozen=True)
class Field:
    """A test of the values at a path."""

    path: FieldPath
    test: Test

    def matches(self, point_id: str, document: Document) -> bool:  # noqa: ARG002 (a node's signature)
        return self.test.holds(self.path.values(document))

    def mask(self, rows: Rows) -> Mask:
        return self.test.mask(rows.table.column(self.path), rows.count)

    def paths(self) -> Iterator[FieldPath]:
        yield self.path


@dataclass(frozen=True)
class Equals:
    """Some value has one of the keys: match, any_of, none_of and is_null. Integers come with their equal doubles."""

    keys: frozenset[ValueKey]
    negated: bool

    def holds(self, values: tuple[Scalar, ...] | None) -> bool:
        return any(value_key(value) in self.keys for value in values or ()) is not self.negated

    def mask(self, column: Column, row_count: int) -> Mask:
        found = column.rows_with_codes(column.codes_with(self.keys), row_count)
        return ~found if self.negated else found


@dataclass(frozen=True)
class Exists:
    """The path is present; negated, it is not."""

    negated: bool

    def holds(self, values: tuple[Scalar, ...] | None) -> bool:
        return (values is not None) is not self.negated

    def mask(self, column: Column, row_count: int) -> Mask:
        codes = column.codes(row_count)
        found: Mask = codes == ABSENT_CODE if self.negated else codes != ABSENT_CODE
        return found


@dataclass(frozen=True)
class NumberRange:
    """Some number satisfies every bound that is set; bounds are finite, integers fit int64."""

    gt: int | float | None
    gte: int | float | None
    lt: int | float | None
    lte: int | float | None

    def holds(self, values: tuple[Scalar, ...] | None) -> bool:
        # Python compares int with float exactly.
        return any(
            (type(value) is int or type(value) is float)
            and (self.gt is None or value > self.gt)
            and (self.gte is None or value >= self.gte)
            and (self.lt is None or value < self.lt)
            and (self.lte is None or value <= self.lte)
            for value in values or ()
        )

    def mask(self, column: Column, row_count: int) -> Mask:
        codes = []
        direct = []
        integer_low, integer_high = self._integer_interval()
        # An interval beyond int64 holds none of its values; numpy 1 would round such a bound to compare it.
        if integer_low <= _INT64_MAX and integer_high >= _INT64_MIN:
            low, high = max(integer_low, _INT64_MIN), min(integer_high, _INT64_MAX)
            codes.append(_codes_between(column.integers.codes, column.integers.values, low, high))
            if column.direct_integers is not None and high > _INT64_MIN:
                direct.append(column.direct_integers.between(max(low, _INT64_MIN + 1), high, row_count))
        real_low, real_high = self._real_interval()
        codes.append(_codes_between(column.reals.codes, column.reals.values, real_low, real_high))
        if column.direct_reals is not None:
            direct.append(column.direct_reals.between(real_low, real_high, row_count))
        return _united(column, row_count, np.concatenate(codes), direct)

    def _integer_interval(self) -> tuple[int, int]:
        """The first and the last integer in the range."""
        low, high = _INT64_MIN, _INT64_MAX
        if self.gt is not None:
            low = max(low, math.floor(self.gt) + 1)
        if self.gte is not None:
            low = max(low, math.ceil(self.gte))
        if self.lt is not None:
            high = min(high, math.ceil(self.lt) - 1)
        if self.lte is not None:
            high = min(high, math.floor(self.lte))
        return low, high

    def _real_interval(self) -> tuple[float, float]:
        """The first and the last double in the range."""
        low, high = -math.inf, math.inf
        for bound, inclusive in ((self.gt, False), (self.gte, True)):
            if bound is not None:
                nearest = float(bound)
                # No double lies between an integer and the double nearest to it.
                inside = nearest > bound or (inclusive and nearest == bound)
                low = max(low, nearest if inside else math.nextafter(nearest, math.inf))
        for bound, inclusive in ((self.lt, False), (self.lte, True)):
            if bound is not None:
                nearest = float(bound)
                inside = nearest < bound or (inclusive and nearest == bound)
                high = min(high, nearest if inside else math.nextafter(nearest, -math.inf))
        return low, high


@dataclass(frozen=True)
class TimeRange:
    """A closed interval of nanoseconds since the epoch."""

    low_ns: int | None
    high_ns: int | None

    def holds(self, values: tuple[Scalar, ...] | None) -> bool:
        for value in values or ():
            time_ns = parse_time_ns(value) if type(value) is str else None
            if (
                time_ns is not None
                and (self.low_ns is None or time_ns >= self.low_ns)
                and (self.high_ns is None or time_ns <= self.high_ns)
            ):
                return True
        return False

    def mask(self, column: Column, row_count: int) -> Mask:
        times = column.times.values
        seconds, nanoseconds = times["seconds"], times["nanoseconds"]
        inside = np.ones(len(times), np.bool_)
        if self.low_ns is not None:
            low_seconds, low_rest = divmod(self.low_ns, NANOSECONDS)
            inside &= (seconds > low_seconds) | ((seconds == low_seconds) & (nanoseconds >= low_rest))
        if self.high_ns is not None:
            high_seconds, high_rest = divmod(self.high_ns, NANOSECONDS)
            inside &= (seconds < high_seconds) | ((seconds == high_seconds) & (nanoseconds <= high_rest))
        low = _INT64_MIN + 1 if self.low_ns is None else max(self.low_ns, _INT64_MIN + 1)
        high = _INT64_MAX if self.high_ns is None else min(self.high_ns, _INT64_MAX)
        direct = []
        if column.direct_times is not None and low <= _INT64_MAX and high > _INT64_MIN:
            direct.append(column.direct_times.between(low, high, row_count))
        return _united(column, row_count, column.times.codes[inside], direct)


def _united(column: Column, row_count: int, codes: NDArray[np.int32], direct: list[Mask | None]) -> Mask:
    """Rows that have one of the codes or stand in one of the masks, of which it makes its own."""
    masks = [mask for mask in direct if mask is not None]
    if len(codes) or not masks:
        masks.append(column.rows_with_codes(codes, row_count))
    for mask in masks[1:]:
        masks[0] |= mask
    return masks[0]


def _codes_between(codes: NDArray[np.int32], values: NDArray[Any], low: float, high: float) -> NDArray[np.int32]:
    """The codes whose value lies in the closed interval; bounds and values are of one type."""
    return codes[(values >= low) & (values <= high)]
