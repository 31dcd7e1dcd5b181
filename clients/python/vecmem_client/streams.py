"""Streams: entries in order of their ids, and groups of consumers that read them.

Each function builds an operation for `Client.run` and `Client.pipeline`.

    id = client.run(streams.append("{orders}", {"order": "17"}))
    client.run(streams.create_group("{orders}", "billing"))
    for entry in client.run(streams.read_group("{orders}", "billing", "worker-1")).entries:
        ...
        client.run(streams.acknowledge("{orders}", "billing", [entry.id]))

Ids may be given as text, `"1700000000000-0"`. All raise WrongTypeError, when they run, for a key that holds a value of another type, and
those that name a group StreamGroupNotFoundError where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vecmem.v1 import streams_pb2 as api
from vecmem_client._operations import BytesLike, Operation, as_bytes, as_wait_ms, reads, writes
from vecmem_client._stream_types import (
    Claimed,
    ConsumerInfo,
    ConsumerPage,
    Entries,
    Entry,
    FieldsLike,
    GroupInfo,
    GroupPage,
    IdLike,
    PendingEntry,
    PendingPage,
    ReadEntries,
    StreamId,
    StreamInfo,
    as_id,
    claimed_of,
    consumer_of,
    entries_of,
    group_of,
    id_of,
    info_of,
    list_of,
    message_of,
    optional_id_of,
    pending_count_of,
    pending_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Claimed",
    "ConsumerInfo",
    "ConsumerPage",
    "Entries",
    "Entry",
    "FieldsLike",
    "GroupInfo",
    "GroupPage",
    "IdLike",
    "PendingEntry",
    "PendingPage",
    "ReadEntries",
    "StreamId",
    "StreamInfo",
    "acknowledge",
    "append",
    "as_id",
    "auto_claim",
    "claim",
    "consumers",
    "create_consumer",
    "create_group",
    "delete",
    "delete_consumer",
    "delete_group",
    "describe",
    "describe_group",
    "get_range",
    "groups",
    "length",
    "pending",
    "read",
    "read_group",
    "set_group_position",
    "trim",
]


def append(
    key: BytesLike,
    fields: FieldsLike,
    *,
    entry_id: IdLike | None = None,
    id_time_unix_ms: int | None = None,
    max_length: int | None = None,
    min_id: IdLike | None = None,
    only_if_exists: bool = False,
) -> Operation[StreamId | None]:
    """Append an entry of 1 to 1,024 fields; returns its id, None: there was no such key and it was not to be made.

    The server chooses the id, unless `entry_id` says it or `id_time_unix_ms` its time. `max_length` or `min_id` says what is to be left
    thereafter. Raises StreamIdTooSmallError, when it runs, for an id that is not greater than the last.
    """
    if entry_id is not None and id_time_unix_ms is not None:
        raise ValueError("give one of entry_id and id_time_unix_ms")
    pairs = fields.items() if isinstance(fields, Mapping) else fields
    return writes(
        "append_stream_entry",
        lambda response: optional_id_of(response, "id"),
        key=as_bytes(key),
        fields=[api.StreamField(field=as_bytes(field), value=as_bytes(value)) for field, value in pairs],
        explicit_id=None if entry_id is None else message_of(entry_id),
        id_time_unix_ms=id_time_unix_ms,
        trim=None if max_length is None and min_id is None else _trim(max_length, min_id),
        only_if_exists=only_if_exists,
    )


def get_range(
    key: BytesLike,
    minimum: IdLike | None = None,
    maximum: IdLike | None = None,
    *,
    above_minimum: bool = False,
    below_maximum: bool = False,
    reverse: bool = False,
    limit: int = 0,
) -> Operation[Entries]:
    """Return entries from an id to an id, bounds inclusive unless told, None: without a bound; up to `limit`, 0: 10,000."""
    return reads(
        "get_stream_range",
        entries_of,
        key=as_bytes(key),
        range=_range(minimum, maximum, above_minimum=above_minimum, below_maximum=below_maximum),
        reverse=reverse,
        limit=limit,
    )


def describe(key: BytesLike) -> Operation[StreamInfo | None]:
    """Return what there is to tell of a stream; None: there is no such key."""
    return reads("describe_stream", info_of, key=as_bytes(key))


def length(key: BytesLike) -> Operation[int]:
    """Return how many entries a stream has; 0 without a key."""
    return reads("describe_stream", lambda response: response.entry_count, key=as_bytes(key))


def delete(key: BytesLike, ids: Iterable[IdLike]) -> Operation[int]:
    """Remove 1 to 1,024 entries; returns how many there were."""
    return writes(
        "delete_stream_entries",
        lambda response: response.deleted_count,
        key=as_bytes(key),
        ids=[message_of(value) for value in ids],
    )


def trim(key: BytesLike, *, max_length: int | None = None, min_id: IdLike | None = None) -> Operation[int]:
    """Leave so many of the newest entries, or those from an id on; returns how many were removed."""
    trimming = _trim(max_length, min_id)
    return writes("trim_stream", lambda response: response.trimmed_count, key=as_bytes(key), trim=trimming)


def read(
    positions: Mapping[BytesLike, IdLike | None], *, count: int = 0, wait_seconds: float = 0
) -> Operation[dict[bytes, ReadEntries]]:
    """Return entries behind a position in each of several streams of one slot, None: from the first on; `count` of each, 0: 100.

    Where there is none, wait so long, at most an hour. Who begins with `last_id` of `describe` gets what is appended from then on.
    """
    return reads(
        "read_streams",
        lambda response: {
            found.key: ReadEntries(list_of(found.entries), id_of(found.after), found.more) for found in response.streams
        },
        positions=[
            api.StreamPosition(key=as_bytes(key), after=None if after is None else message_of(after))
            for key, after in positions.items()
        ],
        count=count,
        wait_ms=as_wait_ms(wait_seconds),
    )


def create_group(
    key: BytesLike, group: BytesLike, *, after: IdLike | None = None, at_end: bool = False, create_stream: bool = False
) -> Operation[StreamId]:
    """Make a group that is delivered the entries behind an id, or those appended from now on; otherwise all. Returns its position.

    Raises, when it runs, StreamGroupExistsError, and KeyNotFoundError unless the stream is to be made.
    """
    return writes(
        "create_stream_group",
        lambda response: id_of(response.last_delivered_id),
        key=as_bytes(key),
        group=as_bytes(group),
        create_stream=create_stream,
        **_start(after, at_end=at_end),
    )


def set_group_position(
    key: BytesLike, group: BytesLike, *, after: IdLike | None = None, at_end: bool = False
) -> Operation[StreamId]:
    """Deliver to a group the entries behind an id next, or those appended from now on; otherwise all. Returns its position."""
    return writes(
        "set_stream_group_position",
        lambda response: id_of(response.last_delivered_id),
        key=as_bytes(key),
        group=as_bytes(group),
        **_start(after, at_end=at_end),
    )


def delete_group(key: BytesLike, group: BytesLike) -> Operation[int | None]:
    """Remove a group; returns how much was pending in it, None: there was no such group."""
    return writes("delete_stream_group", pending_count_of, key=as_bytes(key), group=as_bytes(group))


def create_consumer(key: BytesLike, group: BytesLike, consumer: BytesLike) -> Operation[bool]:
    """Make a consumer, which reading does by itself; returns whether it is new."""
    return writes("create_stream_consumer", lambda response: response.created, **_names(key, group, consumer))


def delete_consumer(key: BytesLike, group: BytesLike, consumer: BytesLike) -> Operation[int | None]:
    """Remove a consumer and forget what is pending there; returns how much that was, None: there was no such consumer."""
    return writes("delete_stream_consumer", pending_count_of, **_names(key, group, consumer))


def read_group(
    key: BytesLike,
    group: BytesLike,
    consumer: BytesLike,
    *,
    count: int = 0,
    acknowledge: bool = False,
    pending_after: IdLike | None = None,
    wait_seconds: float = 0,
) -> Operation[Entries]:
    """Return up to `count` entries, 0: 100, that the group was never delivered; they are pending at the consumer until acknowledged.

    Where there is none, wait so long, at most an hour; those who wait are served in the order in which they came.
    `acknowledge`: they do not become pending.
    `pending_after`: those that are pending at the consumer behind an id instead, `"0"`: all of them.
    """
    return writes(
        "read_stream_group",
        entries_of,
        count=count,
        no_acknowledge=acknowledge,
        wait_ms=as_wait_ms(wait_seconds),
        pending_after=None if pending_after is None else message_of(pending_after),
        **_names(key, group, consumer),
    )


def acknowledge(key: BytesLike, group: BytesLike, ids: Iterable[IdLike]) -> Operation[list[bool]]:
    """End 1 to 1,024 pending entries; returns for each whether it was pending."""
    return writes(
        "acknowledge_stream_entries",
        lambda response: list(response.acknowledged),
        key=as_bytes(key),
        group=as_bytes(group),
        ids=[message_of(value) for value in ids],
    )


def claim(
    key: BytesLike,
    group: BytesLike,
    consumer: BytesLike,
    ids: Iterable[IdLike],
    *,
    min_idle_seconds: float = 0,
    only_ids: bool = False,
    force: bool = False,
    idle_seconds: float | None = None,
    delivery_count: int | None = None,
) -> Operation[Claimed]:
    """Make 1 to 1,024 entries that are pending for so long pending at this consumer.

    `only_ids`: return no fields, and do not count this as a delivery. `force`: also those that are not pending. `idle_seconds` and
    `delivery_count` are what is remembered of them, otherwise that they were delivered now, once more than before.
    """
    return writes(
        "claim_stream_entries",
        claimed_of,
        ids=[message_of(value) for value in ids],
        min_idle_ms=round(min_idle_seconds * 1e3),
        only_ids=only_ids,
        force=force,
        idle_ms=None if idle_seconds is None else round(idle_seconds * 1e3),
        delivery_count=delivery_count,
        **_names(key, group, consumer),
    )


def auto_claim(
    key: BytesLike,
    group: BytesLike,
    consumer: BytesLike,
    *,
    min_idle_seconds: float = 0,
    start: IdLike | None = None,
    count: int = 0,
    only_ids: bool = False,
) -> Operation[Claimed]:
    """Make up to `count` entries, 0: 100, that are pending for so long pending at this consumer; go on with `next_start` as `start`."""
    return writes(
        "auto_claim_stream_entries",
        claimed_of,
        min_idle_ms=round(min_idle_seconds * 1e3),
        start=None if start is None else message_of(start),
        count=count,
        only_ids=only_ids,
        **_names(key, group, consumer),
    )


def pending(
    key: BytesLike,
    group: BytesLike,
    minimum: IdLike | None = None,
    maximum: IdLike | None = None,
    *,
    consumer: BytesLike = b"",
    min_idle_seconds: float = 0,
    count: int = 0,
) -> Operation[PendingPage]:
    """Return up to `count`, 0: 100, of what is pending, at one consumer or, without a name, at all, in order of ids."""
    return reads(
        "list_stream_pending",
        lambda response: PendingPage(
            [pending_of(found) for found in response.entries], optional_id_of(response, "next_start")
        ),
        range=_range(minimum, maximum, above_minimum=False, below_maximum=False),
        min_idle_ms=round(min_idle_seconds * 1e3),
        count=count,
        **_names(key, group, consumer),
    )


def describe_group(key: BytesLike, group: BytesLike) -> Operation[GroupInfo]:
    """Return what there is to tell of a group."""
    return reads(
        "describe_stream_group", lambda response: group_of(response.group), key=as_bytes(key), group=as_bytes(group)
    )


def groups(key: BytesLike, *, page_size: int = 0, page_token: str = "") -> Operation[GroupPage]:
    """Return a page of the groups of a stream, in order of their names; 0: 100 of them."""
    return reads(
        "list_stream_groups",
        lambda response: GroupPage([group_of(found) for found in response.groups], response.next_page_token),
        key=as_bytes(key),
        page_size=page_size,
        page_token=page_token,
    )


def consumers(key: BytesLike, group: BytesLike, *, page_size: int = 0, page_token: str = "") -> Operation[ConsumerPage]:
    """Return a page of the consumers of a group, in order of their names; 0: 100 of them."""
    return reads(
        "list_stream_consumers",
        lambda response: ConsumerPage(
            [consumer_of(found) for found in response.consumers],
            response.next_page_token,
        ),
        key=as_bytes(key),
        group=as_bytes(group),
        page_size=page_size,
        page_token=page_token,
    )


def _names(key: BytesLike, group: BytesLike, consumer: BytesLike) -> dict[str, Any]:
    return {"key": as_bytes(key), "group": as_bytes(group), "consumer": as_bytes(consumer)}


def _start(after: IdLike | None, *, at_end: bool) -> dict[str, Any]:
    if after is not None and at_end:
        raise ValueError("give one of after and at_end")
    return {"at_end": True} if at_end else {"after": None if after is None else message_of(after)}


def _trim(max_length: int | None, min_id: IdLike | None) -> api.StreamTrim:
    if max_length is not None and min_id is None:
        return api.StreamTrim(max_length=max_length)
    if max_length is None and min_id is not None:
        return api.StreamTrim(min_id=message_of(min_id))
    raise ValueError("give one of max_length and min_id")


def _range(
    minimum: IdLike | None, maximum: IdLike | None, *, above_minimum: bool, below_maximum: bool
) -> api.StreamRange:
    bounds = api.StreamRange()
    if minimum is not None:
        bounds.minimum.CopyFrom(api.StreamBound(id=message_of(minimum), exclusive=above_minimum))
    if maximum is not None:
        bounds.maximum.CopyFrom(api.StreamBound(id=message_of(maximum), exclusive=below_maximum))
    return bounds
