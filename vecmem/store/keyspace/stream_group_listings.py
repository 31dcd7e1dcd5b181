"""What there is to tell of groups: how far each is, its consumers, and what is pending. See proto/vecmem/v1/streams.proto."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem import limits
from vecmem.errors import LimitExceededError
from vecmem.store.keyspace.operation import Moment, check_member, check_request_key, reads
from vecmem.store.keyspace.paging import (
    PAGE_LOOKS_MAX,
    check_page,
    decode_bytes_token,
    encode_bytes_token,
    page_end,
    page_start,
)
from vecmem.store.keyspace.stream_entries import write_id
from vecmem.store.keyspace.stream_group_operations import check_group, check_time, find_group
from vecmem.store.keyspace.streams import bounds_of, check_count, check_range, find
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import streams_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Callable

    from vecmem.store.keyspace.keyspace import Keyspace
    from vecmem.store.keyspace.stream_groups import StreamGroup


def _check_list_pending(request: api.ListStreamPendingRequest) -> None:
    check_group(request)
    check_member(request.consumer, "consumer")
    check_range(request.range)
    check_time(request.min_idle_ms, "min_idle_ms")
    check_count(request.count)


def _list_pending(
    keyspace: Keyspace, request: api.ListStreamPendingRequest, response: api.ListStreamPendingResponse, moment: Moment
) -> None:
    _, group = find_group(keyspace, request, moment)
    ids = group.ids
    if request.consumer:
        if request.consumer not in group.consumers:
            return
        ids = group.consumers[request.consumer].pending
    count = request.count or limits.STREAM_ENTRIES_DEFAULT
    for looks, entry_id in enumerate(ids.irange(*bounds_of(request.range))):
        if len(response.entries) == count or looks == PAGE_LOOKS_MAX:
            write_id(response.next_start, entry_id)
            return
        pending = group.pending[entry_id]
        idle_ms = max(0, moment.time_unix_ms - pending.delivered_at_unix_ms)
        if idle_ms >= request.min_idle_ms:
            found = response.entries.add(
                consumer=pending.consumer,
                delivered_at_unix_ms=pending.delivered_at_unix_ms,
                idle_ms=idle_ms,
                delivery_count=pending.delivery_count,
            )
            write_id(found.id, entry_id)


def _tell_group(told: api.StreamGroup, name: bytes, group: StreamGroup, lag_of: Callable[[int], int]) -> None:
    told.group = name
    write_id(told.last_delivered_id, group.last_delivered_id)
    told.lag = lag_of(group.last_delivered_id)
    told.consumer_count = len(group.consumers)
    told.pending_count = len(group.pending)
    if group.ids:
        write_id(told.first_pending_id, group.ids[0])
        write_id(told.last_pending_id, group.ids[-1])


def _describe_group(
    keyspace: Keyspace,
    request: api.DescribeStreamGroupRequest,
    response: api.DescribeStreamGroupResponse,
    moment: Moment,
) -> None:
    value, group = find_group(keyspace, request, moment)
    _tell_group(response.group, request.group, group, value.entries.counter_after())


def _check_list_groups(request: api.ListStreamGroupsRequest) -> None:
    check_request_key(request)
    check_page(request)


def _list_groups(
    keyspace: Keyspace, request: api.ListStreamGroupsRequest, response: api.ListStreamGroupsResponse, moment: Moment
) -> None:
    value = find(keyspace, request.key, moment)
    if value is None:
        return
    lag_of = value.entries.counter_after()
    for name in value.group_names.after(page_start(request), value.groups):
        if len(response.groups) == (request.page_size or limits.PAGE_SIZE_DEFAULT):
            response.next_page_token = page_end(request, response.groups[-1].group)
            return
        _tell_group(response.groups.add(), name, value.groups[name], lag_of)


def _scope(request: api.ListStreamConsumersRequest) -> list[int]:
    return [request_fingerprint(api.ListStreamConsumersRequest(key=request.key, group=request.group))]


def _check_list_consumers(request: api.ListStreamConsumersRequest) -> None:
    check_group(request)
    if request.page_size > limits.PAGE_SIZE_MAX:
        raise LimitExceededError(f"{request.page_size} is more than {limits.PAGE_SIZE_MAX}", field="page_size")
    decode_bytes_token(request.page_token, "consumers", _scope(request))


def _list_consumers(
    keyspace: Keyspace,
    request: api.ListStreamConsumersRequest,
    response: api.ListStreamConsumersResponse,
    moment: Moment,
) -> None:
    _, group = find_group(keyspace, request, moment)
    # Names are not empty, so that an empty one stands before all.
    after = decode_bytes_token(request.page_token, "consumers", _scope(request))
    for name in group.names.after(after or None, group.consumers):
        if len(response.consumers) == (request.page_size or limits.PAGE_SIZE_DEFAULT):
            last = response.consumers[-1].consumer
            response.next_page_token = encode_bytes_token("consumers", _scope(request), last)
            return
        consumer = group.consumers[name]
        response.consumers.add(
            consumer=name,
            pending_count=len(consumer.pending),
            seen_at_unix_ms=consumer.seen_at_unix_ms,
            active_at_unix_ms=consumer.active_at_unix_ms,
        )


OPERATIONS = {
    "list_stream_pending": reads(_check_list_pending, _list_pending),
    "describe_stream_group": reads(check_group, _describe_group),
    "list_stream_groups": reads(_check_list_groups, _list_groups),
    "list_stream_consumers": reads(_check_list_consumers, _list_consumers),
}
