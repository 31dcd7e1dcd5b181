"""LangChain's metadata filters as vecmem filters.

A filter is a mapping such as `{"section": "net", "size": {"$lt": 10_000}}`: every entry must hold. A key is a path
within the metadata: dots step into objects, and a key in double quotes is taken literally. Its value is a scalar to
equal, None for null, or a mapping from operators to operands: `$eq $ne $gt $gte $lt $lte $in $nin $exists $not`.
`$and`, `$or` (lists of filters) and `$not` (a filter) stand in the place of a key. The bounds of a range are numbers,
datetimes with a time zone, or RFC 3339 times as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vecmem.v1 import filter_pb2
from vecmem_client._filters import Condition, Field, FilterLike, all_of, any_of, none_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MetadataFilter = Mapping[str, Any] | FilterLike
"""A filter over metadata, or one of vecmem's own over whole payloads."""


def build_filter(source: MetadataFilter | None, prefix: str) -> FilterLike | None:
    """Return a filter over payload paths that begin with `prefix`; vecmem's own filters pass through unchanged.

    Raises ValueError for an unknown operator and TypeError for an operand of the wrong type.
    """
    if source is None or isinstance(source, Condition | filter_pb2.Filter):
        return source
    return _mapping(source, prefix)


def _mapping(source: object, prefix: str) -> Condition:
    if not isinstance(source, Mapping):
        raise TypeError(f"a filter is a mapping, not {type(source).__name__}")
    return _all([_entry(key, value, prefix) for key, value in source.items()])


def _entry(key: str, value: Any, prefix: str) -> Condition:
    if key == "$and":
        return all_of(*(_mapping(part, prefix) for part in _list(key, value)))
    if key == "$or":
        return any_of(*(_mapping(part, prefix) for part in _list(key, value)))
    if key == "$not":
        return none_of(_mapping(value, prefix))
    if key.startswith("$"):
        raise ValueError(f"unknown operator {key!r}")
    return _test(Field(prefix + key), value)


def _test(field: Field, value: Any) -> Condition:
    if isinstance(value, Mapping):
        if not value:
            raise ValueError(f"the test of {field!r} names no operator")
        return _all([_operator(field, operator, operand) for operator, operand in value.items()])
    if value is None:
        return field.is_null()
    if isinstance(value, Sequence) and not isinstance(value, str):
        raise TypeError(f"{field!r} is compared with a list: use $in")
    condition: Condition = field == value
    return condition


def _operator(field: Field, operator: str, operand: Any) -> Condition:
    if operator == "$not":
        return none_of(_test(field, operand))
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise TypeError(f"$exists takes True or False, not {operand!r}")
        return field.exists() if operand else ~field.exists()
    if operator == "$in":
        return _in(field, _list(operator, operand))
    if operator == "$nin":
        return ~_in(field, _list(operator, operand))
    if operator == "$eq":
        return _test(field, operand)
    if operator == "$ne":
        return none_of(_test(field, operand))
    compare = _RANGES.get(operator)
    if compare is None:
        raise ValueError(f"unknown operator {operator!r}")
    return compare(field, _bound(operator, operand))


_RANGES: Mapping[str, Callable[[Field, Any], Condition]] = {
    "$gt": Field.__gt__,
    "$gte": Field.__ge__,
    "$lt": Field.__lt__,
    "$lte": Field.__le__,
}


def _in(field: Field, values: Sequence[Any]) -> Condition:
    scalars = [value for value in values if value is not None]
    parts = [field.is_in(scalars)] if scalars else []
    if len(scalars) < len(values):
        parts.append(field.is_null())
    return parts[0] if len(parts) == 1 else any_of(*parts)  # of nothing it is true for no point, as it should be


def _bound(operator: str, operand: Any) -> Any:
    if not isinstance(operand, str):
        return operand
    try:
        return datetime.fromisoformat(operand)
    except ValueError:
        raise ValueError(f"{operator} takes a number or a time, not {operand!r}") from None


def _list(operator: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence | set | frozenset):
        raise TypeError(f"{operator} takes a list, not {type(value).__name__}")
    return list(value)


def _all(conditions: Iterable[Condition]) -> Condition:
    parts = list(conditions)
    return parts[0] if len(parts) == 1 else all_of(*parts)
