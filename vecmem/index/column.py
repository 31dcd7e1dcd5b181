"""One payload path over all rows, dictionary-encoded, so that a filter costs a comparison or a table lookup per row.

Invariants: `codes[row]` is 0 for a row without the path, else the code of its values; rows with equal values, type
by type, share a code (1, 1.0 and true are three values); a code lives while a row has it. A freed code is taken
again only after the postings that mention it are gone (`_reclaim`), so postings may name dead codes but never wrong
ones, and memory stays within about twice what the live values need, whatever the churn.

Numbers and times, which ranges ask for, stand in *direct* arrays by row as well, where a row has one value and no more: a range then
costs two comparisons per row, in order of memory. What does not stand there stands in postings, which name codes.

The encoding is the usual one of column stores (Abadi et al., "The Design and Implementation of Modern Column-Oriented
Database Systems", section 4), with one code per set of values instead of one per value, because a path may hold many.
"""

from __future__ import annotations

from enum import IntEnum
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
_FEW_CODES: Final = 6
"""So many comparisons of all rows with one code cost less than one look-up of all rows in a table."""
_CODE_BYTES: Final = 180
"""Of one code beside the characters of a string: two entries of lists, one of a dictionary, and the objects there. About."""
_PAIR_BYTES: Final = 12
_DEAD_CODES_MIN: Final = 1_024
TIME_DTYPE: Final = np.dtype([("seconds", np.int64), ("nanoseconds", np.int32)])
"""Nanoseconds since the epoch overflow int64 outside the years 1677 to 2262."""
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


class PayloadType(IntEnum):
    """What most values at a path are: numbers as in vecmem.v1.PayloadType. UNKNOWN: whatever comes."""

    UNKNOWN = 0
    KEYWORD = 1
    INTEGER = 2
    FLOAT = 3
    BOOL = 4
    TIME = 5


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


class Direct:
    """The values of one type by row, for ranges. `filler` stands at rows that have none here, and outside of every range asked for."""

    def __init__(self, dtype: type[np.int64 | np.float64], filler: float) -> None:
        self._filler = filler
        self._values = np.zeros(0, dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes allocated."""
        return self._values.nbytes

    def set(self, row: int, value: float | None) -> None:
        """Give a row its value; None: it has none here."""
        if row >= len(self._values):
            if value is None:
                return
            self._values = _grown(self._values, row + 1, self._filler)
        self._values[row] = self._filler if value is None else value

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Take the values of rows away."""
        self._values[rows[rows < len(self._values)]] = self._filler

    def between(self, low: float, high: float, row_count: int) -> Mask | None:
        """Rows with a value in the closed interval: bool (row_count,), the caller's own. None: no row ever had a value.

        `low` is above an integer filler; bounds are of the values' type.
        """
        if not len(self._values):
            return None
        if row_count > len(self._values):
            self._values = _grown(self._values, row_count, self._filler)
        values = self._values[:row_count]
        if low == high:
            equal: Mask = values == low
            return equal
        found: Mask = values >= low
        found &= values <= high
        return found


class Column:
    """The values of every row at one path. Not safe for threads: the store's event loop owns it.

    `payload_type` says which values have direct arrays; those of other types are found all the same, through their codes.
    """

    def __init__(self, payload_type: PayloadType = PayloadType.UNKNOWN) -> None:
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
        """Strings that are RFC 3339 times, as TIME_DTYPE. Postings have what is not in the direct arrays."""
        numeric = payload_type in {PayloadType.UNKNOWN, PayloadType.FLOAT}
        self.direct_integers = Direct(np.int64, _INT64_MIN) if numeric or payload_type is PayloadType.INTEGER else None
        # Clients whose language has one type of number write 1.0 as 1: a path of numbers has both.
        self.direct_reals = Direct(np.float64, np.nan) if numeric else None
        self.direct_times = (
            Direct(np.int64, _INT64_MIN) if payload_type in {PayloadType.UNKNOWN, PayloadType.TIME} else None
        )
        """Nanoseconds since the epoch."""
        self._time_of_code: dict[int, int] = {}
        """Nanoseconds of codes whose rows are in `direct_times`."""
        self._text_bytes = 0

    @property
    def code_count(self) -> int:
        """Length of a truth table over the codes: every code is below it."""
        return len(self._keys)

    @property
    def distinct_count(self) -> int:
        """Distinct values, several at one row counted as one, that live rows have."""
        return len(self._code_of)

    @property
    def size_bytes(self) -> int:
        """Bytes of the column, estimated."""
        direct = (self.direct_integers, self.direct_reals, self.direct_times)
        pairs = sum(len(postings.codes) for postings in (self.integers, self.reals, self.times))
        return (
            self._codes.nbytes
            + sum(array.size_bytes for array in direct if array is not None)
            + self.code_count * _CODE_BYTES
            + self._text_bytes
            + pairs * _PAIR_BYTES
        )

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
        if len(codes) <= _FEW_CODES:
            found: Mask = row_codes == codes[0]
            for code in codes[1:]:
                found |= row_codes == code
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
        if old != ABSENT_CODE or new != ABSENT_CODE:
            self._set_direct(row, new, values)
        if old != ABSENT_CODE:
            self._release(old)

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Take the path away from distinct rows; those that do not have it are passed over. One table lookup for each row."""
        rows = rows[rows < len(self._codes)]
        held, counts = np.unique(self._codes[rows], return_counts=True)
        self._codes[rows] = ABSENT_CODE
        for direct in (self.direct_integers, self.direct_reals, self.direct_times):
            if direct is not None:
                direct.clear(rows)
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
        alone = len(values) == 1
        for value in values:
            self._post(code, value, alone=alone)
        if not alone:
            for member in self._members(code):
                self._codes_of_member.setdefault(member, set()).add(code)
        return code

    def _post(self, code: int, value: Scalar, *, alone: bool) -> None:
        """Note a value of a new code where ranges will find it, unless that is in a direct array (`_set_direct`)."""
        if type(value) is str:
            self._text_bytes += len(value)
            time_ns = parse_time_ns(value)
            if time_ns is not None:
                if alone and self.direct_times is not None and _INT64_MIN < time_ns <= _INT64_MAX:
                    self._time_of_code[code] = time_ns
                else:
                    self.times.append(code, divmod(time_ns, NANOSECONDS))
        elif type(value) is int:
            if not (alone and self.direct_integers is not None and value > _INT64_MIN):
                self.integers.append(code, value)
        elif type(value) is float and not (alone and self.direct_reals is not None):
            self.reals.append(code, value)

    def _set_direct(self, row: int, code: int, values: tuple[Scalar, ...] | None) -> None:
        value = values[0] if values is not None and len(values) == 1 else None
        if self.direct_integers is not None:
            self.direct_integers.set(row, value if type(value) is int and value > _INT64_MIN else None)
        if self.direct_reals is not None:
            self.direct_reals.set(row, value if type(value) is float else None)
        if self.direct_times is not None:
            self.direct_times.set(row, self._time_of_code.get(code))

    def _members(self, code: int) -> tuple[ValueKey, ...]:
        key: Any = self._keys[code]
        alone = isinstance(key, str) or (len(key) == 2 and isinstance(key[0], type))
        return (key,) if alone else key

    def _release(self, code: int, row_count: int = 1) -> None:
        self._row_counts[code] -= row_count
        if self._row_counts[code]:
            return
        members = self._members(code)
        self._text_bytes -= sum(len(member) for member in members if isinstance(member, str))
        self._time_of_code.pop(code, None)
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


def _grown(array: NDArray[Any], length: int, fill: float = 0) -> NDArray[Any]:
    """A copy with room for at least `length` elements, `fill` in the new ones; doubling, so appends are amortised."""
    grown = np.zeros(max(length, 2 * len(array), _CAPACITY_MIN), array.dtype)
    grown[: len(array)] = array
    if fill != 0:
        grown[len(array) :] = fill
    return grown
