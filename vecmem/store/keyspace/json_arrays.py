"""Arrays within JSON documents. See proto/vecmem/v1/json.proto."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vecmem import limits
from vecmem.store.keyspace.json_operation import (
    changed,
    check_depth,
    check_growth,
    check_items,
    check_path,
    find_document,
    find_matches,
    innermost_first,
    size_of,
    spend_matches,
)
from vecmem.store.keyspace.json_paths import SKIPPED_PER_VISIT, Match, Search
from vecmem.store.keyspace.json_value import ITEM_BYTES, equal, measure, parse, to_text
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment, frees, reads, writes
from vecmem.store.keyspace.strings import inclusive_range
from vecmem.v1 import json_pb2 as api

Lengths = api.AppendJsonArrayResponse | api.InsertJsonArrayResponse | api.TrimJsonArrayResponse


def _check_add(request: api.AppendJsonArrayRequest | api.InsertJsonArrayRequest) -> None:
    check_path(request)
    check_items(request.items_json, "items_json")


def _append(
    keyspace: Keyspace, request: api.AppendJsonArrayRequest, response: api.AppendJsonArrayResponse, moment: Moment
) -> None:
    _add(keyspace, request, response, moment, len)


def _insert(
    keyspace: Keyspace, request: api.InsertJsonArrayRequest, response: api.InsertJsonArrayResponse, moment: Moment
) -> None:
    def place(array: list[Any]) -> int | None:
        index = request.index + len(array) if request.index < 0 else request.index
        return index if 0 <= index <= len(array) else None

    _add(keyspace, request, response, moment, place)


def _add(
    keyspace: Keyspace,
    request: api.AppendJsonArrayRequest | api.InsertJsonArrayRequest,
    response: Lengths,
    moment: Moment,
    place_in: Callable[[list[Any]], int | None],
) -> None:
    """Put items before a place in every array that has it."""
    document = find_document(keyspace, request.key, moment)
    matches = find_matches(document, request)
    spend_matches(matches, moment)
    places = [place_in(match.value) if isinstance(match.value, list) else None for match in matches]
    arrays = [(match, place) for match, place in zip(matches, places, strict=True) if place is not None]
    if document is not None and arrays:
        measured = [measure(parse(item, "items_json")) for item in request.items_json]
        growth = len(arrays) * sum(ITEM_BYTES + size_bytes for size_bytes, _ in measured)
        check_growth(document, growth, "items_json")
        check_depth([match for match, _ in arrays], 1 + max(depth for _, depth in measured), "items_json")
        for match, place in arrays:
            _items(match)[place:place] = [parse(item, "items_json") for item in request.items_json]
        changed(keyspace, request.key, document, growth, moment)
    for match, found in zip(matches, places, strict=True):
        told = response.lengths.add()
        if found is not None:
            told.length = len(_items(match))


def _pop(
    keyspace: Keyspace, request: api.PopJsonArrayRequest, response: api.PopJsonArrayResponse, moment: Moment
) -> None:
    document = find_document(keyspace, request.key, moment)
    matches = find_matches(document, request)
    wanted = request.index if request.HasField("index") else -1
    texts = [to_text(match.value[_nearest(match.value, wanted)]) if _has_items(match) else None for match in matches]
    spend_matches(matches, moment)
    moment.spend(sum(len(text) for text in texts if text is not None), "path")
    growth = 0
    arrays = [match for match in innermost_first(matches) if _has_items(match)]
    for match in arrays:
        array = _items(match)
        growth -= ITEM_BYTES + size_of(array.pop(_nearest(array, wanted)))
    if document is not None and arrays:
        changed(keyspace, request.key, document, growth, moment)
    for text in texts:
        response.items.add(item_json=text)


def _has_items(match: Match) -> bool:
    return isinstance(match.value, list) and bool(match.value)


def _items(match: Match) -> list[Any]:
    assert isinstance(match.value, list)
    return match.value


def _nearest(array: list[Any], index: int) -> int:
    return max(0, min(index + len(array) if index < 0 else index, len(array) - 1))


def _trim(
    keyspace: Keyspace, request: api.TrimJsonArrayRequest, response: api.TrimJsonArrayResponse, moment: Moment
) -> None:
    document = find_document(keyspace, request.key, moment)
    matches = find_matches(document, request)
    spend_matches(matches, moment)
    growth = 0
    for match in innermost_first(matches):
        if not isinstance(match.value, list):
            continue
        array = match.value
        start, stop = inclusive_range(request.start, request.stop if request.HasField("stop") else -1, len(array))
        gone = array[:start] + array[stop:]
        growth -= ITEM_BYTES * len(gone) + sum(map(size_of, gone))
        array[:] = array[start:stop]
    if document is not None and growth:
        changed(keyspace, request.key, document, growth, moment)
    for match in matches:
        told = response.lengths.add()
        if isinstance(match.value, list):
            told.length = len(match.value)


def _check_find(request: api.FindJsonArrayItemRequest) -> None:
    check_path(request)
    parse(request.item_json, "item_json")


def _find(
    keyspace: Keyspace, request: api.FindJsonArrayItemRequest, response: api.FindJsonArrayItemResponse, moment: Moment
) -> None:
    wanted = parse(request.item_json, "item_json")
    search = Search(None, limits.JSON_PATH_VISITS_MAX)
    for match in find_matches(find_document(keyspace, request.key, moment), request):
        told = response.indexes.add()
        if isinstance(match.value, list):
            array = match.value
            start, stop = inclusive_range(request.start, request.stop if request.HasField("stop") else -1, len(array))
            search.spend((stop - start) // SKIPPED_PER_VISIT)
            told.index = next((index for index in range(start, stop) if equal(array[index], wanted, search.spend)), -1)


OPERATIONS = {
    "append_json_array": writes(_check_add, _append),
    "insert_json_array": writes(_check_add, _insert),
    "pop_json_array": frees(check_path, _pop),
    "trim_json_array": frees(check_path, _trim),
    "find_json_array_item": reads(_check_find, _find),
}
