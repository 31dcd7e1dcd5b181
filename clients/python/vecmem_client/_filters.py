"""Filters as Python expressions.

    (field("section") == "net") & (field("size") < 10_000) & ~field("tags").is_in(["obsolete"])

`field(path)` names a payload path, its comparisons and methods make a `Condition`, and `&`, `|`, `~` or `all_of`,
`any_of`, `none_of` combine conditions. What a test means for missing paths and for arrays is the server's definition
(vecmem.v1.FieldCondition). Python's `and`, `or`, `not` and chained comparisons cannot be overloaded: they raise
TypeError.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from vecmem.v1 import filter_pb2
from vecmem_client._values import aware

if TYPE_CHECKING:
    from collections.abc import Iterable

Scalar = str | int | float | bool
"""What a payload value is compared with."""
Bound = int | float | datetime
"""One end of a range: a number, or a datetime with a time zone for payload values that are RFC 3339 times."""

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class Condition:
    """A filter, immutable. `proto()` returns a copy of the message that it stands for."""

    __slots__ = ("_message",)

    def __init__(self, message: filter_pb2.Filter) -> None:
        self._message = message

    def proto(self) -> filter_pb2.Filter:
        """Return the filter as a message of its own."""
        copy = filter_pb2.Filter()
        copy.CopyFrom(self._message)
        return copy

    def __and__(self, other: FilterLike) -> Condition:
        if not isinstance(other, Condition | filter_pb2.Filter):
            return NotImplemented
        return all_of(*_parts(self._message, "all_of"), *_parts(_message(other), "all_of"))

    def __or__(self, other: FilterLike) -> Condition:
        if not isinstance(other, Condition | filter_pb2.Filter):
            return NotImplemented
        return any_of(*_parts(self._message, "any_of"), *_parts(_message(other), "any_of"))

    def __invert__(self) -> Condition:
        return none_of(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self._message == other._message

    def __hash__(self) -> int:
        return hash(self._message.SerializeToString(deterministic=True))

    def __bool__(self) -> NoReturn:
        raise TypeError("a condition has no truth value here: combine with &, | and ~, and use between() for ranges")

    def __repr__(self) -> str:
        return f"Condition({' '.join(str(self._message).split())})"


FilterLike = Condition | filter_pb2.Filter
"""A filter: an expression, or the message itself."""


class Field:
    """A payload path to test. Dots step into objects and arrays; a segment in double quotes is taken literally."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        if not isinstance(path, str) or not path:
            raise TypeError(f"a payload path is a non-empty string, not {path!r}")
        self._path = path

    def __eq__(self, value: Scalar | datetime) -> Condition:  # type: ignore[override]
        """A value equals `value`. Kinds differ: the string "1" is not the number 1, True is not 1."""
        if isinstance(value, datetime):
            return self.between(value, value)
        value = _plain(value)
        if isinstance(value, float):
            return self.between(value, value)
        condition, message = self._new()
        _set_match(condition.match, value)
        return Condition(message)

    def __ne__(self, value: Scalar | datetime) -> Condition:  # type: ignore[override]
        """No value equals `value`; so also true for points without the path."""
        return ~(self == value)

    __hash__ = None  # type: ignore[assignment]

    def is_in(self, values: Iterable[Scalar]) -> Condition:
        """A value equals one of `values` (1 to 10,000)."""
        exact: list[str | int | bool] = []
        parts: list[Condition] = []
        for value in _iterable(values):
            plain = _plain(value)
            if isinstance(plain, float):
                parts.append(self.between(plain, plain))  # the API matches whole values; a float is a range of one
            else:
                exact.append(plain)
        if exact or not parts:
            condition, message = self._new()
            condition.any_of.SetInParent()
            for value in exact:
                _set_match(condition.any_of.values.add(), value)
            parts.append(Condition(message))
        return parts[0] if len(parts) == 1 else any_of(*parts)

    def not_in(self, values: Iterable[Scalar]) -> Condition:
        """No value equals any of `values`; so also true for points without the path."""
        return ~self.is_in(values)

    def __lt__(self, bound: Bound) -> Condition:
        return self._range(lt=bound)

    def __le__(self, bound: Bound) -> Condition:
        return self._range(lte=bound)

    def __gt__(self, bound: Bound) -> Condition:
        return self._range(gt=bound)

    def __ge__(self, bound: Bound) -> Condition:
        return self._range(gte=bound)

    def between(self, low: Bound, high: Bound) -> Condition:
        """Low and high included, for one and the same value of an array. Raises TypeError for a time and a number."""
        return self._range(gte=low, lte=high)

    def exists(self) -> Condition:
        """The path is present, whatever its value. Negate with `~`."""
        condition, message = self._new()
        condition.exists = True
        return Condition(message)

    def is_null(self) -> Condition:
        """The path is present and null, or an array with a null in it. Negate with `~`."""
        condition, message = self._new()
        condition.is_null = True
        return Condition(message)

    def __repr__(self) -> str:
        return f"field({self._path!r})"

    def _new(self) -> tuple[filter_pb2.FieldCondition, filter_pb2.Filter]:
        message = filter_pb2.Filter()
        message.field.path = self._path
        return message.field, message

    def _range(self, **bounds: Bound) -> Condition:
        condition, message = self._new()
        times = [isinstance(bound, datetime) for bound in bounds.values()]
        if all(times):
            for name, bound in bounds.items():
                assert isinstance(bound, datetime)
                getattr(condition.time_range, name).FromDatetime(aware(bound, "a bound"))
        elif any(times):
            raise TypeError("one bound is a time and the other a number")
        else:
            for name, bound in bounds.items():
                _set_number(getattr(condition.number_range, name), bound)
        return Condition(message)


def field(path: str) -> Field:
    """Return the payload path `path` to test, for instance `author.name`."""
    return Field(path)


def has_id(*ids: str) -> Condition:
    """Return the filter that is true for the points with these ids (at most 10,000)."""
    message = filter_pb2.Filter()
    message.has_id.SetInParent()
    message.has_id.ids.extend(ids)
    return Condition(message)


def all_of(*conditions: FilterLike) -> Condition:
    """Return AND; of nothing it is true for every point."""
    message = filter_pb2.Filter()
    _fill(message.all_of, conditions)
    return Condition(message)


def any_of(*conditions: FilterLike) -> Condition:
    """Return OR; of nothing it is true for no point."""
    message = filter_pb2.Filter()
    _fill(message.any_of, conditions)
    return Condition(message)


def none_of(*conditions: FilterLike) -> Condition:
    """Return NOT: true when no condition is."""
    message = filter_pb2.Filter()
    _fill(message.none_of, conditions)
    return Condition(message)


def copy_filter(target: filter_pb2.Filter, source: FilterLike) -> None:
    """Write `source` into a field of a request. Raises TypeError when it is no filter."""
    target.CopyFrom(_message(source))


def _message(source: FilterLike) -> filter_pb2.Filter:
    if isinstance(source, Condition):
        return source._message  # noqa: SLF001  (one module, one owner)
    if isinstance(source, filter_pb2.Filter):
        return source
    raise TypeError(f"a filter is a Condition or a filter_pb2.Filter, not {type(source).__name__}")


def _fill(target: filter_pb2.FilterList, conditions: Iterable[FilterLike]) -> None:
    target.SetInParent()  # an empty list is a filter too
    target.filters.extend([_message(condition) for condition in conditions])


def _parts(message: filter_pb2.Filter, kind: Literal["all_of", "any_of"]) -> list[filter_pb2.Filter]:
    """Flatten, so that `a & b & c …` stays two levels deep: the server allows sixteen."""
    if message.WhichOneof("kind") == kind:
        return list((message.all_of if kind == "all_of" else message.any_of).filters)
    return [message]


def _iterable(values: Iterable[Scalar]) -> Iterable[Scalar]:
    if isinstance(values, str | bytes):
        raise TypeError("is_in and not_in take several values, not one string")
    return values


def _plain(value: object) -> Scalar:
    """Return a str, int, float or bool; whole floats within int64 stay floats, since integers equal them anyway."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bool | float):
        return value
    if isinstance(value, int):
        if not _INT64_MIN <= value <= _INT64_MAX:
            raise ValueError(f"{value} does not fit int64")
        return value
    if value is None:
        raise TypeError("to test for null use is_null()")
    raise TypeError(f"a payload value is compared with str, int, float or bool, not {type(value).__name__}")


def _set_match(target: filter_pb2.MatchValue, value: str | int | bool) -> None:
    if isinstance(value, bool):  # before int, of which it is one
        target.boolean = value
    elif isinstance(value, int):
        target.integer = value
    else:
        target.keyword = value


def _set_number(target: filter_pb2.Number, bound: object) -> None:
    plain = _plain(bound)
    if isinstance(plain, str | bool):
        raise TypeError(f"a bound is a number or a datetime, not {plain!r}")
    if isinstance(plain, int):
        target.integer = plain
    else:
        target.real = plain
