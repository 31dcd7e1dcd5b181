"""What operations on streams return, and ids in the forms in which they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vecmem.v1 import streams_pb2 as api
from vecmem_client._operations import BytesLike, as_datetime

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


class StreamId(NamedTuple):
    """The id of an entry. Ids are in order of their times, those of the same time in order of their sequences."""

    time_unix_ms: int
    sequence: int = 0

    def __str__(self) -> str:
        """Return time and sequence, as in `1700000000000-0`."""
        return f"{self.time_unix_ms}-{self.sequence}"


IdLike = StreamId | tuple[int, int] | str
FieldsLike = Mapping[BytesLike, BytesLike] | list[tuple[BytesLike, BytesLike]]
"""Fields with values; a list may have a field several times."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream."""

    id: StreamId
    pairs: list[tuple[bytes, bytes]]
    """Fields with values, in the order in which they were given. Empty where only ids were asked for."""
    deleted: bool = False
    """It is pending and was removed from the stream."""
    delivery_count: int = 0
    """How often a group has delivered it, this time included; 0 where none did, or where it does not become pending."""

    @property
    def fields(self) -> dict[bytes, bytes]:
        """Return the values by field, the last of those that a field has."""
        return dict(self.pairs)


@dataclass(frozen=True, slots=True)
class Entries:
    """Some entries in order. `more`: there are further ones behind them."""

    entries: list[Entry]
    more: bool


@dataclass(frozen=True, slots=True)
class ReadEntries:
    """Entries of one stream of several."""

    entries: list[Entry]
    after: StreamId
    """The position behind them: where to go on."""
    more: bool


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What there is to tell of a stream."""

    entry_count: int
    last_id: StreamId
    """The greatest id there has been; who reads behind it gets what is appended from now on."""
    first_entry_id: StreamId | None
    last_entry_id: StreamId | None
    appended_count: int
    """Entries that were ever appended."""
    max_deleted_id: StreamId
    """The greatest id that `delete` has removed."""
    group_count: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim gave."""

    entries: list[Entry]
    deleted_ids: list[StreamId]
    """What was pending and has gone from the stream: it is not pending now."""
    next_start: StreamId | None = None
    """Where the next `auto_claim` goes on; None: this was the end."""


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """An entry that was delivered and not acknowledged."""

    id: StreamId
    consumer: bytes
    delivered_at: datetime | None
    idle_seconds: float
    """How long ago that was."""
    delivery_count: int


@dataclass(frozen=True, slots=True)
class PendingPage:
    """Some of what is pending. `next_start`: the `minimum` of the next call; None: this was the end."""

    entries: list[PendingEntry]
    next_start: StreamId | None


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What there is to tell of a group."""

    group: bytes
    last_delivered_id: StreamId
    """Its position: it is delivered the entries behind it."""
    lag: int
    """How many there are."""
    consumer_count: int
    pending_count: int
    first_pending_id: StreamId | None
    last_pending_id: StreamId | None


@dataclass(frozen=True, slots=True)
class GroupPage:
    """One page of groups. `next_page_token` empty: the last."""

    groups: list[GroupInfo]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """What there is to tell of a consumer."""

    consumer: bytes
    pending_count: int
    seen_at: datetime | None
    """When it was made, or last got something or asked for what is pending."""
    active_at: datetime | None
    """When it last got something; None: never."""


@dataclass(frozen=True, slots=True)
class ConsumerPage:
    """One page of consumers. `next_page_token` empty: the last."""

    consumers: list[ConsumerInfo]
    next_page_token: str


def as_id(value: IdLike) -> StreamId:
    """Return an id of any form. Raises ValueError for text that is none; `"5"` is `"5-0"`."""
    if isinstance(value, str):
        time, dash, sequence = value.partition("-")
        numbers = (time, sequence) if dash else (time, "0")
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise ValueError(f"{value!r} is no id of an entry")
        return StreamId(int(numbers[0]), int(numbers[1]))
    return StreamId(*value)


def message_of(value: IdLike) -> api.StreamId:
    """Return an id as a request has it."""
    found = as_id(value)
    return api.StreamId(time_unix_ms=found.time_unix_ms, sequence=found.sequence)


def id_of(found: api.StreamId) -> StreamId:
    """Return an id of a reply."""
    return StreamId(found.time_unix_ms, found.sequence)


def optional_id_of(response: Any, field: str) -> StreamId | None:
    """Return an id that a reply may have."""
    return id_of(getattr(response, field)) if response.HasField(field) else None


def list_of(found: Iterable[api.StreamEntry]) -> list[Entry]:
    """Return entries of a reply."""
    return [
        Entry(
            id_of(entry.id),
            [(pair.field, pair.value) for pair in entry.fields],
            entry.deleted,
            entry.delivery_count,
        )
        for entry in found
    ]


def entries_of(response: Any) -> Entries:
    """Return entries of a reply, and whether there are more."""
    return Entries(list_of(response.entries), response.more)


def info_of(response: api.DescribeStreamResponse) -> StreamInfo | None:
    """Return what a reply tells of a stream."""
    if not response.exists:
        return None
    return StreamInfo(
        response.entry_count,
        id_of(response.last_id),
        optional_id_of(response, "first_entry_id"),
        optional_id_of(response, "last_entry_id"),
        response.appended_count,
        id_of(response.max_deleted_id),
        response.group_count,
    )


def pending_count_of(response: Any) -> int | None:
    """Return how much was pending where something was deleted."""
    return response.pending_count if response.deleted else None


def claimed_of(response: Any) -> Claimed:
    """Return what a claim gave."""
    next_start = (
        optional_id_of(response, "next_start") if isinstance(response, api.AutoClaimStreamEntriesResponse) else None
    )
    return Claimed(list_of(response.entries), [id_of(found) for found in response.deleted_ids], next_start)


def pending_of(found: api.PendingStreamEntry) -> PendingEntry:
    """Return what a reply tells of a pending entry."""
    return PendingEntry(
        id_of(found.id),
        found.consumer,
        as_datetime(found.delivered_at_unix_ms),
        found.idle_ms / 1e3,
        found.delivery_count,
    )


def group_of(found: api.StreamGroup) -> GroupInfo:
    """Return what a reply tells of a group."""
    return GroupInfo(
        found.group,
        id_of(found.last_delivered_id),
        found.lag,
        found.consumer_count,
        found.pending_count,
        optional_id_of(found, "first_pending_id"),
        optional_id_of(found, "last_pending_id"),
    )


def consumer_of(found: api.StreamConsumer) -> ConsumerInfo:
    """Return what a reply tells of a consumer."""
    return ConsumerInfo(
        found.consumer,
        found.pending_count,
        as_datetime(found.seen_at_unix_ms),
        as_datetime(found.active_at_unix_ms),
    )
