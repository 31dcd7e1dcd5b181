"""Groups of consumers: reading streams together, acknowledging, claiming. See proto/vecmem/v1/streams.proto.

What tells of them is in `stream_group_listings`. A claim or a read decides first what it gives and what that takes, and only then
changes anything.
"""

from __future__ import annotations

from typing import Any, Final

from vecmem import limits
from vecmem.errors import (
    InvalidArgumentError,
    KeyNotFoundError,
    StreamGroupExistsError,
    StreamGroupNotFoundError,
)
from vecmem.store.keyspace.keyspace import Keyspace, shown
from vecmem.store.keyspace.operation import Moment, Waits, check_member, check_request_key, check_wait, frees, writes
from vecmem.store.keyspace.stream_entries import Fields, number_of, write_id
from vecmem.store.keyspace.stream_groups import Pending, StreamGroup
from vecmem.store.keyspace.stream_value import NO_ID, StreamValue
from vecmem.store.keyspace.streams import (
    Room,
    add_entry,
    check_count,
    check_ids,
    find,
    reply_bytes,
)
from vecmem.v1 import streams_pb2 as api

DELIVERY_COUNT_MAX: Final = 2**64 - 1

Starting = api.CreateStreamGroupRequest | api.SetStreamGroupPositionRequest
Claiming = api.ClaimStreamEntriesRequest | api.AutoClaimStreamEntriesRequest
Claims = list[tuple[int, Fields, Pending]]


def _check_name(name: bytes, field: str) -> None:
    if not name:
        raise InvalidArgumentError("is empty", field=field)
    check_member(name, field)


def check_group(request: Any) -> None:
    """Check the key and the group of a request. Raises InvalidArgumentError, LimitExceededError."""
    check_request_key(request)
    _check_name(request.group, "group")


def _check_consumer(request: Any) -> None:
    check_group(request)
    _check_name(request.consumer, "consumer")


def check_time(time_ms: int, field: str) -> None:
    """Raises InvalidArgumentError."""
    if not 0 <= time_ms <= limits.TIME_MS_MAX:
        raise InvalidArgumentError(f"{time_ms} is not within 0 to 2^53", field=field)


def find_group(keyspace: Keyspace, request: Any, moment: Moment) -> tuple[StreamValue, StreamGroup]:
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
    value, group = find_group(keyspace, request, moment)
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
    value, group = find_group(keyspace, request, moment)
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
    value, group = find_group(keyspace, request, moment)
    if request.consumer in group.consumers:
        old_group_bytes = group.size_bytes
        response.pending_count = group.remove_consumer(request.consumer)
        response.deleted = True
        _changed(keyspace, request, value, group, old_group_bytes, moment)


def _check_read(request: api.ReadStreamGroupRequest) -> None:
    _check_consumer(request)
    check_count(request.count)
    check_wait(request)
    if request.wait_ms and request.HasField("pending_after"):
        raise InvalidArgumentError("only new entries can be waited for", field="wait_ms")


def _has_new(keyspace: Keyspace, request: api.ReadStreamGroupRequest, moment: Moment) -> bool:
    """Whether there is a new entry. Raises WrongTypeError, StreamGroupNotFoundError."""
    value, group = find_group(keyspace, request, moment)
    return value.entries.last_id is not None and value.entries.last_id > group.last_delivered_id


def _read(
    keyspace: Keyspace, request: api.ReadStreamGroupRequest, response: api.ReadStreamGroupResponse, moment: Moment
) -> None:
    value, group = find_group(keyspace, request, moment)
    room = Room(request.count or limits.STREAM_ENTRIES_DEFAULT)
    again = request.HasField("pending_after")
    if again:
        chosen, response.more = _choose_pending(value, group, request, room)
    else:
        chosen, response.more = _choose_new(value, group, room)
        if not chosen:
            # Those who wait for entries are told of every change of the stream: their asking must not be one.
            return
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
    check_group(request)
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
    check_time(request.min_idle_ms, "min_idle_ms")
    kind = request.WhichOneof("delivered")
    if kind is not None:
        check_time(getattr(request, kind), kind)


def _claim(
    keyspace: Keyspace,
    request: api.ClaimStreamEntriesRequest,
    response: api.ClaimStreamEntriesResponse,
    moment: Moment,
) -> None:
    value, group = find_group(keyspace, request, moment)
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
        if old is not None and _is_young(old, request, now):
            continue
        count = _claimed_count(request, old)
        if request.HasField("delivery_count"):
            count = request.delivery_count
        new = pending[entry_id] = Pending(request.consumer, delivered_at, count)
        claimed.append((entry_id, () if request.only_ids else fields, new))
    _finish_claim(keyspace, request, response, (value, group), claimed, list(deleted), moment)


def _is_young(pending: Pending, request: Claiming, now_unix_ms: int) -> bool:
    """Whether a claim is to leave an entry because it was delivered only just now."""
    return request.min_idle_ms > max(0, now_unix_ms - pending.delivered_at_unix_ms)


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
    check_time(request.min_idle_ms, "min_idle_ms")
    check_count(request.count)


def _auto_claim(
    keyspace: Keyspace,
    request: api.AutoClaimStreamEntriesRequest,
    response: api.AutoClaimStreamEntriesResponse,
    moment: Moment,
) -> None:
    value, group = find_group(keyspace, request, moment)
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
        if fields is not None and _is_young(old, request, now):
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


OPERATIONS = {
    "create_stream_group": writes(check_group, _create_group),
    "set_stream_group_position": frees(check_group, _set_position),
    "delete_stream_group": frees(check_group, _delete_group),
    "create_stream_consumer": writes(_check_consumer, _create_consumer),
    "delete_stream_consumer": frees(_check_consumer, _delete_consumer),
    "read_stream_group": frees(
        _check_read, _read, Waits(lambda response: bool(response.entries), _has_new, lambda request: request.group)
    ),
    "acknowledge_stream_entries": frees(_check_acknowledge, _acknowledge),
    "claim_stream_entries": frees(_check_claim, _claim),
    "auto_claim_stream_entries": frees(_check_auto_claim, _auto_claim),
}
