"""JSON documents under keys. Each function builds an operation for `Client.run` and `Client.pipeline`.

Paths are JSONPath (RFC 9535); `$` is the whole document. Values are what `json` makes of JSON; `bytes` given as a value are JSON already.
Where a path may match several places, results are in their order. A key that does not exist has no matches.

All raise WrongTypeError, when they run, for a key that holds a value of another type, InvalidArgumentError for a path that is none, and
LimitExceededError for a path that looks at too many values and for a document that would be too large.
"""

# ruff: noqa: A001  (the API's own words)

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import json_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

_CONDITIONS = {
    None: 0,
    "absent": json_pb2.JSON_CONDITION_ABSENT,
    "present": json_pb2.JSON_CONDITION_PRESENT,
}
_TYPE_PREFIX = "JSON_TYPE_"
JsonType = Literal["null", "boolean", "integer", "number", "string", "array", "object"]
"""`number` is a double."""


@dataclass(frozen=True, slots=True)
class JsonWritten:
    """Places written, and those of them where nothing was before. None: the path finds none, or a condition held nowhere."""

    written_count: int
    new_count: int


@dataclass(frozen=True, slots=True)
class JsonDocument:
    """A whole document, and the version of its key."""

    value: Any
    version: int


@dataclass(frozen=True, slots=True)
class JsonMatches:
    """What one path matches. `locations` are normalized paths, where they were asked for."""

    values: list[Any]
    locations: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class JsonDescription:
    """`length` is items of an array, members of an object, characters of a string; None for all others."""

    type: JsonType
    length: int | None
    memory_bytes: int


def set(
    key: BytesLike, path: str, value: Any, *, condition: Literal["absent", "present"] | None = None
) -> Operation[JsonWritten]:
    """Write a value at every match of a path, and as a new member where the path ends with a name that an object lacks.

    `$` makes the key. Raises KeyNotFoundError, when it runs, for another path where there is no document.
    """
    return writes(
        "set_json",
        lambda response: JsonWritten(response.written_count, response.new_count),
        key=as_bytes(key),
        path=path,
        value_json=_encoded(value),
        condition=_CONDITIONS[condition],
    )


def document(key: BytesLike) -> Operation[JsonDocument | None]:
    """Return a whole document; None: there is none."""
    return reads("get_json", _document, key=as_bytes(key))


def get(key: BytesLike, path: str = "$") -> Operation[list[Any]]:
    """Return all values that a path matches."""
    return reads(
        "get_json", lambda response: json.loads(response.matches[0].values_json), key=as_bytes(key), paths=[path]
    )


def get_several(key: BytesLike, paths: Iterable[str], *, with_locations: bool = False) -> Operation[list[JsonMatches]]:
    """Return what each of 1 to 64 paths matches, and where, all of the same state."""
    return reads(
        "get_json",
        lambda response: [
            JsonMatches(json.loads(found.values_json), list(found.locations)) for found in response.matches
        ],
        key=as_bytes(key),
        paths=list(paths),
        with_locations=with_locations,
    )


def delete(key: BytesLike, path: str = "$") -> Operation[int]:
    """Remove every match of a path, `$` the key; returns how many."""
    return writes("delete_json", lambda response: response.deleted_count, key=as_bytes(key), path=path)


def merge(key: BytesLike, path: str, patch: Any) -> Operation[int]:
    """Apply a merge patch (RFC 7396) to every match of a path; returns how many. None as a member's value removes it.

    `$` makes the key. Raises KeyNotFoundError, when it runs, for another path where there is no document.
    """
    return writes(
        "merge_json",
        lambda response: response.merged_count,
        key=as_bytes(key),
        path=path,
        patch_json=_encoded(patch),
    )


def add(key: BytesLike, path: str, delta: float = 1) -> Operation[list[int | float | None]]:
    """Add to every match that is a number; returns the sums, None for a match that is none.

    Integers stay integers. Raises NumberOverflowError, when it runs, for a sum beyond 64 bits or the doubles.
    """
    kind = "integer" if isinstance(delta, int) else "number"
    return writes("add_json_number", _sums, key=as_bytes(key), path=path, **{kind: delta})


def append(key: BytesLike, path: str, items: Iterable[Any]) -> Operation[list[int | None]]:
    """Add 1 to 1,024 items to the end of every match that is an array; returns the lengths, None for a match that is none."""
    return writes(
        "append_json_array", _lengths, key=as_bytes(key), path=path, items_json=[_encoded(item) for item in items]
    )


def insert(key: BytesLike, path: str, index: int, items: Iterable[Any]) -> Operation[list[int | None]]:
    """Put 1 to 1,024 items before the one at an index, below 0 counted from the end, into every match that is an array.

    Returns the lengths, None for a match that is no array or has no such index.
    """
    return writes(
        "insert_json_array",
        _lengths,
        key=as_bytes(key),
        path=path,
        index=index,
        items_json=[_encoded(item) for item in items],
    )


def pop(key: BytesLike, path: str, index: int = -1, *, default: Any = None) -> Operation[list[Any]]:
    """Take an item out of every match that is an array; `default` stands for one that is none, or empty.

    An index beyond an end is that of the item there.
    """
    return writes(
        "pop_json_array",
        lambda response: [
            json.loads(each.item_json) if each.HasField("item_json") else default for each in response.items
        ],
        key=as_bytes(key),
        path=path,
        index=index,
    )


def trim(key: BytesLike, path: str, start: int = 0, stop: int = -1) -> Operation[list[int | None]]:
    """Keep the items from `start` to `stop`, both included, of every match that is an array; returns the lengths."""
    return writes("trim_json_array", _lengths, key=as_bytes(key), path=path, start=start, stop=stop)


def index_of(key: BytesLike, path: str, item: Any, start: int = 0, stop: int = -1) -> Operation[list[int | None]]:
    """Return where every match that is an array first has an item, from `start` to `stop`; -1: nowhere; None: no array."""
    return reads(
        "find_json_array_item",
        lambda response: [each.index if each.HasField("index") else None for each in response.indexes],
        key=as_bytes(key),
        path=path,
        item_json=_encoded(item),
        start=start,
        stop=stop,
    )


def append_text(key: BytesLike, path: str, text: str) -> Operation[list[int | None]]:
    """Add to the end of every match that is a string; returns the lengths in characters, None for a match that is none."""
    return writes("append_json_string", _lengths, key=as_bytes(key), path=path, text=text)


def toggle(key: BytesLike, path: str) -> Operation[list[bool | None]]:
    """Turn true and false into each other; returns what every match is now, None for one that is neither."""
    return writes(
        "toggle_json",
        lambda response: [each.value if each.HasField("value") else None for each in response.values],
        key=as_bytes(key),
        path=path,
    )


def clear(key: BytesLike, path: str = "$") -> Operation[int]:
    """Empty objects and arrays and make numbers 0; returns how many matches that changed."""
    return writes("clear_json", lambda response: response.cleared_count, key=as_bytes(key), path=path)


def describe(key: BytesLike, path: str = "$") -> Operation[list[JsonDescription]]:
    """Return the type, length and memory of every match."""
    return reads("describe_json", _descriptions, key=as_bytes(key), path=path)


def names(key: BytesLike, path: str = "$") -> Operation[list[list[str] | None]]:
    """Return the names of the members of every match that is an object, None for one that is none."""
    return reads(
        "get_json_names",
        lambda response: [list(each.names) if each.is_object else None for each in response.matches],
        key=as_bytes(key),
        path=path,
    )


def _encoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _document(response: json_pb2.GetJsonResponse) -> JsonDocument | None:
    if not response.version:
        return None
    [value] = json.loads(response.matches[0].values_json)
    return JsonDocument(value, response.version)


def _sums(response: json_pb2.AddJsonNumberResponse) -> list[int | float | None]:
    return [None if (kind := each.WhichOneof("value")) is None else getattr(each, kind) for each in response.sums]


def _lengths(response: Any) -> list[int | None]:
    return [each.length if each.HasField("length") else None for each in response.lengths]


def _descriptions(response: json_pb2.DescribeJsonResponse) -> list[JsonDescription]:
    return [
        JsonDescription(
            json_pb2.JsonType.Name(each.type).removeprefix(_TYPE_PREFIX).lower(),  # type: ignore[arg-type]
            each.length if each.HasField("length") else None,
            each.memory_bytes,
        )
        for each in response.matches
    ]
