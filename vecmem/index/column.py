"""One payload path over all rows, dictionary-encoded, so that a filter costs a table lookup per row.

Invariants: `codes[row]` is 0 for a row without the path, else the code of its values; rows with equal values, type
by type, share a code (1, 1.0 and true are three values); a code lives while a row has it. A freed code is taken
again only after the postings that mention it are gone (`_reclaim`), so postings may name dead codes but never wrong
ones, and memory stays within about twice what the live values need, whatever the churn.

The encoding is the usual one of column stores (Abadi et al., "The Design and Implementation of Modern Column-Oriented
Database Systems", section 4), with one code per set of values instead of one per value, because a path may hold many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vecmem.index.rfc3339 import NANOSECONDS, parse_time_ns

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from vecmem.index.field_path import Scalar

Mask: TypeAlias = NDArray[np.bool_]
Bound: TypeAlias = tuple[int, int] | tuple[float, float]
ValueKey: TypeAlias = str | tuple[type, Any]
"""Identity of one value: a string is its own, the rest carry their type."""

ABSENT_CODE: Final = 0
_CAPACITY_MIN: Final = 1_024
_DEAD_CODES_MIN: Final = 1_024
TIME_DTYPE: Final = np.dtype([("seconds", np.int64), ("nanoseconds", np.int32)])
"""Nanoseconds since the epoch overflow int64 outside the years 1677 to 2262."""


def value_key(value: Scalar) -> ValueKey:
    """The key under which a value is found; different types never share one."""
    return value if type(value) is str else (type(value), value)


class Postings:
    """Pairs (code, value) of one type, in no order: what a range test runs over."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._count = 0
        self._codes = np.zeros(0, np.int32)
        self._values = np.zeros(0, dtype)

    @property
    def codes(self) -> NDArray[np.int32]:
        """int32 (count,); the codes, dead ones included. A view: use it at once."""
        return self._codes[: self._count]

    @property
    def values(self) -> NDArray[Any]:
        """(count,) of the type given; the values. A view: use it at once."""
        return self._values[: self._count]

    def append(self, code: int, value: Any) -> None:
        """Add one pair."""
        if self._count == len(self._codes):
            self._codes = _grown(self._codes, self._count + 1)
            self._values = _grown(self._values, self._count + 1)
        self._codes[self._count] = code
        self._values[self._count] = value
        self._count += 1

    def keep(self, alive: Mask) -> None:
        """Forget the pairs whose code is not alive; bool (code_count,)."""
        kept = alive[self.codes]
        self._codes, self._values = self.codes[kept], self.values[kept]
        self._count = len(self._codes)


class Column:
    """The values of every row at one path. Not safe for threads: the store's event loop owns it."""

    def __init__(self) -> None:
        self._codes = np.zeros(0, np.int32)
        # Per code; code 0 is "no such path" and is never counted or freed.
        self._keys: list[Hashable] = [None]
        self._row_counts: list[int] = [0]
        self._code_of: dict[Hashable, int] = {}
        self._codes_of_member: dict[ValueKey, set[int]] = {}
        """For values that stand beside others; one that stands alone is in `_code_of` under its own key."""
        self._free: list[int] = []
        self._dead: list[int] = []
        self.integers = Postings(np.dtype(np.int64))
        self.reals = Postings(np.dtype(np.float64))
        self.times = Postings(TIME_DTYPE)
        """Strings that are RFC 3339 times, as TIME_DTYPE."""

    @property
    def code_count(self) -> int:
        """Length of a truth table over the codes: every code is below it."""
        return len(self._keys)

    @property
    def distinct_count(self) -> int:
        """Distinct values, several at one row counted as one, that live rows have."""
        return len(self._code_of)

    def codes(self, row_count: int) -> NDArray[np.int32]:
        """int32 (row_count,); the code of every row, 0 beyond the rows ever set. A view: use it at once."""
        if row_count > len(self._codes):
            self._codes = _grown(self._codes, row_count)
        return self._codes[:row_count]

    def codes_with(self, keys: Iterable[ValueKey]) -> list[int]:
        """The codes whose values include one of the keys (`value_key`)."""
        found: list[int] = []
        for key in keys:
            code = self._code_of.get(key)
            if code is not None:
                found.append(code)
            found.extend(self._codes_of_member.get(key, ()))
        return found

    def rows_with_codes(self, codes: NDArray[np.int32] | list[int], row_count: int) -> Mask:
        """Bool (row_count,); the rows that have one of these codes. Code 0 is not counted among them."""
        row_codes = self.codes(row_count)
        if len(codes) == 0:
            return np.zeros(row_count, np.bool_)
        if len(codes) == 1:
            found: Mask = row_codes == codes[0]
            return found
        truth = np.zeros(self.code_count, np.bool_)
        truth[codes] = True
        return truth.take(row_codes)

    def values(self, row: int) -> tuple[Scalar, ...] | None:
        """The values of one row; None: it does not have the path."""
        code = int(self.codes(row + 1)[row])
        if code == ABSENT_CODE:
            return None
        return tuple(member if isinstance(member, str) else member[1] for member in self._members(code))

    def set(self, row: int, values: tuple[Scalar, ...] | None) -> None:
        """Give a row its values; None: it does not have the path."""
        if row >= len(self._codes):
            self._codes = _grown(self._codes, row + 1)
        old = int(self._codes[row])
        # Taken before the old one is let go, so that an unchanged value keeps its code.
        new = ABSENT_CODE if values is None else self._acquire(values)
        self._codes[row] = new
        if old != ABSENT_CODE:
            self._release(old)

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Take the path away from distinct rows; those that do not have it are passed over. One table lookup for each row."""
        rows = rows[rows < len(self._codes)]
        held, counts = np.unique(self._codes[rows], return_counts=True)
        self._codes[rows] = ABSENT_CODE
        for code, count in zip(held.tolist(), counts.tolist(), strict=True):
            if code != ABSENT_CODE:
                self._release(code, count)

    def _acquire(self, values: tuple[Scalar, ...]) -> int:
        # A lone value's key begins with a type or is a string, a tuple of keys does neither: they cannot be confused.
        key: Hashable = value_key(values[0]) if len(values) == 1 else tuple(map(value_key, values))
        code = self._code_of.get(key)
        if code is not None:
            self._row_counts[code] += 1
            return code
        if self._free:
            code = self._free.pop()
            self._keys[code] = key
            self._row_counts[code] = 1
        else:
            code = len(self._keys)
            self._keys.append(key)
            self._row_counts.append(1)
        self._code_of[key] = code
        for value in values:
            self._post(code, value)
        if len(values) > 1:
            for member in self._members(code):
                self._codes_of_member.setdefault(member, set()).add(code)
        return code

    def _post(self, code: int, value: Scalar) -> None:
        if type(value) is str:
            time_ns = parse_time_ns(value)
            if time_ns is not None:
                self.times.append(code, divmod(time_ns, NANOSECONDS))
        elif type(value) is int:
            self.integers.append(code, value)
        elif type(value) is float:
            self.reals.append(code, value)

    def _members(self, code: int) -> tuple[ValueKey, ...]:
        key: Any = self._keys[code]
        alone = isinstance(key, str) or (len(key) == 2 and isinstance(key[0], type))
        return (key,) if alone else key

    def _release(self, code: int, row_count: int = 1) -> None:
        self._row_counts[code] -= row_count
        if self._row_counts[code]:
            return
        members = self._members(code)
        if len(members) > 1:
            for member in set(members):
                codes = self._codes_of_member[member]
                codes.remove(code)
                if not codes:
                    del self._codes_of_member[member]
        del self._code_of[self._keys[code]]
        self._keys[code] = None
        self._dead.append(code)
        if len(self._dead) > max(_DEAD_CODES_MIN, len(self._code_of)):
            self._reclaim()

    def _reclaim(self) -> None:
        """Forget what the postings know of dead codes, so that these can be taken again."""
        alive = np.ones(self.code_count, np.bool_)
        alive[self._dead] = False
        for postings in (self.integers, self.reals, self.times):
            postings.keep(alive)
        self._free.extend(self._dead)
        self._dead.clear()


def _grown(array: NDArray[Any], length: int) -> NDArray[Any]:
    """A copy with room for at least `length` elements, zeros in the new ones; doubling, so appends are amortised."""
    grown = np.zeros(max(length, 2 * len(array), _CAPACITY_MIN), array.dtype)
    grown[: len(array)] = array
    return grown
