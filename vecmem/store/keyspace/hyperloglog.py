"""HyperLogLog sketches: how many distinct items there were, about. See proto/vecmem/v1/hyperloglog.proto and hyperloglog_value.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vecmem.store.keyspace.hyperloglog_value import HyperLogLogValue, estimate, register_of, union
from vecmem.store.keyspace.operation import (
    Moment,
    check_key,
    check_keys,
    check_members,
    check_request_key,
    check_request_keys,
    check_slot,
    reads,
    writes,
)
from vecmem.v1 import hyperloglog_pb2 as api

if TYPE_CHECKING:
    from vecmem.store.keyspace.keyspace import Keyspace


def _sketches(keyspace: Keyspace, request: Any, moment: Moment) -> list[HyperLogLogValue]:
    """Those of the keys of a request that exist."""
    found = [
        keyspace.container(key, HyperLogLogValue, moment.time_unix_ms, f"keys[{index}]")
        for index, key in enumerate(request.keys)
    ]
    return [value for value in found if value is not None]


def _check_add(request: api.AddHyperLogLogItemsRequest) -> None:
    check_request_key(request)
    check_members(request.items, "items")


def _add(
    keyspace: Keyspace,
    request: api.AddHyperLogLogItemsRequest,
    response: api.AddHyperLogLogItemsResponse,
    moment: Moment,
) -> None:
    found = keyspace.container(request.key, HyperLogLogValue, moment.time_unix_ms)
    value, old_size_bytes = (HyperLogLogValue(), 0) if found is None else (found, found.size_bytes)
    changes = [value.add(*register_of(item)) for item in request.items]
    if any(changes):
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
        response.changed = True


def _count(
    keyspace: Keyspace, request: api.CountHyperLogLogRequest, response: api.CountHyperLogLogResponse, moment: Moment
) -> None:
    response.count = estimate(union(_sketches(keyspace, request, moment)))


def _check_merge(request: api.MergeHyperLogLogsRequest) -> None:
    check_key(request.destination, "destination")
    check_keys(request.keys)
    check_slot([request.destination, request.keys[0]], "destination")


def _merge(
    keyspace: Keyspace,
    request: api.MergeHyperLogLogsRequest,
    response: api.MergeHyperLogLogsResponse,
    moment: Moment,
) -> None:
    found = keyspace.container(request.destination, HyperLogLogValue, moment.time_unix_ms, "destination")
    sketches = _sketches(keyspace, request, moment)
    value, old_size_bytes = (HyperLogLogValue(), 0) if found is None else (found, found.size_bytes)
    if value.merge(union(sketches)):
        keyspace.change(request.destination, value, old_size_bytes, moment.time_unix_ms)
        response.changed = True


OPERATIONS: Final = {
    "add_hyper_log_log_items": writes(_check_add, _add),
    "count_hyper_log_log": reads(check_request_keys, _count),
    "merge_hyper_log_logs": writes(_check_merge, _merge),
}
