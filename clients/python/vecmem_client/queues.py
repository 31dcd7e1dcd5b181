"""Delayed queues: messages that are due at a time. Each function builds an operation for `Client.run` and `Client.pipeline`.

A message is delivered at least once: who receives it has it alone for a visibility timeout, and acknowledges it before that has passed,
or it comes again. All raise WrongTypeError, when they run, for a key that holds a value of another type. A queue without messages is no
key. `Queue` and `AsyncQueue` are queues as objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import queues_pb2 as api
from vecmem_client._operations import BytesLike, Operation, as_bytes, as_time, as_wait_ms, reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

State = Literal["ready", "delayed", "in_flight", "dead"]
_STATES: dict[State | None, api.QueueMessageState.ValueType] = {
    None: api.QUEUE_MESSAGE_STATE_UNSPECIFIED,
    "ready": api.QUEUE_MESSAGE_STATE_READY,
    "delayed": api.QUEUE_MESSAGE_STATE_DELAYED,
    "in_flight": api.QUEUE_MESSAGE_STATE_IN_FLIGHT,
    "dead": api.QUEUE_MESSAGE_STATE_DEAD,
}
_STATE_NAMES = {number: name for name, number in _STATES.items() if name is not None}


@dataclass(frozen=True, slots=True)
class Message:
    """A message in hand. `receipt` is that of this delivery; `delivery_count` counts this one; `due_at`: when it comes again."""

    id: int
    receipt: int
    body: bytes
    delivery_count: int
    enqueued_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Received:
    """What was delivered, how many messages were set aside as dead, and in how many seconds the next one is due (None: there is none)."""

    messages: list[Message]
    dead_count: int
    next_due_in_seconds: float | None


@dataclass(frozen=True, slots=True)
class PeekedMessage:
    """A message as it waits. `due_at` of a dead one: when it was set aside."""

    id: int
    body: bytes
    state: State
    delivery_count: int
    enqueued_at: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class MessagePage:
    """One page of messages in order. `next_page_token` empty: the last."""

    messages: list[PeekedMessage]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class QueueDescription:
    """How many messages there are, and when the first one became or will be due (None: there is none but dead ones)."""

    ready_count: int
    delayed_count: int
    in_flight_count: int
    dead_count: int
    next_due_at: datetime | None


@dataclass(frozen=True, slots=True)
class Redriven:
    """How many dead messages were brought back, and how many are left."""

    redriven_count: int
    dead_count: int


def enqueue(
    key: BytesLike, bodies: Iterable[BytesLike], *, delay_seconds: float = 0.0, due_at: datetime | None = None
) -> Operation[list[int]]:
    """Add 1 to 1,024 messages that are due after a delay, or at a time; returns their ids.

    Raises ValueError for both, and for a datetime without a time zone.
    """
    due: dict[str, int] = {}
    if due_at is not None:
        if delay_seconds:
            raise ValueError("give one of delay_seconds and due_at")
        if due_at.tzinfo is None:
            raise ValueError(f"due_at has no time zone: {due_at}")
        due["at_unix_ms"] = round(due_at.timestamp() * 1e3)
    elif delay_seconds:
        due["delay_ms"] = _milliseconds(delay_seconds)
    return writes(
        "enqueue_messages",
        lambda response: list(response.message_ids),
        key=as_bytes(key),
        messages=[api.NewQueueMessage(body=as_bytes(body), **due) for body in bodies],
    )


def receive(
    key: BytesLike,
    count: int = 1,
    *,
    visibility_timeout_seconds: float = 30.0,
    max_deliveries: int = 0,
    wait_seconds: float = 0,
) -> Operation[Received]:
    """Take up to so many due messages; wait so long, at most an hour, where none is.

    Those delivered `max_deliveries` times already are set aside instead (0: none are).
    """
    return writes(
        "receive_messages",
        _received,
        key=as_bytes(key),
        count=count,
        visibility_timeout_ms=_milliseconds(visibility_timeout_seconds),
        max_deliveries=max_deliveries,
        wait_ms=as_wait_ms(wait_seconds),
    )


def acknowledge(key: BytesLike, messages: Iterable[Message]) -> Operation[list[bool]]:
    """Remove 1 to 1,024 messages in hand; returns for each whether it was still this one's to acknowledge."""
    return writes(
        "acknowledge_messages",
        lambda response: list(response.acknowledged),
        key=as_bytes(key),
        receipts=_receipts(messages),
    )


def extend(
    key: BytesLike, messages: Iterable[Message], *, visibility_timeout_seconds: float = 30.0
) -> Operation[list[bool]]:
    """Keep 1 to 1,024 messages in hand for so long from now on; returns for each whether it was still in this hand."""
    return writes(
        "extend_messages",
        lambda response: list(response.extended),
        key=as_bytes(key),
        receipts=_receipts(messages),
        visibility_timeout_ms=_milliseconds(visibility_timeout_seconds),
    )


def release(key: BytesLike, messages: Iterable[Message], *, delay_seconds: float = 0.0) -> Operation[list[bool]]:
    """Give 1 to 1,024 messages in hand back, to be due after a delay; returns for each whether it was still in this hand."""
    return writes(
        "release_messages",
        lambda response: list(response.released),
        key=as_bytes(key),
        receipts=_receipts(messages),
        delay_ms=_milliseconds(delay_seconds),
    )


def remove(key: BytesLike, ids: Iterable[int]) -> Operation[int]:
    """Remove 1 to 1,024 messages whatever has become of them; returns how many there were."""
    return writes("remove_messages", lambda response: response.removed_count, key=as_bytes(key), message_ids=list(ids))


def redrive(
    key: BytesLike, ids: Iterable[int] | None = None, *, count: int = 1_024, delay_seconds: float = 0.0
) -> Operation[Redriven]:
    """Bring dead messages back as if they had never been delivered: those of the ids, or the first `count` that died."""
    selected = {"count": count} if ids is None else {"message_ids": list(ids)}
    return writes(
        "redrive_messages",
        lambda response: Redriven(response.redriven_count, response.dead_count),
        key=as_bytes(key),
        delay_ms=_milliseconds(delay_seconds),
        **selected,
    )


def peek(
    key: BytesLike, state: State | None = None, *, page_size: int = 0, page_token: str = ""
) -> Operation[MessagePage]:
    """Return a page of messages without delivering them; None: all but dead ones, 0: 100 of them."""
    return reads(
        "peek_messages",
        _page,
        key=as_bytes(key),
        state=_STATES[state],
        page_size=page_size,
        page_token=page_token,
    )


def describe(key: BytesLike) -> Operation[QueueDescription]:
    """Return how many messages there are."""
    return reads("describe_queue", _description, key=as_bytes(key))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1e3)


def _receipts(messages: Iterable[Message]) -> list[api.MessageReceipt]:
    return [api.MessageReceipt(message_id=message.id, receipt=message.receipt) for message in messages]


def _received(response: api.ReceiveMessagesResponse) -> Received:
    messages = [
        Message(
            each.message_id,
            each.receipt,
            each.body,
            each.delivery_count,
            as_time(each.enqueued_at_unix_ms),
            as_time(each.due_at_unix_ms),
        )
        for each in response.messages
    ]
    next_due = response.next_due_in_ms / 1e3 if response.HasField("next_due_in_ms") else None
    return Received(messages, response.dead_count, next_due)


def _page(response: api.PeekMessagesResponse) -> MessagePage:
    messages = [
        PeekedMessage(
            each.message_id,
            each.body,
            _STATE_NAMES[each.state],
            each.delivery_count,
            as_time(each.enqueued_at_unix_ms),
            as_time(each.due_at_unix_ms),
        )
        for each in response.messages
    ]
    return MessagePage(messages, response.next_page_token)


def _description(response: Any) -> QueueDescription:
    return QueueDescription(
        response.ready_count,
        response.delayed_count,
        response.in_flight_count,
        response.dead_count,
        as_time(response.next_due_unix_ms) if response.next_due_unix_ms else None,
    )
