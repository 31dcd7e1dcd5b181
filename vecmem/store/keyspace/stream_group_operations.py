"""Groups of consumers: reading streams together, acknowledging, claiming. See proto/vecmem/v1/streams.proto.

A claim or a read decides first what it gives and what that takes, and only then changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vecmem import limits
from vecmem.errors import (
    InvalidArgumentError,
    KeyNotFoundError,
    LimitExceededError,
    StreamGroupExistsError,
    StreamGroupNotFoundError,
)
from vecmem.store.keyspace.keyspace import Keyspace, shown
from vecmem.store.keyspace.operation import Moment, check_member, check_request_key, reads, writes
from vecmem.store.keyspace.paging import (
    PAGE_LOOKS_MAX,
    check_page,
    decode_bytes_token,
    encode_bytes_token,
    page_end,
    page_start,
)
from vecmem.store.keyspace.stream_entries import Fields, number_of, write_id
from vecmem.store.keyspace.stream_groups import Pending, StreamGroup
from vecmem.store.keyspace.stream_value import NO_ID, StreamValue
from vecmem.store.keyspace.streams import (
    Room,
    add_entry,
    bounds_of,
    check_count,
    check_ids,
    check_range,
    find,
    reply_bytes,
)
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import streams_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Callable

DELIVERY_COUNT_MAX: Final = 2**64 - 1

Starting = api.CreateStreamGroupRequest | api.SetStreamGroupPositionRequest
Claiming = api.ClaimStreamEntriesRequest | api.AutoClaimStreamEntriesRequest
Claims = list[tuple[int, Fields, Pending]]


def _check_name(name: bytes, field: str) -> None:
    if not name:
        raise InvalidArgumentError("is empty", field=field)
    check_member(name, field)


def _check_group(request: Any) -> None:
    check_request_key(request)
    _check_name(request.group, "group")


def _check_consumer(request: Any) -> None:
    _check_group(request)
    _check_name(request.consumer, "consumer")


def _check_time(time_ms: int, field: str) -> None:
    if not 0 <= time_ms <= limits.TIME_MS_MAX:
        raise InvalidArgumentError(f"{time_ms} is not within 0 to 2^53", field=field)


def _find(keyspace: Keyspace, request: Any, moment: Moment) -> tuple[StreamValue, StreamGroup]:
    """The stream and the group that a request names. Raises WrongTypeError, StreamGroupNotFoundError."""
    value = find(keyspace, request.key, moment)
    group = None if value is None else value.groups.get(request.group)
    if value is None or group is None:
        raise StreamGroupNotFoundError(
            f"group: no group {shown(request.group)} under {shown(request.key)}", field="group"
        )
    return value, group


def _changed(
    keyspace: Keyspace, request: Any, value: StreamValue, group: StreamGroup, old_group_bytes: int, moment: Moment
) -> None:
    """The end of every change of a group."""
    old_size_bytes = value.size_bytes
    value.size_bytes += group.size_bytes - old_group_bytes
    keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)


def _start(request: Starting, value: StreamValue) -> int:
    """The position that a request gives a group."""
    match request.WhichOneof("start"):
        case "after":
            return number_of(request.after)
        case "at_end" if request.at_end:
            return value.last_id
        case _:
            return NO_ID


def _create_group(
    keyspace: Keyspace, request: api.CreateStreamGroupRequest, response: api.CreateStreamGroupResponse, moment: Moment
) -> None:
    found = find(keyspace, request.key, moment)
    if found is None and not request.create_stream:
        raise KeyNotFoundError(f"key: no key {shown(request.key)}", field="key")
    if found is not None and request.group in found.groups:
        raise StreamGroupExistsError(f"group: {shown(request.group)} exists under {shown(request.key)}", field="group")
    value, old_size_bytes = (StreamValue(), 0) if found is None else (found, found.size_bytes)
    group = StreamGroup(_start(request, value))
    value.add_group(request.group, group)
    keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    write_id(response.last_delivered_id, group.last_delivered_id)


def _set_position(
    keyspace: Keyspace,
    request: api.SetStreamGroupPositionRequest,
    response: api.SetStreamGroupPositionResponse,
    moment: Moment,
) -> None:
    value, group = _find(keyspace, request, moment)
    group.last_delivered_id = _start(request, value)
    _changed(keyspace, request, value, group, group.size_bytes, moment)
    write_id(response.last_delivered_id, group.last_delivered_id)


def _delete_group(
    keyspace: Keyspace, request: api.DeleteStreamGroupRequest, response: api.DeleteStreamGroupResponse, moment: Moment
) -> None:
    value = find(keyspace, request.key, moment)
    group = None if value is None else value.groups.get(request.group)
    if value is not None and group is not None:
        old_size_bytes = value.size_bytes
        value.remove_group(request.group)
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
        response.deleted = True
        response.pending_count = len(group.pending)


def _create_consumer(
    keyspace: Keyspace,
    request: api.CreateStreamConsumerRequest,
    response: api.CreateStreamConsumerResponse,
    moment: Moment,
) -> None:
    value, group = _find(keyspace, request, moment)
    if request.consumer not in group.consumers:
        old_group_bytes = group.size_bytes
        group.consumer(request.consumer, moment.time_unix_ms)
        _changed(keyspace, request, value, group, old_group_bytes, moment)
        response.created = True


def _delete_consumer(
    keyspace: Keyspace,
    request: api.DeleteStreamConsumerRequest,
    response: api.DeleteStreamConsumerResponse,
    moment: Moment,
) -> None:
    value, group = _find(keyspace, request, moment)
    if request.consumer in group.consumers:
        old_group_bytes = group.size_bytes
        response.pending_count = group.remove_consumer(request.consumer)
        response.deleted = True
        _changed(keyspace, request, value, group, old_group_bytes, moment)


def _check_read(request: api.ReadStreamGroupRequest) -> None:
    _check_consumer(request)
    check_count(request.count)


def _read(
    keyspace: Keyspace, request: api.ReadStreamGroupRequest, response: api.ReadStreamGroupResponse, moment: Moment
) -> None:
    value, group = _find(keyspace, request, moment)
    room = Room(request.count or limits.STREAM_ENTRIES_DEFAULT)
    again = request.HasField("pending_after")
    if again:
        chosen, response.more = _choose_pending(value, group, request, room)
    else:
        chosen, response.more = _choose_new(value, group, room)
    moment.spend(room.size_bytes, "count")
    old_group_bytes, now = group.size_bytes, moment.time_unix_ms
    consumer = group.consumer(request.consumer, now)
    for entry_id, fields in chosen:
        if fields is None:
            pending = group.pending[entry_id]
            add_entry(response.entries, entry_id, (), deleted=True, delivery_count=pending.delivery_count)
            continue
        delivery_count = 1
        if again:
            delivery_count = min(group.pending[entry_id].delivery_count + 1, DELIVERY_COUNT_MAX)
        elif request.no_acknowledge:
            delivery_count = 0
        if delivery_count:
            group.deliver(entry_id, Pending(consumer.name, now, delivery_count))
        add_entry(response.entries, entry_id, fields, delivery_count=delivery_count)
    if chosen:
        consumer.active_at_unix_ms = now
        if not again:
            group.last_delivered_id = chosen[-1][0]
    _changed(keyspace, request, value, group, old_group_bytes, moment)


def _choose_new(value: StreamValue, group: StreamGroup, room: Room) -> tuple[list[tuple[int, Fields | None]], bool]:
    """Entries behind the position of a group, and whether there are more."""
    chosen: list[tuple[int, Fields | None]] = []
    for entry_id, fields in value.entries.forward(group.last_delivered_id + 1):
        if not room.take(fields):
            return chosen, True
        chosen.append((entry_id, fields))
    return chosen, False


def _choose_pending(
    value: StreamValue, group: StreamGroup, request: api.ReadStreamGroupRequest, room: Room
) -> tuple[list[tuple[int, Fields | None]], bool]:
    """What is pending at a consumer, without fields where it is not in the stream any more, and whether there is more."""
    chosen: list[tuple[int, Fields | None]] = []
    consumer = group.consumers.get(request.consumer)
    if consumer is not None:
        for entry_id in consumer.pending.irange(number_of(request.pending_after), inclusive=(False, True)):
            fields = value.entries.get(entry_id)
            if not room.take(fields or ()):
                return chosen, True
            chosen.append((entry_id, fields))
    return chosen, False


def _check_acknowledge(request: api.AcknowledgeStreamEntriesRequest) -> None:
    _check_group(request)
    check_ids(request.ids)


def _acknowledge(
    keyspace: Keyspace,
    request: api.AcknowledgeStreamEntriesRequest,
    response: api.AcknowledgeStreamEntriesResponse,
    moment: Moment,
) -> None:
    value = find(keyspace, request.key, moment)
    group = None if value is None else value.groups.get(request.group)
    if value is None or group is None:
        response.acknowledged.extend([False] * len(request.ids))
        return
    old_group_bytes = group.size_bytes
    response.acknowledged.extend(group.acknowledge(number_of(entry_id)) for entry_id in request.ids)
    if any(response.acknowledged):
        _changed(keyspace, request, value, group, old_group_bytes, moment)


def _check_claim(request: api.ClaimStreamEntriesRequest) -> None:
    _check_consumer(request)
    check_ids(request.ids)
    _check_time(request.min_idle_ms, "min_idle_ms")
    kind = request.WhichOneof("delivered")
    if kind is not None:
        _check_time(getattr(request, kind), kind)


def _claim(
    keyspace: Keyspace,
    request: api.ClaimStreamEntriesRequest,
    response: api.ClaimStreamEntriesResponse,
    moment: Moment,
) -> None:
    value, group = _find(keyspace, request, moment)
    now = delivered_at = moment.time_unix_ms
    match request.WhichOneof("delivered"):
        case "idle_ms":
            delivered_at = max(0, now - request.idle_ms)
        case "delivered_at_unix_ms":
            delivered_at = min(now, request.delivered_at_unix_ms)
    claimed: Claims = []
    deleted: dict[int, None] = {}
    # An id that is named twice finds what became of it the first time.
    pending = {entry_id: group.pending.get(entry_id) for entry_id in map(number_of, request.ids)}
    for entry_id in map(number_of, request.ids):
        old = pending[entry_id]
        fields = value.entries.get(entry_id)
        if fields is None:
            if old is not None:
                deleted[entry_id] = None
            continue
        if old is None and not request.force:
            continue
        if old is not None and request.min_idle_ms and now - old.delivered_at_unix_ms < request.min_idle_ms:
            continue
        count = _claimed_count(request, old)
        if request.HasField("delivery_count"):
            count = request.delivery_count
        new = pending[entry_id] = Pending(request.consumer, delivered_at, count)
        claimed.append((entry_id, () if request.only_ids else fields, new))
    _finish_claim(keyspace, request, response, (value, group), claimed, list(deleted), moment)


def _claimed_count(request: Claiming, old: Pending | None) -> int:
    """How often an entry counts as delivered when it is claimed."""
    old_count = 1 if old is None else old.delivery_count
    return old_count if request.only_ids else min(old_count + 1, DELIVERY_COUNT_MAX)


def _finish_claim(
    keyspace: Keyspace,
    request: Claiming,
    response: Any,
    found: tuple[StreamValue, StreamGroup],
    claimed: Claims,
    deleted: list[int],
    moment: Moment,
) -> None:
    """Do what a claim has decided on. Raises LimitExceededError, before it changes anything."""
    if not claimed and not deleted:
        return
    value, group = found
    field = "ids" if isinstance(request, api.ClaimStreamEntriesRequest) else "count"
    size_bytes = sum(reply_bytes(fields) for _, fields, _ in claimed)
    moment.spend(size_bytes + limits.STREAM_ENTRY_REPLY_BYTES * len(deleted), field)
    old_group_bytes, now = group.size_bytes, moment.time_unix_ms
    for entry_id in deleted:
        group.acknowledge(entry_id)
        write_id(response.deleted_ids.add(), entry_id)
    if claimed:
        consumer = group.consumer(request.consumer, now)
        consumer.active_at_unix_ms = now
        for entry_id, fields, pending in claimed:
            group.deliver(entry_id, pending._replace(consumer=consumer.name))
            add_entry(response.entries, entry_id, fields, delivery_count=pending.delivery_count)
    _changed(keyspace, request, value, group, old_group_bytes, moment)


def _check_auto_claim(request: api.AutoClaimStreamEntriesRequest) -> None:
    _check_consumer(request)
    _check_time(request.min_idle_ms, "min_idle_ms")
    check_count(request.count)


def _auto_claim(
    keyspace: Keyspace,
    request: api.AutoClaimStreamEntriesRequest,
    response: api.AutoClaimStreamEntriesResponse,
    moment: Moment,
) -> None:
    value, group = _find(keyspace, request, moment)
    now = moment.time_unix_ms
    claimed: Claims = []
    deleted: list[int] = []
    count = request.count or limits.STREAM_ENTRIES_DEFAULT
    room, looks_left = Room(count), count * limits.STREAM_LOOKS_PER_CLAIM
    next_start = None
    for entry_id in group.ids.irange(number_of(request.start)):
        if not looks_left or not room.entries_left:
            next_start = entry_id
            break
        looks_left -= 1
        fields, old = value.entries.get(entry_id), group.pending[entry_id]
        if fields is not None and now - old.delivered_at_unix_ms < request.min_idle_ms:
            continue
        returned = () if fields is None or request.only_ids else fields
        if not room.take(returned):
            next_start = entry_id
            break
        if fields is None:
            deleted.append(entry_id)
        else:
            claimed.append((entry_id, returned, Pending(request.consumer, now, _claimed_count(request, old))))
    _finish_claim(keyspace, request, response, (value, group), claimed, deleted, moment)
    if next_start is not None:
        write_id(response.next_start, next_start)


def _check_list_pending(request: api.ListStreamPendingRequest) -> None:
    _check_group(request)
    check_member(request.consumer, "consumer")
    check_range(request.range)
    _check_time(request.min_idle_ms, "min_idle_ms")
    check_count(request.count)


def _list_pending(
    keyspace: Keyspace, request: api.ListStreamPendingRequest, response: api.ListStreamPendingResponse, moment: Moment
) -> None:
    _, group = _find(keyspace, request, moment)
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
    value, group = _find(keyspace, request, moment)
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
    _check_group(request)
    if request.page_size > limits.PAGE_SIZE_MAX:
        raise LimitExceededError(f"{request.page_size} is more than {limits.PAGE_SIZE_MAX}", field="page_size")
    decode_bytes_token(request.page_token, "consumers", _scope(request))


def _list_consumers(
    keyspace: Keyspace,
    request: api.ListStreamConsumersRequest,
    response: api.ListStreamConsumersResponse,
    moment: Moment,
) -> None:
    _, group = _find(keyspace, request, moment)
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
    "create_stream_group": writes(_check_group, _create_group),
    "set_stream_group_position": writes(_check_group, _set_position),
    "delete_stream_group": writes(_check_group, _delete_group),
    "create_stream_consumer": writes(_check_consumer, _create_consumer),
    "delete_stream_consumer": writes(_check_consumer, _delete_consumer),
    "read_stream_group": writes(_check_read, _read),
    "acknowledge_stream_entries": writes(_check_acknowledge, _acknowledge),
    "claim_stream_entries": writes(_check_claim, _claim),
    "auto_claim_stream_entries": writes(_check_auto_claim, _auto_claim),
    "list_stream_pending": reads(_check_list_pending, _list_pending),
    "describe_stream_group": reads(_check_group, _describe_group),
    "list_stream_groups": reads(_check_list_groups, _list_groups),
    "list_stream_consumers": reads(_check_list_consumers, _list_consumers),
}
