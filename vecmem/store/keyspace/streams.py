"""Streams: entries in order of their ids. See proto/vecmem/v1/streams.proto; semantics are those of Redis where the names coincide.

What groups of consumers do is in `stream_group_operations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError, StreamIdTooSmallError
from vecmem.store.keyspace.operation import (
    Moment,
    Waits,
    check_key,
    check_member,
    check_member_count,
    check_request_key,
    check_slot,
    check_wait,
    frees,
    reads,
    writes,
)
from vecmem.store.keyspace.stream_entries import (
    ID_MAX,
    SEQUENCE_BITS,
    Fields,
    number_of,
    shown_id,
    write_id,
)
from vecmem.store.keyspace.stream_value import NO_ID, StreamValue
from vecmem.v1 import streams_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vecmem.store.keyspace.keyspace import Keyspace


class Room:
    """What a reply has room for: so many entries, and so many bytes, but one entry always."""

    def __init__(self, count: int) -> None:
        self.entries_left = count
        self.size_bytes = 0

    def take(self, fields: Fields) -> bool:
        """Take the room of an entry; returns whether there is as much."""
        if not self.entries_left:
            return False
        size_bytes = self.size_bytes + reply_bytes(fields)
        if self.size_bytes and size_bytes > limits.STREAM_REPLY_BYTES_MAX:
            return False
        self.entries_left -= 1
        self.size_bytes = size_bytes
        return True


def reply_bytes(fields: Fields) -> int:
    """What an entry counts for in a reply."""
    return (
        limits.STREAM_ENTRY_REPLY_BYTES + limits.STREAM_FIELD_REPLY_BYTES * (len(fields) // 2) + sum(map(len, fields))
    )


def add_entry(entries: Any, entry_id: int, fields: Fields, *, deleted: bool = False, delivery_count: int = 0) -> None:
    """Add an entry to a reply."""
    entry = entries.add(deleted=deleted, delivery_count=delivery_count)
    write_id(entry.id, entry_id)
    pairs = iter(fields)
    for field in pairs:
        entry.fields.add(field=field, value=next(pairs))


def find(keyspace: Keyspace, key: bytes, moment: Moment, field: str = "key") -> StreamValue | None:
    """The stream under a key. Raises WrongTypeError."""
    return keyspace.container(key, StreamValue, moment.time_unix_ms, field)


def check_count(count: int, field: str = "count") -> None:
    """Check how many entries are asked for. Raises LimitExceededError."""
    if count > limits.STREAM_ENTRIES_PER_REPLY_MAX:
        raise LimitExceededError(f"{count} is more than {limits.STREAM_ENTRIES_PER_REPLY_MAX}", field=field)


def check_ids(ids: Sequence[api.StreamId]) -> None:
    """Check the ids that a request names. Raises InvalidArgumentError, LimitExceededError."""
    check_member_count(len(ids), "ids")


def check_range(selection: api.StreamRange) -> None:
    """Raises InvalidArgumentError."""
    for name in ("minimum", "maximum"):
        if selection.HasField(name) and not getattr(selection, name).HasField("id"):
            raise InvalidArgumentError("is missing", field=f"range.{name}.id")


def bounds_of(selection: api.StreamRange) -> tuple[int, int]:
    """The lowest and the highest id that a range selects; it may be beyond all ids."""
    minimum, maximum = 0, ID_MAX
    if selection.HasField("minimum"):
        minimum = number_of(selection.minimum.id) + selection.minimum.exclusive
    if selection.HasField("maximum"):
        maximum = number_of(selection.maximum.id) - selection.maximum.exclusive
    return minimum, maximum


def _check_trim(trim: api.StreamTrim) -> None:
    if trim.WhichOneof("kind") is None:
        raise InvalidArgumentError("does not say what is to be left", field="trim")


def _check_append(request: api.AppendStreamEntryRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.fields), "fields")
    size_bytes = 0
    for index, pair in enumerate(request.fields):
        check_member(pair.field, f"fields[{index}].field")
        size_bytes += len(pair.field) + len(pair.value)
    if size_bytes > limits.STREAM_ENTRY_BYTES_MAX:
        raise LimitExceededError(f"have {size_bytes} bytes, more than {limits.STREAM_ENTRY_BYTES_MAX}", field="fields")
    if request.HasField("explicit_id") and number_of(request.explicit_id) == NO_ID:
        raise InvalidArgumentError("0-0 is no id of an entry", field="explicit_id")
    if request.HasField("trim"):
        _check_trim(request.trim)


def _next_id(request: api.AppendStreamEntryRequest, last_id: int, now_unix_ms: int) -> int:
    """The id of a new entry. Raises StreamIdTooSmallError."""
    match request.WhichOneof("id"):
        case "explicit_id":
            entry_id = number_of(request.explicit_id)
            told, field = shown_id(entry_id), "explicit_id"
        case "id_time_unix_ms":
            entry_id = max(request.id_time_unix_ms << SEQUENCE_BITS, last_id + 1)
            told, field = f"{request.id_time_unix_ms}-*", "id_time_unix_ms"
            if entry_id >> SEQUENCE_BITS != request.id_time_unix_ms:
                entry_id = last_id
        case _:
            # The sequences of a time that are used up go on with the next time.
            entry_id = min(max(now_unix_ms << SEQUENCE_BITS, last_id + 1), ID_MAX)
            told, field = "any id", "key"
    if entry_id <= last_id:
        raise StreamIdTooSmallError(
            f"{field}: {told} is not greater than the last id, {shown_id(last_id)}",
            field=field,
            last_id=shown_id(last_id),
        )
    return entry_id


def _append(
    keyspace: Keyspace, request: api.AppendStreamEntryRequest, response: api.AppendStreamEntryResponse, moment: Moment
) -> None:
    found = find(keyspace, request.key, moment)
    if found is None and request.only_if_exists:
        return
    value, old_size_bytes = (StreamValue(), 0) if found is None else (found, found.size_bytes)
    entry_id = _next_id(request, value.last_id, moment.time_unix_ms)
    value.append(entry_id, tuple(part for pair in request.fields for part in (pair.field, pair.value)))
    if request.HasField("trim"):
        response.trimmed_count = _excess(value, request.trim)
        value.trim(response.trimmed_count)
    keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    write_id(response.id, entry_id)
    response.entry_count = len(value.entries)


def _excess(value: StreamValue, trim: api.StreamTrim) -> int:
    """How many entries are not to be left."""
    if trim.WhichOneof("kind") == "min_id":
        return value.entries.count_before(number_of(trim.min_id))
    return max(0, len(value.entries) - trim.max_length)


def _check_get_range(request: api.GetStreamRangeRequest) -> None:
    check_request_key(request)
    check_range(request.range)
    check_count(request.limit, "limit")


def _get_range(
    keyspace: Keyspace, request: api.GetStreamRangeRequest, response: api.GetStreamRangeResponse, moment: Moment
) -> None:
    value = find(keyspace, request.key, moment)
    if value is not None:
        walk = value.entries.backward if request.reverse else value.entries.forward
        room = Room(request.limit or limits.STREAM_ENTRIES_PER_REPLY_MAX)
        response.more = _fill(response.entries, walk(*bounds_of(request.range)), room)


def _fill(entries: Any, found: Iterable[tuple[int, Fields]], room: Room) -> bool:
    """Add entries for which there is room; returns whether there are more."""
    for entry_id, fields in found:
        if not room.take(fields):
            return True
        add_entry(entries, entry_id, fields)
    return False


def _describe(
    keyspace: Keyspace, request: api.DescribeStreamRequest, response: api.DescribeStreamResponse, moment: Moment
) -> None:
    value = find(keyspace, request.key, moment)
    if value is None:
        return
    response.exists = True
    response.entry_count = len(value.entries)
    write_id(response.last_id, value.last_id)
    write_id(response.max_deleted_id, value.max_deleted_id)
    if value.entries.first_id is not None and value.entries.last_id is not None:
        write_id(response.first_entry_id, value.entries.first_id)
        write_id(response.last_entry_id, value.entries.last_id)
    response.appended_count = value.appended_count
    response.group_count = len(value.groups)


def _check_delete(request: api.DeleteStreamEntriesRequest) -> None:
    check_request_key(request)
    check_ids(request.ids)


def _delete(
    keyspace: Keyspace,
    request: api.DeleteStreamEntriesRequest,
    response: api.DeleteStreamEntriesResponse,
    moment: Moment,
) -> None:
    value = find(keyspace, request.key, moment)
    if value is None:
        return
    old_size_bytes = value.size_bytes
    response.deleted_count = sum(value.delete(number_of(entry_id)) for entry_id in request.ids)
    if response.deleted_count:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)


def _check_trim_request(request: api.TrimStreamRequest) -> None:
    check_request_key(request)
    _check_trim(request.trim)


def _trim(keyspace: Keyspace, request: api.TrimStreamRequest, response: api.TrimStreamResponse, moment: Moment) -> None:
    value = find(keyspace, request.key, moment)
    if value is None:
        return
    response.trimmed_count = _excess(value, request.trim)
    if response.trimmed_count:
        old_size_bytes = value.size_bytes
        value.trim(response.trimmed_count)
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.entry_count = len(value.entries)


def _check_read(request: api.ReadStreamsRequest) -> None:
    if not request.positions:
        raise InvalidArgumentError("is empty", field="positions")
    if len(request.positions) > limits.KEYS_PER_REQUEST_MAX:
        raise LimitExceededError(
            f"{len(request.positions)} keys, more than {limits.KEYS_PER_REQUEST_MAX}", field="positions"
        )
    for index, position in enumerate(request.positions):
        check_key(position.key, f"positions[{index}].key")
    check_slot([position.key for position in request.positions], "positions")
    check_count(request.count)
    check_wait(request)


def _read(
    keyspace: Keyspace, request: api.ReadStreamsRequest, response: api.ReadStreamsResponse, moment: Moment
) -> None:
    values = [
        find(keyspace, position.key, moment, f"positions[{index}].key")
        for index, position in enumerate(request.positions)
    ]
    room, entries_left = Room(0), limits.STREAM_ENTRIES_PER_REPLY_MAX
    for position, value in zip(request.positions, values, strict=True):
        found = response.streams.add(key=position.key)
        after = number_of(position.after)
        if value is not None:
            room.entries_left = min(request.count or limits.STREAM_ENTRIES_DEFAULT, entries_left)
            found.more = _fill(found.entries, value.entries.forward(after + 1), room)
            entries_left -= len(found.entries)
        if found.entries:
            found.after.CopyFrom(found.entries[-1].id)
        else:
            write_id(found.after, after)


OPERATIONS = {
    "append_stream_entry": writes(_check_append, _append),
    "get_stream_range": reads(_check_get_range, _get_range),
    "describe_stream": reads(check_request_key, _describe),
    "delete_stream_entries": frees(_check_delete, _delete),
    "trim_stream": frees(_check_trim_request, _trim),
    "read_streams": reads(
        _check_read, _read, Waits(lambda response: any(found.entries for found in response.streams), lambda *_: True)
    ),
}
