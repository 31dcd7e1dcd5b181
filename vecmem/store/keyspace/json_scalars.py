"""Numbers, strings and booleans within JSON documents. See proto/vecmem/v1/json.proto."""

from __future__ import annotations

import math

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError, NumberOverflowError
from vecmem.store.keyspace.json_operation import (
    changed,
    check_growth,
    check_path,
    find_document,
    find_matches,
    is_number,
    replace,
    spend_matches,
)
from vecmem.store.keyspace.json_paths import Match
from vecmem.store.keyspace.json_value import name_bytes
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment, frees, writes
from vecmem.v1 import json_pb2 as api


def _check_add(request: api.AddJsonNumberRequest) -> None:
    check_path(request)
    kind = request.WhichOneof("delta")
    if kind is None:
        raise InvalidArgumentError("says no number", field="delta")
    if not math.isfinite(getattr(request, kind)):
        raise InvalidArgumentError(f"{getattr(request, kind)} is not finite", field=kind)


def _add(
    keyspace: Keyspace, request: api.AddJsonNumberRequest, response: api.AddJsonNumberResponse, moment: Moment
) -> None:
    document = find_document(keyspace, request.key, moment)
    matches = find_matches(document, request)
    spend_matches(matches, moment)
    sums = [_sum(match, request) if is_number(match.value) else None for match in matches]
    for match, total in zip(matches, sums, strict=True):
        told = response.sums.add()
        if total is None:
            continue
        assert document is not None
        replace(document, match, total)
        if isinstance(total, int):
            told.integer = total
        else:
            told.number = total
    if document is not None and any(total is not None for total in sums):
        changed(keyspace, request.key, document, 0, moment)


def _sum(match: Match, request: api.AddJsonNumberRequest) -> float:
    value = match.value
    assert isinstance(value, int | float)
    kind = request.WhichOneof("delta")
    delta: float = request.integer if kind == "integer" else request.number
    total = value + delta
    fits = limits.INT64_MIN <= total <= limits.INT64_MAX if isinstance(total, int) else math.isfinite(total)
    if not fits:
        name = "int64" if isinstance(total, int) else "finite double"
        raise NumberOverflowError(f"{match.path()[:80]}: {value} + {delta} is no {name}", field=kind or "")
    return total


def _check_append(request: api.AppendJsonStringRequest) -> None:
    check_path(request)
    if name_bytes(request.text) > limits.JSON_DOCUMENT_BYTES_MAX:
        raise LimitExceededError(f"has more than {limits.JSON_DOCUMENT_BYTES_MAX} bytes", field="text")


def _append(
    keyspace: Keyspace, request: api.AppendJsonStringRequest, response: api.AppendJsonStringResponse, moment: Moment
) -> None:
    document = find_document(keyspace, request.key, moment)
    matches = find_matches(document, request)
    spend_matches(matches, moment)
    count = sum(isinstance(match.value, str) for match in matches)
    growth = count * name_bytes(request.text)
    if document is not None:
        check_growth(document, growth, "text")
    for match in matches:
        told = response.lengths.add()
        if isinstance(match.value, str):
            assert document is not None
            text = match.value + request.text
            replace(document, match, text)
            told.length = len(text)
    if document is not None and growth:
        changed(keyspace, request.key, document, growth, moment)


def _toggle(
    keyspace: Keyspace, request: api.ToggleJsonRequest, response: api.ToggleJsonResponse, moment: Moment
) -> None:
    document = find_document(keyspace, request.key, moment)
    matches = find_matches(document, request)
    spend_matches(matches, moment)
    toggled = False
    for match in matches:
        told = response.values.add()
        if isinstance(match.value, bool):
            assert document is not None
            replace(document, match, not match.value)
            told.value = not match.value
            toggled = True
    if document is not None and toggled:
        changed(keyspace, request.key, document, 0, moment)


OPERATIONS = {
    "add_json_number": writes(_check_add, _add),
    "append_json_string": writes(_check_append, _append),
    "toggle_json": frees(check_path, _toggle),
}
