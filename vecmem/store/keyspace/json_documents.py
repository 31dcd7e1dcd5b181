"""JSON documents: whole values at paths. See proto/vecmem/v1/json.proto; json_arrays and json_scalars change parts of values."""

from __future__ import annotations

from typing import Any, Final

from vecmem import limits
from vecmem.errors import InvalidArgumentError, KeyNotFoundError, LimitExceededError
from vecmem.store.keyspace.json_operation import (
    changed,
    check_depth,
    check_growth,
    check_path,
    check_size,
    find_document,
    find_matches,
    is_number,
    replace,
    size_of,
)
from vecmem.store.keyspace.json_paths import Match, Path, Search, compile_path, outermost
from vecmem.store.keyspace.json_value import (
    ARRAY_BYTES,
    ITEM_BYTES,
    MEMBER_BYTES,
    OBJECT_BYTES,
    JsonValue,
    measure,
    name_bytes,
    parse,
    sizes_within,
    to_text,
)
from vecmem.store.keyspace.keyspace import Keyspace, shown
from vecmem.store.keyspace.operation import REPLY_BYTES_MAX, Moment, check_request_key, frees, reads, writes
from vecmem.v1 import json_pb2 as api

_CONDITIONS = frozenset(api.JsonCondition.values())
_LOCATION_FRAME_BYTES: Final = 6
"""Of a location in a reply: its tag and its length."""
_ABSENT: Final = object()
"""Stands for the value of a place where there is none."""


def _check_set(request: api.SetJsonRequest) -> None:
    check_path(request)
    parse(request.value_json, "value_json")
    if request.condition not in _CONDITIONS:
        raise InvalidArgumentError(f"{request.condition} is not known", field="condition")


def _set(keyspace: Keyspace, request: api.SetJsonRequest, response: api.SetJsonResponse, moment: Moment) -> None:
    path = compile_path(request.path, "path")
    value = parse(request.value_json, "value_json")
    document = find_document(keyspace, request.key, moment)
    if document is None:
        _check_root(path, request.key)
        if request.condition != api.JSON_CONDITION_PRESENT:
            _put(keyspace, request.key, value, "value_json", moment)
            response.written_count = response.new_count = 1
        return
    places = _places(path, document, request.condition)
    if not places:
        return
    size_bytes, depth = measure(value)
    growth = sum(size_bytes - _taken(place) for place in places)
    check_growth(document, growth, "value_json")
    check_depth(places, depth, "value_json")
    for index, place in enumerate(places):
        # No two places may share what can be changed.
        replace(document, place, parse(request.value_json, "value_json") if index else value)
    changed(keyspace, request.key, document, growth, moment)
    response.written_count = len(places)
    response.new_count = sum(place.value is _ABSENT for place in places)


def _check_root(path: Path, key: bytes) -> None:
    if not path.is_root:
        raise KeyNotFoundError(f"no key {shown(key)}; a document is made with the path $", field="key")


def _put(keyspace: Keyspace, key: bytes, value: Any, field: str, moment: Moment) -> None:
    document = JsonValue(value, size_of(value))
    check_size(document.size_bytes, field)
    keyspace.change(key, document, 0, moment.time_unix_ms)


def _places(path: Path, document: JsonValue, condition: int = api.JSON_CONDITION_UNSPECIFIED) -> list[Match]:
    """Where a value is to be written: matches, and members that are not there yet. None lies inside another."""
    places = [] if condition == api.JSON_CONDITION_ABSENT else path.find_distinct(document.root, "path")
    name = path.new_name
    if name is not None and condition != api.JSON_CONDITION_PRESENT:
        places += [
            Match(_ABSENT, name, parent, parent.root)
            for parent in path.find_parents(document.root, "path")
            if isinstance(parent.value, dict) and name not in parent.value
        ]
    return outermost(places)


def _taken(place: Match) -> int:
    """What the value at a place takes; below 0 what its member will take beside it."""
    if place.value is _ABSENT:
        return -MEMBER_BYTES - name_bytes(str(place.step))
    return size_of(place.value)


def _check_get(request: api.GetJsonRequest) -> None:
    check_request_key(request)
    if len(request.paths) > limits.JSON_PATHS_MAX:
        raise LimitExceededError(f"{len(request.paths)} paths, more than {limits.JSON_PATHS_MAX}", field="paths")
    for index, path in enumerate(request.paths):
        compile_path(path, f"paths[{index}]")


def _get(keyspace: Keyspace, request: api.GetJsonRequest, response: api.GetJsonResponse, moment: Moment) -> None:
    document = find_document(keyspace, request.key, moment)
    room = REPLY_BYTES_MAX
    search = None if document is None else Search(document.root, limits.JSON_PATH_VISITS_MAX)
    for index, text in enumerate(request.paths or [""]):
        field = f"paths[{index}]"
        matches = [] if search is None else compile_path(text, field).find(search.document, field, search)
        found = response.matches.add(count=len(matches))
        values = []
        for match in matches:
            values.append(to_text(match.value))
            room -= len(values[-1]) + 1
            if request.with_locations:
                found.locations.append(match.path())
                room -= len(found.locations[-1].encode()) + _LOCATION_FRAME_BYTES
            if room < 0:
                raise LimitExceededError(f"the matches have more than {REPLY_BYTES_MAX} bytes", field=field)
        found.values_json = b"[" + b",".join(values) + b"]"
    response.version = 0 if document is None else document.version


def _delete(
    keyspace: Keyspace, request: api.DeleteJsonRequest, response: api.DeleteJsonResponse, moment: Moment
) -> None:
    document = find_document(keyspace, request.key, moment)
    matches = outermost(find_matches(document, request))
    if document is None or not matches:
        return
    response.deleted_count = len(matches)
    growth = 0
    items: dict[int, tuple[list[Any], dict[int | str, None]]] = {}
    for match in matches:
        parent = match.parent
        if parent is None:
            keyspace.remove(request.key)
            return
        growth -= size_of(match.value)
        if isinstance(parent.value, dict):
            growth -= MEMBER_BYTES + name_bytes(str(match.step))
            del parent.value[match.step]
        else:
            growth -= ITEM_BYTES
            items.setdefault(id(parent.value), (parent.value, {}))[1][match.step] = None
    for array, gone in items.values():
        # At once: to take one after the other moves the rest each time.
        array[:] = [item for index, item in enumerate(array) if index not in gone]
    changed(keyspace, request.key, document, growth, moment)


def _check_merge(request: api.MergeJsonRequest) -> None:
    check_path(request)
    parse(request.patch_json, "patch_json")


def _merge(keyspace: Keyspace, request: api.MergeJsonRequest, response: api.MergeJsonResponse, moment: Moment) -> None:
    path = compile_path(request.path, "path")
    patch = parse(request.patch_json, "patch_json")
    document = find_document(keyspace, request.key, moment)
    if document is None:
        _check_root(path, request.key)
        _put(keyspace, request.key, _without_nulls(patch), "patch_json", moment)
        response.merged_count = 1
        return
    places = _places(path, document)
    if not places:
        return
    growth = sum(_patch_growth(place, patch) for place in places)
    check_growth(document, growth, "patch_json")
    check_depth(places, measure(patch)[1], "patch_json")
    for index, place in enumerate(places):
        own = parse(request.patch_json, "patch_json") if index else patch
        if isinstance(own, dict) and isinstance(place.value, dict):
            _merge_into(place.value, own)
        else:
            replace(document, place, _without_nulls(own))
    changed(keyspace, request.key, document, growth, moment)
    response.merged_count = len(places)


def _without_nulls(patch: Any) -> Any:
    """What a patch makes where nothing is that it could change."""
    if not isinstance(patch, dict):
        return patch
    return {name: _without_nulls(value) for name, value in patch.items() if value is not None}


def _merge_into(target: dict[str, Any], patch: dict[str, Any]) -> None:
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict) and isinstance(old := target.get(name), dict):
            _merge_into(old, value)
        else:
            target[name] = _without_nulls(value)


def _patch_growth(place: Match, patch: Any) -> int:
    if isinstance(patch, dict) and isinstance(place.value, dict):
        return _merge_growth(place.value, patch)
    return size_of(_without_nulls(patch)) - _taken(place)


def _merge_growth(target: dict[str, Any], patch: dict[str, Any]) -> int:
    growth = 0
    for name, value in patch.items():
        old = target.get(name, _ABSENT)
        if isinstance(value, dict) and isinstance(old, dict):
            growth += _merge_growth(old, value)
            continue
        if old is not _ABSENT:
            growth -= MEMBER_BYTES + name_bytes(name) + size_of(old)
        if value is not None:
            growth += MEMBER_BYTES + name_bytes(name) + size_of(_without_nulls(value))
    return growth


def _clear(keyspace: Keyspace, request: api.ClearJsonRequest, response: api.ClearJsonResponse, moment: Moment) -> None:
    document = find_document(keyspace, request.key, moment)
    growth = 0
    for match in outermost(find_matches(document, request)):
        assert document is not None
        value = match.value
        if isinstance(value, dict | list) and value:
            growth += (OBJECT_BYTES if isinstance(value, dict) else ARRAY_BYTES) - size_of(value)
            value.clear()
        elif is_number(value) and not (value == 0 and isinstance(value, int)):
            replace(document, match, 0)
        else:
            continue
        response.cleared_count += 1
    if document is not None and response.cleared_count:
        changed(keyspace, request.key, document, growth, moment)


def _describe(
    keyspace: Keyspace, request: api.DescribeJsonRequest, response: api.DescribeJsonResponse, moment: Moment
) -> None:
    matches = find_matches(find_document(keyspace, request.key, moment), request)
    sizes: dict[int, int] = {}
    for match in matches:
        value: Any = match.value
        told = response.matches.add(type=_type_of(value), memory_bytes=sizes_within(value, sizes))
        if isinstance(value, str | dict | list):
            told.length = len(value)


def _type_of(value: Any) -> api.JsonType.ValueType:
    match value:
        case None:
            return api.JSON_TYPE_NULL
        case bool():
            return api.JSON_TYPE_BOOLEAN
        case int():
            return api.JSON_TYPE_INTEGER
        case float():
            return api.JSON_TYPE_NUMBER
        case str():
            return api.JSON_TYPE_STRING
        case list():
            return api.JSON_TYPE_ARRAY
        case _:
            return api.JSON_TYPE_OBJECT


def _get_names(
    keyspace: Keyspace, request: api.GetJsonNamesRequest, response: api.GetJsonNamesResponse, moment: Moment
) -> None:
    # All names of a document are in a message with ease: what it may take in memory is less.
    for match in find_matches(find_document(keyspace, request.key, moment), request):
        told = response.matches.add()
        if isinstance(match.value, dict):
            told.is_object = True
            told.names.extend(match.value)


OPERATIONS = {
    "set_json": writes(_check_set, _set),
    "get_json": reads(_check_get, _get),
    "delete_json": frees(check_path, _delete),
    "merge_json": writes(_check_merge, _merge),
    "clear_json": frees(check_path, _clear),
    "describe_json": reads(check_path, _describe),
    "get_json_names": reads(check_path, _get_names),
}
